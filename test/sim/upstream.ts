// Simulated upstreams: servers that do with each request what its plan says, at the worst moment.

import { Errno } from '../../core/ffi/errno.ts';
import {
  CodecError,
  connectionHas,
  declaredFraming,
  encodeChunk,
  encodeHead,
  encodeLastChunk,
  type Framing,
  field,
  type Head,
  latin1,
  MessageReader,
} from './http-codec.ts';
import { Http2UpstreamConnection } from './http2-upstream.ts';
import { endsEarly, isMalformed, type Judge } from './judge.ts';
import type { DialOutcome, Endpoint } from './kernel.ts';
import { Direction, PayloadChecker, payload } from './payload.ts';
import { Peer, type StreamEnd } from './peer.ts';
import { drawPace, hosts, type RequestPlan } from './plan.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimSocket } from './tcp.ts';

/** Bytes that an upstream prepares ahead of what the connection takes. */
const AHEAD_BYTES = 64 * 1024;

/** Time in which the end of a kept connection to a removed endpoint must have been seen here. */
const RETIRE_MS_MAX = 1000;

/** One connection as its server sees it. */
export interface UpstreamPeer {
  /** Has served requests, has none now, and the gateway has read everything. */
  readonly isIdle: boolean;
  /** Closes as a server does that is being stopped. */
  shutDown(): void;
}

/** A server with any number of connections. */
export class SimUpstream implements Endpoint {
  /** Connections that are open on this side. */
  readonly connections = new Set<UpstreamPeer>();
  /** Name of the backend it belongs to. */
  readonly backend: string;
  /** Connections accepted so far. */
  accepted = 0;
  /** When it was taken out of the configuration; Infinity while it is in it. */
  retiredMs = Number.POSITIVE_INFINITY;
  /** Since when outlier detection keeps requests away from it; Infinity: it does not. */
  ejectedMs = Number.POSITIVE_INFINITY;
  /** What may have counted as a failure of it: attempts to connect, and requests. */
  failures = 0;
  private readonly http2: boolean;
  private readonly scheduler: Scheduler;
  private readonly random: Random;
  private readonly judge: Judge;

  /** `http2`: it speaks h2c and nothing else. */
  constructor(backend: string, http2: boolean, scheduler: Scheduler, random: Random, judge: Judge) {
    this.backend = backend;
    this.http2 = http2;
    this.scheduler = scheduler;
    this.random = random;
    this.judge = judge;
  }

  dial(): DialOutcome {
    const { random } = this;
    const quick = random.chance(0.2) ? 0 : random.between(0, this.judge.troubles.network ? 3 : 0.1);
    if (!this.judge.troubles.dialing || random.chance(0.6)) return { type: 'accept', delayMs: quick };
    this.failures++;
    const type = random.weighted({ refuse: 4, timeout: 1, slow: 3, late: 1, error: 1 });
    switch (type) {
      case 'refuse':
        return { type, delayMs: random.between(0, 5) };
      case 'timeout':
        return { type, delayMs: random.between(500, 130_000) };
      case 'slow':
        return { type: 'accept', delayMs: random.between(1, 500) };
      case 'late':
        return { type: 'accept', delayMs: random.between(1500, 3000) };
      default:
        return { type, errno: random.pick([Errno.ENETUNREACH, Errno.EADDRNOTAVAIL, Errno.ECONNREFUSED]) };
    }
  }

  connected(socket: SimSocket): void {
    this.accepted++;
    const kind = this.http2 ? Http2UpstreamConnection : UpstreamConnection;
    const connection = new kind(this, socket, this.scheduler, this.random.fork(), this.judge);
    this.connections.add(connection);
  }

  /** Takes the server out of the configuration (or puts it back): kept connections must end soon. */
  setConfigured(configured: boolean): void {
    if (configured) {
      this.retiredMs = Number.POSITIVE_INFINITY;
      return;
    }
    if (this.retiredMs !== Number.POSITIVE_INFINITY) return;
    this.retiredMs = this.scheduler.nowMs;
    const idle = [...this.connections].filter((connection) => connection.isIdle);
    this.scheduler.after(RETIRE_MS_MAX, () => {
      if (this.retiredMs === Number.POSITIVE_INFINITY || idle.every((connection) => !connection.isIdle)) return;
      this.judge.violation('an idle connection to a removed endpoint was kept');
    });
  }

  /** Closes every connection: the server is being shut down. */
  closeAll(): void {
    for (const connection of this.connections) connection.shutDown();
  }
}

/** One connection of an upstream. */
export class UpstreamConnection extends Peer implements UpstreamPeer {
  private readonly server: SimUpstream;
  private readonly judge: Judge;
  private readonly reader: MessageReader;
  private current: RequestPlan | undefined;
  private checker: PayloadChecker | undefined;
  /** The current request has been read to its end. */
  private requestComplete = true;
  /** The current response has been handed over to its end. */
  private responseComplete = true;
  private responding = false;
  private pieces: Uint8Array[] = [];
  private afterPieces: (() => void) | undefined;
  private pausing = false;
  private served = 0;
  private dieOnNextRequest: 'close' | 'reset' | undefined;
  private tunnel: PayloadChecker | undefined;
  private failed = false;
  /** When unasked bytes had arrived at the gateway; Infinity: none, or not yet. */
  private leftoverMs = Number.POSITIVE_INFINITY;

  constructor(server: SimUpstream, socket: SimSocket, scheduler: Scheduler, random: Random, judge: Judge) {
    super(socket, scheduler, random, drawPace(random, judge.troubles, false));
    this.server = server;
    this.judge = judge;
    this.reader = new MessageReader({
      head: (head) => this.head(head),
      body: (bytes) => this.body(bytes),
      end: (trailers) => this.end(trailers),
    });
  }

  /** Closes as a server does that is being stopped. */
  shutDown(): void {
    this.close('close');
    this.server.connections.delete(this);
  }

  /** Has served requests, has none now, and the gateway has read everything. */
  get isIdle(): boolean {
    const unread = this.unsentBytes + this.socket.undeliveredBytes + this.socket.peer!.readableBytes;
    return !this.gone && this.served > 0 && this.requestComplete && this.responseComplete && unread === 0;
  }

  protected connected(): void {}

  protected cut(): void {}

  protected received(bytes: Uint8Array): void {
    if (this.failed) return;
    try {
      this.reader.feed(bytes);
    } catch (error) {
      if (!(error instanceof CodecError)) throw error;
      this.failed = true;
      this.judge.violation(`an upstream received what is not HTTP: ${error.message}`);
      this.shutDown();
    }
  }

  protected ended(how: StreamEnd): void {
    if (this.tunnel !== undefined) {
      this.endTunnel(how);
      return;
    }
    // A gateway that ends a connection in the middle has given the exchange up; between
    // exchanges it is merely done. A half-closed connection is not an HTTP/1.1 client's business.
    this.shutDown();
  }

  protected override drained(): void {
    this.pump();
  }

  // -- requests ------------------------------------------------------------------------

  private head(head: Head): Framing {
    const match = /^([A-Z]+) \/r\/([0-9]+)(?:\?q=([0-9]+))? HTTP\/1\.1$/.exec(head.startLine);
    if (match === null) throw new CodecError(`the request line "${head.startLine}"`);
    const id = Number(match[2]);
    const plan = this.judge.plan(id);
    if (plan === undefined) throw new CodecError(`request ${id}, which nobody sent`);
    if (!this.responseComplete || !this.requestComplete) {
      throw new CodecError(`request ${id} on a connection that is busy with request ${this.current?.id}`);
    }
    this.judge.delivered(id, this.served > 0, Math.min(this.server.retiredMs, this.leftoverMs), this.server);
    this.current = plan;
    this.checker = new PayloadChecker(id, Direction.REQUEST);
    this.requestComplete = false;
    this.responseComplete = false;
    this.responding = false;
    if (plan.malformed === undefined && plan.http2?.malformed === undefined) this.checkHead(head, plan, match[1]!);
    if (this.dieOnNextRequest !== undefined) {
      this.close(this.dieOnNextRequest);
      this.server.connections.delete(this);
      return { type: 'tunnel' }; // Whatever follows is not looked at any more.
    }
    if (field(head, 'expect') !== undefined) this.write(encodeHead('HTTP/1.1 100 Continue', []));
    if (plan.response.afterBodyBytes === 0) this.respond();
    return declaredFraming(head) ?? { type: 'none' };
  }

  private checkHead(head: Head, plan: RequestPlan, method: string): void {
    const where = `request ${plan.id} at an upstream`;
    if (method !== plan.method) throw new CodecError(`${where}: method ${method}`);
    if (field(head, 'x-sim') !== String(plan.id)) throw new CodecError(`${where}: x-sim is ${field(head, 'x-sim')}`);
    if (field(head, 'host') !== plan.host) throw new CodecError(`${where}: host is ${field(head, 'host')}`);
    if (hosts[plan.host] !== this.server.backend) throw new CodecError(`${where}: backend ${this.server.backend}`);
    if (field(head, 'x-hop') !== undefined) throw new CodecError(`${where}: a field that Connection had named`);
    if ((field(head, 'x-extra') ?? '').length !== plan.extraFieldBytes) throw new CodecError(`${where}: x-extra`);
    const cookies = Array.from({ length: plan.http2?.cookies ?? 0 }, (_, i) => `c${i}=${plan.id}`).join('; ');
    if ((field(head, 'cookie') ?? '') !== cookies) throw new CodecError(`${where}: cookie ${field(head, 'cookie')}`);
    const framing = declaredFraming(head)?.type ?? 'none';
    const empty = plan.framing === 'none' || plan.bytes === 0;
    if (framing !== plan.framing && !(empty && framing !== 'chunked')) {
      throw new CodecError(`${where}: body framing ${framing} instead of ${plan.framing}`);
    }
    const upgrades = connectionHas(head, 'upgrade') && field(head, 'upgrade') === 'websocket';
    if (upgrades !== plan.upgrade) throw new CodecError(`${where}: upgrade ${upgrades}`);
  }

  private body(bytes: Uint8Array): void {
    if (this.gone) return;
    const checker = this.tunnel ?? this.checker!;
    const wrong = checker.check(bytes);
    if (wrong >= 0) throw new CodecError(`byte ${wrong} of what belongs to request ${this.current!.id} is wrong`);
    if (this.tunnel === undefined && checker.position >= this.current!.response.afterBodyBytes) this.respond();
  }

  private end(trailers: [string, string][]): void {
    if (this.gone) return;
    const plan = this.current!;
    this.requestComplete = true;
    const got = this.checker!.position;
    if (got !== plan.bytes || (isMalformed(plan) && !endsEarly(plan))) {
      throw new CodecError(`request ${plan.id} seemed complete with ${got} of ${plan.bytes} body bytes`);
    }
    const expected = plan.trailers ? 'x-trailer: end' : '';
    const seen = trailers.map(([name, value]) => `${name}: ${value}`).join();
    if (seen !== expected) throw new CodecError(`request ${plan.id} has the trailers "${seen}", not "${expected}"`);
    this.respond();
    this.rest();
  }

  // -- responses ------------------------------------------------------------------------

  private respond(): void {
    if (this.responding || this.gone) return;
    this.responding = true;
    const plan = this.current!;
    this.scheduler.after(plan.response.thinkMs, () => {
      if (!this.gone) this.start(plan);
    });
  }

  private start(plan: RequestPlan): void {
    const { response } = plan;
    const { fault } = response;
    if (fault === 'silence') return;
    if (fault === 'closeBeforeHead' || fault === 'resetBeforeHead') {
      this.close(fault === 'closeBeforeHead' ? 'close' : 'reset');
      this.server.connections.delete(this);
      return;
    }
    for (let i = 0; i < response.interim; i++) {
      this.pieces.push(encodeHead('HTTP/1.1 103 Early Hints', [['Link', `</${i}>; rel=preload`]]));
    }
    if (plan.upgrade && plan.upgradeAccepted && fault === 'none') {
      this.startTunnel(plan);
      return;
    }
    const head = responseHead(plan);
    if (fault === 'badHead') {
      this.pieces.push(badHead(this.random, plan.upgrade));
      this.afterPieces = () => this.closeAfterSending('close');
    } else if (fault === 'closeInHead') {
      this.pieces.push(head.subarray(0, this.random.int(1, head.length - 1)));
      this.afterPieces = () => this.closeAfterSending('close');
    } else {
      this.pieces.push(head, ...this.bodyPieces(plan));
      this.afterPieces = () => this.finishResponse(plan);
    }
    this.pump();
  }

  private bodyPieces(plan: RequestPlan): Uint8Array[] {
    const { response } = plan;
    const { fault } = response;
    if (plan.method === 'HEAD') return [];
    const cut = fault === 'closeInBody' || fault === 'resetInBody' || fault === 'badChunk';
    const bytes = payload(plan.id, Direction.RESPONSE, 0, cut ? response.faultAtByte : response.bytes);
    const chunked = response.framing === 'chunked';
    const pieces: Uint8Array[] = [];
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + this.random.size(1, response.chunkBytesMax));
      pieces.push(chunked ? encodeChunk(part, this.random.chance(0.1) ? ';x=1' : '') : part);
      at += part.length;
    }
    if (fault === 'badChunk') pieces.push(latin1('zz\r\n'));
    else if (chunked && !cut) pieces.push(encodeLastChunk(response.trailers ? [['X-Checksum', 'none']] : []));
    return pieces;
  }

  /** Hands over pieces as long as the connection takes them, with the pauses of the plan. */
  private pump(): void {
    if (this.pausing || this.gone) return;
    while (this.pieces.length > 0 && this.unsentBytes < AHEAD_BYTES) {
      this.write(this.pieces.shift()!);
      const pauseMsMax = this.current?.response.pauseMsMax ?? 0;
      if (this.pieces.length > 0 && pauseMsMax > 0 && this.random.chance(0.3)) {
        this.pausing = true;
        this.scheduler.after(this.random.float() * pauseMsMax, () => {
          this.pausing = false;
          this.pump();
        });
        return;
      }
    }
    if (this.pieces.length > 0) return;
    const then = this.afterPieces;
    this.afterPieces = undefined;
    then?.();
  }

  private finishResponse(plan: RequestPlan): void {
    const { response } = plan;
    if (response.fault === 'closeInBody' || response.fault === 'resetInBody') {
      this.closeAfterSending(response.fault === 'closeInBody' ? 'close' : 'reset');
      return;
    }
    // After a broken chunk the connection is of no use; another request on it would be a mistake.
    if (response.fault === 'badChunk' && plan.method !== 'HEAD') return;
    this.responseComplete = true;
    if (response.leftover) {
      this.write(latin1('LEFTOVER FROM NOWHERE\r\n\r\n'));
      this.watchLeftover();
    }
    if (response.close) this.closeAfterSending('close');
    else this.rest();
  }

  /** Notes when the bytes that nobody asked for have arrived at the gateway. */
  private watchLeftover(): void {
    if (this.gone) return;
    if (this.unsentBytes === 0 && this.socket.undeliveredBytes === 0) this.leftoverMs = this.scheduler.nowMs;
    else this.scheduler.after(1, () => this.watchLeftover());
  }

  /** Between two requests: may close, or plan to die when the next request comes. */
  private rest(): void {
    if (!this.requestComplete || !this.responseComplete || this.gone) return;
    this.served++;
    if (!this.judge.troubles.stale) return;
    const served = this.served;
    const choice = this.random.weighted({ stay: 4, close: 3, dieClose: 1, dieReset: 1 });
    if (choice === 'close') {
      this.scheduler.after(this.random.float() * this.random.pick([1, 20, 300]), () => {
        if (this.served === served && this.responseComplete && this.requestComplete) this.closeAfterSending('close');
      });
    } else if (choice !== 'stay') {
      this.dieOnNextRequest = choice === 'dieClose' ? 'close' : 'reset';
    }
  }

  // -- tunnels --------------------------------------------------------------------------

  private startTunnel(plan: RequestPlan): void {
    this.tunnel = new PayloadChecker(plan.id, Direction.TUNNEL_UP);
    this.reader.enterTunnel();
    this.pieces.push(
      encodeHead('HTTP/1.1 101 Switching Protocols', [
        ['Connection', 'Upgrade'],
        ['Upgrade', 'websocket'],
        ['X-Sim-Id', String(plan.id)],
        ['X-End', 'kept'],
      ]),
      payload(plan.id, Direction.TUNNEL_DOWN, 0, plan.tunnelBytes.upstream),
    );
    this.afterPieces = () => this.finishSending();
    this.pump();
  }

  private endTunnel(how: StreamEnd): void {
    const plan = this.current!;
    const got = this.tunnel!.position;
    const clientStays = this.judge.staysInTunnel(plan.id);
    if (how === 'fin' && got !== plan.tunnelBytes.client && clientStays) {
      this.judge.violation(`the tunnel of request ${plan.id} brought ${got} of ${plan.tunnelBytes.client} bytes up`);
    }
    // What this side still has to say may be said: the client may have closed only its own half.
    if (how === 'fin') this.closeAfterSendingAll();
    else this.shutDown();
  }

  private closeAfterSendingAll(): void {
    const then = this.afterPieces;
    this.afterPieces = () => {
      then?.();
      this.closeAfterSending('close');
    };
    this.pump();
  }
}

function responseHead(plan: RequestPlan): Uint8Array {
  const { response } = plan;
  const fields: [string, string][] = [
    ['X-Sim-Id', String(plan.id)],
    ['X-End', 'kept'],
  ];
  if (response.framing === 'length') fields.push(['Content-Length', String(response.bytes)]);
  if (response.framing === 'chunked') fields.push(['Transfer-Encoding', 'chunked']);
  const options: string[] = [];
  if (response.close) options.push('close');
  else if (response.version === 0) options.push('keep-alive');
  if (plan.id % 4 === 0) {
    options.push('X-Hop');
    fields.push(['X-Hop', 'secret']);
  }
  if (options.length > 0) fields.push(['Connection', options.join(', ')]);
  return encodeHead(`HTTP/1.${response.version} ${response.status} Planned`, fields);
}

function badHead(random: Random, upgrade: boolean): Uint8Array {
  return latin1(
    random.pick([
      'garbage\r\n\r\n',
      'HTTP/1.1 2x0 OK\r\n\r\n',
      'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello',
      'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      'HTTP/1.1 200 OK\r\nName : value\r\nContent-Length: 0\r\n\r\n',
      'HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n',
      'HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello',
      `HTTP/1.1 200 OK\r\nX-Huge: ${'h'.repeat(80_000)}\r\n\r\n`,
      // To a request that asked for nothing of the kind.
      upgrade
        ? 'HTTP/1.1 99 Low\r\n\r\n'
        : 'HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n',
    ]),
  );
}
