// Durations and sizes, and guesses at what was meant.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  formatDuration,
  formatSize,
  parseDurationMs,
  parseSizeBytes,
  suggestDuration,
  suggestSize,
} from '../../../config/units.ts';
import { suggest } from '../../../core/process/suggest.ts';

test('durations are sums of numbers with units', () => {
  const cases: [string, number | undefined][] = [
    ['0', 0],
    ['0s', 0],
    ['250ms', 250],
    ['2s', 2000],
    ['1.5s', 1500],
    ['1.1s', 1100],
    ['1h30m', 5_400_000],
    ['1m1m', 120_000],
    ['0.1ms', 1],
    ['', undefined],
    ['5', undefined],
    ['-1s', undefined],
    ['1 s', undefined],
    ['1s2', undefined],
    ['s', undefined],
    ['1S', undefined],
    ['10us', undefined],
    ['1.s', undefined],
  ];
  for (const [text, ms] of cases) assert.equal(parseDurationMs(text), ms, text);
});

test('sizes are whole numbers with binary units', () => {
  const cases: [string, number | undefined][] = [
    ['0', 0],
    ['4096', 4096],
    ['512B', 512],
    ['64KiB', 65_536],
    ['1MiB', 1_048_576],
    ['4GiB', 4_294_967_296],
    ['64KB', undefined],
    ['64 KiB', undefined],
    ['1.5MiB', undefined],
    ['-1', undefined],
    ['', undefined],
  ];
  for (const [text, bytes] of cases) assert.equal(parseSizeBytes(text), bytes, text);
});

test('formatted durations and sizes read back as the same number', () => {
  for (const ms of [0, 1, 250, 1000, 90_000, 5_400_000, 3_600_001, 604_800_000]) {
    assert.equal(parseDurationMs(formatDuration(ms)), ms);
  }
  assert.equal(formatDuration(5_400_000), '1h30m');
  for (const bytes of [0, 1, 1023, 1024, 61_440, 1_048_577, 2 ** 32]) {
    assert.equal(parseSizeBytes(formatSize(bytes)), bytes);
  }
  assert.equal(formatSize(61_440), '60KiB');
});

test('what was probably meant is guessed from near misses, and only from near ones', () => {
  assert.equal(suggestDuration('75'), '75s');
  assert.equal(suggestDuration('5 Minutes'), '5m');
  assert.equal(suggestDuration('2 days'), '48h');
  assert.equal(suggestDuration('soon'), undefined);
  assert.equal(suggestSize('64k'), '64KiB');
  assert.equal(suggestSize('1 MB'), '1MiB');
  assert.equal(suggestSize('big'), undefined);
  assert.equal(suggest('adress', ['name', 'address']), 'address');
  assert.equal(suggest('wieght', ['name', 'weight']), 'weight');
  assert.equal(suggest('exact', ['Exact', 'PathPrefix']), 'Exact');
  assert.equal(suggest('tls', ['name', 'address']), undefined);
  assert.equal(suggest('b', ['a']), undefined);
});
