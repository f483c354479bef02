// Entry of the compressor thread: compresses for all packet workers of the process.
//
// Sleeps on the bell until a worker has submitted a slot, and wakes the worker when its slot is answered.
// Bodies of different slots are compressed side by side, on the threads of libuv's pool.

import { parentPort, workerData } from 'node:worker_threads';
import { CompressorResult } from '../exchange/compression.ts';
import { wake } from '../ffi/process.ts';
import { Encoder } from './compress-encoder.ts';
import {
  ANSWERED_AT,
  areaWords,
  BIT_WORDS,
  SLOT_OUTPUT_BYTES,
  SlotCommand,
  SlotWord,
  SUBMITTED_AT,
  slotViews,
  slotWord,
} from './compress-layout.ts';
import type { CompressMessage } from './compressor-pool.ts';

/** The slots of one packet worker. */
class Client {
  private readonly wakeFd: number;
  private readonly words: Int32Array;
  private readonly inputs: Uint8Array[];
  private readonly outputs: Uint8Array[];
  private readonly encoders = new Map<number, Encoder>();
  private closed = false;

  constructor(area: SharedArrayBuffer, wakeFd: number) {
    const { inputs, outputs } = slotViews(area);
    this.wakeFd = wakeFd;
    this.words = areaWords(area);
    this.inputs = inputs;
    this.outputs = outputs;
  }

  /** Takes what has been submitted. */
  serve(): void {
    for (let word = 0; word < BIT_WORDS; word++) {
      let bits = Atomics.exchange(this.words, SUBMITTED_AT + word, 0);
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits & -bits);
        bits &= ~(1 << bit);
        this.take(word * 32 + bit);
      }
    }
  }

  /** The worker's thread is gone: so is what it was waiting for. */
  close(): void {
    this.closed = true;
    for (const encoder of this.encoders.values()) encoder.drop();
    this.encoders.clear();
  }

  private take(slot: number): void {
    const { words } = this;
    const command = words[slotWord(slot, SlotWord.COMMAND)]!;
    if (command === SlotCommand.DROP) {
      this.drop(slot);
      this.answer(slot, CompressorResult.READY, 0);
      return;
    }
    if (command === SlotCommand.BEGIN) this.begin(slot);
    const encoder = this.encoders.get(slot);
    if (encoder === undefined) {
      this.answer(slot, CompressorResult.FAILED, 0);
      return;
    }
    // Output that did not fit goes first; the worker gives no input before it has gone.
    if (encoder.outputBytes > 0) {
      this.give(slot, encoder);
      return;
    }
    const length = words[slotWord(slot, SlotWord.INPUT_BYTES)]!;
    const end = words[slotWord(slot, SlotWord.END)] === 1;
    // A copy: what zlib reads in its own threads is not shared with the worker.
    const input = Buffer.from(this.inputs[slot]!.subarray(0, length));
    encoder.write(input, end, () => this.give(slot, encoder));
  }

  private begin(slot: number): void {
    this.drop(slot);
    const { words } = this;
    const coding = words[slotWord(slot, SlotWord.CODING)]!;
    const level = words[slotWord(slot, SlotWord.LEVEL)]!;
    const encoder = new Encoder(coding, level, () => {
      this.encoders.delete(slot);
      this.answer(slot, CompressorResult.FAILED, 0);
    });
    this.encoders.set(slot, encoder);
  }

  private give(slot: number, encoder: Encoder): void {
    if (this.closed) return;
    const count = encoder.take(this.outputs[slot]!.subarray(0, SLOT_OUTPUT_BYTES));
    let result: number = CompressorResult.READY;
    if (encoder.outputBytes > 0) result = CompressorResult.MORE;
    else if (encoder.ended) result = CompressorResult.ENDED;
    if (result === CompressorResult.ENDED) this.encoders.delete(slot);
    this.answer(slot, result, count);
  }

  private drop(slot: number): void {
    this.encoders.get(slot)?.drop();
    this.encoders.delete(slot);
  }

  private answer(slot: number, result: number, length: number): void {
    if (this.closed) return;
    const { words } = this;
    words[slotWord(slot, SlotWord.RESULT)] = result;
    words[slotWord(slot, SlotWord.OUTPUT_BYTES)] = length;
    Atomics.or(words, ANSWERED_AT + (slot >> 5), 1 << (slot & 31));
    wake(this.wakeFd);
  }
}

const port = parentPort;
if (port === null) throw new Error('core/workers/compress-thread.ts runs as a worker thread only');
const bell = new Int32Array(workerData as SharedArrayBuffer);
/** By the worker's index. */
const clients = new Map<number, Client>();

// The listener also keeps the thread alive.
port.on('message', (message: CompressMessage) => {
  clients.get(message.worker)?.close();
  clients.set(message.worker, new Client(message.area, message.wakeFd));
  serveAll();
});

function serveAll(): void {
  for (const client of clients.values()) client.serve();
}

async function run(): Promise<never> {
  for (;;) {
    const seen = Atomics.load(bell, 0);
    serveAll();
    const waiting = Atomics.waitAsync(bell, 0, seen);
    if (waiting.async) await waiting.value;
  }
}

void run();
port.postMessage('ready');
