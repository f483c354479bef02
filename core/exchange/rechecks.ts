// What is open when policies, trust or egress of a node proxy change: everything is judged again, in turns between
// those of traffic, so that very many connections do not hold it up.
//
//   a snapshot changes a workload --> all slots once, some in each batch --> authorizer.ts: policies, mode
//                                                                        --> peer-trust.ts: roots
//                                                                        --> egress
//
// What is begun meanwhile is judged by what is new already. A change in the middle of a pass begins another one, from where
// that is: however fast changes follow each other, every slot has its turn.
// Owned by one worker. Works per snapshot, nothing per request.

import type { Connection, Protocol } from '../io/connection.ts';
import { noTransport } from '../io/transport.ts';
import type { ProxyContext } from './context.ts';
import { WorkloadSide } from './mesh.ts';
import { WorkloadChange } from './mesh-runtime.ts';
import { Detail, Reason } from './reasons.ts';

/**
 * What one turn may cost, in slots that are only looked at: a judgement takes some 10 us with 20 policies, and verifying
 * certificates most of a millisecond, which is as long as others may have to wait.
 */
const TURN_COST = 1024;
const JUDGEMENT_COST = 16;
const VERIFICATION_COST = 1024;

export class Rechecks implements Protocol {
  private readonly context: ProxyContext;
  /** Whose turns the pass has; null: there is none. */
  private turns: Connection | null = null;
  /** The slot that is looked at next, and where the slots end that were there when the pass began. */
  private slot = 0;
  private end = 0;
  /** Slots that have not been looked at since the last change. */
  private left = 0;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** A snapshot is in force: looks through what is open, if there is anything to be judged by something new. */
  begin(): void {
    const { reactor, runtime } = this.context;
    if (!runtime.mesh!.hasChanged) return;
    this.end = reactor.slotEnd;
    this.left = this.end;
    this.turns ??= reactor.openVirtual(this, noTransport);
    if (this.turns !== null) reactor.enqueue(this.turns);
    // No slot is left for taking turns: all at once.
    else while (!this.takeTurn());
  }

  /** A turn of the pass. */
  readable(turns: Connection): void {
    const { reactor } = this.context;
    if (this.takeTurn()) this.close();
    else reactor.enqueue(turns);
  }

  writable(): void {}

  sendFailed(): void {}

  expired(): void {}

  /** Ends a pass. */
  close(): void {
    if (this.turns !== null) this.context.reactor.close(this.turns, false);
    this.turns = null;
  }

  /** Looks at some slots. Returns whether those were the last. */
  private takeTurn(): boolean {
    const { reactor, runtime } = this.context;
    for (let cost = 0; cost < TURN_COST; cost++) {
      if (this.left === 0) {
        runtime.mesh!.settled();
        return true;
      }
      this.left--;
      if (this.slot >= this.end) this.slot = 0;
      const connection = reactor.connectionAt(this.slot++);
      if (connection !== null) cost += this.look(connection);
    }
    return false;
  }

  /** Judges a connection by what has changed. Returns what that has cost. */
  private look(connection: Connection): number {
    const { authorizer, trust } = this.context;
    const { backend, endpoint, http2Session, workload } = connection;
    if (http2Session !== null && backend?.isTunnel === true) {
      const from = endpoint!.workload;
      if (from === null || (from.changed & WorkloadChange.TRUST) === 0) return 0;
      trust.recheck(connection, from);
      return VERIFICATION_COST;
    }
    if (workload === null) return 0;
    if (connection.workloadSide === WorkloadSide.TUNNELS) {
      if (http2Session === null || (workload.changed & WorkloadChange.TRUST) === 0) return 0;
      trust.recheck(connection, workload);
      return VERIFICATION_COST;
    }
    if (this.hasLeft(connection)) {
      this.refuseEgress(connection);
      return JUDGEMENT_COST;
    }
    if (connection.access === null || (workload.changed & WorkloadChange.POLICIES) === 0) return 0;
    return authorizer.recheck(connection) ? JUDGEMENT_COST : 0;
  }

  /** Whether a connection leads out of the mesh, and no new one may. */
  private hasLeft(connection: Connection): boolean {
    const { exchange } = connection;
    if (this.context.runtime.mesh!.settings.otherListener >= 0) return false;
    if (exchange === null || exchange.downstream !== connection || exchange.backend < 0) return false;
    return exchange.runtime!.backends[exchange.backend]!.settings.originalDestination === 'any';
  }

  private refuseEgress(connection: Connection): void {
    const { downstreamTcp, tunnel, upstream } = this.context;
    const exchange = connection.exchange!;
    if (connection.protocol === tunnel) {
      tunnel.refuse(connection, Reason.NO_ROUTE, Detail.EGRESS_REFUSED);
      return;
    }
    upstream.cancel(exchange);
    downstreamTcp.fail(exchange, 0, Reason.NO_ROUTE, Detail.EGRESS_REFUSED, 0);
  }
}
