// Captures of plain hosts: workloads that are users or cgroups, the command line, and hosts without nft.
// The "host" is a namespace of the test, so that a defect cannot capture the machine.

import assert from 'node:assert/strict';
import { mkdirSync, rmdirSync, statfsSync, symlinkSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { NamespaceSockets } from '../../../core/ffi/netns.ts';
import { findProgram } from '../../../mesh-agent/capture/backend.ts';
import { Captures } from '../../../mesh-agent/capture/capture.ts';
import { captureCommand } from '../../../mesh-agent/capture/command.ts';
import { netnsSkipReason, type TestNamespace, TestNetwork } from '../../support/netns/network.ts';
import { curl, openCaptures, serveCapture, serveName, specOf } from './capture-support.ts';

const skip = netnsSkipReason('nft', 'curl');
const mainFile = fileURLToPath(new URL('capture-main.ts', import.meta.url));
const SERVICE = '10.96.0.10';
const CGROUP2_MAGIC = 0x63677270;

/** Where cgroups of version 2 are on this machine, and whether nft looks for them there. */
function cgroupRoot(): string | undefined {
  return ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'].find((path) => {
    try {
      return statfsSync(path).type === CGROUP2_MAGIC;
    } catch {
      return false;
    }
  });
}

/** curl as some user. */
async function curlAs(at: TestNamespace, uid: number, url: string): Promise<string> {
  const as = ['--reuid', String(uid), '--regid', String(uid), '--clear-groups'];
  const result = await at.run('setpriv', [...as, 'curl', '--silent', '--globoff', '--max-time', '30', url]);
  return result.code === 0 ? result.stdout : `curl ${result.code}`;
}

test('users of a host are captured each with a proxy port of their own', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['host'], b: ['peer'] });
  const { sockets, captures } = openCaptures(t);
  const [host, peer] = [network.get('host'), network.get('peer')];
  await serveName(t, sockets, peer, '0.0.0.0', 8080, 'peer');
  await serveName(t, sockets, host, '0.0.0.0', 8000, 'shop');
  await serveName(t, sockets, host, '0.0.0.0', 8001, 'other');
  await serveCapture(t, sockets, host, '0.0.0.0', 16001);
  await serveCapture(t, sockets, host, '::', 16001);
  await serveName(t, sockets, host, '0.0.0.0', 16002, 'second proxy');
  await serveCapture(t, sockets, host, '0.0.0.0', 16006);
  const shop = specOf({
    scope: { kind: 'uid', uids: [4001, 4002] },
    name: 'shop-1',
    outboundPort: 16001,
    inboundPort: 16006,
    inboundPorts: ['8000'],
  });
  const cart = specOf({ scope: { kind: 'uid', uids: [4003] }, name: 'cart', outboundPort: 16002 });
  assert.deepEqual(await captures.install(host.path, shop), { ok: true, changed: true });
  assert.deepEqual(await captures.install(host.path, cart), { ok: true, changed: true });
  assert.deepEqual(await captures.install(host.path, shop), { ok: true, changed: false });

  assert.equal(await curlAs(host, 4001, `http://${SERVICE}:8080/`), `captured ${SERVICE} 8080`);
  assert.equal(await curlAs(host, 4002, 'http://[fd96::1]:8080/'), 'captured fd96::1 8080');
  assert.equal(await curlAs(host, 4003, `http://${SERVICE}:8080/`), `second proxy from ${host.address}`);
  assert.equal(await curlAs(host, 4004, `http://${peer.address}:8080/`), `peer from ${host.address}`);
  assert.equal(await curl(host, `http://${peer.address}:8080/`), `peer from ${host.address}`);
  // Only the ports that the workload serves.
  assert.equal(await curl(peer, `http://${host.address}:8000/`), `captured ${host.address} 8000`);
  assert.equal(await curl(peer, `http://${host.address}:8001/`), `other from ${peer.address}`);

  await captures.remove(host.path, shop.table);
  assert.equal(await curlAs(host, 4001, `http://${peer.address}:8080/`), `peer from ${host.address}`);
  assert.equal(await curlAs(host, 4003, `http://${SERVICE}:8080/`), `second proxy from ${host.address}`);
});

test('a cgroup of a host is captured with what is below it', { skip: skip || needsCgroups() }, async (t) => {
  const root = cgroupRoot()!;
  const name = `pctest-${process.pid}.slice`;
  const folders = [name, `${name}/shop`, `${name}/shop/below`, `${name}/other`].map((path) => join(root, path));
  for (const folder of folders) mkdirSync(folder);
  const network = await TestNetwork.create(t, { a: ['host'], b: ['peer'] });
  const { sockets } = openCaptures(t);
  const [host, peer] = [network.get('host'), network.get('peer')];
  await serveName(t, sockets, peer, '0.0.0.0', 8080, 'peer');
  await serveCapture(t, sockets, host, '0.0.0.0', 15001);
  // A cgroup can go when its last process has been waited for, which is when the network is closed.
  t.after(() => folders.reverse().forEach((folder) => void rmdirSync(folder)));
  // nft looks for the path under /sys/fs/cgroup, wherever this machine has it.
  const capture = (action: string) => {
    const command = `mount --bind ${root} /sys/fs/cgroup; exec "$0" "$@"`;
    const args = [action, '--cgroup', `${name}/shop`, '--name', 'shop'];
    return host.run('unshare', ['--mount', 'sh', '-ec', command, process.execPath, mainFile, ...args]);
  };
  const curlIn = async (cgroup: string) => {
    const script = `echo $$ > ${join(root, name, cgroup)}/cgroup.procs; exec curl -s -m 5 http://${peer.address}:8080/`;
    return (await host.run('sh', ['-ec', script])).stdout;
  };
  const installed = await capture('install');
  assert.deepEqual([installed.code, installed.stderr], [0, '']);
  assert.equal((await capture('status')).stdout, 'installed: table inet portcullis_shop\n');
  assert.equal(await curlIn('shop'), `captured ${peer.address} 8080`);
  assert.equal(await curlIn('shop/below'), `captured ${peer.address} 8080`);
  assert.equal(await curlIn('other'), `peer from ${host.address}`);
  assert.equal(await curlIn(''), `peer from ${host.address}`);
});

test('the command installs, shows and removes, and refuses the namespace it runs in', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [host, workload] = await network.addIsolated(['host', 'workload']);
  const run = async (...args: string[]) => {
    let stdout = '';
    let stderr = '';
    const io = { out: (text: string) => (stdout += text), err: (text: string) => (stderr += text) };
    return { code: await captureCommand(args, io), stdout, stderr };
  };
  const installed = await run('install', '--netns', workload!.name, '--exclude-outbound', '10.0.0.0/8,fd00::/8');
  assert.deepEqual([installed.code, installed.stdout], [0, 'installed: table inet portcullis\n']);
  const status = await run('status', '--netns', workload!.path, '--exclude-outbound', '10.0.0.0/8,fd00::/8', '--json');
  assert.deepEqual(JSON.parse(status.stdout), { table: 'portcullis', state: 'installed', differences: [] });
  const other = await run('status', '--netns', workload!.path);
  assert.equal(other.code, 1);
  assert.match(other.stdout, /^differs: /);
  assert.equal((await run('remove', '--netns', workload!.name)).stdout, 'removed: table inet portcullis\n');
  assert.equal((await run('remove', '--netns', workload!.name)).stdout, 'not installed: table inet portcullis\n');

  const gone = await run('install', '--netns', 'pctest-nobody');
  assert.deepEqual([gone.code, /NAMESPACE_NOT_FOUND/.test(gone.stderr)], [1, true]);

  // Inside the namespace that stands for the host.
  const runInside = (...args: string[]) => host!.run(process.execPath, [mainFile, ...args]);
  const refused = await runInside('install', '--netns', host!.path);
  assert.deepEqual([refused.code, /HOST_NAMESPACE/.test(refused.stderr)], [1, true]);
  assert.equal((await host!.run('nft', ['list', 'ruleset'])).stdout, '');
  assert.equal((await runInside('install', '--own-namespace')).code, 0);
  assert.match((await host!.run('nft', ['list', 'ruleset'])).stdout, /redirect to :15001/);
});

test('a command with --fail-open holds the capture until it is told to stop', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [host, workload] = await network.addIsolated(['host', 'workload']);
  const holding = host!.spawn(process.execPath, [mainFile, 'install', '--netns', workload!.path, '--fail-open']);
  await new Promise((resolve) => holding.stdout!.once('data', resolve));
  assert.match((await workload!.run('nft', ['list', 'ruleset'])).stdout, /flags owner/);
  holding.kill('SIGTERM');
  const code = await new Promise((resolve) => holding.once('close', resolve));
  assert.equal(code, 0);
  assert.equal((await workload!.run('nft', ['list', 'ruleset'])).stdout, '');
});

const skipIptables = netnsSkipReason('iptables-nft-restore', 'curl');

test('without nft, iptables does the same', { skip: skipIptables }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const [client, server] = [network.get('client'), network.get('server')];
  const sockets = new NamespaceSockets();
  const captures = new Captures({ sockets, only: 'iptables-nft' });
  t.after(async () => {
    await captures.close();
    await sockets.close();
  });
  assert.equal(captures.backend, 'iptables-nft');
  for (const host of ['0.0.0.0', '::']) {
    await serveCapture(t, sockets, client, host, 15001);
    await serveCapture(t, sockets, server, host, 15006);
    for (const port of [8080, 9000]) await serveName(t, sockets, server, host, port, 'server');
  }
  const saved = async () =>
    (await client.run('iptables-nft-save', ['-t', 'nat'])).stdout.match(/^-A .*$/gm)?.join('\n');
  await client.run('iptables-nft', ['-t', 'nat', '-A', 'OUTPUT', '-p', 'udp', '-j', 'ACCEPT']);
  const clientSpec = specOf({ excludeOutbound: ['10.9.2.128/25', '10.1.0.0-10.1.0.9', 'fd05::/16'] });
  const serverSpec = specOf({ excludeInboundPorts: ['9000-9001'], excludeInbound: ['10.9.9.9'] });
  for (const [at, spec] of [
    [client, clientSpec],
    [server, serverSpec],
  ] as const) {
    assert.deepEqual(await captures.install(at.path, spec), { ok: true, changed: true });
    assert.deepEqual(await captures.install(at.path, spec), { ok: true, changed: false });
  }
  assert.equal(await curl(client, `http://${SERVICE}:80/`), `captured ${SERVICE} 80`);
  assert.equal(await curl(client, 'http://[fd96::1]:80/'), 'captured fd96::1 80');
  const node = network.get('a');
  assert.equal(await curl(node, `http://${server.address}:8080/`), `captured ${server.address} 8080`);
  assert.equal(await curl(node, `http://[${server.address6}]:8080/`), `captured ${server.address6} 8080`);
  assert.equal(await curl(node, `http://${server.address}:9000/`), 'server from 10.9.0.1');
  assert.equal(await curl(server, 'http://127.0.0.1:8080/'), 'server from 127.0.0.1');

  const status = await captures.status(client.path, specOf());
  assert.ok(status.ok && status.state === 'differs');
  assert.deepEqual(await captures.install(client.path, specOf()), { ok: true, changed: true });
  assert.deepEqual(await captures.remove(client.path, 'portcullis'), { ok: true, changed: true });
  assert.equal(await saved(), '-A OUTPUT -p udp -j ACCEPT');
  const open = await captures.install(client.path, specOf({ failOpen: true }));
  assert.equal(open.ok ? 'installed' : open.code, 'FAIL_OPEN_UNSUPPORTED');
});

test('a host with neither program is told so', { skip: netnsSkipReason() }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pctest-'));
  t.after(() => rm(folder, { recursive: true }));
  symlinkSync('/bin/true', join(folder, 'nft'));
  assert.equal(findProgram('nft', folder), join(folder, 'nft'));
  assert.equal(findProgram('pctest-nothing', folder), undefined);
  const captures = new Captures({ only: 'none' });
  t.after(() => captures.close());
  const refused = await captures.install('/proc/self/ns/net', specOf());
  assert.equal(refused.ok ? 'installed' : refused.code, 'NO_PACKET_FILTER');
});

function needsCgroups(): string | false {
  if (process.getuid!() !== 0) return 'needs root';
  return cgroupRoot() === undefined ? 'needs cgroups of version 2' : false;
}
