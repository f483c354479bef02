// A claim of the bearer token in Authorization, read without verifying the token: good enough to
// tell honest clients apart, not to trust anything (whoever needs that verifies tokens before).
//
// Runs only for limits that ask for it. The payload is decoded into memory of its own and looked through once: members
// of the outermost object are read, what lies inside of their values is only skipped, whether or not it is JSON.
// Hot module: no allocation; the work for a token is bounded by `PAYLOAD_LENGTH_MAX`.
// Spec: RFC 6750 §2.1 (Bearer), RFC 7519 §3 and §7.2, RFC 7515 §7.1 (compact form), RFC 4648 §5 (base64url), RFC 8259.

import type { RequestHead } from '../http1/message.ts';
import { FieldName, findField } from './field-name.ts';
import { valueEquals } from './fields.ts';

const authorization = new FieldName('authorization');
const scheme = new TextEncoder().encode('bearer');

/** Largest payload that is looked at, in characters of base64url. */
const PAYLOAD_LENGTH_MAX = 16 * 1024;

const SPACE = 32;
const QUOTE = 34;
const COMMA = 44;
const DOT = 46;
const COLON = 58;
const OPEN_BRACKET = 91;
const BACKSLASH = 92;
const CLOSE_BRACKET = 93;
const LETTER_U = 117;
const OPEN_BRACE = 123;
const CLOSE_BRACE = 125;

/** Six bits of each character of base64url; -1 for any other. */
const sextets = new Int8Array(256).fill(-1);
for (const [i, character] of [...'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'].entries()) {
  sextets[character.charCodeAt(0)] = i;
}

/** What a character stands for after a backslash; 0: nothing. */
const escapes = new Uint8Array(256);
for (const [character, meaning] of ['""', '\\\\', '//', 'b\b', 'f\f', 'n\n', 'r\r', 't\t']) {
  escapes[character!.charCodeAt(0)] = meaning!.charCodeAt(0);
}

/** Reads claims, one after the other. */
export class ClaimReader {
  /** The payload of the last token, decoded; and where in it the claim lies, after `read`. */
  readonly bytes = new Uint8Array((PAYLOAD_LENGTH_MAX / 4) * 3);
  readonly view = new DataView(this.bytes.buffer);
  offset = 0;
  length = 0;

  private payloadLength = 0;
  /** End of the text that `text` has read last, which is shorter than in the token where that has escapes. */
  private textEnd = 0;

  /**
   * Reads the claim `name` of the token that a request carries. False when there is no such claim, or no token. Otherwise
   * `offset` and `length` are those of its value in `bytes`: a text as it is meant, anything else as it stands there. `view` is
   * on the memory of the head.
   */
  read(memory: Uint8Array, view: DataView, { headers }: RequestHead, name: Uint8Array): boolean {
    // By its name: a filter of the rule may have marked it as one to drop.
    const field = findField(view, headers, authorization);
    if (field < 0) return false;
    const offset = headers.valueOffset(field);
    return this.decode(memory, offset, offset + headers.valueLength(field)) && this.find(name);
  }

  /** Decodes the payload of the token in a field value. */
  private decode(memory: Uint8Array, offset: number, end: number): boolean {
    let at = offset + scheme.length;
    if (at >= end || memory[at] !== SPACE || !valueEquals(memory, offset, scheme.length, scheme)) return false;
    while (at < end && memory[at] === SPACE) at++;
    const header = at;
    while (at < end && sextets[memory[at]!]! >= 0) at++;
    if (at === header || at === end || memory[at] !== DOT) return false;
    const payload = at + 1;
    at = this.decodeBase64(memory, payload, Math.min(end, payload + PAYLOAD_LENGTH_MAX));
    if (at === payload || at === end || memory[at] !== DOT) return false;
    for (at++; at < end; at++) if (sextets[memory[at]!]! < 0) return false;
    return true;
  }

  /** Decodes until there is something else. Returns the offset of that, or `end`. */
  private decodeBase64(memory: Uint8Array, offset: number, end: number): number {
    const { bytes } = this;
    let length = 0;
    let at = offset;
    let bits = 0;
    for (; at + 4 <= end; at += 4) {
      bits =
        (sextets[memory[at]!]! << 18) |
        (sextets[memory[at + 1]!]! << 12) |
        (sextets[memory[at + 2]!]! << 6) |
        sextets[memory[at + 3]!]!;
      // One that is none makes all of it negative.
      if (bits < 0) break;
      bytes[length] = bits >> 16;
      bytes[length + 1] = bits >> 8;
      bytes[length + 2] = bits;
      length += 3;
    }
    bits = 0;
    let count = 0;
    for (let sextet = 0; at < end; at++) {
      sextet = sextets[memory[at]!]!;
      if (sextet < 0) break;
      bits = (bits << 6) | sextet;
      count++;
    }
    // Of two characters one byte, of three two.
    if (count >= 2) bytes[length++] = count === 2 ? bits >> 4 : bits >> 10;
    if (count === 3) bytes[length++] = bits >> 2;
    this.payloadLength = length;
    return at;
  }

  /** Looks for a member of the outermost object; of several with its name the last one counts. */
  private find(name: Uint8Array): boolean {
    let found = false;
    let at = this.blanks(0);
    if (!this.is(at, OPEN_BRACE)) return false;
    at = this.blanks(at + 1);
    if (this.is(at, CLOSE_BRACE)) return false;
    for (;;) {
      if (!this.is(at, QUOTE)) return false;
      const nameAt = at + 1;
      at = this.text(nameAt);
      if (at < 0) return false;
      const wanted = this.equals(nameAt, this.textEnd - nameAt, name);
      at = this.blanks(at);
      if (!this.is(at, COLON)) return false;
      const valueAt = this.blanks(at + 1);
      const isText = this.is(valueAt, QUOTE);
      at = isText ? this.text(valueAt + 1) : this.skip(valueAt);
      if (at < 0) return false;
      if (wanted) {
        found = true;
        this.offset = isText ? valueAt + 1 : valueAt;
        this.length = (isText ? this.textEnd : at) - this.offset;
      }
      at = this.blanks(at);
      if (this.is(at, CLOSE_BRACE)) break;
      if (!this.is(at, COMMA)) return false;
      at = this.blanks(at + 1);
    }
    return found && this.blanks(at + 1) === this.payloadLength;
  }

  private is(at: number, byte: number): boolean {
    return at < this.payloadLength && this.bytes[at] === byte;
  }

  private equals(offset: number, length: number, name: Uint8Array): boolean {
    if (length !== name.length) return false;
    for (let i = 0; i < length; i++) if (this.bytes[offset + i] !== name[i]) return false;
    return true;
  }

  private blanks(at: number): number {
    const { bytes, payloadLength } = this;
    while (at < payloadLength && isBlank(bytes[at]!)) at++;
    return at;
  }

  /**
   * Reads a text whose first character is at `at`, and resolves its escapes in place. Returns the offset after its
   * closing quote, or -1 where it is none.
   */
  private text(at: number): number {
    const { bytes, payloadLength } = this;
    // Nearly all are as they are meant.
    while (at < payloadLength && bytes[at]! >= SPACE && bytes[at] !== QUOTE && bytes[at] !== BACKSLASH) at++;
    let to = at;
    while (at < payloadLength) {
      const byte = bytes[at]!;
      if (byte === QUOTE) {
        this.textEnd = to;
        return at + 1;
      }
      if (byte < SPACE) return -1;
      if (byte !== BACKSLASH) {
        bytes[to++] = byte;
        at++;
        continue;
      }
      const escaped = at + 1 < payloadLength ? bytes[at + 1]! : 0;
      if (escaped !== LETTER_U) {
        if (escapes[escaped] === 0) return -1;
        bytes[to++] = escapes[escaped]!;
        at += 2;
        continue;
      }
      let code = this.unit(at);
      at += 6;
      if (code >= 0xd800 && code < 0xdc00) {
        const low = this.unit(at);
        if (low >= 0xdc00 && low < 0xe000) {
          code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
          at += 6;
        }
      }
      if (code < 0) return -1;
      to = this.putUtf8(to, code);
    }
    return -1;
  }

  /** The code unit of the escape `\uXXXX` at `at`, or -1. */
  private unit(at: number): number {
    const { bytes } = this;
    if (at + 6 > this.payloadLength || bytes[at] !== BACKSLASH || bytes[at + 1] !== LETTER_U) return -1;
    let code = 0;
    for (let i = at + 2; i < at + 6; i++) {
      const digit = hexDigit(bytes[i]!);
      if (digit < 0) return -1;
      code = (code << 4) | digit;
    }
    return code;
  }

  private putUtf8(at: number, code: number): number {
    const { bytes } = this;
    // Half of a pair is no character.
    const point = code >= 0xd800 && code < 0xe000 ? 0xfffd : code;
    if (point < 0x80) {
      bytes[at++] = point;
      return at;
    }
    if (point < 0x800) {
      bytes[at++] = 0xc0 | (point >> 6);
    } else {
      if (point < 0x1_0000) {
        bytes[at++] = 0xe0 | (point >> 12);
      } else {
        bytes[at++] = 0xf0 | (point >> 18);
        bytes[at++] = 0x80 | ((point >> 12) & 63);
      }
      bytes[at++] = 0x80 | ((point >> 6) & 63);
    }
    bytes[at++] = 0x80 | (point & 63);
    return at;
  }

  /** Offset after the value at `at`, which is no text; -1: there is none. */
  private skip(at: number): number {
    const { bytes, payloadLength } = this;
    let depth = 0;
    let next = at;
    while (next < payloadLength) {
      const byte = bytes[next]!;
      if (byte === QUOTE) {
        if (depth === 0) return -1;
        next = this.quoted(next + 1);
        if (next < 0) return -1;
        continue;
      }
      if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
        depth++;
      } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
        if (depth === 0) break;
        depth--;
        if (depth === 0) return next + 1;
      } else if (depth === 0 && (byte === COMMA || isBlank(byte))) {
        break;
      }
      next++;
    }
    return depth === 0 && next > at ? next : -1;
  }

  /** Offset after the closing quote of a text that is only skipped, or -1. */
  private quoted(at: number): number {
    const { bytes, payloadLength } = this;
    for (let next = at; next < payloadLength; next++) {
      if (bytes[next] === QUOTE) return next + 1;
      if (bytes[next] === BACKSLASH) next++;
    }
    return -1;
  }
}

function isBlank(byte: number): boolean {
  return byte === SPACE || byte === 9 || byte === 10 || byte === 13;
}

function hexDigit(byte: number): number {
  if (byte >= 48 && byte <= 57) return byte - 48;
  const letter = byte | 32;
  return letter >= 97 && letter <= 102 ? letter - 87 : -1;
}
