// Where connections and requests for workloads of this node meet the policies that say who may reach them.
//
//   admit --> connection.access --TCP--> ofConnection --> closed, or on its way
//                               --HTTP-> ofRequest    --> 403, or on its way
//   new policies --> recheck: what is open and may not be any more is ended (rechecks.ts)
//
// Counts refusals by policy. Owned by one worker; connections of a gateway never come here.
// Hot module: no allocation per request.

import type { Refusal } from '../authorization/authorization.ts';
import { RequestFacts } from '../authorization/request-facts.ts';
import { HEADER_COUNT_CAPACITY } from '../http1/header-table.ts';
import { type ParserLimits, RequestHead } from '../http1/message.ts';
import { parseRequestHead } from '../http1/request-parser.ts';
import type { Connection } from '../io/connection.ts';
import { MetricSection } from '../telemetry/metrics.ts';
import { accessOf } from './admission.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { readClientOfHead } from './forwarded-client.ts';
import type { WorkloadRuntime } from './mesh-runtime.ts';
import { PolicyTrials } from './policy-trials.ts';
import { Detail, Reason, DETAIL_POLICY as refusedBy } from './reasons.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { POLICY_DENIALS } = MetricSection;
const { UNAUTHORIZED } = Reason;
const { PLAINTEXT_REFUSED, TUNNEL_UNTRUSTED } = Detail;
const DETAIL_POLICY = refusedBy;

/** What we have sent ourselves is within limits already, apart from fields of ours. */
const sentLimits: ParserLimits = { headBytesMax: 2 ** 30, headerCountMax: HEADER_COUNT_CAPACITY, uriBytesMax: 2 ** 30 };

export class Authorizer {
  private readonly context: ProxyContext;
  private readonly trials: PolicyTrials;
  /** Counter of the policy that has let in what was last asked about; -1: none had to, or it was refused. */
  allowedBy = -1;
  /** Made for the first connection: a gateway has none. */
  private request: RequestFacts | null = null;
  /** The head of a request that is judged again. */
  private readonly sentHead = new RequestHead();

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

  /**
   * Detail of what refuses a connection whatever policies say; 0: nothing. It came as from nobody, and its workload takes
   * none of those any more; or through a tunnel whose other end is not trusted any more.
   */
  private ofUnseen({ access, workload }: Connection): number {
    if (!access!.trusted) return TUNNEL_UNTRUSTED;
    return workload!.settings.strict && access!.facts.source.identity === '' ? PLAINTEXT_REFUSED : 0;
  }

  /** Detail of what refuses the request that is being worked on; 0: it is let in. The connection has an access. */
  ofRequest(connection: Connection): number {
    this.allowedBy = -1;
    const unseen = this.ofUnseen(connection);
    if (unseen !== 0) return unseen;
    const { verdict } = connection.access!;
    if (verdict === null) return 0;
    const { requestHead } = this.context;
    const request = this.request!;
    if (!verdict.settled) this.load(request, connection, requestHead);
    const refusal = verdict.ofRequest(request);
    if (refusal !== null) return this.refused(refusal);
    const allowing = verdict.requestAllowedBy;
    if (allowing !== null) this.allowedBy = allowing.slot;
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
    this.allowedBy = -1;
    const unseen = this.ofUnseen(connection);
    if (unseen !== 0) return unseen;
    const { verdict } = connection.access!;
    if (verdict === null) return 0;
    const refusal = verdict.ofConnection;
    if (refusal !== null) return this.refused(refusal);
    const allowing = verdict.connectionAllowedBy;
    if (allowing !== null) this.allowedBy = allowing.slot;
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

  // -- again, for what is open ------------------------------------------------------------------

  /**
   * Judges a connection, or the request in progress on it, by the policies in force, and ends it if they do not let it
   * in any more. A request is judged by its head as it was sent to the workload. Returns whether there was anything to
   * judge. The connection has an access.
   */
  recheck(connection: Connection): boolean {
    const { exchange } = connection;
    if (exchange === null || exchange.downstream !== connection || exchange.responseComplete) return false;
    if (!exchange.isConnection) this.recheckRequest(connection, exchange);
    else if (exchange.detecting) this.recheckSilent(connection, exchange);
    else {
      const detail = this.ofConnection(connection);
      if (detail !== 0) this.end(connection, exchange, detail);
    }
    return true;
  }

  /** Nobody has said anything yet: it may turn out to be HTTP, and goes on without its upstream until then. */
  private recheckSilent(connection: Connection, exchange: Exchange): void {
    const { downstreamTcp, upstream } = this.context;
    if (this.ofUnseen(connection) === 0 && !this.refusesUnread(connection)) return;
    upstream.cancel(exchange);
    downstreamTcp.fail(exchange, 0, UNAUTHORIZED, Detail.NONE, 0);
  }

  private recheckRequest(connection: Connection, exchange: Exchange): void {
    // What has not got as far as a head for the workload has been, or will be, answered here.
    if (exchange.headLength === 0 || exchange.generated) return;
    const unseen = this.ofUnseen(connection);
    if (unseen !== 0) {
      this.end(connection, exchange, unseen);
      return;
    }
    const { verdict } = connection.access!;
    if (verdict === null) return;
    const { request, sentHead } = this;
    const known = this.loadSent(connection, exchange);
    const refusal = known ? verdict.ofRequest(request!) : verdict.ofConnection;
    if (refusal !== null) {
      this.end(connection, exchange, this.refused(refusal));
      return;
    }
    const trial = known ? verdict.trialOfRequest(request!) : verdict.trialOfConnection;
    if (trial !== null) this.trials.note(trial, connection, known ? sentHead : null);
  }

  /** Reads the head that was sent to the workload. False: it cannot be read. */
  private loadSent(connection: Connection, { headOffset, headLength }: Exchange): boolean {
    const { memory, runtime } = this.context;
    const { request, sentHead } = this;
    if (parseRequestHead(memory, headOffset, headLength, sentLimits, sentHead) <= 0) return false;
    // Whom proxies in front have named as the client is not known any more.
    request!.load(memory, sentHead, runtime.http.trustedHops > 0 ? null : connection);
    return true;
  }

  /** Ends what is in progress on a connection: with an answer where that is possible yet. */
  private end(connection: Connection, exchange: Exchange, detail: number): void {
    const { tunnel, upstream } = this.context;
    if (connection.protocol === tunnel) {
      tunnel.refuse(connection, UNAUTHORIZED, detail);
      return;
    }
    upstream.cancel(exchange);
    exchange.resumeMs = 0;
    exchange.downstreamSide!.fail(exchange, 403, UNAUTHORIZED, detail, 0);
  }
}
