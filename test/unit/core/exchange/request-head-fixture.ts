// Rewrites one request head as the downstream side does, with guard bytes all around.

import assert from 'node:assert/strict';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { requestHeadBytesMax, writeRequestHead } from '../../../../core/exchange/request-head.ts';
import { RequestIds } from '../../../../core/exchange/request-id.ts';
import type { Runtime } from '../../../../core/exchange/runtime.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { LARGE_BLOCK_BYTES } from '../../../../core/io/arena.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { assertUntouched, GUARD, memoryReactor, textOf, wideLimits } from './support.ts';

const GUARD_BYTES = 64;
const reactor = memoryReactor();
const head = new RequestHead();
const ids = new RequestIds((words) => words.set([1, 2, 3, 4]));

/** What became of a head. */
export interface RewrittenRequest {
  output: string;
  /** Texts at the positions that the exchange keeps. */
  method: string;
  path: string;
  host: string;
  requestId: string;
  forwardedFor: string;
}

/** Bytes after the head in the receive buffer, which stay where they are. */
const follower = Buffer.from('BODY that follows the head');

/**
 * Parses `input` and rewrites it. Checks that it is a valid head, that nothing is written outside
 * the room that the bound gives, and that the received bytes stay as they are.
 */
export function rewriteRequest(
  input: Uint8Array,
  runtime: Runtime,
  client: Connection,
  endpointAddress: string,
  upgrade = false,
): RewrittenRequest {
  const { memory, arena } = reactor;
  const source = arena.receiveOffset;
  const received = Buffer.concat([input, follower]);
  memory.set(received, source);
  const parsed = parseRequestHead(memory, source, received.length, wideLimits, head);
  assert.equal(parsed, input.length, `the input is not one head (${parsed})`);

  const address = Buffer.from(endpointAddress);
  const room = requestHeadBytesMax(head, runtime, address.length, client);
  assert.ok(room <= LARGE_BLOCK_BYTES, 'a head for this test must fit a block');
  const block = arena.allocate(LARGE_BLOCK_BYTES);
  const at = block + GUARD_BYTES;
  memory.fill(GUARD, block, block + LARGE_BLOCK_BYTES);
  const exchange = new Exchange();
  exchange.upgradeRequested = upgrade && head.upgradeField >= 0;
  writeRequestHead(reactor, at, head, exchange, runtime, client, address, ids);

  assertUntouched(memory, block, at, 'before the head');
  assertUntouched(memory, at + room, block + LARGE_BLOCK_BYTES, 'after the room for the head');
  assert.deepEqual(Buffer.from(memory.subarray(source, source + received.length)), received);
  assert.equal(exchange.headOffset, at);
  const result = {
    output: textOf(memory, at, exchange.headLength),
    method: textOf(memory, exchange.headOffset, exchange.methodLength),
    path: textOf(memory, exchange.pathOffset, exchange.pathLength),
    host: textOf(memory, exchange.hostOffset, exchange.hostLength),
    requestId: textOf(memory, exchange.requestIdOffset, exchange.requestIdLength),
    forwardedFor: textOf(memory, exchange.forwardedForOffset, exchange.forwardedForLength),
  };
  arena.free(block);
  return result;
}
