import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CapacityInput, workerConnections } from '../../../gateway/capacity.ts';

const base: CapacityInput = { workers: 2, listeners: 1, maxConnections: 'auto', descriptorLimit: 20_000 };

function slots(input: Partial<CapacityInput>): number | string {
  const capacity = workerConnections({ ...base, ...input });
  return 'connectionsMax' in capacity ? capacity.connectionsMax : capacity.sentence;
}

test('by default the descriptor limit is shared out among the workers, less what the process needs', () => {
  assert.equal(slots({}), 9919);
  assert.equal(slots({ workers: 1 }), 19_855);
});

test('a huge descriptor limit does not become a huge table', () => {
  assert.equal(slots({ descriptorLimit: 2 ** 30 }), 131_072);
});

test('a configured number is shared out among the workers and rounded up', () => {
  assert.equal(slots({ maxConnections: 1001 }), 501);
});

test('a limit that leaves too few connections is refused with the number that is needed', () => {
  assert.equal(
    slots({ descriptorLimit: 200 }),
    'too few file descriptors: 2 worker(s) need at least 290, and the limit is 200 (raise it with `ulimit -n` or LimitNOFILE=).',
  );
  assert.equal(slots({ descriptorLimit: 290 }), 64);
});

test('a configured number beyond the limit is refused instead of silently lowered', () => {
  assert.match(
    String(slots({ maxConnections: 50_000 })),
    /limits\.maxConnections of 50000 need at least 50162.*is 20000/,
  );
});
