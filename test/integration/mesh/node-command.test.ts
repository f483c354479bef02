// `portcullis mesh node` as an operator meets it: what it says of itself, workloads that come, go and fail, signals.

import assert from 'node:assert/strict';
import { readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { NodeMeshPage, WorkloadView } from '../../../mesh-agent/node/node-admin.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import { Running } from '../support.ts';

type Place = ReturnType<TestMesh['at']>;

/** Takes a port for IPv6 only. */
const LISTEN_V6 = `require('node:net').createServer().listen({ port: 15008, host: '::', ipv6Only: true }, () => console.log('ready'))`;

const http = { port: 8080, kind: 'http' } as const;

test('a node proxy and its operator', { skip: meshSkipReason('curl') }, async (t) => {
  const mesh = await TestMesh.create(t, {
    nodes: { one: { 'web-0': {}, 'cart-0': {} }, two: { stranger: { member: false } } },
    services: { cart: [{ port: 80, targetPort: 8080, protocol: 'http' }] },
  });
  const node = mesh.node('one');
  const web = mesh.at('web-0');
  const stranger = mesh.at('stranger');
  await Promise.all([startApp(mesh.at('cart-0'), 'cart-0', http), startApp(stranger, 'stranger', http)]);
  const names = ['ghost', 'other', 'busy', 'loner', 'dual'];
  await mesh.network.addIsolated(names);
  const [ghost, other, busy, loner, dual] = names.map((name) => mesh.at(name)) as [Place, Place, Place, Place, Place];
  await startApp(busy, 'busy', { port: 15_006, kind: 'http' });

  const page = async (): Promise<NodeMeshPage> => JSON.parse(await node.page('/mesh')) as NodeMeshPage;
  const workload = async (name: string): Promise<WorkloadView | undefined> =>
    (await page()).workloads.find((one) => one.workload === `shop/${name}`);
  const served = (name: string, state = true): Promise<WorkloadView> =>
    eventually(`shop/${name} is ${state ? '' : 'not '}served`, async () => {
      const found = await workload(name);
      if (found === undefined || found.served !== state) throw new Error(JSON.stringify(found));
      if (state && found.capture !== 'installed') throw new Error(found.capture);
      return found;
    });
  const document = (name: string, address: string, networkNamespace?: string): string =>
    `${JSON.stringify({
      kind: 'Workload',
      metadata: { name, namespace: 'shop' },
      spec: { addresses: [address], serviceAccount: name, node: 'one', networkNamespace },
    })}\n`;
  const rules = async (at: typeof web): Promise<string> => (await at.run('nft', ['list', 'tables'])).stdout;
  /** What `web-0` gets from a machine outside of the mesh. */
  const outside = (): Promise<number> => web.run('curl', curl(stranger.address)).then(({ code }) => code!);
  const statusOf = async (host: string): Promise<string> =>
    (await web.run('curl', ['-sS', '--max-time', '30', '-o', '/dev/null', '-w', '%{http_code}', `http://${host}/`]))
      .stdout;
  const cart = (): Promise<number> => web.run('curl', curl(mesh.vip('cart'), 80)).then(({ code }) => code!);

  await t.test('the admin port tells of workloads, certificates and the control plane, and of no key', async () => {
    const { problems, capture, networkNamespace, certificate, identity } = await served('web-0');
    assert.deepEqual(
      [problems, capture, networkNamespace, identity],
      [[], 'installed', web.path, mesh.identity('web-0')],
    );
    assert.ok(Date.parse(certificate.validUntil!) > Date.now());
    const { controlPlane, state, trust, identity: own, mesh: counts } = await page();
    assert.deepEqual(
      [controlPlane.connected, controlPlane.synced, state, own],
      [true, true, 'control plane', 'spiffe://cluster.local/node/one'],
    );
    assert.deepEqual(counts, { workloads: 2, services: 1, policies: 0 });
    assert.equal(trust.roots.length, 1);
    assert.equal(await cart(), 0);
    const config = await node.page('/config');
    assert.match(config, /BEGIN CERTIFICATE/);
    assert.doesNotMatch(config, /PRIVATE KEY/);
    assert.match(config, new RegExp(`"${mesh.vip('cart')}:80"`));
  });

  await t.test('a workload that cannot be served is named with the reason, and costs the others nothing', async () => {
    const path = join(mesh.directory, 'ghost');
    mesh.write('mesh/ghost.yaml', document('ghost', '10.9.1.200', path));
    mesh.write('mesh/busy.yaml', document('busy', '10.9.1.201', busy.path));
    mesh.write('mesh/twin.yaml', document('zz-twin', '10.9.1.202', web.path));
    // Not served from the moment it is known; the reason comes once its namespace has been tried.
    await Promise.all([served('ghost', false), served('busy', false)]);
    await eventually('the reason is there', async () => {
      const text = (await workload('ghost'))!.problems.join();
      return text.includes(`there is no network namespace ${path}`);
    });
    await eventually('that of the third is there', async () =>
      (await workload('zz-twin'))?.problems
        .join()
        .includes('is the network namespace of directory//Workload/shop/web-0'),
    );
    await eventually('the reason of the other is there', async () => {
      const text = (await workload('busy'))!.problems.join();
      return /listen|bind/.test(text) && /in use/.test(text);
    });
    await node.proxy!.log(/warn workload is not served workload=shop\/ghost problem=/);
    assert.equal((await node.ask('/readyz')).status, 200);
    assert.equal(await cart(), 0);
  });

  await t.test(
    'a workload that takes a port of the proxy later is left out, and the others get what is new',
    async () => {
      const address = '10.9.1.210';
      mesh.write('mesh/dual.yaml', document('dual', address, dual.path));
      await served('dual');
      const thief = new Running(dual.spawn(process.execPath, ['-e', LISTEN_V6]));
      await thief.printed(/^ready$/);
      // Its sockets are open already, but for those of an address that it gets now.
      const text = document('dual', address, dual.path).replace(`"${address}"`, `"${address}","fd00:9::210"`);
      mesh.write('mesh/dual.yaml', text);
      await eventually('the reason is there', async () =>
        /cannot listen on \[::\]:15008 for listener shop\/dual tunnels \(IPv6\): another process/.test(
          (await workload('dual'))!.problems.join(),
        ),
      );
      // In force when that returns, so nothing is waited for.
      mesh.write('deny.yaml', policy('cart', 'DENY'));
      const file = join(mesh.directory, 'deny.yaml');
      assert.match(await mesh.command('apply', '--wait', '--admin', mesh.controlAdmin, file), /is served by/);
      assert.equal(await statusOf(mesh.vip('cart')), '403');
      mesh.write('deny.yaml', '');
      await mesh.command('apply', '--wait', '--admin', mesh.controlAdmin, file);
      assert.equal(await statusOf(mesh.vip('cart')), '200');
      // Both ends have counted both.
      await eventually('both are in the graph', async () => {
        const graph = await mesh.command('graph', '--admin', node.admin);
        assert.match(graph, /^shop\/web-0 +shop\/cart\.\S+:80 +http .* source$/m);
        assert.match(graph, /^spiffe:\S+\/sa\/web +shop\/cart-0 +http +\d+ +[1-9]\d* +0 +1 +destination$/m);
        return true;
      });
      thief.kill('SIGKILL');
      await served('dual');
      mesh.write('mesh/dual.yaml', '');
    },
  );

  await t.test('when its namespace appears it is served, and again when another one takes its place', async () => {
    symlinkSync(ghost.path, join(mesh.directory, 'ghost'));
    await served('ghost');
    assert.match(await rules(ghost), /inet portcullis/);
    symlinkSync(other.path, join(mesh.directory, 'ghost.new'));
    renameSync(join(mesh.directory, 'ghost.new'), join(mesh.directory, 'ghost'));
    await eventually('the other one is captured', async () => /inet portcullis/.test(await rules(other)));
    await served('ghost');
  });

  await t.test('a workload that leaves the mesh is not captured any more', async () => {
    mesh.write('mesh/ghost.yaml', '');
    await eventually('the rules are gone', async () => !/inet portcullis/.test(await rules(other)));
    await eventually('it is not listed any more', async () => (await workload('ghost')) === undefined);
    assert.equal(await cart(), 0);
  });

  await t.test('a workload that does not name its namespace is found by its address', async () => {
    // Other tests have meshes on this machine, with the same addresses as this one.
    const address = `10.200.${(process.pid >> 8) & 255}.${process.pid & 255}`;
    await loner.run('ip', ['address', 'add', address, 'dev', 'lo']);
    await startApp(loner, 'loner', http);
    mesh.write('mesh/ghost.yaml', document('found', address));
    assert.match((await served('found')).networkNamespace!, /^\/proc\/\d+\/ns\/net$/);
    assert.match(await rules(loner), /inet portcullis/);
    mesh.write('mesh/ghost.yaml', '');
    await eventually('the rules are gone', async () => !/inet portcullis/.test(await rules(loner)));
  });

  await t.test('SIGHUP changes what it can, names what waits, and refuses a broken file', async () => {
    const file = join(node.directory, 'node.yaml');
    const text = readFileSync(file, 'utf8');
    assert.equal(await outside(), 0);
    writeFileSync(file, text.replace('egress: passthrough', 'egress: refuse').replace('workers: 1', 'workers: 2'));
    node.proxy!.kill('SIGHUP');
    await node.proxy!.log(/warn a change needs a restart to take effect key=workers/);
    await eventually('nothing leaves the mesh', async () => (await outside()) !== 0);
    assert.equal(await cart(), 0);
    writeFileSync(file, 'egress: sideways\n');
    node.proxy!.kill('SIGHUP');
    await node.proxy!.log(/error the configuration was refused, the old one stays errors=/);
    assert.equal((await page()).egress, 'refuse');
    writeFileSync(file, text);
  });

  await t.test('what the workers cannot be given is refused, and counts as served once they have it', async () => {
    const file = join(node.directory, 'node.yaml');
    const text = readFileSync(file, 'utf8');
    writeFileSync(file, text.replace('path: access.log', 'path: missing/access.log'));
    node.proxy!.kill('SIGHUP');
    await node.proxy!.log(/error reload refused/);
    mesh.write('deny.yaml', policy('cart', 'DENY'));
    const args = [
      'apply',
      '--wait',
      '--timeout',
      '20s',
      '--admin',
      mesh.controlAdmin,
      join(mesh.directory, 'deny.yaml'),
    ];
    await assert.rejects(
      mesh.command(...args),
      /ended with 7: one refuses .*the node proxy cannot use it: .*access\.log/,
    );
    assert.equal(await statusOf(mesh.vip('cart')), '200');
    writeFileSync(file, text);
    node.proxy!.kill('SIGHUP');
    await eventually('it is served', () => mesh.command('wait', '--timeout', '1s', '--admin', mesh.controlAdmin));
    assert.equal(await statusOf(mesh.vip('cart')), '403');
    mesh.write('deny.yaml', '');
    await mesh.command(...args);
  });

  await t.test('SIGTERM ends it with 0, and captures stay closed until the next one serves', async () => {
    node.proxy!.kill('SIGTERM');
    assert.equal((await node.proxy!.finished).code, 0);
    assert.match(await rules(web), /inet portcullis/);
    assert.notEqual(await outside(), 0);
    await mesh.killControl();
    await node.start();
    assert.equal((await page()).state, 'saved');
    await served('web-0');
    assert.deepEqual([await outside(), await cart()], [0, 0]);
  });

  await t.test('what is not used any more is given up, and there again when it is used', async () => {
    node.proxy!.kill('SIGTERM');
    await node.proxy!.finished;
    const file = join(node.directory, 'node.yaml');
    const more = 'capture: {failClosed: false}\ndiscovery: {idleTimeout: 1s}\n';
    writeFileSync(file, `${readFileSync(file, 'utf8')}${more}`);
    await node.start();
    await served('web-0');
    await mesh.startControl();
    await eventually('the node has found it', async () => (await page()).controlPlane.connected);
    assert.deepEqual([await outside(), await cart()], [0, 0]);
    // An open connection is use of what it leads to.
    const socket = await mesh.clients.connect(web, stranger.address, 8080);
    const known = (addresses: number): Promise<true> =>
      eventually(`${addresses} addresses are known`, async () => {
        const { discovery } = await page();
        return (discovery!.addresses === addresses && discovery!.outside === addresses) || undefined;
      });
    await known(1);
    socket.destroy();
    await known(0);
    assert.deepEqual([await outside(), await cart()], [0, 0]);
  });

  await t.test('with failClosed: false, connections go past a proxy that is killed', async () => {
    await node.kill();
    await eventually('the rules are gone', async () => (await outside()) === 0);
    assert.doesNotMatch(await rules(web), /inet portcullis/);
  });
});

/** A policy about all requests to the workloads of an app. */
function policy(app: string, action: string): string {
  const spec = { selector: { matchLabels: { app } }, action, rules: [{ to: [{ operation: { methods: ['GET'] } }] }] };
  return `${JSON.stringify({ kind: 'AuthorizationPolicy', metadata: { name: app, namespace: 'shop' }, spec })}\n`;
}

function curl(host: string, port = 8080): string[] {
  return ['-sS', '--max-time', '30', '-o', '/dev/null', `http://${host}:${port}/`];
}
