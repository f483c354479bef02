import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ExitCode, type ExitError } from '../../../../core/process/exit-codes.ts';
import { type OptionShapes, parseArguments } from '../../../../core/process/options.ts';

const shapes: OptionShapes = { '--config': 'value', '--json': 'flag' };

function refusal(args: string[]): string {
  try {
    parseArguments(args, shapes);
  } catch (error) {
    assert.equal((error as ExitError).code, ExitCode.USAGE);
    return (error as Error).message;
  }
  return 'accepted';
}

test('options come as separate words, with an equals sign, or after positional arguments', () => {
  assert.equal(parseArguments(['--config', 'a.yaml'], shapes).options.get('--config'), 'a.yaml');
  assert.equal(parseArguments(['--config=a=b.yaml'], shapes).options.get('--config'), 'a=b.yaml');
  const { options, positional } = parseArguments(['id', '--json', '--', '--config'], shapes);
  assert.deepEqual([...options.keys()], ['--json']);
  assert.deepEqual(positional, ['id', '--config']);
});

test('a mistyped option is refused with the one that was probably meant', () => {
  assert.equal(refusal(['--cofnig', 'a']), 'unknown option --cofnig: did you mean --config?');
  assert.equal(refusal(['--verbose']), 'unknown option --verbose: see `portcullis --help`.');
});

test('a missing value, a value too many and an option given twice are refused', () => {
  assert.equal(refusal(['--config']), '--config needs a value.');
  assert.equal(refusal(['--config=']), '--config needs a value.');
  assert.equal(refusal(['--json=yes']), '--json takes no value.');
  assert.equal(refusal(['--json', '--json']), '--json is given twice.');
});
