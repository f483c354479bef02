// What the HTTP/1 parser says of a request or response head: positions and decisions, no strings.
// Offsets are into the worker's memory and stay valid only while those bytes stay put.
// Spec: RFC 9112 (syntax, framing), RFC 9110 §7.2 (Host), §7.6.1 (Connection).
// Owned by one worker; one instance of each is reused for every message.

import { HeaderTable } from './header-table.ts';

/** Methods the core tells apart; anything else that is a valid token is OTHER. */
export const Method = {
  OTHER: 0,
  GET: 1,
  HEAD: 2,
  POST: 3,
  PUT: 4,
  DELETE: 5,
  OPTIONS: 6,
  PATCH: 7,
  CONNECT: 8,
  TRACE: 9,
} as const;

/** Form of the request target (RFC 9112 §3.2). */
export const TargetForm = { ORIGIN: 0, ABSOLUTE: 1, AUTHORITY: 2, ASTERISK: 3 } as const;

/** Limits a parser call works under; bytes unless named otherwise. */
export interface ParserLimits {
  headBytesMax: number;
  headerCountMax: number;
  uriBytesMax: number;
}

/** A parsed request head. */
export class RequestHead {
  readonly headers = new HeaderTable();
  method = 0;
  methodOffset = 0;
  methodLength = 0;
  /** The request target as received. */
  targetOffset = 0;
  targetLength = 0;
  targetForm = 0;
  /** Path with query, as it goes upstream; for absolute-form the part after the authority (length 0: "/" is meant). */
  pathOffset = 0;
  pathLength = 0;
  /**
   * Length of the path without `?` and query. 0 with `pathLength` > 0: the absolute-form target has
   * a query but no path (`http://host?q`), and "/" is meant before it.
   */
  pathOnlyLength = 0;
  /**
   * host[:port] the request is for: from the target if it has one (RFC 9112 §3.2.2), else from Host.
   * `authorityLength` 0: none given (HTTP/1.0, or an empty Host).
   */
  authorityOffset = 0;
  authorityLength = 0;
  /** Length of the host part of the authority, without port; IPv6 brackets are part of the host. */
  hostLength = 0;
  /** 0 for HTTP/1.0, 1 for HTTP/1.1. */
  versionMinor = 0;
  /** Content-Length, or -1 when absent. Never set together with `chunked`. */
  contentLength = -1;
  /** The body is chunked (Transfer-Encoding is exactly "chunked"). */
  chunked = false;
  /** Whether the connection may serve another request afterwards (version and Connection options). */
  keepAlive = false;
  /** `Expect: 100-continue` on an HTTP/1.1 request. */
  expectContinue = false;
  /** Field index of Upgrade when Connection names "upgrade" and both are present; else -1. */
  upgradeField = -1;
  /** Connection names fields other than close, keep-alive and upgrade: they are hop-by-hop too. */
  connectionNamesFields = false;
  /** At least one field is hop-by-hop by its known id (Connection, Keep-Alive, TE, Upgrade ...). */
  hasHopByHop = false;
  /** Known fields that are present: bit `id` for ids 1 to 31; bit 0: one with a higher id. */
  seen = 0;
  /** Offset of the first byte after the empty line. */
  endOffset = 0;
}

/** A parsed response head. */
export class ResponseHead {
  readonly headers = new HeaderTable();
  status = 0;
  reasonOffset = 0;
  reasonLength = 0;
  versionMinor = 0;
  /** Offset of the first byte after the status line (where the fields start). */
  fieldsOffset = 0;
  /** Content-Length, or -1 when absent. Never set together with `chunked`. */
  contentLength = -1;
  chunked = false;
  keepAlive = false;
  /** Field index of Upgrade when Connection names "upgrade" and both are present; else -1. */
  upgradeField = -1;
  connectionNamesFields = false;
  hasHopByHop = false;
  /** Known fields that are present: bit `id` for ids 1 to 31; bit 0: one with a higher id. */
  seen = 0;
  endOffset = 0;
}
