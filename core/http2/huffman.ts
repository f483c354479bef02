// The Huffman code of HPACK: decoding straight into memory, encoding straight out of it.
//
// The code is canonical: codes are ordered by length, then by symbol, so the 257 lengths of the
// specification's table are all of it and everything else is derived at load. Decoding looks up
// twelve bits at a time, which yields one or two symbols; the rare longer codes go by their length.
// Immutable after load. Hot module: no allocation.
// Spec: RFC 7541 §5.2 (strings, padding), Appendix B (the code).

import { wordView } from '../http1/word-view.ts';

/** Bits of each byte's code (RFC 7541 Appendix B); EOS, the 257th symbol, has 30. */
export const huffmanLengths: Uint8Array = Uint8Array.from(
  // biome-ignore format: 16 symbols a line
  [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
  ],
);

const EOS = 256;
const CODE_BITS_MAX = 30;
/** Bits of one look-up. Two symbols of the shortest codes fit, and the table stays in the first-level cache. */
const LOOKUP_BITS = 12;
const LOOKUP_SHIFT = 32 - LOOKUP_BITS;
/** Decoded bytes per encoded byte, at most: no code is shorter than five bits. */
const SHORTEST_CODE_BITS = 5;

const lengths = huffmanLengths;
const codes = new Int32Array(257);

/**
 * By code length: 32 bits of which the first are a code of at most that length are, as an unsigned
 * number, below `limits[length]`. `firstCodes` and `firstSymbols` then say which symbol.
 */
const limits = new Float64Array(CODE_BITS_MAX + 1);
const firstCodes = new Int32Array(CODE_BITS_MAX + 1);
const firstSymbols = new Int32Array(CODE_BITS_MAX + 1);
const symbolsInOrder = new Int16Array(257);

/**
 * What a look-up says: bits 0-7 first symbol, 8-15 second symbol, 16-19 length of the first code,
 * 20-23 length of both, 24-25 number of symbols (0 if the first code is longer than the look-up).
 */
const lookup = new Int32Array(1 << LOOKUP_BITS);

function build(): void {
  let code = 0;
  let order = 0;
  for (let length = SHORTEST_CODE_BITS; length <= CODE_BITS_MAX; length++) {
    code *= 2;
    firstCodes[length] = code;
    firstSymbols[length] = order;
    for (let symbol = 0; symbol <= EOS; symbol++) {
      if ((symbol === EOS ? CODE_BITS_MAX : lengths[symbol]) !== length) continue;
      codes[symbol] = code++;
      symbolsInOrder[order++] = symbol;
    }
    limits[length] = code * 2 ** (32 - length);
  }
  // A complete code ends with all ones: EOS.
  if (code !== 2 ** CODE_BITS_MAX || codes[EOS] !== 2 ** CODE_BITS_MAX - 1) throw new Error('incomplete Huffman code');

  const single = new Int16Array(1 << LOOKUP_BITS).fill(-1);
  for (let symbol = 0; symbol < EOS; symbol++) {
    const spare = LOOKUP_BITS - lengths[symbol];
    if (spare < 0) continue;
    const first = codes[symbol] << spare;
    single.fill(symbol, first, first + (1 << spare));
  }
  for (let window = 0; window < lookup.length; window++) {
    const first = single[window];
    if (first < 0) continue;
    const firstLength = lengths[first];
    const second = single[(window << firstLength) & (lookup.length - 1)];
    const both = second < 0 ? 99 : firstLength + lengths[second];
    lookup[window] =
      both <= LOOKUP_BITS
        ? first | (second << 8) | (firstLength << 16) | (both << 20) | (2 << 24)
        : first | (firstLength << 16) | (firstLength << 20) | (1 << 24);
  }
}
build();

/** Why a Huffman string is invalid; returned negated. */
const HuffmanError = {
  /** The string holds the EOS symbol (RFC 7541 §5.2). */
  EOS: 1,
  /** More than seven bits are left at the end, or they are not all ones. */
  PADDING: 2,
} as const;

const HUFFMAN_EOS = -HuffmanError.EOS;
const HUFFMAN_PADDING = -HuffmanError.PADDING;

/** Bytes that `length` encoded bytes can become, at most. */
export function huffmanDecodedBytesMax(length: number): number {
  return ((length << 3) / SHORTEST_CODE_BITS) | 0;
}

/** Bits of the code at the start of `window`, which has 30 bits of a string, or ones behind its end. */
function codeLength(window: number): number {
  const unsigned = window >>> 0;
  let length = SHORTEST_CODE_BITS;
  while (length < CODE_BITS_MAX && unsigned >= limits[length]) length = (length + 1) | 0;
  return length;
}

/** Symbol of a code of `length` bits at the start of `window`; EOS is 256. */
function codeSymbol(window: number, length: number): number {
  return symbolsInOrder[firstSymbols[length] + ((window >>> (32 - length)) - firstCodes[length])];
}

/**
 * 32 bits from bit `bit` (relative to `offset`) on, filled up with ones behind `end`. Byte by byte: for
 * long codes, and where a whole word would end behind the memory.
 */
function windowAt(memory: Uint8Array, offset: number, end: number, bit: number): number {
  const at = (offset + (bit >> 3)) | 0;
  const shift = bit & 7;
  let window = -1;
  for (let i = 0; i < 4; i++) window = (window << 8) | (at + i < end ? memory[at + i] : 0xff);
  if (shift === 0) return window;
  return (window << shift) | ((at + 4 < end ? memory[at + 4] : 0xff) >> (8 - shift));
}

/**
 * Decodes [offset, offset + length) to `out` in `target`, whose view is `targetView`.
 *
 * Returns the offset after the last decoded byte or a negated HuffmanError. The caller has left room for
 * `huffmanDecodedBytesMax(length)` bytes and one to spare; the ranges must not overlap.
 * `length` is below 2^27.
 */
export function huffmanDecode(
  memory: Uint8Array,
  offset: number,
  length: number,
  target: Uint8Array,
  targetView: DataView,
  out: number,
): number {
  const view = wordView(memory);
  const end = (offset + length) | 0;
  const lastWord = (end - 4) | 0;
  const lastReadable = (memory.length - 4) | 0;
  const bits = length << 3;
  let bit = 0;
  for (;;) {
    // Each word read has at least 25 bits of the string: enough for two look-ups.
    let at = (offset + (bit >> 3)) | 0;
    while (at <= lastWord) {
      const word = view.getInt32(at, false) << (bit & 7);
      const first = lookup[word >>> LOOKUP_SHIFT];
      if (first === 0) break;
      targetView.setInt16(out, first, true);
      out = (out + (first >> 24)) | 0;
      const used = (first >> 20) & 15;
      bit = (bit + used) | 0;
      const second = lookup[(word << used) >>> LOOKUP_SHIFT];
      if (second === 0) break;
      targetView.setInt16(out, second, true);
      out = (out + (second >> 24)) | 0;
      bit = (bit + ((second >> 20) & 15)) | 0;
      at = (offset + (bit >> 3)) | 0;
    }
    // A long code, or the last three bytes: one symbol at a time.
    const left = (bits - bit) | 0;
    if (left < 8 && paddingIsValid(memory, end, left)) return out;
    at = (offset + (bit >> 3)) | 0;
    let entry = 0;
    if (at <= lastReadable) {
      // Whatever follows the string: a code that reaches into it is longer than what is left.
      entry = lookup[(view.getInt32(at, false) << (bit & 7)) >>> LOOKUP_SHIFT];
    }
    if (entry !== 0) {
      const codeBits = (entry >> 16) & 15;
      if (codeBits > left) return HUFFMAN_PADDING;
      target[out] = entry;
      bit = (bit + codeBits) | 0;
    } else {
      const window = windowAt(memory, offset, end, bit);
      const codeBits = codeLength(window);
      if (codeBits > left) return HUFFMAN_PADDING;
      const symbol = codeSymbol(window, codeBits);
      if (symbol === EOS) return HUFFMAN_EOS;
      target[out] = symbol;
      bit = (bit + codeBits) | 0;
    }
    out = (out + 1) | 0;
  }
}

/** Whether the last `rest` bits before `end`, fewer than eight, may stand behind the last symbol: all ones. */
function paddingIsValid(memory: Uint8Array, end: number, rest: number): boolean {
  const ones = (1 << rest) - 1;
  return rest === 0 || (memory[end - 1] & ones) === ones;
}

/** Number of bytes that [offset, offset + length) decodes to, or a negated HuffmanError. Writes nothing. */
export function huffmanDecodedLength(memory: Uint8Array, offset: number, length: number): number {
  const view = wordView(memory);
  const end = (offset + length) | 0;
  const lastWord = (end - 4) | 0;
  const bits = length << 3;
  let bit = 0;
  let count = 0;
  for (;;) {
    let at = (offset + (bit >> 3)) | 0;
    while (at <= lastWord) {
      const entry = lookup[(view.getInt32(at, false) << (bit & 7)) >>> LOOKUP_SHIFT];
      if (entry === 0) break;
      count = (count + (entry >> 24)) | 0;
      bit = (bit + ((entry >> 20) & 15)) | 0;
      at = (offset + (bit >> 3)) | 0;
    }
    const left = (bits - bit) | 0;
    if (left < 8 && paddingIsValid(memory, end, left)) return count;
    const window = windowAt(memory, offset, end, bit);
    const codeBits = codeLength(window);
    if (codeBits > left) return HUFFMAN_PADDING;
    if (codeSymbol(window, codeBits) === EOS) return HUFFMAN_EOS;
    count = (count + 1) | 0;
    bit = (bit + codeBits) | 0;
  }
}

/** Number of bytes that [offset, offset + length) has when encoded. */
export function huffmanEncodedLength(source: DataView, offset: number, length: number): number {
  let bits = 0;
  const end = (offset + length) | 0;
  for (let i = offset | 0; i < end; i = (i + 1) | 0) bits = (bits + lengths[source.getUint8(i)]) | 0;
  return (bits + 7) >> 3;
}

/**
 * Encodes [offset, offset + length) of `source` to `out` in `target`, unless the result would not be shorter.
 *
 * Returns the offset after it, or -1 if it needs at least `length` bytes. Either way it may have written up
 * to `length` + 3 bytes. `source` and `target` may be views of the same memory; the ranges must not overlap.
 */
export function huffmanEncode(source: DataView, offset: number, length: number, target: DataView, out: number): number {
  const end = (offset + length) | 0;
  const outEnd = (out + length) | 0;
  // `pending` low bits of `held` wait to be written; what is above them has been.
  let held = 0;
  let pending = 0;
  for (let i = offset | 0; i < end; i = (i + 1) | 0) {
    const byte = source.getUint8(i);
    const code = codes[byte];
    const codeBits = lengths[byte];
    const free = (32 - pending) | 0;
    if (codeBits < free) {
      held = (held << codeBits) | code;
      pending = (pending + codeBits) | 0;
      continue;
    }
    pending = (codeBits - free) | 0;
    if (out >= outEnd) return -1;
    target.setInt32(out, (held << free) | (code >>> pending), false);
    out = (out + 4) | 0;
    held = code;
  }
  const rest = (pending + 7) >> 3;
  if (out + rest >= outEnd) return -1;
  if (pending > 0) {
    const free = (32 - pending) | 0;
    // Padding is the start of EOS: ones (RFC 7541 §5.2).
    target.setInt32(out, (held << free) | (-1 >>> pending), false);
  }
  return out + rest;
}
