// What somebody sees who listens between the nodes: TLS 1.3, and nothing else.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { runScript, startApp } from '../../support/mesh/apps.ts';
import { meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import { Capture, type Captured, chosenVersion, tlsRecords } from '../../support/mesh/packets.ts';

const TUNNEL_PORT = 15_008;
const CONTROL_PORT = 15_012;
const APPLICATION_DATA = 23;
const HANDSHAKE = 22;
const CLIENT_HELLO = 1;
const SERVER_HELLO = 2;
const TLS_1_3 = 0x0304;

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
  const one = mesh.at('one');
  const [wire, bridge] = await Promise.all(
    ['up0', 'br0'].map((link) => Capture.start(one, link, join(mesh.directory, `${link}.pcap`))),
  );

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
  const between = await wire!.stop();
  const within = await bridge!.stop();

  const addressOf = (name: string): string => mesh.at(name).address;
  assertTunnelsOnly(between, secret, [web.address, addressOf('cart-1'), addressOf('feed-0')]);
  // What stays on the node is as closed; nothing of it was to be seen outside.
  assertTunnelsOnly(within, secret, [web.address, addressOf('cart-0'), addressOf('cart-1'), addressOf('feed-0')]);
  const onNode = ({ flows }: Captured) => flows.filter(({ to }) => to.address === addressOf('cart-0'));
  assert.equal(onNode(between).length, 0);
  assert.ok(onNode(within).length > 0);
});

/** Everything in a capture is of the control plane, or a tunnel between some of these addresses. */
function assertTunnelsOnly({ flows, file }: Captured, secret: string, between: string[]): void {
  assert.equal(file.indexOf(secret), -1, 'nothing that applications said can be read');
  assert.equal(file.indexOf('HTTP/1.1'), -1);
  let tunnels = 0;
  for (const flow of flows) {
    const { from, to } = flow;
    const name = `${from.address}:${from.port} to ${to.address}:${to.port}`;
    if ([from.port, to.port].includes(CONTROL_PORT)) continue;
    tunnels++;
    assert.ok([from.port, to.port].includes(TUNNEL_PORT), name);
    assert.ok(between.includes(from.address) && between.includes(to.address), name);
    assert.ok(flow.whole, name);
    const records = tlsRecords(flow);
    assert.ok(records !== null && records.length > 0, `${name} is something else than TLS`);
    const fromServer = from.port === TUNNEL_PORT;
    if (fromServer) assert.equal(chosenVersion(records), TLS_1_3, name);
    // After the hellos all is encrypted: certificates, and so identities, too.
    const open = records.filter(({ type }) => type === HANDSHAKE);
    for (const { payload } of open) assert.equal(payload[0], fromServer ? SERVER_HELLO : CLIENT_HELLO, name);
    assert.ok(
      records.some(({ type }) => type === APPLICATION_DATA),
      name,
    );
  }
  assert.ok(tunnels >= 4, `${tunnels} flows`);
}
