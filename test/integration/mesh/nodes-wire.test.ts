// What somebody sees who listens between the nodes: TLS 1.3, and nothing else.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { runScript, startApp } from '../../support/mesh/apps.ts';
import { meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import { Capture, chosenVersion, tlsRecords } from '../../support/mesh/packets.ts';

const TUNNEL_PORT = 15_008;
const CONTROL_PORT = 15_012;
const APPLICATION_DATA = 23;
const HANDSHAKE = 22;
const CLIENT_HELLO = 1;
const SERVER_HELLO = 2;

const skip = meshSkipReason('curl', 'tcpdump');

test('packets between nodes are TLS 1.3 to port 15008, whatever applications speak', { skip }, async (t) => {
  const mesh = await TestMesh.create(t, {
    nodes: { one: { 'web-0': {}, 'cart-0': {} }, two: { 'cart-1': {}, 'feed-0': {} } },
    services: {
      cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
      feed: [
        { port: 443, targetPort: 50_051, protocol: 'grpc' },
        { port: 7000, targetPort: 7000, protocol: 'tcp' },
      ],
    },
  });
  const http = { port: 8080, kind: 'http' } as const;
  await Promise.all([
    startApp(mesh.at('cart-0'), 'cart-0', http),
    startApp(mesh.at('cart-1'), 'cart-1', http),
    startApp(mesh.at('feed-0'), 'feed-0', { port: 50_051, kind: 'grpc' }, { port: 7000, kind: 'echo' }),
  ]);
  const { clients } = mesh;
  const web = mesh.at('web-0');
  const secret = 'do-not-read-this-on-the-wire';
  const capture = await Capture.start(mesh.at('one'), 'up0', join(mesh.directory, 'wire.pcap'));

  const reached = new Set<string>();
  for (let count = 0; reached.size < 2; count++) {
    assert.ok(count < 200, `only ${[...reached]} was reached`);
    const options = { method: 'POST', path: `/${secret}`, headers: { cookie: secret }, body: secret };
    const { status, body } = await clients.request(web, mesh.vip('cart'), 80, options);
    assert.equal(status, 200, body);
    reached.add(JSON.parse(body).app);
  }
  const { stdout } = await runScript(web, './grpc-client.ts', {
    target: `${mesh.vip('feed')}:443`,
    say: [secret],
    count: 1,
  });
  assert.match(stdout, /feed-0: do-not/);
  assert.equal(await clients.exchange(web, mesh.vip('feed'), 7000, secret, secret.length), secret);
  assert.equal((await clients.request(web, mesh.at('cart-1').address, 8080, { path: `/${secret}` })).status, 200);
  const { flows, file } = await capture.stop();

  assert.equal(file.indexOf(secret), -1, 'nothing that applications said can be read');
  assert.equal(file.indexOf('HTTP/1.1'), -1);
  const tunnels = flows.filter(({ to, from }) => [to.port, from.port].includes(TUNNEL_PORT));
  const others = flows.filter((flow) => !tunnels.includes(flow));
  for (const { from, to } of others) {
    assert.ok([from.port, to.port].includes(CONTROL_PORT), `${from.address}:${from.port} to ${to.address}:${to.port}`);
  }
  const addresses = new Set([web.address, mesh.at('cart-1').address, mesh.at('feed-0').address]);
  assert.ok(tunnels.length >= 4, `${tunnels.length} flows`);
  for (const flow of tunnels) {
    const name = `${flow.from.address}:${flow.from.port} to ${flow.to.address}:${flow.to.port}`;
    assert.ok(addresses.has(flow.from.address) && addresses.has(flow.to.address), name);
    assert.ok(flow.whole, name);
    const records = tlsRecords(flow);
    assert.ok(records !== null && records.length > 0, `${name} is something else than TLS`);
    const fromServer = flow.from.port === TUNNEL_PORT;
    if (fromServer) assert.equal(chosenVersion(records), 0x0304, name);
    // After the hellos all is encrypted: certificates, and so identities, too.
    const open = records.filter(({ type }) => type === HANDSHAKE);
    for (const { payload } of open) assert.equal(payload[0], fromServer ? SERVER_HELLO : CLIENT_HELLO, name);
    assert.ok(
      records.some(({ type }) => type === APPLICATION_DATA),
      name,
    );
  }
});
