// The response head as it goes to the client, rewritten in place.
//
// The new head ends where the caller wants it to: directly before the first body bytes, so that
// head and body leave with one send and the body is not copied. Fields that stay are moved right
// over dropped ones, from the last to the first; the status line and added fields come in front.
// A head that needs no change is not touched at all.
// Spec: RFC 9110 §7.6.1 (hop-by-hop), §6.6.1 (Date), §15.3.5 (204); RFC 9112 §6.1, §9.6.
// Hot module: no allocation.

import { HeaderId } from '../http1/header-ids.ts';
import { FIELD_WORDS, type HeaderTable } from '../http1/header-table.ts';
import type { ResponseHead } from '../http1/message.ts';
import { putRange, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import { connectionNames } from './fields.ts';
import type { Runtime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONNECTION, CONTENT_LENGTH, DATE, KEEP_ALIVE, PROXY_CONNECTION, SERVER, TE, TRANSFER_ENCODING, UPGRADE } =
  HeaderId;

/** What a rewritten response head says of its connection. */
export const ConnectionOption = { NONE: 0, CLOSE: 1, KEEP_ALIVE: 2, UPGRADE: 3 } as const;

/** How the body is framed towards the client. */
export const OutFraming = {
  /** Content-Length as received, or no body. */
  KEEP: 0,
  /** Chunked, whatever it was. */
  CHUNKED: 1,
  /** Neither: the end of the connection ends the body (HTTP/1.0 clients), or no body is allowed. */
  NONE: 2,
} as const;

const { CHUNKED, KEEP } = OutFraming;

const connectionLines = [
  new Text(''),
  new Text('connection: close\r\n'),
  new Text('connection: keep-alive\r\n'),
  new Text('connection: upgrade\r\n'),
];
const chunkedLine = new Text('transfer-encoding: chunked\r\n');
const noLine = new Text('');

/** Fields that never pass, whatever the framing and connection. */
const DROPPED_BITS = (1 << CONNECTION) | (1 << KEEP_ALIVE) | (1 << PROXY_CONNECTION) | (1 << TE);
const TRANSFER_ENCODING_BIT = 1 << TRANSFER_ENCODING;
const CONTENT_LENGTH_BIT = 1 << CONTENT_LENGTH;
const SERVER_BIT = 1 << SERVER;
const UPGRADE_BIT = 1 << UPGRADE;
const DATE_BIT = 1 << DATE;

/** The `date:` line of the current second, kept for a worker. */
export class DateLine {
  private text = new Text('');
  private second = -1;

  /** The line for a moment in wall-clock milliseconds; makes a new text once a second. */
  at(wallMs: number): Text {
    const second = Math.floor(wallMs / 1000);
    if (second !== this.second) {
      this.second = second;
      this.text = new Text(`date: ${new Date(second * 1000).toUTCString()}\r\n`);
    }
    return this.text;
  }
}

/** Fields that this proxy would add to a response, and does not: bits for `rewriteResponseHead`. */
export const LeftOut = { SERVER: 1, VIA: 2 } as const;

const LEFT_OUT_SERVER = LeftOut.SERVER;
const LEFT_OUT_VIA = LeftOut.VIA;

/**
 * Most bytes of further lines that `rewriteResponseHead` takes: with all that it may add itself they fit into
 * HEADROOM_BYTES.
 */
export const FURTHER_LINES_BYTES_MAX = 320;

/**
 * Rewrites `head`, whose bytes start at `headOffset`, so that it ends at `endAt`
 * (`endAt` >= `head.endOffset`). Returns the offset of its first byte. Before `headOffset` there
 * must be room for added fields (HEADROOM_BYTES). Further lines to add lie at `linesOffset`, outside of both;
 * `leftOut` says which of its own this proxy does not add.
 */
export function rewriteResponseHead(
  reactor: Reactor,
  headOffset: number,
  head: ResponseHead,
  endAt: number,
  framing: number,
  connection: number,
  runtime: Runtime,
  date: DateLine,
  linesOffset = 0,
  linesLength = 0,
  leftOut = 0,
): number {
  const { memory, view } = reactor;
  let dropped = DROPPED_BITS;
  if (framing !== CHUNKED) dropped |= TRANSFER_ENCODING_BIT;
  if (framing !== KEEP) dropped |= CONTENT_LENGTH_BIT;
  if (connection !== ConnectionOption.UPGRADE) dropped |= UPGRADE_BIT;
  const serverLine = (leftOut & LEFT_OUT_SERVER) === 0 ? runtime.serverLine : noLine;
  if (serverLine.length > 0) dropped |= SERVER_BIT;

  let runEnd = head.endOffset;
  let dest = endAt;
  if ((head.seen & dropped) !== 0 || head.connectionNamesFields) {
    const { headers } = head;
    // Before anything moves: what moves may lie on the Connection field afterwards.
    if (head.connectionNamesFields) markNamed(memory, headers);
    for (let field = headers.count - 1; field >= 0; field--) {
      const id = headers.id(field);
      // Ids from 32 on have no bit, and are not among the dropped ones.
      if (id >= 32 || (dropped & (1 << id) & ~1) === 0) continue;
      const lineEnd = field + 1 < headers.count ? headers.nameOffset(field + 1) : head.endOffset - 2;
      dest -= runEnd - lineEnd;
      if (dest !== lineEnd) memory.copyWithin(dest, lineEnd, runEnd);
      runEnd = headers.nameOffset(field);
    }
  }
  // What is left: the status line and the first run of kept fields.
  const { fieldsOffset } = head;
  dest -= runEnd - fieldsOffset;
  if (dest !== fieldsOffset) memory.copyWithin(dest, fieldsOffset, runEnd);

  const addDate = (head.seen & DATE_BIT) === 0 && head.status >= 200;
  const addChunked = framing === CHUNKED && (head.seen & TRANSFER_ENCODING_BIT) === 0;
  const connectionLine = connectionLines[connection];
  const dateLine = date.at(reactor.wallMs);
  const viaLine = (leftOut & LEFT_OUT_VIA) === 0 ? runtime.viaLines[head.versionMinor] : noLine;
  const addedLength =
    (addDate ? dateLine.length : 0) +
    serverLine.length +
    viaLine.length +
    linesLength +
    (addChunked ? chunkedLine.length : 0) +
    connectionLine.length;
  const statusLength = fieldsOffset - headOffset;
  const start = dest - addedLength - statusLength;
  if (start < headOffset) {
    for (let i = 0; i < statusLength; i++) memory[start + i] = memory[headOffset + i];
  } else if (start > headOffset) {
    for (let i = statusLength - 1; i >= 0; i--) memory[start + i] = memory[headOffset + i];
  }
  // "HTTP/1.x": the version is this proxy's own (RFC 9110 §2.5).
  memory[start + 7] = 49;
  if (addedLength > 0) {
    // Texts are stored in whole words and spill to the right: the first field is put back after.
    const low = view.getInt32(dest, true);
    const high = view.getInt32(dest + 4, true);
    let at = start + statusLength;
    if (addDate) at = putText(view, at, dateLine);
    if (serverLine.length > 0) at = putText(view, at, serverLine);
    if (viaLine.length > 0) at = putText(view, at, viaLine);
    if (linesLength > 0) at = putRange(memory, at, linesOffset, linesLength);
    if (addChunked) at = putText(view, at, chunkedLine);
    putText(view, at, connectionLine);
    view.setInt32(dest, low, true);
    view.setInt32(dest + 4, high, true);
  }
  return start;
}

/**
 * Gives fields that Connection names the id of one that is always dropped. Transfer-Encoding and
 * Upgrade are for this hop to decide, whatever the upstream says of its own connection.
 */
function markNamed(memory: Uint8Array, headers: HeaderTable): void {
  for (let field = 0; field < headers.count; field++) {
    const id = headers.id(field);
    if (id === TRANSFER_ENCODING || id === UPGRADE || !connectionNames(memory, headers, field)) continue;
    headers.words[field * FIELD_WORDS + 4] = KEEP_ALIVE;
  }
}
