// The rate limits of a rule as a worker uses them, made once per snapshot and policy; and what an exchange
// remembers of them for its response.

import { Text } from '../io/bytes.ts';
import type { RateLimitKeyPart, RateLimitSettings, RateLimitTable } from '../limits/limit-settings.ts';
import { LimitTable } from '../limits/limit-table.ts';
import { FieldName } from './field-name.ts';

/** Kinds of the parts of a key. HOST is the header of that name, for which HTTP/2 has the authority. */
export const KeyPart = { SOURCE_ADDRESS: 0, PATH: 1, HEADER: 2, CLAIM: 3, HOST: 4 } as const;

const encoder = new TextEncoder();

/** One part of a limit's key. */
export class LimitKeyPart {
  /** KeyPart. */
  readonly kind: number;
  /** Name of a header, else empty. */
  readonly field: FieldName;
  /** Name of a claim, else empty. */
  readonly nameBytes: Uint8Array;

  constructor(part: RateLimitKeyPart) {
    const name = part.type === 'header' ? part.name : '';
    this.field = new FieldName(name);
    this.nameBytes = encoder.encode(part.type === 'jwtClaim' ? part.claim : '');
    if (part.type === 'sourceAddress') this.kind = KeyPart.SOURCE_ADDRESS;
    else if (part.type === 'path') this.kind = KeyPart.PATH;
    else if (part.type === 'jwtClaim') this.kind = KeyPart.CLAIM;
    else this.kind = name === 'host' ? KeyPart.HOST : KeyPart.HEADER;
  }
}

/** One limit. */
export class RateLimit {
  readonly settings: RateLimitSettings;
  /** See RateLimitTable. */
  readonly id: number;
  readonly table: LimitTable;
  readonly key: readonly LimitKeyPart[];
  /** Whether there is a key: otherwise all requests have one bucket. */
  readonly keyed: boolean;
  readonly global: boolean;
  readonly dryRun: boolean;
  /** Whether responses show it; not in a dry run, which nobody is to notice. */
  readonly shown: boolean;
  /** `"name";r=` of the field RateLimit. */
  readonly itemStart: Text;

  /** `worker` is the index of this packet worker. */
  constructor(settings: RateLimitSettings, { id, buffer }: RateLimitTable, worker: number) {
    this.settings = settings;
    this.id = id;
    this.table = new LimitTable(buffer, settings, worker);
    this.key = settings.key.map((part) => new LimitKeyPart(part));
    this.keyed = settings.key.length > 0;
    this.global = settings.global;
    this.dryRun = settings.dryRun;
    this.shown = settings.headers && !settings.dryRun;
    this.itemStart = new Text(`"${shownName(settings)}";r=`);
  }
}

/** All limits of a rule. */
export class RuleLimits {
  readonly all: readonly RateLimit[];
  readonly anyGlobal: boolean;
  /** The line RateLimit-Policy; empty when no limit is shown. */
  readonly policyLine: Text;

  constructor(all: readonly RateLimit[]) {
    this.all = all;
    this.anyGlobal = all.some(({ global }) => global);
    const shown = all.filter((limit) => limit.shown).map(({ settings }) => policyItem(settings));
    this.policyLine = new Text(shown.length === 0 ? '' : `ratelimit-policy: ${shown.join(', ')}\r\n`);
  }
}

/** The limits of a policy on the tables of a snapshot, or null if it has none. */
export function ruleLimits(
  settings: readonly RateLimitSettings[],
  tables: readonly RateLimitTable[],
  worker: number,
): RuleLimits | null {
  if (settings.length === 0) return null;
  return new RuleLimits(
    settings.map((limit) => {
      const table = tables.find(({ name }) => name === limit.name);
      if (table === undefined) throw new Error(`the snapshot has no table for rate limit ${limit.name}`);
      return new RateLimit(limit, table, worker);
    }),
  );
}

function shownName({ name, shownAs }: RateLimitSettings): string {
  return shownAs ?? name;
}

/** Quota and window of a limit; windows are whole seconds there. */
function policyItem(settings: RateLimitSettings): string {
  const { requests, periodMs } = settings;
  const windowS = Math.ceil(periodMs / 1000);
  const quota = Math.floor((requests * windowS * 1000) / periodMs);
  return `"${shownName(settings)}";q=${quota};w=${windowS}`;
}

/** What became of one limit of an exchange. */
export class LimitOutcome {
  /** Requests left; -1: nothing is known of that. */
  remaining = -1;
  /** Seconds until there is one more request, if there is none, or until the bucket is full. */
  seconds = 0;
  /** 1: this limit let the request pass, or would have. */
  passed = 0;
  /** The two halves of the hash of its key. */
  hashLow = 0;
  hashHigh = 0;
  /** Key of a global one, as it goes to Redis; only while that is asked. */
  key = '';
}

/** What became of the limits of one exchange. Kept with the pooled exchange. */
export class ExchangeLimits {
  /** Limits of the rule. */
  count = 0;
  /** Their outcomes, by their place in the rule; perhaps more of them. */
  readonly each: LimitOutcome[] = [];
  /** Place of the limit that refuses the request; -1: none. */
  denied = -1;

  /** Begins anew, with so many limits of which nothing is known. */
  reset(count: number): void {
    const { each } = this;
    this.count = count;
    this.denied = -1;
    for (let i = 0; i < count; i++) {
      if (i === each.length) each.push(new LimitOutcome());
      each[i].remaining = -1;
      each[i].passed = 0;
    }
  }
}

/** Values of `Exchange.limitState`. */
export const LimitState = {
  /** No limits, or all have let the request pass. */
  NONE: 0,
  DENIED: 1,
  /** Redis is to be asked. */
  ASK: 2,
  /** It has been asked. */
  WAITING: 3,
} as const;
