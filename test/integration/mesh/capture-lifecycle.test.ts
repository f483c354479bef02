// How captures come, stay and go: all at once, by repetition, beside other rules, and when somebody is killed.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { captureTable, installCommands } from '../../../mesh-agent/capture/rules.ts';
import { WorkloadCaptures } from '../../../mesh-agent/node/captures.ts';
import type { OpenNamespace } from '../../../mesh-agent/node/namespaces.ts';
import { netnsSkipReason, type TestNamespace, TestNetwork } from '../../support/netns/network.ts';
import { curl, openCaptures, serveName, specOf } from './capture-support.ts';

const skip = netnsSkipReason('nft', 'curl');
const proxyFile = fileURLToPath(new URL('capture-proxy.ts', import.meta.url));

/** Tries of something that another process does soon; each is a program run, so this is no short time. */
const TRIES = 400;

async function startProxy(
  t: TestContext,
  path: string,
  mode: 'open' | 'closed' | 'rules-exist',
): Promise<ChildProcess> {
  const proxy = spawn(process.execPath, [proxyFile, path, mode], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => proxy.kill('SIGKILL'));
  const [said] = await once(proxy.stdout!, 'data');
  assert.equal(String(said), 'ready\n');
  return proxy;
}

async function kill(process: ChildProcess): Promise<void> {
  process.kill('SIGKILL');
  await once(process, 'exit');
}

async function rulesOf(at: TestNamespace): Promise<string> {
  return (await at.run('nft', ['--handle', 'list', 'ruleset'])).stdout;
}

async function until(what: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < TRIES; i++) if (await what()) return;
  assert.fail('it never happened');
}

test('traffic is refused while the proxy is dead, and flows when there is one again', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  await serveName(t, sockets, server, '0.0.0.0', 8080, 'application');
  await serveName(t, sockets, server, '::', 8080, 'application');
  const url = `http://${server.address}:8080/`;

  const clientProxy = await startProxy(t, client.path, 'closed');
  assert.equal(await curl(client, url), 'proxy');
  await kill(clientProxy);
  assert.equal(await curl(client, url), 'curl 7');
  assert.equal(await curl(client, `http://[${server.address6}]:8080/`), 'curl 7');
  await startProxy(t, client.path, 'rules-exist');
  assert.equal(await curl(client, url), 'proxy');

  const node = network.get('a');
  assert.equal(await curl(node, url), 'application from 10.9.0.1');
  const serverProxy = await startProxy(t, server.path, 'closed');
  assert.equal(await curl(node, url), 'proxy');
  await kill(serverProxy);
  assert.equal(await curl(node, url), 'curl 7');
  assert.equal(await curl(node, `http://[${server.address6}]:8080/`), 'curl 7');
});

test('with failOpen traffic goes past a dead proxy', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  await serveName(t, sockets, server, '0.0.0.0', 8080, 'application');
  const url = `http://${server.address}:8080/`;

  const proxy = await startProxy(t, client.path, 'open');
  assert.equal(await curl(client, url), 'proxy');
  await kill(proxy);
  await until(async () => (await curl(client, url)) === `application from ${client.address}`);
  await until(async () => (await rulesOf(client)) === '');
  await startProxy(t, client.path, 'open');
  assert.equal(await curl(client, url), 'proxy');
});

test('a held capture cannot be replaced by somebody else, and its loss is told', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  let told: (table: string) => void = () => {};
  const lost = new Promise<string>((resolve) => {
    told = resolve;
  });
  const { captures } = openCaptures(t, (table) => told(table));
  const other = openCaptures(t).captures;
  const open = specOf({ failOpen: true });
  assert.deepEqual(await captures.install(one!.path, open), { ok: true, changed: true });
  assert.deepEqual(await captures.install(one!.path, open), { ok: true, changed: false });
  for (const spec of [open, specOf()]) {
    const refused = await other.install(one!.path, spec);
    assert.equal(refused.ok ? 'installed' : refused.code, 'RULES_OWNED');
  }
  assert.equal((await captures.status(one!.path, open)).ok && 'ok', 'ok');

  process.kill(holderOf(one!), 'SIGKILL');
  assert.equal(await lost, 'portcullis');
  assert.equal(await rulesOf(one!), '');
  assert.deepEqual(await captures.install(one!.path, open), { ok: true, changed: true });
  // From open to closed and back, and away.
  assert.deepEqual(await captures.install(one!.path, specOf()), { ok: true, changed: true });
  assert.deepEqual(await captures.install(one!.path, open), { ok: true, changed: true });
  assert.deepEqual(await captures.remove(one!.path, 'portcullis'), { ok: true, changed: true });
  assert.equal(await rulesOf(one!), '');
});

test('removal restores what was', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets, captures } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  await serveName(t, sockets, server, '0.0.0.0', 8080, 'application');
  await client.run('nft', ['add table inet other; add chain inet other forward']);
  const before = await rulesOf(client);
  await captures.install(client.path, specOf());
  assert.equal(await curl(client, `http://${server.address}:8080/`), 'curl 7');
  assert.deepEqual(await captures.remove(client.path, 'portcullis'), { ok: true, changed: true });
  assert.equal(await curl(client, `http://${server.address}:8080/`), `application from ${client.address}`);
  assert.equal(await rulesOf(client), before);
  assert.deepEqual(await captures.remove(client.path, 'portcullis'), { ok: true, changed: false });
});

test('a second installation touches nothing, and repairs what somebody changed', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const { captures } = openCaptures(t);
  const spec = specOf({ excludeOutbound: ['10.0.0.0/9', '10.128.0.0/9', 'fd00::/8'], excludeOutboundPorts: ['22'] });
  assert.deepEqual(await captures.status(one!.path, spec), { ok: true, state: 'absent', differences: [] });
  await captures.install(one!.path, spec);
  const rules = await rulesOf(one!);
  assert.deepEqual(await captures.install(one!.path, spec), { ok: true, changed: false });
  assert.equal(await rulesOf(one!), rules);

  const changes = [
    'insert rule inet portcullis outbound accept',
    'add element inet portcullis outbound_ports { 80 }',
    'delete element inet portcullis outbound_ports { 22 }',
    'flush chain inet portcullis inbound',
    'add chain inet portcullis more',
    'add table inet portcullis { flags dormant; }',
  ];
  for (const change of changes) {
    assert.equal((await one!.run('nft', [change])).stderr, '');
    const status = await captures.status(one!.path, spec);
    assert.ok(status.ok && status.state === 'differs' && status.differences.length >= 1, change);
    assert.deepEqual(await captures.install(one!.path, spec), { ok: true, changed: true });
    assert.equal((await rulesOf(one!)).replaceAll(/ # handle \d+/g, ''), rules.replaceAll(/ # handle \d+/g, ''));
  }
});

test('an installation that is killed leaves the old rules or the new', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const { sockets, captures } = openCaptures(t);
  const addresses = (net: number) => Array.from({ length: 300 }, (_, i) => `10.${net}.${i >> 7}.${(i & 127) * 2}`);
  const specs = [specOf({ excludeOutbound: addresses(1) }), specOf({ excludeOutbound: addresses(2) })] as const;
  await captures.install(one!.path, specs[0]);
  let current = 0;
  const ends = new Set<string>();
  for (let round = 0; round < 24; round++) {
    const next = 1 - current;
    const program = sockets.spawn(
      one!.path,
      'nft',
      installCommands(captureTable(specs[next]!)).map((line) => `${line};`),
    );
    await new Promise((resolve) => setTimeout(resolve, round));
    program.kill();
    const ended = await program.ended;
    ends.add(ended.ok && ended.code === null ? 'killed' : 'finished');
    const states = await Promise.all(specs.map((spec) => captures.status(one!.path, spec)));
    const installed = states.map((status) => status.ok && status.state === 'installed');
    assert.deepEqual([...installed].sort(), [false, true], `round ${round}`);
    current = installed.indexOf(true);
  }
  assert.ok(ends.has('killed'), 'no round killed anything');
});

test('a namespace that is gone is a named error to install and nothing to remove', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const { captures } = openCaptures(t);
  await captures.install(one!.path, specOf({ failOpen: true }));
  await network.remove('one');
  const refused = await captures.install(one!.path, specOf());
  assert.equal(refused.ok ? 'installed' : refused.code, 'NAMESPACE_NOT_FOUND');
  // The program that held the rules, and the namespace with them, ends.
  assert.deepEqual(await captures.remove(one!.path, 'portcullis'), { ok: true, changed: true });
  assert.deepEqual(await captures.remove(one!.path, 'portcullis'), { ok: true, changed: false });
});

/** The process that holds the rules of a namespace: a child of this one. */
function holderOf(at: TestNamespace): number {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const status = readFileSync(`/proc/${pid}/status`, 'utf8');
      if (/^Name:\tnft$/m.test(status) && status.includes(`\nPPid:\t${process.pid}\n`)) return Number(pid);
    } catch {
      // It has just ended.
    }
  }
  throw new Error(`nothing holds rules in ${at.name}`);
}

test('rules that somebody else has removed or changed are installed again', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'] });
  const { sockets } = openCaptures(t);
  const client = network.get('client');
  const found = await sockets.identify(client.path);
  assert(found.ok);
  const lines: unknown[] = [];
  const log = (_level: string, message: string, fields?: object) => void lines.push({ message, ...fields });
  const captures = new WorkloadCaptures({ failClosed: true }, sockets, log, false, 0);
  t.after(() => captures.close());
  await captures.install('uid', 'shop/client', { path: client.path, identity: found.identity } as OpenNamespace);
  const installed = (await client.run('nft', ['list', 'ruleset'])).stdout;
  for (const [harm, problem] of [
    [['flush', 'ruleset'], 'its rules are gone'],
    [['flush', 'table', 'inet', 'portcullis'], 'its rules were changed'],
  ] as const) {
    await client.run('nft', [...harm]);
    await until(async () => {
      const { stdout } = await client.run('nft', ['list', 'ruleset']);
      return stdout === installed && captures.stateOf('uid').state === 'installed';
    });
    const lost = { message: 'a capture was lost, and is installed again', workload: 'shop/client', problem };
    assert.deepEqual(lines.at(-2), lost);
  }
});
