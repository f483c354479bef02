// What lapses on a node: certificates that it is not given any more, and what it was told when nobody tells it anything.

import assert from 'node:assert/strict';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Detail, Reason } from '../../../core/exchange/reasons.ts';
import { ProxyState } from '../../../mesh-agent/control/proxy-state.ts';
import { SavedFile } from '../../../mesh-agent/control/saved-file.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';

const skip = meshSkipReason();
const HOUR_S = 3600;

test('a mesh of two nodes in which things lapse', { skip }, async (t) => {
  const mesh = await TestMesh.create(t, {
    nodes: { one: { 'web-0': {}, stranger: { member: false } }, two: { 'cart-0': {} } },
    services: { cart: [{ port: 80, targetPort: 8080, protocol: 'http' }] },
  });
  const http = { port: 8080, kind: 'http' } as const;
  await Promise.all(['cart-0', 'stranger'].map((name) => startApp(mesh.at(name), name, http)));
  const { clients } = mesh;
  const [web, one, two] = [mesh.at('web-0'), mesh.node('one'), mesh.node('two')];
  const ask = (host: string, port: number): Promise<string> =>
    clients.request(web, host, port).then(
      ({ status }) => `${status}`,
      (error) => error.code,
    );
  const cart = (): Promise<string> => ask(mesh.vip('cart'), 80);
  const stranger = (): Promise<string> => ask(mesh.at('stranger').address, 8080);
  const becomes = (what: string, asked: () => Promise<string>, answer: string): Promise<unknown> =>
    eventually(`${what}: ${answer}`, async () => {
      const outcome = await asked();
      if (outcome !== answer) throw new Error(outcome);
      return true;
    });

  await t.test('a workload that is blocked keeps its certificate, and gets no other; its node says why', async () => {
    await becomes('cart', cart, '200');
    const identity = mesh.identity('cart-0');
    const config = readFileSync(mesh.controlFile, 'utf8');
    const reload = async (text: string, count: number): Promise<void> => {
      mesh.write('control.yaml', text);
      mesh.control.kill('SIGHUP');
      await mesh.control.log(/info configuration applied/, count);
    };
    await reload(`${config}attestation: {blockedIdentities: ["${identity}"]}\n`, 1);
    assert.equal(await cart(), '200');
    await two.kill();
    rmSync(join(two.directory, 'state', 'certificates'), { recursive: true });
    await two.start();
    const problem = `no certificate: the CA refuses: ${identity} is blocked (attestation.blockedIdentities)`;
    await eventually('the node names it', async () => {
      const { workloads } = await two.status();
      assert.deepEqual(
        workloads.map(({ served, problems }) => ({ served, problems })),
        [{ served: false, problems: [problem] }],
      );
      return true;
    });
    assert.notEqual(await cart(), '200');
    await reload(config, 2);
    await two.servesAll(1);
    await becomes('cart', cart, '200');
  });

  await t.test('without the control plane what was outside is believed for a day', async () => {
    const stop = async (): Promise<void> => {
      one.proxy!.kill('SIGTERM');
      const { code, stderr } = await one.proxy!.finished;
      assert.equal(code, 0, stderr);
    };
    await becomes('stranger', stranger, '200');
    await stop();
    await mesh.killControl();
    await one.start();
    assert.equal(await stranger(), '200');

    await stop();
    const file = new SavedFile(join(one.directory, 'state', 'mesh.state'), () => {});
    const state = new ProxyState('cluster.local');
    const { subscriptions, absences, trust } = state.load((await file.read())!);
    const nowS = Date.now() / 1000;
    const { confirmedS } = absences.find(({ name }) => name === `/${mesh.at('stranger').address}`)!;
    assert.ok(confirmedS > nowS - HOUR_S && confirmedS <= nowS, `${confirmedS} at ${nowS}`);
    const old = absences.map(({ name }) => ({ name, confirmedS: confirmedS - 25 * HOUR_S }));
    file.write(() => state.save({ subscriptions, absences: old }, trust));
    await file.close();
    await one.start();
    // In its first seconds a node still waits for the control plane, and may then only know that there was no answer.
    const outcomes = new Set<string>();
    await eventually('it is refused, with the reason', async () => {
      outcomes.add(await stranger());
      const { requests } = JSON.parse(await one.page('/requests?limit=1'));
      assert.deepEqual([requests[0]?.reason, requests[0]?.detail], [Reason.NO_ROUTE, Detail.DISCOVERY_AWAY]);
      return true;
    });
    assert.deepEqual([...outcomes], ['ECONNRESET']);
    assert.equal(await cart(), '200', 'what is of the mesh has no such time');
    await mesh.startControl();
    await becomes('stranger', stranger, '200');
  });
});
