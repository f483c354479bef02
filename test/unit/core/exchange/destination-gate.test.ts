// Which addresses a node proxy is told to be in use.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { DestinationGate } from '../../../../core/exchange/destination-gate.ts';
import type { Connection } from '../../../../core/io/connection.ts';

const gate = (): DestinationGate => {
  const reactor = { nowMs: 0, forEach: () => {} };
  return new DestinationGate({ reactor } as unknown as ProxyContext);
};

test('an address in use is one, on however many ports', () => {
  const all = gate();
  // All ports of one scanner come to more than is remembered.
  for (let port = 1; port <= 65_535; port++) all.takes({ destination: `10.9.0.1:${port}` } as Connection, true);
  all.takes({ destination: '[fd00::1]:80' } as Connection, true);
  assert.deepEqual(all.takeUsed(), { hosts: ['10.9.0.1', 'fd00::1'], all: false });
  assert.deepEqual(all.takeUsed(), { hosts: [], all: false });
});

test('too many addresses in use are not told one by one', () => {
  const many = gate();
  for (let host = 0; host < 20_000; host++) {
    many.takes({ destination: `10.1.${host >> 8}.${host & 255}:80` } as Connection, true);
  }
  assert.equal(many.takeUsed().all, true);
  assert.equal(many.takeUsed().all, false);
});
