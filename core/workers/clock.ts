// The clock of the control thread that agrees with the reactors of all workers (Kernel.nowMs).
//
// `performance.now()` counts from the start of each thread and must not be compared across them.

/** Time of CLOCK_MONOTONIC in milliseconds, with fractions. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
