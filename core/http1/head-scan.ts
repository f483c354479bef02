// Finds the end of a head that arrives in pieces, without looking at any byte twice.
//
// The parsers start from the beginning on every call. That is right when a head comes whole, as
// nearly all do; a head that comes byte by byte would cost the square of its length. So after a
// parser has asked for more bytes, this scan decides when calling it again is worthwhile.
// Also finds empty lines made of bare LF, so that the parser can refuse such a head at once.
// Hot module: no allocation. Spec: RFC 9112 §2.1, §2.2.

import * as chars from './chars.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CR, LF } = chars.Byte;

/**
 * Offset after the first empty line in [offset, end), where `offset` begins a line, or -1.
 * An empty line is CRLF or LF alone; the line before it may end in either.
 * Bytes before `from` (at least `offset`) have been scanned before and held no such end.
 */
export function findEmptyLine(memory: Uint8Array, offset: number, end: number, from: number): number {
  end |= 0;
  for (let i = Math.max(from, offset) | 0; i < end; i++) {
    if (memory[i] !== LF) continue;
    const lineEnd = i > offset && memory[i - 1] === CR ? i - 1 : i;
    if (lineEnd === offset || memory[lineEnd - 1] === LF) return i + 1;
  }
  return -1;
}

/**
 * Offset just after a head in [offset, offset + length), or -1 if its end is not there yet.
 * Call with `from = offset` first and with `from` = the end of the bytes scanned so far later.
 * Up to two empty lines before the head are passed over, as the request parser does.
 * After -1 with `length` at or over the head limit, call the parser: it names the error.
 */
export function findHeadEnd(memory: Uint8Array, offset: number, length: number, from: number): number {
  const end = offset + length;
  let start = offset;
  for (let skipped = 0; skipped < 2; skipped++) {
    if (start + 1 >= end || memory[start] !== CR || memory[start + 1] !== LF) break;
    start += 2;
  }
  return findEmptyLine(memory, start, end, from);
}
