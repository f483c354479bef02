// 64 MiB through a client that reads slowly: whether the proxy buffers what it cannot send.

import { createConnection } from 'node:net';
import { bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import { getOnce } from '../lib/client.ts';
import type { BenchContext, RunningProxy } from '../lib/context.ts';
import { residentBytes } from '../lib/cpu.ts';
import { pause } from '../lib/processes.ts';
import { atMost } from '../lib/report.ts';
import { measureEachPeer } from './each-peer.ts';
import type { Scenario } from './scenario.ts';

const MEBIBYTE = 1_048_576;
const BODY_BYTES = 64 * MEBIBYTE;
const WARM_REQUESTS = 200;
const SAMPLE_MS = 20;
const GROWTH_MAX_MIB = 8;

/** One slow download; the peak of resident memory while it runs. */
export const slowReader: Scenario = {
  name: 'slow-reader',
  title: 'Slow reader',
  description: `A client reads an answer of 64 MiB evenly over some seconds (8; 2 in a quick run), far slower than the backend sends. Growth is the peak of resident memory meanwhile beyond that before, after ${WARM_REQUESTS} small requests.`,
  async run(context: BenchContext) {
    const measured = await measureEachPeer(
      context,
      {},
      (peer) => peer.features.production,
      (proxy) => measure(context, proxy),
    );
    return {
      table: {
        columns: ['proxy', 'growth MiB'],
        rows: [...measured].map(([name, growthMiB]) => [name, growthMiB.toFixed(1)]),
      },
      targets: [atMost('growth', measured.get('portcullis') ?? null, GROWTH_MAX_MIB, ' MiB')],
    };
  },
};

/** Peak growth in MiB. */
async function measure(context: BenchContext, proxy: RunningProxy): Promise<number> {
  const { pid } = proxy.started.process;
  for (let i = 0; i < WARM_REQUESTS; i++) await getOnce(proxy.port, bodyPath(SMALL_BODY_BYTES), 'localhost');
  await pause(200);
  const beforeBytes = residentBytes(pid);
  let peakBytes = beforeBytes;
  const sampler = setInterval(() => {
    peakBytes = Math.max(peakBytes, residentBytes(pid));
  }, SAMPLE_MS);
  try {
    await readSlowly(proxy.port, context.options.quick ? 2000 : 8000);
  } finally {
    clearInterval(sampler);
  }
  return (peakBytes - beforeBytes) / MEBIBYTE;
}

/** Reads the body at a steady rate over `durationMs`; rejects unless all of it arrives. */
function readSlowly(port: number, durationMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ host: '127.0.0.1', port });
    const startMs = performance.now();
    let received = 0;
    let text = '';
    socket.once('error', reject);
    socket.once('close', () => reject(new Error(`the slow answer ended after ${received} of ${BODY_BYTES} bytes`)));
    socket.on('connect', () => socket.write(`GET ${bodyPath(BODY_BYTES)} HTTP/1.1\r\nHost: localhost\r\n\r\n`));
    let headBytes = 0;
    socket.on('data', (chunk: Buffer) => {
      received += chunk.length;
      if (headBytes === 0) {
        text += chunk.toString('latin1');
        const end = text.indexOf('\r\n\r\n');
        if (end < 0) return;
        headBytes = end + 4;
        if (!text.startsWith('HTTP/1.1 200')) reject(new Error(`the slow request got: ${text.slice(0, 60)}`));
      }
      if (received >= headBytes + BODY_BYTES) {
        resolve();
        socket.destroy();
        return;
      }
      const dueMs = startMs + (received / BODY_BYTES) * durationMs;
      const waitMs = dueMs - performance.now();
      if (waitMs < 1) return;
      socket.pause();
      setTimeout(() => socket.resume(), waitMs);
    });
  });
}
