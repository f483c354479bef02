// Ten backends, one of them in trouble: what the slowest requests of each policy and proxy take.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext, ProxyWish, RunningProxy } from '../lib/context.ts';
import { type LoadSummary, measureLoad } from '../lib/load.ts';
import { atMost, loadTable, type Target } from '../lib/report.ts';
import { SLOW_MS } from '../lib/slow-server.ts';
import type { Balance } from '../peers/peer.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS = 32;

/** p99 over ten backends, one of them slow. */
export const slowBackend: Scenario = {
  name: 'slow-backend',
  title: 'Ten backends, one slow',
  description: `${CONNECTIONS} kept-alive connections, answers of ${SMALL_BODY_BYTES} bytes, from nine backends at once and from one ${SLOW_MS} ms late. LeastRequest is least_conn in nginx and leastconn in HAProxy.`,
  async run(context: BenchContext) {
    const proxies: RunningProxy[] = [];
    try {
      for (const peer of context.peers) {
        if (!peer.features.balancing) continue;
        const policies: Balance[] = ['RoundRobin', 'LeastRequest'];
        if (peer.name === 'portcullis') policies.push('PeakEWMA');
        for (const balance of policies) {
          const wish: ProxyWish = { backends: 'ten-one-slow', balance, variant: balance };
          proxies.push(await context.startProxy(peer, wish));
        }
      }
      const load = { kind: 'get', connections: CONNECTIONS, bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0 } as const;
      const summaries = await measureLoad(context, proxies, { ...load, pinned: true });
      return { table: loadTable(summaries), targets: targets(summaries) };
    } finally {
      await Promise.all(proxies.map((proxy) => proxy.started.process.stop()));
    }
  },
};

function targets(summaries: readonly LoadSummary[]): Target[] {
  const best = (own: boolean) => {
    const those = summaries.filter(({ peerName }) => (peerName === 'portcullis') === own);
    return those.length === 0 ? null : Math.min(...those.map(({ latencyP99Us }) => latencyP99Us));
  };
  const peers = best(false);
  return peers === null ? [] : [atMost("p99 of the best policy against the best peer's", best(true), peers, ' µs')];
}
