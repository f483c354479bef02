// What the checks of one endpoint have said so far, and what follows from the next one.
//
//   unknown --first result--> healthy <--healthyThreshold good ones / unhealthyThreshold failures--> unhealthy
//
// An answer that says that the endpoint is unhealthy counts at once; only checks without an answer have a
// threshold. Control thread. Semantics: Envoy's health checking.

/** Result of one check. */
export type CheckOutcome =
  /** As it should be. */
  | 'success'
  /** The endpoint says itself that it is not well. */
  | 'refusal'
  /** No answer: not connected, cut off, not understood, not trusted. */
  | 'failure'
  /** No answer in time. */
  | 'timeout';

/** Whether an endpoint is well. */
export type Health = 'unknown' | 'healthy' | 'unhealthy';

/** Checks in a row that change the state. */
export interface Thresholds {
  healthyThreshold: number;
  unhealthyThreshold: number;
}

/** State of one endpoint's checks. */
export class CheckRecord {
  health: Health;
  thresholds: Thresholds;
  /** The next result decides alone. */
  private first: boolean;
  /** Results in a row that speak against the state. */
  private streak = 0;

  /**
   * `health` is what is known from before, by another check. The first result decides alone all the same,
   * unless that would take a healthy endpoint out for one lost check.
   */
  constructor(thresholds: Thresholds, health: Health = 'unknown') {
    this.thresholds = thresholds;
    this.health = health;
    this.first = health !== 'healthy';
  }

  /** Takes a result; whether the state is another one now. */
  note(outcome: CheckOutcome): boolean {
    const good = outcome === 'success';
    const wanted: Health = good ? 'healthy' : 'unhealthy';
    const decides = this.first || outcome === 'refusal';
    this.first = false;
    if (this.health === wanted) {
      this.streak = 0;
      return false;
    }
    const needed = good ? this.thresholds.healthyThreshold : this.thresholds.unhealthyThreshold;
    this.streak++;
    if (!decides && this.streak < needed) return false;
    this.streak = 0;
    this.health = wanted;
    return true;
  }
}
