// host[:port] of a Host field, an absolute-form target or a CONNECT target.
// Stricter than RFC 3986 in three places: no empty host before a port, no empty port after a
// colon, no IPvFuture; nobody sends these, and servers disagree about them.
// Spec: RFC 9110 §7.2, RFC 3986 §3.2.2, §3.2.3. Hot module: no allocation.

import * as chars from './chars.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { BRACKET_CLOSE, BRACKET_OPEN, COLON, DIGIT_0, DIGIT_9, DOT, PERCENT } = chars.Byte;
const { hexDigitPlusOne, hostByte } = chars;

/** Value of 1 to 5 decimal digits filling [offset, end) that is at most 65535, else -1. */
export function parsePort(memory: Uint8Array, offset: number, end: number): number {
  const digits = end - offset;
  if (digits < 1 || digits > 5) return -1;
  let port = 0;
  for (let i = offset; i < end; i++) {
    const digit = memory[i] - DIGIT_0;
    if (digit < 0 || digit > 9) return -1;
    port = port * 10 + digit;
  }
  return port <= 65535 ? port : -1;
}

/** Whether [offset, end) is a dotted IPv4 address without leading zeros (RFC 3986 dec-octet). */
function isIpv4(memory: Uint8Array, offset: number, end: number): boolean {
  let octets = 0;
  let i = offset;
  while (octets < 4) {
    const start = i;
    let value = 0;
    while (i < end && memory[i] >= DIGIT_0 && memory[i] <= DIGIT_9) {
      value = value * 10 + memory[i] - DIGIT_0;
      if (++i - start > 3) return false;
    }
    if (i === start || value > 255 || (i - start > 1 && memory[start] === DIGIT_0)) return false;
    octets++;
    if (octets < 4 && (i >= end || memory[i++] !== DOT)) return false;
  }
  return i === end;
}

/** Whether [offset, end) is an IPv6 address: 8 groups, or fewer with one `::`; IPv4 may end it. */
function isIpv6(memory: Uint8Array, offset: number, end: number): boolean {
  let groups = 0;
  let compressed = false;
  let i = offset;
  if (end - offset >= 2 && memory[i] === COLON) {
    if (memory[i + 1] !== COLON) return false;
    compressed = true;
    i += 2;
  }
  while (i < end) {
    const start = i;
    while (i < end && hexDigitPlusOne[memory[i]] !== 0) i++;
    if (i < end && memory[i] === DOT) {
      groups += 2;
      return isIpv4(memory, start, end) && (compressed ? groups < 8 : groups === 8);
    }
    if (i === start || i - start > 4) return false;
    groups++;
    if (i === end) break;
    if (memory[i++] !== COLON) return false;
    if (i === end) return false;
    if (memory[i] === COLON) {
      if (compressed) return false;
      compressed = true;
      i++;
    }
  }
  return compressed ? groups < 8 : groups === 8;
}

/**
 * Length of the host part of `host[:port]`, IPv6 brackets included, or -1 if it is malformed.
 * `length` 0 gives -1: whether an empty authority is acceptable is the caller's decision.
 */
export function authorityHostLength(memory: Uint8Array, offset: number, length: number): number {
  const end = offset + length;
  if (length <= 0) return -1;
  let i = offset;
  if (memory[i] === BRACKET_OPEN) {
    while (i < end && memory[i] !== BRACKET_CLOSE) i++;
    if (i === end || !isIpv6(memory, offset + 1, i)) return -1;
    i++;
  } else {
    while (i < end) {
      const byte = memory[i];
      if (hostByte[byte] !== 0) {
        i++;
      } else if (byte === PERCENT) {
        if (i + 2 >= end || hexDigitPlusOne[memory[i + 1]] === 0 || hexDigitPlusOne[memory[i + 2]] === 0) return -1;
        i += 3;
      } else {
        break;
      }
    }
    if (i === offset) return -1;
  }
  if (i === end) return length;
  if (memory[i] !== COLON || parsePort(memory, i + 1, end) < 0) return -1;
  return i - offset;
}
