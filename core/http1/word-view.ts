// Reading the parsers' memory four bytes at a time, and comparing short literals that way.
// A thread parses in one block of memory, so one remembered view serves all calls; only a call with
// another array makes a new one. Hot module: no allocation once the view exists.

/** Turns the letters of a word into lower case and leaves digits and "-" as they are. */
export const LOWER_CASE_WORD = 0x20202020;

const LOWER = LOWER_CASE_WORD;

let viewedMemory: Uint8Array = new Uint8Array(0);
let view: DataView = new DataView(viewedMemory.buffer);

/** View of the same bytes as `memory`, with the same offsets. */
export function wordView(memory: Uint8Array): DataView {
  if (memory !== viewedMemory) {
    viewedMemory = memory;
    view = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  }
  return view;
}

/**
 * Prepares a literal for `equalsLower`: its length, its whole words, its last four bytes.
 * Lower-case letters, digits and "-" only, at least four of them. For module load.
 */
export function lowerLiteral(text: string): Int32Array {
  if (!/^[a-z0-9-]{4,}$/.test(text)) throw new Error(`"${text}" cannot be compared by words.`);
  const bytes = Buffer.from(text, 'latin1');
  const words = [bytes.length];
  for (let at = 0; at + 4 <= bytes.length; at += 4) words.push(bytes.readInt32LE(at));
  words.push(bytes.readInt32LE(bytes.length - 4));
  return Int32Array.from(words);
}

/**
 * Whether [offset, offset + length) is `literal`, ignoring ASCII case.
 * The bytes must have passed as field value, token or target: `| 0x20` would also take some control
 * bytes for digits or "-", and none of these lets them through. Reads only the range.
 */
export function equalsLower(memory: Uint8Array, offset: number, length: number, literal: Int32Array): boolean {
  if (length !== literal[0]) return false;
  const words = wordView(memory);
  const lastWord = offset + length - 4;
  let word = 1;
  for (let at = offset; at <= lastWord; at += 4, word++) {
    if ((words.getInt32(at, true) | LOWER) !== literal[word]) return false;
  }
  return (words.getInt32(lastWord, true) | LOWER) === literal[word];
}
