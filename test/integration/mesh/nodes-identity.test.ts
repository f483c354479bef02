// Peers at the ends of tunnels whose certificates are not what they should be: each is refused, and said why.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import { FalseProxy, Forger, openTunnel } from '../../support/mesh/peers.ts';

const skip = meshSkipReason();

test('identities at both ends of a tunnel', { skip }, async (t) => {
  const mesh = await TestMesh.create(
    t,
    {
      nodes: {
        one: { 'web-0': {}, thief: { member: false } },
        two: { 'cart-0': {} },
        three: { 'bank-0': {} },
      },
      services: {
        cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
        bank: [{ port: 80, targetPort: 8080, protocol: 'http' }],
      },
      policies: `
kind: AuthorizationPolicy
metadata: {name: web-only, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
`,
    },
    // Where the bank runs there is no proxy of ours.
    { mode: 'strict', without: ['three'] },
  );
  await startApp(mesh.at('cart-0'), 'cart-0', { port: 8080, kind: 'http' });
  const { clients } = mesh;
  const forger = await Forger.ofMesh(join(mesh.directory, 'state', 'ca'));
  const stranger = await Forger.stranger();
  const web = mesh.identity('web-0');

  await t.test('a client of a tunnel needs a valid certificate of the mesh', async (t) => {
    const cart = mesh.at('cart-0').address;
    const open = (papers: Awaited<ReturnType<Forger['issue']>> | null, newest?: 'TLSv1.2') =>
      openTunnel(clients, mesh.at('thief'), cart, `${cart}:8080`, papers, newest);
    const good = await open(await forger.issue(web));
    assert.ok(good.kind === 'answered', JSON.stringify(good));
    assert.deepEqual([good.status, good.peer], [200, `URI:${mesh.identity('cart-0')}`]);
    const answer = await new Promise<string>((resolve) => {
      good.stream.once('data', (bytes) => resolve(String(bytes)));
      good.stream.write('GET / HTTP/1.1\r\nhost: cart\r\n\r\n');
    });
    assert.match(answer, /^HTTP\/1\.1 200 OK\r\n/);
    good.session.destroy();
    for (const [name, papers, code] of [
      ['no certificate', null, /CERTIFICATE_REQUIRED/],
      ['another root', await stranger.issue(web), /UNKNOWN_CA/],
      ['an expired certificate', await forger.issue(web, true), /CERTIFICATE_EXPIRED/],
    ] as const) {
      await t.test(name, async () => {
        const outcome = await open(papers);
        assert.ok(outcome.kind === 'refused', `${name}: ${JSON.stringify(outcome.kind)}`);
        assert.match(outcome.reason, code);
      });
    }
    await t.test('a valid certificate over TLS 1.2', async () => {
      const outcome = await open(await forger.issue(web), 'TLSv1.2');
      assert.ok(outcome.kind === 'refused', JSON.stringify(outcome.kind));
      assert.match(outcome.reason, /PROTOCOL_VERSION/);
    });
    await t.test('a valid one of somebody who may not', async () => {
      const outcome = await open(await forger.issue('spiffe://cluster.local/ns/shop/sa/thief'));
      if (outcome.kind === 'refused') return;
      if (outcome.status !== 200) return;
      const text = await new Promise<string>((resolve) => {
        let text = '';
        outcome.stream.on('data', (bytes) => (text += bytes));
        outcome.stream.once('close', () => resolve(text));
        outcome.stream.write('GET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n');
      });
      outcome.session.destroy();
      assert.ok(text === '' || /^HTTP\/1\.1 403 /.test(text), text);
    });
  });

  await t.test('the node that refused them counts them by reason', async () => {
    for (const failure of ['client_certificate_required', 'unknown_ca', 'certificate_expired']) {
      await eventually(`${failure} is counted`, async () =>
        (await mesh.node('two').page('/metrics')).includes(
          `portcullis_tls_handshake_failures_total{failure="${failure}"} 1\n`,
        ),
      );
    }
  });

  await t.test('a tunnel leads to addresses of its workload only', async () => {
    const papers = await forger.issue(web);
    for (const elsewhere of [mesh.at('bank-0').address, mesh.at('two').address, '127.0.0.1', mesh.vip('cart')]) {
      const target = `${elsewhere}:8080`;
      const outcome = await openTunnel(clients, mesh.at('thief'), mesh.at('cart-0').address, target, papers);
      assert.ok(outcome.kind === 'answered' && outcome.status >= 400, `${target}: ${JSON.stringify(outcome.kind)}`);
      outcome.session.destroy();
    }
  });

  await t.test('whoever answers where a workload is must have its identity', async (t) => {
    const bank = mesh.identity('bank-0');
    const ask = () => clients.request(mesh.at('web-0'), mesh.vip('bank'), 80);
    const server = await FalseProxy.start(t, mesh.at('bank-0'), await stranger.issue(bank), forger.rootPem);
    for (const [name, detail, papers] of [
      ['another root', 'tls_unknown_ca', await stranger.issue(bank)],
      ['an expired certificate', 'tls_certificate_expired', await forger.issue(bank, true)],
      ['a valid certificate of somebody else', 'tls_wrong_host', await forger.issue(mesh.identity('cart-0'))],
      ['that of a node', 'tls_wrong_host', await forger.issue('spiffe://cluster.local/node/three')],
    ] as const) {
      await t.test(name, async () => {
        server.show(papers, forger.rootPem);
        const { status, headers, body } = await ask();
        assert.equal(status, 503, body);
        assert.equal(server.tunnels, 0);
        const id = headers['x-request-id'];
        const entry = await eventually('it is in the log', () =>
          mesh
            .node('one')
            .accessLog()
            .find(({ requestId }) => requestId === id),
        );
        assert.deepEqual([entry.reason, entry.detail], ['UF', detail], name);
      });
    }
    await t.test('the right one', async () => {
      server.show(await forger.issue(bank), forger.rootPem);
      const { status, body } = await ask();
      assert.deepEqual([status, body, server.tunnels], [200, 'false', 1]);
    });
  });
});
