// Numbers of policies: the same for all threads, never given to another name, and bounded.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  numberPolicies,
  POLICY_SLOTS,
  policyDetail,
  policySentence,
  policySlot,
  policySlotNames,
  policyWord,
  usePolicyNumbers,
} from '../../../../core/authorization/policy-numbers.ts';
import { DETAIL_POLICY } from '../../../../core/exchange/reasons.ts';
import { detailName, detailText } from '../../../../core/telemetry/outcome-names.ts';
import { type ShortPolicy, settingsOf } from './support.ts';

const policies: ShortPolicy[] = [
  { name: 'n/deny', action: 'deny', rules: [{}, {}] },
  { name: 'n/allow', rules: [{}] },
  { name: 'n/trial', dryRun: true, rules: [{}] },
];

test('policies have a counter, and decisions a word and a sentence', () => {
  const { policies: slots, details } = numberPolicies([settingsOf(policies), null]);
  assert.deepEqual(
    slots.map(({ name }) => name),
    ['n/deny', 'n/allow', 'n/trial'],
  );
  const words = details.map(({ word }) => word);
  assert.deepEqual(words, ['denied_by_n/deny rule 1', 'denied_by_n/deny rule 2', 'not_allowed_by_n/allow']);
  const second = policyDetail('denied_by_n/deny rule 2');
  assert.equal(policyWord(second), 'denied_by_n/deny rule 2');
  assert.equal(detailName(DETAIL_POLICY + second), 'denied_by_n/deny rule 2');
  assert.equal(detailText(DETAIL_POLICY + second), 'The policy is "n/deny rule 2".');
  assert.match(policySentence(policyDetail('not_allowed_by_n/allow')), /No rule .* matches: n\/allow\.$/);
});

test('a number keeps its name, whatever policies come and go', () => {
  const before = numberPolicies([settingsOf(policies)]);
  numberPolicies([settingsOf([{ name: 'n/other', action: 'deny', rules: [{}] }])]);
  assert.deepEqual(numberPolicies([settingsOf(policies)]), before);
});

test('a thread that is told the numbers of a snapshot uses them', () => {
  usePolicyNumbers({
    policies: [{ slot: 300, name: 'told/one' }],
    details: [{ id: 4000, word: 'denied_by_told/one rule 1' }],
  });
  assert.equal(policySlot('told/one'), 300);
  assert.equal(policyDetail('denied_by_told/one rule 1'), 4000);
  assert.equal(policyWord(4000), 'denied_by_told/one rule 1');
});

test('policies beyond the counters share the last one, and decisions nobody has a name for say so', () => {
  numberPolicies([settingsOf(Array.from({ length: POLICY_SLOTS * 2 }, (_, i) => ({ name: `many/${i}` })))]);
  assert.equal(policySlot(`many/${POLICY_SLOTS * 2 - 1}`), POLICY_SLOTS - 1);
  assert.ok(policySlot('n/deny') < POLICY_SLOTS - 1);
  const names = policySlotNames();
  assert.deepEqual(names.at(-1), { slot: POLICY_SLOTS - 1, name: 'other' });
  assert.ok(names.every(({ slot }) => slot < POLICY_SLOTS));
  assert.equal(policyWord(60_000), 'policy_other');
  assert.match(policySentence(60_000), /no name/);
});
