// Names of workloads and services that a node proxy asks the control plane for, and which of them have been answered.
//
//   ask --> queued --question--> under way --answer--> answered, and kept up to date until it is released
//
// An answer may come in several responses, and a response that was on its way before the question may have a part of it
// by chance: a service without its endpoints would look like one that has none. So every question ends with a name that
// nothing can have, and is answered when that has been reported as removed and no response is to follow. One question is
// under way at a time; what is asked meanwhile makes the next. A control plane that is cut off from its source says
// nothing of a name that it does not know: that name waits on, for what is said later.
// That nothing has a name is so for as long as the control plane would tell otherwise. Without it that is believed for
// some time only: something may have come to have the name. A control plane that is there and cut off from its source ends
// every stream after a while (xdsServerOptions), and has nothing to say of the name on the next one.
// Control thread of the node proxy. Spec: xDS, incremental variant.

/** A name that nothing has: no namespace has a dot in it, and an address no such letters. */
const BARRIER = 'portcullis.dev/barrier';

/**
 * How long it is believed without the control plane that nothing has a name, from when that was last known. An address
 * that has become a member's meanwhile is spoken to in plain text for so long at most, and for as long as a stream lasts
 * (35 minutes at most) when the control plane is there and cut off. As long as a workload's certificate lives
 * (`ca.certificateLifetime`): a node that has not been told anything for this time has nothing left to speak to members
 * with, and nobody should speak past them.
 */
export const ABSENCE_AGE_MAX_MS = 24 * 60 * 60_000;

/** A saved time may be so much later than now, as clocks are set; of one that is more so the age is not known. */
const CLOCK_SLACK_MS = 5 * 60_000;

/** Instead of a time: the control plane would tell. */
const KEPT_UP = Number.POSITIVE_INFINITY;

/** How a name was answered; `deadline`: it was not in time. */
export type Answer = 'answered' | 'deadline';

/** Subscribes to names. */
export type Subscribe = (names: readonly string[]) => void;

/** The names of one client. */
export class Lookups {
  private readonly subscribe: Subscribe;
  /** All names that are to be subscribed to; those with `true` have been answered. */
  private readonly names = new Map<string, boolean>();
  /**
   * Those of them that the control plane has said nothing has, and until when (milliseconds since 1970) it would have
   * told otherwise. Something may have come to have them since.
   */
  private readonly absent = new Map<string, number>();
  /** Those of them that something has which cannot be used. */
  private readonly unusable = new Set<string>();
  /** Names of questions that have ended without a word about them. */
  private readonly unsaid = new Set<string>();
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

  /**
   * Takes in what an earlier process had answers to: names that something has, and those that nothing has with the time
   * (milliseconds since 1970) until which the control plane would have told otherwise; old ones are passed over.
   */
  load(there: readonly string[], absent: ReadonlyMap<string, number>, nowMs: number): void {
    for (const name of there) this.names.set(name, true);
    for (const [name, confirmedMs] of absent) {
      if (isOld(confirmedMs, nowMs)) continue;
      this.names.set(name, true);
      this.absent.set(name, confirmedMs);
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
    for (const name of names) if (this.names.has(name)) this.unusable.add(name);
    return names.filter((name) => this.absent.delete(name));
  }

  /** Until when the control plane would have told if something had come to have a name that nothing had. */
  confirmedMs(name: string, nowMs: number): number {
    return Math.min(this.absent.get(name) ?? 0, nowMs);
  }

  /** Whether the control plane keeps it up to date that nothing has certain names. */
  get keepsAbsences(): boolean {
    return this.absent.values().some((confirmedMs) => confirmedMs === KEPT_UP);
  }

  /** Names of which it is not to be believed any more that nothing has them. Whoever uses them gives them up. */
  oldAbsences(nowMs: number): string[] {
    return [...this.absent].flatMap(([name, confirmedMs]) => (isOld(confirmedMs, nowMs) ? name : []));
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
    for (const name of names) {
      this.absent.delete(name);
      this.unusable.delete(name);
      this.unsaid.delete(name);
    }
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
  lost(nowMs: number): void {
    this.connected = false;
    this.underWay = null;
    this.unsaid.clear();
    for (const [name, confirmedMs] of this.absent) if (confirmedMs === KEPT_UP) this.absent.set(name, nowMs);
  }

  /**
   * A response has been taken in: what it has removed, and whether it is the last of several; `isThere`: something is
   * known that has the name. Returns the names that are answered by that.
   */
  received(removed: readonly string[], isLast: boolean, isThere: (name: string) => boolean): string[] {
    for (const name of removed) {
      if (!this.names.has(name)) continue;
      this.absent.set(name, KEPT_UP);
      this.unusable.delete(name);
    }
    this.atBarrier ||= removed.includes(BARRIER);
    if (!isLast) return [];
    const { underWay } = this;
    if (underWay !== null && this.atBarrier) {
      this.underWay = null;
      // What was released and is asked for again waits for its own answer: until then the control plane may take it back.
      for (const name of underWay) {
        if (this.names.get(name) === false && !this.queued.has(name)) this.unsaid.add(name);
      }
    }
    const answered = [...this.unsaid].filter(
      (name) => this.absent.has(name) || this.unusable.has(name) || isThere(name),
    );
    for (const name of answered) {
      this.unsaid.delete(name);
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

function isOld(confirmedMs: number, nowMs: number): boolean {
  if (confirmedMs === KEPT_UP) return false;
  const ageMs = nowMs - confirmedMs;
  return ageMs > ABSENCE_AGE_MAX_MS || ageMs < -CLOCK_SLACK_MS;
}
