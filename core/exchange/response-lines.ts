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
  putLineEnd(reactor.view, end);
  edit.linesOffset = at;
  edit.linesLength = end - at;
  edit.leftOut = (exchange.responseLines & FILTERS) === 0 ? 0 : markFilteredFields(context, exchange, head);
}

/**
 * Writes the additional lines of a final response (`name: value\r\n`, names in lower case, values as in a valid
 * message) at `at`, where there are RESPONSE_LINES_BYTES_MAX bytes of room for all of them. The status is
 * `exchange.status`. Returns the offset after them. What would go beyond the room is left out: configuration keeps
 * CORS and header modifiers far below it, but not all that come together. Nobody writes more than there is behind
 * the room in the edit area.
 */
function putResponseLines(context: ProxyContext, exchange: Exchange, at: number): number {
  const { responseLines } = exchange;
  const limit = at + RESPONSE_LINES_BYTES_MAX;
  let end = at;
  if ((responseLines & FILTERS) !== 0) end = fitting(end, putFilterLines(context, exchange, end), limit);
  if ((responseLines & SESSION) !== 0) end = fitting(end, putSessionLine(context, exchange, end), limit);
  if ((responseLines & AFFINITY) !== 0) end = fitting(end, putAffinityLine(context.memory, end, exchange), limit);
  if ((responseLines & RATE_LIMIT) !== 0) end = fitting(end, putRateLimitLines(context.reactor, exchange, end), limit);
  if ((responseLines & RETRY_AFTER) !== 0) end = fitting(end, putRetryAfterLine(context.reactor, exchange, end), limit);
  return end;
}

/** The end of lines written from `start` to `end`, or `start` if they do not fit. */
function fitting(start: number, end: number, limit: number): number {
  return end > limit ? start : end;
}
