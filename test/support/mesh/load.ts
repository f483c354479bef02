// Constant load from inside a namespace, counting what goes wrong.
//
//   node load.ts '{"url": "http://10.96.0.1/", "lanes": 4, "perConnection": 50}'
//
// Prints a dot on a line of its own for every hundred requests, and the result as JSON after SIGTERM.

import { Agent, request } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import type { LoadResult, LoadSpec } from './apps.ts';

const { url, lanes, perConnection, rate = 0 } = JSON.parse(process.argv[2]!) as LoadSpec;
const startMs = performance.now();
const failures: string[] = [];
const latencies: number[] = [];
let failed = 0;
let running = true;

function ask(agent: Agent): Promise<number> {
  return new Promise((resolve, reject) => {
    const outgoing = request(url, { agent }, (incoming) => {
      incoming.on('error', reject);
      incoming.on('end', () => resolve(incoming.statusCode!));
      incoming.resume();
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

async function lane(): Promise<void> {
  let agent = new Agent({ keepAlive: true, maxSockets: 1 });
  for (let count = 0; running; count++) {
    if (count % perConnection === 0) {
      agent.destroy();
      agent = new Agent({ keepAlive: true, maxSockets: 1 });
    }
    const beginMs = performance.now();
    try {
      const status = await ask(agent);
      if (status !== 200) fail(`status ${status}`);
      else latencies.push(performance.now() - beginMs);
    } catch (error) {
      fail((error as Error).message);
    }
    if ((latencies.length + failed) % 100 === 0) console.log('.');
    if (rate > 0) await delay(Math.max(0, beginMs + (1000 * lanes) / rate - performance.now()));
  }
  agent.destroy();
}

function fail(why: string): void {
  failed++;
  if (failures.length < 20) failures.push(`${why} after ${Math.round(performance.now() - startMs)} ms`);
}

process.on('SIGTERM', () => {
  running = false;
});
await Promise.all(Array.from({ length: lanes }, lane));
latencies.sort((a, b) => a - b);
const at = (share: number): number => latencies[Math.floor((latencies.length - 1) * share)] ?? 0;
const result: LoadResult = { requests: latencies.length + failed, failed, failures, p50Ms: at(0.5), p99Ms: at(0.99) };
console.log(JSON.stringify(result));
