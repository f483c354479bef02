// Packet workers of a real gateway: death and replacement, and doing nothing when there is nothing to do.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { becomes } from './http/support.ts';
import { type Gateway, get, Load, namedUpstream, simpleConfig, startGateway, temporaryDirectory } from './support.ts';

/** Clock ticks (1/100 s) of CPU that the process has used, user and system. */
function cpuTicks(gateway: Gateway): number {
  const fields = readFileSync(`/proc/${gateway.pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

/** Open sockets of the process. */
function openDescriptors(gateway: Gateway): number {
  return readdirSync(`/proc/${gateway.pid}/fd`).length;
}

test('a worker that dies is logged with its cause and replaced, and the others serve on', async (t) => {
  const crashFile = join(temporaryDirectory(t), 'crash');
  const hook = new URL('./crash-hook.ts', import.meta.url).href;
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'hello')), {
    env: { NODE_OPTIONS: `--import=${hook}`, CRASH_FILE: crashFile },
  });
  const port = await gateway.port();
  const admin = await gateway.adminPort();
  await gateway.serving();

  for (let round = 1; round <= 3; round++) {
    const load = new Load(port, 6);
    await load.more(20);
    writeFileSync(`${crashFile}.1`, '');
    const death = await gateway.log(
      /error packet worker died worker=1 cause="(.*)" connectionsCut=\d+ restartInMs=(\d+)/,
      round,
    );
    assert.match(death[1]!, /told to crash by the test/);
    assert.equal(death[2], ['0', '250', '500'][round - 1]);
    // Both workers' queues are served again: no connection of this load may be left waiting.
    await load.more(60);
    await load.stopAllowing(/ECONNRESET|socket hang up/);
  }

  const clean = new Load(port, 6);
  await clean.more(60);
  await clean.stop();
  assert.equal((await get(admin, '/healthz')).status, 200);
  const { workers } = JSON.parse((await get(admin, '/config')).body);
  assert.deepEqual(
    workers.map(({ up, restarts, epochApplied }: Record<string, unknown>) => ({ up, restarts, epochApplied })),
    [
      { up: true, restarts: 0, epochApplied: 1 },
      { up: true, restarts: 3, epochApplied: 1 },
    ],
  );
});

test('a dead worker leaves no descriptors open', async (t) => {
  const crashFile = join(temporaryDirectory(t), 'crash');
  const hook = new URL('./crash-hook.ts', import.meta.url).href;
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'hello')).replace('workers: 2', 'workers: 1'), {
    env: { NODE_OPTIONS: `--import=${hook}`, CRASH_FILE: crashFile },
  });
  const port = await gateway.port();
  const admin = await gateway.adminPort();
  const replaced = async (restarts: number): Promise<number> => {
    for (;;) {
      const { workers } = JSON.parse((await get(admin, '/config')).body);
      if (workers[0].up && workers[0].restarts === restarts) break;
    }
    await get(port);
    return openDescriptors(gateway);
  };
  await get(port);
  writeFileSync(`${crashFile}.0`, '');
  const first = await replaced(1);
  writeFileSync(`${crashFile}.0`, '');
  const second = await replaced(2);
  writeFileSync(`${crashFile}.0`, '');
  let third = await replaced(3);
  // One more or less may be a connection of the admin port that is just closing; others have closed in a moment.
  await becomes('as few descriptors as before', async () => {
    third = Math.min(third, openDescriptors(gateway));
    return third <= first + 1;
  }).catch(() => assert.fail(`descriptors after 1, 2 and 3 deaths: ${first}, ${second}, ${third}`));
});

test('an idle gateway uses next to no CPU', async (t) => {
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'hello')));
  await get(await gateway.port());
  await gateway.serving();
  // The interval is what is measured over: a worker that spins uses all of it.
  const measure = async (): Promise<number> => {
    const before = cpuTicks(gateway);
    await new Promise((resolve) => setTimeout(resolve, 2000));
    return cpuTicks(gateway) - before;
  };
  // An interval may hold the end of the start-up (compilation, garbage collection), or time that the machine took away
  // from a thread that was awake just then.
  const ticks = [await measure()];
  while (ticks.at(-1)! > 20 && ticks.length < 6) ticks.push(await measure());
  assert.ok(ticks.at(-1)! <= 20, `${ticks} ticks of 200 in two idle seconds each`);
});
