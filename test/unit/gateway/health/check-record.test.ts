import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CheckOutcome, CheckRecord } from '../../../../gateway/health/check-record.ts';

const thresholds = { healthyThreshold: 2, unhealthyThreshold: 3 };

/** Health after each of some results. */
function after(record: CheckRecord, ...outcomes: CheckOutcome[]): string[] {
  return outcomes.map((outcome) => {
    const before = record.health;
    assert.equal(record.note(outcome), record.health !== before);
    return record.health;
  });
}

test('the first result decides, whatever the thresholds', () => {
  assert.deepEqual(after(new CheckRecord(thresholds), 'success'), ['healthy']);
  assert.deepEqual(after(new CheckRecord(thresholds), 'failure'), ['unhealthy']);
  assert.deepEqual(after(new CheckRecord(thresholds), 'timeout'), ['unhealthy']);
});

test('failures in a row make unhealthy, and one success in between starts anew', () => {
  const record = new CheckRecord(thresholds);
  after(record, 'success');
  assert.deepEqual(after(record, 'failure', 'timeout', 'success', 'failure', 'failure', 'failure'), [
    ...['healthy', 'healthy', 'healthy', 'healthy', 'healthy'],
    'unhealthy',
  ]);
});

test('an answer that says that the endpoint is unwell counts at once', () => {
  const record = new CheckRecord(thresholds);
  assert.deepEqual(after(record, 'success', 'refusal'), ['healthy', 'unhealthy']);
});

test('good checks in a row make healthy again', () => {
  const record = new CheckRecord(thresholds);
  after(record, 'failure');
  assert.deepEqual(after(record, 'success', 'failure', 'success', 'success'), [
    ...['unhealthy', 'unhealthy', 'unhealthy'],
    'healthy',
  ]);
});

test('one lost check does not take out what another check has found healthy', () => {
  assert.deepEqual(after(new CheckRecord(thresholds, 'healthy'), 'timeout', 'failure', 'timeout'), [
    ...['healthy', 'healthy'],
    'unhealthy',
  ]);
  assert.deepEqual(after(new CheckRecord(thresholds, 'healthy'), 'refusal'), ['unhealthy']);
});

test('what is known from another check holds until the first good result of this one', () => {
  const record = new CheckRecord(thresholds, 'unhealthy');
  assert.equal(record.health, 'unhealthy');
  assert.deepEqual(after(record, 'success'), ['healthy']);
});
