// How often the machine takes a core away: `stalls.ts SECONDS` reads the clock over and over and prints what was missing.
//
// A program that does nothing else is stopped only by interrupts, by other programs, and by the hypervisor, which does not
// have to count it as steal. Latencies at p99 cannot be better than this: with 1,000 requests a second of half a
// millisecond each, ten stops a second of a millisecond are the whole hundredth.

import { runCommand } from './processes.ts';

/** Stops of a core, on average. */
export interface Stalls {
  /** Stops of more than 0.3 ms, a second. */
  overThirdPerSecond: number;
  /** Stops of more than 1 ms, a second. */
  overOnePerSecond: number;
  /** Share of the time that was lost in both. */
  lost: number;
  longestMs: number;
}

const SHORT_NS = 300_000n;
const LONG_NS = 1_000_000n;

/** Watches a core for that long; null: it could not be measured. */
export async function measureStalls(core: number, seconds: number): Promise<Stalls | null> {
  const { code, stdout } = await runCommand(process.execPath, [import.meta.filename, String(seconds)], { core });
  return code === 0 ? (JSON.parse(stdout) as Stalls) : null;
}

/** A line of a report. */
export function describeStalls(core: number, stalls: Stalls | null): string {
  if (stalls === null) return `- Stops of core ${core}: not measured`;
  const { overThirdPerSecond, overOnePerSecond, lost, longestMs } = stalls;
  const rates = `${overThirdPerSecond.toFixed(0)} times a second for more than 0.3 ms, ${overOnePerSecond.toFixed(1)} for more than 1 ms`;
  return `- A program that only reads the clock on core ${core} was stopped ${rates}; longest ${longestMs.toFixed(1)} ms, ${(lost * 100).toFixed(1)} % of the time`;
}

/** Reads the clock until the time is over. */
function watch(seconds: number): Stalls {
  const startNs = process.hrtime.bigint();
  const endNs = startNs + BigInt(seconds * 1e9);
  const found = { short: 0, long: 0, lostNs: 0n, longestNs: 0n };
  for (let last = startNs; last < endNs; ) {
    const now = process.hrtime.bigint();
    const gap = now - last;
    last = now;
    if (gap <= SHORT_NS) continue;
    found.short++;
    if (gap > LONG_NS) found.long++;
    found.lostNs += gap;
    if (gap > found.longestNs) found.longestNs = gap;
  }
  return {
    overThirdPerSecond: found.short / seconds,
    overOnePerSecond: found.long / seconds,
    lost: Number(found.lostNs) / 1e9 / seconds,
    longestMs: Number(found.longestNs) / 1e6,
  };
}

if (import.meta.main) console.log(JSON.stringify(watch(Number(process.argv[2]))));
