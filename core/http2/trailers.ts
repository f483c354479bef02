// Trailer sections: those that have come, kept until their stream ends, and those to be sent, kept until
// the DATA before them has gone.
// Owned by one worker. Hot module: no allocation once the pool has grown.
// Spec: RFC 9113 §8.1 (trailer sections), RFC 9110 §6.5.

import { tokenLower } from '../http1/chars.ts';
import { FieldBits, parseFields } from '../http1/fields.ts';
import { FIELD_WORDS, HEADER_COUNT_CAPACITY, HeaderTable } from '../http1/header-table.ts';
import { LARGE_BLOCK_BYTES } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { hpackBytesMax } from './hpack-encoder.ts';
import type { Http2Output } from './output.ts';
import type { HeaderBlock } from './role.ts';
import type { Http2Stream } from './stream.ts';

const lowerOf = tokenLower;
const WORDS = FIELD_WORDS;
const COUNT_MAX = HEADER_COUNT_CAPACITY;

export class TrailerSections {
  private readonly reactor: Reactor;
  private readonly output: Http2Output;
  private readonly pool: HeaderTable[] = [];
  /** The section being sent. */
  private readonly fields = new HeaderTable();
  private readonly bits = new FieldBits();

  constructor(reactor: Reactor, output: Http2Output) {
    this.reactor = reactor;
    this.output = output;
  }

  /** Keeps a section that has come. Returns false when no block is left for it. */
  receive(stream: Http2Stream, block: HeaderBlock): boolean {
    const { textOffset, textLength, headers } = block;
    if (headers.count === 0) return true;
    if (textLength > LARGE_BLOCK_BYTES) return false;
    const at = this.reactor.arena.allocate(textLength);
    if (at === 0) return false;
    this.reactor.memory.copyWithin(at, textOffset, textOffset + textLength);
    const table = this.pool.pop() ?? new HeaderTable();
    const { words } = table;
    const count = headers.count * WORDS;
    for (let word = 0; word < count; word++) words[word] = headers.words[word];
    const shift = at - textOffset;
    for (let word = 0; word < count; word += WORDS) {
      words[word] += shift;
      words[word + 2] += shift;
    }
    table.count = headers.count;
    table.secret = block.decoder.secret;
    stream.trailers = table;
    stream.trailersBlock = at;
    stream.connection!.trailers = table;
    return true;
  }

  /** Frees what `receive` has kept. */
  release(stream: Http2Stream): void {
    this.reactor.arena.free(stream.trailersBlock);
    this.pool.push(stream.trailers!);
    stream.trailersBlock = 0;
    stream.trailers = null;
    stream.connection!.trailers = null;
  }

  /** Sends the section in `stream.tailBlock` (field lines and an empty line), and so ends our side of the stream. */
  sendKept(stream: Http2Stream): void {
    const { memory, arena } = this.reactor;
    const { output, fields } = this;
    const session = stream.session!;
    const block = stream.tailBlock;
    const start = block + stream.tailOffset;
    const end = block + stream.tailLength;
    stream.tailBlock = 0;
    if (!stream.reset && !stream.localEnded) {
      const parsed = parseFields(memory, start, end, COUNT_MAX, fields, this.bits);
      const at =
        parsed > 0 && fields.count > 0 ? output.beginHeaders(session, hpackBytesMax(fields.count, end - start)) : 0;
      if (at === 0) {
        output.endStream(stream);
      } else {
        const encoder = output.encoderOf(session);
        let dest = encoder.begin(memory, at);
        for (let field = 0; field < fields.count; field++) {
          const name = fields.nameOffset(field);
          const nameLength = fields.nameLength(field);
          for (let i = name; i < name + nameLength; i++) memory[i] = lowerOf[memory[i]];
          const value = fields.valueOffset(field);
          dest = encoder.putField(
            memory,
            dest,
            name,
            nameLength,
            value,
            fields.valueLength(field),
            fields.id(field),
            stream.tailSecret,
          );
        }
        output.endHeaders(stream, dest, true);
      }
    }
    arena.free(block);
  }
}
