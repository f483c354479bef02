// SIGHUP on a real gateway, under load where it matters.

import assert from 'node:assert/strict';
import { symlinkSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { becomes } from './http/support.ts';
import { fileLifetime } from './shared-gateway.ts';
import {
  freePort,
  type Gateway,
  get,
  Load,
  namedUpstream,
  OWN_HOST,
  simpleConfig,
  startGateway,
  startUpstream,
  temporaryDirectory,
} from './support.ts';

/** A configuration with the given listeners, all routed to one upstream. */
function withListeners(upstreamPort: number, listeners: Record<string, string>, extra = ''): string {
  const entries = Object.entries(listeners).map(([name, address]) => `{name: ${name}, address: "${address}"}`);
  return simpleConfig(upstreamPort, extra).replace(/^listeners: .*$/m, `listeners: [${entries.join(', ')}]`);
}

const file = fileLifetime();
let kept: Gateway | undefined;

/**
 * A gateway that serves a configuration of `simpleConfig`: one for all tests that leave behind a gateway that can be
 * reloaded. Its log is empty then. The port of its listener stays the same.
 */
async function reloaded(config: string): Promise<{ gateway: Gateway; port: number; admin: number }> {
  if (kept === undefined) {
    kept = startGateway(file, config);
    ports.port = await kept.port();
    ports.admin = await kept.adminPort();
    await kept.serving();
  } else {
    kept.stderr = '';
    kept.configure(config);
    kept.kill('SIGHUP');
    await kept.log(/info configuration reloaded /);
  }
  kept.stderr = '';
  return { gateway: kept, ...ports };
}
const ports = { port: 0, admin: 0 };

/** Whether a new connection to the port is accepted. */
async function accepts(port: number, host = '127.0.0.1'): Promise<boolean> {
  return get(port, '/', false, {}, host).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      assert.equal(error.code, 'ECONNREFUSED');
      return false;
    },
  );
}

test('a reload under load moves all traffic to the new backend without one failed request', async (t) => {
  const blue = await namedUpstream(t, 'blue');
  const green = await namedUpstream(t, 'green');
  const { gateway, port } = await reloaded(simpleConfig(blue));
  const load = new Load(port, 8);
  await load.more(50);
  for (let reload = 1; reload <= 6; reload++) {
    gateway.configure(simpleConfig(reload % 2 === 1 ? green : blue));
    gateway.kill('SIGHUP');
    await gateway.log(/info configuration reloaded epoch=\d+/, reload);
    const expected = reload % 2 === 1 ? 'green' : 'blue';
    for (let i = 0; i < 4; i++) assert.equal((await get(port)).body, expected);
    await load.more(50);
  }
  await load.stop();
});

test('a broken file is refused with its errors and the old configuration serves on', async (t) => {
  const { gateway, port, admin } = await reloaded(simpleConfig(await namedUpstream(t, 'old')));
  const refusals = async (): Promise<number> =>
    Number(/^portcullis_.*reload.*refused.* (\d+)$/m.exec((await get(admin, '/metrics')).body)?.[1] ?? 0);
  const before = await refusals();
  const load = new Load(port, 4);
  await load.more(20);
  gateway.configure(`${simpleConfig(9)}\nroutse: []\n`);
  gateway.kill('SIGHUP');
  await gateway.log(/error .*gateway\.yaml:\d+:\d+: .*routse/);
  const [, epoch] = await gateway.log(/error reload refused: .* epoch=(\d+)$/);
  assert.equal(JSON.parse((await get(admin, '/config')).body).epoch, Number(epoch));
  await load.more(20);
  await load.stop();
  assert.equal((await get(port)).body, 'old');

  const { reloads } = JSON.parse((await get(admin, '/reloads')).body);
  assert.equal(reloads.at(-1).result, 'refused');
  assert.equal(reloads.at(-1).errors.length, 1);
  assert.equal((await get(admin, '/readyz')).status, 200);
  assert.equal((await refusals()) - before, 1);
});

test('a kept-alive connection goes on over a reload', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const gateway = startGateway(t, simpleConfig(upstream));
  const port = await gateway.port();
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const localPort = (): Promise<number> =>
    new Promise((resolve, reject) => {
      const outgoing = request({ host: '127.0.0.1', port, agent }, (incoming) => {
        const local = incoming.socket.localPort!;
        incoming.resume().on('end', () => resolve(local));
      });
      outgoing.on('error', reject).end();
    });
  const before = await localPort();
  gateway.kill('SIGHUP');
  const report = await gateway.log(
    /configuration reloaded epoch=2 .*connectionsKept=(\d+) .*listenersAdded=0 listenersKept=1 listenersRemoved=0/,
  );
  assert.equal(report[1], '1');
  assert.equal(await localPort(), before);
});

test('a request in flight during a reload ends on the backend it started with', async (t) => {
  let release = (): void => {};
  let arrive = (): void => {};
  const arrived = new Promise<void>((resolve) => {
    arrive = resolve;
  });
  const old = await startUpstream(t, (_incoming, response) => {
    release = () => response.end('slow old');
    arrive();
  });
  const { gateway, port } = await reloaded(simpleConfig(old));
  const answer = get(port);
  await arrived;
  gateway.configure(simpleConfig(await namedUpstream(t, 'new')));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=\d+/);
  assert.equal((await get(port)).body, 'new');
  release();
  const { status, body } = await answer;
  assert.equal(status, 200);
  assert.equal(body, 'slow old');
});

test('listeners are added, kept and removed, and the kept one never refuses a connection', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const gateway = startGateway(t, withListeners(upstream, { http: '127.0.0.1:0', old: '127.0.0.1:0' }));
  const port = await gateway.port();
  const oldPort = await gateway.port('old');
  assert.ok(await accepts(oldPort));
  const load = new Load(port, 6);
  await load.more(30);

  gateway.configure(withListeners(upstream, { http: '127.0.0.1:0', young: '127.0.0.1:0' }));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded .* listenersAdded=1 listenersKept=1 listenersRemoved=1$/);
  assert.ok(await accepts(await gateway.port('young')));
  assert.equal(await accepts(oldPort), false);
  await load.more(30);
  await load.stop();
});

test('a listener may move from one address to all addresses of the same port', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const gateway = startGateway(t, withListeners(upstream, { http: '127.0.0.1:0' }));
  const port = await gateway.port();
  gateway.configure(withListeners(upstream, { http: `127.0.0.1:${port}` }));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  gateway.configure(withListeners(upstream, { http: `0.0.0.0:${port}` }));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=3 .* listenersAdded=1 listenersKept=0 listenersRemoved=1$/);
  for (let i = 0; i < 8; i++) assert.equal((await get(port)).body, 'hello');
});

test('a reload with one taken port changes nothing at all', async (t) => {
  const taken = createServer();
  await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve));
  t.after(() => taken.close());
  const { port: takenPort } = taken.address() as { port: number };
  const { gateway, port } = await reloaded(simpleConfig(await namedUpstream(t, 'old')));

  const other = await namedUpstream(t, 'new');
  gateway.configure(
    withListeners(other, { http: '127.0.0.1:0', free: '127.0.0.1:0', taken: `127.0.0.1:${takenPort}` }),
  );
  gateway.kill('SIGHUP');
  await gateway.log(
    /error cannot listen on 127\.0\.0\.1:\d+ for listener taken: another process already listens there\./,
  );
  await gateway.log(/error reload refused/);
  assert.equal((await get(port)).body, 'old');
  assert.doesNotMatch(gateway.stderr, /listener=free/);
});

test('sockets that a refused reload has opened are closed again', async (t) => {
  const free = await freePort();
  const upstream = await namedUpstream(t, 'old');
  const { gateway, port } = await reloaded(simpleConfig(upstream));

  // The listener can be had; the access log, tried after it, cannot.
  const listeners = { http: '127.0.0.1:0', free: `${OWN_HOST}:${free}` };
  const link = join(temporaryDirectory(t), 'access.log');
  symlinkSync('/nonexistent/access.log', link);
  gateway.configure(withListeners(upstream, listeners, `accessLog: {path: ${link}}`));
  gateway.kill('SIGHUP');
  await gateway.log(
    /error cannot write the access log \S+: it is a symbolic link into a directory that does not exist\.$/,
  );
  await gateway.log(/error reload refused/);
  assert.equal(await accepts(free, OWN_HOST), false);
  assert.equal((await get(port)).body, 'old');
});

test('the admin port moves with the configuration and can be switched off', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const gateway = startGateway(t, simpleConfig(upstream));
  const first = await gateway.adminPort();
  assert.equal(JSON.parse((await get(first, '/config')).body).epoch, 1);
  gateway.configure(simpleConfig(upstream).replace(/^admin: .*$/m, 'admin: off'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  assert.equal(await accepts(first), false);
});

test('another number of workers waits for a restart and says so, and the rest applies', async (t) => {
  const { gateway, port } = await reloaded(simpleConfig(await namedUpstream(t, 'old')));
  gateway.configure(simpleConfig(await namedUpstream(t, 'new')).replace('workers: 2', 'workers: 1'));
  gateway.kill('SIGHUP');
  await gateway.log(/warn workers stays 2: a change to 1 takes effect at the next restart$/);
  await gateway.log(/configuration reloaded epoch=\d+/);
  assert.equal((await get(port)).body, 'new');
});

test('many SIGHUPs at once end in one running configuration, the last one', async (t) => {
  // One of its own: when the last of the reloads is over cannot be seen.
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'old')));
  const port = await gateway.port();
  const load = new Load(port, 4);
  await load.more(20);
  gateway.configure(simpleConfig(await namedUpstream(t, 'new')));
  for (let i = 0; i < 20; i++) gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded/);
  assert.equal((await get(port)).body, 'new');
  await load.more(20);
  await load.stop();
});

test('a refused reload logs the first errors only, and says how many more there are', async (t) => {
  const { gateway, port, admin } = await reloaded(simpleConfig(await namedUpstream(t, 'old')));
  gateway.configure(Array.from({ length: 100 }, (_, index) => `key${index}: 1\n`).join(''));
  gateway.kill('SIGHUP');
  await gateway.log(/error reload refused/);
  assert.match(gateway.stderr, / error and 83 more errors; `portcullis check` shows them$/m);
  assert.equal(gateway.stderr.match(/gateway\.yaml:\d+:\d+: /g)?.length, 20);
  const { reloads } = JSON.parse((await get(admin, '/reloads')).body) as { reloads: { errors: string[] }[] };
  assert.equal(reloads.at(-1)!.errors.length, 21);
  assert.equal((await get(port)).body, 'old');
});

test('a reload changes which requests are recorded as slow', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const withThreshold = (threshold: string): string =>
    simpleConfig(upstream, `failureRecords: {slowThreshold: ${threshold}}`);
  const { gateway, port, admin } = await reloaded(withThreshold('0'));
  let paths: string[] = [];
  /** Paths of the records, newest first, once there are so many: a client may be faster than the record. */
  const recorded = async (count: number): Promise<string[]> => {
    await becomes(`${count} records`, async () => {
      const { requests } = JSON.parse((await get(admin, '/requests')).body) as {
        requests: { path: { text: string } }[];
      };
      paths = requests.map(({ path }) => path.text).filter((path) => path !== '/');
      return paths.length >= count;
    });
    return paths;
  };
  await get(port, '/every');
  assert.deepEqual(await recorded(1), ['/every']);
  gateway.configure(withThreshold('1h'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=\d+/);
  await get(port, '/quick');
  gateway.configure(withThreshold('0'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=\d+/, 2);
  await get(port, '/again');
  assert.deepEqual(await recorded(2), ['/again', '/every']);
});
