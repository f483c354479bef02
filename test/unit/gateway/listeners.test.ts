// Listening sockets of a node proxy: a workload that cannot be listened for costs only itself its configuration.

import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:net';
import { type TestContext, test } from 'node:test';
import type { Config } from '../../../config/config.ts';
import { ExitError } from '../../../core/process/exit-codes.ts';
import { ListeningSockets } from '../../../core/workers/listening-sockets.ts';
import type { WorkloadSettings } from '../../../core/workers/mesh-settings.ts';
import { openListeners } from '../../../gateway/listeners.ts';
import { listener } from '../../../mesh-agent/node/config-parts.ts';

async function occupied(t: TestContext): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  return portOf(server);
}

function portOf(server: Server): number {
  return (server.address() as { port: number }).port;
}

/** Workloads of the node with a socket on each of these ports. */
function configOf(workloads: Record<string, number[]>): Config {
  const uids = Object.keys(workloads);
  return {
    listeners: uids.flatMap((uid, workload) =>
      workloads[uid]!.map((port, i) =>
        listener(`${uid} ${i}`, '127.0.0.1', port, ['tcp'], { role: 'inbound', workload, detect: false }),
      ),
    ),
    mesh: { workloads: uids.map((uid) => ({ uid, namespaceFd: -1 }) as WorkloadSettings) },
  } as unknown as Config;
}

function without(all: Record<string, number[]>, out: ReadonlySet<string>): Config {
  return configOf(Object.fromEntries(Object.entries(all).filter(([uid]) => !out.has(uid))));
}

test('workloads whose ports are taken are left out with the reason, all together, and the others are opened', async (t) => {
  const sockets = new ListeningSockets(2);
  const [one, two] = [await occupied(t), await occupied(t)];
  const all = { a: [0], b: [0, one], c: [0], d: [two], e: [0, 0] };
  const out = new Map<string, string>();
  let loads = 0;
  const { config, plan } = openListeners(
    sockets,
    configOf(all),
    () => {
      loads++;
      return without(all, new Set(out.keys()));
    },
    (uid, problem) => out.set(uid, problem),
  );
  t.after(() => sockets.abandon(plan));
  assert.deepEqual([...out.keys()], ['b', 'd']);
  assert.match(out.get('b')!, new RegExp(`cannot listen on 127\\.0\\.0\\.1:${one} for listener b 1: another process`));
  assert.equal(loads, 1, 'one more configuration for all of them');
  assert.equal(config.mesh!.workloads.length, 3);
  assert.equal(plan.listeners.length, 4);
});

test('a workload that is not left out although it was said to be ends the attempt', async (t) => {
  const config = configOf({ a: [await occupied(t)] });
  assert.throws(
    () =>
      openListeners(
        new ListeningSockets(1),
        config,
        () => config,
        () => {},
      ),
    (error) => error instanceof ExitError && /listener a 0/.test(error.message),
  );
});

test('a listener of a gateway cannot be left out', async (t) => {
  const { listeners, ...rest } = configOf({ a: [await occupied(t)] });
  const config = { ...rest, listeners: listeners.map(({ mesh: _, ...one }) => one) } as Config;
  const fail = (): never => assert.fail('it is not asked');
  assert.throws(() => openListeners(new ListeningSockets(1), config, fail, fail), ExitError);
});
