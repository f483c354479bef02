// The request head as it goes upstream: the client's, without what concerned only that connection,
// plus what this proxy adds. Built once per request in the exchange's own block, where it stays for
// a retry, the access log and the flight record.
// Runs of fields that pass unchanged are copied whole; most requests are one run.
// Spec: RFC 9110 §7.6.1 (hop-by-hop), §7.6.3 (Via), §7.8 (Upgrade); RFC 9112 §3.2 (request target).
// Hot module: no allocation.

import { HeaderId } from '../http1/header-ids.ts';
import { Method, type RequestHead, TargetForm } from '../http1/message.ts';
import {
  PEER_TEXT_BYTES_MAX,
  putBytes,
  putLineEnd,
  putPeer,
  putRange,
  putText,
  SPILL_BYTES,
  Text,
} from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import { type Exchange, HttpVersion } from './exchange.ts';
import { connectionNames, valueEquals } from './fields.ts';
import { GrpcKind, putGrpcTimeout } from './grpc.ts';
import { REQUEST_ID_BYTES, type RequestIds } from './request-id.ts';
import type { Runtime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const {
  CONNECTION,
  EXPECT,
  FORWARDED,
  HOST,
  HTTP2_SETTINGS,
  KEEP_ALIVE,
  PROXY_AUTHORIZATION,
  PROXY_CONNECTION,
  TE,
  UPGRADE,
  X_FORWARDED_CLIENT_CERT,
  X_FORWARDED_FOR,
  X_FORWARDED_HOST,
  X_FORWARDED_PROTO,
  X_REQUEST_ID,
} = HeaderId;
const { ABSOLUTE, ASTERISK, AUTHORITY, ORIGIN } = TargetForm;
const { OPTIONS } = Method;
const { WEB } = GrpcKind;
const { HTTP_2 } = HttpVersion;

const HOST_BIT = 1 << HOST;
const LINE_END_BYTES = 2;

/** Fields whose presence means that the head is not one run; bit 0 stands for ids from 32 on. */
const SPECIAL_BITS =
  1 |
  (1 << CONNECTION) |
  (1 << EXPECT) |
  (1 << HTTP2_SETTINGS) |
  (1 << KEEP_ALIVE) |
  (1 << PROXY_AUTHORIZATION) |
  (1 << PROXY_CONNECTION) |
  (1 << TE) |
  (1 << UPGRADE) |
  (1 << X_FORWARDED_FOR) |
  (1 << X_FORWARDED_HOST) |
  (1 << X_FORWARDED_PROTO) |
  (1 << X_REQUEST_ID);

const versionEnd = new Text(' HTTP/1.1\r\n');
const hostName = new Text('host: ');
const forwardedForName = new Text('x-forwarded-for: ');
const forwardedProtoHttp = new Text('\r\nx-forwarded-proto: http\r\n');
const forwardedProtoHttps = new Text('\r\nx-forwarded-proto: https\r\n');
const forwardedHostName = new Text('x-forwarded-host: ');
const requestIdName = new Text('x-request-id: ');
const clientCertificateName = new Text('x-forwarded-client-cert: ');
const connectionUpgrade = new Text('connection: upgrade\r\nupgrade: ');
const teTrailers = new Text('te: trailers\r\nconnection: te\r\n');
const trailersValue = new Text('trailers').bytes.subarray(0, 8);

/** Longest X-Request-Id that is taken over from a trusted proxy. */
const REQUEST_ID_BYTES_MAX = 128;

/** Bytes that may be added to a head, besides copies of the authority and Via. */
const ADDITIONS_BYTES_MAX = 512 + PEER_TEXT_BYTES_MAX + REQUEST_ID_BYTES + SPILL_BYTES;

/** Upper bound of the size of the rewritten head. */
export function requestHeadBytesMax(
  head: RequestHead,
  runtime: Runtime,
  endpointBytes: number,
  downstream: Connection,
): number {
  const certificate = downstream.clientCertificate;
  return (
    (certificate === null ? 0 : certificate.forwarded.length) +
    head.endOffset -
    head.methodOffset +
    2 * head.authorityLength +
    endpointBytes +
    runtime.viaLines[head.versionMinor].length +
    ADDITIONS_BYTES_MAX
  );
}

/**
 * Writes the head at `at` (there are `requestHeadBytesMax` bytes of room) and sets the positions of
 * the exchange. `endpointAddress` stands in for Host when an HTTP/1.0 client gave none. Returns the offset after
 * all that it has written.
 */
export function writeRequestHead(
  reactor: Reactor,
  at: number,
  head: RequestHead,
  exchange: Exchange,
  runtime: Runtime,
  downstream: Connection,
  endpointAddress: Uint8Array,
  ids: RequestIds,
): number {
  const { memory, view } = reactor;
  const { http } = runtime;
  const { headers } = head;
  const trusted = http.trustedHops > 0;
  const fieldsEnd = head.endOffset - 2;
  const absolute = head.targetForm === ABSOLUTE;
  exchange.headOffset = at;
  exchange.methodLength = head.methodLength;

  let runStart = head.methodOffset;
  let dest = at;
  if (head.targetForm === ORIGIN && head.versionMinor === 1) {
    exchange.pathOffset = at + (head.targetOffset - runStart);
    exchange.pathLength = head.targetLength;
  } else {
    dest = putRequestLine(reactor, at, head, exchange);
    runStart = headers.count > 0 ? headers.nameOffset(0) : fieldsEnd;
  }
  // Host stays where it is unless the target names another authority (RFC 9112 §3.2.2).
  // Clients of gRPC-Web cannot send TE, and servers of gRPC demand it.
  let te = exchange.grpc >= WEB;
  if ((head.seen & SPECIAL_BITS) === 0 && !absolute && !head.connectionNamesFields) {
    exchange.hostOffset = head.authorityOffset + dest - runStart;
    exchange.hostLength = head.authorityLength;
  } else {
    for (let field = 0; field < headers.count; field++) {
      const id = headers.id(field);
      let keep = true;
      switch (id) {
        case HOST:
          keep = !absolute;
          if (keep) {
            exchange.hostOffset = headers.valueOffset(field) + dest - runStart;
            exchange.hostLength = headers.valueLength(field);
          }
          break;
        case CONNECTION:
        case KEEP_ALIVE:
        case PROXY_CONNECTION:
        case UPGRADE:
        case HTTP2_SETTINGS:
        case PROXY_AUTHORIZATION:
          keep = false;
          break;
        case EXPECT:
          // Ignored in HTTP/1.0 (RFC 9110 §10.1.1), so it must not come to life in our HTTP/1.1.
          keep = head.versionMinor === 1;
          break;
        case TE:
          keep = false;
          if (valueEquals(memory, headers.valueOffset(field), headers.valueLength(field), trailersValue)) te = true;
          break;
        case X_FORWARDED_FOR:
          keep = !http.forwardedHeaders;
          break;
        case X_FORWARDED_PROTO:
        case X_FORWARDED_HOST:
        // The standard twin of X-Forwarded-*: from an untrusted client it says what it likes.
        case FORWARDED:
          keep = trusted || !http.forwardedHeaders;
          break;
        case X_FORWARDED_CLIENT_CERT:
          // An identity: only somebody trusted may claim one.
          keep = trusted;
          break;
        case X_REQUEST_ID: {
          const length = headers.valueLength(field);
          keep =
            exchange.requestIdLength === 0 &&
            // Applications of the mesh name requests for each other, and nodes keep what nodes have named.
            (trusted || downstream.workload !== null || !http.requestIdHeader) &&
            length > 0 &&
            length <= REQUEST_ID_BYTES_MAX &&
            !(head.connectionNamesFields && connectionNames(memory, headers, field));
          if (keep) {
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
  }
  dest = putRange(memory, dest, runStart, fieldsEnd - runStart);

  // An empty Host has been copied and stays alone: two of them would make the request invalid (RFC 9112 §3.2).
  if (absolute || (head.seen & HOST_BIT) === 0) dest = putHost(reactor, dest, head, exchange, endpointAddress);
  if (exchange.upgradeRequested) {
    dest = putText(view, dest, connectionUpgrade);
    dest = putRange(memory, dest, headers.valueOffset(head.upgradeField), headers.valueLength(head.upgradeField));
    dest = putLineEnd(view, dest);
  } else if (te) {
    dest = putText(view, dest, teTrailers);
  }
  const certificate = downstream.clientCertificate;
  if (certificate?.verified) {
    dest = putText(view, dest, clientCertificateName);
    dest = putLineEnd(view, putBytes(memory, dest, certificate.forwarded));
  }
  if (http.forwardedHeaders) dest = putForwarded(reactor, dest, head, exchange, downstream, trusted);
  if (http.requestIdHeader && exchange.requestIdLength === 0) {
    dest = putText(view, dest, requestIdName);
    exchange.requestIdOffset = dest;
    exchange.requestIdLength = REQUEST_ID_BYTES;
    dest = putLineEnd(view, ids.put(view, dest));
  }
  if (exchange.grpcTimeoutMs > 0) {
    dest = putGrpcTimeout(reactor, dest, exchange.grpcTimeoutMs);
    exchange.grpcTimeoutEnd = dest - LINE_END_BYTES;
  }
  const viaLine = runtime.viaLines[exchange.httpVersion === HTTP_2 ? 2 : head.versionMinor];
  if (viaLine.length > 0) dest = putText(view, dest, viaLine);
  dest = putLineEnd(view, dest);
  exchange.headLength = dest - at;
  if (exchange.requestIdLength === 0) {
    // The exchange always has an id, for logs and `explain`, whether or not the upstream sees it.
    exchange.requestIdOffset = dest;
    exchange.requestIdLength = REQUEST_ID_BYTES;
    dest = ids.put(view, dest);
  }
  return dest;
}

function putRequestLine(reactor: Reactor, at: number, head: RequestHead, exchange: Exchange): number {
  const { memory, view } = reactor;
  let dest = putRange(memory, at, head.methodOffset, head.methodLength);
  memory[dest++] = 32;
  exchange.pathOffset = dest;
  if (head.targetForm === AUTHORITY || head.targetForm === ASTERISK) {
    dest = putRange(memory, dest, head.targetOffset, head.targetLength);
  } else if (head.pathLength === 0 && head.method === OPTIONS) {
    memory[dest++] = 42; // "*": RFC 9112 §3.2.4
  } else {
    if (head.pathOnlyLength === 0) memory[dest++] = 47;
    dest = putRange(memory, dest, head.pathOffset, head.pathLength);
  }
  exchange.pathLength = dest - exchange.pathOffset;
  return putText(view, dest, versionEnd);
}

function putHost(
  reactor: Reactor,
  at: number,
  head: RequestHead,
  exchange: Exchange,
  endpointAddress: Uint8Array,
): number {
  const { memory, view } = reactor;
  let dest = putText(view, at, hostName);
  exchange.hostOffset = dest;
  dest =
    head.authorityLength > 0
      ? putRange(memory, dest, head.authorityOffset, head.authorityLength)
      : putBytes(memory, dest, endpointAddress);
  exchange.hostLength = dest - exchange.hostOffset;
  return putLineEnd(view, dest);
}

function putForwarded(
  reactor: Reactor,
  at: number,
  head: RequestHead,
  exchange: Exchange,
  downstream: Connection,
  trusted: boolean,
): number {
  const { memory, view } = reactor;
  const { headers } = head;
  let dest = putText(view, at, forwardedForName);
  exchange.forwardedForOffset = dest;
  let protoKnown = false;
  let hostKnown = false;
  if (trusted) {
    for (let field = headers.find(X_FORWARDED_FOR); field >= 0; ) {
      if (headers.valueLength(field) > 0) {
        dest = putRange(memory, dest, headers.valueOffset(field), headers.valueLength(field));
        memory[dest++] = 44;
        memory[dest++] = 32;
      }
      field = headers.find(X_FORWARDED_FOR, field + 1);
    }
    protoKnown = (head.seen & (1 << X_FORWARDED_PROTO)) !== 0;
    hostKnown = (head.seen & (1 << X_FORWARDED_HOST)) !== 0;
  }
  dest = putPeer(view, dest, downstream);
  exchange.forwardedForLength = dest - exchange.forwardedForOffset;
  if (protoKnown) dest = putLineEnd(view, dest);
  else dest = putText(view, dest, downstream.listener!.https ? forwardedProtoHttps : forwardedProtoHttp);
  if (head.authorityLength > 0 && !hostKnown) {
    dest = putText(view, dest, forwardedHostName);
    dest = putRange(memory, dest, head.authorityOffset, head.authorityLength);
    dest = putLineEnd(view, dest);
  }
  return dest;
}
