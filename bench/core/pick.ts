// Time of one pick by policy and number of endpoints, and of making a view after a change of health.
//
// scripts/node bench/core/pick.ts
// Requests are counted as being in progress for a while, so that LeastRequest and PeakEWMA have something to compare.

import { Exchange } from '../../core/exchange/exchange.ts';
import { Balancer } from '../../core/lb/balancer.ts';
import { createNodeState, EndpointWord, NodeState } from '../../core/lb/node-state.ts';
import { type BalancerPolicy, defaultBalancer } from '../../core/lb/settings.ts';
import { noBackendPolicy, noEndpointPolicy } from '../../core/workers/policies.ts';
import type { BackendSettings } from '../../core/workers/snapshot.ts';

const POLICIES: BalancerPolicy[] = ['RoundRobin', 'LeastRequest', 'Random', 'RingHash', 'Maglev', 'PeakEWMA'];
const SIZES = [10, 1000, 10_000];
const PICKS = 500_000;
/** Requests in progress at a time. */
const IN_PROGRESS = 256;

let state = 0x2545f491;
const random = {
  next(): number {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state;
  },
};
const clock = { nowMs: 1000 };

function backendOf(count: number, policy: BalancerPolicy, weighted: boolean): BackendSettings {
  return {
    name: 'b',
    slot: 0,
    endpoints: Array.from({ length: count }, (_, slot) => {
      const host = `10.${slot >> 16}.${(slot >> 8) & 255}.${slot & 255}`;
      const weight = weighted ? 1 + (slot % 5) : 1;
      return { address: `${host}:80`, host, port: 80, weight, slot, policy: noEndpointPolicy, identity: null };
    }),
    policy: { ...noBackendPolicy, balancer: { ...defaultBalancer, policy } },
    connectTimeoutMs: 1000,
    idleTimeoutMs: 1000,
    idleConnectionsMax: 1,
    originalDestination: null,
    sameProtocol: false,
    requestsPerConnectionMax: 0,
    protocol: 'http/1.1',
    tls: null,
    tunnel: null,
    proxyProtocol: 0,
    http2: { streamsPerConnectionMax: 100, connectionsMax: 4, pingIntervalMs: 0, pingTimeoutMs: 1000 },
  };
}

/** Nanoseconds of a pick, and milliseconds of making the view. */
function measure(count: number, policy: BalancerPolicy, weighted: boolean): { pickNs: number; viewMs: number } {
  const node = new NodeState(createNodeState(1, count, 1), 0);
  const balancer = new Balancer(backendOf(count, policy, weighted), { node, random, clock, log: () => {} });
  const exchange = new Exchange();
  const { words } = node;
  for (let i = 0; i < count; i++) words[i * EndpointWord.WORDS + EndpointWord.LATENCY_US] = 1000 + (i % 100);
  const busy = new Int32Array(IN_PROGRESS).fill(-1);
  exchange.hashed = policy === 'RingHash' || policy === 'Maglev';
  const run = (picks: number): void => {
    for (let i = 0; i < picks; i++) {
      exchange.hash = random.next();
      const endpoint = balancer.pick(exchange);
      const place = i % IN_PROGRESS;
      if (busy[place]! >= 0) words[busy[place]! * EndpointWord.WORDS]!--;
      words[endpoint * EndpointWord.WORDS]!++;
      busy[place] = endpoint;
    }
  };
  balancer.pick(exchange);
  node.changed(0);
  clock.nowMs += 60_000;
  const viewStart = performance.now();
  balancer.pick(exchange);
  const viewMs = performance.now() - viewStart;
  run(PICKS / 10);
  const start = performance.now();
  run(PICKS);
  return { pickNs: ((performance.now() - start) * 1e6) / PICKS, viewMs };
}

console.log(`policy                  ${SIZES.map((size) => `${size} endpoints`.padStart(22)).join('')}`);
for (const policy of POLICIES) {
  for (const weighted of [false, true]) {
    const cells = SIZES.map((size) => {
      const { pickNs, viewMs } = measure(size, policy, weighted);
      return `${pickNs.toFixed(0)} ns, view ${viewMs.toFixed(2)} ms`.padStart(22);
    });
    console.log(`${`${policy}${weighted ? ', weighted' : ''}`.padEnd(24)}${cells.join('')}`);
  }
}
