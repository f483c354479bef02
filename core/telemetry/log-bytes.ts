// Writing text, numbers and times as bytes, for access log lines.
//
// Each function writes from `data[position]` on and returns the position after what it wrote; the
// caller has made sure that there is room. Used by packet workers, once per request.
// Hot module: allocates nothing per call (the clock renders once per second into its own bytes).
// Spec: RFC 8259 §7 (JSON strings), RFC 3339 §5.6 (time), Common Log Format (time), RFC 5952 §4
// (text of IPv6 addresses).

import { Family } from '../ffi/sockaddr.ts';
import { wordView } from '../http1/word-view.ts';
import type { PeerAddress } from '../io/connection.ts';

/** What a byte of a text becomes. */
const Escape = { NONE: 0, BACKSLASH: 1, UNICODE: 2, HEX: 3 } as const;

/** Most bytes that one byte of text can become (`\u00ff`). */
export const ESCAPED_BYTES_MAX = 6;

/** Most bytes of a number, time or address written by the functions below. */
export const FIXED_BYTES_MAX = 40;

/**
 * Escapes for bytes from the wire in JSON strings. Every byte from 0x7f up becomes `\u00xx`, so the
 * line is valid JSON whatever was sent, and each character of the decoded string is one byte.
 */
export const jsonWireEscapes: Uint8Array = escapes(Escape.UNICODE, true, Escape.BACKSLASH);

/** Escapes for names from the configuration in JSON strings: these are UTF-8 and stay as they are. */
export const jsonNameEscapes: Uint8Array = escapes(Escape.UNICODE, false, Escape.BACKSLASH);

/** Escapes for bytes from the wire in other formats: `\xhh`, as nginx and Apache write them. */
export const textWireEscapes: Uint8Array = escapes(Escape.HEX, true, Escape.HEX);

/** Escapes for names from the configuration in other formats. */
export const textNameEscapes: Uint8Array = escapes(Escape.HEX, false, Escape.HEX);

const BACKSLASH = 0x5c;
const ZERO = 0x30;

/** Numbers below 10^9 fit 32-bit arithmetic, which is several times faster than floating point. */
const SMALL_DIGITS = 9;
const SMALL_NUMBER = 1e9;

const hexDigits = ascii('0123456789abcdef');
const monthNames = ascii('JanFebMarAprMayJunJulAugSepOctNovDec');

/** Fixed text prepared for `putFixed`: its bytes as little-endian words, padded with zeros. */
export interface FixedText {
  words: Int32Array;
  /** Bytes without the padding. */
  length: number;
}

/** Most bytes beyond its end that `putFixed` may touch. */
export const FIXED_OVERRUN_BYTES = 3;

/** Prepares a text for `putFixed`. */
export function fixedText(text: string): FixedText {
  const bytes = new TextEncoder().encode(text);
  const padded = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
  padded.set(bytes);
  const view = new DataView(padded.buffer);
  const words = Int32Array.from({ length: padded.length / 4 }, (_, index) => view.getInt32(index * 4, true));
  return { words, length: bytes.length };
}

/** Writes a prepared text, four bytes at a time: half of a JSON line is field names. */
export function putFixed(view: DataView, position: number, text: FixedText): number {
  const words = text.words;
  for (let i = 0; i < words.length; i++) view.setInt32(position + i * 4, words[i], true);
  return position + text.length;
}

/** Writes `length` bytes of `source` from `offset` on, escaped by one of the tables above. */
export function putText(
  data: Uint8Array,
  position: number,
  source: Uint8Array,
  offset: number,
  length: number,
  table: Uint8Array,
): number {
  const end = offset + length;
  for (let i = offset; i < end; i++) {
    const byte = source[i];
    const kind = table[byte];
    if (kind === Escape.NONE) {
      data[position++] = byte;
      continue;
    }
    data[position++] = BACKSLASH;
    if (kind === Escape.BACKSLASH) {
      data[position++] = byte;
      continue;
    }
    if (kind === Escape.UNICODE) {
      data[position++] = 0x75; // u
      data[position++] = ZERO;
      data[position++] = ZERO;
    } else {
      data[position++] = 0x78; // x
    }
    data[position++] = hexDigits[byte >> 4];
    data[position++] = hexDigits[byte & 15];
  }
  return position;
}

/**
 * Marks with 0x80 each byte of a word that is not plain in any of the tables: below 0x20, from 0x7f
 * up, quote or backslash. A borrow can mark one too many, never one too few.
 */
function specialMarks(word: number): number {
  const quote = word ^ 0x22222222;
  const backslash = word ^ 0x5c5c5c5c;
  return (
    ((word - 0x20202020) | (word + 0x01010101) | word | (quote - 0x01010101) | (backslash - 0x01010101)) & 0x80808080
  );
}

/**
 * Like `putText` for text from the wire, four bytes at a time where they are plain. `view` is over
 * `data`; the source is the parsers' memory, whose view is kept. May touch FIXED_OVERRUN_BYTES more.
 */
export function putWireText(
  data: Uint8Array,
  view: DataView,
  position: number,
  source: Uint8Array,
  offset: number,
  length: number,
  table: Uint8Array,
): number {
  const words = wordView(source);
  const end = (offset + length) | 0;
  const lastWord = end - 4;
  let at = offset | 0;
  while (at <= lastWord) {
    const word = words.getInt32(at, true);
    if (specialMarks(word) === 0) {
      view.setInt32(position, word, true);
      position = (position + 4) | 0;
    } else {
      position = putText(data, position, source, at, 4, table);
    }
    at = (at + 4) | 0;
  }
  return putText(data, position, source, at, end - at, table);
}

/** Writes a whole number, 0 to 2^53; what is below 0 or no number is written as 0. */
export function putNumber(data: Uint8Array, position: number, value: number): number {
  if (!(value > 0)) {
    data[position] = ZERO;
    return position + 1;
  }
  if (value >= SMALL_NUMBER) {
    const high = Math.floor(value / SMALL_NUMBER);
    position = putNumber(data, position, high);
    return putDigits(data, position, value - high * SMALL_NUMBER, SMALL_DIGITS);
  }
  let rest = value | 0;
  let digits = 1;
  for (let limit = 10; limit <= rest && digits < SMALL_DIGITS; limit *= 10) digits++;
  for (let i = position + digits - 1; i > position; i--) {
    const next = (rest / 10) | 0;
    data[i] = ZERO + (rest - next * 10);
    rest = next;
  }
  data[position] = ZERO + rest;
  return position + digits;
}

/** Writes milliseconds with three decimals (12.345), rounded down to the microsecond; below 0 as 0. */
export function putMillis(data: Uint8Array, position: number, ms: number): number {
  // Also shifts an exact 0.001 that floating point has put just below itself back up.
  const micros = ms > 0 ? Math.floor(ms * 1000 + 1e-6) : 0;
  const whole = Math.floor(micros / 1000);
  position = putNumber(data, position, whole);
  data[position++] = 0x2e; // .
  return putDigits(data, position, micros - whole * 1000, 3);
}

/** Writes an IP address, at most 39 bytes; nothing for a family that is neither IPv4 nor IPv6. */
export function putAddress(data: Uint8Array, position: number, peer: PeerAddress): number {
  if (peer.peerFamily === Family.INET) return putDotted(data, position, peer.peer0);
  if (peer.peerFamily !== Family.INET6) return position;
  // A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d; logs name the address they know.
  if (peer.peer0 === 0 && peer.peer1 === 0 && peer.peer2 === 0xffff) {
    return putDotted(data, position, peer.peer3);
  }
  let zerosStart = -1;
  let zerosLength = 1; // A single zero group is not shortened (RFC 5952 §4.2.2).
  for (let i = 0; i < 8; i++) {
    let length = 0;
    while (i + length < 8 && group(peer, i + length) === 0) length++;
    if (length > zerosLength) {
      zerosStart = i;
      zerosLength = length;
    }
    i += length;
  }
  for (let i = 0; i < 8; i++) {
    if (i === zerosStart) {
      data[position++] = 0x3a; // :
      i += zerosLength - 1;
      if (i === 7) data[position++] = 0x3a;
      continue;
    }
    if (i > 0) data[position++] = 0x3a;
    position = putHex(data, position, group(peer, i));
  }
  return position;
}

/** 16 bits of an IPv6 address, group 0 first. */
function group(peer: PeerAddress, index: number): number {
  const word = index < 2 ? peer.peer0 : index < 4 ? peer.peer1 : index < 6 ? peer.peer2 : peer.peer3;
  return (index & 1) === 0 ? word >>> 16 : word & 0xffff;
}

function putDotted(data: Uint8Array, position: number, word: number): number {
  for (let shift = 24; shift >= 0; shift -= 8) {
    position = putNumber(data, position, (word >>> shift) & 255);
    if (shift > 0) data[position++] = 0x2e;
  }
  return position;
}

/** Writes 16 bits in lower-case hexadecimal without leading zeros. */
function putHex(data: Uint8Array, position: number, value: number): number {
  let started = false;
  for (let shift = 12; shift >= 0; shift -= 4) {
    const digit = (value >> shift) & 15;
    started ||= digit !== 0 || shift === 0;
    if (started) data[position++] = hexDigits[digit];
  }
  return position;
}

/** Renders wall-clock times; keeps the rendered second, since most lines fall into the last one. */
export class LogClock {
  private second = -1;
  /** 2026-11-20T23:36:04 */
  private readonly iso = new Uint8Array(32);
  /** 20/Nov/2026:23:36:04 */
  private readonly common = new Uint8Array(32);

  /** Writes an RFC 3339 time in UTC with milliseconds: 24 bytes, `wallMs` since 1970 and before year 10000. */
  putIso(data: Uint8Array, position: number, wallMs: number): number {
    const second = Math.floor(wallMs / 1000);
    if (second !== this.second) this.render(second);
    for (let i = 0; i < 19; i++) data[position + i] = this.iso[i];
    position += 19;
    data[position++] = 0x2e; // .
    position = putDigits(data, position, Math.floor(wallMs - second * 1000), 3);
    data[position++] = 0x5a; // Z
    return position;
  }

  /** Writes the time of the Common Log Format in UTC: 26 bytes. */
  putCommon(data: Uint8Array, position: number, wallMs: number): number {
    const second = Math.floor(wallMs / 1000);
    if (second !== this.second) this.render(second);
    for (let i = 0; i < 20; i++) data[position + i] = this.common[i];
    position += 20;
    data[position++] = 0x20;
    data[position++] = 0x2b; // +
    return putDigits(data, position, 0, 4);
  }

  /** Civil date from days since 1970, counting years from March so that leap days come last. */
  private render(second: number): void {
    this.second = second;
    const days = Math.floor(second / 86_400);
    const secondOfDay = second - days * 86_400;
    const sinceMarch0 = days + 719_468;
    const era = Math.floor(sinceMarch0 / 146_097);
    const dayOfEra = sinceMarch0 - era * 146_097;
    const yearOfEra = Math.floor(
      (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
    );
    const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
    const marchMonth = Math.floor((5 * dayOfYear + 2) / 153);
    const day = dayOfYear - Math.floor((153 * marchMonth + 2) / 5) + 1;
    const month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9;
    const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
    const hour = Math.floor(secondOfDay / 3600);
    const minute = Math.floor(secondOfDay / 60) % 60;

    const { iso, common } = this;
    putDigits(iso, 0, year, 4);
    iso[4] = iso[7] = 0x2d; // -
    putDigits(iso, 5, month, 2);
    putDigits(iso, 8, day, 2);
    iso[10] = 0x54; // T
    putDigits(common, 0, day, 2);
    common[2] = common[6] = 0x2f; // /
    for (let i = 0; i < 3; i++) common[3 + i] = monthNames[(month - 1) * 3 + i];
    putDigits(common, 7, year, 4);
    common[11] = 0x3a; // :
    putTimeOfDay(iso, 11, hour, minute, secondOfDay % 60);
    putTimeOfDay(common, 12, hour, minute, secondOfDay % 60);
  }
}

function putTimeOfDay(out: Uint8Array, at: number, hour: number, minute: number, second: number): void {
  putDigits(out, at, hour, 2);
  putDigits(out, at + 3, minute, 2);
  putDigits(out, at + 6, second, 2);
  out[at + 2] = out[at + 5] = 0x3a; // :
}

/** Writes `value`, below 2^31, with exactly `digits` digits, zeros in front. */
function putDigits(data: Uint8Array, position: number, value: number, digits: number): number {
  let rest = value | 0;
  for (let i = position + digits - 1; i >= position; i--) {
    const next = (rest / 10) | 0;
    data[i] = ZERO + (rest - next * 10);
    rest = next;
  }
  return position + digits;
}

/** A table of 256 escapes: controls, quote and backslash always, 0x7f and above when `high`. */
function escapes(control: number, high: boolean, quote: number): Uint8Array {
  const table = new Uint8Array(256);
  table.fill(control, 0, 0x20);
  table.fill(control, 0x7f, high ? 256 : 0x80);
  table[0x22] = quote;
  table[0x5c] = quote;
  return table;
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}
