// Which protocol is spoken on a connection whose port does not say: found out by who says what first.
//
//   bytes of the client --HTTP--> HTTP/1.1 or HTTP/2       nothing yet, and the server of this destination
//                       --else--> TCP                        is known to speak first: TCP
//                                                            is not known: connect, and see who speaks first
//                                                            seems to wait for the client: the same, a second later
//
// In the last case the connection is an exchange of DownstreamTcp already (`exchange.detecting`), whose tunnel begins
// when it is known to be one; an exchange for a client that then speaks HTTP is given up without a trace. Only who
// speaks first is remembered, since that is the server's habit; what a client says decides for its connection alone,
// so no client can have the rules for HTTP passed by for others. That a client has spoken first may be its own oddity:
// it saves connections to servers of HTTP, and costs clients of others a second at most. A server of HTTP that answers
// a silent client (408) does not speak first by habit.
// Owned by one worker. Works per connection, nothing per request.

import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END } from '../io/input.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { looksLikeHttp } from '../tls/client-hello.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';

/** Destinations remembered at most; then all are forgotten, and found out again. */
const KNOWN_MAX = 16_384;

/**
 * Time for the client of a server that cannot be reached to speak HTTP, and get an answer that says so. One that speaks
 * another protocol has its connection closed then, if connecting fails once more.
 */
const UNREACHABLE_WAIT_MS = 1000;

/** States of a connection before its protocol: its server has not been asked, could not be reached, has been asked. */
const UNASKED = 0;
const UNREACHABLE = 1;
const ASKED = 2;

/** How long a client may be silent before its server is asked, where another client has spoken first. */
const CLIENT_FIRST_MS = 1000;

/** Who speaks first. */
const CLIENT = 1;
const SERVER = 2;

const responseStart = new TextEncoder().encode('HTTP/');

/** What the first bytes of a client are: not enough to tell, HTTP, anything else, its end, or a failed connection. */
const UNDECIDED = 0;
const HTTP = 1;
const OTHER = 2;
const ENDED = 3;
const FAILED = 4;

export class Detection implements Protocol {
  private readonly context: ProxyContext;
  private readonly known = new Map<string, number>();
  private readonly server: ServerSide;

  constructor(context: ProxyContext) {
    this.context = context;
    this.server = new ServerSide(this);
  }

  /** Takes over a connection of a listener that detects. */
  accepted(connection: Connection): void {
    const { reactor, downstreamTcp } = this.context;
    const first = this.known.get(connection.destination!) ?? 0;
    if (first === SERVER) {
      downstreamTcp.accepted(connection);
      return;
    }
    connection.protocol = this;
    connection.state = UNASKED;
    if (first === 0) {
      this.waitLong(connection);
      // The client may have spoken already, and then nobody needs to be asked.
      const { generation } = connection;
      connection.readReady = true;
      this.readable(connection);
      const silent =
        connection.generation === generation && connection.protocol === this && connection.inputLength === 0;
      if (silent) this.askServer(connection);
    } else {
      reactor.setTimer(connection, CLIENT_FIRST_MS);
      reactor.resume(connection);
    }
  }

  /** Connects to the server of a silent client: it may be the one to speak first. */
  private askServer(connection: Connection): void {
    connection.state = ASKED;
    // What may not be passed on unread reaches nobody before it is known to be HTTP.
    if (connection.access !== null && this.context.authorizer.refusesUnread(connection)) return;
    this.context.downstreamTcp.accepted(connection, true);
  }

  /** Sets the time for which nobody needs to speak. */
  private waitLong(connection: Connection): void {
    const { reactor, runtime } = this.context;
    const { tunnelIdleTimeoutMs } = runtime.http;
    if (tunnelIdleTimeoutMs > 0) reactor.setTimer(connection, tunnelIdleTimeoutMs);
    else reactor.clearTimer(connection);
  }

  /** A client that waits for nobody has sent something. */
  readable(connection: Connection): void {
    const { reactor, downstreamTcp } = this.context;
    const kind = this.read(connection);
    if (kind === UNDECIDED) return;
    if (kind === HTTP) {
      this.serveHttp(connection);
    } else if (kind === FAILED) {
      downstreamTcp.close(connection, CloseCause.CLIENT_RESET, false);
    } else {
      reactor.clearTimer(connection);
      downstreamTcp.accepted(connection);
    }
  }

  /** The same for a client whose exchange is connecting, or has connected. */
  clientSpoke(exchange: Exchange): void {
    const connection = exchange.downstream!;
    const kind = this.read(connection);
    if (kind === UNDECIDED) return;
    if (kind === HTTP) {
      this.abandon(exchange);
      this.serveHttp(connection);
      return;
    }
    exchange.detecting = false;
    if (kind === FAILED) this.context.downstreamTcp.left(connection);
    else if (this.isAllowed(exchange) && exchange.upstream?.protocol === this.server) {
      this.context.tunnel.startConnect(exchange);
    }
  }

  /** Gives up an exchange that has come to nothing: its client's connection is without one then. */
  abandon(exchange: Exchange): void {
    this.context.upstream.cancel(exchange);
    exchange.downstream!.exchange = null;
    this.context.forgetExchange(exchange);
  }

  /** The server of an exchange is connected, and nobody has said anything. */
  connected(exchange: Exchange): void {
    const upstream = exchange.upstream!;
    upstream.protocol = this.server;
    this.waitLong(exchange.downstream!);
    this.context.reactor.resume(upstream);
  }

  /** The server of an exchange speaks before its client, or leaves. */
  serverReadable(upstream: Connection): void {
    const { counters, downstreamTcp, input, memory, tunnel, upstream: attempts } = this.context;
    const exchange = upstream.exchange!;
    const before = upstream.inputLength;
    if (!upstream.readReady) return;
    const status = input.fill(upstream);
    if (status === FILL_AGAIN) return;
    if (status > 0) {
      const { offset, length } = input;
      if (upstream.http2Stream === null) counters[Counter.UPSTREAM_BYTES_IN] += status - before;
      if (!input.keep(upstream, offset, length)) {
        exchange.detecting = false;
        attempts.cancel(exchange);
        downstreamTcp.fail(exchange, 0, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
        return;
      }
      const { destination } = exchange.downstream!;
      if (beginsLikeHttp2(memory, offset, length)) {
        // Its SETTINGS may be here before the preface of the client, which decides.
        this.remember(destination!, CLIENT);
        return;
      }
      if (!beginsLikeHttp1(memory, offset, length)) this.remember(destination!, SERVER);
    } else {
      // The tunnel sees the end as well.
      upstream.readReady = true;
      upstream.readEnded = false;
    }
    exchange.detecting = false;
    if (this.isAllowed(exchange)) tunnel.startConnect(exchange);
  }

  /** Whether policies allow an exchange that is passed on unread, as has just turned out. If not, it has ended. */
  private isAllowed(exchange: Exchange): boolean {
    const { authorizer, downstreamTcp, upstream } = this.context;
    const connection = exchange.downstream!;
    if (connection.access === null) return true;
    const refused = authorizer.ofConnection(connection);
    exchange.allowedBy = authorizer.allowedBy;
    if (refused === 0) return true;
    upstream.cancel(exchange);
    downstreamTcp.fail(exchange, 0, Reason.UNAUTHORIZED, refused, 0);
    return false;
  }

  /** There is no way to the server: what that means depends on what the client speaks, once it does. */
  connectFailed(exchange: Exchange): void {
    const { reactor } = this.context;
    const connection = exchange.downstream!;
    connection.exchange = null;
    this.context.forgetExchange(exchange);
    connection.protocol = this;
    connection.state = UNREACHABLE;
    reactor.setTimer(connection, UNREACHABLE_WAIT_MS);
    reactor.resume(connection);
  }

  /** Reads the first bytes, keeps them, and says what they are. */
  private read(connection: Connection): number {
    const { counters, input, memory } = this.context;
    const before = connection.inputLength;
    if (!connection.readReady) return UNDECIDED;
    const status = input.fill(connection);
    if (status === FILL_AGAIN) return UNDECIDED;
    if (status <= 0) {
      if (status !== FILL_END) return FAILED;
      // Whoever is next sees the end as well.
      connection.readReady = true;
      connection.readEnded = false;
      return ENDED;
    }
    if (connection.http2Stream === null) counters[Counter.DOWNSTREAM_BYTES_IN] += status - before;
    const { offset, length } = input;
    const kind = looksLikeHttp(memory, offset, length);
    if (!input.keep(connection, offset, length)) return FAILED;
    this.remember(connection.destination!, CLIENT);
    return kind < 0 ? OTHER : kind > 0 ? HTTP : UNDECIDED;
  }

  private serveHttp(connection: Connection): void {
    const { downstreamHttp1, downstreamHttp2 } = this.context;
    const { http1 } = connection.listener!.settings;
    connection.inputScanned = 0;
    // An exchange that came to nothing was no request.
    connection.exchanges = 0;
    if (http1) {
      connection.protocol = downstreamHttp1;
      downstreamHttp1.accepted(connection);
    } else {
      downstreamHttp2.accepted(connection);
    }
    connection.protocol!.readable(connection);
  }

  private remember(destination: string, first: number): void {
    if (this.known.size >= KNOWN_MAX) this.known.clear();
    this.known.set(destination, first);
  }

  writable(): void {}

  sendFailed(): void {}

  /** Neither has said anything for so long, or a client with an unreachable server is no client of HTTP. */
  expired(connection: Connection): void {
    if (connection.state === UNREACHABLE) {
      this.context.downstreamTcp.accepted(connection);
    } else if (connection.state === ASKED) {
      this.context.downstreamTcp.close(connection, CloseCause.IDLE_TIMEOUT, false);
    } else {
      connection.state = ASKED;
      this.waitLong(connection);
      if (connection.inputLength === 0) this.askServer(connection);
    }
  }
}

/** The server's end of an exchange that is not known to be a tunnel yet. */
class ServerSide implements Protocol {
  private readonly detection: Detection;

  constructor(detection: Detection) {
    this.detection = detection;
  }

  readable(connection: Connection): void {
    this.detection.serverReadable(connection);
  }

  writable(): void {}

  expired(): void {}

  // Nothing is sent yet.
  sendFailed(): void {}
}

/** Whether bytes of a server are, as far as they go, the begin of an HTTP/1 response: "HTTP/". */
function beginsLikeHttp1(memory: Uint8Array, offset: number, length: number): boolean {
  for (let i = 0; i < responseStart.length && i < length; i++) {
    if (memory[offset + i] !== responseStart[i]) return false;
  }
  return true;
}

/** Whether bytes of a server are, as far as they go, an HTTP/2 SETTINGS frame, its first (RFC 9113 §3.4, §6.5). */
function beginsLikeHttp2(memory: Uint8Array, offset: number, length: number): boolean {
  // Length (a multiple of the 6 bytes of a setting), type 4, flags, stream 0.
  if (memory[offset] !== 0 || (length > 1 && memory[offset + 1] !== 0)) return false;
  if (length > 2 && memory[offset + 2] % 6 !== 0) return false;
  if (length > 3 && memory[offset + 3] !== 4) return false;
  for (let i = 4; i < 9 && i < length; i++) if (memory[offset + i] !== 0) return false;
  return true;
}
