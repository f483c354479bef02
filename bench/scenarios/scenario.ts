// What a scenario is, and the small load scenarios' common form.

import type { BenchContext, ProxyWish } from '../lib/context.ts';
import { type Load, type LoadSummary, measureLoad } from '../lib/load.ts';
import { loadTable, type ScenarioResult, type Target } from '../lib/report.ts';
import type { Peer } from '../peers/peer.ts';

/** What a scenario measures; the runner adds name, title and problems. */
export type Measurements = Pick<ScenarioResult, 'table' | 'targets'>;

/** One thing to measure. */
export interface Scenario {
  /** Name for --only. */
  name: string;
  title: string;
  /** What is done, for the results. */
  description: string;
  run(context: BenchContext): Promise<Measurements>;
}

/** A plain load. */
export interface LoadScenario {
  name: string;
  title: string;
  description: string;
  /** How the proxies run; default: the ordinary fleet, with the backend that suits the load. */
  wish?: ProxyWish;
  /** Which peers take part; default: all. */
  fits?(peer: Peer): boolean;
  load: Load;
  /** Whether CPU for 10^9 bytes is a figure of interest. */
  perGb: boolean;
  targets(summaries: readonly LoadSummary[]): Target[];
}

/** Makes a scenario of a plain load. */
export function loadScenario(plan: LoadScenario): Scenario {
  return {
    name: plan.name,
    title: plan.title,
    description: plan.description,
    async run(context) {
      const backend = plan.load.kind === 'upload' ? context.uploadBackend : context.options.backend;
      const proxies = await context.fleet([{ backend, ...plan.wish }], plan.fits);
      const summaries = await measureLoad(context, proxies, plan.load);
      return { table: loadTable(summaries, plan.perGb), targets: plan.targets(summaries) };
    },
  };
}
