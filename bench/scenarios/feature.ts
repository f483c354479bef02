// What scenarios of traffic features have in common: Portcullis without any and with each of some
// features, side by side under the same requests.

import { askWhole, type WholeAnswer } from '../lib/ask.ts';
import { bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext, ProxyWish, RunningProxy } from '../lib/context.ts';
import { type LoadSummary, measureLoad } from '../lib/load.ts';
import { featureTable, type Target } from '../lib/report.ts';
import type { TrafficSet } from '../lib/traffic.ts';
import type { Scenario } from './scenario.ts';

/** One comparison. */
export interface FeatureScenario {
  /** Added to `traffic-`. */
  name: string;
  title: string;
  /** What the features do to the requests, in a sentence or two. */
  what: string;
  /** Each is measured on a proxy of its own, beside one without. */
  sets: readonly TrafficSet[];
  /** Whether a second proxy without any is measured, which shows by how much two equal ones differ. */
  again?: boolean;
  /** Default: DEFAULT_CONNECTIONS. */
  connections?: number;
  /** Mean pause of each connection between an answer and its next request; default: none. */
  pauseMs?: number;
  /** See `Load`. */
  shortRounds?: number;
  /** Default: one address of the backend. */
  backends?: 'nine';
  /** Fields of the requests of all proxies beside a browser's; may ask the proxies. */
  headers?(proxies: readonly RunningProxy[]): Promise<Record<string, string>>;
  /** Whether one answer to such a request shows the set at work; default: it cannot be seen in answers. */
  shows?(answer: WholeAnswer, set: TrafficSet): boolean;
  targets?(summaries: readonly LoadSummary[]): Target[];
}

const DEFAULT_CONNECTIONS = 64;

/** Makes a scenario of it. */
export function featureScenario(plan: FeatureScenario): Scenario {
  const { connections = DEFAULT_CONNECTIONS, pauseMs = 0 } = plan;
  const pace = pauseMs === 0 ? '' : ` with pauses of ${pauseMs} ms on average`;
  const endpoints = plan.backends === 'nine' ? ' from nine endpoints' : '';
  return {
    name: `traffic-${plan.name}`,
    title: plan.title,
    description: `${connections} kept-alive connections${pace}, answers of ${SMALL_BODY_BYTES} bytes${endpoints}. ${plan.what}`,
    async run(context) {
      const common: ProxyWish = plan.backends === undefined ? {} : { backends: plan.backends };
      const wishes = [common, ...plan.sets.map((set): ProxyWish => ({ ...common, traffic: set, variant: set }))];
      if (plan.again) wishes.push({ ...common, variant: 'again' });
      const proxies = await context.fleet(wishes, ({ name }) => name === 'portcullis');
      const headers = (await plan.headers?.(proxies)) ?? {};
      await checkWork(context, proxies, plan, headers);
      const { shortRounds } = plan;
      const load = { kind: 'get', bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0, pinned: true, shortRounds } as const;
      const summaries = await measureLoad(context, proxies, { ...load, connections, headers, pauseMs });
      return { table: featureTable(summaries), targets: plan.targets?.(summaries) ?? [] };
    },
  };
}

/** The proxy of a set; undefined when it did not start. */
export function withSet(proxies: readonly RunningProxy[], set: TrafficSet): RunningProxy | undefined {
  return proxies.find(({ name }) => name === `portcullis, ${set}`);
}

/** Makes a feature that is not seen to work a problem: its figures would be those of nothing. */
async function checkWork(
  context: BenchContext,
  proxies: readonly RunningProxy[],
  { sets, shows }: FeatureScenario,
  headers: Readonly<Record<string, string>>,
): Promise<void> {
  if (shows === undefined) return;
  for (const set of sets) {
    const proxy = withSet(proxies, set);
    if (proxy === undefined) continue;
    const answer = await askWhole(proxy.port, bodyPath(SMALL_BODY_BYTES), headers);
    if (!shows(answer, set)) context.problem(`${proxy.name}: its answers do not show the feature at work`);
  }
}
