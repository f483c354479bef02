// Simulated HTTP/2 upstreams (h2c): one connection with many streams, each answered as its plan says.
//
// What an HTTP/1.1 upstream does with its connection this one does with a stream or with the connection: a failure
// that takes the connection along is told to the judge for every request on it.
// A request whose stream is refused, or above the last one of GOAWAY, has not been delivered.

import { CodecError, field } from './http-codec.ts';
import { type CodeName, encodeBlock, encodeFrame, type Field, Flags, Setting, Type, words } from './http2-codec.ts';
import { Http2Peer, type PeerStream } from './http2-peer.ts';
import { drawHttp2Upstream, type Http2UpstreamPlan } from './http2-plan.ts';
import { endsEarly, isMalformed, type Judge } from './judge.ts';
import { Direction, PayloadChecker, payload } from './payload.ts';
import type { StreamEnd } from './peer.ts';
import { drawPace, hosts, type RequestPlan } from './plan.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimSocket } from './tcp.ts';
import type { SimUpstream, UpstreamPeer } from './upstream.ts';

/** A request on its stream. */
interface Served {
  plan: RequestPlan;
  stream: PeerStream;
  checker: PayloadChecker;
  trailers: Field[];
  tunnel: boolean;
  responding: boolean;
}

/** One HTTP/2 connection of an upstream. */
export class Http2UpstreamConnection extends Http2Peer implements UpstreamPeer {
  private readonly server: SimUpstream;
  private readonly judge: Judge;
  private readonly manner2: Http2UpstreamPlan;
  private readonly served = new Map<number, Served>();
  private lastId = 0;
  /** Streams above are not acted on; Infinity: no GOAWAY has been sent. */
  private goawayId = Number.POSITIVE_INFINITY;
  /** What happens to the next stream. */
  private nextFate: 'refuse' | 'goaway' | 'close' | 'reset' | undefined;
  private mute = false;
  private faulty = false;
  /** SETTINGS_MAX_CONCURRENT_STREAMS that the gateway has acknowledged. */
  private limit = Number.POSITIVE_INFINITY;

  constructor(server: SimUpstream, socket: SimSocket, scheduler: Scheduler, random: Random, judge: Judge) {
    const manner = drawHttp2Upstream(random.fork(), judge.troubles);
    super(socket, scheduler, random, drawPace(random, judge.troubles, false), manner, false);
    this.server = server;
    this.judge = judge;
    this.manner2 = manner;
  }

  shutDown(): void {
    this.lose();
    this.close('close');
    this.server.connections.delete(this);
  }

  get isIdle(): boolean {
    const unread = this.unsentBytes + this.socket.undeliveredBytes + this.socket.peer!.readableBytes;
    return !this.gone && this.served.size > 0 && this.openStreams === 0 && unread === 0;
  }

  private get openStreams(): number {
    let count = 0;
    for (const stream of this.streams.values()) if (!stream.over) count++;
    return count;
  }

  protected connected(): void {
    const { streamsMax, extendedConnect } = this.manner2;
    const settings: [number, number][] = extendedConnect ? [[Setting.ENABLE_CONNECT_PROTOCOL, 1]] : [];
    if (streamsMax !== undefined) settings.push([Setting.MAX_CONCURRENT_STREAMS, streamsMax]);
    this.start(settings);
  }

  protected override moreSettings(): [number, number][] {
    if (this.manner2.streamsMax === undefined || this.random.chance(0.5)) return [];
    return [[Setting.MAX_CONCURRENT_STREAMS, this.random.pick([1, 3, 10])]];
  }

  protected override settingAcknowledged(id: number, value: number): void {
    if (id === Setting.MAX_CONCURRENT_STREAMS) this.limit = value;
  }

  protected override answers(): boolean {
    return !this.mute;
  }

  protected cut(): void {}

  protected note(text: string): void {
    this.judge.trace?.(`upstream of ${this.server.backend} ${text}`);
  }

  protected broken(error: CodecError): void {
    this.judge.violation(`an HTTP/2 upstream: ${error.message}`);
    this.shutDown();
  }

  protected goawayReceived(): void {
    const { code } = this.goaway!;
    if (code !== 'NO_ERROR' && !this.faulty) this.judge.violation(`an upstream got GOAWAY ${code}`);
  }

  protected ended(_how: StreamEnd): void {
    this.lose();
    this.close('close');
    this.server.connections.delete(this);
  }

  /** The connection may take all its requests along. */
  private lose(): void {
    for (const { plan } of this.served.values()) this.judge.excuse(plan.id);
  }

  /** Ends the connection in the middle of things. */
  private drop(how: 'close' | 'reset', afterSending: boolean): void {
    this.note(`ends the connection (${how})`);
    this.judge.drops++;
    this.lose();
    this.server.connections.delete(this);
    this.deaf = true;
    if (afterSending) this.closeAfterSending(how);
    else this.close(how);
  }

  // -- requests ------------------------------------------------------------------------------------

  protected fields(id: number, fields: Field[], end: boolean): void {
    const served = this.served.get(id);
    if (served !== undefined) {
      if (!end) throw new CodecError('trailers without END_STREAM');
      served.trailers = fields;
      return;
    }
    if (id % 2 === 0 || id <= this.lastId) throw new CodecError(`stream ${id} opened after stream ${this.lastId}`);
    if (this.openStreams >= this.limit) throw new CodecError(`stream ${id} is one more than ${this.limit}`);
    const reused = this.lastId > 0;
    const before = this.lastId;
    this.lastId = id;
    const stream = this.addStream(id);
    const head = { startLine: '', fields };
    const match = /^\/r\/([0-9]+)(?:\?q=[0-9]+)?$/.exec(field(head, ':path') ?? '');
    const plan = match === null ? undefined : this.judge.plan(Number(match[1]));
    if (plan === undefined) throw new CodecError(`a request for ${field(head, ':path')}, which nobody sent`);
    if (this.turnAway(stream, plan, before)) return;
    this.judge.delivered(plan.id, reused, this.server.retiredMs, this.server);
    const tunnel = plan.upgrade && plan.upgradeAccepted && plan.response.fault === 'none';
    const checker = new PayloadChecker(plan.id, tunnel ? Direction.TUNNEL_UP : Direction.REQUEST);
    const request = { plan, stream, checker, trailers: [], tunnel, responding: false };
    this.served.set(id, request);
    if (plan.malformed === undefined && plan.http2?.malformed === undefined) this.checkHead(head, plan, end);
    if (this.nextFate === 'close' || this.nextFate === 'reset') {
      this.drop(this.nextFate, false);
      return;
    }
    if (field(head, 'expect') !== undefined) this.sendFields(stream, [[':status', '100']], false);
    if (plan.upgrade || plan.response.afterBodyBytes === 0) this.respond(request);
  }

  /** Whether a new stream is not acted on. */
  private turnAway(stream: PeerStream, plan: RequestPlan, before: number): boolean {
    if (stream.id > this.goawayId) {
      this.judge.turnedAway(plan.id);
      stream.resetSent = true;
      return true;
    }
    const fate = this.nextFate;
    if (fate !== 'refuse' && fate !== 'goaway') return false;
    this.nextFate = undefined;
    this.judge.turnedAway(plan.id);
    if (fate === 'refuse') {
      this.sendReset(stream, 'REFUSED_STREAM');
      return true;
    }
    stream.resetSent = true;
    this.leaveInOrder(before);
    return true;
  }

  /** Sends GOAWAY, and closes when the streams up to `lastId` have ended. */
  private leaveInOrder(lastId: number): void {
    if (this.goawayId !== Number.POSITIVE_INFINITY) return;
    // Often a notice comes first (RFC 9113 §6.8).
    if (this.random.chance(0.3)) this.sendGoaway(2 ** 31 - 1, 'NO_ERROR');
    this.goawayId = lastId;
    this.judge.goaways++;
    this.sendGoaway(lastId, this.random.chance(0.9) ? 'NO_ERROR' : 'ENHANCE_YOUR_CALM');
  }

  private checkHead(head: { startLine: string; fields: Field[] }, plan: RequestPlan, end: boolean): void {
    const where = `request ${plan.id} at an HTTP/2 upstream`;
    const check = (name: string, expected: string | undefined): void => {
      const value = field(head, name);
      if (value !== expected) throw new CodecError(`${where}: ${name} is ${value}, not ${expected}`);
    };
    check(':method', plan.upgrade ? 'CONNECT' : plan.method);
    check(':protocol', plan.upgrade ? 'websocket' : undefined);
    check(':scheme', 'http');
    check(':authority', plan.host);
    check('host', undefined);
    check('x-sim', String(plan.id));
    check('x-hop', undefined);
    if (hosts[plan.host] !== this.server.backend) throw new CodecError(`${where}: backend ${this.server.backend}`);
    if ((field(head, 'x-extra') ?? '').length !== plan.extraFieldBytes) throw new CodecError(`${where}: x-extra`);
    const crumbs = head.fields.flatMap(([name, value]) => (name === 'cookie' ? [value] : []));
    const cookies = Array.from({ length: plan.http2?.cookies ?? 0 }, (_, i) => `c${i}=${plan.id}`);
    if (crumbs.join('; ') !== cookies.join('; ')) throw new CodecError(`${where}: cookie ${crumbs}`);
    if (plan.framing === 'chunked' || plan.bytes > 0) {
      check('content-length', plan.framing === 'length' ? String(plan.bytes) : undefined);
      if (end) throw new CodecError(`${where}: no body`);
    }
  }

  protected data(stream: PeerStream, bytes: Uint8Array): void {
    const request = this.served.get(stream.id);
    if (request === undefined) throw new CodecError(`DATA on stream ${stream.id}, which has no request`);
    const { plan, checker, tunnel } = request;
    const wrong = checker.check(bytes);
    if (wrong >= 0) throw new CodecError(`byte ${wrong} of what belongs to request ${plan.id} is wrong`);
    if (!tunnel && checker.position >= plan.response.afterBodyBytes) this.respond(request);
  }

  protected streamEnd(stream: PeerStream): void {
    const request = this.served.get(stream.id);
    if (request === undefined || this.gone || this.deaf) return;
    const { plan, checker, trailers, tunnel } = request;
    if (tunnel) {
      const expected = plan.tunnelBytes.client;
      if (checker.position !== expected && this.judge.staysInTunnel(plan.id)) {
        this.judge.violation(`the tunnel of request ${plan.id} brought ${checker.position} of ${expected} bytes up`);
      }
      return;
    }
    if (checker.position !== plan.bytes || (isMalformed(plan) && !endsEarly(plan))) {
      throw new CodecError(`request ${plan.id} seemed complete with ${checker.position} of ${plan.bytes} body bytes`);
    }
    const seen = trailers.map(([name, value]) => `${name}: ${value}`).join();
    const expected = plan.trailers ? 'x-trailer: end' : '';
    if (seen !== expected) throw new CodecError(`request ${plan.id} has the trailers "${seen}", not "${expected}"`);
    this.respond(request);
  }

  protected streamReset(stream: PeerStream, code: CodeName): void {
    const plan = this.served.get(stream.id)?.plan;
    const fits =
      code === 'CANCEL' ||
      (code === 'NO_ERROR' && stream.localEnded) ||
      (this.faulty && (code === 'PROTOCOL_ERROR' || code === 'STREAM_CLOSED')) ||
      (code === 'INTERNAL_ERROR' && this.judge.troubles.resources);
    if (!fits) this.judge.violation(`an upstream's stream for request ${plan?.id} was reset with ${code}`);
  }

  protected override changed(): void {
    if (this.openStreams > 0) return;
    if (this.goawayId !== Number.POSITIVE_INFINITY) {
      this.server.connections.delete(this);
      // Streams that are still coming are turned away; their senders want to hear of the end.
      // Who closes with something unread destroys what is on its way: that is trouble, a half-close is not.
      if (this.judge.troubles.stale && this.random.chance(0.3)) this.drop('close', true);
      else if (this.random.chance(0.7)) this.finishSending();
      return;
    }
    this.rest();
  }

  /** Between two requests: may close, or plan something for the next one. */
  private rest(): void {
    if (!this.judge.troubles.stale || this.served.size === 0 || this.nextFate !== undefined) return;
    const count = this.served.size;
    const choice = this.random.weighted({ stay: 4, leave: 2, close: 1, refuse: 2, goaway: 2, die: 1, reset: 1 });
    if (choice === 'leave' || choice === 'close') {
      this.scheduler.after(this.random.float() * this.random.pick([1, 20, 300]), () => {
        if (this.served.size !== count || this.openStreams > 0 || this.gone || this.deaf) return;
        if (choice === 'leave') {
          this.leaveInOrder(this.lastId);
          this.changed();
        } else this.drop('close', true);
      });
    } else if (choice === 'refuse' || choice === 'goaway' || choice === 'reset') this.nextFate = choice;
    else if (choice === 'die') this.nextFate = 'close';
  }

  // -- responses ----------------------------------------------------------------------------------------

  private respond(request: Served): void {
    if (request.responding) return;
    request.responding = true;
    const { plan, stream } = request;
    this.scheduler.after(plan.response.thinkMs, () => {
      if (!this.gone && !this.deaf && !stream.over) this.begin(request);
    });
  }

  private begin(request: Served): void {
    const { plan, stream } = request;
    const { response } = plan;
    const { fault } = response;
    const { random } = this;
    if (fault === 'silence') {
      if (!random.chance(0.3)) return;
      // Deaf to PINGs too: the gateway gives the connection up.
      this.mute = true;
      this.lose();
      return;
    }
    const alone = random.chance(0.6);
    if (fault === 'closeBeforeHead' || fault === 'resetBeforeHead') {
      if (alone) this.sendReset(stream, random.pick(['INTERNAL_ERROR', 'CANCEL', 'PROTOCOL_ERROR', 'NO_ERROR']));
      else this.drop(fault === 'closeBeforeHead' ? 'close' : 'reset', false);
      this.pump();
      return;
    }
    for (let i = 0; i < response.interim; i++) {
      this.sendFields(
        stream,
        [
          [':status', '103'],
          ['link', `</${i}>; rel=preload`],
        ],
        false,
      );
    }
    const fields = responseFields(plan, request.tunnel);
    if (request.tunnel) {
      this.sendFields(stream, fields, false);
      stream.outgoing = payload(plan.id, Direction.TUNNEL_DOWN, 0, plan.tunnelBytes.upstream);
      stream.ending = 'end';
      stream.after = () => {
        if (response.close) this.leaveInOrder(this.lastId);
        this.changed();
      };
    } else if (fault === 'badHead') {
      this.faulty = true;
      this.sendFields(stream, badFields(fields, random), random.chance(0.5));
    } else if (fault === 'closeInHead') {
      const block = encodeBlock(this.encodeFields(fields), stream.id, false, random);
      this.write(block.subarray(0, random.int(1, block.length - 1)));
      this.drop('close', true);
    } else this.sendResponse(request, fields);
    this.pump();
  }

  private sendResponse(request: Served, fields: Field[]): void {
    const { plan, stream } = request;
    const { response } = plan;
    const { fault } = response;
    const cut = fault === 'closeInBody' || fault === 'resetInBody' || fault === 'badChunk';
    const bodyless = plan.method === 'HEAD' || response.framing === 'none';
    if (bodyless) {
      this.sendFields(stream, fields, true);
      this.finish(request);
      return;
    }
    this.sendFields(stream, fields, false);
    stream.outgoing = payload(plan.id, Direction.RESPONSE, 0, cut ? response.faultAtByte : response.bytes);
    stream.dataBytesMax = Math.min(stream.dataBytesMax, response.chunkBytesMax);
    stream.pauseMsMax = response.pauseMsMax;
    if (cut) stream.after = () => this.breakOff(request);
    else {
      stream.ending = response.trailers && response.framing === 'chunked' ? [['x-checksum', 'none']] : 'end';
      stream.after = () => this.finish(request);
    }
  }

  /** Fails in the middle of a body. */
  private breakOff(request: Served): void {
    const { stream, plan } = request;
    const { fault } = plan.response;
    const { random } = this;
    if (fault !== 'badChunk') {
      if (random.chance(0.6)) this.sendReset(stream, random.pick(['INTERNAL_ERROR', 'CANCEL', 'NO_ERROR']));
      else this.drop(fault === 'closeInBody' ? 'close' : 'reset', true);
      return;
    }
    this.faulty = true;
    const kind = random.pick(['trailers', 'push', 'padding', 'settings'] as const);
    if (kind === 'trailers') {
      this.sendFields(stream, [[':status', '200']], true);
      return;
    }
    this.lose();
    if (kind === 'push') this.write(encodeFrame(Type.PUSH_PROMISE, Flags.END_HEADERS, stream.id, words(2)));
    else if (kind === 'settings') this.write(encodeFrame(Type.SETTINGS, 0, 0, new Uint8Array(3)));
    else this.write(encodeFrame(Type.DATA, Flags.PADDED, stream.id, Buffer.from([9, 1])));
  }

  private finish(request: Served): void {
    const { stream, plan } = request;
    const { response } = plan;
    // The rest of the request is of no use.
    if (!stream.remoteEnded && this.random.chance(0.5)) this.sendReset(stream, 'NO_ERROR');
    if (response.leftover) {
      // What may come on a stream that has ended.
      this.write(encodeFrame(Type.PRIORITY, 0, stream.id, Buffer.from([0, 0, 0, 0, 7])));
      this.write(encodeFrame(0xfe, 0xff, stream.id, Buffer.from('whatever')));
    }
    if (response.close) this.leaveInOrder(this.lastId);
    this.changed();
  }
}

function responseFields(plan: RequestPlan, tunnel: boolean): Field[] {
  const { response } = plan;
  const fields: Field[] = [
    [':status', String(tunnel ? 200 : response.status)],
    ['x-sim-id', String(plan.id)],
    ['x-end', 'kept'],
  ];
  if (response.framing === 'length' && !tunnel) fields.push(['content-length', String(response.bytes)]);
  return fields;
}

/** Makes the fields of a response malformed. */
function badFields(fields: Field[], random: Random): Field[] {
  const [, ...rest] = fields;
  return random.pick<Field[]>([
    rest,
    [[':status', '2x0'], ...rest],
    [[':status', '99'], ...rest],
    [[':status', '101'], ...rest],
    [[':status', '200'], [':status', '200'], ...rest],
    [...rest, [':status', '200']],
    [[':path', '/'], ...fields],
    [...fields, ['Upper-Case', 'a']],
    [...fields, ['connection', 'close']],
    [...fields, ['transfer-encoding', 'chunked']],
    [...fields, ['x-line', 'a\r\nb: c']],
    [...fields, ['x-nul', 'a\0b']],
    [...fields, ['content-length', '5'], ['content-length', '6']],
    [...fields, ['content-length', '-1']],
  ]);
}
