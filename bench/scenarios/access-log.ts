// The cost of a request with the access log on, and whether the log is complete.

import { createReadStream, statSync, truncateSync } from 'node:fs';
import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext, RunningProxy } from '../lib/context.ts';
import { measureLoad } from '../lib/load.ts';
import { pause } from '../lib/processes.ts';
import { atMost, cpuRatio, loadTable } from '../lib/report.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS = 64;
const CPU_RATIO_MAX = 0.85;
/** Least log lines for each request; a run ends with requests that are logged but not counted by wrk. */
const LINES_MIN_SHARE = 0.999;
/** A log that has not grown for this long is taken to be written out. */
const QUIET_MS = 300;
const QUIET_POLLS_MAX = 12;

/** Access log on, 64 connections. */
export const accessLog: Scenario = {
  name: 'access-log',
  title: 'Access log on',
  description: `${CONNECTIONS} kept-alive connections, answers of ${SMALL_BODY_BYTES} bytes, each proxy writing its usual access log to a file: Portcullis and Caddy JSON, nginx "combined", HAProxy "httplog" on stdout, Envoy its default. "Lines" is log lines over requests, the worst round.`,
  async run(context: BenchContext) {
    const proxies = await context.fleet([{ accessLog: true }], (peer) => peer.features.accessLog);
    const lineShares = new Map<string, number>();
    const load = { kind: 'get', connections: CONNECTIONS, bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0 } as const;
    const summaries = await measureLoad(
      context,
      proxies,
      { ...load, pinned: true },
      {
        async before(proxy) {
          await takeLines(proxy);
        },
        async after(proxy, round) {
          const share = (await takeLines(proxy)) / round.requests;
          lineShares.set(proxy.name, Math.min(share, lineShares.get(proxy.name) ?? Number.POSITIVE_INFINITY));
          if (share < LINES_MIN_SHARE) {
            context.problem(`${proxy.name} logged only ${(share * 100).toFixed(2)} % of its requests`);
          }
        },
      },
    );
    const table = loadTable(summaries);
    table.columns.push('lines');
    for (const row of table.rows) row.push((lineShares.get(row[0]) ?? Number.NaN).toFixed(3));
    return {
      table,
      targets: [atMost('CPU per request ÷ nginx, both with log', cpuRatio(summaries, 'nginx'), CPU_RATIO_MAX)],
    };
  },
};

/** Waits until the log has stopped growing, counts its lines and empties it. */
async function takeLines(proxy: RunningProxy): Promise<number> {
  const path = proxy.accessLogPath;
  if (path === null) return 0;
  let bytes = sizeOf(path);
  for (let poll = 0; poll < QUIET_POLLS_MAX; poll++) {
    await pause(QUIET_MS);
    const now = sizeOf(path);
    if (now === bytes) break;
    bytes = now;
  }
  if (bytes === 0) return 0;
  let lines = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, at + 1)) lines++;
  }
  truncateSync(path, 0);
  return lines;
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
