// Whether a request meets what a match asks for beyond host and path: method, fields, query, gRPC,
// client certificate and address.
//
// Several fields of one name count as one, their values joined with "," (RFC 9110 §5.3, as Envoy does),
// those of Cookie with "; " (RFC 6265 §4.2.1). Of several query parameters of one name the first
// counts; names and values are percent-decoded, "+" is itself, and a malformed escape too.
// Values are compared piece by piece where they lie; nothing is joined or decoded into memory.
// Hot module: no allocation. One for each table, owned by one worker; the table is never written.

import { hexDigitPlusOne } from '../http1/chars.ts';
import { HeaderId } from '../http1/header-ids.ts';
import { FIELD_WORDS, type HeaderTable } from '../http1/header-table.ts';
import { Method } from '../http1/message.ts';
import { dfaAccepts, dfaRun, dfaStart, dfaStep } from './dfa.ts';
import { lowerByte } from './route-hash.ts';
import type { RouteRequest } from './route-request.ts';
import { Condition, ConditionKind, Header, Network } from './route-table-format.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONTENT_TYPE, COOKIE, OTHER } = HeaderId;
const { POST } = Method;
const { KIND, NAME_ID, NAME_LENGTH, NAME_OFFSET, VALUE, VALUE_LENGTH } = Condition;
const CONDITION_WORDS = Condition.WORDS;
const {
  CERTIFICATE,
  CERTIFICATE_HASH,
  GRPC,
  HEADER,
  HEADER_EXPRESSION,
  METHOD,
  NAME_EXPRESSION,
  NAME_PREFIX,
  PATH,
  QUERY,
  QUERY_EXPRESSION,
  SOURCE,
} = ConditionKind;

const SLASH = 47;
const PERCENT = 37;
const AMPERSAND = 38;
const EQUALS = 61;
const QUESTION = 63;
const COMMA = 44;
const SEMICOLON = 59;
const SPACE = 32;
const PLUS = 43;
const HYPHEN = 45;
const TAB = 9;

/** Family.INET; core/routing has no business with sockets otherwise. */
const INET = 2;

/** Second half of an IPv6 address that stands for one of IPv4. */
const MAPPED = 0xffff;

const grpcType = new TextEncoder().encode('application/grpc');
const GRPC_TYPE_BYTES = grpcType.length;

/** Reader of the conditions of one table. */
export class RouteConditions {
  private readonly words: Int32Array;
  private readonly bytes: Uint8Array;
  private readonly conditions: number;
  private readonly expressions: number;
  /** Where the byte after the one that `decode` has read begins. */
  private after = 0;

  /** `words` are those of a whole table, `bytes` its section of bytes. */
  constructor(words: Int32Array, bytes: Uint8Array) {
    this.words = words;
    this.bytes = bytes;
    this.conditions = words[Header.CONDITIONS]!;
    this.expressions = words[Header.EXPRESSIONS]!;
  }

  /** Whether all of `count` conditions from `start` (in words of their section) hold. */
  hold(request: RouteRequest, start: number, count: number): boolean {
    let at = this.conditions + start;
    for (let i = 0; i < count; i++) {
      if (!this.holds(request, at)) return false;
      at += CONDITION_WORDS;
    }
    return true;
  }

  private holds(request: RouteRequest, at: number): boolean {
    const { words } = this;
    switch (words[at + KIND]) {
      case PATH:
        return this.pathMatches(request, at);
      case METHOD: {
        const { head } = request;
        return this.isText(request.memory, head.methodOffset, head.methodLength, at);
      }
      case HEADER:
        return this.headerEquals(request, at);
      case HEADER_EXPRESSION:
        return this.headerMatches(request, at);
      case QUERY:
      case QUERY_EXPRESSION:
        return this.queryHolds(request, at);
      case GRPC:
        return isGrpcCall(request);
      case CERTIFICATE:
        return this.certificateHolds(request, at);
      case CERTIFICATE_HASH:
        return this.hashHolds(request, at);
      case SOURCE:
        return this.sourceHolds(request, at);
      default:
        return false;
    }
  }

  /** Whether `length` bytes at `offset` are the text of the condition. */
  private isText(memory: Uint8Array, offset: number, length: number, at: number): boolean {
    const { words, bytes } = this;
    if (words[at + VALUE_LENGTH] !== length) return false;
    const text = words[at + VALUE]!;
    for (let i = 0; i < length; i++) if (bytes[text + i] !== memory[offset + i]) return false;
    return true;
  }

  private pathMatches(request: RouteRequest, at: number): boolean {
    const { words, bytes } = this;
    const { memory, pathOffset, pathLength } = request;
    const dfa = this.expressions + words[at + VALUE]!;
    let state = dfaStart(words, dfa);
    if (pathLength === 0) state = dfaStep(words, bytes, dfa, state, SLASH);
    else state = dfaRun(words, bytes, dfa, state, memory, pathOffset, pathOffset + pathLength);
    return dfaAccepts(words, dfa, state);
  }

  // -- fields ------------------------------------------------------------------

  /** First field from `from` on that has the condition's name; or -1. */
  private findField(memory: Uint8Array, headers: HeaderTable, at: number, from: number): number {
    const { words, bytes } = this;
    const { count, words: fields } = headers;
    const id = words[at + NAME_ID]!;
    const name = words[at + NAME_OFFSET]!;
    const length = words[at + NAME_LENGTH]!;
    for (let field = from; field < count; field++) {
      const word = field * FIELD_WORDS;
      if (fields[word + 4] !== id) continue;
      if (id !== OTHER) return field;
      if (fields[word + 1] !== length) continue;
      const offset = fields[word]!;
      let i = 0;
      while (i < length && bytes[name + i] === lowerByte(memory[offset + i]!)) i++;
      if (i === length) return field;
    }
    return -1;
  }

  private headerEquals(request: RouteRequest, at: number): boolean {
    const { words, bytes } = this;
    const { memory } = request;
    const { headers } = request.head;
    let field = this.findField(memory, headers, at, 0);
    if (field < 0) return false;
    const cookie = words[at + NAME_ID] === COOKIE;
    let text = words[at + VALUE]!;
    const end = text + words[at + VALUE_LENGTH]!;
    for (;;) {
      const offset = headers.valueOffset(field);
      const length = headers.valueLength(field);
      if (length > end - text) return false;
      for (let i = 0; i < length; i++) if (bytes[text + i] !== memory[offset + i]) return false;
      text += length;
      field = this.findField(memory, headers, at, field + 1);
      if (field < 0) return text === end;
      const separatorBytes = cookie ? 2 : 1;
      if (separatorBytes > end - text) return false;
      if (bytes[text] !== (cookie ? SEMICOLON : COMMA) || (cookie && bytes[text + 1] !== SPACE)) return false;
      text += separatorBytes;
    }
  }

  private headerMatches(request: RouteRequest, at: number): boolean {
    const { words, bytes } = this;
    const { memory } = request;
    const { headers } = request.head;
    let field = this.findField(memory, headers, at, 0);
    if (field < 0) return false;
    const cookie = words[at + NAME_ID] === COOKIE;
    const dfa = this.expressions + words[at + VALUE]!;
    let state = dfaStart(words, dfa);
    for (;;) {
      const offset = headers.valueOffset(field);
      state = dfaRun(words, bytes, dfa, state, memory, offset, offset + headers.valueLength(field));
      if (state === 0) return false;
      field = this.findField(memory, headers, at, field + 1);
      if (field < 0) return dfaAccepts(words, dfa, state);
      state = dfaStep(words, bytes, dfa, state, cookie ? SEMICOLON : COMMA);
      if (cookie) state = dfaStep(words, bytes, dfa, state, SPACE);
    }
  }

  // -- query -------------------------------------------------------------------

  private queryHolds(request: RouteRequest, at: number): boolean {
    const { memory, head } = request;
    const end = head.pathOffset + head.pathLength;
    let from = head.pathOffset + head.pathOnlyLength;
    // "*" and the authority of a CONNECT have no query.
    if (head.pathLength === 0 || from >= end || memory[from] !== QUESTION) return false;
    while (++from < end) {
      const value = this.afterName(memory, from, end, at);
      if (value >= 0) return this.queryValueHolds(memory, value, end, at);
      while (from < end && memory[from] !== AMPERSAND) from++;
    }
    return false;
  }

  /** Where the value of the parameter at `from` begins, if it has the condition's name; else -1. */
  private afterName(memory: Uint8Array, from: number, end: number, at: number): number {
    const { words, bytes } = this;
    const length = words[at + NAME_LENGTH]!;
    const name = words[at + NAME_OFFSET]!;
    let i = from;
    for (let n = 0; n < length; n++) {
      if (i >= end || memory[i] === EQUALS || memory[i] === AMPERSAND) return -1;
      if (this.decode(memory, i, end) !== bytes[name + n]) return -1;
      i = this.after;
    }
    if (i >= end || memory[i] === AMPERSAND) return i;
    return memory[i] === EQUALS ? i + 1 : -1;
  }

  /** Whether the value that begins at `from` and lasts until "&" or `end` is what the condition asks for. */
  private queryValueHolds(memory: Uint8Array, from: number, end: number, at: number): boolean {
    const { words, bytes } = this;
    const value = words[at + VALUE]!;
    if (words[at + KIND] === QUERY) {
      const length = words[at + VALUE_LENGTH]!;
      let matched = 0;
      while (from < end && memory[from] !== AMPERSAND) {
        if (matched === length || this.decode(memory, from, end) !== bytes[value + matched]) return false;
        matched++;
        from = this.after;
      }
      return matched === length;
    }
    const dfa = this.expressions + value;
    let state = dfaStart(words, dfa);
    while (from < end && memory[from] !== AMPERSAND) {
      state = dfaStep(words, bytes, dfa, state, this.decode(memory, from, end));
      if (state === 0) return false;
      from = this.after;
    }
    return dfaAccepts(words, dfa, state);
  }

  /** The byte at `i`, or that which an escape there stands for; `after` says where the next one begins. */
  private decode(memory: Uint8Array, i: number, end: number): number {
    const byte = memory[i]!;
    this.after = i + 1;
    if (byte !== PERCENT || i + 2 >= end) return byte;
    const high = hexDigitPlusOne[memory[i + 1]!]!;
    const low = hexDigitPlusOne[memory[i + 2]!]!;
    if (high === 0 || low === 0) return byte;
    this.after = i + 3;
    return ((high - 1) << 4) | (low - 1);
  }

  // -- client ------------------------------------------------------------------

  private certificateHolds(request: RouteRequest, at: number): boolean {
    const { certificate } = request;
    if (certificate === null || !certificate.verified) return false;
    const count = this.words[at + VALUE_LENGTH]!;
    if (count === 0) return true;
    const names = certificate.subjectAltNames;
    for (let i = 0; i < count; i++) {
      const one = this.conditions + this.words[at + VALUE]! + i * CONDITION_WORDS;
      for (let n = 0; n < names.length; n++) if (this.nameHolds(names[n]!, one)) return true;
    }
    return false;
  }

  private nameHolds(name: Uint8Array, at: number): boolean {
    const { words, bytes } = this;
    switch (words[at + KIND]) {
      case NAME_EXPRESSION: {
        const dfa = this.expressions + words[at + VALUE]!;
        return dfaAccepts(words, dfa, dfaRun(words, bytes, dfa, dfaStart(words, dfa), name, 0, name.length));
      }
      case NAME_PREFIX: {
        const length = words[at + VALUE_LENGTH]!;
        return length <= name.length && this.isText(name, 0, length, at);
      }
      default:
        return this.isText(name, 0, name.length, at);
    }
  }

  private hashHolds(request: RouteRequest, at: number): boolean {
    const { certificate } = request;
    if (certificate === null || !certificate.verified) return false;
    const count = this.words[at + VALUE_LENGTH]!;
    const hash = certificate.sha256Bytes;
    for (let i = 0; i < count; i++) {
      const one = this.conditions + this.words[at + VALUE]! + i * CONDITION_WORDS;
      if (this.isText(hash, 0, hash.length, one)) return true;
    }
    return false;
  }

  private sourceHolds(request: RouteRequest, at: number): boolean {
    const { client } = request;
    if (client === null || client.peerFamily === 0) return false;
    let { peer0 } = client;
    const { peer1, peer2, peer3 } = client;
    let version = client.peerFamily === INET ? 4 : 6;
    if (version === 6 && peer0 === 0 && peer1 === 0 && peer2 === MAPPED) {
      version = 4;
      peer0 = peer3;
    }
    const { words } = this;
    const count = words[at + VALUE_LENGTH]!;
    let network = this.conditions + words[at + VALUE]!;
    for (let i = 0; i < count; i++, network += Network.WORDS) {
      if (words[network + Network.VERSION] !== version) continue;
      const bits = words[network + Network.BITS]!;
      const address = network + Network.ADDRESS;
      if (!sameStart(words[address]!, peer0, bits)) continue;
      if (bits <= 32) return true;
      if (!sameStart(words[address + 1]!, peer1, bits - 32)) continue;
      if (bits <= 64) return true;
      if (!sameStart(words[address + 2]!, peer2, bits - 64)) continue;
      if (bits <= 96 || sameStart(words[address + 3]!, peer3, bits - 96)) return true;
    }
    return false;
  }
}

/** Whether the first `bits` bits of two words are the same; all of them from 32 on. */
function sameStart(a: number, b: number, bits: number): boolean {
  if (bits <= 0) return true;
  return bits >= 32 ? (a | 0) === (b | 0) : (a ^ b) >>> (32 - bits) === 0;
}

/** Whether a request is a call of gRPC or gRPC-Web: POST, and `application/grpc` with any suffix. */
function isGrpcCall(request: RouteRequest): boolean {
  const { memory, head } = request;
  if (head.method !== POST) return false;
  const field = head.headers.find(CONTENT_TYPE);
  if (field < 0) return false;
  const offset = head.headers.valueOffset(field);
  const length = head.headers.valueLength(field);
  if (length < GRPC_TYPE_BYTES) return false;
  for (let i = 0; i < GRPC_TYPE_BYTES; i++) if (lowerByte(memory[offset + i]!) !== grpcType[i]) return false;
  if (length === GRPC_TYPE_BYTES) return true;
  switch (memory[offset + GRPC_TYPE_BYTES]) {
    case PLUS:
    case HYPHEN:
    case SEMICOLON:
    case SPACE:
    case TAB:
      return true;
    default:
      return false;
  }
}
