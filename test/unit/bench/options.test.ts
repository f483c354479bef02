// The command line of the benchmarks. Invariant under test: only a complete run replaces the results.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseOptions, UsageError } from '../../../bench/lib/options.ts';

test('a complete run writes its results to the default file', () => {
  assert.equal(parseOptions([], 'RESULTS.md').out, 'RESULTS.md');
  assert.equal(parseOptions(['--rounds', '3', '--seconds', '2'], 'RESULTS.md').out, 'RESULTS.md');
});

test('a partial or quick run leaves the results alone unless it is given a file', () => {
  for (const args of [['--quick'], ['--only', 'c64'], ['--peers', 'nginx']]) {
    assert.equal(parseOptions(args, 'RESULTS.md').out, null, args.join(' '));
    assert.equal(parseOptions([...args, '--out', 'mine.md'], 'RESULTS.md').out, 'mine.md');
  }
});

test('quick means one short round, and explicit numbers win over it', () => {
  const { rounds, seconds } = parseOptions(['--quick'], 'r');
  assert.equal(rounds, 1);
  assert.ok(seconds > 0 && seconds <= 1);
  assert.equal(parseOptions(['--rounds', '4', '--quick'], 'r').rounds, 4);
});

test('lists are split at commas', () => {
  const options = parseOptions(['--only', 'c1,c64', '--peers', 'nginx,caddy'], 'r');
  assert.deepEqual(options.only, ['c1', 'c64']);
  assert.deepEqual(options.peers, ['nginx', 'caddy']);
});

test('what cannot be obeyed is refused with the option in the message', () => {
  for (const args of [
    ['--rounds', '0'],
    ['--rounds', '1.5'],
    ['--seconds'],
    ['--seconds', '-1'],
    ['--seconds', 'x'],
    ['--backend', 'apache'],
    ['--fast'],
  ]) {
    assert.throws(
      () => parseOptions(args, 'r'),
      (error) => error instanceof UsageError && error.message.includes(args[0]),
    );
  }
});
