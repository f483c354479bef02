// Simulated HTTP/2 clients (h2c by prior knowledge): each plays the script of one connection, with many
// requests at a time, and reports what it sees of every request.

import { REASON_FIELD } from './client.ts';
import { CodecError, field } from './http-codec.ts';
import {
  type CodeName,
  encodeBlock,
  encodeFrame,
  encodeSettings,
  type Field,
  Flags,
  preface,
  Setting,
  Type,
  words,
} from './http2-codec.ts';
import { Http2Peer, type PeerStream } from './http2-peer.ts';
import { type Fatality, fatalCodes, type Http2ClientPlan, type Http2Malformed } from './http2-plan.ts';
import type { Judge } from './judge.ts';
import { Direction, PayloadChecker, payload } from './payload.ts';
import type { StreamEnd } from './peer.ts';
import { type ClientPlan, type RequestPlan, unroutedHost } from './plan.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimSocket } from './tcp.ts';

/** How long a client waits for 100 Continue before it sends the body anyway. */
const CONTINUE_WAIT_MS = 1000;

/** A request on its stream. */
interface Request {
  plan: RequestPlan;
  stream: PeerStream;
  /** Final response: its status, its reason flag if the gateway made it, and whether it has no body. */
  status: number;
  flag: string | undefined;
  checker: PayloadChecker;
  tunnel: boolean;
  length: number | undefined;
  trailers: Field[] | undefined;
  /** An outcome has been reported. */
  over: boolean;
}

/**
 * One client connection. `again` is given the requests that it did not come to send, or that the gateway says
 * it has not acted on, and says whether another connection takes them.
 */
export class SimHttp2Client extends Http2Peer {
  /** Everything this client wanted is over. */
  done = false;
  private readonly script: ClientPlan;
  private readonly http2: Http2ClientPlan;
  private readonly judge: Judge;
  private readonly name: string;
  private readonly again: (rest: RequestPlan[]) => boolean;
  private readonly requests = new Map<number, Request>();
  private nextId = 1;
  private next = 0;
  /** Requests to be sent on another connection. */
  private readonly refused: RequestPlan[] = [];
  private waiting = false;
  private left = false;
  private fatalSent = false;
  private goawaySent = false;
  private bytesReceived = 0;
  private retiring = false;
  private fenced = false;

  constructor(
    name: string,
    socket: SimSocket,
    scheduler: Scheduler,
    random: Random,
    script: ClientPlan,
    judge: Judge,
    again: (rest: RequestPlan[]) => boolean,
  ) {
    super(socket, scheduler, random, script.pace, script.http2!, true);
    this.name = name;
    this.script = script;
    this.http2 = script.http2!;
    this.judge = judge;
    this.again = again;
    if (script.cut !== undefined) this.cutAt(script.cut.atByte, script.cut.how);
  }

  // -- the connection -------------------------------------------------------------------------

  protected connected(): void {
    const more: [number, number][] = this.random.chance(0.3) ? [[Setting.ENABLE_PUSH, 0]] : [];
    this.start(more);
    this.issue();
  }

  protected cut(how: 'close' | 'reset' | 'stall'): void {
    if (how === 'stall') this.giveUpRest();
    else this.leave();
  }

  protected override received(bytes: Uint8Array): void {
    this.bytesReceived += bytes.length;
    super.received(bytes);
    const leaving = this.script.leaveAtByte;
    if (leaving === undefined || this.bytesReceived < leaving.atByte || this.done || this.gone) return;
    if (leaving.how === 'freeze') this.freeze();
    else this.close(leaving.how);
    this.leave();
  }

  protected note(text: string): void {
    this.judge.trace?.(`${this.name} ${text}`);
  }

  protected broken(error: CodecError): void {
    // Who has fallen silent within the preface is taken for an HTTP/1 client.
    const { cut } = this.script;
    const unknown = cut !== undefined && cut.atByte < preface.length;
    if (!unknown) this.judge.violation(`${this.name}: ${error.message}`);
    this.leave();
    this.close('reset');
  }

  protected goawayReceived(): void {
    const { lastId, code } = this.goaway!;
    const fatal = this.fatalSent ? fatalCodes[this.http2.fatal!.kind] : undefined;
    if (code !== 'NO_ERROR' && code !== fatal) {
      this.judge.violation(`${this.name} got GOAWAY ${code}${fatal === undefined ? '' : `, not ${fatal}`}`);
    } else if (code === 'NO_ERROR' && !this.judge.mayGoAway(this.script)) {
      this.judge.violation(`${this.name} got GOAWAY without a cause`);
    }
    // What is above was not acted on.
    for (const [id, request] of this.requests) {
      if (id <= lastId || request.over) continue;
      request.over = true;
      request.stream.resetReceived = true;
      this.judge.notActedOn(request.plan.id);
      this.refused.push(request.plan);
    }
    if (code !== 'NO_ERROR') this.deaf = true;
  }

  protected ended(how: StreamEnd): void {
    const { judge } = this;
    const open = [...this.requests.values()].filter((request) => !request.over);
    const waits = open.length === 0 && this.next < this.script.requests.length;
    const atFault = this.fatalSent && !this.judge.mayVanishAtAll(this.script);
    if (how === 'refused') judge.refused(this.name, this.script.extraListener);
    else if (atFault && how === 'fin' && (this.goaway === undefined || this.goaway.code === 'NO_ERROR')) {
      judge.violation(`${this.name} (${this.http2.fatal!.kind}) saw the end of the connection without a GOAWAY`);
    } else if (waits && this.goaway === undefined) judge.endedEarly(this.name, how, this.script.extraListener);
    else if (!this.left && this.retiring && how === 'fin' && !this.settled && !this.fatalSent) {
      if (!judge.mayGoAway(this.script)) judge.violation(`${this.name}: the connection ended owing ${this.owed}`);
    }
    for (const request of open) this.fail(request, how, undefined);
    this.leave();
    this.close('close');
  }

  /** No further reports: the rest of the script does not happen. */
  private leave(): void {
    if (this.left) return;
    this.left = true;
    for (const request of this.requests.values()) {
      if (request.over) continue;
      request.over = true;
      this.judge.outcome(request.plan.id, { type: 'left' });
    }
    this.giveUpRest();
    this.done = true;
  }

  /** What has not been sent by now will not be, on this connection. */
  private giveUpRest(): void {
    const rest = [...this.refused.splice(0), ...this.script.requests.slice(this.next)];
    this.next = this.script.requests.length;
    if (rest.length === 0 || this.again(rest)) return;
    for (const plan of rest) this.judge.outcome(plan.id, { type: 'left' });
  }

  protected override changed(): void {
    this.issue();
    if (!this.done && this.nothingLeft()) this.retire();
  }

  protected override drained(): void {
    super.drained();
    // The last that is sent may be the end of the last stream.
    if (!this.deaf && !this.gone && !this.left) this.changed();
  }

  /** Nothing more can be sent here, and everything sent has ended. */
  private nothingLeft(): boolean {
    const more = this.next < this.script.requests.length && this.goaway === undefined && !this.fatalSent;
    if (more || this.left) return false;
    for (const request of this.requests.values()) if (!request.over) return false;
    return true;
  }

  private retire(): void {
    // The answer to an error is the end, and comes from the gateway.
    if (this.fatalSent) return;
    this.retiring = true;
    if (!this.settled) return;
    if (!this.fenced) {
      // Everything that the end of the last stream causes comes before the answer.
      this.fenced = true;
      this.sendPing();
      return;
    }
    // What a tunnel has still to bring to a slow upstream is held by right, even if that has nothing more to say.
    const tunnelled = [...this.requests.values()].some(({ tunnel }) => tunnel);
    if (this.windowLost > 0 && !tunnelled)
      this.judge.violation(`${this.name}: ${this.windowLost} bytes of the window are lost`);
    this.leave();
    if (!this.goawaySent && this.random.chance(0.3)) this.sendGoaway(0, 'NO_ERROR');
    this.deaf = true;
    const delayMs = this.random.chance(0.9) ? this.random.float() * 20 : 100_000;
    this.scheduler.after(delayMs, () => this.close('close'));
  }

  // -- requests ---------------------------------------------------------------------------------

  private get open(): number {
    let count = 0;
    for (const stream of this.streams.values()) if (!stream.over) count++;
    return count;
  }

  /** Sends further requests as far as the script and the gateway allow now. */
  private issue(): void {
    const { requests, pipeline } = this.script;
    for (;;) {
      if (this.left || this.fatalSent || this.gone) return;
      if (this.goawaySent === false && this.http2.goawayAfter !== undefined && this.next >= this.http2.goawayAfter) {
        this.goawaySent = true;
        this.sendGoaway(0, this.random.pick(['NO_ERROR', 'CANCEL']));
      }
      if (this.http2.fatal !== undefined && this.next >= this.http2.fatal.afterRequests && !this.waiting) {
        this.breakRules(this.http2.fatal.kind);
        return;
      }
      if (this.next >= requests.length || this.goaway !== undefined || this.waiting) break;
      if (this.open >= Math.min(pipeline, this.streamsMax)) break;
      // A client learns from the settings whether it may tunnel (RFC 8441 §3).
      if (requests[this.next]!.upgrade && !this.settingsSeen) break;
      this.send(requests[this.next++]!);
      if (this.script.thinkMsMax > 0 && this.random.chance(0.3)) {
        this.waiting = true;
        this.scheduler.after(this.random.float() * this.script.thinkMsMax, () => {
          this.waiting = false;
          if (!this.gone) this.issue();
        });
      }
    }
    this.pump();
    if (this.next >= requests.length && this.script.halfClose) this.finishSending();
  }

  private send(plan: RequestPlan): void {
    const id = this.nextId;
    this.nextId += this.random.chance(0.2) ? 2 * this.random.int(1, 5) : 2;
    const stream = this.addStream(id);
    const checker = new PayloadChecker(plan.id, Direction.RESPONSE);
    const request: Request = {
      plan,
      stream,
      status: 0,
      flag: undefined,
      checker,
      tunnel: false,
      length: undefined,
      trailers: undefined,
      over: false,
    };
    this.requests.set(id, request);
    this.judge.issued(plan.id, this.scheduler.nowMs);
    if (plan.upgrade && !this.connectAllowed) throw new CodecError('SETTINGS_ENABLE_CONNECT_PROTOCOL is missing');
    this.sendRequest(plan, stream);
    const resetMs = plan.http2!.resetAfterMs;
    if (resetMs === undefined) return;
    this.scheduler.after(resetMs, () => {
      if (this.gone || this.deaf || stream.over) return;
      this.sendReset(stream, this.random.pick(['CANCEL', 'NO_ERROR', 'INTERNAL_ERROR']));
      if (!request.over) {
        request.over = true;
        this.judge.outcome(plan.id, { type: 'left' });
      }
      this.changed();
    });
  }

  private sendRequest(plan: RequestPlan, stream: PeerStream): void {
    const malformed = plan.http2!.malformed;
    const fields = spoil(requestFields(plan, this.random), malformed);
    if (malformed === 'selfDependency') {
      const block = Buffer.concat([words(stream.id), Buffer.from([0]), this.encodeFields(fields)]);
      const flags = Flags.PRIORITY | Flags.END_HEADERS | Flags.END_STREAM;
      stream.localEnded = true;
      this.write(encodeFrame(Type.HEADERS, flags, stream.id, block));
      return;
    }
    const bare = !plan.upgrade && plan.framing === 'none';
    this.sendFields(stream, fields, bare || (plan.framing === 'length' && plan.bytes === 0 && this.random.chance(0.5)));
    if (stream.localEnded || plan.upgrade) return;
    stream.outgoing = payload(plan.id, Direction.REQUEST, 0, plan.bytes);
    stream.dataBytesMax = Math.min(stream.dataBytesMax, plan.chunkBytesMax);
    stream.ending = plan.trailers ? [['x-trailer', 'end']] : 'end';
    if (malformed === 'bodyTooLong') stream.outgoing = Buffer.concat([stream.outgoing, Buffer.from('x')]);
    else if (malformed === 'bodyTooShort') stream.outgoing = stream.outgoing.subarray(0, -1);
    else if (malformed === 'pseudoTrailers') stream.ending = [[':path', '/']];
    else if (malformed === 'openTrailers') {
      stream.ending = 'nothing';
      this.write(encodeBlock(this.encodeFields([['x-trailer', 'end']]), stream.id, false, this.random));
      stream.outgoing = new Uint8Array(0);
    } else if (malformed === 'windowOverflow') {
      this.write(encodeFrame(Type.WINDOW_UPDATE, 0, stream.id, words(2 ** 31 - 1)));
      this.write(encodeFrame(Type.WINDOW_UPDATE, 0, stream.id, words(2 ** 31 - 1)));
      stream.outgoing = new Uint8Array(0);
      stream.ending = 'nothing';
    } else if (malformed === 'windowZero') {
      this.write(encodeFrame(Type.WINDOW_UPDATE, 0, stream.id, words(0)));
      stream.outgoing = new Uint8Array(0);
      stream.ending = 'nothing';
    }
    if (!plan.expectContinue) return;
    stream.held = true;
    this.scheduler.after(CONTINUE_WAIT_MS, () => this.release(stream));
  }

  /** Sends the body that was held back for 100 Continue. */
  private release(stream: PeerStream): void {
    if (!stream.held || this.gone) return;
    stream.held = false;
    this.pump();
  }

  // -- responses ------------------------------------------------------------------------------------

  protected fields(id: number, fields: Field[], end: boolean): void {
    const request = this.requests.get(id)!;
    if (request.over) return;
    if (request.status !== 0) {
      if (!end) throw new CodecError(`trailers of stream ${id} without END_STREAM`);
      if (fields.some(([name]) => name.startsWith(':'))) throw new CodecError('a pseudo-header field in trailers');
      request.trailers = fields;
      return;
    }
    const [first, ...rest] = fields;
    if (first?.[0] !== ':status' || !/^[1-5][0-9][0-9]$/.test(first[1])) throw new CodecError(`no :status first`);
    if (rest.some(([name]) => name.startsWith(':'))) throw new CodecError('a second pseudo-header field');
    this.head(request, Number(first[1]), rest, end);
  }

  private head(request: Request, status: number, fields: Field[], end: boolean): void {
    const { plan, stream } = request;
    const head = { startLine: '', fields };
    const own = field(head, 'x-sim-id');
    if (own !== undefined && Number(own) !== plan.id) {
      throw new CodecError(`the response to request ${own} where that to ${plan.id} was due`);
    }
    if (status < 200) {
      if (status === 101) throw new CodecError('101 in HTTP/2');
      if (end) throw new CodecError('an interim response with END_STREAM');
      if (status === 100) this.release(stream);
      return;
    }
    request.status = status;
    if (own === undefined) request.flag = field(head, REASON_FIELD) ?? '(none)';
    else this.checkOwn(head, request);
    const length = field(head, 'content-length');
    if (length !== undefined) {
      if (!/^[0-9]{1,15}$/.test(length)) throw new CodecError(`Content-Length: ${length}`);
      if (status === 204) throw new CodecError('204 with a content-length');
      request.length = Number(length);
    }
    // Whoever waits for 100 Continue waits no more; the body is sent all the same.
    this.release(stream);
  }

  private checkOwn(head: { startLine: string; fields: Field[] }, request: Request): void {
    const { plan, stream } = request;
    const upgraded = plan.upgrade && plan.upgradeAccepted && plan.response.fault === 'none';
    const expected = upgraded ? 200 : plan.response.status;
    if (request.status !== expected) throw new CodecError(`status ${request.status} instead of ${expected}`);
    if (field(head, 'x-hop') !== undefined) throw new CodecError('a field that Connection had named');
    if (field(head, 'x-end') !== 'kept') throw new CodecError('an end-to-end field is missing');
    if (!upgraded) return;
    request.tunnel = true;
    request.checker = new PayloadChecker(plan.id, Direction.TUNNEL_DOWN);
    stream.outgoing = payload(plan.id, Direction.TUNNEL_UP, 0, plan.tunnelBytes.client);
    stream.ending = 'end';
    this.pump();
  }

  protected data(stream: PeerStream, bytes: Uint8Array): void {
    const request = this.requests.get(stream.id)!;
    if (request.over) return;
    if (request.status === 0) throw new CodecError(`DATA on stream ${stream.id} before a response`);
    if (request.flag !== undefined) return;
    const wrong = request.checker.check(bytes);
    if (wrong >= 0) throw new CodecError(`byte ${wrong} of the body for request ${request.plan.id} is wrong`);
  }

  protected streamEnd(stream: PeerStream): void {
    const request = this.requests.get(stream.id)!;
    if (request.over) return;
    request.over = true;
    const { plan, status, flag, checker } = request;
    if (status === 0) throw new CodecError(`stream ${stream.id} ended without a response`);
    if (flag !== undefined) {
      this.judge.outcome(plan.id, { type: 'generated', status, flag });
      return;
    }
    const got = checker.position;
    if (request.tunnel) {
      this.expectBytes(plan.id, got, plan.tunnelBytes.upstream);
      this.judge.outcome(plan.id, { type: 'tunnel' });
      return;
    }
    const bodyless = plan.method === 'HEAD' || status === 204 || status === 304;
    this.expectBytes(plan.id, got, bodyless ? 0 : plan.response.bytes);
    if (request.length !== undefined && !bodyless && request.length !== got) {
      this.judge.violation(`content-length ${request.length} of request ${plan.id} and ${got} bytes`);
    }
    const { response } = plan;
    const trailers = !bodyless && response.trailers && response.framing === 'chunked' ? 'x-checksum: none' : '';
    const seen = (request.trailers ?? []).map(([name, value]) => `${name}: ${value}`).join();
    if (seen !== trailers) this.judge.violation(`trailers of request ${plan.id}: "${seen}" instead of "${trailers}"`);
    this.judge.outcome(plan.id, { type: 'complete', status });
  }

  private expectBytes(id: number, got: number, expected: number): void {
    if (got !== expected) this.judge.violation(`the body for request ${id} seemed complete: ${got} of ${expected}`);
  }

  protected streamReset(stream: PeerStream, code: CodeName): void {
    const request = this.requests.get(stream.id)!;
    if (!request.over) {
      this.fail(request, `RST_STREAM ${code}`, code);
      return;
    }
    // The response is complete, and the rest of the request of no use (RFC 9113 §8.1).
    if (!this.judge.mayResetAfterEnd(request.plan, code)) {
      this.judge.violation(`the stream of request ${request.plan.id} was reset (${code}) after its response`);
    }
  }

  private fail(request: Request, why: string, code: CodeName | undefined): void {
    request.over = true;
    const type = request.status === 0 ? 'unanswered' : 'truncated';
    this.judge.outcome(request.plan.id, { type, why, code });
  }

  // -- broken rules of connections ------------------------------------------------------------------

  private breakRules(kind: Fatality): void {
    this.fatalSent = true;
    const id = this.nextId;
    const none = new Uint8Array(0);
    const get: Field[] = [
      [':method', 'GET'],
      [':scheme', 'http'],
      [':authority', 'alpha.test'],
      [':path', '/r/0'],
    ];
    const headers = (flags: number, stream: number, block: Uint8Array): Uint8Array =>
      encodeFrame(Type.HEADERS, flags, stream, block);
    const frames: Record<Fatality, () => Uint8Array> = {
      dataOnIdle: () => encodeFrame(Type.DATA, 0, id, Buffer.from('x')),
      resetOnIdle: () => encodeFrame(Type.RST_STREAM, 0, id, words(8)),
      windowOnIdle: () => encodeFrame(Type.WINDOW_UPDATE, 0, id, words(8)),
      evenStream: () => headers(Flags.END_HEADERS | Flags.END_STREAM, 2, this.encodeFields(get)),
      settingsLength: () => encodeFrame(Type.SETTINGS, 0, 0, new Uint8Array(5)),
      settingsWindow: () => encodeSettings([[Setting.INITIAL_WINDOW_SIZE, 2 ** 31]]),
      settingsOnStream: () => encodeFrame(Type.SETTINGS, 0, 1, none),
      windowOverflow: () => encodeFrame(Type.WINDOW_UPDATE, 0, 0, words(2 ** 31 - 1)),
      windowZero: () => encodeFrame(Type.WINDOW_UPDATE, 0, 0, words(0)),
      continuationAlone: () => encodeFrame(Type.CONTINUATION, Flags.END_HEADERS, id, this.encodeFields(get)),
      interruptedBlock: () =>
        Buffer.concat([
          headers(Flags.END_STREAM, id, this.encodeFields(get)),
          encodeFrame(Type.PING, 0, 0, new Uint8Array(8)),
        ]),
      oversizedFrame: () => encodeFrame(Type.PING, 0, 0, new Uint8Array(16_385)),
      badHpack: () => headers(Flags.END_HEADERS | Flags.END_STREAM, id, Buffer.from([0xff, 0xff, 0xff, 0x7f])),
      paddingTooLong: () => headers(Flags.END_HEADERS | Flags.PADDED, id, Buffer.from([200, 0x82])),
      pingLength: () => encodeFrame(Type.PING, 0, 0, new Uint8Array(7)),
      goawayOnStream: () => encodeFrame(Type.GOAWAY, 0, 1, words(0, 0)),
      pushPromise: () => encodeFrame(Type.PUSH_PROMISE, Flags.END_HEADERS, 1, words(2)),
    };
    // Even where the window is full already, once more is too much.
    this.write(kind === 'windowOverflow' ? Buffer.concat([frames[kind](), frames[kind]()]) : frames[kind]());
  }
}

/** The fields of a request as its client sends them. */
function requestFields(plan: RequestPlan, random: Random): Field[] {
  const { cookies, te } = plan.http2!;
  const host = plan.unrouted ? unroutedHost : plan.host;
  const path: Field[] = [
    [':scheme', 'http'],
    [':path', `/r/${plan.id}?q=${plan.id}`],
    [':authority', host],
  ];
  const pseudo: Field[] = plan.upgrade
    ? [[':method', 'CONNECT'], ...path, [':protocol', 'websocket']]
    : [[':method', plan.method], ...path];
  const shift = random.int(0, pseudo.length - 1);
  const regular: Field[] = [['x-sim', String(plan.id)]];
  if (plan.extraFieldBytes > 0) regular.push(['x-extra', 'e'.repeat(plan.extraFieldBytes)]);
  if (plan.faulted === true) regular.push(['x-fault', 'yes']);
  if (plan.key !== undefined) regular.push(['x-key', plan.key]);
  if (plan.expectContinue) regular.push(['expect', '100-continue']);
  if (plan.framing === 'length') regular.push(['content-length', String(plan.bytes)]);
  if (plan.upgrade) regular.push(['sec-websocket-version', '13']);
  for (let i = 0; i < cookies; i++) regular.push(['cookie', `c${i}=${plan.id}`]);
  if (te) regular.push(['te', 'trailers']);
  return [...pseudo.slice(shift), ...pseudo.slice(0, shift), ...regular];
}

/** Makes fields malformed. */
function spoil(fields: Field[], kind: Http2Malformed | undefined): Field[] {
  const without = (name: string): Field[] => fields.filter((entry) => entry[0] !== name);
  const changed = (name: string, value: string): Field[] =>
    fields.map(([key, old]): Field => [key, key === name ? value : old]);
  switch (kind) {
    case 'upperCase':
      return [...fields, ['X-Upper', 'a']];
    case 'connectionField':
      return [...fields, ['connection', 'x-extra']];
    case 'transferEncoding':
      return [...fields, ['transfer-encoding', 'chunked']];
    case 'teGzip':
      return [...without('te'), ['te', 'gzip']];
    case 'noMethod':
      return without(':method');
    case 'noPath':
      return without(':path');
    case 'emptyPath':
      return changed(':path', '');
    case 'twoPaths':
      return [[':path', '/r/0'], ...fields];
    case 'latePseudo':
      return [...without(':authority'), [':authority', 'alpha.test']];
    case 'unknownPseudo':
      return [[':version', '2'], ...fields];
    case 'status':
      return [[':status', '200'], ...fields];
    case 'badMethod':
      return changed(':method', 'GET /r/0 HTTP/1.1');
    case 'lineBreak':
      return [...fields, ['x-line', 'a\r\nx-smuggled: b']];
    case 'nul':
      return [...fields, ['x-nul', 'a\0b']];
    case 'colonInName':
      return [...fields, ['x-a:b', 'c']];
    case 'hostMismatch':
      return [...fields, ['host', 'other.test']];
    case 'badLength':
      return [...without('content-length'), ['content-length', '+3']];
    case 'twoLengths':
      return [...without('content-length'), ['content-length', '3'], ['content-length', '4']];
    case 'lengthWithoutBody':
      return [...without('content-length'), ['content-length', '999999']];
    default:
      return fields;
  }
}
