// Rate limits in shared memory: the arithmetic of one bucket, keys, and several threads at a time.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { RateLimitSettings } from '../../../../core/limits/limit-settings.ts';
import { createLimitTable, LimitCounter, LimitTable, limitTicks, wrapMs } from '../../../../core/limits/limit-table.ts';
import type { Job } from './limit-thread.ts';

function settingsOf(changes: Partial<RateLimitSettings> = {}): RateLimitSettings {
  return {
    name: 'test',
    requests: 10,
    periodMs: 1000,
    burst: 10,
    key: [],
    keysMax: 1024,
    global: false,
    dryRun: false,
    headers: true,
    ...changes,
  };
}

const byHeader = { key: [{ type: 'header' as const, name: 'x-key' }] };

function random(words: Int32Array<ArrayBuffer>): void {
  words.fill(12345);
}

function tableOf(settings: RateLimitSettings, nowMs: number): LimitTable {
  return new LimitTable(createLimitTable(settings, 1, nowMs, random), settings, 0);
}

/** Requests of `count` that pass at a moment. */
function passing(table: LimitTable, nowMs: number, count: number, low = 0, high = 0): number {
  let passed = 0;
  for (let i = 0; i < count; i++) if (table.take(low, high, nowMs)) passed++;
  return passed;
}

test('a burst passes at once, then one request per interval, and never more', () => {
  const table = tableOf(settingsOf({ burst: 5 }), 50_000);
  assert.equal(passing(table, 50_000, 20), 5);
  assert.equal(passing(table, 50_099, 20), 0);
  assert.equal(passing(table, 50_100, 20), 1);
  assert.equal(passing(table, 50_450, 20), 3);
  // A long pause fills the bucket, and not more.
  assert.equal(passing(table, 900_000, 20), 5);
});

test('it tells how many are left, when there is one again, and when the bucket is full', () => {
  const table = tableOf(settingsOf({ requests: 1, periodMs: 10_000, burst: 2 }), 0);
  assert.ok(table.take(0, 0, 5000));
  assert.deepEqual([table.remaining, table.retrySeconds, table.fullSeconds], [1, 0, 10]);
  assert.ok(table.take(0, 0, 5000));
  assert.deepEqual([table.remaining, table.retrySeconds, table.fullSeconds], [0, 10, 20]);
  assert.ok(!table.take(0, 0, 5000));
  assert.deepEqual([table.remaining, table.retrySeconds, table.fullSeconds], [0, 10, 20]);
  assert.ok(!table.take(0, 0, 12_500));
  assert.equal(table.retrySeconds, 3);
  // Who waits as long as it was told is let through.
  assert.ok(table.take(0, 0, 15_000));
});

test('rates that do not divide evenly are kept exactly in the long run', () => {
  for (const [requests, periodMs, burst] of [
    [3, 1000, 1],
    [7, 60_000, 2],
    [999_983, 1000, 50],
    [1_000_000, 1000, 10_000_000],
    [13, 3_600_000, 13],
  ] as const) {
    const settings = settingsOf({ requests, periodMs, burst });
    const { cost, fill } = limitTicks(settings);
    assert.ok(Number.isInteger(cost) && cost >= 1 && fill < 2 ** 30, `${requests}/${periodMs}`);
    if (burst > 1000) continue;
    const table = tableOf(settings, 1000);
    passing(table, 1000, burst);
    // Asked five times as often as allowed, over several periods.
    const seconds = (50 / requests) * periodMs;
    let passed = 0;
    for (let i = 1; i <= 250; i++) if (table.take(0, 0, 1000 + (seconds * i) / 250)) passed++;
    assert.ok(passed <= 50 && passed >= 49, `${requests} in ${periodMs} ms: ${passed} of 50`);
  }
});

test('the clock of ticks may wrap around between two requests, and during a bucket', () => {
  const settings = settingsOf({ requests: 1_000_000, periodMs: 1000, burst: 10 });
  const wrap = wrapMs(settings);
  // Just before the end of the ticks: what is charged is over behind it.
  const table = tableOf(settings, wrap - 0.004);
  assert.equal(passing(table, wrap - 0.004, 20), 10);
  assert.equal(passing(table, wrap + 0.001, 20), 5);
  // Swept twice per turn, a bucket that is left alone is never taken for a used one.
  let nowMs = wrap + 1000;
  for (const end = nowMs + wrap; nowMs < end; nowMs += wrap / 8) table.sweep(nowMs);
  assert.equal(passing(table, nowMs, 20), 10);
});

test('a worker whose batch began earlier does not get a bucket that another has emptied', () => {
  const settings = settingsOf();
  const buffer = createLimitTable(settings, 2, 90_000, random);
  const ahead = new LimitTable(buffer, settings, 0);
  const behind = new LimitTable(buffer, settings, 1);
  assert.equal(passing(ahead, 100_000, 20), 10);
  assert.equal(passing(behind, 99_000, 20), 0);
  assert.equal(passing(behind, 95_000, 20), 0);
});

test('what is given back can be taken again, and no more than that', () => {
  const keyed = tableOf(settingsOf({ burst: 2, ...byHeader }), 0);
  for (const table of [tableOf(settingsOf({ burst: 2 }), 0), keyed]) {
    assert.equal(passing(table, 10, 5, 7, 9), 2);
    table.giveBack(7, 9);
    assert.equal(passing(table, 10, 5, 7, 9), 1);
  }
});

test('what is given back arrives also when another worker charges the bucket at that moment', (t) => {
  for (const more of [{}, byHeader]) {
    const settings = settingsOf({ burst: 3, ...more });
    const buffer = createLimitTable(settings, 2, 0, random);
    const table = new LimitTable(buffer, settings, 0);
    const other = new LimitTable(buffer, settings, 1);
    assert.ok(table.take(7, 9, 10));
    const exchange = Atomics.compareExchange;
    let interfering = true;
    const mocked = t.mock.method(Atomics, 'compareExchange', (...args: Parameters<typeof exchange>) => {
      if (interfering) {
        interfering = false;
        assert.ok(other.take(7, 9, 10));
      }
      return exchange(...args);
    });
    table.giveBack(7, 9);
    mocked.mock.restore();
    assert.ok(!interfering);
    assert.equal(passing(table, 10, 5, 7, 9), 2);
  }
});

test('each key has a bucket of its own', () => {
  const table = tableOf(settingsOf({ burst: 3, ...byHeader }), 0);
  for (let key = 1; key <= 200; key++) {
    assert.equal(passing(table, 1000, 5, Math.imul(key, 0x9e37_79b1), key), 3, `key ${key}`);
  }
  assert.equal(table.counters[LimitCounter.SHARED], 0);
  assert.equal(passing(table, 1000, 5, Math.imul(5, 0x9e37_79b1), 5), 0);
});

test('buckets that are full again make room for other keys; beyond that, keys of a set share one bucket', () => {
  const table = tableOf(settingsOf({ burst: 1, keysMax: 16, ...byHeader }), 0);
  // All in the same set.
  for (let key = 1; key <= 7; key++) assert.ok(table.take(0, key, 1000));
  assert.equal(table.counters[LimitCounter.SHARED], 0);
  assert.ok(table.take(0, 8, 1000));
  assert.equal(table.counters[LimitCounter.SHARED], 1);
  assert.ok(!table.take(0, 9, 1000), 'the ninth shares with the eighth');
  assert.ok(!table.take(0, 3, 1000), 'those with a bucket keep it');
  // An interval later all are full, and the way of any may be taken.
  for (let key = 11; key <= 17; key++) assert.ok(table.take(0, key, 1200));
  assert.equal(table.counters[LimitCounter.SHARED], 2);
  for (let key = 11; key <= 17; key++) assert.ok(!table.take(0, key, 1200));
});

test('a key whose way goes to another at the moment in which it comes does not pass on the account of that one', (t) => {
  const settings = settingsOf({ burst: 2, keysMax: 16, ...byHeader });
  const buffer = createLimitTable(settings, 2, 0, random);
  const table = new LimitTable(buffer, settings, 0);
  const other = new LimitTable(buffer, settings, 1);
  assert.ok(table.take(0, 1, 1000));
  // The first is full again when the others come, none of which is when it comes itself.
  for (let key = 2; key <= 7; key++) assert.ok(table.take(0, key, 2000));
  const exchange = Atomics.compareExchange;
  let interfering = true;
  const mocked = t.mock.method(Atomics, 'compareExchange', (...args: Parameters<typeof exchange>) => {
    if (interfering) {
      interfering = false;
      assert.ok(other.take(0, 8, 2000));
    }
    return exchange(...args);
  });
  assert.ok(table.take(0, 1, 2000));
  mocked.mock.restore();
  assert.ok(!interfering);
  assert.equal(table.counters[LimitCounter.SHARED], 1, 'there is no room for it: it shares');
});

test('a way that a worker has left behind half given away is taken up again, and counts as before', () => {
  const settings = settingsOf({ burst: 3, keysMax: 16, ...byHeader });
  const buffer = createLimitTable(settings, 1, 0, random);
  const table = new LimitTable(buffer, settings, 0);
  const tag = 0x1234_5678;
  assert.equal(passing(table, 1000, 5, 0, tag), 3);
  const words = new Int32Array(buffer);
  const bucket = words.indexOf(tag) + 1;
  words[bucket] = -0x8000_0000;
  assert.equal(passing(table, 1000, 20, 0, tag), 3);
  assert.equal(words.indexOf(tag, bucket), -1, 'it has no second one');
});

test('of the keys of a set whose buckets are full, the one that has not come for the longest time makes room', () => {
  const settings = settingsOf({ burst: 1, keysMax: 16, ...byHeader });
  const buffer = createLimitTable(settings, 1, 0, random);
  const table = new LimitTable(buffer, settings, 0);
  const words = new Int32Array(buffer);
  const tags = [101, 102, 103, 104, 105, 106, 107];
  for (const [i, tag] of tags.entries()) assert.ok(table.take(0, tag, 1000 + i));
  assert.ok(table.take(0, 101, 2000));
  assert.ok(table.take(0, 108, 3000));
  assert.deepEqual(
    tags.filter((tag) => !words.includes(tag)),
    [102],
  );
});

test('as many keys as the table is made for hardly ever share', () => {
  const settings = settingsOf({ burst: 1, keysMax: 4096, ...byHeader });
  const table = tableOf(settings, 0);
  let state = 1;
  const next = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
    return state ^ (state >>> 15);
  };
  for (let i = 0; i < 4096; i++) table.take(next(), next(), 1000);
  assert.ok(table.counters[LimitCounter.SHARED]! < 12, `${table.counters[LimitCounter.SHARED]} of 4096 share`);
});

/** Runs threads on one table and gives what each was allowed, by key. */
function race(settings: RateLimitSettings, job: Partial<Job>): Promise<Int32Array[]> {
  const threads = job.threads ?? 4;
  const startMs = 5_000_000;
  const buffer = createLimitTable(settings, threads, startMs - 1000, random);
  const gate = new SharedArrayBuffer(4);
  const results = Array.from({ length: threads }, (_, worker) => {
    const all: Job = { buffer, settings, worker, keys: 0, takes: 150_000, startMs, spanMs: 0, gate, threads, ...job };
    const thread = new Worker(new URL('./limit-thread.ts', import.meta.url), { workerData: all });
    return new Promise<Int32Array>((resolve, reject) => {
      thread.once('message', resolve);
      thread.once('error', reject);
    });
  });
  return Promise.all(results);
}

/** What all threads together were allowed, by key. */
function sum(results: Int32Array[]): number[] {
  return Array.from(results[0]!, (_, key) => results.reduce((total, allowed) => total + allowed[key]!, 0));
}

test('several threads at one moment take exactly the burst together', async () => {
  const [total] = sum(await race(settingsOf({ burst: 1000 }), {}));
  assert.equal(total, 1000);
});

test('several threads over a time take the burst and the rate, and not one more', async () => {
  // Each thread has a clock of its own that goes from 0 to 2 s: bursts of 100, and 500 a second.
  const [total] = sum(await race(settingsOf({ requests: 500, burst: 100 }), { spanMs: 2000 }));
  assert.ok(total! <= 1100 && total! > 900, `${total}`);
});

test('threads that bring the same new key at the same moment never make two buckets of it', async () => {
  const settings = settingsOf({ burst: 2, keysMax: 65_536, ...byHeader });
  const results = await race(settings, { threads: 2, keys: 10_000, takes: 2, lockstep: 'insert' });
  const wrong = sum(results).filter((total, key) => key > 0 && total !== 2);
  assert.deepEqual(wrong, []);
});

test('a key that comes back at the moment in which its room is given away gets no more than its share', async () => {
  // One set: in each step a thread brings a new key, which takes the way of the one before, just as that comes back.
  const settings = settingsOf({ requests: 1, burst: 2, keysMax: 16, ...byHeader });
  const job = { threads: 2, keys: 10_000, takes: 4, spanMs: 10_000, lockstep: 'evict' } as const;
  for (const allowed of await race(settings, job)) {
    const wrong = [...allowed].filter((total, key) => key > 0 && total > 2);
    assert.deepEqual(wrong, []);
  }
});
