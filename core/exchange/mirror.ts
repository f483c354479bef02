// Mirroring: copies of requests that go to another backend, whose answers are thrown away.
//
//   first attempt of a request begins --> copy of its head --> request complete --> a quiet moment: sent --> answer read
//                                              \--> body too long, client gone, ...: dropped, counted
//
// A mirrored request is an exchange of its own, whose client is a connection without a socket. It begins when the
// request is complete, in a batch after the one that has sent it, so that it never goes before it, and at a quiet
// moment: when no request is under way in this worker and no event waits, one at a time, so that it is not in the way
// of an answer or of requests that come in bunches. Where there is no such moment (load, a slow backend, a long answer)
// it goes QUIET_WAIT_MS after its request, or when many wait. Whatever becomes of it, the request that it is a copy of
// does not notice. It is retried by nobody, is in no access log, and counts in no number of requests but its own.
// The head is the one that goes upstream, edits of the rule and X-Request-Id included. Bodies come from the
// request buffer, which both hold.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.
// Spec: Gateway API HTTPRequestMirrorFilter.

import { Method, type ResponseHead } from '../http1/message.ts';
import type { Connection } from '../io/connection.ts';
import { noTransport } from '../io/transport.ts';
import { Counter } from '../telemetry/metrics.ts';
import type { BodyPiece } from './body.ts';
import { pickEndpoint } from './endpoint-choice.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import type { MirrorTarget } from './mirror-target.ts';
import { Reason } from './reasons.ts';
import { VirtualClient } from './virtual-client.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, LENGTH, STREAM } = BodyFraming;
const { CONNECT } = Method;
const { MIRRORS_IN_FLIGHT, MIRRORS_ANSWERED, MIRRORS_FAILED, REQUESTS_IN_FLIGHT, TUNNELS_OPEN } = Counter;
const { MIRRORS_DROPPED_BODY, MIRRORS_DROPPED_INCOMPLETE, MIRRORS_DROPPED_LIMIT, MIRRORS_DROPPED_RESOURCES } = Counter;

/** Most mirrored requests of one worker at a time, those that wait for their body included. */
export const MIRRORS_MAX = 256;

/** Longest time of a complete copy without a quiet moment, from the batch of its request; looked at after batches. */
const QUIET_WAIT_MS = 2;

/** Most copies that wait for one: under full load they must not take the places of those under way. */
const QUIET_WAITING_MAX = MIRRORS_MAX / 4;

export class Mirrors extends VirtualClient {
  /** Mirrored requests that wait or are under way. */
  private count = 0;
  /** Those that wait for a quiet moment, in a ring: connections, their generations, and until when they wait. */
  private readonly launched: (Connection | null)[] = Array.from({ length: MIRRORS_MAX }, () => null);
  private readonly generations = new Int32Array(MIRRORS_MAX);
  private readonly launchMs = new Float64Array(MIRRORS_MAX);
  private launchedFirst = 0;
  private launchedCount = 0;

  // -- requests -------------------------------------------------------------------

  /** The first attempt of an exchange begins: plans its copies. Its own fate does not depend on what this does. */
  began(exchange: Exchange, targets: MirrorTarget[]): void {
    if (exchange.mirroring || exchange.method === CONNECT || exchange.upgradeRequested) return;
    exchange.mirroring = true;
    for (let i = 0; i < targets.length; i++) {
      const target = targets[i];
      if (target.takes(this.context.ids.next() >>> 1)) this.plan(exchange, target);
    }
  }

  private plan(parent: Exchange, target: MirrorTarget): void {
    const { counters, requestBuffers } = this.context;
    if (this.count >= MIRRORS_MAX) {
      counters[MIRRORS_DROPPED_LIMIT]++;
      return;
    }
    const waits = !parent.requestComplete;
    if (waits && !mayKeepBody(parent, target.bodyBytesMax)) {
      counters[MIRRORS_DROPPED_BODY]++;
      return;
    }
    const mirror = this.copy(parent, target);
    if (mirror === null) {
      counters[MIRRORS_DROPPED_RESOURCES]++;
      return;
    }
    this.count++;
    counters[MIRRORS_IN_FLIGHT]++;
    if (waits) {
      parent.requestBuffer = requestBuffers.want(parent.requestBuffer, target.bodyBytesMax);
      mirror.mirrorNext = parent.mirrorNext;
      parent.mirrorNext = mirror;
    } else {
      this.launch(mirror);
    }
  }

  /** An exchange with the head of another; null when there is no room for it. */
  private copy(parent: Exchange, target: MirrorTarget): Exchange | null {
    const { context } = this;
    const { reactor } = context;
    const backend = target.backend(parent.runtime!);
    if (backend < 0) return null;
    const start = parent.headBlock;
    const end = usedEnd(parent);
    const block = reactor.arena.allocate(end - start);
    if (block === 0) return null;
    const connection = reactor.openVirtual(this, noTransport);
    if (connection === null) {
      reactor.arena.free(block);
      return null;
    }
    reactor.memory.copyWithin(block, start, end);
    const mirror = this.attachCopy(connection, parent, block - start);
    mirror.isMirror = true;
    mirror.headBlock = block;
    // Of a stream its Content-Length, which says how it goes upstream.
    mirror.requestRemaining = parent.requestFraming === STREAM ? parent.requestRemaining : 0;
    mirror.backend = parent.runtime!.backendFor(backend, parent.downstream!.workload);
    // Counts from when it is sent.
    mirror.requestDeadlineMs = target.timeoutMs;
    mirror.mirrorBodyBytesMax = target.bodyBytesMax;
    return mirror;
  }

  /** The whole request of an exchange with planned mirrors has come. */
  requestComplete(parent: Exchange): void {
    const { counters, requestBuffers } = this.context;
    const buffer = parent.requestBuffer;
    for (let mirror = parent.mirrorNext; mirror !== null; mirror = parent.mirrorNext) {
      parent.mirrorNext = mirror.mirrorNext;
      mirror.mirrorNext = null;
      if (buffer === null || !buffer.whole || buffer.length > mirror.mirrorBodyBytesMax) {
        counters[buffer === null ? MIRRORS_DROPPED_INCOMPLETE : MIRRORS_DROPPED_BODY]++;
        this.end(mirror);
        continue;
      }
      requestBuffers.hold(buffer);
      mirror.requestBuffer = buffer;
      mirror.requestBodyBytes = buffer.length;
      mirror.replayNext = 0;
      this.launch(mirror);
    }
  }

  /** An exchange is over whose request has never been complete. */
  parentEnded(parent: Exchange): void {
    for (let mirror = parent.mirrorNext; mirror !== null; mirror = parent.mirrorNext) {
      parent.mirrorNext = mirror.mirrorNext;
      mirror.mirrorNext = null;
      this.context.counters[MIRRORS_DROPPED_INCOMPLETE]++;
      this.end(mirror);
    }
  }

  /** Lets a complete copy wait for a quiet moment. */
  private launch(mirror: Exchange): void {
    mirror.requestComplete = true;
    // Those that have ended keep their place in the ring until its turn.
    if (this.launchedCount === MIRRORS_MAX) this.sendNext();
    const place = (this.launchedFirst + this.launchedCount++) % MIRRORS_MAX;
    const connection = mirror.downstream!;
    this.launched[place] = connection;
    this.generations[place] = connection.generation;
    this.launchMs[place] = this.context.reactor.nowMs + QUIET_WAIT_MS;
  }

  /** Whether copies wait for a quiet moment. */
  get hasLaunched(): boolean {
    return this.launchedCount > 0;
  }

  /** How long the worker may sleep before it looks for a quiet moment, in milliseconds; copies wait for one. */
  get waitMs(): number {
    if (!this.isRequestUnderWay) return 0;
    return Math.max(0, Math.ceil(this.launchMs[this.launchedFirst] - this.context.reactor.nowMs));
  }

  /** A batch with so many events is over: sends what waits for too long or is too much, or one copy if all is quiet. */
  batchDone(events: number): void {
    const { reactor } = this.context;
    while (this.launchedCount > QUIET_WAITING_MAX) this.sendNext();
    while (this.launchedCount > 0 && reactor.nowMs >= this.launchMs[this.launchedFirst]) this.sendNext();
    if (events === 0 && this.launchedCount > 0 && !reactor.hasReady && !this.isRequestUnderWay) this.sendNext();
  }

  private get isRequestUnderWay(): boolean {
    const { counters } = this.context;
    return counters[REQUESTS_IN_FLIGHT] > counters[TUNNELS_OPEN];
  }

  /** Has the first one sent in the next batch, if it is still there. */
  private sendNext(): void {
    const place = this.launchedFirst;
    const connection = this.launched[place]!;
    this.launched[place] = null;
    this.launchedFirst = (place + 1) % MIRRORS_MAX;
    this.launchedCount--;
    if (connection.generation === this.generations[place]) this.context.reactor.enqueue(connection);
  }

  // -- events -----------------------------------------------------------------------

  override readable(connection: Connection): void {
    const mirror = connection.exchange;
    if (mirror === null || !mirror.requestComplete || mirror.attempts > 0) return;
    const { context } = this;
    const { nowMs } = context.reactor;
    mirror.startMs = nowMs;
    mirror.requestDeadlineMs = nowMs + mirror.requestDeadlineMs;
    this.progress(mirror);
    pickEndpoint(context, mirror);
    context.upstream.start(mirror);
  }

  // -- the answer, of which nothing is kept ---------------------------------------------

  protected writeResponse(exchange: Exchange, _headOffset: number, head: ResponseHead, _piece: BodyPiece): boolean {
    exchange.status = head.status;
    exchange.responseStarted = true;
    return true;
  }

  protected writeBody(): boolean {
    return true;
  }

  protected writeGenerated(): boolean {
    return true;
  }

  protected finish(mirror: Exchange): void {
    this.context.counters[MIRRORS_ANSWERED]++;
    this.end(mirror);
  }

  override fail(mirror: Exchange, _status: number, reason: number, detail: number, errno: number): void {
    mirror.reason = reason;
    mirror.detail = detail;
    mirror.errno = errno;
    this.context.counters[MIRRORS_FAILED]++;
    this.end(mirror);
  }

  /** Ends a mirrored request at once (shutdown). */
  override terminate(connection: Connection): void {
    const mirror = connection.exchange;
    if (mirror === null) return;
    // One that waits for its body belongs to the request that has it.
    if (!mirror.requestComplete) return;
    this.context.upstream.cancel(mirror);
    this.fail(mirror, 0, Reason.DRAIN_TIMEOUT, 0, 0);
  }

  private end(mirror: Exchange): void {
    this.count--;
    this.context.counters[MIRRORS_IN_FLIGHT]--;
    this.endCopy(mirror);
  }
}

/** Where the used part of an exchange's block ends: what logs show may lie behind the head. */
function usedEnd(exchange: Exchange): number {
  return Math.max(
    exchange.headOffset + exchange.headLength,
    exchange.pathOffset + exchange.pathLength,
    exchange.hostOffset + exchange.hostLength,
    exchange.rewrittenHostOffset + exchange.rewrittenHostLength,
    exchange.requestIdOffset + exchange.requestIdLength,
  );
}

/** Whether a body that has still to come may be short enough. */
function mayKeepBody(exchange: Exchange, bytesMax: number): boolean {
  if (bytesMax === 0) return false;
  if (exchange.requestFraming === CHUNKED) return true;
  return exchange.requestFraming === LENGTH || exchange.requestFraming === STREAM
    ? exchange.requestRemaining <= bytesMax
    : false;
}
