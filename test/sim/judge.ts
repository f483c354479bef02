// Keeps book of every request and decides whether what became of it is right.
//
// Clients and upstreams report what they see; a report that cannot be explained by the plan and by
// the families of trouble of the run is a violation. The rules say what a user of the gateway may
// rely on: answers belong to their requests, bodies are whole or visibly cut, nothing is done twice
// that must not be, and a failure has a reason that fits.

import type { FaultPlan, Features, LimitPlan } from './features.ts';
import type { CodeName } from './http2-codec.ts';
import { isLate } from './http2-plan.ts';
import { type ClientPlan, hosts, limitedBodyBytes, type RequestPlan, streamIdleMs, type Troubles } from './plan.ts';

/** What a client saw of one request. */
export type Outcome =
  /** The upstream's response, whole. */
  | { type: 'complete'; status: number }
  /** A response of the gateway itself, whole. */
  | { type: 'generated'; status: number; flag: string }
  /** A response that visibly ended too soon. */
  | { type: 'truncated'; why: string; code?: CodeName | undefined }
  /** The connection, or the stream (`code`), ended before any answer, without having been announced. */
  | { type: 'unanswered'; why: string; code?: CodeName | undefined }
  /** Sent, but behind an answer that announced the end of the connection. */
  | { type: 'abandoned' }
  /** The client left, or never came to send it. */
  | { type: 'left' }
  /** The tunnel ended in order on this client's side. */
  | { type: 'tunnel' };

interface RequestRecord {
  plan: RequestPlan;
  client: ClientPlan;
  issuedMs: number;
  /** When it was begun for the first time, and how often it was. */
  firstIssuedMs: number;
  issues: number;
  /** When an upstream first saw it, and when its client knew what became of it. */
  deliveredMs: number;
  endedMs: number;
  /** Deliveries to the server that gets mirrored requests. */
  mirrors: number;
  /** One entry per upstream that saw the whole head: whether its connection had served before. */
  deliveries: { reused: boolean }[];
  outcome: Outcome | undefined;
  /** A connection to an upstream was lost, and may have taken the request along. */
  excused: boolean;
  /** Upstreams that did not act on the request, and said so. */
  turnedAway: number;
}

/** The server of an upstream, as far as it is judged. */
export interface Server {
  /** Since when it is ejected, or Infinity. */
  readonly ejectedMs: number;
  /** What may have counted as a failure of it. */
  failures: number;
}

/** Share of a request by which counts may differ: the gateway's clock stands still within a batch. */
const LIMIT_SLACK = 0.1;

const IDEMPOTENT: readonly string[] = ['GET', 'HEAD', 'PUT', 'DELETE'];

/** The judge of one run. */
export class Judge {
  /** What went wrong, in the order it was seen. */
  readonly violations: string[] = [];
  readonly troubles: Troubles;
  /** Virtual time in milliseconds. */
  readonly nowMs: () => number;
  /** Takes a line for everything that peers see, if set. */
  trace: ((line: string) => void) | undefined;
  /** HTTP/2 connections that upstreams have ended in the middle of things; more may have been on its way to them. */
  drops = 0;
  /** Failed requests are tried again: at most so many times. Upstreams then fail only the first attempt at a request. */
  retries = 0;
  /** Few connections at a time, and a limit on the requests that wait for one. */
  breakers = false;
  /** GOAWAY frames that upstreams have sent. */
  goaways = 0;
  /** Mirrors, faults, limits and outlier detection of this run. */
  features: Features = { mirror: undefined, faults: undefined, limits: [], outliers: undefined };
  /** Whether a backend has had no endpoint that is not ejected, for requests begun at a time or later. */
  allEjected: (backend: string, sinceMs: number) => boolean = () => false;
  private readonly records = new Map<number, RequestRecord>();

  constructor(troubles: Troubles, clients: readonly ClientPlan[], nowMs: () => number) {
    this.troubles = troubles;
    this.nowMs = nowMs;
    for (const client of clients) {
      for (const plan of client.requests) {
        this.records.set(plan.id, {
          plan,
          client,
          issuedMs: 0,
          firstIssuedMs: Number.POSITIVE_INFINITY,
          issues: 0,
          deliveredMs: Number.POSITIVE_INFINITY,
          endedMs: Number.POSITIVE_INFINITY,
          mirrors: 0,
          deliveries: [],
          outcome: undefined,
          excused: false,
          turnedAway: 0,
        });
      }
    }
  }

  /** Something happened that must not. */
  violation(text: string): void {
    this.trace?.(`VIOLATION ${text}`);
    this.violations.push(text);
  }

  /** The plan of a request, or undefined for a number that nobody sent. */
  plan(id: number): RequestPlan | undefined {
    const record = this.records.get(id);
    if (record === undefined || this.retries === 0 || record.deliveries.length === 0) return record?.plan;
    const { plan } = record;
    // Its client expects no tunnel where the first attempt was to fail.
    const upgradeAccepted = plan.upgradeAccepted && plan.response.fault === 'none';
    return { ...plan, upgradeAccepted, response: { ...plan.response, fault: 'none' } };
  }

  /** Requests continue on another connection, with a script of its own. */
  moved(requests: readonly RequestPlan[], client: ClientPlan): void {
    for (const plan of requests) this.records.get(plan.id)!.client = client;
  }

  /** A connection was refused. */
  refused(client: string, removed: boolean): void {
    if (!this.troubles.drain && !removed) this.violation(`the connection of ${client} was refused`);
  }

  /** A client begins to send a request. */
  issued(id: number, nowMs: number): void {
    const record = this.records.get(id)!;
    record.issuedMs = nowMs;
    record.firstIssuedMs = Math.min(record.firstIssuedMs, nowMs);
    record.issues++;
    this.trace?.(`request ${id} begins: ${summary(record.plan)}`);
  }

  /** The gateway ended a connection on which the client still had requests to send; `removed`: its listener may go. */
  endedEarly(client: string, how: string, removed: boolean): void {
    const { troubles } = this;
    if (troubles.drain || troubles.resources || troubles.clients || removed) return;
    this.violation(`the connection of ${client} ended (${how}) while it was waiting to send`);
  }

  /**
   * An upstream has seen the head of a request. `uselessMs`: since when nothing new may come on this
   * connection (endpoint removed, unasked bytes sent), or Infinity. `server`: who has seen it.
   */
  delivered(id: number, reused: boolean, uselessMs: number, server: Server): void {
    const record = this.records.get(id)!;
    record.deliveredMs = Math.min(record.deliveredMs, this.nowMs());
    const { fault: failure, status } = record.plan.response;
    if (status >= 500 || failure !== 'none') server.failures++;
    if (record.issuedMs > server.ejectedMs) {
      this.violation(
        `request ${id} went to an endpoint that had been ejected ${record.issuedMs - server.ejectedMs} ms before`,
      );
    }
    const fault = this.faultOf(record.plan);
    if (fault !== undefined && fault.status > 0)
      this.violation(`request ${id} was to be aborted and reached an upstream`);
    if (fault !== undefined && this.nowMs() < record.issuedMs + fault.delayMs) {
      this.violation(`request ${id} reached an upstream without its delay of ${fault.delayMs} ms`);
    }
    if (record.issuedMs > uselessMs) this.violation(`request ${id} went over a connection of no use any more`);
    record.deliveries.push({ reused });
    this.trace?.(`request ${id} reached an upstream`);
    const count = record.deliveries.length;
    const { method } = record.plan;
    if (record.plan.malformed !== undefined && record.plan.malformed !== 'badChunkSize') {
      this.violation(`request ${id} is malformed (${record.plan.malformed}) and reached an upstream`);
    }
    const http2Malformed = record.plan.http2?.malformed;
    if (http2Malformed !== undefined && !isLate(http2Malformed)) {
      this.violation(`request ${id} is malformed (${http2Malformed}) and reached an upstream`);
    }
    if (record.plan.unrouted) this.violation(`request ${id} has no route and reached an upstream`);
    if (count < 2) return;
    if (!IDEMPOTENT.includes(method)) this.violation(`${method} request ${id} was delivered ${count} times`);
    else if (count > 2 * (this.retries + 1)) this.violation(`request ${id} was delivered ${count} times`);
    else if (this.retries > 0) return;
    else if (!record.deliveries[0]!.reused) {
      this.violation(`request ${id} was delivered twice although the first connection was new`);
    }
  }

  /**
   * The server that gets mirrored requests has seen the head of one: its plan as it was sent, or undefined for a
   * number that nobody sent.
   */
  mirrored(id: number): RequestPlan | undefined {
    const record = this.records.get(id);
    if (record === undefined) return undefined;
    const { plan } = record;
    this.trace?.(`request ${id} was mirrored`);
    record.mirrors++;
    const problem = this.mirrorProblem(record);
    if (problem !== undefined) this.violation(`request ${id} (${summary(plan)}) was mirrored, ${problem}`);
    return plan;
  }

  private mirrorProblem({ plan, mirrors, outcome }: RequestRecord): string | undefined {
    if (this.features.mirror === undefined) return 'and nobody asked for it';
    if (plan.unrouted || plan.upgrade || isMalformed(plan)) return 'and must not be';
    const fault = this.faultOf(plan);
    if (fault !== undefined && fault.status > 0) return 'and was to be aborted';
    if (outcome?.type === 'generated' && outcome.flag === 'RL') return 'and a limit had refused it';
    if (plan.bytes > this.features.mirror.bodyBytesMax) return `over the limit for bodies`;
    // A kept connection may turn out to be closed.
    if (mirrors > (IDEMPOTENT.includes(plan.method) ? 2 : 1)) return `${mirrors} times`;
    return undefined;
  }

  /** An upstream connection fails with everything on it. */
  excuse(id: number): void {
    this.records.get(id)!.excused = true;
  }

  /** An upstream refuses to act on a request, which may be sent again whatever it is (RFC 9113 §8.7). */
  turnedAway(id: number): void {
    this.trace?.(`request ${id} was turned away`);
    this.records.get(id)!.turnedAway++;
  }

  /** A client learned what became of a request. Each request has one outcome. */
  outcome(id: number, outcome: Outcome): void {
    const record = this.records.get(id)!;
    if (record.outcome !== undefined) {
      this.violation(`request ${id} ended twice: ${describe(record.outcome)}, then ${describe(outcome)}`);
      return;
    }
    record.outcome = outcome;
    record.endedMs = this.nowMs();
    this.trace?.(`request ${id} ended: ${describe(outcome)}`);
    const problem = this.problem(record, outcome);
    if (problem !== undefined) this.violation(`request ${id} (${summary(record.plan)}): ${problem}`);
  }

  /** Whether the gateway may end a client connection after this request. */
  mayClose(plan: RequestPlan, generated: boolean): boolean {
    const { troubles } = this;
    if (plan.close || plan.version === 0 || plan.malformed !== undefined || this.oversized(plan)) return true;
    if (generated && plan.framing !== 'none') return true;
    // The request body may be unread when the answer is complete; then the connection is of no use.
    return (
      troubles.drain ||
      troubles.resources ||
      troubles.early ||
      troubles.responses ||
      troubles.clients ||
      troubles.limits ||
      this.records.get(plan.id)!.client.extraListener
    );
  }

  /** The gateway says that it has not acted on a request, so that another connection may carry it. */
  notActedOn(id: number): void {
    this.trace?.(`request ${id} was not acted on`);
    if (this.records.get(id)!.deliveries.length > 0) {
      this.violation(`request ${id} was delivered, although the gateway says that it has not acted on it`);
    }
  }

  /** Whether the gateway may send GOAWAY to a client that kept the rules. */
  mayGoAway(client: ClientPlan): boolean {
    const { troubles } = this;
    return troubles.drain || troubles.resources || troubles.limits || client.extraListener || leavesEarly(client);
  }

  /** Whether a client may be cut off without a word. */
  mayVanishAtAll(client: ClientPlan): boolean {
    const { troubles } = this;
    return troubles.drain || troubles.resources || troubles.clients || troubles.limits || client.extraListener;
  }

  /** Whether the rest of a request may be cut off with this code when its answer is complete. */
  mayResetAfterEnd(plan: RequestPlan, code: CodeName): boolean {
    // A client that has fallen silent does not end its side of a tunnel.
    const cut = this.troubles.drain || this.troubles.resources || leavesEarly(this.records.get(plan.id)!.client);
    if (code === 'NO_ERROR' || (cut && (code === 'CANCEL' || code === 'CONNECT_ERROR'))) return true;
    return isMalformed(plan) && (code === 'PROTOCOL_ERROR' || code === 'FLOW_CONTROL_ERROR');
  }

  /** Whether the client of a request goes through with a tunnel to its end. */
  staysInTunnel(id: number): boolean {
    const record = this.records.get(id)!;
    const { client, plan } = record;
    if (plan.http2?.resetAfterMs !== undefined || client.http2?.fatal !== undefined) return false;
    return !leavesEarly(client) && !this.troubles.drain && !this.troubles.resources;
  }

  /** Every request must have ended by now. */
  finish(): void {
    for (const [id, record] of this.records) {
      if (record.outcome === undefined) this.violation(`request ${id} (${summary(record.plan)}) never ended`);
    }
    for (const backend of new Set(Object.values(hosts))) this.checkLimits(backend);
  }

  /** How many requests ended in which way, for statistics. */
  tally(): Record<string, number> {
    const tally: Record<string, number> = {};
    for (const { outcome } of this.records.values()) {
      const key = outcome === undefined ? 'open' : outcome.type === 'generated' ? outcome.flag : outcome.type;
      tally[key] = (tally[key] ?? 0) + 1;
    }
    for (const { mirrors } of this.records.values()) if (mirrors > 0) tally.mirrored = (tally.mirrored ?? 0) + 1;
    return tally;
  }

  // -- faults, mirrors, limits --------------------------------------------------------------

  /** The fault that is injected into a request; undefined: none. */
  private faultOf(plan: RequestPlan): FaultPlan | undefined {
    return plan.faulted === true ? this.features.faults?.[hosts[plan.host]!] : undefined;
  }

  /** All is quiet. Where the server takes everything in time, every request that can be mirrored must have been. */
  checkMirrors(): void {
    const { troubles, features } = this;
    if (features.mirror?.manner !== 'good' || troubles.resources || troubles.drain || troubles.network) return;
    for (const { plan, outcome, mirrors } of this.records.values()) {
      if (outcome?.type !== 'complete' || plan.framing !== 'none' || plan.upgrade || isMalformed(plan)) continue;
      if (mirrors === 0) this.violation(`request ${plan.id} was not mirrored`);
    }
  }

  /**
   * Whether the rate limits of a backend's rule have let too many pass, or refused too early. When a request was
   * counted is not known: after it was begun, and before an upstream saw it or its client had an answer.
   */
  private checkLimits(backend: string): void {
    const counted = [...this.records.values()].filter(
      ({ plan, issues }) => issues > 0 && !plan.unrouted && hosts[plan.host] === backend,
    );
    const isRefused = ({ outcome }: RequestRecord): boolean => outcome?.type === 'generated' && outcome.flag === 'RL';
    const refused = counted.filter(isRefused);
    const others = counted.filter((record) => !isRefused(record));
    const seenMs = ({ deliveredMs, endedMs }: RequestRecord): number => Math.min(deliveredMs, endedMs);
    const isPassed = ({ deliveries, outcome }: RequestRecord): boolean =>
      deliveries.length > 0 || (outcome?.type === 'generated' && outcome.flag === 'FI');
    for (const limit of this.features.limits) {
      const perMs = limit.requests / limit.periodMs;
      const keys = limit.keyed ? [...new Set(counted.map(({ plan }) => plan.key))] : [undefined];
      for (const key of keys) {
        const passed = others.filter((record) => isPassed(record) && (!limit.keyed || record.plan.key === key));
        for (const first of passed) {
          for (const last of passed) {
            const [fromMs, toMs] = [first.firstIssuedMs, seenMs(last)];
            if (toMs < fromMs) continue;
            const count = passed.filter((one) => one.firstIssuedMs >= fromMs && seenMs(one) <= toMs).length;
            if (count > limit.burst + perMs * (toMs - fromMs) + LIMIT_SLACK) {
              this.violation(`${count} requests passed the limit ${limit.name} in ${toMs - fromMs} ms`);
              return;
            }
          }
        }
      }
    }
    const usedUp = (record: RequestRecord, limit: LimitPlan): boolean => {
      const perMs = limit.requests / limit.periodMs;
      const same = others.filter(({ plan }) => !limit.keyed || plan.key === record.plan.key);
      const before = same.filter(({ firstIssuedMs }) => firstIssuedMs <= record.endedMs);
      return before.some((one) => {
        const fromMs = Math.min(seenMs(one), record.endedMs);
        let count = 0;
        for (const other of before) if (seenMs(other) >= fromMs) count += other.issues;
        return count > limit.burst - 1 + perMs * Math.max(0, record.issuedMs - fromMs) - LIMIT_SLACK;
      });
    };
    for (const record of refused) {
      const { id } = record.plan;
      if (record.deliveries.length > 0) this.violation(`request ${id} was refused by a limit and reached an upstream`);
      if (record.mirrors > 0) this.violation(`request ${id} was refused by a limit and mirrored`);
      if (!this.features.limits.some((limit) => usedUp(record, limit))) {
        this.violation(`request ${id} was refused by a limit that was not used up`);
      }
    }
  }

  private problem(record: RequestRecord, outcome: Outcome): string | undefined {
    const { plan } = record;
    switch (outcome.type) {
      case 'complete':
        if (isMalformed(plan) && !this.early(plan) && !endsEarly(plan))
          return 'is malformed and was answered by an upstream';
        if (hosts[plan.host] === undefined || plan.unrouted) return 'has no route and was answered by an upstream';
        if (this.oversized(plan) && !this.early(plan)) return 'is too large and was answered by an upstream';
        if (record.deliveries.length === 0) return 'was answered without having been delivered';
        return undefined;
      case 'generated':
        return this.generatedProblem(record, outcome.status, outcome.flag);
      case 'truncated':
        if (outcome.code !== undefined && !this.codeFits(record, outcome.code)) return `reset with ${outcome.code}`;
        return this.mayTruncate(record) ? undefined : `answer cut off without a cause (${outcome.why})`;
      case 'unanswered':
        if (outcome.code !== undefined && !this.codeFits(record, outcome.code)) return `reset with ${outcome.code}`;
        return this.mayVanish(record) ? undefined : `connection ended without an answer (${outcome.why})`;
      default:
        return undefined;
    }
  }

  private generatedProblem(record: RequestRecord, status: number, flag: string): string | undefined {
    const { plan, client } = record;
    const { troubles } = this;
    const fault = plan.response.fault;
    const text = `answered with ${status} ${flag}`;
    if (isMalformed(plan)) {
      if (status >= 400) return undefined;
      return `is malformed (${plan.malformed ?? plan.http2?.malformed}) but ${text}`;
    }
    const lost = ['closeBeforeHead', 'resetBeforeHead', 'closeInHead', 'closeInBody', 'resetInBody'].includes(fault);
    const explained: Record<string, boolean> = {
      NR: plan.unrouted && status === 404,
      UF: troubles.dialing,
      UC:
        lost || troubles.stale || this.early(plan) || troubles.responses || this.drops > 0 || this.unrepeatable(record),
      UCS: troubles.stale || troubles.responses,
      UT: fault === 'silence' || this.timed(plan) || (record.excused && troubles.responses),
      // Bytes that nobody asked for can arrive just when the next request has been sent.
      UPE: fault === 'badHead' || fault === 'badChunk' || troubles.responses || this.denied(plan),
      // Streams share a window, which those that get no further may have used up.
      DT: client.cut?.how === 'stall' || (client.http2 !== undefined && troubles.responses),
      RQL: this.oversized(plan) && status === 413,
      OM: troubles.resources,
      UO: troubles.resources || this.breakers,
      DR: troubles.drain,
      FI: this.faultOf(plan)?.status === status && this.nowMs() >= record.issuedMs + this.faultOf(plan)!.delayMs,
      RL: this.features.limits.length > 0 && status === 429 && !plan.unrouted,
      UH: status === 503 && this.allEjected(hosts[plan.host]!, record.firstIssuedMs),
    };
    return explained[flag] === true ? undefined : `${text} without a cause`;
  }

  /** Whether a stream may be reset with this code. */
  private codeFits(record: RequestRecord, code: CodeName): boolean {
    const { plan } = record;
    const { troubles } = this;
    switch (code) {
      case 'PROTOCOL_ERROR':
      case 'FLOW_CONTROL_ERROR':
        return isMalformed(plan) && (code === 'PROTOCOL_ERROR') === (plan.http2?.malformed !== 'windowOverflow');
      case 'REFUSED_STREAM':
        return record.deliveries.length === 0 && troubles.resources;
      case 'CANCEL':
      case 'INTERNAL_ERROR':
        return !isMalformed(plan) || this.mayCut(record);
      case 'CONNECT_ERROR':
        return plan.upgrade;
      default:
        return false;
    }
  }

  private mayTruncate(record: RequestRecord): boolean {
    const { plan, client } = record;
    // A client that breaks the rules loses everything, and so does a malformed request.
    if (client.http2?.fatal !== undefined || plan.http2?.malformed !== undefined) return true;
    return this.mayCut(record);
  }

  private mayCut(record: RequestRecord): boolean {
    const { plan, client } = record;
    const fault = plan.response.fault;
    if (['closeInBody', 'resetInBody', 'badChunk'].includes(fault)) return true;
    if (this.early(plan) || this.timed(plan)) return true;
    // On a slow network the turn of a stream may come later than its deadline.
    const waitedMs = this.nowMs() - record.issuedMs;
    if (client.http2 !== undefined && this.troubles.network && waitedMs > streamIdleMs) return true;
    if (record.excused && (this.troubles.responses || this.troubles.stale || this.troubles.early)) return true;
    if (plan.malformed === 'badChunkSize' || leavesEarly(client)) return true;
    if (this.oversized(plan) && plan.framing === 'chunked') return true;
    return this.troubles.drain || this.troubles.resources;
  }

  private mayVanish(record: RequestRecord): boolean {
    const { client } = record;
    // An answer may be cut before its head is through.
    if (this.mayTruncate(record)) return true;
    // The system may drop a connection before the worker gets it (ECONNABORTED from accept).
    if (this.troubles.clients && client.requests.every((other) => this.untouched(other.id))) return true;
    if (client.extraListener) return true;
    return this.troubles.drain || this.troubles.resources;
  }

  /** Nobody has seen the request, and it got no answer. */
  private untouched(id: number): boolean {
    const { deliveries, outcome } = this.records.get(id)!;
    const answered = outcome !== undefined && outcome.type !== 'unanswered' && outcome.type !== 'left';
    return deliveries.length === 0 && !answered;
  }

  /** The upstream may answer before it has the whole request, be it only the last chunk. */
  private early(plan: RequestPlan): boolean {
    return plan.response.afterBodyBytes <= plan.bytes;
  }

  /** An upstream has not acted on the request, and it has a body that may be gone, or has been refused too often. */
  private unrepeatable({ turnedAway, plan, deliveries }: RequestRecord): boolean {
    // The upstream itself may not have seen what came behind its GOAWAY.
    const times = turnedAway + this.goaways;
    // Every attempt counts, also those that a rule asks for.
    if (this.retries > 0 && times > 0 && times + deliveries.length > 2) return true;
    return deliveries.length === 0 && (times > 2 || (times > 0 && plan.framing !== 'none'));
  }

  /** A tunnel that the upstream does not agree to, with a status that would say the contrary to an HTTP/2 client. */
  private denied(plan: RequestPlan): boolean {
    return plan.http2 !== undefined && plan.upgrade && !plan.upgradeAccepted && plan.response.status < 300;
  }

  /** The request body is over the limit of this run. */
  private oversized(plan: RequestPlan): boolean {
    return this.troubles.limits && plan.bytes > limitedBodyBytes;
  }

  /** The route of this request has short timeouts in this run. */
  private timed(plan: RequestPlan): boolean {
    return this.troubles.responses && hosts[plan.host] === 'beta';
  }
}

/** Whether a client ends its side, or falls silent, before everything is answered. */
function leavesEarly(client: ClientPlan): boolean {
  return client.cut !== undefined || client.leaveAtByte !== undefined || client.halfClose;
}

/** Whether a request breaks the rules of its protocol. */
export function isMalformed(plan: RequestPlan): boolean {
  return plan.malformed !== undefined || plan.http2?.malformed !== undefined;
}

/** What is too much may come when the request seems complete already. */
export function endsEarly(plan: RequestPlan): boolean {
  return plan.http2?.malformed === 'bodyTooLong';
}

function describe(outcome: Outcome): string {
  return JSON.stringify(outcome);
}

/** One line about a request, for messages. */
export function summary(plan: RequestPlan): string {
  const body = plan.framing === 'none' ? '' : `, ${plan.framing} body of ${plan.bytes}`;
  const { response } = plan;
  const answer = `${response.status} ${response.framing} of ${response.bytes}`;
  const fault = response.fault === 'none' ? '' : `, ${response.fault} at ${response.faultAtByte}`;
  const { http2 } = plan;
  const version = http2 === undefined ? `HTTP/1.${plan.version}` : `HTTP/2${plan.upgrade ? ' CONNECT' : ''}`;
  const malformed = plan.malformed ?? http2?.malformed;
  const wrong = malformed === undefined ? '' : ` (${malformed})`;
  return `${plan.method} ${version}${wrong}${body}; answer ${answer}${fault}`;
}
