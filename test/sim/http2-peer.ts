// What simulated HTTP/2 clients and upstreams have in common: a connection that keeps all the rules of
// RFC 9113 itself, in awkward ways, and watches whether the gateway keeps them.
//
// Windows are counted exactly: a changed SETTINGS_INITIAL_WINDOW_SIZE holds from its acknowledgement on, since
// frames have an order. Violations throw a CodecError, which `broken` gets.
// Spec: RFC 9113 §5 (streams), §6 (frames), §6.9 (flow control).

import { CodecError } from './http-codec.ts';
import {
  type CodeName,
  codeNames,
  content,
  decodeSettings,
  encodeBlock,
  encodeFrame,
  encodeSettings,
  type Field,
  Flags,
  FRAME_BYTES_MAX,
  type Frame,
  FrameReader,
  HeaderDecoder,
  HeaderEncoder,
  preface,
  Setting,
  Type,
  WINDOW_BYTES_DEFAULT,
  WINDOW_BYTES_MAX,
  wordAt,
  words,
} from './http2-codec.ts';
import type { Http2Manner } from './http2-plan.ts';
import { type Pace, Peer } from './peer.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimSocket } from './tcp.ts';

/** Bytes that are prepared ahead of what the connection takes. */
const AHEAD_BYTES = 64 * 1024;

/** One stream, as this side sees it; kept when it is over, so that late frames can be judged. */
export class PeerStream {
  readonly id: number;
  /** Body that is still to be sent. */
  outgoing: Uint8Array = new Uint8Array(0);
  /** Nothing may be sent yet, although it is there. */
  held = false;
  /** Time before which no further DATA is to be sent; longest pause after each. */
  pauseMsMax = 0;
  pausedUntilMs = 0;
  dataBytesMax: number;
  /** What follows the body: nothing, END_STREAM, or trailers with it. */
  ending: 'nothing' | 'end' | Field[] = 'nothing';
  /** Called once everything has been handed over. */
  after: (() => void) | undefined;
  localEnded = false;
  remoteEnded = false;
  /** A reset has been sent, or received. */
  resetSent = false;
  resetReceived = false;
  /** What the other side still takes. */
  sendWindow: number;
  /** WINDOW_UPDATEs sent, and DATA received with its padding. */
  granted = 0;
  received = 0;

  constructor(id: number, sendWindow: number, dataBytesMax: number) {
    this.id = id;
    this.sendWindow = sendWindow;
    this.dataBytesMax = dataBytesMax;
  }

  /** Nothing more will be sent or received. */
  get over(): boolean {
    return this.resetSent || this.resetReceived || (this.localEnded && this.remoteEnded);
  }

  /** Whether there is something to send besides what windows hold back. */
  get sending(): boolean {
    return !this.localEnded && !this.resetSent && !this.resetReceived && !this.held;
  }
}

/** One end of an HTTP/2 connection. */
export abstract class Http2Peer extends Peer {
  protected readonly streams = new Map<number, PeerStream>();
  /** The gateway's settings. */
  protected streamsMax = Number.POSITIVE_INFINITY;
  protected connectAllowed = false;
  protected settingsSeen = false;
  /** GOAWAY of the gateway: highest stream it acts on, and the code. */
  protected goaway: { lastId: number; code: CodeName } | undefined;
  /** Nothing is checked or answered any more. */
  protected deaf = false;
  private readonly manner: Http2Manner;
  private readonly reader = new FrameReader();
  private readonly decoder = new HeaderDecoder();
  private readonly encoder: HeaderEncoder;
  private readonly isClient: boolean;
  private prefaceLeft: number;
  private block: { stream: number; flags: number; parts: Uint8Array[] } | undefined;
  private peerInitialWindow = WINDOW_BYTES_DEFAULT;
  private sendWindow = WINDOW_BYTES_DEFAULT;
  private largestWindow = WINDOW_BYTES_DEFAULT;
  private granted = WINDOW_BYTES_DEFAULT;
  private receivedBytes = 0;
  /** What the gateway has acknowledged, and what has been announced last. */
  private initialWindow = WINDOW_BYTES_DEFAULT;
  private announcedWindow = WINDOW_BYTES_DEFAULT;
  private readonly unacked: (readonly [id: number, value: number])[][] = [];
  private readonly pingsOut: string[] = [];
  private updatesPlanned = false;
  private pumpPlanned = false;
  private settingsLeft: number;
  private pingsLeft: number;
  private oddLeft: number;

  constructor(
    socket: SimSocket,
    scheduler: Scheduler,
    random: Random,
    pace: Pace,
    manner: Http2Manner,
    isClient: boolean,
  ) {
    super(socket, scheduler, random, pace);
    this.manner = manner;
    this.isClient = isClient;
    this.encoder = new HeaderEncoder(random.fork());
    this.prefaceLeft = isClient ? 0 : preface.length;
    this.settingsLeft = manner.settingsChanges;
    this.pingsLeft = manner.pings;
    this.oddLeft = manner.oddFrames;
  }

  // -- what subclasses add ----------------------------------------------------------------

  /** A header block; `end`: nothing follows on the stream. */
  protected abstract fields(id: number, fields: Field[], end: boolean): void;
  protected abstract data(stream: PeerStream, bytes: Uint8Array): void;
  /** The last of a stream has come in, in order. */
  protected abstract streamEnd(stream: PeerStream): void;
  protected abstract streamReset(stream: PeerStream, code: CodeName): void;
  protected abstract goawayReceived(): void;
  /** The gateway has broken a rule. */
  protected abstract broken(error: CodecError): void;
  /** Takes a line for the trace. */
  protected abstract note(text: string): void;
  /** Further things may be possible: settings or the end of a stream have come. */
  protected changed(): void {}
  /** The gateway knows a setting now. */
  protected settingAcknowledged(_id: number, _value: number): void {}
  /** Whether PINGs are answered and settings acknowledged. */
  protected answers(): boolean {
    return true;
  }

  // -- sending ------------------------------------------------------------------------------

  /** Sends the preface and the first settings. */
  protected start(more: [id: number, value: number][] = []): void {
    if (this.isClient) this.write(preface);
    const settings: [number, number][] = [...more];
    if (this.manner.initialWindowBytes !== WINDOW_BYTES_DEFAULT || this.random.chance(0.5)) {
      settings.push([Setting.INITIAL_WINDOW_SIZE, this.manner.initialWindowBytes]);
    }
    if (this.random.chance(0.2)) settings.push([Setting.HEADER_TABLE_SIZE, this.random.pick([0, 64, 4096, 65_536])]);
    if (this.random.chance(0.2)) settings.push([Setting.MAX_FRAME_SIZE, this.random.int(16_384, 1_000_000)]);
    if (this.random.chance(0.1)) settings.push([0x0a0a, this.random.next()]);
    this.sendSettings(settings);
    this.planUpdates();
    this.planOddities();
  }

  protected sendSettings(settings: [id: number, value: number][]): void {
    for (const [id, value] of settings) if (id === Setting.INITIAL_WINDOW_SIZE) this.announcedWindow = value;
    this.unacked.push(settings);
    this.write(encodeSettings(settings));
  }

  /** Opens a stream, or takes up one that the other side has opened. */
  protected addStream(id: number): PeerStream {
    const stream = new PeerStream(id, this.peerInitialWindow, this.manner.dataBytesMax);
    this.streams.set(id, stream);
    this.planUpdates();
    return stream;
  }

  protected sendFields(stream: PeerStream, fields: readonly Field[], end: boolean): void {
    if (end) stream.localEnded = true;
    this.write(encodeBlock(this.encoder.encode(fields), stream.id, end, this.random));
  }

  /** A header block as it would be sent; for those who break rules with it. */
  protected encodeFields(fields: readonly Field[]): Uint8Array {
    return this.encoder.encode(fields);
  }

  protected sendReset(stream: PeerStream, code: CodeName): void {
    stream.resetSent = true;
    stream.outgoing = new Uint8Array(0);
    this.note(`resets stream ${stream.id} with ${code}`);
    this.write(encodeFrame(Type.RST_STREAM, 0, stream.id, words(codeNames.indexOf(code))));
  }

  protected sendGoaway(lastId: number, code: CodeName): void {
    this.note(`says GOAWAY ${code} up to stream ${lastId}`);
    this.write(encodeFrame(Type.GOAWAY, 0, 0, words(lastId, codeNames.indexOf(code))));
  }

  protected sendPing(): void {
    const payload = words(this.random.next(), this.random.next());
    this.pingsOut.push(Buffer.from(payload).toString('hex'));
    this.write(encodeFrame(Type.PING, 0, 0, payload));
  }

  /** Bytes of the connection's window that the gateway holds back beyond the half that it may. */
  protected get windowLost(): number {
    return Math.max(0, Math.floor(this.largestWindow / 2) - this.sendWindow);
  }

  /** Streams that could send if their windows allowed it, and everything answered. */
  protected get settled(): boolean {
    if (this.pingsOut.length > 0 || this.unacked.length > 0 || !this.reader.isBetween) return false;
    for (const stream of this.streams.values()) if (!stream.over) return false;
    return true;
  }

  /** Acknowledgements that the gateway owes. */
  protected get owed(): string {
    const open = [...this.streams.values()].filter((stream) => !stream.over).map((stream) => stream.id);
    return `${this.pingsOut.length} PINGs, ${this.unacked.length} SETTINGS, streams ${open.join(' ')}`;
  }

  protected override drained(): void {
    this.pump();
  }

  /** Sends DATA and trailers as far as windows and the connection allow, of streams in any order. */
  protected pump(): void {
    if (this.deaf || this.gone) return;
    let ready = [...this.streams.values()].filter((stream) => stream.sending);
    let pausedMs = Number.POSITIVE_INFINITY;
    while (ready.length > 0 && this.unsentBytes < AHEAD_BYTES) {
      const stream = this.random.pick(ready);
      if (stream.pausedUntilMs > this.scheduler.nowMs) {
        pausedMs = Math.min(pausedMs, stream.pausedUntilMs - this.scheduler.nowMs);
        ready = ready.filter((other) => other !== stream);
      } else if (!this.sendSome(stream)) {
        ready = ready.filter((other) => other !== stream);
      }
    }
    if (pausedMs === Number.POSITIVE_INFINITY || this.pumpPlanned) return;
    this.pumpPlanned = true;
    this.scheduler.after(pausedMs, () => {
      this.pumpPlanned = false;
      this.pump();
    });
  }

  /** Sends the next frame of a stream. Returns whether there may be another. */
  private sendSome(stream: PeerStream): boolean {
    if (!stream.sending) return false;
    const { random } = this;
    if (stream.outgoing.length > 0) {
      const window = Math.min(stream.sendWindow, this.sendWindow, FRAME_BYTES_MAX);
      if (window <= 0) return false;
      const bytes = stream.outgoing.subarray(0, random.size(1, Math.min(window, stream.dataBytesMax)));
      stream.outgoing = stream.outgoing.subarray(bytes.length);
      const room = Math.min(window - bytes.length - 1, 255);
      const padding = room >= 0 && random.chance(this.manner.paddingChance) ? random.int(0, room) : -1;
      const end = stream.ending === 'end' && stream.outgoing.length === 0 && random.chance(0.8);
      this.sendData(stream, bytes, padding, end);
      if (end) this.sentAll(stream);
      if (stream.pauseMsMax > 0 && random.chance(0.3)) {
        stream.pausedUntilMs = this.scheduler.nowMs + random.float() * stream.pauseMsMax;
      }
      return true;
    }
    if (stream.ending === 'end') this.sendData(stream, stream.outgoing, -1, true);
    else if (stream.ending !== 'nothing') this.sendFields(stream, stream.ending, true);
    this.sentAll(stream);
    return false;
  }

  private sentAll(stream: PeerStream): void {
    const { after } = stream;
    stream.after = undefined;
    after?.();
  }

  /** Sends one DATA frame; `padding` -1: without the flag. */
  protected sendData(stream: PeerStream, bytes: Uint8Array, padding: number, end: boolean): void {
    const payload = padding < 0 ? bytes : Buffer.concat([Buffer.from([padding]), bytes, Buffer.alloc(padding)]);
    stream.sendWindow -= payload.length;
    this.sendWindow -= payload.length;
    if (end) stream.localEnded = true;
    const flags = (end ? Flags.END_STREAM : 0) | (padding < 0 ? 0 : Flags.PADDED);
    this.write(encodeFrame(Type.DATA, flags, stream.id, payload));
  }

  // -- windows, settings and odd frames of our own ----------------------------------------------

  private planUpdates(): void {
    if (this.updatesPlanned) return;
    this.updatesPlanned = true;
    this.scheduler.after(this.random.float() * this.manner.updateMsMax, () => {
      this.updatesPlanned = false;
      if (!this.gone && !this.deaf) this.fillWindows();
    });
  }

  /** Fills up every window of which less than half is left. */
  private fillWindows(): void {
    const { manner } = this;
    const left = this.granted - this.receivedBytes;
    if (left * 2 < manner.connectionWindowBytes) {
      this.granted += this.grant(0, manner.connectionWindowBytes - left);
    }
    for (const stream of this.streams.values()) {
      if (stream.remoteEnded || stream.resetSent || stream.resetReceived) continue;
      const streamLeft = this.announcedWindow + stream.granted - stream.received;
      if (streamLeft * 2 >= manner.streamWindowBytes) continue;
      stream.granted += this.grant(stream.id, manner.streamWindowBytes - streamLeft);
    }
  }

  private grant(id: number, bytes: number): number {
    if (this.random.chance(0.2) && bytes > 1) {
      const part = this.random.int(1, bytes - 1);
      this.write(encodeFrame(Type.WINDOW_UPDATE, 0, id, words(part)));
      this.write(encodeFrame(Type.WINDOW_UPDATE, 0, id, words(bytes - part)));
    } else this.write(encodeFrame(Type.WINDOW_UPDATE, 0, id, words(bytes)));
    return bytes;
  }

  private planOddities(): void {
    const { random } = this;
    if (this.settingsLeft + this.pingsLeft + this.oddLeft === 0) return;
    this.scheduler.after(random.size(0, 60) + random.float(), () => {
      if (this.gone || this.deaf) return;
      this.oddity();
      this.planOddities();
    });
  }

  private oddity(): void {
    const { random } = this;
    const kind = random.weighted({ settings: this.settingsLeft, ping: this.pingsLeft, odd: this.oddLeft });
    if (kind === 'settings') {
      this.settingsLeft--;
      const settings: [number, number][] = [];
      if (random.chance(0.7)) settings.push([Setting.INITIAL_WINDOW_SIZE, random.size(0, 100_000)]);
      if (random.chance(0.3)) settings.push([Setting.HEADER_TABLE_SIZE, random.size(0, 10_000)]);
      if (random.chance(0.1)) settings.push([Setting.HEADER_TABLE_SIZE, random.size(0, 10_000)]);
      this.sendSettings([...settings, ...this.moreSettings()]);
      this.planUpdates();
    } else if (kind === 'ping') {
      this.pingsLeft--;
      this.sendPing();
    } else {
      this.oddLeft--;
      const known = [...this.streams.keys()];
      const id = known.length > 0 && random.chance(0.5) ? random.pick(known) : 2 * random.int(0, 50) + 1;
      if (random.chance(0.5)) {
        const payload = Buffer.concat([words(id === 1 ? 3 : 1), Buffer.from([random.int(0, 255)])]);
        this.write(encodeFrame(Type.PRIORITY, 0, id, payload));
      } else {
        this.write(encodeFrame(random.int(0x0d, 0xff), random.int(0, 255), id, new Uint8Array(random.int(0, 30))));
      }
    }
  }

  /** Further settings for a change in the middle. */
  protected moreSettings(): [number, number][] {
    return [];
  }

  // -- receiving ----------------------------------------------------------------------------------

  protected received(bytes: Uint8Array): void {
    if (this.deaf) return;
    try {
      let data = bytes;
      if (this.prefaceLeft > 0) {
        const start = preface.length - this.prefaceLeft;
        const part = data.subarray(0, this.prefaceLeft);
        if (Buffer.compare(part, preface.subarray(start, start + part.length)) !== 0) {
          throw new CodecError('the connection does not begin with the preface');
        }
        this.prefaceLeft -= part.length;
        data = data.subarray(part.length);
      }
      this.reader.feed(data, (frame) => {
        if (!this.deaf && !this.gone) this.frame(frame);
      });
    } catch (error) {
      if (!(error instanceof CodecError)) throw error;
      this.deaf = true;
      this.broken(error);
    }
    if (!this.deaf && !this.gone) this.changed();
  }

  private frame(frame: Frame): void {
    const { type, flags, streamId: id, payload } = frame;
    if (!this.settingsSeen && (type !== Type.SETTINGS || (flags & Flags.ACK) !== 0)) {
      throw new CodecError('the first frame is not SETTINGS');
    }
    if (this.block !== undefined && (type !== Type.CONTINUATION || id !== this.block.stream)) {
      throw new CodecError(`a frame of type ${type} within a header block`);
    }
    switch (type) {
      case Type.DATA:
        this.dataFrame(frame);
        return;
      case Type.HEADERS:
        if (id === 0) throw new CodecError('HEADERS on stream 0');
        this.block = { stream: id, flags, parts: [content(frame)] };
        if ((flags & Flags.END_HEADERS) !== 0) this.blockEnd();
        return;
      case Type.CONTINUATION:
        if (this.block === undefined) throw new CodecError('CONTINUATION that continues nothing');
        if (payload.length === 0) throw new CodecError('an empty CONTINUATION');
        this.block.parts.push(payload);
        if ((flags & Flags.END_HEADERS) !== 0) this.blockEnd();
        return;
      case Type.RST_STREAM:
        this.resetFrame(id, payload);
        return;
      case Type.SETTINGS:
        this.settingsFrame(id, flags, payload);
        return;
      case Type.PING:
        this.pingFrame(id, flags, payload);
        return;
      case Type.GOAWAY:
        this.goawayFrame(id, payload);
        return;
      case Type.WINDOW_UPDATE:
        this.windowFrame(id, payload);
        return;
      default:
        throw new CodecError(`a frame of type ${type}`);
    }
  }

  /** The stream that a frame belongs to; undefined when what it says does not matter any more. */
  private streamFor(id: number, what: string): PeerStream | undefined {
    const stream = this.streams.get(id);
    if (stream === undefined) throw new CodecError(`${what} on stream ${id}, which is not there`);
    if (stream.resetReceived) throw new CodecError(`${what} on stream ${id} after its RST_STREAM`);
    if (stream.remoteEnded && what !== 'WINDOW_UPDATE' && what !== 'RST_STREAM') {
      throw new CodecError(`${what} on stream ${id} after its END_STREAM`);
    }
    return stream.resetSent ? undefined : stream;
  }

  private dataFrame(frame: Frame): void {
    const { payload, flags, streamId: id } = frame;
    this.receivedBytes += payload.length;
    if (payload.length > 0 && this.receivedBytes > this.granted) {
      throw new CodecError(`${this.receivedBytes - this.granted} bytes more than the connection's window`);
    }
    const stream = this.streams.get(id);
    if (stream !== undefined) stream.received += payload.length;
    this.planUpdates();
    const live = this.streamFor(id, 'DATA');
    const end = (flags & Flags.END_STREAM) !== 0;
    if (live === undefined) {
      if (end) stream!.remoteEnded = true;
      return;
    }
    const excess = live.received - live.granted - this.initialWindow;
    if (payload.length > 0 && excess > 0) throw new CodecError(`${excess} bytes more than the window of stream ${id}`);
    if (payload.length === 0 && !end) throw new CodecError(`an empty DATA frame on stream ${id}`);
    this.data(live, content(frame));
    if (end) this.endOf(live);
  }

  private endOf(stream: PeerStream): void {
    stream.remoteEnded = true;
    this.streamEnd(stream);
  }

  private blockEnd(): void {
    const { stream: id, flags, parts } = this.block!;
    this.block = undefined;
    const fields = this.decoder.decode(Buffer.concat(parts));
    const end = (flags & Flags.END_STREAM) !== 0;
    if (this.isClient || this.streams.has(id)) {
      const stream = this.streamFor(id, 'HEADERS');
      if (end) this.streams.get(id)!.remoteEnded = true;
      if (stream === undefined) return;
    }
    for (const [name, value] of fields) checkField(name, value);
    this.fields(id, fields, end);
    const stream = this.streams.get(id);
    if (end && stream !== undefined) this.endOf(stream);
  }

  private resetFrame(id: number, payload: Uint8Array): void {
    if (payload.length !== 4) throw new CodecError(`a RST_STREAM of ${payload.length} bytes`);
    const stream = this.streams.get(id);
    const live = this.streamFor(id, 'RST_STREAM');
    const code = codeNames[wordAt(payload, 0)];
    if (code === undefined) throw new CodecError(`RST_STREAM with code ${wordAt(payload, 0)}`);
    stream!.resetReceived = true;
    stream!.outgoing = new Uint8Array(0);
    this.note(`sees stream ${id} reset with ${code}`);
    if (live !== undefined) this.streamReset(live, code);
  }

  private settingsFrame(id: number, flags: number, payload: Uint8Array): void {
    if (id !== 0) throw new CodecError('SETTINGS on a stream');
    if ((flags & Flags.ACK) !== 0) {
      if (payload.length > 0) throw new CodecError('an acknowledgement with settings');
      const acked = this.unacked.shift();
      if (acked === undefined) throw new CodecError('an acknowledgement of nothing');
      for (const [setting, value] of acked) {
        if (setting === Setting.INITIAL_WINDOW_SIZE) this.initialWindow = value;
        else if (setting === Setting.HEADER_TABLE_SIZE) this.decoder.setLimit(value);
        this.settingAcknowledged(setting, value);
      }
      return;
    }
    this.settingsSeen = true;
    for (const [setting, value] of decodeSettings(payload)) {
      if (setting === Setting.INITIAL_WINDOW_SIZE) {
        if (value > WINDOW_BYTES_MAX) throw new CodecError(`an initial window of ${value}`);
        for (const stream of this.streams.values()) stream.sendWindow += value - this.peerInitialWindow;
        this.peerInitialWindow = value;
      } else if (setting === Setting.MAX_CONCURRENT_STREAMS) this.streamsMax = value;
      else if (setting === Setting.ENABLE_CONNECT_PROTOCOL) this.connectAllowed = value === 1;
      else if (setting === Setting.ENABLE_PUSH && value !== 0) throw new CodecError('push is enabled');
    }
    if (this.answers()) this.write(encodeFrame(Type.SETTINGS, Flags.ACK, 0, new Uint8Array(0)));
    this.pump();
  }

  private pingFrame(id: number, flags: number, payload: Uint8Array): void {
    if (id !== 0 || payload.length !== 8) throw new CodecError('a malformed PING');
    if ((flags & Flags.ACK) === 0) {
      if (this.answers()) this.write(encodeFrame(Type.PING, Flags.ACK, 0, payload));
      return;
    }
    const expected = this.pingsOut.shift();
    if (Buffer.from(payload).toString('hex') !== expected) throw new CodecError('an answer to another PING');
  }

  private goawayFrame(id: number, payload: Uint8Array): void {
    if (id !== 0 || payload.length < 8) throw new CodecError('a malformed GOAWAY');
    const lastId = wordAt(payload, 0);
    const code = codeNames[wordAt(payload, 1)];
    if (code === undefined) throw new CodecError(`GOAWAY with code ${wordAt(payload, 1)}`);
    if (this.goaway !== undefined && lastId > this.goaway.lastId) {
      throw new CodecError(`GOAWAY up to stream ${lastId} after one up to ${this.goaway.lastId}`);
    }
    this.goaway = { lastId, code };
    this.note(`sees GOAWAY ${code} up to stream ${lastId}: ${Buffer.from(payload.subarray(8)).toString('latin1')}`);
    this.goawayReceived();
  }

  private windowFrame(id: number, payload: Uint8Array): void {
    if (payload.length !== 4) throw new CodecError(`a WINDOW_UPDATE of ${payload.length} bytes`);
    const increment = wordAt(payload, 0);
    if (increment === 0 || increment > WINDOW_BYTES_MAX) throw new CodecError(`WINDOW_UPDATE by ${increment}`);
    if (id === 0) {
      this.sendWindow += increment;
      this.largestWindow = Math.max(this.largestWindow, this.sendWindow);
    } else {
      const stream = this.streamFor(id, 'WINDOW_UPDATE');
      if (stream !== undefined) stream.sendWindow += increment;
      if (stream !== undefined && stream.sendWindow > WINDOW_BYTES_MAX) throw new CodecError('a window too large');
    }
    if (this.sendWindow > WINDOW_BYTES_MAX) throw new CodecError('a window too large');
    this.pump();
  }
}

const tokenPattern = /^:?[!#$%&'*+.^_`|~0-9a-z-]+$/;
const valuePattern = /^(?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?$/;
const connectionFields: readonly string[] = [
  'connection',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade',
];

/** What every field of HTTP/2 must be like (RFC 9113 §8.2). */
function checkField(name: string, value: string): void {
  if (!tokenPattern.test(name)) throw new CodecError(`a field named "${name}"`);
  if (!valuePattern.test(value)) throw new CodecError(`a field ${name} with the value "${value}"`);
  if (connectionFields.includes(name)) throw new CodecError(`a field ${name}`);
  if (name === 'te' && value !== 'trailers') throw new CodecError(`te: ${value}`);
}
