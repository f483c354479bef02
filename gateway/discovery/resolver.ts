// Names of endpoints: looked up when a configuration is loaded, and again when their answers are old.
//
// A failed lookup never takes a working answer away: the last good one is kept, and the change of
// state is logged once. Owned by the control thread.
// Invariant: the answers of a name are sorted and distinct, so equal answers compare equal.

import type { DnsConfig, EndpointConfig } from '../../config/config.ts';
import type { Log } from '../../core/workers/log.ts';
import { type Answer, type Lookup, lookupBy, NO_TTL_MS } from './dns.ts';

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
  /** When it is to be looked up again. */
  dueMs: number;
}

/** Last answers of the names that the running configuration uses. */
export class EndpointResolver {
  private readonly makeLookup: (config: DnsConfig) => Lookup;
  private readonly log: Log;
  private readonly onChange: () => void;
  private readonly nowMs: () => number;
  private readonly known = new Map<string, Known>();
  private watched: ReadonlySet<string> = new Set();
  /** How names are looked up; those that wait use what the last configuration says. */
  private config: DnsConfig | undefined;
  private lookup: Lookup | undefined;
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

  /** Looks all names up now, as `config` says; names without any answer are absent from the result. */
  async resolve(queries: readonly Query[], config: DnsConfig): Promise<AnswersByQuery> {
    if (JSON.stringify(config) !== JSON.stringify(this.config)) {
      this.config = config;
      this.lookup = this.makeLookup(config);
    }
    await Promise.all(distinct(queries).map((query) => this.refresh(query)));
    return this.lastAnswers(queries);
  }

  /** Last good answers, without a lookup. */
  lastAnswers(queries: readonly Query[]): AnswersByQuery {
    const result = new Map<string, readonly Answer[]>();
    for (const query of queries) {
      const key = queryKey(query);
      const answers = this.known.get(key)?.answers;
      if (answers !== undefined) result.set(key, answers);
    }
    return result;
  }

  /** Whether a name has been looked up, with or without success. */
  knows(query: Query): boolean {
    return this.known.has(queryKey(query));
  }

  /** Keeps these names fresh from now on, and forgets all others. */
  watch(queries: readonly Query[]): void {
    this.watched = new Set(queries.map(queryKey));
    for (const key of this.known.keys()) if (!this.watched.has(key)) this.known.delete(key);
    this.schedule();
  }

  /** Stops all lookups. */
  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
  }

  private schedule(): void {
    clearTimeout(this.timer);
    const due = [...this.known.values()].map(({ dueMs }) => dueMs);
    if (this.closed || due.length === 0) return;
    const waitMs = Math.max(0, Math.min(...due) - this.nowMs());
    this.timer = setTimeout(() => void this.refreshDue(), waitMs);
    this.timer.unref();
  }

  private async refreshDue(): Promise<void> {
    const untilMs = this.nowMs() + TOGETHER_MS;
    const { watched } = this;
    const due = [...this.known.values()].filter(({ dueMs }) => dueMs <= untilMs).map(({ query }) => query);
    const changed = await Promise.all(due.map((query) => this.refresh(query)));
    if (this.closed) return;
    if (changed.includes(true)) this.onChange();
    // A reload meanwhile has set its own timer, which knows of these lookups too.
    if (watched === this.watched) this.schedule();
  }

  /** Looks one name up; whether its addresses are other ones than before. */
  private async refresh(query: Query): Promise<boolean> {
    const key = queryKey(query);
    const known = this.known.get(key) ?? { query, answers: undefined, failing: false, dueMs: 0 };
    this.known.set(key, known);
    const { timeoutMs, ttlMinMs, ttlMaxMs } = this.config!;
    // Nobody else asks for it meanwhile.
    known.dueMs = Number.POSITIVE_INFINITY;
    let answers: Answer[];
    try {
      const found = await withTimeout(this.lookup!(query.name, query.srv, known.answers ?? []), timeoutMs);
      answers = sorted(found.answers);
      if (answers.length === 0) throw new Error('no addresses');
      const ttlMs = Math.min(Math.max(found.ttlMs ?? NO_TTL_MS, ttlMinMs), ttlMaxMs);
      known.dueMs = this.nowMs() + ttlMs;
    } catch (error) {
      known.dueMs = this.nowMs() + RETRY_INTERVAL_MS;
      this.noteFailure(known, error as NodeJS.ErrnoException);
      return false;
    }
    if (known.failing) this.log('info', 'endpoint name resolves again', { name: key });
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

function distinct(queries: readonly Query[]): Query[] {
  return [...new Map(queries.map((query) => [queryKey(query), query])).values()];
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
