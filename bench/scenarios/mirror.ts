// What mirroring costs: latency where there is room for the copies, and CPU time.

import type { LoadSummary } from '../lib/load.ts';
import { atMost, find } from '../lib/report.ts';
import { featureScenario } from './feature.ts';
import type { Scenario } from './scenario.ts';

/** A mirror must not be felt at p99; two equal proxies differ by more. */
const P99_RATIO_MAX = 1.1;

/** Latency below saturation, and CPU under full load. */
export const mirror: readonly Scenario[] = [
  featureScenario({
    name: 'mirror',
    title: 'Mirroring, latency',
    what: `Every request is also sent to a mirror, a backend of its own that runs only where nobody else wants the core, as if it were on another machine. About 2,000 requests a second, whatever the proxy does: both cores are idle most of the time, so that a copy can make a request late only by being in its way, not by taking the core that it needs. "again" has no mirror: the difference to it is chance.`,
    sets: ['mirror-elsewhere'],
    again: true,
    connections: 16,
    pauseMs: 8,
    shortRounds: 15,
    targets: (summaries) => [atMost('p99 with mirror ÷ without', p99Ratio(summaries), P99_RATIO_MAX)],
  }),
  featureScenario({
    name: 'mirror-load',
    title: 'Mirroring, full load',
    what: `Every request is also sent to a mirror, which is the same backend. Proxy and backend have twice the requests to send and to answer, so this is about CPU time; latencies are those of cores that are full.`,
    sets: ['mirror'],
  }),
];

/** p99 with the mirror over the mean of the two without; null when one is missing. */
function p99Ratio(summaries: readonly LoadSummary[]): number | null {
  const above = find(summaries, 'portcullis, mirror-elsewhere');
  const below = find(summaries, 'portcullis');
  const again = find(summaries, 'portcullis, again');
  if (above === null || below === null || again === null) return null;
  return (2 * above.latencyP99Us) / (below.latencyP99Us + again.latencyP99Us);
}
