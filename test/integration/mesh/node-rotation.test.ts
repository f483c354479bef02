// The root of the mesh is replaced under load: node proxies take the new roots, renew, and confirm, and no request fails.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { NodeMeshPage } from '../../../mesh-agent/node/node-admin.ts';
import { ConstantLoad, startApp } from '../../support/mesh/apps.ts';
import { meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';

/** Renewals are spread over 20 s. */
const LIMIT_MS = 60_000;

test('a rotation of the root under load costs no request', { skip: meshSkipReason() }, async (t) => {
  const mesh = await TestMesh.create(t, {
    nodes: { one: { 'web-0': {} }, two: { 'cart-0': {} } },
    services: { cart: [{ port: 80, targetPort: 8080, protocol: 'http' }] },
  });
  await startApp(mesh.at('cart-0'), 'cart-0', { port: 8080, kind: 'http' });
  const url = `http://${mesh.vip('cart')}/`;
  const load = new ConstantLoad(mesh.at('web-0'), { url, lanes: 4, perConnection: 20, rate: 200 });
  await load.more(1);
  const before = (await mesh.status()).ca.activeRoot;
  await mesh.command('rotate', '--config', join(mesh.directory, 'control.yaml'));
  const endMs = performance.now() + LIMIT_MS;
  for (;;) {
    const { phase, activeRoot } = (await mesh.status()).ca;
    if (phase === 'idle' && activeRoot !== before) break;
    assert.ok(performance.now() < endMs, `the rotation is still in ${phase}`);
    await delay(100);
  }
  await load.more(2);
  const { failed, failures } = await load.stop();
  assert.deepEqual([failed, failures], [0, []]);
  const { activeRoot } = (await mesh.status()).ca;
  for (const node of mesh.nodes.values()) {
    const { trust, workloads } = JSON.parse(await node.page('/mesh')) as NodeMeshPage;
    assert.deepEqual(trust.roots, [activeRoot], `what node ${node.name} trusts`);
    assert.ok(workloads.every(({ served }) => served));
  }
});
