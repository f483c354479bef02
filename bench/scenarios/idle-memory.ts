// Resident memory of an idle kept-alive connection: HTTP/1.1, HTTP/1.1 over TLS, HTTP/2.

import { bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import { ClientConnection } from '../lib/client.ts';
import type { BenchContext, ProxyWish, RunningProxy } from '../lib/context.ts';
import { residentBytes } from '../lib/cpu.ts';
import { descriptorsMax } from '../lib/machine.ts';
import { pause } from '../lib/processes.ts';
import { RawHttp2Connection } from '../lib/raw-http2.ts';
import { atMost, grouped } from '../lib/report.ts';
import type { PeerFeatures } from '../peers/peer.ts';
import { measureEachPeer } from './each-peer.ts';
import type { Scenario } from './scenario.ts';

const CONNECTIONS_QUICK = 2000;
const CONCURRENCY = 64;
const WARM_REQUESTS = 6400;
const SETTLE_MS = 1000;

interface Measured {
  connections: number;
  baselineBytes: number;
  bytesPerConnection: number;
  /** Connections that the proxy closed before the end. */
  closed: number;
}

/** One kind of connection. */
interface Plan {
  name: string;
  title: string;
  /** What the connections speak. */
  what: string;
  wish: ProxyWish;
  needs: keyof PeerFeatures;
  connections: number;
  bytesMax: number;
}

/** Thousands of connections, one request each, and what they hold. */
export const idleMemory: readonly Scenario[] = [
  scenario({
    name: 'idle-memory',
    title: 'Memory of an idle connection',
    what: 'HTTP/1.1',
    wish: {},
    needs: 'production',
    connections: 10_000,
    bytesMax: 2048,
  }),
  scenario({
    name: 'idle-memory-tls',
    title: 'Memory of an idle TLS connection',
    what: 'HTTP/1.1 over TLS 1.3',
    wish: { tls: true },
    needs: 'tls',
    connections: 2000,
    bytesMax: 20_480,
  }),
  scenario({
    name: 'idle-memory-h2',
    title: 'Memory of an idle HTTP/2 connection',
    what: 'HTTP/2 without TLS',
    wish: { protocol: 'h2' },
    needs: 'http2',
    connections: 10_000,
    bytesMax: 8192,
  }),
];

function scenario(plan: Plan): Scenario {
  return {
    name: plan.name,
    title: plan.title,
    description: `After ${WARM_REQUESTS} requests to warm up, connections with ${plan.what} are opened (${grouped(plan.connections)}, or as many as the descriptor limit allows; at most ${grouped(CONNECTIONS_QUICK)} in a quick run), each makes one request and stays. The growth of resident memory of the process tree is divided by their number. Kernel memory of sockets is not in it.`,
    async run(context: BenchContext) {
      const measured = await measureEachPeer(
        context,
        plan.wish,
        (peer) => peer.features.production && peer.features[plan.needs],
        (proxy) => measure(context, proxy, plan.connections),
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
            plan.bytesMax,
            ' bytes',
          ),
        ],
      };
    },
  };
}

async function measure(context: BenchContext, proxy: RunningProxy, wanted: number): Promise<Measured> {
  const { pid } = proxy.started.process;
  const warm = await open(proxy, CONCURRENCY, WARM_REQUESTS / CONCURRENCY);
  for (const connection of warm) connection.destroy();
  await pause(SETTLE_MS);
  const baselineBytes = residentBytes(pid);
  const most = context.options.quick ? Math.min(wanted, CONNECTIONS_QUICK) : wanted;
  // HAProxy keeps two descriptors ready for each connection, hence not half of the limit.
  const connections = Math.min(most, Math.floor(descriptorsMax() * 0.4));
  const idle = await open(proxy, connections, 1);
  await pause(SETTLE_MS);
  const grownBytes = residentBytes(pid) - baselineBytes;
  const closed = idle.filter((connection) => connection.closed).length;
  for (const connection of idle) connection.destroy();
  if (closed > 0) context.problem(`${proxy.name} closed ${closed} of ${connections} idle connections`);
  return { connections, baselineBytes, bytesPerConnection: grownBytes / connections, closed };
}

/** A connection that is held; `ask` makes one request and rejects unless the answer is right. */
interface Held {
  readonly closed: boolean;
  ask(): Promise<void>;
  destroy(): void;
}

/** Opens `count` connections, CONCURRENCY at a time, each with `requests` requests; leaves them open. */
async function open(proxy: RunningProxy, count: number, requests: number): Promise<Held[]> {
  const opened: Held[] = [];
  let started = 0;
  const one = async () => {
    while (started < count) {
      started++;
      const connection = await hold(proxy);
      opened.push(connection);
      for (let i = 0; i < requests; i++) await connection.ask();
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, one));
  return opened;
}

async function hold({ access }: RunningProxy): Promise<Held> {
  const path = bodyPath(SMALL_BODY_BYTES);
  if (access.protocol === 'h2') {
    const connection = await RawHttp2Connection.connect(access.port);
    return {
      get closed() {
        return connection.closed;
      },
      async ask() {
        const before = connection.bodyBytes;
        await connection.get(path, 'localhost');
        checkBody(connection.bodyBytes - before);
      },
      destroy: () => connection.destroy(),
    };
  }
  const connection = await ClientConnection.connect(access.port, access.tls);
  return {
    get closed() {
      return connection.closed;
    },
    async ask() {
      const { status, bodyBytes } = await connection.get(path, 'localhost');
      if (status !== 200) throw new Error(`a connection was answered with status ${status}`);
      checkBody(bodyBytes);
    },
    destroy: () => connection.destroy(),
  };
}

function checkBody(bytes: number): void {
  if (bytes !== SMALL_BODY_BYTES) throw new Error(`a connection was answered with ${bytes} bytes`);
}
