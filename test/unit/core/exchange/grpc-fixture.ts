// Puts request heads through an edit and then through the rewriting that follows it.

import assert from 'node:assert/strict';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { writeRequestHead } from '../../../../core/exchange/request-head.ts';
import { RequestIds } from '../../../../core/exchange/request-id.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { LARGE_BLOCK_BYTES } from '../../../../core/io/arena.ts';
import { clientFrom, memoryReactor, runtimeOf, textOf, wideLimits } from './support.ts';

const reactor = memoryReactor();
const ids = new RequestIds((words) => words.set([1, 2, 3, 4]));

/** Reactor whose memory `parsedHead` and `editedRequest` use. */
export { reactor };

/** A parsed `POST /s/m` with these field lines, in the receive area. */
export function parsedHead(fields: string): RequestHead {
  const { memory, arena } = reactor;
  const text = `POST /s/m HTTP/1.1\r\nhost: h\r\n${fields}\r\n`;
  memory.set(Buffer.from(text, 'latin1'), arena.receiveOffset);
  const head = new RequestHead();
  assert.equal(parseRequestHead(memory, arena.receiveOffset, text.length, wideLimits, head), text.length);
  return head;
}

/** Field lines of that head as they go upstream after `edit`; host comes first. */
export function editedRequest(
  fields: string,
  edit: (memory: Uint8Array, head: RequestHead, exchange: Exchange) => void,
): string {
  const { memory, arena } = reactor;
  const head = parsedHead(fields);
  const exchange = new Exchange();
  edit(memory, head, exchange);
  const block = arena.allocate(LARGE_BLOCK_BYTES);
  writeRequestHead(reactor, block, head, exchange, runtimeOf(), clientFrom('127.0.0.1'), new Uint8Array(), ids);
  const output = textOf(memory, block, exchange.headLength);
  arena.free(block);
  const start = 'POST /s/m HTTP/1.1\r\nhost: h\r\n';
  assert.ok(output.startsWith(start) && output.endsWith('\r\n\r\n'), output);
  return output.slice(start.length, -2);
}
