// From the bytes of a field name to its known-header id, in a few steps and without strings.
//
// Length, first and last byte give a slot in a small table in which every known name has a slot of
// its own (the factors are searched once at load); the name found there is then compared in
// full, so an unknown name that lands in the same slot is never mistaken for a known one.
// Immutable after load. Hot module: runs for every field; no allocation.

import { HeaderId, headerNames } from './header-ids.ts';
import { LOWER_CASE_WORD, wordView } from './word-view.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { OTHER } = HeaderId;
const SLOT_MASK = 127;
/** Words set aside per name in `nameWords`; a name has at most four times as many bytes. */
const NAME_WORDS = 8;
const LOWER_CASE = LOWER_CASE_WORD;

const nameLengths = new Uint8Array(headerNames.length);
/**
 * Names as little-endian words: all whole words from the start, then the last four bytes, which may
 * overlap them. Names shorter than four bytes are one word padded with zeros.
 */
const nameWords = new Int32Array(headerNames.length * NAME_WORDS);

for (let id = 1; id < headerNames.length; id++) {
  const name = headerNames[id];
  // The comparison below relies on these bytes being the only token bytes that `| 0x20` maps to them.
  if (!/^[a-z0-9-]{2,28}$/.test(name)) throw new Error(`The known header name "${name}" cannot be in the table.`);
  nameLengths[id] = name.length;
  const bytes = Buffer.from(name.padEnd(4, '\0'), 'latin1');
  const whole = bytes.length >> 2;
  for (let word = 0; word < whole; word++) nameWords[id * NAME_WORDS + word] = bytes.readInt32LE(word * 4);
  nameWords[id * NAME_WORDS + whole] = bytes.readInt32LE(bytes.length - 4);
}

/** Slots filled under given factors, or null if two names share one. */
function slotsFor(byLength: number, byFirst: number, byLast: number): Uint8Array | null {
  const filled = new Uint8Array(SLOT_MASK + 1);
  for (let id = 1; id < headerNames.length; id++) {
    const name = headerNames[id];
    const slot =
      (name.length * byLength + name.charCodeAt(0) * byFirst + name.charCodeAt(name.length - 1) * byLast) & SLOT_MASK;
    if (filled[slot] !== 0) return null;
    filled[slot] = id;
  }
  return filled;
}

function searchFactors(): { lengthFactor: number; firstFactor: number; lastFactor: number; slots: Uint8Array } {
  for (let lengthFactor = 1; lengthFactor < 64; lengthFactor++) {
    for (let firstFactor = 1; firstFactor < 64; firstFactor++) {
      for (let lastFactor = 1; lastFactor < 64; lastFactor++) {
        const slots = slotsFor(lengthFactor, firstFactor, lastFactor);
        if (slots !== null) return { lengthFactor, firstFactor, lastFactor, slots };
      }
    }
  }
  throw new Error('The known header names have no perfect hash; enlarge SLOT_MASK in core/http1/header-hash.ts.');
}

const { lengthFactor, firstFactor, lastFactor, slots } = searchFactors();

/**
 * Known-header id of the name at `offset`, ignoring case; `HeaderId.OTHER` if it is not known.
 * The name must consist of token bytes and have at least one. Reads only the name.
 */
export function knownHeaderId(memory: Uint8Array, offset: number, length: number): number {
  const first = memory[offset] | 0x20;
  const last = memory[offset + length - 1] | 0x20;
  const id = slots[(length * lengthFactor + first * firstFactor + last * lastFactor) & SLOT_MASK];
  if (id === OTHER || nameLengths[id] !== length) return OTHER;
  let word = id * NAME_WORDS;
  if (length < 4) {
    // Two or three bytes: the first and the last decided the slot but not yet the match.
    const middle = length === 3 ? (memory[offset + 1] | 0x20) << 8 : 0;
    return (first | middle | (last << ((length - 1) << 3))) === nameWords[word] ? id : OTHER;
  }
  const view = wordView(memory);
  const lastWord = offset + length - 4;
  for (let at = offset; at <= lastWord; at += 4, word++) {
    if ((view.getInt32(at, true) | LOWER_CASE) !== nameWords[word]) return OTHER;
  }
  return (view.getInt32(lastWord, true) | LOWER_CASE) === nameWords[word] ? id : OTHER;
}
