// A node that starts with many workloads.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { netnsSkipReason, TestNetwork } from '../../support/netns/network.ts';
import { openCaptures, specOf } from './capture-support.ts';

const skip = netnsSkipReason('nft');

test('a hundred namespaces are captured and released', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const all = await network.addIsolated(Array.from({ length: 100 }, (_, i) => `w${i}`));
  const { captures } = openCaptures(t);
  const spec = specOf({ excludeOutboundPorts: ['22'] });
  const startMs = performance.now();
  const installed = await Promise.all(all.map(({ path }) => captures.install(path, spec)));
  t.diagnostic(`100 namespaces in ${Math.round(performance.now() - startMs)} ms`);
  assert.ok(installed.every((result) => result.ok && result.changed));
  // Far more than it takes, far less than anybody would wait for a node to start.
  assert.ok(performance.now() - startMs < 30_000);
  assert.match((await all[99]!.run('nft', ['list', 'ruleset'])).stdout, /redirect to :15001/);
  const removed = await Promise.all(all.map(({ path }) => captures.remove(path, spec.table)));
  assert.ok(removed.every((result) => result.ok && result.changed));
});
