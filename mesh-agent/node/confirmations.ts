// Those who wait until all workers of the node run on what is known by now: what is told to the control plane depends
// on it. One policy that is confirmed and not in force would be a hole.
//
// Control thread of the node proxy.

import type { Reloaded } from '../../gateway/app.ts';

interface Waiter {
  resolve: () => void;
  reject: (error: Error) => void;
}

/** Answers of the packet workers to configurations, for those who wait for them. */
export class Confirmations {
  private waiting: Waiter[] = [];
  /** Those of the configuration that is being made and handed over. */
  private current: Waiter[] = [];
  private last: 'unknown' | 'everywhere' | 'late' | 'refused' = 'unknown';

  /** All workers run on the last configuration that was made. */
  get everywhere(): boolean {
    return this.last === 'everywhere';
  }

  /**
   * Resolves when all workers run on a configuration that was begun after now; rejects with the reason when it is
   * refused. While there are workers that have not switched, neither.
   */
  wait(): Promise<void> {
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  /** A configuration is begun. */
  begin(): void {
    this.current.push(...this.waiting.splice(0));
  }

  /** What became of it. Returns whether all workers run on it, and did not on the one before because it was refused. */
  settle({ applied, errors, late }: Reloaded): { recovered: boolean } {
    const recovered = this.last === 'refused' && applied && late === 0;
    this.last = !applied ? 'refused' : late > 0 ? 'late' : 'everywhere';
    // The next one tells those who wait for a late worker.
    if (this.last === 'late') return { recovered };
    const reason = new Error(`the node proxy cannot use it: ${errors.join('; ')}`);
    for (const { resolve, reject } of this.current.splice(0)) {
      if (applied) resolve();
      else reject(reason);
    }
    return { recovered };
  }

  /** The process ends: nobody is told anything any more, since that is neither a confirmation nor a refusal. */
  forget(): void {
    this.waiting = [];
    this.current = [];
  }
}
