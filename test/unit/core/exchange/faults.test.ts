// Which requests faults fall to, and what they are answered with.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Fault, FaultState } from '../../../../core/exchange/faults.ts';
import { RequestIds } from '../../../../core/exchange/request-id.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import type { FaultSettings } from '../../../../core/workers/filter-settings.ts';
import { memoryReactor, wideLimits } from './support.ts';

const { ABORT, DELAY } = FaultState;
const reactor = memoryReactor();
const head = new RequestHead();
const settings: FaultSettings = {
  delayMs: 0,
  delayShare: 0,
  abortStatus: 0,
  abortGrpcStatus: -1,
  abortShare: 0,
  headers: [],
};

/** Puts a request with these fields into `head`. */
function parse(...fields: string[]): void {
  const text = `GET / HTTP/1.1\r\nHost: a\r\n${fields.map((field) => `${field}\r\n`).join('')}\r\n`;
  const { memory, arena } = reactor;
  memory.set(Buffer.from(text), arena.receiveOffset);
  assert.equal(parseRequestHead(memory, arena.receiveOffset, text.length, wideLimits, head), text.length);
}

/** How many of `rounds` requests are delayed, aborted, and both. */
function counts(fault: Fault, rounds: number): { delayed: number; aborted: number; both: number } {
  const ids = new RequestIds((words) => words.set([1, 2, 3, 4]));
  const result = { delayed: 0, aborted: 0, both: 0 };
  for (let i = 0; i < rounds; i++) {
    const state = fault.decide(reactor.memory, head.headers, ids);
    if ((state & DELAY) !== 0) result.delayed++;
    if ((state & ABORT) !== 0) result.aborted++;
    if (state === (DELAY | ABORT)) result.both++;
  }
  return result;
}

test('shares hold, down to small fractions, and delay and abort fall independently', () => {
  parse();
  const fault = new Fault({ ...settings, delayMs: 10, delayShare: 500_000, abortStatus: 503, abortShare: 5000 });
  const { delayed, aborted, both } = counts(fault, 100_000);
  assert.ok(Math.abs(delayed - 50_000) < 800, `${delayed} delayed`);
  assert.ok(Math.abs(aborted - 500) < 120, `${aborted} aborted`);
  assert.ok(Math.abs(both - 250) < 80, `${both} both`);
});

test('a share of nothing never falls, and one of everything always', () => {
  parse();
  const all = new Fault({ ...settings, delayMs: 1, delayShare: 1_000_000, abortStatus: 500, abortShare: 1_000_000 });
  assert.equal(counts(all, 1000).both, 1000);
  const none = new Fault({ ...settings, delayMs: 1, abortStatus: 500 });
  assert.deepEqual(counts(none, 1000), { delayed: 0, aborted: 0, both: 0 });
  // What is not configured does not fall either.
  assert.deepEqual(counts(new Fault({ ...settings, abortShare: 1_000_000, delayShare: 1_000_000 }), 10).both, 0);
});

test('only requests with all the named fields are concerned; values are compared whole', () => {
  const headers = [
    { name: 'x-fault', value: 'Yes' },
    { name: 'user-agent', value: 'test' },
  ];
  const fault = new Fault({ ...settings, abortStatus: 500, abortShare: 1_000_000, headers });
  const falls = (...fields: string[]): boolean => {
    parse(...fields);
    return counts(fault, 1).aborted === 1;
  };
  assert.equal(falls('X-Fault: Yes', 'User-Agent: test'), true);
  assert.equal(falls('X-FAULT: No', 'x-fault: Yes', 'user-agent: test'), true);
  assert.equal(falls('X-Fault: Yes'), false);
  assert.equal(falls('X-Fault: yes', 'User-Agent: test'), false);
  assert.equal(falls('X-Fault: Yess', 'User-Agent: test'), false);
  assert.equal(falls('X-Faul: Yes', 'User-Agent: test'), false);
});

test('a gRPC status answers RPCs as such, and other requests with the HTTP status for it', () => {
  const fault = new Fault({ ...settings, abortGrpcStatus: 14, abortShare: 1_000_000 });
  assert.equal(fault.status, 503);
  assert.equal(fault.answerFor(0), null);
  const texts = [1, 2, 3].map((kind) => {
    const text = fault.answerFor(kind)!;
    return Buffer.from(text.bytes.subarray(0, text.length)).toString();
  });
  assert.match(
    texts[0],
    /^HTTP\/1.1 200 OK\r\ncontent-type: application\/grpc\r\ncontent-length: 0\r\ngrpc-status: 14\r\n/,
  );
  assert.match(texts[1], /content-type: application\/grpc-web\+proto\r\n/);
  assert.match(texts[2], /content-type: application\/grpc-web-text\+proto\r\n/);
  for (const [grpc, http] of [
    [0, 200],
    [1, 499],
    [5, 404],
    [7, 403],
    [8, 429],
    [16, 401],
  ]) {
    assert.equal(new Fault({ ...settings, abortGrpcStatus: grpc }).status, http, `gRPC ${grpc}`);
  }
  assert.equal(new Fault({ ...settings, abortStatus: 418 }).answerFor(1), null);
});
