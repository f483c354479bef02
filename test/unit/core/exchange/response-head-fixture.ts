// Rewrites one response head in place as the downstream side does, and checks the bytes around it.

import assert from 'node:assert/strict';
import { DateLine, rewriteResponseHead } from '../../../../core/exchange/response-head.ts';
import type { Runtime } from '../../../../core/exchange/runtime.ts';
import { ResponseHead } from '../../../../core/http1/message.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import { HEADROOM_BYTES } from '../../../../core/io/arena.ts';
import { pattern } from '../io/fake-kernel.ts';
import { GUARD, memoryReactor, textOf, wideLimits } from './support.ts';

const BODY_BYTES = 40;
const reactor = memoryReactor();
const head = new ResponseHead();
const date = new DateLine();

/** The `date:` value of rewritten heads. */
export const dateValue = new Date(Math.floor(reactor.wallMs / 1000) * 1000).toUTCString();

/** What to do with a head. */
export interface Rewriting {
  /** One of OutFraming, and one of ConnectionOption. */
  framing: number;
  connection: number;
  /** Bytes between the old head's end and the body: what remains of a chunk header. */
  gapBytes: number;
}

/** Parses `input` and returns the head as rewritten. Checks that body and headroom stay as they are. */
export function rewriteResponse(input: Uint8Array, runtime: Runtime, how: Rewriting): string {
  const { memory, arena } = reactor;
  const headOffset = arena.receiveOffset;
  const areaStart = headOffset - HEADROOM_BYTES;
  memory.fill(GUARD, areaStart, headOffset);
  memory.set(input, headOffset);
  const parsed = parseResponseHead(memory, headOffset, input.length, wideLimits, head);
  assert.equal(parsed, input.length, `the input is not one head (${parsed})`);
  const endAt = head.endOffset + how.gapBytes;
  memory.fill(GUARD, head.endOffset, endAt);
  const body = pattern(BODY_BYTES, 3);
  memory.set(body, endAt);

  const start = rewriteResponseHead(reactor, headOffset, head, endAt, how.framing, how.connection, runtime, date);

  assert.deepEqual(memory.subarray(endAt, endAt + BODY_BYTES), body, 'the body was written over');
  assert.ok(start >= areaStart && start < endAt, `starts at ${start - headOffset}`);
  for (let at = areaStart; at < Math.min(start, headOffset); at++) {
    assert.equal(memory[at], GUARD, `wrote ${start - at} bytes before its start`);
  }
  return textOf(memory, start, endAt - start);
}
