// 10,000 routes against one: what finding the route costs.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext } from '../lib/context.ts';
import { measureLoad } from '../lib/load.ts';
import { atMost, loadTable, ratio } from '../lib/report.ts';
import { ROUTE_HOSTS, ROUTE_PREFIXES } from '../lib/routes.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS = 64;
const ONE = '1 route';
const MANY = `${(ROUTE_HOSTS * ROUTE_PREFIXES).toLocaleString('en-US')} routes`;
const CPU_RATIO_MAX = 1.1;

/** One route and 10,000 side by side, the same requests to both. */
export const manyRoutes: Scenario = {
  name: 'routes-10k',
  title: MANY,
  description: `${CONNECTIONS} kept-alive connections, answers of ${SMALL_BODY_BYTES} bytes; the requests visit ${ROUTE_HOSTS} hostnames with ${ROUTE_PREFIXES} path prefixes each in a scattered order. Each proxy runs twice: with one route for everything, and with a route for each of them.`,
  async run(context: BenchContext) {
    const wishes = [
      { routes: 'one', variant: ONE },
      { routes: 'many', variant: MANY },
    ] as const;
    const proxies = await context.fleet(wishes, (peer) => peer.features.manyRoutes);
    const summaries = await measureLoad(context, proxies, {
      kind: 'routes',
      connections: CONNECTIONS,
      bodyBytes: SMALL_BODY_BYTES,
      uploadBytes: 0,
      pinned: true,
    });
    const table = loadTable(summaries);
    // Here each proxy is compared with itself.
    table.columns[table.columns.length - 1] = 'many ÷ one';
    summaries.forEach((summary, index) => {
      const many = summary.name === `${summary.peerName}, ${MANY}`;
      const relative = many ? ratio(summaries, summary.name, `${summary.peerName}, ${ONE}`) : null;
      table.rows[index][table.columns.length - 1] = relative === null ? '-' : relative.toFixed(2);
    });
    const ours = ratio(summaries, `portcullis, ${MANY}`, `portcullis, ${ONE}`);
    return { table, targets: [atMost('CPU per request ÷ one route', ours, CPU_RATIO_MAX)] };
  },
};
