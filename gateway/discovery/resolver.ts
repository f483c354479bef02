// Names of endpoints: looked up when a configuration is loaded, and again when their answers are old.
//
// A failed lookup never takes a working answer away: the last good one is kept, and the change of
// state is logged once. What a configuration finds that is to run counts once it runs: one that is
// refused changes neither answers nor name servers. Owned by the control thread.
// Invariant: the answers of a name are sorted and distinct, so equal answers compare equal.

import type { DnsConfig, EndpointConfig } from '../../config/config.ts';
import type { Log } from '../../core/workers/log.ts';
import { type Answer, type Lookup, lookupBy, NO_TTL_MS } from './dns.ts';

/** Longest time of a timer. */
const TIMER_MAX_MS = 0x7fff_ffff;

/** Time until the next lookup after one that failed. */
const RETRY_INTERVAL_MS = 5_000;

/** Lookups that are due within this time are done together: fewer snapshots. */
const TOGETHER_MS = 50;

/** A name, or a name of SRV records. */
export interface Query {
  name: string;
  srv: boolean;
}

/** Text that tells queries apart. */
export function queryKey({ name, srv }: Query): string {
  return srv ? `srv:${name}` : name;
}

/** The query behind an endpoint, or undefined for an IP address. */
export function queryOf({ host, isIp, srv }: Pick<EndpointConfig, 'host' | 'isIp' | 'srv'>): Query | undefined {
  return isIp ? undefined : { name: host, srv };
}

/** Last answers by `queryKey`. */
export type AnswersByQuery = ReadonlyMap<string, readonly Answer[]>;

/** What is known of one query. */
interface Known {
  query: Query;
  /** Undefined: it has never been answered. */
  answers: Answer[] | undefined;
  failing: boolean;
  /** When it is to be looked up again; infinite while it is being looked up. */
  dueMs: number;
}

/** What is known of the names of a configuration, and how they are looked up. */
export interface Names {
  config: DnsConfig;
  lookup: Lookup;
  known: Map<string, Known>;
}

/** Last answers of the names that the running configuration uses. */
export class EndpointResolver {
  private readonly makeLookup: (config: DnsConfig) => Lookup;
  private readonly log: Log;
  private readonly onChange: () => void;
  private readonly nowMs: () => number;
  /** Of the running configuration; undefined: none runs yet. */
  private names: Names | undefined;
  private timer: NodeJS.Timeout | undefined;
  private closed = false;

  /** `onChange` is called after a background lookup found other addresses for a watched name. */
  constructor(
    log: Log,
    onChange: () => void,
    makeLookup: (config: DnsConfig) => Lookup = lookupBy,
    nowMs: () => number = () => performance.now(),
  ) {
    this.log = log;
    this.onChange = onChange;
    this.makeLookup = makeLookup;
    this.nowMs = nowMs;
  }

  /** Looks all names of a configuration up that is to run, as `config` says; for `lastAnswers` and `adopt`. */
  async prepare(queries: readonly Query[], config: DnsConfig): Promise<Names> {
    const { names: before } = this;
    const same = before !== undefined && JSON.stringify(config) === JSON.stringify(before.config);
    const names: Names = { config, lookup: same ? before.lookup : this.makeLookup(config), known: new Map() };
    for (const query of queries) {
      const key = queryKey(query);
      names.known.set(key, { ...(before?.known.get(key) ?? unknown(query)) });
    }
    await Promise.all([...names.known.values()].map((known) => this.refresh(names, known)));
    return names;
  }

  /** Looks those of the names up that the running configuration has not had yet. */
  async add(queries: readonly Query[]): Promise<void> {
    const { names } = this;
    if (names === undefined) return;
    const fresh = queries.filter((query) => !names.known.has(queryKey(query))).map(unknown);
    for (const known of fresh) names.known.set(queryKey(known.query), known);
    await Promise.all(fresh.map((known) => this.refresh(names, known)));
    this.schedule();
  }

  /** Last good answers, without a lookup; names without any are absent. */
  lastAnswers(queries: readonly Query[], names: Names | undefined = this.names): AnswersByQuery {
    const result = new Map<string, readonly Answer[]>();
    for (const query of queries) {
      const key = queryKey(query);
      const answers = names?.known.get(key)?.answers;
      if (answers !== undefined) result.set(key, answers);
    }
    return result;
  }

  /** A configuration runs, with the `names` that were prepared for it or with those of before: keeps these fresh. */
  adopt(queries: readonly Query[], names: Names | undefined = this.names): void {
    this.names = names;
    const keys = new Set(queries.map(queryKey));
    for (const key of names?.known.keys() ?? []) if (!keys.has(key)) names!.known.delete(key);
    this.schedule();
  }

  /** Stops all lookups. */
  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
  }

  private schedule(): void {
    clearTimeout(this.timer);
    if (this.closed || this.names === undefined) return;
    let dueMs = Number.POSITIVE_INFINITY;
    for (const known of this.names.known.values()) dueMs = Math.min(dueMs, known.dueMs);
    // Lookups that are under way end with a call of this.
    if (dueMs === Number.POSITIVE_INFINITY) return;
    const waitMs = Math.min(Math.max(0, dueMs - this.nowMs()), TIMER_MAX_MS);
    this.timer = setTimeout(() => void this.refreshDue(), waitMs);
    this.timer.unref();
  }

  private async refreshDue(): Promise<void> {
    const untilMs = this.nowMs() + TOGETHER_MS;
    const names = this.names!;
    const due = [...names.known.values()].filter(({ dueMs }) => dueMs <= untilMs);
    const lookups = due.map((known) => this.refresh(names, known));
    // Names that come due while these are looked up do not wait for them.
    this.schedule();
    const changed = await Promise.all(lookups);
    if (this.closed) return;
    // A reload meanwhile has asked for itself.
    if (names === this.names && changed.includes(true)) this.onChange();
    this.schedule();
  }

  /** Looks one name up; whether its addresses are other ones than before. */
  private async refresh({ config, lookup }: Names, known: Known): Promise<boolean> {
    const { query } = known;
    const { timeoutMs, ttlMinMs, ttlMaxMs } = config;
    // Nobody else asks for it meanwhile.
    known.dueMs = Number.POSITIVE_INFINITY;
    let answers: Answer[];
    try {
      const found = await withTimeout(lookup(query.name, query.srv, known.answers ?? []), timeoutMs);
      answers = sorted(found.answers);
      if (answers.length === 0) throw new Error('no addresses');
      const ttlMs = Math.min(Math.max(found.ttlMs ?? NO_TTL_MS, ttlMinMs), ttlMaxMs);
      known.dueMs = this.nowMs() + ttlMs;
    } catch (error) {
      known.dueMs = this.nowMs() + RETRY_INTERVAL_MS;
      this.noteFailure(known, error as NodeJS.ErrnoException);
      return false;
    }
    if (known.failing) this.log('info', 'endpoint name resolves again', { name: queryKey(query) });
    known.failing = false;
    const before = known.answers;
    known.answers = answers;
    return before === undefined || JSON.stringify(before) !== JSON.stringify(answers);
  }

  private noteFailure(known: Known, error: NodeJS.ErrnoException): void {
    if (known.failing) return;
    known.failing = true;
    this.log('warn', 'endpoint name does not resolve', {
      name: queryKey(known.query),
      error: error.code ?? error.message,
      consequence:
        known.answers === undefined ? 'the backend has no such endpoint for now' : 'its last addresses stay in use',
    });
  }
}

/** Sorted, each address and port once; records of SRV that name it twice add up. */
function sorted(answers: readonly Answer[]): Answer[] {
  const byAddress = new Map<string, Answer>();
  for (const answer of answers) {
    const key = `${answer.host} ${answer.port}`;
    const known = byAddress.get(key);
    if (known === undefined) byAddress.set(key, { ...answer });
    else if (answer.port > 0) known.weight += answer.weight;
  }
  return [...byAddress].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, answer]) => answer);
}

function unknown(query: Query): Known {
  return { query, answers: undefined, failing: false, dueMs: 0 };
}

/** The library bounds its questions, but not all that one lookup takes. */
async function withTimeout<T>(promise: Promise<T>, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
  });
  try {
    return await Promise.race([promise, timeout]);
  } finally {
    clearTimeout(timer);
  }
}
