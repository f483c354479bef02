// What all workers of a node share: counts that survive crashes, and slots that survive reloads.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import { BackendWord, CheckState, createNodeState, EndpointWord, NodeState } from '../../../../core/lb/node-state.ts';
import { NodeSlots } from '../../../../core/workers/node-slots.ts';
import type { BackendSettings } from '../../../../core/workers/snapshot.ts';
import { endpointSettings, plainBackend } from '../exchange/support.ts';

const { UNHEALTHY } = CheckState;

function backend(name: string, ...addresses: string[]): BackendSettings {
  return { ...plainBackend, name, endpoints: addresses.map((address) => endpointSettings(address)) };
}

/** Slot of each endpoint, after the slot of the backend. */
function slotsOf({ slot, endpoints }: BackendSettings): number[] {
  return [slot, ...endpoints.map((endpoint) => endpoint.slot)];
}

test('what a worker that died had counted is taken back by the one in its place, and nothing else', () => {
  const buffer = createNodeState(2, 4, 2);
  const first = new NodeState(buffer, 0);
  const second = new NodeState(buffer, 1);
  first.reclaim();
  second.reclaim();
  const active = first.endpointAt(3) + EndpointWord.ACTIVE;
  const pending = first.backendAt(1) + BackendWord.PENDING;
  assert.equal(first.add(active, 2), 0);
  assert.equal(second.add(active, 5), 2, 'the count of all workers, before');
  first.add(active, -1);
  first.add(pending, 1);
  const successor = new NodeState(buffer, 0);
  successor.reclaim();
  assert.equal(successor.words[active], 5);
  assert.equal(successor.words[pending], 0);
  successor.add(active, 1);
  new NodeState(buffer, 0).reclaim();
  assert.equal(second.words[active], 5, 'again and again');
});

test('a thread knows the memory that it has a view of, although every message brings it as another object', () => {
  const buffer = createNodeState(1, 4, 2);
  const view = new NodeState(buffer, 0);
  const { port1, port2 } = new MessageChannel();
  port1.postMessage(buffer);
  const { message } = receiveMessageOnPort(port2) as { message: SharedArrayBuffer };
  port1.close();
  assert.notEqual(message, buffer);
  assert.ok(view.isViewOf(message));
  assert.ok(!view.isViewOf(createNodeState(1, 4, 2)));
});

test('endpoints of different backends, and endpoints and backends, have words of their own', () => {
  const state = new NodeState(createNodeState(1, 3, 2), -1);
  const places = [0, 1, 2].map((slot) => state.endpointAt(slot)).concat([0, 1].map((slot) => state.backendAt(slot)));
  for (const at of places) state.words[at] = at + 1;
  for (const at of places) assert.equal(state.words[at], at + 1);
  assert.ok(state.backendAt(1) + BackendWord.WORDS <= state.words.length);
});

test('there is no share for a worker beyond those that the state was made for', () => {
  assert.throws(() => new NodeState(createNodeState(1, 1, 1), 1), /no share for worker 1/);
});

test('a reload keeps the slots of what it still names, and gives those of others away only much later', () => {
  const slots = new NodeSlots(1, createNodeState(1, 8, 8));
  const before = [backend('a', '10.0.0.1:1', '10.0.0.2:1'), backend('b', '10.0.0.1:1')];
  slots.assign(before, 0);
  assert.deepEqual(before.map(slotsOf), [
    [0, 0, 1],
    [1, 2],
  ]);
  const checkAt = slots.state.endpointAt(1) + EndpointWord.CHECK;
  slots.state.words[checkAt] = UNHEALTHY;
  const after = [backend('a', '10.0.0.3:1', '10.0.0.1:1')];
  slots.assign(after, 1000);
  slots.keepOnly(after, 1000);
  assert.deepEqual(slotsOf(after[0]!), [0, 3, 0]);
  const soon = [backend('a', '10.0.0.4:1')];
  slots.assign(soon, 2000);
  assert.deepEqual(slotsOf(soon[0]!), [0, 4], 'exchanges of the old snapshot may still count');
  assert.equal(slots.state.words[checkAt], UNHEALTHY);
  slots.keepOnly(after, 2000);
  const later = [backend('a', '10.0.0.5:1', '10.0.0.6:1', '10.0.0.7:1', '10.0.0.8:1')];
  slots.assign(later, 60 * 60_000);
  assert.deepEqual(slotsOf(later[0]!), [0, 5, 6, 7, 1], 'fresh ones first');
  assert.equal(slots.state.words[checkAt], 0, 'a new life begins with zeros');
});

test('an address that is missing for a while comes back to its slot and its health, however late', () => {
  const slots = new NodeSlots(1, createNodeState(1, 3, 2));
  const both = [backend('a', '10.0.0.1:1', '10.0.0.2:1')];
  const one = [backend('a', '10.0.0.1:1')];
  const checkAt = slots.state.endpointAt(1) + EndpointWord.CHECK;
  slots.assign(both, 0);
  slots.keepOnly(both, 0);
  slots.state.words[checkAt] = UNHEALTHY;
  for (const nowMs of [1000, 60 * 60_000]) {
    slots.assign(one, nowMs);
    slots.keepOnly(one, nowMs);
    slots.assign(both, 2 * nowMs);
    slots.keepOnly(both, 2 * nowMs);
    assert.deepEqual(slotsOf(both[0]!), [0, 0, 1]);
    assert.equal(slots.state.words[checkAt], UNHEALTHY);
  }
});

test('a slot in which something is still counted is nobody else’s, and neither is one that has not rested', () => {
  const slots = new NodeSlots(1, createNodeState(1, 2, 2));
  const worker = new NodeState(slots.state.buffer, 0);
  const before = [backend('a', '10.0.0.1:1', '10.0.0.2:1')];
  const other = [backend('b', '10.0.0.3:1')];
  slots.assign([...before, backend('c')], 0);
  // A tunnel that outlives its endpoint.
  const endpointActive = worker.endpointAt(0) + EndpointWord.ACTIVE;
  const connections = worker.backendAt(0) + BackendWord.CONNECTIONS;
  worker.add(endpointActive, 1);
  worker.add(connections, 1);
  slots.keepOnly([], 0);
  assert.throws(() => slots.assign(other, 1000), /more than 2 backends/);
  slots.assign(other, 60 * 60_000);
  assert.deepEqual(slotsOf(other[0]!), [1, 1]);
  const more = [backend('b', '10.0.0.3:1', '10.0.0.4:1')];
  assert.throws(() => slots.assign(more, 60 * 60_000), /more than 2 endpoints of all/);
  worker.add(endpointActive, -1);
  worker.add(connections, -1);
  slots.assign(more, 60 * 60_000);
  assert.deepEqual(slotsOf(more[0]!), [1, 1, 0]);
  assert.equal(slots.state.words[endpointActive], 0);
});

test('more endpoints than there is room for are refused with a sentence', () => {
  const slots = new NodeSlots(1, createNodeState(1, 1, 1));
  assert.throws(() => slots.assign([backend('a', '10.0.0.1:1', '10.0.0.2:1')], 0), /more than 1 endpoints of all/);
});
