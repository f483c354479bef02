// A decoded request as the HTTP/1 parser would have left it: pseudo-header fields become a request line and
// Host, in the memory in front of the field lines, and everything behind (routing, rewriting, logs, HTTP/1
// upstreams) works on it unchanged.
//
//   :method: GET | :path: /a | :authority: h | accept: x      decoded
//                   GET /a HTTP/1.1 | host: h | accept: x     afterwards, ending where it ended
//
// This is where smuggling by downgrade is decided: nothing passes that two readers could understand
// differently. The decoder has let only clean names and values through.
// Owned by one worker. Hot module: no allocation.
// Spec: RFC 9113 §8.2 (fields), §8.3.1 (requests), §8.5 (CONNECT), RFC 8441 §4, §5 (extended CONNECT),
// RFC 9110 §7.2 (Host).

import { authorityHostLength, parsePort } from '../http1/authority.ts';
import * as chars from '../http1/chars.ts';
import { ParseError } from '../http1/errors.ts';
import { parseContentLength } from '../http1/framing.ts';
import { HeaderId } from '../http1/header-ids.ts';
import * as table from '../http1/header-table.ts';
import { Method, type ParserLimits, type RequestHead, TargetForm } from '../http1/message.ts';
import { METHOD_BYTES_MAX as methodBytesMax, methodNumber } from '../http1/request-parser.ts';
import { equalsLower, lowerLiteral } from '../http1/word-view.ts';
import { LARGE_BLOCK_BYTES } from '../io/arena.ts';
import { putLineEnd, putRange, putText, SPILL_BYTES, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import { isSensitive } from './hpack-decoder.ts';
import { isNeverIndexed } from './hpack-encoder.ts';
import * as pseudo from './pseudo-ids.ts';
import type { HeaderBlock } from './role.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ASTERISK, QUESTION, SLASH, SP } = chars.Byte;
const { targetByte, tokenByte } = chars;
const { FIELD_WORDS } = table;
const { PSEUDO_FIRST } = pseudo;
const { METHOD, SCHEME, AUTHORITY, PATH, STATUS, PROTOCOL } = pseudo.PseudoId;
const { HOST, CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE, TE, COOKIE } = HeaderId;
const { CONNECT, GET, OPTIONS } = Method;
const METHOD_BYTES_MAX = methodBytesMax;

const METHOD_BIT = 1 << (METHOD - PSEUDO_FIRST);
const SCHEME_BIT = 1 << (SCHEME - PSEUDO_FIRST);
const AUTHORITY_BIT = 1 << (AUTHORITY - PSEUDO_FIRST);
const PATH_BIT = 1 << (PATH - PSEUDO_FIRST);
const STATUS_BIT = 1 << (STATUS - PSEUDO_FIRST);
const PROTOCOL_BIT = 1 << (PROTOCOL - PSEUDO_FIRST);
const HOST_BIT = 1 << HOST;
const TE_BIT = 1 << TE;
const COOKIE_BIT = 1 << COOKIE;
const EXPECT_BIT = 1 << EXPECT;
const CONTENT_LENGTH_BIT = 1 << CONTENT_LENGTH;

/** Fields that concern one HTTP/1 connection: their presence makes a message malformed (RFC 9113 §8.2.2). */
const CONNECTION_BITS =
  (1 << CONNECTION) |
  (1 << HeaderId.KEEP_ALIVE) |
  (1 << HeaderId.PROXY_CONNECTION) |
  (1 << TRANSFER_ENCODING) |
  (1 << UPGRADE);

/** Fields of which a second one would leave the choice open. */
const SINGLE_BITS = HOST_BIT | CONTENT_LENGTH_BIT | TE_BIT;

const literalContinue = lowerLiteral('100-continue');
const literalTrailers = lowerLiteral('trailers');
const literalHttp = lowerLiteral('http');
const literalHttps = lowerLiteral('https');
const literalWebsocket = lowerLiteral('websocket');
const literalKey = lowerLiteral('sec-websocket-key');

const versionEnd = new Text(' HTTP/1.1\r\n');
const hostName = new Text('host: ');
const cookieName = new Text('cookie: ');
const chunkedLine = new Text('transfer-encoding: chunked\r\n');
const getMethod = new Text('GET');
const connectionLine = new Text('connection: upgrade\r\n');
const upgradeName = new Text('upgrade: ');
const keyName = new Text('sec-websocket-key: ');

/** Result: the message is malformed. Positive results are parse errors that can be answered. */
export const REQUEST_MALFORMED = -1;
/** Result: no block was free. */
export const REQUEST_NO_BUFFER = -2;

/** Random bits for Sec-WebSocket-Key. */
export interface RandomSource {
  /** 32 of them. */
  next(): number;
}

/** Turns decoded requests into request heads. One per worker. */
export class RequestFields {
  private readonly reactor: Reactor;
  private readonly memory: Uint8Array;
  private readonly random: RandomSource;
  /** Positions of the pseudo-header fields' values, by id - PSEUDO_FIRST. */
  private readonly offsets = new Int32Array(6);
  private readonly lengths = new Int32Array(6);

  constructor(reactor: Reactor, random: RandomSource) {
    this.reactor = reactor;
    this.memory = reactor.memory;
    this.random = random;
  }

  /**
   * Checks a decoded request and fills `head` as `parseRequestHead` does; `endStream` says that no body follows.
   * A body without Content-Length becomes `chunked`; extended CONNECT becomes an upgrade. Returns 0, a
   * ParseError to answer with its status, or REQUEST_MALFORMED or REQUEST_NO_BUFFER.
   */
  read(block: HeaderBlock, endStream: boolean, limits: ParserLimits, head: RequestHead): number {
    const { memory, offsets, lengths } = this;
    const { decoder, headers } = block;
    const { seen, pseudoSeen } = decoder;
    if (decoder.malformed !== 0) return REQUEST_MALFORMED;
    if (decoder.tooLarge) return ParseError.HEAD_TOO_LARGE;
    if ((pseudoSeen & METHOD_BIT) === 0 || (pseudoSeen & STATUS_BIT) !== 0) return REQUEST_MALFORMED;
    if ((seen & CONNECTION_BITS) !== 0 || (decoder.repeated & SINGLE_BITS) !== 0) return REQUEST_MALFORMED;
    for (let field = 0; field < decoder.pseudoCount; field++) {
      const place = headers.id(field) - PSEUDO_FIRST;
      offsets[place] = headers.valueOffset(field);
      lengths[place] = headers.valueLength(field);
    }
    if (headers.count - decoder.pseudoCount > limits.headerCountMax) return ParseError.TOO_MANY_FIELDS;
    if ((seen & TE_BIT) !== 0 && !this.fieldIs(headers, TE, literalTrailers)) return REQUEST_MALFORMED;

    const methodOffset = offsets[METHOD - PSEUDO_FIRST];
    const methodLength = lengths[METHOD - PSEUDO_FIRST];
    if (methodLength === 0 || methodLength > METHOD_BYTES_MAX) return REQUEST_MALFORMED;
    for (let i = 0; i < methodLength; i++) if (tokenByte[memory[methodOffset + i]] === 0) return REQUEST_MALFORMED;
    // The byte behind the value is that of a line end.
    const behind = memory[methodOffset + methodLength];
    memory[methodOffset + methodLength] = SP;
    const method = methodNumber(memory, methodOffset, methodLength);
    memory[methodOffset + methodLength] = behind;

    const extended = (pseudoSeen & PROTOCOL_BIT) !== 0;
    const tunnel = method === CONNECT && !extended;
    if (extended && method !== CONNECT) return REQUEST_MALFORMED;
    if (tunnel) {
      if ((pseudoSeen & (SCHEME_BIT | PATH_BIT)) !== 0 || (pseudoSeen & AUTHORITY_BIT) === 0) return REQUEST_MALFORMED;
    } else {
      const target = this.checkTarget(method, pseudoSeen, limits);
      if (target !== 0) return target;
    }
    const hostLength = this.checkAuthority(headers, seen, pseudoSeen, tunnel);
    if (hostLength < 0) return REQUEST_MALFORMED;

    head.contentLength = -1;
    if ((seen & CONTENT_LENGTH_BIT) !== 0) {
      const field = headers.find(CONTENT_LENGTH);
      const value = parseContentLength(memory, headers.valueOffset(field), headers.valueLength(field));
      if (value < 0 || (value > 0 && (endStream || method === CONNECT))) return REQUEST_MALFORMED;
      head.contentLength = value;
    }
    head.expectContinue = (seen & EXPECT_BIT) !== 0;
    if (head.expectContinue && !this.fieldIs(headers, EXPECT, literalContinue)) return ParseError.EXPECTATION_UNKNOWN;
    if (extended && !this.upgradeIsRight(headers)) return REQUEST_MALFORMED;

    if ((decoder.repeated & COOKIE_BIT) !== 0 && !this.joinCookies(block)) return REQUEST_NO_BUFFER;
    head.chunked = !endStream && head.contentLength < 0 && method !== CONNECT;
    return this.layOut(block, head, extended ? GET : method, tunnel, extended, hostLength, seen, pseudoSeen);
  }

  private fieldIs(headers: table.HeaderTable, id: number, literal: Int32Array): boolean {
    for (let field = headers.find(id); field >= 0; field = headers.find(id, field + 1)) {
      if (!equalsLower(this.memory, headers.valueOffset(field), headers.valueLength(field), literal)) return false;
    }
    return true;
  }

  /** :scheme and :path of anything but a plain CONNECT. */
  private checkTarget(method: number, pseudoSeen: number, limits: ParserLimits): number {
    const { memory, offsets, lengths } = this;
    const needed = SCHEME_BIT | PATH_BIT;
    if ((pseudoSeen & needed) !== needed) return REQUEST_MALFORMED;
    const scheme = offsets[SCHEME - PSEUDO_FIRST];
    const schemeLength = lengths[SCHEME - PSEUDO_FIRST];
    if (
      !equalsLower(memory, scheme, schemeLength, literalHttp) &&
      !equalsLower(memory, scheme, schemeLength, literalHttps)
    )
      return REQUEST_MALFORMED;
    const path = offsets[PATH - PSEUDO_FIRST];
    const length = lengths[PATH - PSEUDO_FIRST];
    if (length === 0) return REQUEST_MALFORMED;
    if (memory[path] === ASTERISK) return length === 1 && method === OPTIONS ? 0 : REQUEST_MALFORMED;
    if (memory[path] !== SLASH) return REQUEST_MALFORMED;
    for (let i = 0; i < length; i++) if (targetByte[memory[path + i]] === 0) return REQUEST_MALFORMED;
    return length > limits.uriBytesMax ? ParseError.URI_TOO_LONG : 0;
  }

  /**
   * Checks :authority against Host; without :authority Host stands in for it. Returns the length of the host
   * without its port, or -1.
   */
  private checkAuthority(headers: table.HeaderTable, seen: number, pseudoSeen: number, tunnel: boolean): number {
    const { memory, offsets, lengths } = this;
    const place = AUTHORITY - PSEUDO_FIRST;
    if ((seen & HOST_BIT) !== 0) {
      const field = headers.find(HOST);
      const host = headers.valueOffset(field);
      const length = headers.valueLength(field);
      if ((pseudoSeen & AUTHORITY_BIT) === 0) {
        offsets[place] = host;
        lengths[place] = length;
      } else {
        if (lengths[place] !== length) return -1;
        for (let i = 0; i < length; i++) if (!sameLetter(memory[host + i], memory[offsets[place] + i])) return -1;
      }
    } else if ((pseudoSeen & AUTHORITY_BIT) === 0) {
      return -1;
    }
    const offset = offsets[place];
    const length = lengths[place];
    const hostLength = authorityHostLength(memory, offset, length);
    if (hostLength < 0 || !tunnel) return hostLength;
    // RFC 9113 §8.5: host and port.
    if (hostLength === length || parsePort(memory, offset + hostLength + 1, offset + length) <= 0) return -1;
    return hostLength;
  }

  /** :protocol is a token, and the request has no key of its own. */
  private upgradeIsRight(headers: table.HeaderTable): boolean {
    const { memory, offsets, lengths } = this;
    const offset = offsets[PROTOCOL - PSEUDO_FIRST];
    const length = lengths[PROTOCOL - PSEUDO_FIRST];
    if (length === 0) return false;
    for (let i = 0; i < length; i++) if (tokenByte[memory[offset + i]] === 0) return false;
    for (let field = 0; field < headers.count; field++) {
      if (equalsLower(memory, headers.nameOffset(field), headers.nameLength(field), literalKey)) return false;
    }
    return true;
  }

  /** Joins Cookie fields into one at the end (RFC 9113 §8.2.3). Returns false when no block is free. */
  private joinCookies(block: HeaderBlock): boolean {
    const { memory } = this;
    const { arena, view } = this.reactor;
    const { headers } = block;
    const { words } = headers;
    const joined = arena.allocate(Math.min(block.textLength, LARGE_BLOCK_BYTES));
    if (joined === 0) return false;
    let joinedLength = 0;
    let dest = -1;
    let count = 0;
    let secret = false;
    for (let field = 0; field < headers.count; field++) {
      const name = headers.nameOffset(field);
      const value = headers.valueOffset(field);
      const valueLength = headers.valueLength(field);
      if (headers.id(field) === COOKIE) {
        secret ||= isSensitive(field);
        if (joinedLength > 0) {
          memory[joined + joinedLength] = 0x3b;
          memory[joined + joinedLength + 1] = SP;
          joinedLength += 2;
        }
        memory.copyWithin(joined + joinedLength, value, value + valueLength);
        joinedLength += valueLength;
        if (dest < 0) dest = name;
        continue;
      }
      const to = count * FIELD_WORDS;
      const from = field * FIELD_WORDS;
      const shift = dest < 0 ? 0 : name - dest;
      if (shift > 0) {
        const lineEnd = value + valueLength + 2;
        memory.copyWithin(dest, name, lineEnd);
        dest += lineEnd - name;
      }
      words[to] = name - shift;
      words[to + 1] = words[from + 1];
      words[to + 2] = value - shift;
      words[to + 3] = valueLength;
      words[to + 4] = words[from + 4];
      count++;
    }
    const last = count * FIELD_WORDS;
    words[last] = dest;
    words[last + 1] = 6;
    dest = putText(view, dest, cookieName);
    words[last + 2] = dest;
    words[last + 3] = joinedLength;
    words[last + 4] = COOKIE;
    memory.copyWithin(dest, joined, joined + joinedLength);
    dest = putLineEnd(view, dest + joinedLength);
    headers.count = count + 1;
    block.textLength = dest - block.textOffset;
    arena.free(joined);
    // Short ones are never-indexed by themselves; together they may be long.
    if (secret && !isNeverIndexed(COOKIE, joinedLength)) block.decoder.secret = true;
    return true;
  }

  /** Puts request line and added lines in front of the field lines, and fills `head`. */
  private layOut(
    block: HeaderBlock,
    head: RequestHead,
    method: number,
    tunnel: boolean,
    extended: boolean,
    hostLength: number,
    seen: number,
    pseudoSeen: number,
  ): number {
    const { memory, offsets, lengths } = this;
    const { arena, view } = this.reactor;
    const source = block.headers;
    const { pseudoCount } = block.decoder;
    const textEnd = block.textOffset + block.textLength;
    const linesStart = pseudoCount < source.count ? source.nameOffset(pseudoCount) : textEnd;
    const authorityLength = lengths[AUTHORITY - PSEUDO_FIRST];
    const pathLength = tunnel ? 0 : lengths[PATH - PSEUDO_FIRST];

    // The lines are put together elsewhere: their place is that of what they are made of.
    const bytesMax = 256 + METHOD_BYTES_MAX + 2 * authorityLength + pathLength + lengths[PROTOCOL - PSEUDO_FIRST];
    let temporary = 0;
    let start = textEnd + SPILL_BYTES;
    if (start + bytesMax > block.textLimit) {
      temporary = bytesMax <= LARGE_BLOCK_BYTES ? arena.allocate(bytesMax) : 0;
      if (temporary === 0) return REQUEST_NO_BUFFER;
      start = temporary;
    }
    const { headers } = head;
    const { words } = headers;
    let word = 0;
    let at = start;
    if (extended) at = putText(view, at, getMethod);
    else at = putRange(memory, at, offsets[METHOD - PSEUDO_FIRST], lengths[METHOD - PSEUDO_FIRST]);
    const methodLength = at - start;
    memory[at++] = SP;
    const target = at;
    at = tunnel
      ? putRange(memory, at, offsets[AUTHORITY - PSEUDO_FIRST], authorityLength)
      : putRange(memory, at, offsets[PATH - PSEUDO_FIRST], pathLength);
    const targetLength = at - target;
    at = putText(view, at, versionEnd);
    let authority = -1;
    let upgrade = -1;
    if ((seen & HOST_BIT) === 0) {
      const line = at;
      at = putText(view, at, hostName);
      authority = at;
      at = putRange(memory, at, offsets[AUTHORITY - PSEUDO_FIRST], authorityLength);
      word = addField(words, word, line, 4, authority, authorityLength, HOST);
      at = putLineEnd(view, at);
    }
    if (head.chunked) {
      word = addField(words, word, at, 17, at + 19, 7, TRANSFER_ENCODING);
      at = putText(view, at, chunkedLine);
    }
    if (extended) {
      word = addField(words, word, at, 10, at + 12, 7, CONNECTION);
      at = putText(view, at, connectionLine);
      upgrade = (word / FIELD_WORDS) | 0;
      const protocolLength = lengths[PROTOCOL - PSEUDO_FIRST];
      word = addField(words, word, at, 7, at + 9, protocolLength, UPGRADE);
      at = putText(view, at, upgradeName);
      const protocol = at;
      at = putRange(memory, at, offsets[PROTOCOL - PSEUDO_FIRST], protocolLength);
      at = putLineEnd(view, at);
      if (equalsLower(memory, protocol, protocolLength, literalWebsocket)) {
        word = addField(words, word, at, 17, at + 19, 24, HeaderId.OTHER);
        at = putText(view, at, keyName);
        at = putLineEnd(view, this.putKey(at));
      }
    }
    const shift = linesStart - (at - start) - start;
    memory.copyWithin(start + shift, start, at);
    if (temporary !== 0) arena.free(temporary);
    for (let i = 0; i < word; i += FIELD_WORDS) {
      words[i] += shift;
      words[i + 2] += shift;
    }
    const sourceWords = source.words;
    const sourceEnd = source.count * FIELD_WORDS;
    for (let i = pseudoCount * FIELD_WORDS; i < sourceEnd; i++, word++) words[word] = sourceWords[i];
    headers.count = (word / FIELD_WORDS) | 0;
    putLineEnd(view, textEnd);

    head.method = method;
    head.methodOffset = start + shift;
    head.methodLength = methodLength;
    head.targetOffset = target + shift;
    head.targetLength = targetLength;
    head.pathOffset = tunnel ? head.targetOffset + targetLength : head.targetOffset;
    head.pathLength = pathLength;
    head.pathOnlyLength = this.pathOnly(head.pathOffset, pathLength);
    head.targetForm = TargetForm.ORIGIN;
    if (tunnel) head.targetForm = TargetForm.AUTHORITY;
    else if (memory[head.targetOffset] === ASTERISK) head.targetForm = TargetForm.ASTERISK;
    head.authorityOffset = authority >= 0 ? authority + shift : headers.valueOffset(headers.find(HOST));
    head.authorityLength = authorityLength;
    head.hostLength = hostLength;
    head.versionMinor = 1;
    head.keepAlive = true;
    head.upgradeField = upgrade;
    head.connectionNamesFields = false;
    head.seen = seen | HOST_BIT;
    if (head.chunked) head.seen |= 1 << TRANSFER_ENCODING;
    if (extended) head.seen |= (1 << CONNECTION) | (1 << UPGRADE);
    head.hasHopByHop = head.chunked || extended || (pseudoSeen & PROTOCOL_BIT) !== 0 || (seen & TE_BIT) !== 0;
    head.endOffset = textEnd + 2;
    return 0;
  }

  private pathOnly(offset: number, length: number): number {
    for (let i = 0; i < length; i++) if (this.memory[offset + i] === QUESTION) return i;
    return length;
  }

  /** Writes sixteen random bytes in base64 (RFC 6455 §4.1): 24 characters. */
  private putKey(at: number): number {
    const { memory, random } = this;
    for (let group = 0; group < 5; group++) {
      const bits = random.next() & 0xffffff;
      for (let i = 0; i < 4; i++) memory[at++] = base64[(bits >>> (18 - 6 * i)) & 63];
    }
    const rest = random.next() & 0xff;
    memory[at++] = base64[rest >>> 2];
    memory[at++] = base64[(rest & 3) << 4];
    memory[at++] = 0x3d;
    memory[at++] = 0x3d;
    return at;
  }
}

const base64: Uint8Array = new TextEncoder().encode('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/');

function addField(
  words: Int32Array,
  word: number,
  nameOffset: number,
  nameLength: number,
  valueOffset: number,
  valueLength: number,
  id: number,
): number {
  words[word] = nameOffset;
  words[word + 1] = nameLength;
  words[word + 2] = valueOffset;
  words[word + 3] = valueLength;
  words[word + 4] = id;
  return word + FIELD_WORDS;
}

function sameLetter(a: number, b: number): boolean {
  if (a === b) return true;
  const lower = a | 0x20;
  return lower === (b | 0x20) && lower >= 0x61 && lower <= 0x7a;
}
