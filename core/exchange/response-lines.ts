// What this proxy changes in final responses besides framing: fields that it drops, and lines that it adds,
// forwarded and generated alike, whatever the client speaks.
//
// Everybody who has lines to add has a bit in `exchange.responseLines`, or a policy, and a call in
// `putResponseLines`. The lines are put together as HTTP/1 text in the edit area; HTTP/1 puts them into the
// head as they are, HTTP/2 encodes them as fields (core/http2/response-fields.ts).
// Owned by one worker. Hot module: no allocation.

import type { ResponseHead } from '../http1/message.ts';
import { RESPONSE_LINES_BYTES_MAX as linesBytesMax } from '../io/arena.ts';
import { putLineEnd } from '../io/bytes.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { markFilteredFields, putFilterLines } from './filter-stages.ts';
import { putAffinityLine } from './hash-key.ts';
import { putRateLimitLines, putRetryAfterLine } from './rate-limit-lines.ts';
import { ResponseLines } from './response-line-bits.ts';
import { putSessionLine } from './session-persistence.ts';

export { ResponseLines };

const RESPONSE_LINES_BYTES_MAX = linesBytesMax;

const { AFFINITY, FILTERS, RATE_LIMIT, RETRY_AFTER, SESSION } = ResponseLines;

/** What is to be done to a response head; one object is filled for every response. */
export class ResponseEdit {
  /** Lines to add; behind them lies an empty line. */
  linesOffset = 0;
  linesLength = 0;
  /** Bits of LeftOut (response-head.ts): what a filter says of a field goes before what the gateway would add. */
  leftOut = 0;
}

/** Whether `editResponseHead` may have something to do for a response of this exchange. */
export function hasResponseLines(exchange: Exchange): boolean {
  return exchange.policy !== null || exchange.responseLines !== 0;
}

/**
 * Marks the fields of a final response that are to be dropped (see fields.ts), puts the lines that are to be
 * added together in the edit area, and says in `edit` what to do. `exchange.status` is that of the response.
 */
export function editResponseHead(
  context: ProxyContext,
  exchange: Exchange,
  head: ResponseHead,
  edit: ResponseEdit,
): void {
  const { reactor } = context;
  const at = reactor.arena.editOffset;
  const end = putResponseLines(context, exchange, at);
  if (end - at > RESPONSE_LINES_BYTES_MAX) throw new Error('the lines added to a response are longer than their room');
  putLineEnd(reactor.view, end);
  edit.linesOffset = at;
  edit.linesLength = end - at;
  edit.leftOut = (exchange.responseLines & FILTERS) === 0 ? 0 : markFilteredFields(context, exchange, head);
}

/**
 * Writes the additional lines of a final response (`name: value\r\n`, names in lower case, values as in a valid
 * message) at `at`, where there are RESPONSE_LINES_BYTES_MAX bytes of room for all of them. The status is
 * `exchange.status`. Returns the offset after them.
 */
export function putResponseLines(context: ProxyContext, exchange: Exchange, at: number): number {
  const { responseLines } = exchange;
  let end = at;
  if ((responseLines & FILTERS) !== 0) end = putFilterLines(context, exchange, end);
  if ((responseLines & SESSION) !== 0) end = putSessionLine(context, exchange, end);
  if ((responseLines & AFFINITY) !== 0) end = putAffinityLine(context.memory, end, exchange);
  if ((responseLines & RATE_LIMIT) !== 0) end = putRateLimitLines(context.reactor, exchange, end);
  if ((responseLines & RETRY_AFTER) !== 0) end = putRetryAfterLine(context.reactor, exchange, end);
  return end;
}
