// Request heads as HTTP/2 header blocks for upstreams: from the HTTP/1.1 text that an exchange keeps
// (core/exchange/request-head.ts) to pseudo-header fields and lower-case names.
//
// The text has been checked and is free of what a hop must drop; what HTTP/1.1 needs of its own between two
// hops (Host, Connection, Transfer-Encoding, the WebSocket key) is translated or left out here.
// Owned by one worker. Hot module: no allocation.
// Spec: RFC 9113 §8.2.2 (connection-specific fields), §8.3.1 (requests), RFC 8441 §4, §5 (extended CONNECT).

import * as chars from '../http1/chars.ts';
import { FieldBits, parseFields } from '../http1/fields.ts';
import { HeaderId } from '../http1/header-ids.ts';
import * as table from '../http1/header-table.ts';
import { Method } from '../http1/message.ts';
import { equalsLower, lowerLiteral } from '../http1/word-view.ts';
import type { Reactor } from '../io/reactor.ts';
import { HpackConstant, type HpackEncoder, hpackBytesMax, StaticIndex } from './hpack-encoder.ts';
import type { Http2Output } from './output.ts';
import { PseudoId } from './pseudo-ids.ts';
import type { Http2Stream } from './stream.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { tokenLower } = chars;
const { HEADER_COUNT_CAPACITY } = table;
const { CONNECTION, HOST, HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE } = HeaderId;
const { GET, POST } = Method;
const { METHOD_GET, METHOD_POST, PATH_ROOT, SCHEME_HTTP, SCHEME_HTTPS } = StaticIndex;
const METHOD_PSEUDO = PseudoId.METHOD;
const AUTHORITY_PSEUDO = PseudoId.AUTHORITY;
const PATH_PSEUDO = PseudoId.PATH;
const PROTOCOL_PSEUDO = PseudoId.PROTOCOL;

/** Fields that are translated, or mean nothing in HTTP/2. */
const LEFT_OUT_BITS =
  (1 << HOST) |
  (1 << CONNECTION) |
  (1 << UPGRADE) |
  (1 << KEEP_ALIVE) |
  (1 << PROXY_CONNECTION) |
  (1 << TRANSFER_ENCODING) |
  (1 << HTTP2_SETTINGS);

const connectMethod = new HpackConstant(':method', 'CONNECT');
const literalWebSocketKey = lowerLiteral('sec-websocket-key');

/** Pseudo-header fields, and the bytes of those that are not in the head's text. */
const PSEUDO_FIELDS = 5;
const PSEUDO_BYTES = 32;

const SP = 32;
const LF = 10;

/** Where the parts of a head lie; an Exchange is one. */
export interface RequestParts {
  headOffset: number;
  headLength: number;
  method: number;
  methodLength: number;
  pathOffset: number;
  pathLength: number;
  /** Value of Host; length 0: it is empty. */
  hostOffset: number;
  hostLength: number;
  /** Where the head has another target and Host than those: their length and place; 0: it has those. */
  rewrittenPathLength: number;
  rewrittenHostOffset: number;
  rewrittenHostLength: number;
  /** The head asks for Upgrade: it becomes an extended CONNECT. */
  upgradeRequested: boolean;
  /** The head came with never-indexed fields (HpackDecoder.secret), and goes on so. */
  secretRequest: boolean;
}

export class RequestEncoder {
  /** After `write` returned false: the head has too many fields or bytes; else the connection is beyond use. */
  tooLarge = false;
  private readonly reactor: Reactor;
  private readonly memory: Uint8Array;
  private readonly output: Http2Output;
  private readonly headers = new table.HeaderTable();
  private readonly bits = new FieldBits();

  constructor(reactor: Reactor, output: Http2Output) {
    this.reactor = reactor;
    this.memory = reactor.memory;
    this.output = output;
  }

  /**
   * Writes the head of a request as the first frame of a stream; `https` gives its :scheme. Names are put into
   * lower case where they lie. Returns false when that is impossible (see `tooLarge`).
   */
  write(stream: Http2Stream, request: RequestParts, https: boolean, endStream: boolean): boolean {
    const { memory, output, headers } = this;
    const session = stream.session!;
    this.tooLarge = false;
    if (!this.parse(request)) {
      this.tooLarge = true;
      return false;
    }
    const bytesMax = hpackBytesMax(headers.count + PSEUDO_FIELDS, request.headLength + PSEUDO_BYTES);
    const start = output.beginHeaders(session, bytesMax);
    if (start === 0) {
      this.tooLarge = !session.broken;
      return false;
    }
    const encoder = output.encoderOf(session);
    const { method, upgradeRequested, rewrittenHostLength, secretRequest: secret } = request;
    const pathOffset = targetOffset(request);
    const pathLength = targetLength(request);
    let at = encoder.begin(memory, start);
    if (upgradeRequested) {
      at = encoder.putConstant(memory, at, connectMethod);
      const upgrade = headers.find(UPGRADE);
      at = this.put(encoder, at, PROTOCOL_PSEUDO, headers.valueOffset(upgrade), headers.valueLength(upgrade), secret);
    } else if (method === GET) at = encoder.putIndexed(memory, at, METHOD_GET);
    else if (method === POST) at = encoder.putIndexed(memory, at, METHOD_POST);
    else at = this.put(encoder, at, METHOD_PSEUDO, request.headOffset, request.methodLength, secret);
    at = encoder.putIndexed(memory, at, https ? SCHEME_HTTPS : SCHEME_HTTP);
    if (rewrittenHostLength > 0) {
      at = this.put(encoder, at, AUTHORITY_PSEUDO, request.rewrittenHostOffset, rewrittenHostLength, secret);
    } else if (request.hostLength > 0) {
      at = this.put(encoder, at, AUTHORITY_PSEUDO, request.hostOffset, request.hostLength, secret);
    }
    if (pathLength === 1 && memory[pathOffset] === 47) at = encoder.putIndexed(memory, at, PATH_ROOT);
    else at = this.put(encoder, at, PATH_PSEUDO, pathOffset, pathLength, secret);

    for (let field = 0; field < headers.count; field++) {
      const id = headers.id(field);
      const name = headers.nameOffset(field);
      const nameLength = headers.nameLength(field);
      if (id === 0) {
        if (upgradeRequested && equalsLower(memory, name, nameLength, literalWebSocketKey)) continue;
        for (let i = name; i < name + nameLength; i++) memory[i] = tokenLower[memory[i]];
      } else if (id < 32 && (LEFT_OUT_BITS & (1 << id)) !== 0) continue;
      at = encoder.putField(
        memory,
        at,
        name,
        nameLength,
        headers.valueOffset(field),
        headers.valueLength(field),
        id,
        secret,
      );
    }
    output.endHeaders(stream, at, endStream);
    return true;
  }

  /** Writes a CONNECT without further fields (RFC 9113 §8.5); false: there is no room for it. */
  writeConnect(stream: Http2Stream, authority: Uint8Array): boolean {
    const { memory, output } = this;
    const session = stream.session!;
    const start = output.beginHeaders(session, hpackBytesMax(2, authority.length + PSEUDO_BYTES));
    if (start === 0) return false;
    const encoder = output.encoderOf(session);
    const text = this.reactor.arena.scratchOffset;
    memory.set(authority, text);
    let at = encoder.begin(memory, start);
    at = encoder.putConstant(memory, at, connectMethod);
    at = this.put(encoder, at, AUTHORITY_PSEUDO, text, authority.length, false);
    output.endHeaders(stream, at, false);
    return true;
  }

  /** Finds the value of Sec-WebSocket-Key: its field in `headers` after this, or -1. */
  findWebSocketKey(request: RequestParts): number {
    const { memory, headers } = this;
    if (!this.parse(request)) return -1;
    for (let field = 0; field < headers.count; field++) {
      if (equalsLower(memory, headers.nameOffset(field), headers.nameLength(field), literalWebSocketKey)) return field;
    }
    return -1;
  }

  /** Value of a field found last, as text. Not for the packet path. */
  valueText(field: number): string {
    const start = this.headers.valueOffset(field);
    return Buffer.from(this.memory.subarray(start, start + this.headers.valueLength(field))).toString('latin1');
  }

  /** Finds the fields behind the request line. */
  private parse(request: RequestParts): boolean {
    const { memory } = this;
    const end = request.headOffset + request.headLength;
    // The target holds neither SP nor LF; behind it come the version and the line end.
    let at = targetOffset(request) + targetLength(request);
    while (at < end && memory[at] !== SP) at++;
    while (at < end && memory[at] !== LF) at++;
    return parseFields(memory, at + 1, end, HEADER_COUNT_CAPACITY, this.headers, this.bits) > 0;
  }

  private put(encoder: HpackEncoder, at: number, id: number, offset: number, length: number, secret: boolean): number {
    return encoder.putField(this.memory, at, 0, 0, offset, length, id, secret);
  }
}

/** Where the target lies in the head. */
function targetOffset(request: RequestParts): number {
  return request.rewrittenPathLength > 0 ? request.headOffset + request.methodLength + 1 : request.pathOffset;
}

function targetLength(request: RequestParts): number {
  return request.rewrittenPathLength > 0 ? request.rewrittenPathLength : request.pathLength;
}
