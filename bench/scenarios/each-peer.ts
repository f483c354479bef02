// For scenarios that look at one proxy at a time: starts it, measures, stops it, whatever happens.

import type { BenchContext, ProxyWish, RunningProxy } from '../lib/context.ts';
import type { Peer } from '../peers/peer.ts';

/**
 * Calls `measure` with each peer that `fits`, freshly started. A proxy that fails becomes a problem of
 * the run and is left out of the answer.
 */
export async function measureEachPeer<T>(
  context: BenchContext,
  wish: ProxyWish,
  fits: (peer: Peer) => boolean,
  measure: (proxy: RunningProxy) => Promise<T>,
): Promise<Map<string, T>> {
  await context.stopFleet();
  const measured = new Map<string, T>();
  for (const peer of context.peers.filter(fits)) {
    let proxy: RunningProxy | null = null;
    try {
      proxy = await context.startProxy(peer, wish);
      measured.set(peer.name, await measure(proxy));
    } catch (error) {
      context.problem(`${peer.name}: ${error instanceof Error ? error.message : error}`);
    } finally {
      await proxy?.started.process.stop();
    }
  }
  return measured;
}
