// What compressing responses costs, beside the peers that do it too.

import { gunzipSync } from 'node:zlib';
import { askWhole } from '../lib/ask.ts';
import { JSON_BYTES, JSON_PATH } from '../lib/backend.ts';
import type { BenchContext, RunningProxy } from '../lib/context.ts';
import { type LoadSummary, measureLoad } from '../lib/load.ts';
import { featureTable, grouped, ratio, type Table } from '../lib/report.ts';
import type { Peer } from '../peers/peer.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS = 64;
/** Largest part of the text that a compressed answer may be, its head included; gzip leaves about a fifth. */
const COMPRESSED_MAX_SHARE = 0.5;

/** gzip of JSON at two levels. */
export const compression: Scenario = {
  name: 'traffic-compression',
  title: 'Compression',
  description: `${CONNECTIONS} kept-alive connections, answers of ${JSON_BYTES / 1024} KiB of JSON, always the same. Each proxy as it is, and with gzip at level 1 (HAProxy: libslz, which has no levels) and 6 (Portcullis' default). CPU time is that of all threads. "Portcullis ÷ it" compares the same level; "bytes" is received for each answer, in the round with the most.`,
  async run(context) {
    const proxies: RunningProxy[] = [];
    await context.stopFleet();
    try {
      await startAll(context, proxies);
      const bytesMax = new Map<string, number>();
      const load = { kind: 'get', connections: CONNECTIONS, bodyBytes: JSON_BYTES, path: JSON_PATH } as const;
      const summaries = await measureLoad(
        context,
        proxies,
        { ...load, uploadBytes: 0, pinned: true, compressed: true },
        {
          async after(proxy, { bytesPerRequest }) {
            const { name } = proxy;
            const share = bytesPerRequest / JSON_BYTES;
            if (levelOf(name) === '' ? share < 1 : share > COMPRESSED_MAX_SHARE) {
              context.problem(`${name}: an answer cannot have ${Math.round(bytesPerRequest)} bytes on average`);
            }
            bytesMax.set(name, Math.max(bytesPerRequest, bytesMax.get(name) ?? 0));
          },
        },
      );
      return { table: tableOf(summaries, bytesMax), targets: [] };
    } finally {
      await Promise.all(proxies.map((proxy) => proxy.started.process.stop()));
    }
  },
};

/** Starts every peer that compresses, without and at each of its levels; a failure is a problem. */
async function startAll(context: BenchContext, proxies: RunningProxy[]): Promise<void> {
  for (const peer of context.peers) {
    if (peer.gzipLevels === undefined) continue;
    for (const level of [null, ...peer.gzipLevels]) {
      try {
        proxies.push(await startOne(context, peer, level));
      } catch (error) {
        context.problem(`${peer.name} could not take part: ${error instanceof Error ? error.message : error}`);
      }
    }
  }
}

/** Starts a proxy; rejects unless its answer is the whole text, compressed as wanted. */
async function startOne(context: BenchContext, peer: Peer, level: number | null): Promise<RunningProxy> {
  const gzip = level === null ? {} : { gzipLevel: level, variant: `gzip ${level}` };
  const proxy = await context.startProxy(peer, { backend: 'nginx', ...gzip });
  const { headers, body } = await askWhole(proxy.port, JSON_PATH, { 'accept-encoding': 'gzip' });
  const isGzip = headers['content-encoding'] === 'gzip';
  const textBytes = isGzip ? gunzipSync(body).length : body.length;
  if (isGzip === (level !== null) && textBytes === JSON_BYTES) return proxy;
  await proxy.started.process.stop();
  throw new Error(`${textBytes} bytes of text came ${isGzip ? 'compressed' : 'as they are'}`);
}

function tableOf(summaries: readonly LoadSummary[], bytesMax: ReadonlyMap<string, number>): Table {
  const table = featureTable(summaries);
  table.columns.push('bytes', 'Portcullis ÷ it');
  summaries.forEach(({ name }, index) => {
    const relative = ratio(summaries, `portcullis${levelOf(name)}`, name);
    table.rows[index].push(grouped(bytesMax.get(name) ?? Number.NaN), relative?.toFixed(2) ?? '-');
  });
  return table;
}

/** What follows the proxy's name: `, gzip 6`, or nothing for one that does not compress. */
function levelOf(name: string): string {
  const at = name.indexOf(',');
  return at < 0 ? '' : name.slice(at);
}
