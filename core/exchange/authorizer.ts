// Where connections and requests for workloads of this node meet the policies that say who may reach them.
//
//   admit --> connection.access --TCP--> ofConnection --> closed, or on its way
//                               --HTTP-> ofRequest    --> 403, or on its way
//   new policies --> recheck: connections that are passed on unread, and may not be any more, are closed
//
// Counts refusals by policy. Owned by one worker; connections of a gateway never come here.
// Hot module: no allocation per request.

import type { Refusal } from '../authorization/authorization.ts';
import { RequestFacts } from '../authorization/request-facts.ts';
import type { RequestHead } from '../http1/message.ts';
import type { Connection } from '../io/connection.ts';
import { MetricSection } from '../telemetry/metrics.ts';
import { accessOf } from './admission.ts';
import type { ProxyContext } from './context.ts';
import { readClientOfHead } from './forwarded-client.ts';
import type { WorkloadRuntime } from './mesh-runtime.ts';
import { PolicyTrials } from './policy-trials.ts';
import { Detail, Reason, DETAIL_POLICY as refusedBy } from './reasons.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { POLICY_DENIALS } = MetricSection;
const { UNAUTHORIZED } = Reason;
const DETAIL_POLICY = refusedBy;

export class Authorizer {
  private readonly context: ProxyContext;
  private readonly trials: PolicyTrials;
  /** Made for the first connection: a gateway has none. */
  private request: RequestFacts | null = null;

  constructor(context: ProxyContext) {
    this.context = context;
    this.trials = new PolicyTrials(context);
  }

  /**
   * Makes a connection one that the policies of `workload` are asked about. Its destination is known, and so is who
   * has sent it. Streams of HTTP/2 inside it have the same access.
   */
  admit(connection: Connection, workload: WorkloadRuntime): void {
    this.request ??= new RequestFacts();
    connection.access = accessOf(connection, workload, this.context.runtime.http.trustedHops);
  }

  /** Whether a connection came as from nobody, and its workload takes none of those any more. */
  private isRefusedPlain({ access, workload }: Connection): boolean {
    return workload!.settings.strict && access!.facts.source.identity === '';
  }

  /** Detail of what refuses the request that is being worked on; 0: it is let in. The connection has an access. */
  ofRequest(connection: Connection): number {
    if (this.isRefusedPlain(connection)) return Detail.PLAINTEXT_REFUSED;
    const { verdict } = connection.access!;
    if (verdict === null) return 0;
    const { requestHead } = this.context;
    const request = this.request!;
    if (!verdict.settled) this.load(request, connection, requestHead);
    const refusal = verdict.ofRequest(request);
    if (refusal !== null) return this.refused(refusal);
    const trial = verdict.trialOfRequest(request);
    if (trial !== null) this.trials.note(trial, connection, requestHead);
    return 0;
  }

  private load(request: RequestFacts, connection: Connection, head: RequestHead): void {
    const { memory, runtime } = this.context;
    const { trustedHops } = runtime.http;
    const client = trustedHops > 0 ? readClientOfHead(memory, head.headers, trustedHops, connection) : connection;
    request.load(memory, head, client);
  }

  /** Whether a connection would be refused if it were passed on unread. It has an access. */
  refusesUnread(connection: Connection): boolean {
    const { verdict } = connection.access!;
    return verdict !== null && verdict.ofConnection !== null;
  }

  /** Detail of what refuses a connection that is passed on unread; 0: it is let in. It has an access. */
  ofConnection(connection: Connection): number {
    if (this.isRefusedPlain(connection)) return Detail.PLAINTEXT_REFUSED;
    const { verdict } = connection.access!;
    if (verdict === null) return 0;
    const refusal = verdict.ofConnection;
    if (refusal !== null) return this.refused(refusal);
    const trial = verdict.trialOfConnection;
    if (trial !== null) this.trials.note(trial, connection, null);
    return 0;
  }

  private refused(refusal: Refusal): number {
    const { counters } = this.context;
    const { policies, detail } = refusal;
    for (let i = 0; i < policies.length; i++) counters[POLICY_DENIALS + policies[i]!.slot]++;
    return DETAIL_POLICY + detail;
  }

  /** New policies may be in force: ends what is passed on unread, and may not be any more. Between batches only. */
  recheck(): void {
    this.context.reactor.forEach((connection) => {
      const { access, exchange } = connection;
      if (access === null || (access.isCurrent && !this.isRefusedPlain(connection))) return;
      if (exchange === null || !exchange.isConnection || exchange.downstream !== connection) return;
      this.recheckOne(connection);
    });
  }

  private recheckOne(connection: Connection): void {
    const { context } = this;
    const exchange = connection.exchange!;
    const refusal = connection.access!.verdict?.ofConnection ?? null;
    const isPlain = this.isRefusedPlain(connection);
    if (refusal === null && !isPlain) return;
    const detail = isPlain ? Detail.PLAINTEXT_REFUSED : exchange.detecting ? 0 : this.refused(refusal!);
    if (connection.protocol === context.tunnel) {
      context.tunnel.refuse(connection, UNAUTHORIZED, detail);
      return;
    }
    context.upstream.cancel(exchange);
    // One that may turn out to be HTTP goes on without its upstream.
    context.downstreamTcp.fail(exchange, 0, UNAUTHORIZED, detail, 0);
  }
}
