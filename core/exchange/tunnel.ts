// Tunnels: after 101 (Upgrade, WebSocket) or CONNECT, bytes pass both ways unread.
//
// Each direction ends by itself: when one side finishes sending, the other gets the end after all
// bytes, and can still answer. The tunnel is over when both have ended, one fails, or neither has
// sent a byte for timeouts.tunnelIdle. The two connections name each other as `tunnelPeer`; the
// downstream one carries the exchange and the timer.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9110 §7.8 (Upgrade), §9.3.6 (CONNECT); RFC 6455 §1.3.

import type { ResponseHead } from '../http1/message.ts';
import { BULK_RECEIVE_BYTES_MAX } from '../io/arena.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END } from '../io/input.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import type { ProxyContext } from './context.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';
import { countJoined, countPassed } from './workload-traffic.ts';

const BULK_BYTES_MAX = BULK_RECEIVE_BYTES_MAX;

/** Receives of up to 128 KiB per turn of one direction. */
const RECEIVES_PER_TURN = 2;

export class Tunnel implements Protocol {
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** The upstream answered 101: passes its head on and joins the connections. */
  startUpgrade(exchange: Exchange, offset: number, length: number, head: ResponseHead): void {
    const { input } = this.context;
    const side = exchange.downstreamSide!;
    exchange.status = 101;
    exchange.responseStarted = true;
    exchange.responseBodyBytes += offset + length - head.endOffset;
    if (!side.writeUpgraded(exchange, offset, length, head)) {
      side.writeFailed(exchange.downstream!);
      return;
    }
    input.free(exchange.upstream!);
    this.join(exchange);
  }

  /** The connection that a CONNECT asked for is established: says so and joins the connections. */
  startConnect(exchange: Exchange): void {
    if (exchange.detecting) {
      this.context.detection.connected(exchange);
      return;
    }
    const side = exchange.downstreamSide!;
    exchange.status = 200;
    exchange.responseStarted = true;
    if (!side.writeConnected(exchange)) {
      side.writeFailed(exchange.downstream!);
      return;
    }
    this.join(exchange);
  }

  private join(exchange: Exchange): void {
    const { reactor, counters } = this.context;
    const client = exchange.downstream!;
    const upstream = exchange.upstream!;
    exchange.tunnel = true;
    exchange.requestFraming = BodyFraming.TUNNEL;
    exchange.responseFraming = BodyFraming.TUNNEL;
    counters[Counter.TUNNELS_OPEN]++;
    if (exchange.tracked) this.context.upstream.joined(exchange);
    if (exchange.isConnection && client.workload !== null) countJoined(exchange);
    client.protocol = this;
    upstream.protocol = this;
    client.tunnelPeer = upstream;
    upstream.tunnelPeer = client;
    this.progress(exchange);
    // Either side may have sent bytes already.
    reactor.resume(client);
    reactor.resume(upstream);
  }

  readable(connection: Connection): void {
    const { input, reactor } = this.context;
    const peer = connection.tunnelPeer;
    if (peer === null) {
      this.drain(connection);
      return;
    }
    const exchange = (connection.exchange ?? peer.exchange)!;
    const fromClient = exchange.downstream === connection;
    if (connection.inputLength > 0) {
      if (peer.outputBytes > 0) return;
      if (!this.pass(exchange, fromClient, peer, connection.inputOffset, connection.inputLength)) return;
      input.free(connection);
    }
    for (let turn = 0; ; turn++) {
      if (peer.outputBytes > 0 || !connection.readReady) return;
      if (turn >= RECEIVES_PER_TURN) {
        reactor.enqueue(connection);
        return;
      }
      const status = input.fill(connection, BULK_BYTES_MAX);
      if (status > 0) {
        // Bytes of streams have been counted with their frames.
        if (connection.http2Stream === null) {
          this.count(fromClient ? Counter.DOWNSTREAM_BYTES_IN : Counter.UPSTREAM_BYTES_IN, status);
        }
        if (!this.pass(exchange, fromClient, peer, input.offset, input.length)) return;
      } else if (status === FILL_END) {
        this.finishWriting(exchange, peer);
        return;
      } else {
        if (status !== FILL_AGAIN) this.failed(exchange, connection);
        return;
      }
    }
  }

  writable(connection: Connection): void {
    if (connection.outputBytes === 0) return;
    const { output, reactor } = this.context;
    const peer = connection.tunnelPeer;
    const exchange = (connection.exchange ?? peer!.exchange)!;
    if (!output.flush(connection)) {
      this.failed(exchange, connection);
      return;
    }
    this.progress(exchange);
    if (connection.outputBytes > 0) return;
    if (peer === null) this.end(exchange, false);
    else if (peer.readEnded) this.finishWriting(exchange, connection);
    else reactor.resume(peer);
  }

  sendFailed(connection: Connection): void {
    const exchange = (connection.exchange ?? connection.tunnelPeer!.exchange)!;
    this.failed(exchange, connection);
  }

  /**
   * The upstream has finished in order, and takes no more: its stream ends now, and what has come on it is the
   * client's all the same, however slowly that takes it.
   */
  upstreamOver(connection: Connection): void {
    const { input, output, reactor } = this.context;
    const client = connection.tunnelPeer!;
    const exchange = client.exchange!;
    if (connection.inputLength > 0) {
      if (!this.pass(exchange, false, client, connection.inputOffset, connection.inputLength)) return;
      input.free(connection);
    }
    for (;;) {
      const status = input.fill(connection);
      if (status === FILL_END) break;
      if (status <= 0) {
        this.failed(exchange, connection);
        return;
      }
      if (!this.pass(exchange, false, client, input.offset, input.length)) return;
    }
    if (!output.flushGather(client)) {
      this.failed(exchange, client);
      return;
    }
    client.tunnelPeer = null;
    connection.tunnelPeer = null;
    exchange.upstream = null;
    reactor.close(connection, false);
    if (client.outputBytes === 0) this.end(exchange, false);
  }

  /** What a client says whose upstream has gone reaches nobody; only its leaving matters. */
  private drain(client: Connection): void {
    const { input } = this.context;
    input.free(client);
    while (client.readReady) {
      const status = input.fill(client);
      if (status > 0 || status === FILL_AGAIN) continue;
      if (status !== FILL_END) this.failed(client.exchange!, client);
      return;
    }
  }

  expired(connection: Connection): void {
    const exchange = connection.exchange;
    if (exchange === null || !exchange.tunnel) return;
    exchange.reason = connection.outputBytes > 0 ? Reason.DOWNSTREAM_TIMEOUT : Reason.UPSTREAM_TIMEOUT;
    exchange.detail = Detail.TUNNEL_IDLE_TIMER;
    this.end(exchange, true);
  }

  /** Ends a tunnel at once for a reason of ours. `connection` is its downstream side. */
  refuse(connection: Connection, reason: number, detail: number): void {
    const exchange = connection.exchange!;
    exchange.reason = reason;
    exchange.detail = detail;
    this.end(exchange, true);
  }

  /** Ends a tunnel at once (drain timeout, shutdown). `connection` is its downstream side. */
  terminate(connection: Connection): void {
    const exchange = connection.exchange!;
    exchange.reason = Reason.DRAIN_TIMEOUT;
    this.end(exchange, true);
  }

  private pass(exchange: Exchange, fromClient: boolean, to: Connection, offset: number, length: number): boolean {
    const { output } = this.context;
    if (fromClient) exchange.requestBodyBytes += length;
    else exchange.responseBodyBytes += length;
    const client = exchange.downstream!;
    if (client.workload !== null) countPassed(client, fromClient, length);
    if (to.http2Stream === null) {
      this.count(fromClient ? Counter.UPSTREAM_BYTES_OUT : Counter.DOWNSTREAM_BYTES_OUT, length);
    }
    this.progress(exchange);
    if (output.sendGathered(to, offset, length)) return true;
    this.failed(exchange, to);
    return false;
  }

  /** The other side of `connection` has ended: ends our sending too, once everything has gone. */
  private finishWriting(exchange: Exchange, connection: Connection): void {
    const { output, reactor } = this.context;
    if (!output.flushGather(connection)) {
      this.failed(exchange, connection);
      return;
    }
    if (connection.outputBytes > 0 || connection.writeEnded) return;
    connection.writeEnded = true;
    reactor.shutdownWrite(connection);
    const peer = connection.tunnelPeer!;
    if (peer.writeEnded) this.end(exchange, false);
  }

  private failed(exchange: Exchange, connection: Connection): void {
    const client = exchange.downstream === connection;
    exchange.reason = client ? Reason.DOWNSTREAM_CONNECTION_TERMINATION : Reason.UPSTREAM_CONNECTION_TERMINATION;
    exchange.detail = client ? Detail.DOWNSTREAM_RESET : Detail.UPSTREAM_RESET;
    exchange.errno = connection.errno;
    this.end(exchange, true);
  }

  private end(exchange: Exchange, abort: boolean): void {
    const { context } = this;
    const { reactor, counters } = context;
    const client = exchange.downstream!;
    const { upstream } = exchange;
    const downstream = exchange.downstreamSide!;
    counters[Counter.TUNNELS_OPEN]--;
    // A stream is no connection.
    if (upstream !== null && (upstream.http2Stream === null || upstream.tunnelled)) counters[Counter.UPSTREAM_OPEN]--;
    if (upstream !== null && upstream.breakerSlot >= 0) context.upstream.breakers.closed(upstream);
    exchange.responseComplete = !abort;
    client.exchange = null;
    context.endExchange(exchange);
    // A client on a stream must see that it has everything.
    if (!abort && !client.writeEnded) {
      client.writeEnded = true;
      reactor.shutdownWrite(client);
    }
    if (upstream !== null) reactor.close(upstream, abort);
    downstream.close(client, CloseCause.TUNNEL_END, abort);
  }

  private progress(exchange: Exchange): void {
    const { reactor } = this.context;
    const idleMs = exchange.runtime!.http.tunnelIdleTimeoutMs;
    if (idleMs === 0) reactor.clearTimer(exchange.downstream!);
    else reactor.setTimer(exchange.downstream!, idleMs);
  }

  private count(counter: number, bytes: number): void {
    this.context.counters[counter] += bytes;
  }
}
