// DNS names of endpoints: looked up when a configuration is loaded, and again in the background.
//
// A failed lookup never takes a working answer away: the last good one is kept, and the change of
// state is logged once. Owned by the control thread.
// Invariant: the addresses of a name are sorted and distinct, so equal answers compare equal.

import { lookup as systemLookup } from 'node:dns/promises';
import type { Log } from '../core/workers/log.ts';

/** Time between two lookups of the same name. */
const REFRESH_INTERVAL_MS = 30_000;
/** Time until the next lookup when some name has no answer at all. */
const RETRY_INTERVAL_MS = 5_000;
/** Longest wait for one lookup; a resolver that is down must not hold up a start or a reload. */
const LOOKUP_TIMEOUT_MS = 5_000;

/** All IP addresses of a name; rejects when there is no answer. */
export type Lookup = (name: string) => Promise<string[]>;

/** The system's resolver (hosts file, then DNS), both address families. */
export const lookupBySystem: Lookup = async (name) => {
  const answers = await systemLookup(name, { all: true, order: 'verbatim' });
  return answers.map(({ address }) => address);
};

/** Last answers of the names that the running configuration uses. */
export class EndpointResolver {
  private readonly lookup: Lookup;
  private readonly log: Log;
  private readonly onChange: () => void;
  private names: readonly string[] = [];
  private readonly answers = new Map<string, string[]>();
  private readonly failing = new Set<string>();
  private timer: NodeJS.Timeout | undefined;
  private closed = false;

  /** `onChange` is called after a background lookup found other addresses for a watched name. */
  constructor(lookup: Lookup, log: Log, onChange: () => void) {
    this.lookup = lookup;
    this.log = log;
    this.onChange = onChange;
  }

  /** Looks all names up now; names without any answer are absent from the result. */
  async resolve(names: readonly string[]): Promise<Map<string, string[]>> {
    await Promise.all(names.map((name) => this.refresh(name)));
    return this.lastAnswers(names);
  }

  /** Last good answers, without a lookup. */
  lastAnswers(names: readonly string[]): Map<string, string[]> {
    const result = new Map<string, string[]>();
    for (const name of names) {
      const answer = this.answers.get(name);
      if (answer !== undefined) result.set(name, answer);
    }
    return result;
  }

  /** Keeps these names fresh from now on, and forgets all others. */
  watch(names: readonly string[]): void {
    this.names = names;
    for (const known of [...this.answers.keys(), ...this.failing]) {
      if (names.includes(known)) continue;
      this.answers.delete(known);
      this.failing.delete(known);
    }
    this.schedule();
  }

  /** Stops all lookups. */
  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
  }

  private schedule(): void {
    clearTimeout(this.timer);
    if (this.closed || this.names.length === 0) return;
    const unanswered = this.names.some((name) => !this.answers.has(name));
    this.timer = setTimeout(() => this.refreshAll(), unanswered ? RETRY_INTERVAL_MS : REFRESH_INTERVAL_MS);
    this.timer.unref();
  }

  private async refreshAll(): Promise<void> {
    const names = this.names;
    const changed = await Promise.all(names.map((name) => this.refresh(name)));
    // A reload meanwhile has its own lookups and its own timer.
    if (this.closed || names !== this.names) return;
    if (changed.includes(true)) this.onChange();
    this.schedule();
  }

  /** Looks one name up; whether its addresses are other ones than before. */
  private async refresh(name: string): Promise<boolean> {
    let answer: string[];
    try {
      answer = [...new Set(await withTimeout(this.lookup(name), LOOKUP_TIMEOUT_MS))].sort();
      if (answer.length === 0) throw new Error('no addresses');
    } catch (error) {
      this.noteFailure(name, error as NodeJS.ErrnoException);
      return false;
    }
    if (this.failing.delete(name)) this.log('info', 'endpoint name resolves again', { name });
    const before = this.answers.get(name);
    this.answers.set(name, answer);
    return before === undefined || before.join() !== answer.join();
  }

  private noteFailure(name: string, error: NodeJS.ErrnoException): void {
    if (this.failing.has(name)) return;
    this.failing.add(name);
    const known = this.answers.has(name);
    this.log('warn', 'endpoint name does not resolve', {
      name,
      error: error.code ?? error.message,
      consequence: known ? 'its last addresses stay in use' : 'the backend has no such endpoint for now',
    });
  }
}

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
