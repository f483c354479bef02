// Counting and ejecting on a shared node state, as workers do it, with several views of one state.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BackendWord, createNodeState, EndpointWord, NodeState } from '../../../../core/lb/node-state.ts';
import {
  EjectionCause,
  eject,
  noteFailure,
  noteSuccess,
  type OutlierSettings,
} from '../../../../core/lb/outlier-detection.ts';

const base: OutlierSettings = {
  consecutive5xx: 5,
  consecutiveGatewayFailures: 0,
  intervalMs: 10_000,
  baseEjectionMs: 30_000,
  maxEjectionMs: 300_000,
  maxEjectionPercent: 50,
  successRate: null,
  failurePercentage: null,
  ramp: [1, 25, 100],
  rampStepMs: 10_000,
};

const BACKEND = 2;

/** A backend with so many endpoints (slots from 0) on a node with two workers. */
function harness(endpoints: number, more: Partial<OutlierSettings> = {}) {
  const settings = { ...base, ...more };
  const buffer = createNodeState(2, 16, 4);
  const workers = [new NodeState(buffer, 0), new NodeState(buffer, 1)];
  const node = workers[0]!;
  let turn = 0;
  const word = (slot: number, index: number): number => node.words[node.endpointAt(slot) + index]!;
  return {
    node,
    settings,
    word,
    withheld: (slot: number): number => word(slot, EndpointWord.WITHHELD_PERMILLE),
    setWithheld: (slot: number, permille: number): void => {
      node.words[node.endpointAt(slot) + EndpointWord.WITHHELD_PERMILLE] = permille;
    },
    backend: (index: number): number => node.words[node.backendAt(BACKEND) + index]!,
    /** Workers take turns. */
    fail: (slot: number, times = 1, isGatewayFailure = true, nowMs = 1000): void => {
      for (let i = 0; i < times; i++) {
        const worker = workers[turn++ % 2]!;
        noteFailure(worker, settings, BACKEND, slot, endpoints, isGatewayFailure, true, nowMs);
      }
    },
    succeed: (slot: number): void => noteSuccess(workers[turn++ % 2]!, settings, slot),
  };
}

test('the fifth failure in a row ejects, counted over workers, and tells balancers', () => {
  const { fail, withheld, word, backend } = harness(4);
  fail(0, 4);
  assert.equal(withheld(0), 0);
  assert.equal(backend(BackendWord.GENERATION), 0);
  fail(0, 1, true, 7000);
  assert.equal(withheld(0), 1000);
  assert.equal(word(0, EndpointWord.EJECTED_AT_MS), 7000);
  assert.equal(word(0, EndpointWord.EJECTION_FIGURE), 5);
  assert.equal(backend(BackendWord.GENERATION), 1);
  assert.equal(backend(BackendWord.EJECTED), 1);
  assert.equal(backend(BackendWord.EJECTIONS + EjectionCause.CONSECUTIVE_5XX), 1);
});

test('a success in between starts the count anew', () => {
  const { fail, succeed, withheld } = harness(4);
  fail(0, 4);
  succeed(0);
  fail(0, 4);
  assert.equal(withheld(0), 0);
  fail(0);
  assert.equal(withheld(0), 1000);
});

test('gateway failures are counted for themselves: another 5xx ends their row', () => {
  const { fail, withheld, backend } = harness(4, { consecutive5xx: 0, consecutiveGatewayFailures: 3 });
  fail(0, 2);
  fail(0, 1, false);
  fail(0, 2);
  fail(0, 10, false);
  assert.equal(withheld(0), 0);
  fail(0, 3);
  assert.equal(withheld(0), 1000);
  assert.equal(backend(BackendWord.EJECTIONS + EjectionCause.CONSECUTIVE_GATEWAY_FAILURES), 1);
});

test('no more endpoints are ejected than the share allows, and the next error tries again', () => {
  const { fail, withheld, setWithheld, node, backend } = harness(4);
  fail(0, 5);
  fail(1, 5);
  fail(2, 7);
  assert.deepEqual([0, 1, 2, 3].map(withheld), [1000, 1000, 0, 0]);
  assert.equal(backend(BackendWord.EJECTED), 2);
  setWithheld(0, 0);
  Atomics.sub(node.words, node.backendAt(BACKEND) + BackendWord.EJECTED, 1);
  fail(2);
  assert.equal(withheld(2), 1000);
});

test('one endpoint may always be ejected, however small the share', () => {
  const { fail, withheld } = harness(3, { maxEjectionPercent: 10 });
  fail(0, 5);
  fail(1, 5);
  assert.deepEqual([0, 1].map(withheld), [1000, 0]);
});

test('the first error during a return ejects again', () => {
  const { fail, withheld, setWithheld, backend, word } = harness(4);
  setWithheld(0, 750);
  fail(0);
  assert.equal(withheld(0), 1000);
  assert.equal(backend(BackendWord.EJECTIONS + EjectionCause.RETURN_FAILED), 1);
  assert.equal(word(0, EndpointWord.EJECTION_FIGURE), 25);
});

test('where a return fails and nothing more may be ejected, the return begins anew', () => {
  const { fail, withheld, setWithheld, word, backend } = harness(2);
  fail(1, 5);
  setWithheld(0, 750);
  const generation = backend(BackendWord.GENERATION);
  fail(0, 1, true, 9000);
  assert.equal(withheld(0), 990);
  assert.equal(word(0, EndpointWord.RAMPED_AT_MS), 9000);
  assert.equal(backend(BackendWord.GENERATION), generation + 1);
});

test('failures of an ejected endpoint change nothing more', () => {
  const { fail, word, backend } = harness(4);
  fail(0, 5, true, 1000);
  fail(0, 20, true, 5000);
  assert.equal(word(0, EndpointWord.EJECTED_AT_MS), 1000);
  assert.equal(word(0, EndpointWord.EJECTIONS), 1);
  assert.equal(backend(BackendWord.EJECTED), 1);
});

test('an endpoint that is leaving is not ejected, so that no place stays taken', () => {
  const { fail, withheld, node, backend } = harness(4);
  node.words[node.endpointAt(0) + EndpointWord.DRAINING] = 1;
  fail(0, 9);
  assert.equal(withheld(0), 0);
  assert.equal(backend(BackendWord.EJECTED), 0);
});

test('of two threads that eject the same endpoint, one does, and one place is taken', () => {
  const { node, settings, withheld, setWithheld, backend } = harness(4);
  setWithheld(0, 1000);
  // The other thread had seen 0 before.
  assert.equal(eject(node, settings, BACKEND, 0, 4, 0, EjectionCause.CONSECUTIVE_5XX, 5, 1000), false);
  assert.equal(backend(BackendWord.EJECTED), 0);
  assert.equal(withheld(0), 1000);
});

test('ejections are counted for the growing time no further than the longest one needs', () => {
  const { fail, setWithheld, word, node } = harness(4, { maxEjectionMs: 70_000 });
  for (let i = 0; i < 6; i++) {
    fail(0, 5);
    setWithheld(0, 0);
    Atomics.sub(node.words, node.backendAt(BACKEND) + BackendWord.EJECTED, 1);
  }
  assert.equal(word(0, EndpointWord.EJECTED_TIMES), 6);
  assert.equal(word(0, EndpointWord.EJECTIONS), 3);
});

test('requests of an interval are counted only where rates are asked for, an answer that is cut once', () => {
  const without = harness(4);
  without.fail(0);
  without.succeed(0);
  assert.equal(without.word(0, EndpointWord.INTERVAL_REQUESTS), 0);
  const { node, settings, fail, succeed, word } = harness(4, {
    failurePercentage: { threshold: 50, minimumHosts: 1, requestVolume: 1 },
  });
  succeed(0);
  fail(0);
  succeed(0);
  noteFailure(node, settings, BACKEND, 0, 4, true, false, 1000);
  assert.equal(word(0, EndpointWord.INTERVAL_REQUESTS), 3);
  assert.equal(word(0, EndpointWord.INTERVAL_FAILURES), 2);
});
