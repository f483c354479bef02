// Where connections of workloads wait whose destination this node does not know: it is told of what its workloads use
// only (mesh-agent/node/demand.ts), and an address may be that of a service that nobody here has used yet.
//
//   known, or known to be outside -----------------------------------------------> mesh.leave
//   unknown --> HELD, the control thread is asked once --its answer, or a snapshot with it--> its turn --> mesh.leave
//                   --no answer in time, or the control plane is away--> refused
//
// What a client sends meanwhile stays in its socket. A connection goes on in its own turn, so that the many that wait
// for one answer do not hold up others. Which addresses have been used since the control thread last asked is noted, so
// that nothing is given up that is in use.
// Owned by one worker. Works per connection, nothing per request.

import { NetworkList, parseAddress } from '../authorization/network.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { CloseCause } from '../telemetry/metrics.ts';
import type { DestinationAnswer, DestinationQuestion } from '../workers/protocol.ts';
import type { ProxyContext } from './context.ts';
import { hostOf, type WorkloadRuntime } from './mesh-runtime.ts';
import { Detail, Reason } from './reasons.ts';

/** How long a connection waits. Shorter than clients do, longer than a control plane is away that is restarted. */
export const HOLD_MS = 5000;

/**
 * Connections that wait at most: of one workload, and of all. Every one of them has a slot of the worker. One workload
 * has no more than are free, so that there are always some for another that comes.
 */
export const HELD_PER_WORKLOAD_MAX = 256;
const HELD_MAX = 2048;

/** Questions of one workload: at once after a pause, and per second. What is reset at once takes no place for long. */
export const ASKED_BURST = HELD_PER_WORKLOAD_MAX;
export const ASKED_PER_SECOND = 100;

/** Addresses that are known to be outside, and used ones that are remembered until the control thread asks. */
const OUTSIDE_MAX = 16_384;
const USED_MAX = 16_384;

/**
 * States of a connection: it waits; its destination is known; it is not, and the control plane away; no answer; its
 * workload has too many destinations.
 */
const HELD = 0;
const KNOWN = 1;
const AWAY = 2;
const UNANSWERED = 3;
const LIMITED = 4;

/** What a workload may ask, as of a time. */
interface Allowance {
  questions: number;
  atMs: number;
}

export class DestinationGate implements Protocol {
  private readonly context: ProxyContext;
  /** Connections that wait, by address. */
  private readonly waiting = new Map<string, Set<Connection>>();
  private readonly heldBy = new Map<WorkloadRuntime, number>();
  private held = 0;
  private readonly allowances = new WeakMap<WorkloadRuntime, Allowance>();
  /** Addresses of which the control thread has said that they are not of the mesh. It takes it back when it has to. */
  private readonly outside = new Set<string>();
  private questions: DestinationQuestion[] = [];
  /** Addresses that connections went to since the last report; `usedMany`: they were too many. */
  private used = new Set<string>();
  private usedMany = false;
  /** Networks of the mesh, and the texts that they were made of. */
  private networks = new NetworkList([]);
  private networkTexts: readonly string[] = [];

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /**
   * Takes over a connection that leaves its workload, if it is not known what is at its destination; it may be closed
   * then. `known`: the snapshot has the destination.
   */
  takes(connection: Connection, known: boolean): boolean {
    const destination = connection.destination!;
    const host = known ? '' : hostOf(destination);
    if (known || this.outside.has(host)) {
      this.use(destination);
      return false;
    }
    if (!this.mayBeOfMesh(host)) return false;
    this.hold(connection, host);
    return true;
  }

  /** Takes answers of the control thread in. Between batches only. */
  receive(answers: readonly DestinationAnswer[]): void {
    for (const answer of answers) {
      const { host, verdict } = answer;
      if (verdict === 'outside') {
        if (this.outside.size >= OUTSIDE_MAX) this.outside.clear();
        this.outside.add(host);
        this.wake(host, KNOWN);
      } else if (verdict === 'forgotten') {
        this.outside.delete(host);
      } else if (verdict === 'limit') {
        this.wake(host, LIMITED, answer.workload);
      } else {
        this.wake(host, verdict === 'away' ? AWAY : UNANSWERED);
      }
    }
  }

  /** There is another snapshot, which may have what connections wait for. Between batches only. */
  reloaded(): void {
    const mesh = this.context.runtime.mesh!;
    const all = mesh.settings.discovery === null;
    for (const [host, connections] of this.waiting) {
      for (const { destination } of connections) {
        if (!all && mesh.destination(destination!) === null) continue;
        this.wake(host, KNOWN);
        break;
      }
    }
  }

  /** What the control thread is to be asked, or null if there is nothing. */
  takeQuestions(): DestinationQuestion[] | null {
    if (this.questions.length === 0) return null;
    const { questions } = this;
    this.questions = [];
    return questions;
  }

  /**
   * Addresses of destinations that connections have gone to since the last report, or that open ones lead to; `all`:
   * they are too many to be told.
   */
  takeUsed(): { hosts: string[]; all: boolean } {
    const { used, usedMany: all } = this;
    this.used = new Set();
    this.usedMany = false;
    this.context.reactor.forEach(({ destination, listener, workload }) => {
      if (destination !== null && workload !== null && listener?.settings.mesh?.role === 'virtual')
        used.add(hostOf(destination));
    });
    return { hosts: [...used], all };
  }

  /** Ends a connection that waits, since the worker drains or its workload has left. */
  drop(connection: Connection): void {
    this.remove(connection);
    if (connection.workload!.removed) this.refuse(connection, Reason.NO_ROUTE, Detail.WORKLOAD_GONE);
    else this.refuse(connection, Reason.DRAIN_TIMEOUT, Detail.NONE);
  }

  /** Its turn: it goes on, is refused, or has sent something that is of no interest yet. */
  readable(connection: Connection): void {
    const { mesh, preamble, reactor } = this.context;
    const { generation, readHangup, state } = connection;
    if (state === HELD) {
      // The end of what it sends may be the end of a request; a reset is that of the connection.
      if (!readHangup || reactor.socketError(connection) === 0) return;
      this.remove(connection);
      preamble.close(connection, CloseCause.CLIENT_RESET);
      return;
    }
    this.remove(connection);
    if (state === AWAY) {
      this.refuse(connection, Reason.NO_ROUTE, Detail.DISCOVERY_AWAY);
    } else if (state === UNANSWERED) {
      this.refuse(connection, Reason.NO_ROUTE, Detail.DISCOVERY_TIMEOUT);
    } else if (state === LIMITED) {
      this.refuse(connection, Reason.OVERLOAD, Detail.DISCOVERY_LIMIT);
    } else {
      mesh.leave(connection);
      // What it has sent meanwhile has had its event.
      if (connection.generation === generation && connection.protocol !== null) reactor.resume(connection);
    }
  }

  writable(): void {}

  // Nothing is sent yet.
  sendFailed(): void {}

  expired(connection: Connection): void {
    if (connection.state !== HELD) {
      this.readable(connection);
      return;
    }
    connection.state = UNANSWERED;
    const workload = connection.workload!;
    const host = hostOf(connection.destination!);
    this.readable(connection);
    // Its question may have been dropped, and whoever has come since has not asked.
    if (this.hasHeld(host, workload)) this.ask(host, workload);
  }

  /** Notes that a destination is in use. */
  private use(destination: string): void {
    // Without the port: one address has very many.
    const host = hostOf(destination);
    if (this.used.size < USED_MAX) this.used.add(host);
    else if (!this.used.has(host)) this.usedMany = true;
  }

  /** Whether an address is in the networks of the mesh; without any said, all are. */
  private mayBeOfMesh(host: string): boolean {
    const { networks } = this.context.runtime.mesh!.settings.discovery!;
    if (networks.length === 0) return true;
    if (networks !== this.networkTexts) {
      this.networkTexts = networks;
      this.networks = new NetworkList(networks);
    }
    return this.networks.has(parseAddress(host), true);
  }

  private hold(connection: Connection, host: string): void {
    const workload = connection.workload!;
    const heldByIt = this.heldBy.get(workload) ?? 0;
    const isFull = heldByIt >= Math.min(HELD_PER_WORKLOAD_MAX, HELD_MAX - this.held);
    // Once for each workload: what one asks may have to wait for its other questions. Those that have an answer already
    // and wait for their turn only have had theirs.
    if (isFull || (!this.hasHeld(host, workload) && !this.ask(host, workload))) {
      this.refuse(connection, Reason.OVERLOAD, Detail.DISCOVERY_LIMIT);
      return;
    }
    this.held++;
    this.heldBy.set(workload, heldByIt + 1);
    connection.protocol = this;
    connection.state = HELD;
    this.context.reactor.setTimer(connection, HOLD_MS);
    let connections = this.waiting.get(host);
    if (connections === undefined) {
      connections = new Set();
      this.waiting.set(host, connections);
    }
    connections.add(connection);
  }

  /** False: the workload has asked too much. */
  private ask(host: string, workload: WorkloadRuntime): boolean {
    const { nowMs } = this.context.reactor;
    const allowance = this.allowances.get(workload) ?? { questions: ASKED_BURST, atMs: nowMs };
    const since = ((nowMs - allowance.atMs) * ASKED_PER_SECOND) / 1000;
    const questions = Math.min(ASKED_BURST, allowance.questions + since);
    if (questions < 1) return false;
    this.allowances.set(workload, { questions: questions - 1, atMs: nowMs });
    this.questions.push({ host, workload: workload.settings.uid });
    return true;
  }

  /** Whether a connection of a workload waits for the answer about an address. */
  private hasHeld(host: string, workload: WorkloadRuntime): boolean {
    for (const { state, workload: whose } of this.waiting.get(host) ?? []) {
      if (state === HELD && whose === workload) return true;
    }
    return false;
  }

  /** Has the connections that wait for an address go on, each in its turn; `workload`: those of one with this uid. */
  private wake(host: string, state: number, workload?: string): void {
    for (const connection of this.waiting.get(host) ?? []) {
      if (connection.state !== HELD) continue;
      if (workload !== undefined && connection.workload!.settings.uid !== workload) continue;
      connection.state = state;
      this.context.reactor.enqueue(connection);
    }
  }

  /** A connection waits no more. */
  private remove(connection: Connection): void {
    const host = hostOf(connection.destination!);
    const connections = this.waiting.get(host)!;
    connections.delete(connection);
    if (connections.size === 0) this.waiting.delete(host);
    const workload = connection.workload!;
    const heldByIt = this.heldBy.get(workload)! - 1;
    if (heldByIt === 0) this.heldBy.delete(workload);
    else this.heldBy.set(workload, heldByIt);
    this.held--;
    connection.state = 0;
    this.context.reactor.clearTimer(connection);
  }

  private refuse(connection: Connection, reason: number, detail: number): void {
    this.context.downstreamTcp.refuseConnection(connection, reason, detail);
  }
}
