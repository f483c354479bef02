// Lines added to responses: those that do not fit are left out, and the others stay.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { editResponseHead, ResponseEdit, ResponseLines } from '../../../../core/exchange/response-lines.ts';
import { RulePolicy } from '../../../../core/exchange/rule-policy.ts';
import { ResponseHead } from '../../../../core/http1/message.ts';
import { RESPONSE_LINES_BYTES_MAX } from '../../../../core/io/arena.ts';
import type { RuleFilterSettings } from '../../../../core/workers/filter-settings.ts';
import { noRulePolicy } from '../../../../core/workers/policies.ts';
import { memoryReactor, textOf } from './support.ts';

const reactor = memoryReactor();
const context = { memory: reactor.memory, reactor } as unknown as ProxyContext;

/** Lines of a response whose filters add a field with a value so long. */
function linesFor(valueLength: number): string {
  const filters: RuleFilterSettings = {
    requestHeaders: null,
    responseHeaders: { drop: [], lines: [{ name: 'x-long', value: 'v'.repeat(valueLength) }] },
    rewrite: null,
    redirect: null,
    direct: null,
    cors: null,
    fault: null,
  };
  const exchange = new Exchange();
  exchange.policy = new RulePolicy({ ...noRulePolicy, filters }, null);
  exchange.responseLines = ResponseLines.FILTERS | ResponseLines.RETRY_AFTER;
  exchange.retryAfterSeconds = 7;
  const edit = new ResponseEdit();
  editResponseHead(context, exchange, new ResponseHead(), edit);
  assert.ok(edit.linesLength <= RESPONSE_LINES_BYTES_MAX);
  return textOf(reactor.memory, edit.linesOffset, edit.linesLength + 2);
}

test('lines that are too long are left out, and those after them stay', () => {
  assert.equal(linesFor(3), 'x-long: vvv\r\nretry-after: 7\r\n\r\n');
  assert.equal(linesFor(RESPONSE_LINES_BYTES_MAX), 'retry-after: 7\r\n\r\n');
});

test('what comes last is left out where there is no room left for it', () => {
  const value = RESPONSE_LINES_BYTES_MAX - 'x-long: \r\n'.length;
  assert.equal(linesFor(value), `x-long: ${'v'.repeat(value)}\r\n\r\n`);
});
