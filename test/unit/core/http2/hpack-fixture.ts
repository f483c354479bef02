// Helpers of the HPACK tests: blocks as hexadecimal text in, fields as lines out.

import { HeaderTable } from '../../../../core/http1/header-table.ts';
import { type HpackDecoder, isSensitive } from '../../../../core/http2/hpack-decoder.ts';
import type { HpackEncoder } from '../../../../core/http2/hpack-encoder.ts';
import { HpackError, Malformed } from '../../../../core/http2/hpack-errors.ts';
import { idOfName } from '../../../../core/http2/hpack-static.ts';
import { nameOf } from '../../../support/name-of.ts';

const INPUT_AT = 5;
export const OUTPUT_AT = 131_075;

export const memory = new Uint8Array(new ArrayBuffer(512 * 1024));
export const headers = new HeaderTable();

/** What a decoder says about one block. */
export interface Decoded {
  /** Name of the HpackError, or ''. */
  error: string;
  /** Name of the Malformed, or ''. */
  malformed: string;
  tooLarge: boolean;
  /** Text of each field as `name: value`, from the header table. */
  fields: string[];
  /** Everything written, which the table's positions point into. */
  text: string;
  ids: number[];
  neverIndexed: number[];
}

function latin1(offset: number, length: number): string {
  return Buffer.from(memory.subarray(offset, offset + length)).toString('latin1');
}

/** Decodes a block given as bytes or hexadecimal text. */
export function decode(
  decoder: HpackDecoder,
  block: string | Uint8Array,
  outBytesMax = 65_536,
  countMax = 256,
): Decoded {
  const bytes = typeof block === 'string' ? Buffer.from(block.replaceAll(' ', ''), 'hex') : block;
  memory.fill(0x2a, OUTPUT_AT, OUTPUT_AT + 65_536);
  memory.set(bytes, INPUT_AT);
  const result = decoder.decode(memory, INPUT_AT, bytes.length, OUTPUT_AT, outBytesMax, headers, countMax);
  const positions = Array.from({ length: headers.count }, (_, field) => field);
  return {
    error: result === 0 ? '' : nameOf(HpackError, -result),
    malformed: decoder.malformed === 0 ? '' : nameOf(Malformed, decoder.malformed),
    tooLarge: decoder.tooLarge,
    fields: positions.map((field) => {
      const name = latin1(headers.nameOffset(field), headers.nameLength(field));
      return `${name}: ${latin1(headers.valueOffset(field), headers.valueLength(field))}`;
    }),
    text: latin1(OUTPUT_AT, decoder.outLength),
    ids: positions.map((field) => headers.id(field)),
    neverIndexed: positions.filter(isSensitive),
  };
}

/** Encodes `name: value` lines (a `!` in front: never-indexed) and returns the block as hexadecimal text. */
export function encode(encoder: HpackEncoder, lines: readonly string[]): string {
  let source = 0;
  let at = encoder.begin(memory, OUTPUT_AT);
  for (const line of lines) {
    const sensitive = line.startsWith('!');
    const [, name, value] = /^!?(:?[^:]*): ?(.*)$/.exec(line)!;
    memory.set(Buffer.from(name + value, 'latin1'), source);
    const valueAt = source + name.length;
    at = encoder.putField(memory, at, source, name.length, valueAt, value.length, idOfName(name), sensitive);
    source += name.length + value.length;
  }
  return Buffer.from(memory.subarray(OUTPUT_AT, at)).toString('hex');
}

/** A literal field as hexadecimal text, plain strings; `first` is the representation's first byte with name index 0. */
export function literal(first: number, name: string, value: string): string {
  const string = (text: string): string => {
    const bytes = Buffer.from(text, 'latin1').toString('hex');
    if (text.length < 127) return text.length.toString(16).padStart(2, '0') + bytes;
    const length = [0x7f];
    let rest = text.length - 127;
    for (; rest >= 128; rest >>= 7) length.push((rest & 127) | 128);
    length.push(rest);
    return Buffer.from(length).toString('hex') + bytes;
  };
  return first.toString(16).padStart(2, '0') + string(name) + string(value);
}
