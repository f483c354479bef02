// The idle connections of one endpoint: last in, first out, and removable from anywhere.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeSockaddr } from '../../../../core/ffi/sockaddr.ts';
import { Connection } from '../../../../core/io/connection.ts';
import { Endpoint } from '../../../../core/lb/endpoint.ts';
import { seededRandom } from '../io/seed.ts';

function endpointOf(host: string, port: number): Endpoint {
  return new Endpoint({ address: `${host}:${port}`, host, port });
}

function listed(endpoint: Endpoint): Connection[] {
  const list: Connection[] = [];
  for (let each = endpoint.idle; each !== null; each = each.idleNext) list.push(each);
  return list;
}

test('an endpoint knows its address in the form for connect', () => {
  const endpoint = endpointOf('2001:db8::7', 8443);
  assert.deepEqual(decodeSockaddr(endpoint.sockaddr, 0), { host: '2001:db8::7', port: 8443 });
  assert.equal(Buffer.from(endpoint.addressBytes).toString(), endpoint.address);
});

test('a host that is a name is refused: names are resolved before', () => {
  assert.throws(() => endpointOf('localhost', 80), /has no IP address/);
});

test('takes the connection used last, and null when there is none', () => {
  const endpoint = endpointOf('127.0.0.1', 1);
  const connections = [0, 1, 2].map((slot) => new Connection(slot));
  for (const connection of connections) endpoint.addIdle(connection);
  assert.equal(endpoint.idleCount, 3);
  assert.deepEqual([endpoint.takeIdle(), endpoint.takeIdle(), endpoint.takeIdle()], connections.toReversed());
  assert.equal(endpoint.takeIdle(), null);
  assert.equal(endpoint.idleCount, 0);
});

test('random adding, taking and removing keeps list and count right', (t) => {
  const { random, label } = seededRandom(t);
  const endpoint = endpointOf('127.0.0.1', 1);
  const reference: Connection[] = [];
  const free = Array.from({ length: 12 }, (_, slot) => new Connection(slot));
  for (let step = 0; step < 5000; step++) {
    if (free.length > 0 && random.chance(0.5)) {
      const connection = free.splice(random.int(0, free.length - 1), 1)[0];
      endpoint.addIdle(connection);
      reference.unshift(connection);
    } else if (random.chance(0.5)) {
      const taken = endpoint.takeIdle();
      assert.equal(taken, reference.shift() ?? null, label);
      if (taken !== null) free.push(taken);
    } else if (reference.length > 0) {
      const [removed] = reference.splice(random.int(0, reference.length - 1), 1);
      endpoint.removeIdle(removed);
      assert.deepEqual([removed.idleNext, removed.idlePrevious], [null, null], label);
      free.push(removed);
    }
    assert.deepEqual(
      listed(endpoint).map(({ slot }) => slot),
      reference.map(({ slot }) => slot),
      label,
    );
    assert.equal(endpoint.idleCount, reference.length, label);
  }
});
