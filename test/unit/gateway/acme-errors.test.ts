import assert from 'node:assert/strict';
import { test } from 'node:test';
import { problemError, retryAfterMs, storageError, transportError } from '../../../gateway/acme/errors.ts';
import { backoffMs, renewalInfoDelayMs } from '../../../gateway/acme/schedule.ts';

const DAY_S = 86_400;

test('Retry-After is read as seconds and as a date, and nonsense is none', () => {
  const nowMs = Date.UTC(2026, 0, 1);
  assert.equal(retryAfterMs('120', nowMs), 120_000);
  assert.equal(retryAfterMs('Thu, 01 Jan 2026 01:00:00 GMT', nowMs), 3_600_000);
  for (const text of [undefined, '', 'soon', '-5', '0', 'Wed, 31 Dec 2025 00:00:00 GMT']) {
    assert.equal(retryAfterMs(text, nowMs), 0, String(text));
  }
  assert.equal(retryAfterMs('9999999999', nowMs), 7 * DAY_S * 1000, 'a mistake of the CA has an end');
});

test('a wait is never shorter than the CA asked for, whatever the jitter', () => {
  for (const random of [0, 0.5, 0.999]) {
    for (const kind of ['rateLimited', 'refused', 'unreachable'] as const) {
      const waitMs = backoffMs(1, kind, 1e7, random);
      assert.ok(waitMs >= 1e7 && waitMs <= 1.1e7);
      assert.ok(backoffMs(1, kind, 0, random) >= 60_000);
      assert.ok(backoffMs(1000, kind, 0, random) <= DAY_S * 1000);
    }
  }
});

test('renewal information is read neither every second nor never again', () => {
  assert.equal(renewalInfoDelayMs(0), 6 * 3_600_000);
  assert.equal(renewalInfoDelayMs(1), 60_000);
  assert.equal(renewalInfoDelayMs(7 * DAY_S * 1000), DAY_S * 1000);
});

test('a compound problem names each hostname, in one line of bounded length', () => {
  const problem = {
    type: 'urn:ietf:params:acme:error:compound',
    detail: 'Some identifiers\nwere refused',
    subproblems: [
      { identifier: { value: 'a.example' }, detail: 'CAA forbids' },
      { identifier: { value: 'b.example' }, detail: 'x'.repeat(10_000) },
    ],
  };
  const { message } = problemError(problem, 403, 'the order was refused', 0);
  assert.match(message, /compound: Some identifiers were refused; a\.example: CAA forbids; b\.example: xxx/);
  assert.ok(message.length < 700);
});

test('each kind of failure has its own advice', () => {
  const advice = (type: string, challenge = false): string =>
    problemError({ type: `urn:ietf:params:acme:error:${type}` }, 403, 'it failed', 0, challenge).advice;
  assert.match(advice('caa'), /CAA records/);
  assert.match(advice('dns'), /A and AAAA/);
  assert.match(advice('unauthorized', true), /something else .* answered/);
  assert.match(advice('unauthorized'), /account/);
  assert.match(advice('neverHeardOf'), /documentation/);
  const system = (code: string): NodeJS.ErrnoException => Object.assign(new Error(code), { code });
  assert.match(transportError(system('EAI_AGAIN'), 'ca.example').advice, /DNS resolver/);
  assert.match(storageError('a file cannot be written', '/s', system('ENOSPC')).message, /disk is full/);
  assert.match(storageError('a file cannot be written', '/s', system('EROFS')).advice, /writable/);
});
