// A snapshot as a worker uses it: endpoints that outlive a reload, texts made ready once.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileRouteTable } from '../../../../config/compile-routes.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { ListenerRuntime } from '../../../../core/exchange/runtime.ts';
import type { Text } from '../../../../core/io/bytes.ts';
import { Connection } from '../../../../core/io/connection.ts';
import type { Endpoint } from '../../../../core/lb/endpoint.ts';
import type { BackendSettings } from '../../../../core/workers/snapshot.ts';
import { sketchRoutes } from '../routing/table-fixture.ts';
import { endpointSettings, openRuntime, plainBackend, plainListener, runtimeOf, snapshotOf } from './support.ts';

function backend(name: string, addresses: string[]): BackendSettings {
  const endpoints = addresses.map((address, index) => endpointSettings(address, index + 1));
  return { ...plainBackend, name, endpoints };
}

function textOf(text: Text): string {
  return Buffer.from(text.bytes.subarray(0, text.length)).toString();
}

test('a reload keeps the endpoints it still names, with their idle connections', () => {
  const endpoints = new Map<string, Endpoint>();
  const first = openRuntime(snapshotOf({}, [backend('a', ['10.0.0.1:1', '10.0.0.2:1'])]), endpoints);
  const kept = first.backends[0].endpoints[1];
  kept.addIdle(new Connection(3));
  // Between two snapshots an endpoint that is not named yet counts as removed.
  kept.removed = true;
  const next = snapshotOf({}, [backend('b', ['10.0.0.2:1', '10.0.0.3:1'])], 2);
  const second = openRuntime(next, endpoints);
  assert.equal(second.backends[0].endpoints[0], kept);
  assert.equal(kept.removed, false);
  assert.equal(kept.idleCount, 1);
  assert.equal(second.epoch, 2);
  assert.deepEqual(
    [...endpoints.values()].map((endpoint) => endpoint.address),
    ['10.0.0.1:1', '10.0.0.2:1', '10.0.0.3:1'],
  );
  assert.equal(first.backends[0].endpoints.length, 2, 'exchanges in flight go on with what they had');
});

test('each backend picks among its endpoints by weight, from a place of its own', () => {
  const exchange = new Exchange();
  const backends = [backend('a', ['10.0.0.1:1', '10.0.0.2:1']), backend('none', [])];
  const runtime = openRuntime(snapshotOf({}, backends), undefined, () => 0.1);
  const picks = Array.from({ length: 6 }, () => runtime.backends[0].balancer.pick(exchange));
  assert.deepEqual([picks.filter((pick) => pick === 0).length, picks.filter((pick) => pick === 1).length], [2, 4]);
  assert.equal(runtime.backends[1].balancer.pick(exchange), -1);
});

test('added fields are whole lines, or nothing', () => {
  const none = runtimeOf();
  assert.deepEqual([...none.viaLines, none.serverLine, none.reasonName].map(textOf), ['', '', '', '', '']);
  const some = runtimeOf({ via: 'p', server: 'S 1', reasonHeader: 'x-reason', upgradeProtocols: ['WebSocket'] });
  assert.deepEqual(some.viaLines.map(textOf), ['via: 1.0 p\r\n', 'via: 1.1 p\r\n', 'via: 2.0 p\r\n']);
  assert.equal(textOf(some.serverLine), 'server: S 1\r\n');
  assert.equal(textOf(some.reasonName), 'x-reason: ');
  assert.deepEqual(
    some.upgradeProtocols.map((bytes) => Buffer.from(bytes).toString()),
    ['websocket'],
  );
});

test('the limits of requests and responses are told apart', () => {
  const runtime = runtimeOf({ requestHeadBytesMax: 1, responseHeadBytesMax: 2, headerCountMax: 3, uriBytesMax: 4 });
  assert.deepEqual(runtime.requestLimits, { headBytesMax: 1, headerCountMax: 3, uriBytesMax: 4 });
  assert.equal(runtime.responseLimits.headBytesMax, 2);
  assert.equal(runtime.responseLimits.headerCountMax, 3);
});

test('a rule has the label of its route, and no rule an empty one', () => {
  const routes = compileRouteTable({
    listeners: ['l'],
    backends: ['b'],
    routes: sketchRoutes([{ rules: [['/'], ['/x']] }]),
  });
  const runtime = openRuntime({ ...snapshotOf({}, [backend('b', [])]), routes });
  const label = Buffer.from(runtime.ruleLabel(1)).toString();
  assert.match(label, /r0/);
  assert.notEqual(Buffer.from(runtime.ruleLabel(0)).toString(), label);
  assert.equal(runtime.ruleLabel(1), runtime.ruleLabel(1), 'made once');
  assert.equal(runtime.ruleLabel(-1).length, 0);
});

test('a listener takes over what a newer snapshot says of it, and keeps its socket', () => {
  const settings = { ...plainListener, name: 'a' };
  const listener = new ListenerRuntime(settings, 0, 17);
  listener.update({ ...settings, name: 'b', scheme: 'https' }, 4);
  assert.deepEqual([listener.index, listener.https, listener.fd], [4, true, 17]);
  assert.equal(Buffer.from(listener.nameBytes).toString(), 'b');
});
