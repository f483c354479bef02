// The recorder of requests: keeps the last request heads of one worker, with secrets hashed, and what
// became of them, for `portcullis check --replay`.
//
// Owned by one packet worker and one snapshot, over shared memory that outlives both: the position is
// kept only there, so old and new snapshot take turns. Readers copy the ring and look afterwards how
// far it has been overwritten meanwhile, so writing takes no lock.
// Hot module: runs for every request where it is configured, and allocates nothing.

import { HeaderId } from '../http1/header-ids.ts';
import { FIELD_WORDS as fieldWords } from '../http1/header-table.ts';
import type { RequestHead } from '../http1/message.ts';
import type { Connection } from '../io/connection.ts';
import { KeyedHash } from './keyed-hash.ts';
import {
  HASHED_PREFIX,
  RECORDER_HEADER_BYTES,
  RecorderWord,
  RequestFlag,
  RequestWord,
  RECORD_TEXT_OFFSET as textOffset,
} from './recorder-layout.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { HEAD, TAIL, TOO_LONG } = RecorderWord;
const { ENDED, FILLER, GENERATED, TLS } = RequestFlag;
const { ADDRESS, EPOCH, FAMILY, FLAGS, LENGTH, PORT, POSITION, REASON, STATUS, TEXT_LENGTH, VERSION, WALL_MS } =
  RequestWord;
const { AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION } = HeaderId;
const FIELD_WORDS = fieldWords;
const RECORD_TEXT_OFFSET = textOffset;

const LINE_FEED = 10;
const COLON = 58;
const SEMICOLON = 59;
const EQUALS = 61;
const SLASH = 47;
const SPACE = 32;
const QUESTION = 63;

const encoder = new TextEncoder();
const hashedPrefix = encoder.encode(HASHED_PREFIX);
const hexDigits = encoder.encode('0123456789abcdef');

/** Bytes of a hashed value. */
const HASHED_BYTES = hashedPrefix.length + 16;

/** Cookies of a record that are hashed one by one; what else is in a field is hashed as one. */
const COOKIES_MAX = 64;

/** A record takes at most this share of a ring, so that a few long heads do not push out all others. */
const LARGEST_SHARE = 8;

/** What all recorders of a node share. Part of a snapshot. */
export interface RecorderSettings {
  /** By worker index, see createRecorderBuffer. */
  buffers: SharedArrayBuffer[];
  /** HASH_KEY_WORDS random words, the same for the life of the process. */
  key: Int32Array;
  /** Fields whose values are hashed besides Authorization, Proxy-Authorization and Cookie; lower case. */
  redactHeaders: string[];
  /** Older records are not shown. */
  maxAgeMs: number;
}

/** Writes the records of one worker. */
export class RequestRecorder {
  private readonly words: Int32Array;
  private readonly floats: Float64Array;
  private readonly data: Uint8Array;
  private readonly capacity: number;
  private readonly hash: KeyedHash;
  private readonly redacted: Uint8Array[];
  /** Cookies of the present record that may still be hashed one by one. */
  private cookiesLeft = 0;

  /** Continues the recording in `settings.buffers[worker]`. */
  constructor(settings: RecorderSettings, worker: number) {
    const buffer = settings.buffers[worker]!;
    this.words = new Int32Array(buffer);
    this.floats = new Float64Array(buffer);
    this.data = new Uint8Array(buffer, RECORDER_HEADER_BYTES);
    this.capacity = this.data.length;
    this.hash = new KeyedHash(settings.key);
    this.redacted = settings.redactHeaders.map((name) => encoder.encode(name));
  }

  /**
   * Writes the head being worked on over the oldest records. `choice` is what the rule offers, two
   * lines (see RecordLine.ROUTE and SHARES); `version` as in RequestWord.VERSION. Returns what `end`
   * wants to have, 0 if the head is too long to be recorded.
   */
  record(
    memory: Uint8Array,
    head: RequestHead,
    connection: Connection,
    choice: Uint8Array,
    backend: Uint8Array,
    version: number,
    epoch: number,
    wallMs: number,
  ): number {
    const { words, data } = this;
    const listener = connection.listener!.nameBytes;
    const certificate = connection.clientCertificate;
    const shown = certificate?.verified ? certificate : null;
    let texts = listener.length + choice.length + backend.length + connection.serverNameBytes.length;
    if (shown !== null) {
      texts += shown.sha256Bytes.length;
      for (let i = 0; i < shown.subjectAltNames.length; i++) texts += 1 + shown.subjectAltNames[i]!.length;
    }
    const { headers } = head;
    this.cookiesLeft = COOKIES_MAX;
    const bytesMax =
      (RECORD_TEXT_OFFSET +
        texts +
        head.authorityLength +
        (head.endOffset - head.methodOffset) +
        (headers.count + COOKIES_MAX + 16) * HASHED_BYTES) |
      0;
    if (bytesMax > this.capacity / LARGEST_SHARE) {
      words[TOO_LONG]!++;
      return 0;
    }
    const position = this.makeRoom(bytesMax);
    const start = position & (this.capacity - 1);
    let at = start + RECORD_TEXT_OFFSET;
    at = this.putLine(at, memory, head.methodOffset, head.methodLength);
    at = this.putLine(at, memory, head.authorityOffset, head.authorityLength);
    if (head.pathOnlyLength === 0 && head.pathLength > 0) data[at++] = SLASH;
    // An empty path is "/"; "*" and the authority of CONNECT are what the target says.
    if (head.pathLength > 0) at = this.putLine(at, memory, head.pathOffset, head.pathLength);
    else at = this.putLine(at, memory, head.targetOffset, head.targetForm >= 2 ? head.targetLength : 0);
    at = this.putText(at, listener);
    at = this.putText(at, choice);
    at = this.putText(at, backend);
    at = this.putText(at, connection.serverNameBytes);
    if (shown !== null) {
      at = this.putName(at, shown.sha256Bytes);
      for (let i = 0; i < shown.subjectAltNames.length; i++) {
        data[at++] = SPACE;
        at = this.putName(at, shown.subjectAltNames[i]!);
      }
    }
    data[at++] = LINE_FEED;
    for (let field = 0; field < headers.count; field++) at = this.putField(at, memory, headers.words, field);
    const textLength = at - start - RECORD_TEXT_OFFSET;
    const length = (RECORD_TEXT_OFFSET + textLength + 7) & ~7;

    const word = (RECORDER_HEADER_BYTES + start) >> 2;
    words[word + LENGTH] = length;
    words[word + POSITION] = position;
    words[word + EPOCH] = epoch;
    words[word + STATUS] = 0;
    words[word + REASON] = 0;
    words[word + FLAGS] = connection.listener!.https ? TLS : 0;
    words[word + VERSION] = version;
    words[word + FAMILY] = connection.peerFamily;
    words[word + PORT] = connection.peerPort;
    words[word + ADDRESS] = connection.peer0;
    words[word + ADDRESS + 1] = connection.peer1;
    words[word + ADDRESS + 2] = connection.peer2;
    words[word + ADDRESS + 3] = connection.peer3;
    words[word + TEXT_LENGTH] = textLength;
    this.floats[(word + WALL_MS) >> 1] = wallMs;
    Atomics.store(words, HEAD, (position + length) | 0);
    // Positions are multiples of 8: the lowest bit tells the first one from "none".
    return position | 1;
  }

  /** Adds how the exchange has ended to the record that `record` returned, if it is still there. */
  end(recorded: number, status: number, reason: number, generated: boolean): void {
    const { words } = this;
    const position = recorded & ~1;
    const age = (words[HEAD]! - position) | 0;
    if (age <= 0 || age > this.capacity || ((position - words[TAIL]!) | 0) < 0) return;
    const word = (RECORDER_HEADER_BYTES + (position & (this.capacity - 1))) >> 2;
    if (words[word + POSITION] !== position) return;
    words[word + STATUS] = status;
    words[word + REASON] = reason;
    words[word + FLAGS]! |= generated ? ENDED | GENERATED : ENDED;
  }

  /** Forgets the oldest records until `bytes` lie free in one piece, and returns its position. */
  private makeRoom(bytes: number): number {
    const { words, capacity } = this;
    const mask = capacity - 1;
    let head = words[HEAD]!;
    const left = capacity - (head & mask);
    const filler = left < bytes ? left : 0;
    let tail = words[TAIL]!;
    while (((head + filler + bytes - tail) | 0) > capacity) {
      tail = (tail + words[(RECORDER_HEADER_BYTES + (tail & mask)) >> 2]!) | 0;
    }
    // A read-modify-write keeps the plain stores that follow from moving before it, also on arm64.
    if (tail !== words[TAIL]) Atomics.exchange(words, TAIL, tail);
    if (filler > 0) {
      const word = (RECORDER_HEADER_BYTES + (head & mask)) >> 2;
      words[word + LENGTH] = filler;
      // The other words of the smallest filler lie behind the end of the ring.
      if (filler > FLAGS * 4) words[word + FLAGS] = FILLER;
      head = (head + filler) | 0;
      Atomics.store(words, HEAD, head);
    }
    return head;
  }

  /** One field as `name:value`, hashed where it is a secret. */
  private putField(at: number, memory: Uint8Array, fields: Int32Array, field: number): number {
    const { data } = this;
    const word = field * FIELD_WORDS;
    const name = fields[word]!;
    const nameLength = fields[word + 1]!;
    const value = fields[word + 2]!;
    const valueLength = fields[word + 3]!;
    const id = fields[word + 4]!;
    let dest = at;
    for (let i = 0; i < nameLength; i++) data[dest++] = memory[name + i]!;
    data[dest++] = COLON;
    if (id === COOKIE) {
      dest = this.putCookies(dest, memory, value, value + valueLength);
    } else if (id === AUTHORIZATION || id === PROXY_AUTHORIZATION) {
      dest = this.putCredentials(dest, memory, value, valueLength);
    } else if (this.redacted.length > 0 && this.isRedacted(memory, name, nameLength)) {
      dest = this.putHashed(dest, memory, value, valueLength);
    } else {
      for (let i = 0; i < valueLength; i++) data[dest++] = memory[value + i]!;
    }
    data[dest++] = LINE_FEED;
    return dest;
  }

  /** `name=value; name=value` with the values hashed. A part without `=` is taken for a value. */
  private putCookies(at: number, memory: Uint8Array, start: number, end: number): number {
    const { data } = this;
    let dest = at;
    let from = start;
    while (from < end) {
      const one = this.cookiesLeft > 0;
      if (one) this.cookiesLeft--;
      let to = one ? from : end;
      while (to < end && memory[to] !== SEMICOLON) to++;
      let equals = from;
      while (one && equals < to && memory[equals] !== EQUALS) equals++;
      if (one && equals < to) {
        equals++;
        for (let i = from; i < equals; i++) data[dest++] = memory[i]!;
      } else {
        equals = from;
        while (equals < to && memory[equals] === SPACE) data[dest++] = memory[equals++]!;
      }
      if (to > equals) dest = this.putHashed(dest, memory, equals, to - equals);
      if (to < end) data[dest++] = SEMICOLON;
      from = to + 1;
    }
    return dest;
  }

  /** Credentials with their scheme, which is no secret (RFC 9110 §11.4). */
  private putCredentials(at: number, memory: Uint8Array, value: number, length: number): number {
    const { data } = this;
    let dest = at;
    let scheme = 0;
    while (scheme < length && memory[value + scheme] !== SPACE) scheme++;
    // Without a scheme all of it is secret.
    if (scheme === length) return this.putHashed(dest, memory, value, length);
    scheme++;
    for (let i = 0; i < scheme; i++) data[dest++] = memory[value + i]!;
    return this.putHashed(dest, memory, value + scheme, length - scheme);
  }

  private putHashed(at: number, memory: Uint8Array, offset: number, length: number): number {
    const { data, hash } = this;
    let dest = at;
    hash.hash(memory, offset, length);
    for (let i = 0; i < hashedPrefix.length; i++) data[dest++] = hashedPrefix[i]!;
    for (let shift = 28; shift >= 0; shift -= 4) data[dest++] = hexDigits[(hash.high >>> shift) & 15]!;
    for (let shift = 28; shift >= 0; shift -= 4) data[dest++] = hexDigits[(hash.low >>> shift) & 15]!;
    return dest;
  }

  private isRedacted(memory: Uint8Array, name: number, length: number): boolean {
    const { redacted } = this;
    for (let n = 0; n < redacted.length; n++) {
      const wanted = redacted[n]!;
      if (wanted.length !== length) continue;
      let i = 0;
      while (i < length && lower(memory[name + i]!) === wanted[i]) i++;
      if (i === length) return true;
    }
    return false;
  }

  private putLine(at: number, memory: Uint8Array, offset: number, length: number): number {
    const { data } = this;
    for (let i = 0; i < length; i++) data[at + i] = memory[offset + i]!;
    data[at + length] = LINE_FEED;
    return at + length + 1;
  }

  /** A name in a certificate: it is somebody else's text, and may not break the line. */
  private putName(at: number, name: Uint8Array): number {
    const { data } = this;
    for (let i = 0; i < name.length; i++) data[at + i] = name[i]! <= SPACE ? QUESTION : name[i]!;
    return at + name.length;
  }

  private putText(at: number, text: Uint8Array): number {
    const { data } = this;
    for (let i = 0; i < text.length; i++) data[at + i] = text[i]!;
    data[at + text.length] = LINE_FEED;
    return at + text.length + 1;
  }
}

/** ASCII letters to lower case, everything else as it is. */
function lower(byte: number): number {
  return byte >= 65 && byte <= 90 ? byte | 32 : byte;
}
