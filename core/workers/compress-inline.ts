// A compressor without a thread: compresses at once, where it is called. For the simulation, in which there are
// no threads, and for tests. Every piece is a member (gzip) or frame (zstd) of its own, which decoders join;
// brotli has no such thing, so that bodies for clients that take nothing else pass as they are.
// Owned by one packet worker. Spec: RFC 1952 §2.2 (members), RFC 8878 §3 (frames).

import { gzipSync, zstdCompressSync } from 'node:zlib';
import { type Compressor, CompressorResult } from '../exchange/compression.ts';
import { ContentCoding } from '../exchange/content-coding.ts';

interface Slot {
  free: boolean;
  coding: number;
  input: Buffer[];
  output: Buffer;
  result: number;
}

export class InlineCompressor implements Compressor {
  readonly slotCount: number;
  readonly inputBytesMax: number;
  private readonly outputBytesMax: number;
  private readonly slots: Slot[] = [];
  private readonly answered: number[] = [];
  /** Slots that are to answer that they have failed, for tests. */
  failing = false;

  /** Small sizes make small pieces. */
  constructor(slotCount: number, inputBytesMax: number, outputBytesMax: number) {
    this.slotCount = slotCount;
    this.inputBytesMax = inputBytesMax;
    this.outputBytesMax = outputBytesMax;
    for (let i = 0; i < slotCount; i++) {
      this.slots.push({ free: true, coding: 0, input: [], output: Buffer.alloc(0), result: 0 });
    }
  }

  /** Slots in use. */
  get used(): number {
    return this.slots.filter(({ free }) => !free).length;
  }

  get hasAnswers(): boolean {
    return this.answered.length > 0;
  }

  open(coding: number): number {
    if (coding !== ContentCoding.GZIP && coding !== ContentCoding.ZSTD) return -1;
    const index = this.slots.findIndex(({ free }) => free);
    if (index < 0) return -1;
    Object.assign(this.slots[index]!, { free: false, coding, input: [], output: Buffer.alloc(0), result: 0 });
    return index;
  }

  put(slot: number, memory: Uint8Array, offset: number, length: number): void {
    const { input } = this.slots[slot]!;
    input.push(Buffer.from(memory.subarray(offset, offset + length)));
    if (input.reduce((sum, piece) => sum + piece.length, 0) > this.inputBytesMax) throw new Error('too much input');
  }

  submit(index: number, end: boolean): void {
    const slot = this.slots[index]!;
    if (slot.free) throw new Error('a free slot was submitted');
    if (slot.result === CompressorResult.MORE) {
      slot.output = slot.output.subarray(this.outputBytesMax);
    } else {
      const input = Buffer.concat(slot.input);
      slot.input = [];
      const compress = slot.coding === ContentCoding.GZIP ? gzipSync : zstdCompressSync;
      slot.output = input.length > 0 || end ? compress(input) : Buffer.alloc(0);
    }
    slot.result = CompressorResult.READY;
    if (this.failing) slot.result = CompressorResult.FAILED;
    else if (slot.output.length > this.outputBytesMax) slot.result = CompressorResult.MORE;
    else if (end) slot.result = CompressorResult.ENDED;
    this.answered.push(index);
  }

  next(): number {
    return this.answered.shift() ?? -1;
  }

  resultOf(slot: number): number {
    return this.slots[slot]!.result;
  }

  outputBytes(slot: number): number {
    return Math.min(this.slots[slot]!.output.length, this.outputBytesMax);
  }

  take(slot: number, memory: Uint8Array, offset: number): void {
    memory.set(this.slots[slot]!.output.subarray(0, this.outputBytesMax), offset);
  }

  close(slot: number): void {
    this.slots[slot]!.free = true;
  }
}
