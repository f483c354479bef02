// CORS: which pages of other origins may use a rule. Preflight requests are answered here; other responses get
// the fields that browsers look for. What the backend itself says of CORS is dropped (filter-normalise.ts).
//
// A request is judged while its head is at hand; what the response repeats of it (the origin, what a preflight
// asks for) is kept behind the head in the exchange's block.
// Prepared once per snapshot and policy, immutable afterwards. Hot module: no allocation.
// Spec: Fetch standard §3.2 (CORS protocol); Gateway API HTTPCORSFilter; Envoy's CORS filter.

import type { HeaderTable } from '../http1/header-table.ts';
import { Method, type RequestHead } from '../http1/message.ts';
import { putLineEnd, putRange, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import type { CorsSettings } from '../workers/filter-settings.ts';
import type { Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { listLine } from './filter-texts.ts';
import { findField } from './grpc.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { OPTIONS } = Method;

/** Bits of `Exchange.cors`: what CORS says of a request. */
export const CorsState = {
  /** Its origin may use the rule. */
  ALLOWED: 1,
  /** It is a preflight request, which the gateway answers. */
  PREFLIGHT: 2,
} as const;

const { ALLOWED, PREFLIGHT } = CorsState;

/** Longer origins are none: no host is so long. */
const ORIGIN_BYTES_MAX = 512;

/** Longer lists of field names are not repeated, and so not allowed. */
const REQUEST_HEADERS_BYTES_MAX = 4096;

/** The same for methods. */
const REQUEST_METHOD_BYTES_MAX = 128;

const encoder = new TextEncoder();
const originName = encoder.encode('origin');
const requestMethodName = encoder.encode('access-control-request-method');
const requestHeadersName = encoder.encode('access-control-request-headers');

const allowOrigin = new Text('access-control-allow-origin: ');
const anyOrigin = new Text('access-control-allow-origin: *\r\n');
const credentialsLine = new Text('access-control-allow-credentials: true\r\n');
const allowMethods = new Text('access-control-allow-methods: ');
const allowHeaders = new Text('access-control-allow-headers: ');
const varyOrigin = new Text('vary: origin\r\n');
const varyPreflight = new Text('vary: origin, access-control-request-method, access-control-request-headers\r\n');

/** Bytes that `put` writes at most besides lists of the settings. */
const FIXED_BYTES = 512;

/** Fields of the head judged last: judging and keeping never span two events. */
let originField = -1;
let methodField = -1;
let headersField = -1;

export class Cors {
  /** Most bytes that `put` writes. */
  readonly linesBytesMax: number;
  /** Every origin is allowed. */
  private readonly anyOrigin: boolean;
  /** Every origin gets the same answer. */
  private readonly constantOrigin: boolean;
  private readonly origins: Uint8Array[];
  /** What stands before and behind the `*` of an origin. */
  private readonly wildcards: { start: Uint8Array; end: Uint8Array }[];
  private readonly credentials: boolean;
  /** A wildcard means nothing with credentials, so that what is asked for is repeated (Fetch standard §3.2.3). */
  private readonly repeatMethod: boolean;
  private readonly repeatHeaders: boolean;
  private readonly methodsLine: Text;
  private readonly headersLine: Text;
  private readonly maxAgeLine: Text;
  private readonly exposeLine: Text;

  constructor(settings: CorsSettings) {
    const { allowOrigins, allowCredentials } = settings;
    this.credentials = allowCredentials;
    this.anyOrigin = allowOrigins.includes('*');
    this.constantOrigin = this.anyOrigin && !allowCredentials;
    this.origins = allowOrigins.filter((origin) => !origin.includes('*')).map((origin) => encoder.encode(origin));
    this.wildcards = allowOrigins
      .filter((origin) => origin !== '*' && origin.includes('*'))
      .map((origin) => origin.split('*'))
      .map(([start, end]) => ({ start: encoder.encode(start), end: encoder.encode(end) }));
    this.repeatMethod = allowCredentials && settings.allowMethods.includes('*');
    this.repeatHeaders = allowCredentials && settings.allowHeaders.includes('*');
    this.methodsLine = listLine('access-control-allow-methods', this.repeatMethod ? [] : settings.allowMethods);
    this.headersLine = listLine('access-control-allow-headers', this.repeatHeaders ? [] : settings.allowHeaders);
    this.exposeLine = listLine('access-control-expose-headers', settings.exposeHeaders);
    this.maxAgeLine = new Text(`access-control-max-age: ${settings.maxAgeSeconds}\r\n`);
    const methodsBytes = this.repeatMethod ? REQUEST_METHOD_BYTES_MAX : this.methodsLine.length;
    const headersBytes = this.repeatHeaders ? REQUEST_HEADERS_BYTES_MAX : this.headersLine.length;
    this.linesBytesMax = FIXED_BYTES + ORIGIN_BYTES_MAX + Math.max(methodsBytes + headersBytes, this.exposeLine.length);
  }

  /**
   * Judges a request and says so in `exchange.cors`. Returns the bytes that `keep` will need behind its head.
   */
  judge(memory: Uint8Array, head: RequestHead, exchange: Exchange): number {
    const { headers } = head;
    exchange.cors = 0;
    originField = findField(memory, headers, originName, 0);
    methodField = -1;
    headersField = -1;
    if (originField < 0) return 0;
    if (head.method === OPTIONS) methodField = findField(memory, headers, requestMethodName, 0);
    if (methodField >= 0) {
      exchange.cors = PREFLIGHT;
      if (headers.valueLength(methodField) > REQUEST_METHOD_BYTES_MAX) methodField = -1;
      headersField = findField(memory, headers, requestHeadersName, 0);
      if (headersField >= 0 && headers.valueLength(headersField) > REQUEST_HEADERS_BYTES_MAX) headersField = -1;
    }
    // Two origins are none.
    if (findField(memory, headers, originName, originField + 1) >= 0) return 0;
    if (!this.allows(memory, headers, originField)) return 0;
    exchange.cors |= ALLOWED;
    return (
      headers.valueLength(originField) +
      (methodField < 0 ? 0 : headers.valueLength(methodField)) +
      (headersField < 0 ? 0 : headers.valueLength(headersField))
    );
  }

  /** Keeps what the response repeats of the head judged last at `at`. */
  keep(memory: Uint8Array, headers: HeaderTable, exchange: Exchange, at: number): void {
    if ((exchange.cors & ALLOWED) === 0) return;
    exchange.corsOffset = at;
    exchange.corsOriginLength = headers.valueLength(originField);
    exchange.corsMethodLength = methodField < 0 ? 0 : headers.valueLength(methodField);
    exchange.corsHeadersLength = headersField < 0 ? 0 : headers.valueLength(headersField);
    let dest = putRange(memory, at, headers.valueOffset(originField), exchange.corsOriginLength);
    if (methodField >= 0) dest = putRange(memory, dest, headers.valueOffset(methodField), exchange.corsMethodLength);
    if (headersField >= 0) putRange(memory, dest, headers.valueOffset(headersField), exchange.corsHeadersLength);
  }

  /** Writes the lines of the response to a request that has been judged. Returns the offset after them. Spills. */
  put(reactor: Reactor, at: number, exchange: Exchange): number {
    const { memory, view } = reactor;
    const { cors, corsOffset, corsOriginLength, corsMethodLength, corsHeadersLength } = exchange;
    const preflight = (cors & PREFLIGHT) !== 0;
    let dest = at;
    if ((cors & ALLOWED) !== 0) {
      if (this.constantOrigin) {
        dest = putText(view, dest, anyOrigin);
      } else {
        dest = putText(view, dest, allowOrigin);
        dest = putLineEnd(view, putRange(memory, dest, corsOffset, corsOriginLength));
      }
      if (this.credentials) dest = putText(view, dest, credentialsLine);
      if (preflight) {
        if (this.repeatMethod && corsMethodLength > 0) {
          dest = putText(view, dest, allowMethods);
          dest = putLineEnd(view, putRange(memory, dest, corsOffset + corsOriginLength, corsMethodLength));
        } else dest = putText(view, dest, this.methodsLine);
        if (this.repeatHeaders && corsHeadersLength > 0) {
          dest = putText(view, dest, allowHeaders);
          const start = corsOffset + corsOriginLength + corsMethodLength;
          dest = putLineEnd(view, putRange(memory, dest, start, corsHeadersLength));
        } else dest = putText(view, dest, this.headersLine);
        dest = putText(view, dest, this.maxAgeLine);
      } else {
        dest = putText(view, dest, this.exposeLine);
      }
    }
    // Also without an origin: a cache must not give that response to a page of another one.
    if (preflight && (this.repeatMethod || this.repeatHeaders)) return putText(view, dest, varyPreflight);
    return this.constantOrigin ? dest : putText(view, dest, varyOrigin);
  }

  private allows(memory: Uint8Array, headers: HeaderTable, field: number): boolean {
    const offset = headers.valueOffset(field);
    const length = headers.valueLength(field);
    if (length === 0 || length > ORIGIN_BYTES_MAX) return false;
    if (this.anyOrigin) return true;
    const { origins, wildcards } = this;
    for (let i = 0; i < origins.length; i++) if (valueEquals(memory, offset, length, origins[i])) return true;
    for (let i = 0; i < wildcards.length; i++) {
      const { start, end } = wildcards[i];
      const middle = length - start.length - end.length;
      if (middle <= 0) continue;
      if (!valueEquals(memory, offset, start.length, start)) continue;
      if (!valueEquals(memory, offset + length - end.length, end.length, end)) continue;
      if (isHostPart(memory, offset + start.length, middle)) return true;
    }
    return false;
  }
}

/** Whether a range has only letters, digits, hyphens, underscores and dots: nothing that ends a host. */
function isHostPart(memory: Uint8Array, offset: number, length: number): boolean {
  for (let i = offset; i < offset + length; i++) {
    const byte = memory[i];
    const letter = byte | 32;
    if (letter >= 97 && letter <= 122) continue;
    if (byte >= 48 && byte <= 57) continue;
    if (byte !== 45 && byte !== 46 && byte !== 95) return false;
  }
  return true;
}
