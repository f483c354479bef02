// Who is told, and when, that all workers of a node run on what was told to it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Reloaded } from '../../../../gateway/app.ts';
import { Confirmations } from '../../../../mesh-agent/node/confirmations.ts';

const EVERYWHERE: Reloaded = { applied: true, late: 0, errors: [] };
const LATE: Reloaded = { applied: true, late: 1, errors: [] };
const REFUSED: Reloaded = { applied: false, late: 0, errors: ['this', 'that'] };

/** Somebody who waits: what became of it so far. */
function waiter(confirmations: Confirmations): () => Promise<string> {
  let state = 'waits';
  confirmations.wait().then(
    () => (state = 'confirmed'),
    (error: Error) => (state = error.message),
  );
  return async () => {
    await new Promise(setImmediate);
    return state;
  };
}

test('a configuration confirms what was waited for when it was begun, and nothing later', async () => {
  const confirmations = new Confirmations();
  const early = waiter(confirmations);
  confirmations.begin();
  const late = waiter(confirmations);
  confirmations.settle(EVERYWHERE);
  assert.deepEqual([await early(), await late(), confirmations.everywhere], ['confirmed', 'waits', true]);
});

test('nothing is confirmed while a worker has not switched, whatever comes meanwhile', async () => {
  const confirmations = new Confirmations();
  const first = waiter(confirmations);
  confirmations.begin();
  confirmations.settle(LATE);
  const second = waiter(confirmations);
  assert.deepEqual([await first(), confirmations.everywhere], ['waits', false]);
  confirmations.begin();
  confirmations.settle(LATE);
  assert.deepEqual([await first(), await second()], ['waits', 'waits']);
  confirmations.begin();
  assert.deepEqual(confirmations.settle(EVERYWHERE), { recovered: false });
  assert.deepEqual([await first(), await second()], ['confirmed', 'confirmed']);
});

test('a refusal is told with its reasons, and so is that it holds no longer', async () => {
  const confirmations = new Confirmations();
  const first = waiter(confirmations);
  confirmations.begin();
  confirmations.settle(REFUSED);
  assert.deepEqual([await first(), confirmations.everywhere], ['the node proxy cannot use it: this; that', false]);
  confirmations.begin();
  assert.deepEqual(confirmations.settle(EVERYWHERE), { recovered: true });
  confirmations.begin();
  assert.deepEqual(confirmations.settle(EVERYWHERE), { recovered: false });
});

test('a process that ends neither confirms nor refuses', async () => {
  const confirmations = new Confirmations();
  const one = waiter(confirmations);
  confirmations.begin();
  const other = waiter(confirmations);
  confirmations.forget();
  confirmations.settle(REFUSED);
  assert.deepEqual([await one(), await other()], ['waits', 'waits']);
});
