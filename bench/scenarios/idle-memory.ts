// Resident memory of an idle kept-alive connection.

import { bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import { ClientConnection } from '../lib/client.ts';
import type { BenchContext, RunningProxy } from '../lib/context.ts';
import { residentBytes } from '../lib/cpu.ts';
import { descriptorsMax } from '../lib/machine.ts';
import { pause } from '../lib/processes.ts';
import { atMost, grouped } from '../lib/report.ts';
import { measureEachPeer } from './each-peer.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS_WANTED = 10_000;
const CONCURRENCY = 64;
const WARM_REQUESTS = 6400;
const SETTLE_MS = 1000;
const BYTES_MAX = 2048;

interface Measured {
  connections: number;
  baselineBytes: number;
  bytesPerConnection: number;
  /** Connections that the proxy closed before the end. */
  closed: number;
}

/** Opens thousands of connections, one request each, and looks at what they hold. */
export const idleMemory: Scenario = {
  name: 'idle-memory',
  title: 'Memory of an idle connection',
  description: `After ${WARM_REQUESTS} requests to warm up, connections are opened (${CONNECTIONS_WANTED.toLocaleString('en-US')}, or as many as the descriptor limit allows; 2,000 in a quick run), each makes one request and stays. The growth of resident memory of the process tree is divided by their number. Kernel memory of sockets is not in it.`,
  async run(context: BenchContext) {
    const measured = await measureEachPeer(
      context,
      {},
      (peer) => peer.features.production,
      (proxy) => measure(context, proxy),
    );
    return {
      table: {
        columns: ['proxy', 'connections', 'baseline MiB', 'bytes/connection', 'closed early'],
        rows: [...measured].map(([name, result]) => [
          name,
          grouped(result.connections),
          (result.baselineBytes / 2 ** 20).toFixed(1),
          grouped(result.bytesPerConnection),
          String(result.closed),
        ]),
      },
      targets: [
        atMost(
          'resident memory of an idle connection',
          measured.get('portcullis')?.bytesPerConnection ?? null,
          BYTES_MAX,
          ' bytes',
        ),
      ],
    };
  },
};

async function measure(context: BenchContext, proxy: RunningProxy): Promise<Measured> {
  const { pid } = proxy.started.process;
  const warm = await open(proxy.port, CONCURRENCY, WARM_REQUESTS / CONCURRENCY);
  for (const connection of warm) connection.destroy();
  await pause(SETTLE_MS);
  const baselineBytes = residentBytes(pid);
  const wanted = context.options.quick ? 2000 : CONNECTIONS_WANTED;
  // HAProxy keeps two descriptors ready for each connection, hence not half of the limit.
  const connections = Math.min(wanted, Math.floor(descriptorsMax() * 0.4));
  const idle = await open(proxy.port, connections, 1);
  await pause(SETTLE_MS);
  const grownBytes = residentBytes(pid) - baselineBytes;
  const closed = idle.filter((connection) => connection.closed).length;
  for (const connection of idle) connection.destroy();
  if (closed > 0) context.problem(`${proxy.name} closed ${closed} of ${connections} idle connections`);
  return { connections, baselineBytes, bytesPerConnection: grownBytes / connections, closed };
}

/** Opens `count` connections, CONCURRENCY at a time, each with `requests` requests; leaves them open. */
async function open(port: number, count: number, requests: number): Promise<ClientConnection[]> {
  const opened: ClientConnection[] = [];
  let started = 0;
  const one = async () => {
    while (started < count) {
      started++;
      const connection = await ClientConnection.connect(port);
      opened.push(connection);
      for (let i = 0; i < requests; i++) {
        const { status } = await connection.get(bodyPath(SMALL_BODY_BYTES), 'localhost');
        if (status !== 200) throw new Error(`connection ${started} was answered with status ${status}`);
      }
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, one));
  return opened;
}
