// The policies of one workload, compiled; and what they come to for one connection.
//
//   Authorization (per snapshot) --connection--> ConnectionAccess (what is still open) --request--> a decision
//
// Istio's order: a policy that denies and matches refuses; then, if there are policies that allow, one of them has to
// match. What asks only of the connection is decided once for it; of everything else only the rules that are still
// possible are kept, with the parts of them that ask of requests. Policies on trial (dry run) are decided apart, for
// what the others let in.
// Owned by one worker. Hot module: no allocation per request.
// Spec: Istio AuthorizationPolicy.

import { type ConnectionCondition, conditionOf } from './condition.ts';
import { type ConnectionFacts, Source } from './connection-facts.ts';
import { Operation } from './operation.ts';
import { deniedBy, notAllowedBy, policyDetail, policySlot } from './policy-numbers.ts';
import { RequestCondition } from './request-condition.ts';
import type { RequestFacts } from './request-facts.ts';
import type { AuthorizationSettings, PolicyRuleSettings, PolicySettings } from './settings.ts';

/** A policy that took part in a decision. */
export interface DecidingPolicy {
  /** `namespace/name`. */
  readonly name: string;
  /** Counter, see policy-numbers.ts. */
  readonly slot: number;
}

/** A decision against a request or connection, whoever makes it. */
export interface Refusal {
  /** Number of the decision, see policy-numbers.ts. */
  readonly detail: number;
  /** Its word. */
  readonly word: string;
  /** The policy that denies, or all that do not allow. */
  readonly policies: readonly DecidingPolicy[];
}

/** A rule, with what denies if it is one that denies. */
class Rule {
  readonly refusal: Refusal;
  /** Whose rule it is. */
  private readonly policy: DecidingPolicy;
  private readonly from: readonly Source[];
  readonly operations: readonly Operation[];
  private readonly connection: readonly ConnectionCondition[];
  private readonly request: readonly RequestCondition[];

  constructor({ from, to, when }: PolicyRuleSettings, refusal: Refusal, policy: DecidingPolicy) {
    this.refusal = refusal;
    this.policy = policy;
    this.from = from.map((source) => new Source(source));
    this.operations = to.map((operation) => new Operation(operation));
    const conditions = when.map(conditionOf);
    this.connection = conditions.filter((one) => !(one instanceof RequestCondition)) as ConnectionCondition[];
    this.request = conditions.filter((one) => one instanceof RequestCondition);
  }

  /** What is left of the rule for a connection; null: it cannot match. */
  rest(facts: ConnectionFacts, lenient: boolean): OpenRule | null {
    const { from, operations, connection, refusal } = this;
    if (from.length > 0 && !from.some((source) => source.isOf(facts, lenient))) return null;
    for (const condition of connection) if (!condition(facts, lenient)) return null;
    const request: RequestCondition[] = [];
    for (const condition of this.request) {
      if (!condition.ofClient || !facts.source.clientIsPeer) request.push(condition);
      else if (!condition.isOfPeer(facts, lenient)) return null;
    }
    let open = operations.filter((operation) => operation.isOfConnection(facts, lenient));
    if (operations.length > 0 && open.length === 0) return null;
    if (open.some(({ ofRequest }) => !ofRequest)) open = [];
    return new OpenRule(refusal, this.policy, open, request, lenient);
  }
}

/** What is left of a rule that the connection itself has not ruled out. */
class OpenRule {
  readonly refusal: Refusal;
  readonly policy: DecidingPolicy;
  /** Matches whatever is requested. */
  readonly always: boolean;
  private readonly lenient: boolean;
  private readonly operations: readonly Operation[];
  private readonly conditions: readonly RequestCondition[];

  constructor(
    refusal: Refusal,
    policy: DecidingPolicy,
    operations: readonly Operation[],
    conditions: readonly RequestCondition[],
    lenient: boolean,
  ) {
    this.refusal = refusal;
    this.policy = policy;
    this.always = operations.length === 0 && conditions.length === 0;
    this.lenient = lenient;
    this.operations = operations;
    this.conditions = conditions;
  }

  matches(request: RequestFacts): boolean {
    const { operations, conditions, lenient } = this;
    for (let i = 0; i < conditions.length; i++) if (!conditions[i]!.isOfRequest(request, lenient)) return false;
    if (operations.length === 0) return true;
    for (let i = 0; i < operations.length; i++) if (operations[i]!.isOfRequest(request, lenient)) return true;
    return false;
  }
}

/** Rules that deny, and rules that allow. */
interface Rules {
  deny: Rule[];
  allow: Rule[];
  /** What refuses where none allows; null: everything is allowed. */
  missing: Refusal | null;
}

/** The policies of a workload, compiled. */
export class Authorization {
  /** As in the settings: the same key is the same compiled object. */
  readonly key: string;
  readonly enforced: Rules;
  /** Those on trial. What they allow comes on top of what is enforced. */
  readonly trial: Rules;

  /** The numbers of the policies must be known to this thread (policy-numbers.ts). */
  constructor(settings: AuthorizationSettings) {
    this.key = settings.key;
    this.enforced = compile(settings.policies.filter(({ dryRun }) => !dryRun));
    this.trial = compile(settings.policies.filter(({ dryRun }) => dryRun));
    // With policies that allow already in force, further ones only ever allow more.
    if (this.enforced.missing !== null) this.trial.missing = null;
  }
}

function compile(policies: readonly PolicySettings[]): Rules {
  const deciding = ({ name }: PolicySettings): DecidingPolicy => ({ name, slot: policySlot(name) });
  const deny = policies
    .filter(({ action }) => action === 'deny')
    .flatMap((policy) =>
      policy.rules.map((rule, index) => {
        const word = deniedBy(policy, index + 1);
        const decider = deciding(policy);
        return new Rule(rule, { word, detail: policyDetail(word), policies: [decider] }, decider);
      }),
    );
  const allowing = policies.filter(({ action }) => action === 'allow');
  if (allowing.length === 0) return { deny, allow: [], missing: null };
  const word = notAllowedBy(allowing);
  const policiesOf = allowing.map(deciding);
  const missing: Refusal = { word, detail: policyDetail(word), policies: policiesOf };
  const allow = allowing.flatMap(({ rules }, index) =>
    rules.map((rule) => new Rule(rule, missing, policiesOf[index]!)),
  );
  return { deny, allow, missing };
}

/** Rules as one connection has left them open. */
class OpenRules {
  private readonly deny: readonly OpenRule[];
  private readonly allow: readonly OpenRule[];
  private readonly missing: Refusal | null;
  /** The answer for all requests; undefined: it depends on them. */
  readonly settled: Refusal | null | undefined;
  /** The answer for a connection that is passed on unread. */
  readonly unread: Refusal | null;
  /** The policy that lets everything of the connection in, if none denies; null: there is none. */
  readonly alwaysAllowedBy: DecidingPolicy | null;
  /** The policy that has let in the request of the last `decide`; null: none had to. */
  allowedBy: DecidingPolicy | null = null;

  constructor({ deny, allow, missing }: Rules, facts: ConnectionFacts) {
    this.deny = openOf(deny, facts, true);
    const allowing = openOf(allow, facts, false);
    this.alwaysAllowedBy = allowing.find(({ always }) => always)?.policy ?? null;
    const allowed = missing === null || this.alwaysAllowedBy !== null;
    this.allow = allowed ? [] : allowing;
    this.missing = allowed ? null : missing;
    const denied = this.deny.find(({ always }) => always);
    if (denied !== undefined) this.settled = denied.refusal;
    else if (this.deny.length > 0) this.settled = undefined;
    else this.settled = this.allow.length > 0 ? undefined : this.missing;
    // Nobody sees requests: what rules that deny ask of them counts as fulfilled, what rules that allow ask does not.
    this.unread = this.deny[0]?.refusal ?? this.missing;
  }

  /** What refuses a request; null: nothing does. */
  decide(request: RequestFacts): Refusal | null {
    const { deny, allow, missing, settled } = this;
    this.allowedBy = this.alwaysAllowedBy;
    if (settled !== undefined) return settled;
    for (let i = 0; i < deny.length; i++) if (deny[i]!.matches(request)) return deny[i]!.refusal;
    if (missing === null) return null;
    for (let i = 0; i < allow.length; i++) {
      if (!allow[i]!.matches(request)) continue;
      this.allowedBy = allow[i]!.policy;
      return null;
    }
    return missing;
  }
}

function openOf(rules: readonly Rule[], facts: ConnectionFacts, lenient: boolean): OpenRule[] {
  const found: OpenRule[] = [];
  for (const rule of rules) {
    const rest = rule.rest(facts, lenient);
    if (rest !== null) found.push(rest);
  }
  return found;
}

/** What the policies of a workload come to for one connection. */
export class ConnectionVerdict {
  private readonly enforced: OpenRules;
  private readonly trial: OpenRules;
  /** No request needs to be looked at: whatever it is, the answer is known. */
  readonly settled: boolean;

  constructor(authorization: Authorization, facts: ConnectionFacts) {
    this.enforced = new OpenRules(authorization.enforced, facts);
    this.trial = new OpenRules(authorization.trial, facts);
    const { settled } = this.enforced;
    // The trial is only of what is let in.
    this.settled = settled !== undefined && (settled !== null || this.trial.settled !== undefined);
  }

  /** What refuses a request of the connection; null: it is let in. `request` is not looked at if `settled`. */
  ofRequest(request: RequestFacts): Refusal | null {
    return this.enforced.decide(request);
  }

  /** The policy that has let in what `ofRequest` was last asked about; null: none had to. */
  get requestAllowedBy(): DecidingPolicy | null {
    return this.enforced.allowedBy;
  }

  /** The policy that lets in the connection, if it is passed on unread; null: none has to. */
  get connectionAllowedBy(): DecidingPolicy | null {
    return this.enforced.alwaysAllowedBy;
  }

  /** What policies on trial would refuse it for; null: nothing. For requests that are let in. */
  trialOfRequest(request: RequestFacts): Refusal | null {
    return this.trial.decide(request);
  }

  /** What refuses the connection, if it is passed on unread; null: it is let in. */
  get ofConnection(): Refusal | null {
    return this.enforced.unread;
  }

  /** What policies on trial would refuse it for; null: nothing. For connections that are let in. */
  get trialOfConnection(): Refusal | null {
    return this.trial.unread;
  }
}
