// What filters do to an exchange besides answering it: judging its request while the head is at hand, writing the
// head that they change, and editing its response head.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { HeaderId } from '../http1/header-ids.ts';
import type { ResponseHead } from '../http1/message.ts';
import { LARGE_BLOCK_BYTES as largeBlockBytes } from '../io/arena.ts';
import { putText } from '../io/bytes.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { type HeadFilters, headFiltersOf } from './filters.ts';
import { editRequestHead } from './request-edits.ts';
import { requestHeadBytesMax, writeRequestHead } from './request-head.ts';
import { ResponseLines } from './response-line-bits.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { KEEP_ALIVE } = HeaderId;
const { FILTERS } = ResponseLines;
const LARGE_BLOCK_BYTES = largeBlockBytes;

/**
 * Judges the head being worked on by the filters of its rule, and writes it as it goes upstream, with the changes
 * of `filters`, into a block that the exchange gets. Returns 0, or the status to refuse with.
 */
export function writeFilteredHead(
  context: ProxyContext,
  exchange: Exchange,
  filters: HeadFilters,
  endpointAddress: Uint8Array,
): number {
  const { memory, reactor, runtime, requestHead: head, ids } = context;
  const { policy } = exchange;
  const connection = exchange.downstream!;
  const ruleFilters = policy === null ? null : policy.filters;
  const cors = ruleFilters === null ? null : ruleFilters.cors;
  const keptBytes = cors === null ? 0 : cors.judge(memory, head, exchange);
  if (ruleFilters !== null && ruleFilters.fault !== null) {
    exchange.fault = ruleFilters.fault.decide(memory, head.headers, ids);
  }
  if (filters.response !== null || cors !== null) exchange.responseLines |= FILTERS;
  const bytes = requestHeadBytesMax(head, runtime, endpointAddress.length, connection) + keptBytes;
  if (bytes > LARGE_BLOCK_BYTES) return 431;
  let end: number;
  if (filters.changesRequest) {
    writeRequestHead(reactor, reactor.arena.editOffset, head, exchange, runtime, connection, endpointAddress, ids);
    end = editRequestHead(context, exchange, filters, keptBytes);
    if (end <= 0) {
      forgetHead(exchange);
      return end === 0 ? 503 : 431;
    }
  } else {
    const block = reactor.arena.allocate(bytes);
    if (block === 0) return 503;
    exchange.headBlock = block;
    end = writeRequestHead(reactor, block, head, exchange, runtime, connection, endpointAddress, ids);
  }
  if (keptBytes > 0) cors!.keep(memory, head.headers, exchange, end);
  return 0;
}

/** The head that the positions of an exchange name will not stay. */
function forgetHead(exchange: Exchange): void {
  exchange.headLength = 0;
  exchange.methodLength = 0;
  exchange.pathLength = 0;
  exchange.hostLength = 0;
  exchange.requestIdLength = 0;
  exchange.forwardedForLength = 0;
  exchange.cors = 0;
}

/** Marks the fields of a response head that filters drop. Returns bits of LeftOut. */
export function markFilteredFields(context: ProxyContext, exchange: Exchange, head: ResponseHead): number {
  const filters = headFiltersOf(exchange);
  if (filters === null || filters.response === null) return 0;
  if (filters.response.mark(context.memory, head.headers)) head.seen |= 1 << KEEP_ALIVE;
  return filters.response.leftOut;
}

/** Writes the lines that filters add to a response. Returns the offset after them. Spills. */
export function putFilterLines(context: ProxyContext, exchange: Exchange, at: number): number {
  const { policy } = exchange;
  const filters = headFiltersOf(exchange);
  let end = at;
  if (policy !== null && policy.filters !== null && policy.filters.cors !== null) {
    end = policy.filters.cors.put(context.reactor, end, exchange);
  }
  if (filters !== null && filters.response !== null) {
    end = putText(context.reactor.view, end, filters.response.lines);
  }
  return end;
}
