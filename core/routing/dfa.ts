// Runs compiled regular expressions (regex-dfa.ts) over bytes in memory, in place and in linear time.
//
// An expression lies in words that all workers share: a record, then its rows. A text may come in
// several pieces: the state after one is where the next begins.
// Hot module: one look-up per byte, no allocation.

/** Words of a compiled expression in the shared words. */
export const DfaRecord = {
  /** Where the 256 classes of bytes begin in the shared bytes. */
  CLASSES: 0,
  CLASS_COUNT: 1,
  /** State before the first byte. */
  START: 2,
  /** The rows; states count from here. */
  ROWS: 3,
} as const;

const { CLASS_COUNT, CLASSES, ROWS, START } = DfaRecord;

/** State before the first byte of the expression at `dfa` in `words`. */
export function dfaStart(words: Int32Array, dfa: number): number {
  return words[dfa + START]!;
}

/** State after one more byte; 0: no text that begins so matches. */
export function dfaStep(words: Int32Array, bytes: Uint8Array, dfa: number, state: number, byte: number): number {
  return words[dfa + ROWS + state + bytes[words[dfa + CLASSES]! + byte]!]!;
}

/** State after the bytes [from, to) of `memory`; 0: no text that begins so matches. */
export function dfaRun(
  words: Int32Array,
  bytes: Uint8Array,
  dfa: number,
  state: number,
  memory: Uint8Array,
  from: number,
  to: number,
): number {
  const classes = words[dfa + CLASSES]!;
  const rows = dfa + ROWS;
  for (let i = from; i < to && state !== 0; i++) state = words[rows + state + bytes[classes + memory[i]!]!]!;
  return state;
}

/** Whether a text that led to `state` matches. */
export function dfaAccepts(words: Int32Array, dfa: number, state: number): boolean {
  return words[dfa + ROWS + state + words[dfa + CLASS_COUNT]!] === 1;
}
