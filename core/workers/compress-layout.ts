// The memory that one packet worker shares with the compressor thread: slots, and who has which.
//
//   bits of slots submitted | bits of slots answered | words of each slot | input and output of each slot
//
// A slot belongs to the worker or to the compressor in turn. The bit that hands it over is set and taken with
// Atomics, so that all that was written before is seen after. A worker thread, and a compressor thread, that
// starts anew gets new memory: nothing of a dead one's has to be understood.

/** Bodies of one worker that are compressed at a time; further ones pass as they are. */
export const SLOT_COUNT = 128;

/** Input that a slot takes at once, and output that it gives at once: it is sent from the worker's scratch area. */
export const SLOT_INPUT_BYTES: number = 48 * 1024;
export const SLOT_OUTPUT_BYTES: number = 56 * 1024;

/** Words of bits, 32 slots in each. */
export const BIT_WORDS: number = SLOT_COUNT / 32;

/** First word of each section. */
export const SUBMITTED_AT = 0;
export const ANSWERED_AT: number = BIT_WORDS;
const SLOTS_AT: number = 2 * BIT_WORDS;

/** Words of a slot. */
export const SlotWord = {
  /** SlotCommand. */
  COMMAND: 0,
  /** ContentCoding and level of a body that begins. */
  CODING: 1,
  LEVEL: 2,
  INPUT_BYTES: 3,
  /** 1: the body ends with this input. */
  END: 4,
  /** CompressorResult. */
  RESULT: 5,
  OUTPUT_BYTES: 6,
} as const;

const SLOT_WORDS = 8;

/** What is asked of the compressor. */
export const SlotCommand = {
  /** Begin a body, and take the input. */
  BEGIN: 1,
  /** Take further input, or without any give more output. */
  GO_ON: 2,
  /** Forget the body. */
  DROP: 3,
} as const;

const WORDS: number = SLOTS_AT + SLOT_COUNT * SLOT_WORDS;

/** Size of the memory; pages that no slot has used yet cost nothing. */
export const AREA_BYTES: number = WORDS * 4 + SLOT_COUNT * (SLOT_INPUT_BYTES + SLOT_OUTPUT_BYTES);

/** Index of a word of a slot. */
export function slotWord(slot: number, word: number): number {
  return SLOTS_AT + slot * SLOT_WORDS + word;
}

/** Input and output of every slot in an area, as views. */
export function slotViews(area: SharedArrayBuffer): { inputs: Uint8Array[]; outputs: Uint8Array[] } {
  const inputs: Uint8Array[] = [];
  const outputs: Uint8Array[] = [];
  for (let slot = 0; slot < SLOT_COUNT; slot++) {
    const at = WORDS * 4 + slot * (SLOT_INPUT_BYTES + SLOT_OUTPUT_BYTES);
    inputs.push(new Uint8Array(area, at, SLOT_INPUT_BYTES));
    outputs.push(new Uint8Array(area, at + SLOT_INPUT_BYTES, SLOT_OUTPUT_BYTES));
  }
  return { inputs, outputs };
}

/** The words of an area. */
export function areaWords(area: SharedArrayBuffer): Int32Array {
  return new Int32Array(area, 0, WORDS);
}

/** Memory for one packet worker. */
export function createArea(): SharedArrayBuffer {
  return new SharedArrayBuffer(AREA_BYTES);
}
