// What traffic features cost: all of them in the configuration without work to do, and single ones at
// work, each beside Portcullis without any.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { ProxyWish } from '../lib/context.ts';
import { type LoadSummary, measureLoad } from '../lib/load.ts';
import { atMost, find, loadTable, ratio, type Target } from '../lib/report.ts';
import type { TrafficSet } from '../lib/traffic.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS = 64;
/** CPU per request with all features idle, over that without. */
const IDLE_RATIO_MAX = 1.05;
/** A mirror must not be felt at p99; rounds differ by more than that by themselves. */
const MIRROR_P99_RATIO_MAX = 1.1;

/** With more, proxy and backend are saturated, and twice the requests take twice the time. */
const MIRROR_CONNECTIONS = 2;

const load = { kind: 'get', bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0, pinned: true } as const;

function scenario(
  set: TrafficSet,
  title: string,
  what: string,
  targets: (summaries: readonly LoadSummary[]) => Target[] = () => [],
  connections = CONNECTIONS,
): Scenario {
  return {
    name: `traffic-${set}`,
    title,
    description: `${connections} kept-alive connections, answers of ${SMALL_BODY_BYTES} bytes. ${what}`,
    async run(context) {
      const wishes: ProxyWish[] = [{}, { traffic: set, variant: set }];
      const proxies = await context.fleet(wishes, ({ name }) => name === 'portcullis');
      const summaries = await measureLoad(context, proxies, { ...load, connections });
      return { table: loadTable(summaries), targets: targets(summaries) };
    },
  };
}

/** All scenarios of this file. */
export const traffic: readonly Scenario[] = [
  scenario(
    'idle',
    'All traffic features, idle',
    'The configuration has every traffic feature, none of which has anything to do: retries, circuit breaker, outlier detection, health check, rate limit far away, conditions that do not apply.',
    (summaries) => [
      atMost(
        'CPU per request, features idle ÷ without',
        ratio(summaries, 'portcullis, idle', 'portcullis'),
        IDLE_RATIO_MAX,
      ),
    ],
  ),
  scenario('rate-limit', 'Local rate limit', 'Each request takes a token of a bucket of its own address.'),
  scenario('headers', 'Header modification', 'Two fields are set and one is removed, in requests and in responses.'),
  scenario('retries', 'Retries', 'Retries and a circuit breaker are on; nothing fails.'),
  scenario(
    'mirror',
    'Mirroring',
    'Every request is also sent to a mirror, which is the same backend.',
    (summaries) => [
      atMost(
        'p99 with mirror ÷ without',
        p99Ratio(summaries, 'portcullis, mirror', 'portcullis'),
        MIRROR_P99_RATIO_MAX,
      ),
    ],
    MIRROR_CONNECTIONS,
  ),
];

function p99Ratio(summaries: readonly LoadSummary[], name: string, other: string): number | null {
  const above = find(summaries, name);
  const below = find(summaries, other);
  return above === null || below === null ? null : above.latencyP99Us / below.latencyP99Us;
}
