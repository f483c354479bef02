// One body being compressed by zlib: input in pieces, output after each, flushed.
// Owned by the compressor thread. The work itself is done on the threads of libuv's pool; a piece is finished
// when its output is complete, so that nothing is ever kept back for a next one.
// Spec: RFC 1952 (gzip), RFC 7932 (brotli), RFC 8878 (zstd), RFC 9659 (window of zstd in HTTP).

import type { Transform } from 'node:stream';
import { constants, createBrotliCompress, createGzip, createZstdCompress } from 'node:zlib';
import { ContentCoding } from '../exchange/content-coding.ts';

/**
 * Windows of 512 KiB: beyond them a response gains little, and an encoder's memory, of which there is one for
 * each body under way, is mostly its window. (Clients must take 8 MiB, RFC 9659 §3.)
 */
const WINDOW_BITS = 19;

const CHUNK_BYTES = 32 * 1024;

export class Encoder {
  private readonly stream: Transform;
  private readonly output: Buffer[] = [];
  private offset = 0;
  private readonly onFailure: () => void;
  private dropped = false;
  /** Output that has not been taken. */
  outputBytes = 0;
  /** The last byte of the body has been put out. */
  ended = false;

  /** For a body in a ContentCoding; `onFailure` is called when zlib fails, and nothing after it. */
  constructor(coding: number, level: number, onFailure: () => void) {
    this.onFailure = onFailure;
    this.stream = createStream(coding, level);
    this.stream.on('data', (chunk: Buffer) => {
      this.output.push(chunk);
      this.outputBytes += chunk.length;
    });
    this.stream.on('error', () => {
      if (!this.dropped) this.onFailure();
    });
  }

  /** Compresses a piece (of any length if `end`); `done` is called when all its output is there. */
  write(input: Buffer, end: boolean, done: () => void): void {
    const finish = (): void => {
      if (!this.dropped) done();
    };
    if (end) {
      this.stream.once('end', () => {
        this.ended = true;
        finish();
      });
      if (input.length > 0) this.stream.end(input);
      else this.stream.end();
      return;
    }
    this.stream.write(input, (error) => {
      if (error != null) return;
      // What was not given out at once is given out now.
      this.stream.read();
      finish();
    });
  }

  /** Moves output, as much as fits, to `target`. Returns how much. */
  take(target: Uint8Array): number {
    let at = 0;
    while (this.output.length > 0 && at < target.length) {
      const chunk = this.output[0]!;
      const count = Math.min(chunk.length - this.offset, target.length - at);
      target.set(chunk.subarray(this.offset, this.offset + count), at);
      at += count;
      this.offset += count;
      if (this.offset === chunk.length) {
        this.output.shift();
        this.offset = 0;
      }
    }
    this.outputBytes -= at;
    return at;
  }

  /** Frees everything; no callback comes any more. */
  drop(): void {
    this.dropped = true;
    this.stream.destroy();
  }
}

function createStream(coding: number, level: number): Transform {
  switch (coding) {
    case ContentCoding.BR:
      return createBrotliCompress({
        chunkSize: CHUNK_BYTES,
        flush: constants.BROTLI_OPERATION_FLUSH,
        params: {
          [constants.BROTLI_PARAM_QUALITY]: level,
          [constants.BROTLI_PARAM_LGWIN]: WINDOW_BITS,
        },
      });
    case ContentCoding.ZSTD:
      return createZstdCompress({
        chunkSize: CHUNK_BYTES,
        flush: constants.ZSTD_e_flush,
        params: {
          [constants.ZSTD_c_compressionLevel]: level,
          [constants.ZSTD_c_windowLog]: WINDOW_BITS,
        },
      });
    default:
      return createGzip({ level, chunkSize: CHUNK_BYTES, flush: constants.Z_SYNC_FLUSH });
  }
}
