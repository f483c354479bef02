// Tasks of the control thread that must not overlap: loads, address changes, the end.
// Owned by the control thread.

/** Runs asynchronous tasks one after another, in the order of `run`. */
export class SerialQueue {
  private last: Promise<unknown> = Promise.resolve();

  /** Runs the task after all earlier ones; resolves or rejects as the task does. */
  run<T>(task: () => Promise<T>): Promise<T> {
    const next = this.last.then(task);
    // The caller sees a failure; the tasks behind it go on.
    this.last = next.catch(() => {});
    return next;
  }
}
