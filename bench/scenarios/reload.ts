// Loading a new configuration of 10,000 routes under load: does a request fail, how long until the
// new route serves, how long does a steady client wait at worst?

import { bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import { ClientConnection, getOnce } from '../lib/client.ts';
import type { BenchContext, RunningProxy } from '../lib/context.ts';
import { pause } from '../lib/processes.ts';
import { atMost, grouped } from '../lib/report.ts';
import { hostName, NEW_HOST, ROUTE_HOSTS, ROUTE_PREFIXES, routePrefix } from '../lib/routes.ts';
import { median } from '../lib/stats.ts';
import { measureEachPeer } from './each-peer.ts';
import type { Scenario } from './scenario.ts';

const LOAD_CONNECTIONS = 64;
/** Each connection of the load asks this often, so that the client itself stays far from its limit. */
const LOAD_INTERVAL_MS = 20;
const PROBE_INTERVAL_MS = 2;
const POLL_MS = 3;
/** How long the load goes on after the new route serves: old workers and idle connections end then. */
const AFTER_MS = 700;
const NEW_ROUTE_TIMEOUT_MS = 30_000;
const SERVING_MAX_MS = 1000;
const GAP_MAX_MS = 50;

/** One reload of one proxy. */
interface Reload {
  requests: number;
  failed: number;
  /** Connections that the proxy closed while no request was on them. */
  closedIdle: number;
  /** From the signal (or the call) to the first 200 of the new route. */
  newRouteMs: number;
  /** Longest wait of the prober between two answers while reloading, and before. */
  gapMs: number;
  quietGapMs: number;
}

/** Reloads each proxy under a paced load. */
export const reload: Scenario = {
  name: 'reload',
  title: 'Reload under load',
  description: `${(ROUTE_HOSTS * ROUTE_PREFIXES).toLocaleString('en-US')} routes, ${LOAD_CONNECTIONS} kept-alive connections asking every ${LOAD_INTERVAL_MS} ms, and a prober asking every ${PROBE_INTERVAL_MS} ms; then a hostname is added and the proxy reloads (signal; Caddy: its admin API). "Gap" is the longest time between two answers of the prober, "gap before" the same without a reload: what machine and client add by themselves. A request fails if it is not answered with 200. One worker, nothing pinned; the worst of all reloads, medians in brackets.`,
  async run(context: BenchContext) {
    const reloads = new Map<string, Reload[]>();
    for (let i = 0; i < Math.min(context.options.rounds, 5); i++) {
      const once = await measureEachPeer(
        context,
        { routes: 'many', pinned: false },
        (peer) => peer.features.manyRoutes && peer.features.reload,
        (proxy) => measure(context, proxy),
      );
      for (const [name, result] of once) reloads.set(name, [...(reloads.get(name) ?? []), result]);
    }
    const ours = reloads.get('portcullis');
    return {
      table: {
        columns: ['proxy', 'failed', 'closed idle', 'requests', 'new route ms', 'gap ms', 'gap before ms'],
        rows: [...reloads].map(([name, results]) => [
          name,
          grouped(sum(results, (result) => result.failed)),
          grouped(sum(results, (result) => result.closedIdle)),
          grouped(sum(results, (result) => result.requests)),
          worst(results, (result) => result.newRouteMs),
          worst(results, (result) => result.gapMs),
          worst(results, (result) => result.quietGapMs),
        ]),
      },
      targets: [
        atMost('failed requests', ours === undefined ? null : sum(ours, (result) => result.failed), 0),
        atMost(
          'reload to new route',
          highest(ours, (result) => result.newRouteMs),
          SERVING_MAX_MS,
          ' ms',
        ),
        atMost(
          'longest gap of a steady client',
          highest(ours, (result) => result.gapMs),
          GAP_MAX_MS,
          ' ms',
        ),
      ],
    };
  },
};

async function measure(context: BenchContext, proxy: RunningProxy): Promise<Reload> {
  const load = new SteadyLoad(proxy.port);
  const warmUpMs = context.options.quick ? 300 : 1000;
  const quietMs = context.options.quick ? 500 : 2000;
  load.start();
  await pause(warmUpMs);
  load.takeGapMs();
  await pause(quietMs);
  const quietGapMs = load.takeGapMs();
  const startMs = performance.now();
  await proxy.started.reload();
  const newRouteMs = (await newRouteServes(proxy.port)) - startMs;
  await pause(AFTER_MS);
  const gapMs = load.takeGapMs();
  await load.stop();
  if (load.failed > 0) {
    context.problem(`${proxy.name}: ${load.failed} of ${load.requests} requests failed: ${load.firstFailure}`);
  }
  const { requests, failed, closedIdle } = load;
  return { requests, failed, closedIdle, newRouteMs, gapMs, quietGapMs };
}

/** Waits for a 200 of the new route, on a new connection each time; the time of it. */
async function newRouteServes(port: number): Promise<number> {
  const deadlineMs = performance.now() + NEW_ROUTE_TIMEOUT_MS;
  while (performance.now() < deadlineMs) {
    // A refused connection here is the load's to count: it sees it too.
    const answer = await getOnce(port, bodyPath(SMALL_BODY_BYTES), NEW_HOST).catch(() => null);
    if (answer?.status === 200) return performance.now();
    await pause(POLL_MS);
  }
  throw new Error(`the new route did not serve within ${NEW_ROUTE_TIMEOUT_MS / 1000} s of the reload`);
}

/** Kept-alive connections that ask at a steady pace, one of them quickly: the prober. */
class SteadyLoad {
  requests = 0;
  failed = 0;
  closedIdle = 0;
  firstFailure = '';
  readonly #port: number;
  #running = true;
  #clients: Promise<void>[] = [];
  #lastAnswerMs = 0;
  #gapMs = 0;

  constructor(port: number) {
    this.#port = port;
  }

  start(): void {
    this.#lastAnswerMs = performance.now();
    this.#clients.push(this.#client(0, PROBE_INTERVAL_MS, true));
    for (let i = 1; i <= LOAD_CONNECTIONS; i++) this.#clients.push(this.#client(i, LOAD_INTERVAL_MS, false));
  }

  /** The prober's longest gap since the last call, in milliseconds. */
  takeGapMs(): number {
    // A gap that is still open counts too.
    const gapMs = Math.max(this.#gapMs, performance.now() - this.#lastAnswerMs);
    this.#gapMs = 0;
    return gapMs;
  }

  async stop(): Promise<void> {
    this.#running = false;
    await Promise.all(this.#clients);
  }

  async #client(index: number, intervalMs: number, prober: boolean): Promise<void> {
    let connection: ClientConnection | null = null;
    await pause((index * LOAD_INTERVAL_MS) / LOAD_CONNECTIONS);
    for (let asked = index; this.#running; asked++) {
      const host = hostName((asked * 7) % ROUTE_HOSTS);
      if (connection?.closed) {
        this.closedIdle++;
        connection = null;
      }
      this.requests++;
      try {
        connection ??= await ClientConnection.connect(this.#port);
        const { status, closes } = await connection.get(`${routePrefix(asked % ROUTE_PREFIXES)}/item`, host);
        if (status !== 200) throw new Error(`status ${status}`);
        if (closes) {
          connection.destroy();
          connection = null;
        }
        if (prober) this.#answered();
      } catch (error) {
        this.failed++;
        this.firstFailure ||= error instanceof Error ? error.message : String(error);
        connection?.destroy();
        connection = null;
      }
      await pause(intervalMs);
    }
    connection?.destroy();
  }

  #answered(): void {
    const nowMs = performance.now();
    this.#gapMs = Math.max(this.#gapMs, nowMs - this.#lastAnswerMs);
    this.#lastAnswerMs = nowMs;
  }
}

function sum(results: readonly Reload[], value: (result: Reload) => number): number {
  return results.reduce((total, result) => total + value(result), 0);
}

function highest(results: readonly Reload[] | undefined, value: (result: Reload) => number): number | null {
  return results === undefined ? null : Math.max(...results.map(value));
}

function worst(results: readonly Reload[], value: (result: Reload) => number): string {
  const values = results.map(value);
  return `${Math.max(...values).toFixed(0)} (${median(values).toFixed(0)})`;
}
