// 1 to 1,000 kept-alive connections, answers of 128 bytes: the cost of a request.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { LoadSummary } from '../lib/load.ts';
import { atMost, cpuRatio, find, type Target } from '../lib/report.ts';
import { loadScenario, type Scenario } from './scenario.ts';

/** Most CPU for a request, relative to nginx and HAProxy, by number of connections. */
const CPU_RATIO_MAX: Record<number, number> = { 64: 0.8, 256: 0.66, 1000: 0.58 };
/** Most CPU for a request, relative to the C forwarder. */
const LIMIT_RATIO_MAX = 1.2;

/** One scenario for each number of connections. */
export const connections: readonly Scenario[] = [1, 16, 64, 256, 1000].map((count) =>
  loadScenario({
    name: `c${count}`,
    title: count === 1 ? '1 connection' : `${count.toLocaleString('en-US')} connections`,
    description: `${count === 1 ? 'One kept-alive connection' : 'Kept-alive connections'}, request heads of about 350 bytes, answers of ${SMALL_BODY_BYTES} bytes.`,
    load: { kind: 'get', connections: count, bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0, pinned: true },
    perGb: false,
    targets: (summaries) => (count === 1 ? latencyTarget(summaries) : cpuTargets(summaries, count)),
  }),
);

function cpuTargets(summaries: readonly LoadSummary[], count: number): Target[] {
  const most = CPU_RATIO_MAX[count];
  if (most === undefined) return [];
  return [
    atMost('CPU per request ÷ nginx', cpuRatio(summaries, 'nginx'), most),
    atMost('CPU per request ÷ HAProxy', cpuRatio(summaries, 'haproxy'), most),
    atMost('CPU per request ÷ C forwarder', cpuRatio(summaries, 'limit'), LIMIT_RATIO_MAX),
  ];
}

function latencyTarget(summaries: readonly LoadSummary[]): Target[] {
  const ours = find(summaries, 'portcullis');
  const nginx = find(summaries, 'nginx');
  if (nginx === null) return [];
  return [atMost("p50 latency against nginx's", ours?.latencyP50Us ?? null, nginx.latencyP50Us, ' µs')];
}
