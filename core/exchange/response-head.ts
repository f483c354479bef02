// The response head as it goes to the client, rewritten in place.
//
// The new head ends where the caller wants it to: directly before the first body bytes, so that
// head and body leave with one send and the body is not copied. Fields that stay are moved right
// over dropped ones, from the last to the first; the status line and added fields come in front.
// A head that needs no change is not touched at all.
// Spec: RFC 9110 §7.6.1 (hop-by-hop), §6.6.1 (Date), §15.3.5 (204); RFC 9112 §6.1, §9.6.
// Hot module: no allocation.

import { HeaderId } from '../http1/header-ids.ts';
import type { ResponseHead } from '../http1/message.ts';
import { bytesOf, putBytes } from '../io/bytes.ts';
import { connectionNames } from './fields.ts';
import type { Runtime } from './runtime.ts';

const connectionClose = bytesOf('connection: close\r\n');
const connectionKeepAlive = bytesOf('connection: keep-alive\r\n');
const connectionUpgrade = bytesOf('connection: upgrade\r\n');
const chunkedLine = bytesOf('transfer-encoding: chunked\r\n');

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

/** The `date:` line of the current second, kept for a worker. */
export class DateLine {
  readonly bytes: Uint8Array = bytesOf('date: Thu, 01 Jan 1970 00:00:00 GMT\r\n');
  private second = -1;

  /** Brings the line up to date; makes a string once a second. */
  update(wallMs: number): void {
    const second = Math.floor(wallMs / 1000);
    if (second === this.second) return;
    this.second = second;
    this.bytes.set(bytesOf(`date: ${new Date(second * 1000).toUTCString()}\r\n`));
  }
}

/**
 * Rewrites `head`, whose bytes start at `headOffset`, so that it ends at `endAt`
 * (`endAt` >= `head.endOffset`). Returns the offset of its first byte. Before `headOffset` there
 * must be room for added fields (HEADROOM_BYTES).
 */
export function rewriteResponseHead(
  memory: Uint8Array,
  scratch: number,
  headOffset: number,
  head: ResponseHead,
  endAt: number,
  framing: number,
  connection: number,
  runtime: Runtime,
  date: DateLine,
): number {
  const headers = head.headers;
  const replaceServer = runtime.serverLine.length > 0;
  let runEnd = head.endOffset;
  let dest = endAt;
  let hasDate = false;
  let keptChunked = false;

  for (let field = headers.count - 1; field >= 0; field--) {
    let keep = true;
    switch (headers.id(field)) {
      case HeaderId.OTHER:
        keep = !head.connectionNamesFields || !connectionNames(memory, headers, field);
        break;
      case HeaderId.CONNECTION:
      case HeaderId.KEEP_ALIVE:
      case HeaderId.PROXY_CONNECTION:
      case HeaderId.TE:
        keep = false;
        break;
      case HeaderId.UPGRADE:
        keep = connection === ConnectionOption.UPGRADE;
        break;
      case HeaderId.TRANSFER_ENCODING:
        keep = framing === OutFraming.CHUNKED;
        keptChunked = keptChunked || keep;
        break;
      case HeaderId.CONTENT_LENGTH:
        keep = framing === OutFraming.KEEP;
        break;
      case HeaderId.DATE:
        hasDate = true;
        break;
      case HeaderId.SERVER:
        keep = !replaceServer;
        break;
      default:
        if (head.connectionNamesFields && connectionNames(memory, headers, field)) keep = false;
    }
    if (keep) continue;
    const lineEnd = field + 1 < headers.count ? headers.nameOffset(field + 1) : head.endOffset - 2;
    dest -= runEnd - lineEnd;
    if (dest !== lineEnd) memory.copyWithin(dest, lineEnd, runEnd);
    runEnd = headers.nameOffset(field);
  }

  let added = scratch;
  if (!hasDate && head.status >= 200) added = putBytes(memory, added, date.bytes);
  if (replaceServer) added = putBytes(memory, added, runtime.serverLine);
  if (runtime.viaLine.length > 0) added = putBytes(memory, added, runtime.viaLine);
  if (framing === OutFraming.CHUNKED && !keptChunked) added = putBytes(memory, added, chunkedLine);
  if (connection === ConnectionOption.CLOSE) added = putBytes(memory, added, connectionClose);
  else if (connection === ConnectionOption.KEEP_ALIVE) added = putBytes(memory, added, connectionKeepAlive);
  else if (connection === ConnectionOption.UPGRADE) added = putBytes(memory, added, connectionUpgrade);
  const addedLength = added - scratch;

  // What is left: the status line and the first run of kept fields.
  const fieldsOffset = head.fieldsOffset;
  dest -= runEnd - fieldsOffset;
  if (dest !== fieldsOffset) memory.copyWithin(dest, fieldsOffset, runEnd);
  const statusLength = fieldsOffset - headOffset;
  const start = dest - addedLength - statusLength;
  if (start !== headOffset) {
    for (let i = 0; i < statusLength; i++) {
      // Left or right, the ranges may overlap: go through them in the direction that is safe.
      const index = start < headOffset ? i : statusLength - 1 - i;
      memory[start + index] = memory[headOffset + index];
    }
  }
  for (let i = 0; i < addedLength; i++) memory[start + statusLength + i] = memory[scratch + i];
  // "HTTP/1.x": the version is this proxy's own (RFC 9110 §2.5).
  memory[start + 7] = 49;
  return start;
}
