// The packet worker's end of the compressor thread: slots in shared memory, see compress-layout.ts.
// Owned by one packet worker. Handing a piece over is one copy, an atomic bit and a notification; what it costs
// beyond that (a view of the piece) is far below what compressing the piece does.

import { type Compressor, CompressorResult } from '../exchange/compression.ts';
import {
  ANSWERED_AT,
  areaWords,
  BIT_WORDS,
  SLOT_COUNT,
  SLOT_INPUT_BYTES,
  SlotCommand,
  SlotWord,
  SUBMITTED_AT,
  slotViews,
  slotWord,
} from './compress-layout.ts';

/** A body has not begun in the slot; it has; the compressor has forgotten it, or is doing so. */
const FRESH = 0;
const BEGUN = 1;
const DROPPED = 2;

export class CompressSlots implements Compressor {
  readonly slotCount: number = SLOT_COUNT;
  readonly inputBytesMax: number = SLOT_INPUT_BYTES;
  readonly hasAnswers = false;
  private readonly words: Int32Array;
  private readonly bell: Int32Array;
  private readonly inputs: Uint8Array[];
  private readonly outputs: Uint8Array[];
  /** Last in, first out: few pages are ever touched. */
  private readonly free: number[] = [];
  private readonly states = new Uint8Array(SLOT_COUNT);
  private readonly codings = new Uint8Array(SLOT_COUNT);
  private readonly levels = new Uint8Array(SLOT_COUNT);
  private readonly lengths = new Int32Array(SLOT_COUNT);
  /** Answers that have been fetched and not given out. */
  private readonly answered = new Int32Array(BIT_WORDS);

  /** `area` is of createArea; `bell` has the word that the compressor thread waits on. */
  constructor(area: SharedArrayBuffer, bell: SharedArrayBuffer) {
    const { inputs, outputs } = slotViews(area);
    this.inputs = inputs;
    this.outputs = outputs;
    this.words = areaWords(area);
    this.bell = new Int32Array(bell);
    for (let slot = SLOT_COUNT - 1; slot >= 0; slot--) this.free.push(slot);
  }

  open(coding: number, level: number): number {
    const slot = this.free.pop();
    if (slot === undefined) return -1;
    this.states[slot] = FRESH;
    this.codings[slot] = coding;
    this.levels[slot] = level;
    this.lengths[slot] = 0;
    return slot;
  }

  put(slot: number, memory: Uint8Array, offset: number, length: number): void {
    this.inputs[slot]!.set(memory.subarray(offset, offset + length), this.lengths[slot]);
    this.lengths[slot]! += length;
  }

  submit(slot: number, end: boolean): void {
    const { words } = this;
    const begins = this.states[slot] === FRESH;
    this.states[slot] = BEGUN;
    words[slotWord(slot, SlotWord.COMMAND)] = begins ? SlotCommand.BEGIN : SlotCommand.GO_ON;
    words[slotWord(slot, SlotWord.CODING)] = this.codings[slot]!;
    words[slotWord(slot, SlotWord.LEVEL)] = this.levels[slot]!;
    words[slotWord(slot, SlotWord.INPUT_BYTES)] = this.lengths[slot]!;
    words[slotWord(slot, SlotWord.END)] = end ? 1 : 0;
    this.lengths[slot] = 0;
    this.handOver(slot);
  }

  next(): number {
    const { words, answered } = this;
    for (let word = 0; word < BIT_WORDS; word++) {
      if (answered[word] === 0) answered[word] = Atomics.exchange(words, ANSWERED_AT + word, 0);
      while (answered[word] !== 0) {
        const bit = 31 - Math.clz32(answered[word]! & -answered[word]!);
        answered[word]! &= ~(1 << bit);
        const slot = word * 32 + bit;
        if (this.states[slot] !== DROPPED) return slot;
        this.free.push(slot);
      }
    }
    return -1;
  }

  resultOf(slot: number): number {
    return this.words[slotWord(slot, SlotWord.RESULT)]!;
  }

  outputBytes(slot: number): number {
    return this.words[slotWord(slot, SlotWord.OUTPUT_BYTES)]!;
  }

  take(slot: number, memory: Uint8Array, offset: number): void {
    memory.set(this.outputs[slot]!.subarray(0, this.outputBytes(slot)), offset);
  }

  close(slot: number): void {
    const { words } = this;
    const result = this.resultOf(slot);
    if (this.states[slot] === FRESH || result === CompressorResult.ENDED || result === CompressorResult.FAILED) {
      words[slotWord(slot, SlotWord.RESULT)] = CompressorResult.READY;
      this.free.push(slot);
      return;
    }
    this.states[slot] = DROPPED;
    words[slotWord(slot, SlotWord.COMMAND)] = SlotCommand.DROP;
    this.handOver(slot);
  }

  private handOver(slot: number): void {
    Atomics.or(this.words, SUBMITTED_AT + (slot >> 5), 1 << (slot & 31));
    Atomics.add(this.bell, 0, 1);
    Atomics.notify(this.bell, 0);
  }
}
