// Moving lines from the workers' rings into the log file, whole and in one piece.
//
// A write that fails leaves its bytes in the ring, to be tried again; the ring then fills up and the
// worker drops, and counts, new lines. So lines are lost in one place only, and the file goes on
// with the next byte once the disk has recovered.
// Owned by the writer thread (access-log-writer.ts).
// Invariants: a ring's bytes are given back only in whole lines; while a line is cut, nothing else
// is written.

import type { LogOutput } from './access-log-file.ts';
import { RingConsumer } from './byte-ring.ts';

/** Most bytes of one write; bounds how long one system call takes. */
const BLOCK_BYTES_MAX = 1024 * 1024;

const LINE_FEED = 0x0a;

/** How a round ended: all written, the output takes nothing just now, or it failed. */
export type DrainResult = 'done' | 'busy' | 'failed';

/** Reads several rings and writes one output. */
export class LogDrain {
  /** Error of the last failed round. */
  lastError: NodeJS.ErrnoException | undefined;
  readonly rings: RingConsumer[] = [];
  private output: LogOutput;
  /** Ring whose first line is partly written, or -1; and how many of its bytes are. */
  private cutRing = -1;
  private cutBytes = 0;

  constructor(output: LogOutput) {
    this.output = output;
  }

  /** Adds a ring to read, and returns its reader. */
  add(ring: SharedArrayBuffer): RingConsumer {
    const consumer = new RingConsumer(ring);
    this.rings.push(consumer);
    return consumer;
  }

  /** Goes on in another output. A line that the old one has in part is written again, whole. */
  switchTo(output: LogOutput): void {
    this.closeOutput();
    this.output = output;
  }

  /** Writes everything published before the call, as far as the output takes it. */
  drain(): DrainResult {
    try {
      this.output.open();
      const first = Math.max(this.cutRing, 0);
      for (let i = 0; i < this.rings.length; i++) {
        if (!this.drainRing((first + i) % this.rings.length)) return 'busy';
      }
      return 'done';
    } catch (error) {
      this.lastError = error as NodeJS.ErrnoException;
      // A full disk is best waited for with the file open. Any other error may be of this descriptor.
      if (this.lastError.code !== 'ENOSPC' && this.lastError.code !== 'EDQUOT') this.closeOutput();
      return 'failed';
    }
  }

  /** Lines that are published but not written. */
  pendingLines(): number {
    let lines = 0;
    for (const ring of this.rings) {
      const used = ring.used();
      for (let i = 0; i < used; i++) {
        if (ring.data[ring.index(i)] === LINE_FEED) lines++;
      }
    }
    return lines;
  }

  /** Closes the output; a later `drain` opens it again. */
  closeOutput(): void {
    this.output.close();
    this.cutRing = -1;
    this.cutBytes = 0;
  }

  /** Writes what one ring holds now; false when the output took nothing. */
  private drainRing(index: number): boolean {
    const ring = this.rings[index];
    let left = ring.used() - (this.cutRing === index ? this.cutBytes : 0);
    while (left > 0) {
      const begun = this.cutRing === index ? this.cutBytes : 0;
      const offset = ring.index(begun);
      const length = Math.min(left, ring.data.length - offset, BLOCK_BYTES_MAX);
      const written = this.output.write(ring.data, offset, length);
      if (written === 0) return false;
      left -= written;
      this.account(index, begun + written);
    }
    return true;
  }

  /** Frees the whole lines among the first `written` bytes of a ring, and remembers a cut one. */
  private account(index: number, written: number): void {
    const ring = this.rings[index];
    let whole = written;
    while (whole > 0 && ring.data[ring.index(whole - 1)] !== LINE_FEED) whole--;
    ring.free(whole);
    this.cutBytes = written - whole;
    this.cutRing = this.cutBytes > 0 ? index : -1;
  }
}
