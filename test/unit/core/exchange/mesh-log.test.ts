// What logs say of an exchange of a workload: in which direction, with whom, meant for what.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { clearMesh, loadMesh } from '../../../../core/exchange/mesh-log.ts';
import type { WorkloadRuntime } from '../../../../core/exchange/mesh-runtime.ts';
import type { ListenerRuntime, Runtime } from '../../../../core/exchange/runtime.ts';
import { Connection } from '../../../../core/io/connection.ts';
import { LogSource } from '../../../../core/telemetry/log-source.ts';
import type { ListenerMeshSettings } from '../../../../core/workers/mesh-settings.ts';

const SERVICE = 'shop/cart.shop.svc.cluster.local:80';
const WEB = 'spiffe://cluster.local/ns/shop/sa/web';
const CART = 'spiffe://cluster.local/ns/shop/sa/cart';
const encode = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A connection of `shop/web-0` at a listener. */
function connectionAt(role: ListenerMeshSettings['role'], name = role as string, port = 0): Connection {
  const connection = new Connection(0);
  connection.workload = { nameBytes: encode('shop/web-0') } as WorkloadRuntime;
  connection.listener = { nameBytes: encode(name), settings: { port, mesh: { role } } } as ListenerRuntime;
  return connection;
}

/** An exchange that goes to an endpoint, in a tunnel to an identity if one is given. */
function exchangeTo(...identities: string[]): Exchange {
  const exchange = new Exchange();
  const endpoints = [{ tunnel: null }, ...identities.map((name) => ({ tunnel: { verifyNames: [name] } }))];
  exchange.runtime = { backends: [{ endpoints }] } as unknown as Runtime;
  exchange.backend = 0;
  exchange.endpoint = endpoints.length - 1;
  return exchange;
}

function namesOf(exchange: Exchange, connection: Connection): string {
  const source = new LogSource();
  loadMesh(source, exchange, connection);
  const { workload, side, peer, service, policy } = source;
  return [workload, side, peer, service, policy].map((bytes) => Buffer.from(bytes).toString() || '-').join(' ');
}

test('what a workload begins has the service that it was for, and the identity that the tunnel leads to', () => {
  const toService = connectionAt('virtual', SERVICE, 80);
  assert.equal(namesOf(exchangeTo(CART), toService), `shop/web-0 outbound ${CART} ${SERVICE} -`);
  assert.equal(namesOf(exchangeTo(), toService), `shop/web-0 outbound - ${SERVICE} -`, 'in plain text');
  assert.equal(namesOf(new Exchange(), toService), `shop/web-0 outbound - ${SERVICE} -`, 'no endpoint was chosen');
  for (const connection of [
    connectionAt('virtual', 'direct'),
    connectionAt('outbound', 'shop/web-0 outbound', 15001),
  ]) {
    assert.equal(namesOf(exchangeTo(CART), connection), `shop/web-0 outbound ${CART} - -`);
  }
});

test('what comes to a workload has the identity that was verified', () => {
  for (const role of ['inbound', 'tunnels'] as const) {
    const connection = connectionAt(role, `shop/web-0 ${role}`, 15008);
    assert.equal(namesOf(exchangeTo(CART), connection), 'shop/web-0 inbound - - -');
    connection.clientCertificate = { verified: true, spiffeId: WEB } as Connection['clientCertificate'];
    assert.equal(namesOf(exchangeTo(CART), connection), `shop/web-0 inbound ${WEB} - -`);
    connection.clientCertificate = { verified: false, spiffeId: WEB } as Connection['clientCertificate'];
    assert.equal(namesOf(exchangeTo(CART), connection), 'shop/web-0 inbound - - -');
  }
});

test('nothing of one exchange is left for the next', () => {
  const source = new LogSource();
  loadMesh(source, exchangeTo(CART), connectionAt('virtual', SERVICE, 80));
  clearMesh(source);
  assert.deepEqual(source, new LogSource());
  const exchange = exchangeTo(CART);
  exchange.allowedBy = 3;
  exchange.reset();
  assert.equal(exchange.allowedBy, -1);
});
