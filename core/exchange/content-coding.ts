// Which content coding a client takes, and the response head of a body that is compressed for it.
//
// Negotiation looks at the request's Accept-Encoding once, at its start; whether a response is compressed is
// decided from its head. The changed head is put together in scratch memory and laid where the old one ended,
// so that the body behind it stays where it is.
// Spec: RFC 9110 §12.5.3 (Accept-Encoding), §12.4.2 (weights), §8.4 (Content-Encoding), §8.8.3.3 (ETag and
// codings), §12.5.5 (Vary), §7.7 (no-transform), §14.3 (Accept-Ranges). Hot module: no allocation.

import { HeaderId } from '../http1/header-ids.ts';
import type { HeaderTable } from '../http1/header-table.ts';
import type { ResponseHead } from '../http1/message.ts';
import { parseResponseHead } from '../http1/response-parser.ts';
import { LARGE_BLOCK_BYTES, SCRATCH_BYTES } from '../io/arena.ts';
import { putLineEnd, putRange, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import type { CompressionSettings, ContentCodingName } from '../workers/policies.ts';
import { valueEquals } from './fields.ts';

const { CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, OTHER, TRAILER } = HeaderId;

/** Content codings as small numbers; 0: nobody has asked, since the rule compresses nothing. */
export const ContentCoding = { UNASKED: 0, IDENTITY: 1, GZIP: 2, BR: 3, ZSTD: 4 } as const;

const { GZIP, IDENTITY, UNASKED } = ContentCoding;

const codingNumbers: Record<ContentCodingName, number> = {
  gzip: ContentCoding.GZIP,
  br: ContentCoding.BR,
  zstd: ContentCoding.ZSTD,
};

/** Bytes that a head may grow by when its body is compressed. */
export const CODED_HEAD_BYTES_MAX = 64;

const encoder = new TextEncoder();
const bytes = (text: string): Uint8Array => encoder.encode(text);

const acceptEncodingName = bytes('accept-encoding');
const varyName = bytes('vary');
const etagName = bytes('etag');
const acceptRangesName = bytes('accept-ranges');
const noTransform = bytes('no-transform');
const grpcType = bytes('application/grpc');
/** Fields that speak of the very bytes of the body. */
const digestNames = ['content-md5', 'digest', 'content-digest', 'repr-digest'].map(bytes);

/** Name of each coding; GZIP has a second one (RFC 9110 §8.4.1.3). */
const codingTokens = ['', 'identity', 'gzip', 'br', 'zstd'].map(bytes);
const xGzip = bytes('x-gzip');
const STAR = 42;

const codingLines = ['', '', 'gzip', 'br', 'zstd'].map((name) => new Text(`content-encoding: ${name}\r\n`));
const varyLine = new Text('vary: accept-encoding\r\n');

/** What the head that was rewritten has been parsed from is ours: within all limits. */
const anyLimits = { headBytesMax: LARGE_BLOCK_BYTES + CODED_HEAD_BYTES_MAX, headerCountMax: 256, uriBytesMax: 0 };

/** Compression of a rule, prepared for the packet path. Made once per snapshot and policy. */
export class CompressionPolicy {
  readonly minBytes: number;
  /** Codings offered, in order of preference, as ContentCoding. */
  readonly codings: number[];
  /** Level by ContentCoding. */
  readonly levels: Int32Array;
  /** Content types, lower case; those that end in a slash stand for a whole family. */
  readonly types: Uint8Array[];

  constructor(settings: CompressionSettings) {
    this.minBytes = settings.minBytes;
    this.codings = settings.codings.map((name) => codingNumbers[name]);
    this.levels = Int32Array.of(0, 0, settings.gzipLevel, settings.brotliLevel, settings.zstdLevel);
    this.types = settings.contentTypes.map((type) => bytes(type.toLowerCase().replace(/\*$/, '')));
  }
}

// -- negotiation --------------------------------------------------------------------

/** Weight of each coding in thousandths as the request says, and of `*`; -1: it says nothing. */
const weights = new Int32Array(codingTokens.length);
let starWeight = -1;

/**
 * The coding for a request with these fields: the offered one with the highest weight, of equal ones the first
 * of the policy; IDENTITY when none is acceptable, or identity itself is said to be preferred. Without
 * Accept-Encoding anything would be acceptable; clients that cannot decode are among those who send none.
 */
export function negotiateCoding(memory: Uint8Array, headers: HeaderTable, policy: CompressionPolicy): number {
  weights.fill(-1);
  starWeight = -1;
  let found = false;
  for (let field = 0; field < headers.count; field++) {
    if (headers.id(field) !== OTHER) continue;
    if (!valueEquals(memory, headers.nameOffset(field), headers.nameLength(field), acceptEncodingName)) continue;
    found = true;
    readWeights(memory, headers.valueOffset(field), headers.valueLength(field));
  }
  if (!found) return IDENTITY;
  let best: number = IDENTITY;
  // A coding must be wanted at least as much as identity, where that is named.
  let bestWeight = Math.max(weights[IDENTITY] - 1, 0);
  const { codings } = policy;
  for (let i = 0; i < codings.length; i++) {
    const coding = codings[i];
    const weight = weights[coding] >= 0 ? weights[coding] : starWeight;
    if (weight <= bestWeight) continue;
    best = coding;
    bestWeight = weight;
  }
  return best;
}

/** Notes the weights of one Accept-Encoding field. Elements that are malformed are as good as absent. */
function readWeights(memory: Uint8Array, offset: number, length: number): void {
  const end = offset + length;
  let at = offset;
  while (at < end) {
    let elementEnd = at;
    while (elementEnd < end && memory[elementEnd] !== 44) elementEnd++;
    readWeight(memory, at, elementEnd);
    at = elementEnd + 1;
  }
}

/** Notes the weight of one element: `coding`, or `coding;q=0.5`. */
function readWeight(memory: Uint8Array, start: number, end: number): void {
  const from = skipSpace(memory, start, end);
  let to = from;
  while (to < end && memory[to] !== 59 && memory[to] !== 32 && memory[to] !== 9) to++;
  if (to === from) return;
  const parameters = skipSpace(memory, to, end);
  let weight = 1000;
  if (parameters < end) {
    if (memory[parameters] !== 59) return;
    weight = weightOf(memory, skipSpace(memory, parameters + 1, end), end);
    if (weight < 0) return;
  }
  if (to - from === 1 && memory[from] === STAR) {
    starWeight = weight;
    return;
  }
  if (valueEquals(memory, from, to - from, xGzip)) {
    weights[GZIP] = Math.max(weights[GZIP], weight);
    return;
  }
  for (let coding: number = IDENTITY; coding < codingTokens.length; coding++) {
    if (valueEquals(memory, from, to - from, codingTokens[coding])) weights[coding] = weight;
  }
}

function skipSpace(memory: Uint8Array, at: number, end: number): number {
  while (at < end && (memory[at] === 32 || memory[at] === 9)) at++;
  return at;
}

/** Thousandths of `q=0.5`, or -1 for what is no weight (RFC 9110 §12.4.2). */
function weightOf(memory: Uint8Array, at: number, end: number): number {
  let last = end;
  while (last > at && (memory[last - 1] === 32 || memory[last - 1] === 9)) last--;
  const length = last - at;
  if (length < 3 || length > 7 || (memory[at] | 32) !== 113 || memory[at + 1] !== 61) return -1;
  const whole = memory[at + 2] - 48;
  if (whole !== 0 && whole !== 1) return -1;
  if (length === 3) return whole * 1000;
  if (memory[at + 3] !== 46) return -1;
  let thousandths = whole * 1000;
  for (let i = 4, place = 100; i < length; i++, place = (place / 10) | 0) {
    const digit = memory[at + i] - 48;
    if (digit < 0 || digit > 9) return -1;
    thousandths += digit * place;
  }
  return thousandths > 1000 ? -1 : thousandths;
}

// -- responses ----------------------------------------------------------------------

/**
 * Whether the body of a response may be compressed. `knownBytes` is its length, -1: unknown. Of the exchange,
 * that the response has a body and is no RPC is the caller's to know.
 */
export function isCompressible(
  memory: Uint8Array,
  head: ResponseHead,
  knownBytes: number,
  policy: CompressionPolicy,
): boolean {
  if (knownBytes >= 0 && knownBytes < policy.minBytes) return false;
  if (head.status === 206 || head.status < 200) return false;
  const { headers } = head;
  let listed = false;
  for (let field = 0; field < headers.count; field++) {
    const value = headers.valueOffset(field);
    const length = headers.valueLength(field);
    switch (headers.id(field)) {
      case CONTENT_TYPE:
        listed = isListed(memory, value, length, policy.types);
        break;
      case CONTENT_ENCODING:
      case CONTENT_RANGE:
      // Trailers would have to wait for the compressor.
      case TRAILER:
        return false;
      case CACHE_CONTROL:
        if (listHas(memory, value, length, noTransform)) return false;
        break;
      case OTHER: {
        const name = headers.nameOffset(field);
        const nameLength = headers.nameLength(field);
        for (let i = 0; i < digestNames.length; i++) {
          if (valueEquals(memory, name, nameLength, digestNames[i])) return false;
        }
        break;
      }
      default:
    }
  }
  return listed;
}

/** Whether a Content-Type is one of those to compress. */
function isListed(memory: Uint8Array, offset: number, length: number, types: Uint8Array[]): boolean {
  let end = 0;
  while (end < length && memory[offset + end] !== 59) end++;
  while (end > 0 && (memory[offset + end - 1] === 32 || memory[offset + end - 1] === 9)) end--;
  if (end >= grpcType.length && valueEquals(memory, offset, grpcType.length, grpcType)) return false;
  for (let i = 0; i < types.length; i++) {
    const type = types[i];
    const family = type[type.length - 1] === 47;
    if (family ? end <= type.length : end !== type.length) continue;
    if (valueEquals(memory, offset, type.length, type)) return true;
  }
  return false;
}

/** Whether a comma-separated list has an element, in any case. */
function listHas(memory: Uint8Array, offset: number, length: number, element: Uint8Array): boolean {
  const end = offset + length;
  let at = offset;
  while (at < end) {
    at = skipSpace(memory, at, end);
    const from = at;
    while (at < end && memory[at] !== 44) at++;
    let to = at;
    while (to > from && (memory[to - 1] === 32 || memory[to - 1] === 9)) to--;
    if (valueEquals(memory, from, to - from, element)) return true;
    at++;
  }
  return false;
}

/** Whether the head's Vary says already that it depends on Accept-Encoding. */
function variesAlready(memory: Uint8Array, head: ResponseHead): boolean {
  const { headers } = head;
  for (let field = 0; field < headers.count; field++) {
    if (!isNamed(memory, headers, field, varyName)) continue;
    const value = headers.valueOffset(field);
    const length = headers.valueLength(field);
    if (length === 1 && memory[value] === STAR) return true;
    if (listHas(memory, value, length, acceptEncodingName)) return true;
  }
  return false;
}

/** Whether a field without a known id has this name (lower case). */
function isNamed(memory: Uint8Array, headers: HeaderTable, field: number, name: Uint8Array): boolean {
  if (headers.id(field) !== OTHER) return false;
  return valueEquals(memory, headers.nameOffset(field), headers.nameLength(field), name);
}

/**
 * Rewrites the head of a response that is compressible, so that it says `coding` (IDENTITY: only that it might
 * have been another), and parses it again into `head`. It ends where it ended; its start, which is returned, may
 * lie up to CODED_HEAD_BYTES_MAX before `headOffset`. Returns -1, with nothing changed, for a head that is too large.
 */
export function rewriteCodedHead(reactor: Reactor, headOffset: number, head: ResponseHead, coding: number): number {
  const { memory, view, arena } = reactor;
  const { headers, endOffset, versionMinor } = head;
  const coded = coding !== IDENTITY && coding !== UNASKED;
  if (endOffset - headOffset + CODED_HEAD_BYTES_MAX > SCRATCH_BYTES - CODED_HEAD_BYTES_MAX) return -1;
  const scratch = arena.scratchOffset;
  const varies = variesAlready(memory, head);
  let at = putRange(memory, scratch, headOffset, head.fieldsOffset - headOffset);
  for (let field = 0; field < headers.count; field++) {
    const start = headers.nameOffset(field);
    const end = field + 1 < headers.count ? headers.nameOffset(field + 1) : endOffset - 2;
    if (coded) {
      // What is announced is not what will be sent, and ranges of it could not be asked for.
      if (headers.id(field) === CONTENT_LENGTH || isNamed(memory, headers, field, acceptRangesName)) continue;
      if (isNamed(memory, headers, field, etagName) && isStrong(memory, headers, field)) {
        // Another body than the one that the upstream gave this strong validator (RFC 9110 §8.8.1).
        const value = headers.valueOffset(field);
        at = putRange(memory, at, start, value - start);
        memory[at++] = 87;
        memory[at++] = 47;
        at = putRange(memory, at, value, end - value);
        continue;
      }
    }
    at = putRange(memory, at, start, end - start);
  }
  if (coded) at = putText(view, at, codingLines[coding]);
  if (!varies) at = putText(view, at, varyLine);
  at = putLineEnd(view, at);
  const length = at - scratch;
  const start = endOffset - length;
  memory.copyWithin(start, scratch, at);
  parseResponseHead(memory, start, length, anyLimits, head);
  head.versionMinor = versionMinor;
  return start;
}

function isStrong(memory: Uint8Array, headers: HeaderTable, field: number): boolean {
  return headers.valueLength(field) > 0 && memory[headers.valueOffset(field)] === 34;
}
