// Two workers against one: whether a second core makes requests dearer.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext } from '../lib/context.ts';
import { measureLoad } from '../lib/load.ts';
import { atMost, loadTable, ratio } from '../lib/report.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS = 256;
const CPU_RATIO_MAX = 1.15;

/** One and two workers side by side, nothing pinned. */
export const workers: Scenario = {
  name: 'workers-2',
  title: '2 workers',
  description: `${CONNECTIONS} kept-alive connections, answers of ${SMALL_BODY_BYTES} bytes, with one worker and with two. Nothing is pinned: proxy, wrk and backend share all cores, so the CPU per request says more here than the rate.`,
  async run(context: BenchContext) {
    const wishes = [1, 2].map((count) => ({ workers: count, pinned: false, variant: variant(count) }));
    const proxies = await context.fleet(wishes, (peer) => peer.features.workers);
    const summaries = await measureLoad(context, proxies, {
      kind: 'get',
      connections: CONNECTIONS,
      bodyBytes: SMALL_BODY_BYTES,
      uploadBytes: 0,
      pinned: false,
    });
    const table = loadTable(summaries);
    table.columns[table.columns.length - 1] = 'two ÷ one';
    summaries.forEach((summary, index) => {
      const two = summary.name === `${summary.peerName}, ${variant(2)}`;
      const relative = two ? ratio(summaries, summary.name, `${summary.peerName}, ${variant(1)}`) : null;
      table.rows[index][table.columns.length - 1] = relative === null ? '-' : relative.toFixed(2);
    });
    const ours = ratio(summaries, `portcullis, ${variant(2)}`, `portcullis, ${variant(1)}`);
    return { table, targets: [atMost('CPU per request ÷ 1 worker', ours, CPU_RATIO_MAX)] };
  },
};

function variant(count: number): string {
  return count === 1 ? '1 worker' : `${count} workers`;
}
