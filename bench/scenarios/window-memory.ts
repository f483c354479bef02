// Downloads over HTTP/2 to readers that allow a little at a time: what a proxy holds for each of them.

import { BODY_SIZES, bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { BenchContext, RunningProxy } from '../lib/context.ts';
import { residentBytes } from '../lib/cpu.ts';
import { pause } from '../lib/processes.ts';
import { RawHttp2Connection } from '../lib/raw-http2.ts';
import { atMost, grouped } from '../lib/report.ts';
import { measureEachPeer } from './each-peer.ts';
import type { Scenario } from './scenario.ts';

const DOWNLOADS = 32;
const BODY_BYTES = BODY_SIZES[2];
const WINDOW_BYTES = 1024;
/** Between two allowances of a window's worth. */
const ALLOW_MS = 20;
const WARM_REQUESTS = 200;
const SETTLE_MS = 500;
const KIBIBYTE = 1024;
const HELD_MAX_KIB = 256;

/** Many stalling downloads at once; the peak of resident memory for each. */
export const windowMemory: Scenario = {
  name: 'window-memory-h2',
  title: 'HTTP/2 readers with a tiny window',
  description: `${DOWNLOADS} connections with HTTP/2 without TLS download ${grouped(BODY_BYTES / 2 ** 20)} MiB each with a window of ${WINDOW_BYTES} bytes, and allow as much again every ${ALLOW_MS} ms for some seconds (8; 2 in a quick run). Held is the peak of resident memory meanwhile beyond that before (after ${WARM_REQUESTS} small requests), divided by the number of downloads.`,
  async run(context: BenchContext) {
    const measured = await measureEachPeer(
      context,
      { protocol: 'h2' },
      (peer) => peer.features.production && peer.features.http2,
      (proxy) => measure(context, proxy),
    );
    return {
      table: {
        columns: ['proxy', 'KiB held/download'],
        rows: [...measured].map(([name, heldKiB]) => [name, heldKiB.toFixed(1)]),
      },
      targets: [atMost('held for a download', measured.get('portcullis') ?? null, HELD_MAX_KIB, ' KiB')],
    };
  },
};

/** KiB for each download at the peak. */
async function measure(context: BenchContext, proxy: RunningProxy): Promise<number> {
  const { pid } = proxy.started.process;
  const warm = await RawHttp2Connection.connect(proxy.port);
  for (let i = 0; i < WARM_REQUESTS; i++) await warm.get(bodyPath(SMALL_BODY_BYTES), 'localhost');
  warm.destroy();
  await pause(SETTLE_MS);
  const beforeBytes = residentBytes(pid);
  const endMs = performance.now() + (context.options.quick ? 2000 : 8000);
  const downloads: RawHttp2Connection[] = [];
  let peakBytes = beforeBytes;
  let failure: unknown = null;
  try {
    for (let i = 0; i < DOWNLOADS; i++) {
      const download = await RawHttp2Connection.connect(proxy.port, WINDOW_BYTES);
      downloads.push(download);
      // It is not to end; whether it does is looked at below.
      download.get(bodyPath(BODY_BYTES), 'localhost').catch((error) => {
        failure ??= error;
      });
    }
    while (performance.now() < endMs) {
      await pause(ALLOW_MS);
      if (failure !== null) throw failure;
      for (const download of downloads) download.allow(WINDOW_BYTES);
      peakBytes = Math.max(peakBytes, residentBytes(pid));
    }
    const idle = downloads.filter((download) => download.bodyBytes <= WINDOW_BYTES).length;
    if (idle > 0) throw new Error(`${idle} of ${DOWNLOADS} downloads did not go on`);
  } finally {
    for (const download of downloads) download.destroy();
  }
  return (peakBytes - beforeBytes) / DOWNLOADS / KIBIBYTE;
}
