// Request heads as filters change them on their way upstream: another path, another host, other fields.
//
// The head as it would go upstream without filters is written into the edit area first (request-head.ts), with all
// that the gateway adds; this copies it into the exchange's block with the changes. So a filter has the
// last word also on the gateway's own fields. What logs and records show stays what the client asked
// for: texts that the new head has not got are kept behind it.
// Owned by one worker. Hot module: no allocation.
// Spec: Gateway API HTTPHeaderFilter, HTTPURLRewriteFilter.

import { FieldBits, parseFields } from '../http1/fields.ts';
import { HeaderId } from '../http1/header-ids.ts';
import * as table from '../http1/header-table.ts';
import { LARGE_BLOCK_BYTES as largeBlockBytes } from '../io/arena.ts';
import { putBytes, putLineEnd, putRange, putText, SPILL_BYTES as spillBytes, Text } from '../io/bytes.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import type { HeadFilters } from './filters.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { HEADER_COUNT_CAPACITY } = table;
const { HOST } = HeaderId;
const LARGE_BLOCK_BYTES = largeBlockBytes;
const SPILL_BYTES = spillBytes;

const hostName = new Text('host: ');

/** " HTTP/1.1" and its line end. */
const REQUEST_LINE_END_BYTES = 11;

/** `host: `, its line end and the empty line. */
const FIXED_BYTES = 16;

/** Fields of the head being worked on; editing never spans two events. */
const headers = new table.HeaderTable();
const bits = new FieldBits();

/** Where a text of the old head lies in the new one, if the run [start, end) that was copied to `dest` has it. */
function moved(offset: number, start: number, end: number, dest: number, known: number): number {
  return known !== 0 || offset < start || offset >= end ? known : offset + dest - start;
}

/**
 * Writes the head that the exchange has in the edit area, changed by `filters`, into a block that the exchange gets,
 * and sets the exchange's positions. `keptBytes` are reserved behind it. Returns the offset after all that
 * it has written; 0 if there is no block, -1 if the head would be too large.
 */
export function editRequestHead(
  context: ProxyContext,
  exchange: Exchange,
  filters: HeadFilters,
  keptBytes: number,
): number {
  const { memory, reactor } = context;
  const { view } = reactor;
  const { request: edits, rewrite } = filters;
  const hostname = rewrite === null ? null : rewrite.hostname;
  const newPath = rewrite === null ? null : rewrite.path;
  const { headOffset: oldHead, pathOffset: oldPath, pathLength } = exchange;
  const { hostOffset: oldHost, hostLength, forwardedForOffset: oldFor, forwardedForLength } = exchange;
  const { requestIdOffset: oldId, requestIdLength } = exchange;
  const fieldsStart = oldPath + pathLength + REQUEST_LINE_END_BYTES;
  const headEnd = oldHead + exchange.headLength;
  const fieldsEnd = headEnd - 2;
  // More fields than can be told apart: there would be no room for further ones either.
  if (parseFields(memory, fieldsStart, headEnd, HEADER_COUNT_CAPACITY, headers, bits) <= 0) return -1;
  if (headers.count + (edits === null ? 0 : edits.lineCount) >= HEADER_COUNT_CAPACITY) return -1;
  const bytes =
    exchange.headLength +
    (edits === null ? 0 : edits.lines.length) +
    (hostname === null ? 0 : hostname.length) +
    (newPath === null ? 0 : newPath.bytesMax(pathLength)) +
    pathLength +
    hostLength +
    forwardedForLength +
    requestIdLength +
    keptBytes +
    FIXED_BYTES +
    SPILL_BYTES;
  if (bytes > LARGE_BLOCK_BYTES) return -1;
  const block = reactor.arena.allocate(bytes);
  if (block === 0) return 0;
  exchange.headBlock = block;
  exchange.headOffset = block;

  // The request line.
  let dest = putRange(memory, block, oldHead, oldPath - oldHead);
  const target = dest;
  if (newPath === null) dest = putRange(memory, dest, oldPath, pathLength);
  else dest = newPath.put(memory, dest, oldPath, pathLength);
  const targetLength = dest - target;
  dest = putRange(memory, dest, oldPath + pathLength, REQUEST_LINE_END_BYTES);
  if (hostname !== null) {
    dest = putText(view, dest, hostName);
    exchange.rewrittenHostOffset = dest;
    exchange.rewrittenHostLength = hostname.length;
    dest = putLineEnd(view, putBytes(memory, dest, hostname));
  }

  // Runs of fields that stay.
  let host = 0;
  let id = 0;
  let forwardedFor = 0;
  let timeoutEnd = 0;
  let runStart = fieldsStart;
  for (let field = 0; field <= headers.count; field++) {
    const last = field === headers.count;
    if (!last) {
      const dropped =
        (hostname !== null && headers.id(field) === HOST) || edits?.drops(memory, headers, field) === true;
      if (!dropped) continue;
    }
    const runEnd = last ? fieldsEnd : headers.nameOffset(field);
    host = moved(oldHost, runStart, runEnd, dest, host);
    id = moved(oldId, runStart, runEnd, dest, id);
    forwardedFor = moved(oldFor, runStart, runEnd, dest, forwardedFor);
    timeoutEnd = moved(exchange.grpcTimeoutEnd, runStart, runEnd, dest, timeoutEnd);
    dest = putRange(memory, dest, runStart, runEnd - runStart);
    runStart = field + 1 < headers.count ? headers.nameOffset(field + 1) : fieldsEnd;
  }
  if (edits !== null) dest = putText(view, dest, edits.lines);
  dest = putLineEnd(view, dest);
  exchange.headLength = dest - block;
  exchange.grpcTimeoutEnd = timeoutEnd;

  // What the new head has not got.
  if (newPath === null) {
    exchange.pathOffset = target;
  } else {
    exchange.rewrittenPathLength = targetLength;
    exchange.pathOffset = dest;
    dest = putRange(memory, dest, oldPath, pathLength);
  }
  if (host === 0) {
    host = dest;
    dest = putRange(memory, dest, oldHost, hostLength);
  }
  if (id === 0) {
    id = dest;
    dest = putRange(memory, dest, oldId, requestIdLength);
  }
  if (forwardedFor === 0) {
    forwardedFor = dest;
    dest = putRange(memory, dest, oldFor, forwardedForLength);
  }
  exchange.hostOffset = host;
  exchange.requestIdOffset = id;
  exchange.forwardedForOffset = forwardedFor;
  return dest;
}
