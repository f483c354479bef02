// Response heads as HTTP/2 header blocks: those of HTTP/1 upstreams, decoded ones and generated ones.
// Owned by one worker. Hot module: no allocation.
// Spec: RFC 9113 §8.2.2 (fields of one connection), §8.3.2 (:status), RFC 9110 §7.6.1, §7.6.3 (Via), §6.6.1 (Date).

import * as chars from '../http1/chars.ts';
import { FieldBits, parseFields } from '../http1/fields.ts';
import { HeaderId } from '../http1/header-ids.ts';
import * as table from '../http1/header-table.ts';
import type { ResponseHead } from '../http1/message.ts';
import { equalsLower, lowerLiteral } from '../http1/word-view.ts';
import type { Reactor } from '../io/reactor.ts';
import { HpackConstant, hpackBytesMax } from './hpack-encoder.ts';
import type { Http2Output } from './output.ts';
import type { Http2Stream } from './stream.ts';

const { tokenLower } = chars;
const { HEADER_COUNT_CAPACITY } = table;
const { CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS } = HeaderId;
const { CONTENT_LENGTH, DATE, SERVER } = HeaderId;

/** Fields of one HTTP/1 connection. */
const CONNECTION_BITS =
  (1 << CONNECTION) |
  (1 << KEEP_ALIVE) |
  (1 << PROXY_CONNECTION) |
  (1 << TE) |
  (1 << TRANSFER_ENCODING) |
  (1 << UPGRADE) |
  (1 << HTTP2_SETTINGS);
const DATE_BIT = 1 << DATE;
const CONTENT_LENGTH_BIT = 1 << CONTENT_LENGTH;
const SERVER_BIT = 1 << SERVER;

const literalAccept = lowerLiteral('sec-websocket-accept');

/** Bytes that the added fields take at most besides `added`: date. */
const DATE_BYTES = 64;

/** What is added to, or left out of, a response head. */
export interface ResponseAdditions {
  /** Replaces the Server of the response; null: that passes. */
  server: HpackConstant | null;
  via: HpackConstant | null;
  /** Answer to an extended CONNECT: the fields of the HTTP/1 handshake are left out. */
  upgraded: boolean;
  /** Further field lines, as HTTP/1 text that ends with an empty line; length 0: none. */
  linesOffset: number;
  linesLength: number;
  /** The head came with never-indexed fields (HpackDecoder.secret), and goes on so. */
  secret: boolean;
  /** Whether a Connection field names a field of the head. */
  isNamed: ((memory: Uint8Array, headers: table.HeaderTable, field: number) => boolean) | null;
}

export class ResponseFields {
  private readonly reactor: Reactor;
  private readonly output: Http2Output;
  private readonly lines = new table.HeaderTable();
  private readonly bits = new FieldBits();
  private date = new HpackConstant('date', '');
  private dateSecond = -1;

  constructor(reactor: Reactor, output: Http2Output) {
    this.reactor = reactor;
    this.output = output;
  }

  /**
   * Writes the head of a response to a stream; `status` may differ from the head's. Names are put into lower case
   * where they lie. Returns false when the head is too large for us, or the connection beyond use.
   */
  write(
    stream: Http2Stream,
    head: ResponseHead,
    status: number,
    additions: ResponseAdditions,
    endStream: boolean,
  ): boolean {
    const { memory } = this.reactor;
    const { output } = this;
    const { headers } = head;
    const session = stream.session!;
    const { server, via, linesOffset, linesLength } = additions;
    const { lines } = this;
    lines.count = 0;
    if (linesLength > 0) {
      const end = linesOffset + linesLength;
      if (parseFields(memory, linesOffset, end, HEADER_COUNT_CAPACITY, lines, this.bits) <= 0) return false;
    }
    let textBytes = head.endOffset - head.fieldsOffset + linesLength + DATE_BYTES;
    if (server !== null) textBytes += server.length + 8;
    if (via !== null) textBytes += via.length + 8;
    const start = output.beginHeaders(session, hpackBytesMax(headers.count + lines.count + 4, textBytes));
    if (start === 0) return false;
    const encoder = output.encoderOf(session);
    let dropped = CONNECTION_BITS;
    if (status < 200 || status === 204 || additions.upgraded) dropped |= CONTENT_LENGTH_BIT;
    if (server !== null) dropped |= SERVER_BIT;
    const named = head.connectionNamesFields ? additions.isNamed : null;

    let at = encoder.putStatus(memory, encoder.begin(memory, start), status);
    for (let field = 0; field < headers.count; field++) {
      const id = headers.id(field);
      // Ids from 32 on have no bit, and are not among the dropped ones.
      if (id !== 0 && id < 32 && (dropped & (1 << id)) !== 0) continue;
      if (named !== null && id !== TRANSFER_ENCODING && named(memory, headers, field)) continue;
      const name = headers.nameOffset(field);
      const nameLength = headers.nameLength(field);
      if (id === 0) {
        for (let i = name; i < name + nameLength; i++) memory[i] = tokenLower[memory[i]];
        if (additions.upgraded && equalsLower(memory, name, nameLength, literalAccept)) continue;
      }
      const value = headers.valueOffset(field);
      at = encoder.putField(memory, at, name, nameLength, value, headers.valueLength(field), id, additions.secret);
    }
    if (status >= 200 && (head.seen & DATE_BIT) === 0) at = encoder.putConstant(memory, at, this.dateNow());
    if (server !== null) at = encoder.putConstant(memory, at, server);
    if (via !== null) at = encoder.putConstant(memory, at, via);
    for (let line = 0; line < lines.count; line++) {
      const value = lines.valueOffset(line);
      const length = lines.valueLength(line);
      at = encoder.putField(
        memory,
        at,
        lines.nameOffset(line),
        lines.nameLength(line),
        value,
        length,
        lines.id(line),
        false,
      );
    }
    output.endHeaders(stream, at, endStream);
    return true;
  }

  /** The present date; made once a second. */
  private dateNow(): HpackConstant {
    const second = Math.floor(this.reactor.wallMs / 1000);
    if (second !== this.dateSecond) {
      this.dateSecond = second;
      this.date = new HpackConstant('date', new Date(second * 1000).toUTCString());
    }
    return this.date;
  }
}
