// The request head as it goes upstream: the client's, without what concerned only that connection,
// plus what this proxy adds. Built once per request in the exchange's own block, where it stays for
// a retry, the access log and the flight record.
// Runs of fields that pass unchanged are copied whole.
// Spec: RFC 9110 §7.6.1 (hop-by-hop), §7.6.3 (Via), §7.8 (Upgrade); RFC 9112 §3.2 (request target).
// Hot module: no allocation.

import { HeaderId } from '../http1/header-ids.ts';
import { Method, type RequestHead, TargetForm } from '../http1/message.ts';
import { bytesOf, PEER_TEXT_BYTES_MAX, putBytes, putPeer, putRange } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Exchange } from './exchange.ts';
import { connectionNames, valueEquals } from './fields.ts';
import { REQUEST_ID_BYTES, type RequestIds } from './request-id.ts';
import type { Runtime } from './runtime.ts';

const versionEnd = bytesOf(' HTTP/1.1\r\n');
const hostName = bytesOf('host: ');
const forwardedForName = bytesOf('x-forwarded-for: ');
const forwardedProtoHttp = bytesOf('x-forwarded-proto: http\r\n');
const forwardedProtoHttps = bytesOf('x-forwarded-proto: https\r\n');
const forwardedHostName = bytesOf('x-forwarded-host: ');
const requestIdName = bytesOf('x-request-id: ');
const connectionUpgrade = bytesOf('connection: upgrade\r\nupgrade: ');
const teTrailers = bytesOf('te: trailers\r\nconnection: te\r\n');
const trailersValue = bytesOf('trailers');

/** Longest X-Request-Id that is taken over from a trusted proxy. */
const REQUEST_ID_BYTES_MAX = 128;

/** Bytes that may be added to a head, besides copies of the authority and Via. */
const ADDITIONS_BYTES_MAX = 512 + PEER_TEXT_BYTES_MAX + REQUEST_ID_BYTES;

/** Upper bound of the size of the rewritten head. */
export function requestHeadBytesMax(head: RequestHead, runtime: Runtime, endpointBytes: number): number {
  return (
    head.endOffset -
    head.methodOffset +
    2 * head.authorityLength +
    endpointBytes +
    runtime.viaLine.length +
    ADDITIONS_BYTES_MAX
  );
}

/**
 * Writes the head at `at` (the block has `requestHeadBytesMax` bytes of room) and sets the
 * positions of the exchange. `endpointAddress` stands in for Host when an HTTP/1.0 client gave none.
 * Returns the offset after the head.
 */
export function writeRequestHead(
  memory: Uint8Array,
  at: number,
  head: RequestHead,
  exchange: Exchange,
  runtime: Runtime,
  downstream: Connection,
  endpointAddress: Uint8Array,
  ids: RequestIds,
): number {
  const http = runtime.http;
  const headers = head.headers;
  const trusted = http.trustedHops > 0;
  const fieldsEnd = head.endOffset - 2;
  const fieldsStart = headers.count > 0 ? headers.nameOffset(0) : fieldsEnd;
  exchange.headOffset = at;
  exchange.methodLength = head.methodLength;

  let runStart: number;
  let dest = at;
  if (head.targetForm === TargetForm.ORIGIN && head.versionMinor === 1) {
    runStart = head.methodOffset;
    exchange.pathOffset = at + (head.targetOffset - head.methodOffset);
    exchange.pathLength = head.targetLength;
  } else {
    dest = putRequestLine(memory, at, head, exchange);
    runStart = fieldsStart;
  }

  let keepHost = true;
  if (head.targetForm === TargetForm.ABSOLUTE) {
    // The authority of the target replaces Host (RFC 9112 §3.2.2).
    keepHost = false;
  }
  let te = false;
  let requestIdKept = false;
  for (let field = 0; field < headers.count; field++) {
    const id = headers.id(field);
    let keep = true;
    switch (id) {
      case HeaderId.OTHER:
        keep = !head.connectionNamesFields || !connectionNames(memory, headers, field);
        break;
      case HeaderId.HOST:
        keep = keepHost;
        if (keep) {
          exchange.hostOffset = headers.valueOffset(field) + dest - runStart;
          exchange.hostLength = headers.valueLength(field);
        }
        break;
      case HeaderId.USER_AGENT:
        exchange.userAgentOffset = headers.valueOffset(field) + dest - runStart;
        exchange.userAgentLength = headers.valueLength(field);
        break;
      case HeaderId.REFERER:
        exchange.refererOffset = headers.valueOffset(field) + dest - runStart;
        exchange.refererLength = headers.valueLength(field);
        break;
      case HeaderId.CONNECTION:
      case HeaderId.KEEP_ALIVE:
      case HeaderId.PROXY_CONNECTION:
      case HeaderId.UPGRADE:
      case HeaderId.HTTP2_SETTINGS:
      case HeaderId.PROXY_AUTHORIZATION:
        keep = false;
        break;
      case HeaderId.TE:
        keep = false;
        if (valueEquals(memory, headers.valueOffset(field), headers.valueLength(field), trailersValue)) te = true;
        break;
      case HeaderId.X_FORWARDED_FOR:
        keep = !http.forwardedHeaders;
        break;
      case HeaderId.X_FORWARDED_PROTO:
      case HeaderId.X_FORWARDED_HOST:
        keep = trusted || !http.forwardedHeaders;
        break;
      case HeaderId.FORWARDED:
        // The standard twin of X-Forwarded-*: from an untrusted client it says what it likes.
        keep = trusted || !http.forwardedHeaders;
        break;
      case HeaderId.X_REQUEST_ID: {
        const length = headers.valueLength(field);
        keep = !requestIdKept && (trusted || !http.requestIdHeader) && length > 0 && length <= REQUEST_ID_BYTES_MAX;
        if (keep) {
          requestIdKept = true;
          exchange.requestIdOffset = headers.valueOffset(field) + dest - runStart;
          exchange.requestIdLength = length;
        }
        break;
      }
      default:
        if (head.connectionNamesFields && connectionNames(memory, headers, field)) keep = false;
    }
    if (keep) continue;
    const lineStart = headers.nameOffset(field);
    const lineEnd = field + 1 < headers.count ? headers.nameOffset(field + 1) : fieldsEnd;
    dest = putRange(memory, dest, runStart, lineStart - runStart);
    runStart = lineEnd;
  }
  dest = putRange(memory, dest, runStart, fieldsEnd - runStart);

  if (!keepHost || exchange.hostLength === 0) dest = putHost(memory, dest, head, exchange, endpointAddress);
  if (exchange.upgradeRequested) {
    dest = putBytes(memory, dest, connectionUpgrade);
    dest = putRange(memory, dest, headers.valueOffset(head.upgradeField), headers.valueLength(head.upgradeField));
    dest = putLineEnd(memory, dest);
  } else if (te) {
    dest = putBytes(memory, dest, teTrailers);
  }
  if (http.forwardedHeaders) dest = putForwarded(memory, dest, head, exchange, downstream, trusted);
  if (!requestIdKept) {
    // The exchange always has an id, for logs and `explain`, whether or not the upstream sees it.
    if (http.requestIdHeader) {
      dest = putBytes(memory, dest, requestIdName);
      exchange.requestIdOffset = dest;
      exchange.requestIdLength = REQUEST_ID_BYTES;
      dest = putLineEnd(memory, ids.put(memory, dest));
    }
  }
  dest = putBytes(memory, dest, runtime.viaLine);
  dest = putLineEnd(memory, dest);
  exchange.headLength = dest - at;
  if (exchange.requestIdLength === 0) {
    exchange.requestIdOffset = dest;
    exchange.requestIdLength = REQUEST_ID_BYTES;
    ids.put(memory, dest);
  }
  return dest;
}

function putRequestLine(memory: Uint8Array, at: number, head: RequestHead, exchange: Exchange): number {
  let dest = putRange(memory, at, head.methodOffset, head.methodLength);
  memory[dest++] = 32;
  exchange.pathOffset = dest;
  if (head.targetForm === TargetForm.AUTHORITY || head.targetForm === TargetForm.ASTERISK) {
    dest = putRange(memory, dest, head.targetOffset, head.targetLength);
  } else if (head.pathLength === 0 && head.method === Method.OPTIONS) {
    memory[dest++] = 42; // "*": RFC 9112 §3.2.4
  } else {
    if (head.pathOnlyLength === 0) memory[dest++] = 47;
    dest = putRange(memory, dest, head.pathOffset, head.pathLength);
  }
  exchange.pathLength = dest - exchange.pathOffset;
  return putBytes(memory, dest, versionEnd);
}

function putHost(
  memory: Uint8Array,
  at: number,
  head: RequestHead,
  exchange: Exchange,
  endpointAddress: Uint8Array,
): number {
  let dest = putBytes(memory, at, hostName);
  exchange.hostOffset = dest;
  dest =
    head.authorityLength > 0
      ? putRange(memory, dest, head.authorityOffset, head.authorityLength)
      : putBytes(memory, dest, endpointAddress);
  exchange.hostLength = dest - exchange.hostOffset;
  return putLineEnd(memory, dest);
}

function putForwarded(
  memory: Uint8Array,
  at: number,
  head: RequestHead,
  exchange: Exchange,
  downstream: Connection,
  trusted: boolean,
): number {
  const headers = head.headers;
  let dest = putBytes(memory, at, forwardedForName);
  exchange.forwardedForOffset = dest;
  if (trusted) {
    for (let field = headers.find(HeaderId.X_FORWARDED_FOR); field >= 0; ) {
      if (headers.valueLength(field) > 0) {
        dest = putRange(memory, dest, headers.valueOffset(field), headers.valueLength(field));
        memory[dest++] = 44;
        memory[dest++] = 32;
      }
      field = headers.find(HeaderId.X_FORWARDED_FOR, field + 1);
    }
  }
  dest = putPeer(memory, dest, downstream);
  exchange.forwardedForLength = dest - exchange.forwardedForOffset;
  dest = putLineEnd(memory, dest);
  if (!trusted || headers.find(HeaderId.X_FORWARDED_PROTO) < 0) {
    const https = downstream.listener !== null && downstream.listener.settings.scheme === 'https';
    dest = putBytes(memory, dest, https ? forwardedProtoHttps : forwardedProtoHttp);
  }
  if (head.authorityLength > 0 && (!trusted || headers.find(HeaderId.X_FORWARDED_HOST) < 0)) {
    dest = putBytes(memory, dest, forwardedHostName);
    dest = putRange(memory, dest, head.authorityOffset, head.authorityLength);
    dest = putLineEnd(memory, dest);
  }
  return dest;
}

function putLineEnd(memory: Uint8Array, at: number): number {
  memory[at] = 13;
  memory[at + 1] = 10;
  return at + 2;
}
