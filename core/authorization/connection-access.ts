// What a connection that comes to a workload holds, so that the policies of the workload are gone through once for
// it, and again when they have changed.
// Owned by one worker. Hot module: no allocation per request.

import type { Peer } from '../telemetry/workload-metrics.ts';
import { type Authorization, ConnectionVerdict } from './authorization.ts';
import type { ConnectionFacts } from './connection-facts.ts';

/** Where the policies in force are found: a workload, which gets new ones with a snapshot. */
export interface Authorized {
  /** Null: everybody may reach it. */
  readonly authorization: Authorization | null;
}

export class ConnectionAccess {
  readonly facts: ConnectionFacts;
  /** The tunnel that it comes through leads to who it should; false: nothing more is let in (exchange/peer-trust.ts). */
  trusted = true;
  /** Where it counts for whoever has sent it; found when first asked for (exchange/workload-traffic.ts). */
  peer: Peer | null = null;
  private readonly workload: Authorized;
  private decidedBy: Authorization | null = null;
  private decided: ConnectionVerdict | null = null;

  constructor(workload: Authorized, facts: ConnectionFacts) {
    this.workload = workload;
    this.facts = facts;
  }

  /** Whether the policies are those that the connection was last judged by. */
  get isCurrent(): boolean {
    return this.workload.authorization === this.decidedBy;
  }

  /** What the policies in force come to for the connection; null: there are none. */
  get verdict(): ConnectionVerdict | null {
    if (!this.isCurrent) this.decide();
    return this.decided;
  }

  private decide(): void {
    const { authorization } = this.workload;
    this.decidedBy = authorization;
    this.decided = authorization === null ? null : new ConnectionVerdict(authorization, this.facts);
  }
}
