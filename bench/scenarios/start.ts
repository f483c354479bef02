// From starting the process to the first answer with status 200.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext } from '../lib/context.ts';
import { atMost } from '../lib/report.ts';
import { median } from '../lib/stats.ts';
import type { Scenario } from './scenario.ts';

const TIME_MAX_MS = 500;

/** Starts each proxy again and again, interleaved. */
export const start: Scenario = {
  name: 'start',
  title: 'Start',
  description: `Time from starting the process until a request through it to the backend (${SMALL_BODY_BYTES} bytes) gets its first 200; asked every 2 ms on a new connection. One route, one worker, not pinned.`,
  async run(context: BenchContext) {
    await context.stopFleet();
    const times = new Map<string, number[]>();
    const starts = context.options.quick ? 1 : context.options.rounds * 2;
    for (let i = 0; i < starts; i++) {
      for (const peer of context.peers) {
        try {
          const proxy = await context.startProxy(peer, { pinned: false });
          const { process } = proxy.started;
          times.set(peer.name, [...(times.get(peer.name) ?? []), proxy.servingAtMs - process.startedAtMs]);
          await process.stop();
        } catch (error) {
          context.problem(`${peer.name}: ${error instanceof Error ? error.message : error}`);
        }
      }
    }
    return {
      table: {
        columns: ['proxy', 'median ms', 'slowest ms', 'starts'],
        rows: [...times].map(([name, values]) => [
          name,
          median(values).toFixed(0),
          Math.max(...values).toFixed(0),
          String(values.length),
        ]),
      },
      targets: [atMost('start to first 200', median(times.get('portcullis') ?? []), TIME_MAX_MS, ' ms')],
    };
  },
};
