// Numbers of authorisation policies: decisions are kept as numbers (exchange/reasons.ts, DETAIL_POLICY; counters of
// core/telemetry/metrics.ts), and say which policy and rule has decided.
//
// One table per thread. The control thread gives the numbers, and tells workers in each snapshot; a number never
// changes its name. Both tables are bounded: what comes when they are full shares the last place, without a name.

import type { AuthorizationSettings, PolicySettings } from './settings.ts';

/** Counters of policies per worker; the last one is that of all policies beyond. */
export const POLICY_SLOTS = 512;

/** Decisions that have a name. */
const POLICY_DETAILS_MAX = 65_536;

/** Most policies that the name of a decision lists. */
const LISTED_MAX = 3;

const DENIED_BY = 'denied_by_';
const NOT_ALLOWED_BY = 'not_allowed_by_';

/** Numbers that a snapshot uses. */
export interface PolicyNumbers {
  /** Names of policies by counter. */
  policies: readonly { slot: number; name: string }[];
  /** Words of decisions by detail. */
  details: readonly { id: number; word: string }[];
}

/** Things with a name each, numbered as they come. */
class Numbering {
  readonly names: (string | undefined)[] = [];
  private readonly numbers = new Map<string, number>();
  private readonly max: number;

  /** `max` is the number for all names beyond the last place. */
  constructor(max: number) {
    this.max = max;
  }

  /** The number of a name, which gets one if it has none. */
  give(name: string): number {
    const known = this.numbers.get(name);
    if (known !== undefined) return known;
    if (this.names.length >= this.max) return this.max;
    this.learn(this.names.length, name);
    return this.names.length - 1;
  }

  learn(number: number, name: string): void {
    this.names[number] = name;
    this.numbers.set(name, number);
  }

  of(name: string): number {
    return this.numbers.get(name) ?? this.max;
  }
}

const slots = new Numbering(POLICY_SLOTS - 1);
const details = new Numbering(POLICY_DETAILS_MAX);

/** Word of the decision that a rule denies; rules count from 1. */
export function deniedBy(policy: PolicySettings, rule: number): string {
  return `${DENIED_BY}${policy.name} rule ${rule}`;
}

/** Word of the decision that no rule of these policies allows. */
export function notAllowedBy(policies: readonly PolicySettings[]): string {
  const names = policies.slice(0, LISTED_MAX).map(({ name }) => name);
  const more = policies.length - names.length;
  return `${NOT_ALLOWED_BY}${names.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
}

/** Gives numbers to all policies that some workloads have. For the control thread. */
export function numberPolicies(workloads: readonly (AuthorizationSettings | null)[]): PolicyNumbers {
  const usedSlots = new Set<number>();
  const usedDetails = new Set<number>();
  for (const authorization of new Set(workloads)) {
    if (authorization === null) continue;
    const { policies } = authorization;
    for (const policy of policies) {
      usedSlots.add(slots.give(policy.name));
      if (policy.action === 'deny') {
        for (let rule = 1; rule <= policy.rules.length; rule++) usedDetails.add(details.give(deniedBy(policy, rule)));
      }
    }
    const allow = policies.filter(({ action, dryRun }) => action === 'allow' && !dryRun);
    if (allow.length > 0) usedDetails.add(details.give(notAllowedBy(allow)));
  }
  return {
    policies: [...usedSlots].flatMap((slot) => {
      const name = slots.names[slot];
      return name === undefined ? [] : [{ slot, name }];
    }),
    details: [...usedDetails].flatMap((id) => {
      const word = details.names[id];
      return word === undefined ? [] : [{ id, word }];
    }),
  };
}

/** Learns the numbers of a snapshot. */
export function usePolicyNumbers(numbers: PolicyNumbers): void {
  for (const { slot, name } of numbers.policies) slots.learn(slot, name);
  for (const { id, word } of numbers.details) details.learn(id, word);
}

/** Counter of a policy. */
export function policySlot(name: string): number {
  return slots.of(name);
}

/** Number of a decision by its word. */
export function policyDetail(word: string): number {
  return details.of(word);
}

/** Name of the policy with a counter of its own; empty: it is that of many. */
export function policySlotName(slot: number): string {
  return slots.names[slot] ?? '';
}

/** Names of the policies in the word of a decision against something: the one that denies, or those that do not allow. */
export function refusingPolicies(word: string): string {
  if (word.startsWith(DENIED_BY)) return word.slice(DENIED_BY.length).replace(/ rule \d+$/, '');
  return word.startsWith(NOT_ALLOWED_BY) ? word.slice(NOT_ALLOWED_BY.length) : '';
}

/** Policies with a counter, and the place of all others. */
export function policySlotNames(): { slot: number; name: string }[] {
  const named = slots.names.flatMap((name, slot) => (name === undefined ? [] : [{ slot, name }]));
  return [...named, { slot: POLICY_SLOTS - 1, name: 'other' }];
}

/** Word of a decision: `denied_by_shop/cart rule 2`, `not_allowed_by_shop/cart`. */
export function policyWord(id: number): string {
  return details.names[id] ?? 'policy_other';
}

/** The same as a sentence. */
export function policySentence(id: number): string {
  const word = details.names[id];
  if (word === undefined) return 'This thread has no name for the policy.';
  if (word.startsWith(DENIED_BY)) return `The policy is "${word.slice(DENIED_BY.length)}".`;
  return `No rule of the policies that say who is allowed matches: ${word.slice(NOT_ALLOWED_BY.length)}.`;
}
