// Loads of priority levels and panic: the tables of Envoy's documentation ("Priority levels" and "Panic
// threshold"), computed anew by its formulas where it rounds its examples.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { levelLoads } from '../../../../core/lb/priority-load.ts';

/** Loads for levels of 100 endpoints each, of which so many are usable. */
function loads(usable: number[], panicThreshold = 50): { percent: number[]; panic: boolean[] } {
  const result = levelLoads(
    usable.map((one) => ({ total: 100, usable: one })),
    140,
    panicThreshold,
  );
  return { percent: result.map(({ percent }) => percent), panic: result.map(({ panic }) => panic) };
}

const cases: [usable: number[], percent: number[], panic?: boolean[]][] = [
  // One level gets everything, and panics below the threshold.
  [[100], [100]],
  [[50], [100], [false]],
  [[49], [100], [true]],
  [[0], [100], [true]],
  // Two levels, the second healthy.
  [
    [100, 100],
    [100, 0],
  ],
  [
    [72, 100],
    [100, 0],
  ],
  [
    [71, 100],
    [99, 1],
  ],
  [
    [50, 100],
    [70, 30],
  ],
  [
    [25, 100],
    [35, 65],
  ],
  [
    [0, 100],
    [0, 100],
    [false, false],
  ],
  // Both in trouble; from a total health below 100 % on panic is looked at.
  [
    [72, 72],
    [100, 0],
    [false, false],
  ],
  [
    [71, 71],
    [99, 1],
    [false, false],
  ],
  [
    [50, 60],
    [70, 30],
    [false, false],
  ],
  [
    [25, 25],
    [50, 50],
    [true, true],
  ],
  [
    [5, 65],
    [8, 92],
    [true, false],
  ],
  // Three levels.
  [
    [100, 100, 100],
    [100, 0, 0],
  ],
  [
    [72, 72, 100],
    [100, 0, 0],
  ],
  [
    [71, 71, 100],
    [99, 1, 0],
  ],
  [
    [50, 50, 100],
    [70, 30, 0],
  ],
  [
    [25, 100, 100],
    [35, 65, 0],
  ],
  [
    [25, 25, 100],
    [35, 35, 30],
  ],
];

for (const [usable, percent, panic] of cases) {
  test(`usable ${usable.join(' ')} %: load ${percent.join(' ')}${panic?.includes(true) ? ', panic' : ''}`, () => {
    const result = loads(usable);
    assert.deepEqual(result.percent, percent);
    assert.deepEqual(result.panic, panic ?? usable.map(() => false));
  });
}

test('when every level panics, load goes by the number of endpoints', () => {
  const levels = [
    { total: 10, usable: 0 },
    { total: 30, usable: 1 },
  ];
  assert.deepEqual(levelLoads(levels, 140, 50), [
    { percent: 25, panic: true },
    { percent: 75, panic: true },
  ]);
});

test('without a panic threshold nothing panics, and nothing usable means nobody gets anything', () => {
  assert.deepEqual(loads([10, 10], 0), { percent: [50, 50], panic: [false, false] });
  assert.deepEqual(loads([0, 0], 0), { percent: [0, 0], panic: [false, false] });
});

test('shares add up to 100 whatever the health, and the last usable endpoint of many keeps its level alive', () => {
  for (let a = 0; a <= 100; a += 3) {
    for (let b = 0; b <= 100; b += 7) {
      for (let c = 1; c <= 100; c += 9) {
        const { percent } = loads([a, b, c], 30);
        assert.equal(
          percent.reduce((sum, one) => sum + one),
          100,
          `${a} ${b} ${c}`,
        );
      }
    }
  }
  assert.deepEqual(levelLoads([{ total: 1000, usable: 1 }], 140, 0), [{ percent: 100, panic: false }]);
});

test('empty levels take nothing', () => {
  const levels = [
    { total: 0, usable: 0 },
    { total: 4, usable: 4 },
  ];
  assert.deepEqual(
    levelLoads(levels, 140, 50).map(({ percent }) => percent),
    [0, 100],
  );
  assert.deepEqual(levelLoads([], 140, 50), []);
});
