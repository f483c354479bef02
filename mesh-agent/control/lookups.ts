// Names of workloads and services that a node proxy asks the control plane for, and which of them have been answered.
//
//   ask --> queued --question--> under way --answer--> answered, and kept up to date until it is released
//
// An answer may come in several responses, and a response that was on its way before the question may have a part of it
// by chance: a service without its endpoints would look like one that has none. So every question ends with a name that
// nothing can have, and is answered when that has been reported as removed and no response is to follow. One question is
// under way at a time; what is asked meanwhile makes the next.
// Control thread of the node proxy. Spec: xDS, incremental variant.

/** A name that nothing has: no namespace has a dot in it, and an address no such letters. */
const BARRIER = 'portcullis.dev/barrier';

/** How a name was answered; `deadline`: it was not in time. */
export type Answer = 'answered' | 'deadline';

/** Subscribes to names. */
export type Subscribe = (names: readonly string[]) => void;

/** The names of one client. */
export class Lookups {
  private readonly subscribe: Subscribe;
  /** All names that are to be subscribed to; those with `true` have been answered. */
  private readonly names = new Map<string, boolean>();
  /** Those of them that the control plane has said nothing has. Something may have come to have them since. */
  private readonly absent = new Set<string>();
  private readonly queued = new Set<string>();
  /** Names of the question under way; null: there is none. */
  private underWay: readonly string[] | null = null;
  /** The name that nothing has has been reported. */
  private atBarrier = false;
  private connected = false;
  private readonly waiting = new Map<string, Set<(answer: Answer) => void>>();

  /** `subscribe` sends a question. */
  constructor(subscribe: Subscribe) {
    this.subscribe = subscribe;
  }

  /** Takes in what an earlier process had answers to; `isThere`: something has the name. */
  load(names: readonly string[], isThere: (name: string) => boolean): void {
    for (const name of names) {
      this.names.set(name, true);
      if (!isThere(name)) this.absent.add(name);
    }
  }

  /** Whether there is an answer to a name, from this process or an earlier one. */
  isAnswered(name: string): boolean {
    return this.names.get(name) === true;
  }

  /** Whether the control plane has said that nothing has a name. It is still so unless something is known that has it. */
  wasAbsent(name: string): boolean {
    return this.absent.has(name);
  }

  /**
   * Something has come to have these names that cannot be used. Returns those of them of which the control plane had said
   * that nothing has them.
   */
  doubt(names: readonly string[]): string[] {
    return names.filter((name) => this.absent.delete(name));
  }

  /** Names with an answer, in the order in which they were asked for. */
  get answered(): string[] {
    return [...this.names.keys()].filter((name) => this.isAnswered(name));
  }

  /** Resolves when a name has been answered, which it may have been already, or after `deadlineMs`. */
  ask(name: string, deadlineMs: number): Promise<Answer> {
    if (this.isAnswered(name)) return Promise.resolve('answered');
    if (!this.names.has(name)) {
      this.names.set(name, false);
      this.queued.add(name);
      this.flush();
    }
    return new Promise((resolve) => {
      const done = (answer: Answer): void => {
        clearTimeout(timer);
        const others = this.waiting.get(name);
        others?.delete(done);
        if (others?.size === 0) this.waiting.delete(name);
        resolve(answer);
      };
      const timer = setTimeout(() => done('deadline'), deadlineMs);
      this.waiting.set(name, (this.waiting.get(name) ?? new Set()).add(done));
    });
  }

  /** These names are not used any more. Returns those of them that the control plane has to be told of. */
  release(names: readonly string[]): string[] {
    for (const name of names) this.absent.delete(name);
    return names.filter((name) => this.names.delete(name) && !this.queued.delete(name) && this.connected);
  }

  /** A stream begins: the names to subscribe to with its first request, which is a question of its own. */
  begin(): string[] {
    this.connected = true;
    this.atBarrier = false;
    this.queued.clear();
    this.underWay = [...this.names.keys()];
    return [...this.underWay, BARRIER];
  }

  /** The stream has ended. What is not answered will be asked for by the next one. */
  lost(): void {
    this.connected = false;
    this.underWay = null;
  }

  /**
   * A response has been taken in: what it has removed, and whether it is the last of several. Returns the names that
   * are answered by that.
   */
  received(removed: readonly string[], isLast: boolean): string[] {
    for (const name of removed) if (this.names.has(name)) this.absent.add(name);
    const { underWay } = this;
    if (underWay === null) return [];
    this.atBarrier ||= removed.includes(BARRIER);
    if (!this.atBarrier || !isLast) return [];
    this.underWay = null;
    // What was released and is asked for again waits for its own answer: until then the control plane may take it back.
    const answered = underWay.filter((name) => this.names.get(name) === false && !this.queued.has(name));
    for (const name of answered) {
      this.names.set(name, true);
      for (const done of [...(this.waiting.get(name) ?? [])]) done('answered');
    }
    this.flush();
    return answered;
  }

  /** The process ends: who still waits is told so. */
  close(): void {
    this.connected = false;
    for (const waiters of [...this.waiting.values()]) for (const done of [...waiters]) done('deadline');
  }

  private flush(): void {
    if (!this.connected || this.underWay !== null || this.queued.size === 0) return;
    this.atBarrier = false;
    this.underWay = [...this.queued];
    this.queued.clear();
    this.subscribe([...this.underWay, BARRIER]);
  }
}
