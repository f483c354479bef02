// Random header lists and header blocks, for the HPACK fuzzer.

import { staticEntries } from '../../core/http2/hpack-static.ts';
import { huffmanLengths } from '../../core/http2/huffman.ts';
import type { Random } from '../sim/random.ts';
import type { SeenField } from './hpack-nghttp2.ts';

const commonNames = [
  ...staticEntries.slice(15).map(([name]) => name),
  'x-request-id',
  'x-forwarded-for',
  'traceparent',
  'grpc-status',
  'grpc-timeout',
  'grpc-encoding',
  'keep-alive',
  'te',
  'x',
  'sec-ch-ua',
];
const commonValues = ['', '0', '1', 'trailers', 'gzip, deflate', 'application/grpc', 'text/html; charset=utf-8', '*/*'];

const TEXT = 'abcdefghijklmnopqrstuvwxyz0123456789 -_/.;=,%';

function text(random: Random, length: number, alphabet: string): string {
  let result = '';
  for (let i = 0; i < length; i++) result += alphabet[random.int(0, alphabet.length - 1)];
  return result;
}

function value(random: Random): string {
  if (random.chance(0.4)) return random.pick(commonValues);
  const length = random.size(0, random.chance(0.02) ? 5000 : 120);
  if (random.chance(0.1)) {
    let bytes = '';
    for (let i = 0; i < length; i++)
      bytes += String.fromCharCode(random.chance(0.5) ? random.int(0x80, 0xff) : random.int(0x21, 0x7e));
    return bytes;
  }
  return text(random, length, TEXT).trim();
}

/** A list of fields that RFC 9113 allows. Draws from `recent`, and adds to it, so that fields repeat. */
export function validFields(random: Random, recent: SeenField[]): SeenField[] {
  const fields: SeenField[] = [];
  if (random.chance(0.6)) {
    fields.push({ name: ':method', value: random.pick(['GET', 'POST', 'PUT', 'GETS']), sensitive: false });
    fields.push({ name: ':scheme', value: random.pick(['http', 'https', 'ftp']), sensitive: random.chance(0.02) });
    fields.push({ name: ':authority', value: random.pick(['a.example', 'b.example:8080', '']), sensitive: false });
    fields.push({
      name: ':path',
      value: random.pick(['/', '/index.html', `/${text(random, 9, TEXT).trim()}`]),
      sensitive: false,
    });
    if (random.chance(0.1)) fields.push({ name: ':protocol', value: 'websocket', sensitive: false });
  } else if (random.chance(0.8)) {
    fields.push({ name: ':status', value: String(random.pick([200, 204, 301, 404, 503, 599])), sensitive: false });
  }
  const count = random.size(0, 40);
  for (let i = 0; i < count; i++) {
    if (recent.length > 0 && random.chance(0.6)) {
      fields.push(random.pick(recent));
      continue;
    }
    const name = random.chance(0.8)
      ? random.pick(commonNames)
      : `x-${text(random, random.size(0, 40), TEXT.slice(0, 36))}`;
    const field = { name, value: value(random), sensitive: random.chance(0.05) };
    fields.push(field);
    if (recent.length < 60) recent.push(field);
    else recent[random.int(0, 59)] = field;
  }
  return fields;
}

/** An integer with a prefix of `prefixBits` under `bits`, sometimes longer than needed. */
function integer(random: Random, bits: number, prefixBits: number, number: number): number[] {
  const prefix = 2 ** prefixBits - 1;
  if (number < prefix) return [bits | number];
  const bytes = [bits | prefix];
  let rest = number - prefix;
  while (rest >= 128) {
    bytes.push((rest & 127) | 128);
    rest = Math.floor(rest / 128);
  }
  if (random.chance(0.02)) {
    bytes.push(rest | 128);
    for (let i = random.int(0, random.chance(0.1) ? 5 : 1); i > 0; i--) bytes.push(128);
    rest = 0;
  }
  bytes.push(rest);
  return bytes;
}

/** Code and length of each byte: codes are in order of length, then of byte (RFC 7541 Appendix B). */
const huffmanCodes: string[] = [];
{
  let code = 0;
  for (let bits = 1; bits < 30; bits++) {
    code *= 2;
    for (let byte = 0; byte < 256; byte++) {
      if (huffmanLengths[byte] === bits) huffmanCodes[byte] = (code++).toString(2).padStart(bits, '0');
    }
  }
  code *= 2;
  for (let byte = 0; byte < 256; byte++) if (huffmanLengths[byte] === 30) huffmanCodes[byte] = (code++).toString(2);
}

/** The Huffman string of random bytes. */
export function huffmanString(random: Random): Buffer {
  const usual = random.chance(0.8);
  let bits = '';
  for (let length = random.size(0, 80); length > 0; length--) {
    bits += huffmanCodes[usual ? TEXT.charCodeAt(random.int(0, TEXT.length - 1)) : random.int(0, 255)];
  }
  bits = bits.padEnd(Math.ceil(bits.length / 8) * 8, '1');
  return Buffer.from(bits.match(/.{8}/g)?.map((byte) => Number.parseInt(byte, 2)) ?? []);
}

/** A string literal: plain, or bytes that may or may not be a Huffman string. */
function string(random: Random, huffmanPieces: readonly Buffer[]): number[] {
  if (random.chance(0.4)) {
    const bytes = random.chance(0.98)
      ? [...random.pick(huffmanPieces)]
      : Array.from({ length: random.size(0, 12) }, () => random.pick([0xff, 0xfe, random.int(0, 255)]));
    return [...integer(random, 0x80, 7, bytes.length), ...bytes];
  }
  const plain = random.chance(0.8)
    ? random.pick([...commonNames, ...commonValues, ':method', ':path', ':odd', 'Upper', ' lead', 'trail\t', 'a\tb'])
    : text(random, random.size(0, 200), 'ab\0\r\n\t \x7f\x80\xffZ:');
  return [...integer(random, 0, 7, plain.length), ...Buffer.from(plain, 'latin1')];
}

/** A block of random representations, most of them possible. `tableCount`: dynamic entries at its start. */
export function randomBlock(random: Random, tableCount: number, huffmanPieces: readonly Buffer[]): Buffer {
  const bytes: number[] = [];
  for (let i = random.chance(0.1) ? random.int(1, 3) : 0; i > 0; i--) {
    bytes.push(...integer(random, 0x20, 5, random.chance(0.05) ? 4097 : random.pick([0, 64, 200, 1000, 4095, 4096])));
  }
  const index = (from: number): number =>
    random.chance(0.003) ? random.int(0, 200) : random.int(from, 61 + Math.max(0, tableCount));
  for (let count = random.size(0, 30); count > 0; count--) {
    const kind = random.float();
    if (kind < 0.4) bytes.push(...integer(random, 0x80, 7, index(1)));
    else if (kind < 0.998) {
      const indexing = kind < 0.75;
      const name = random.chance(0.6) ? index(0) : 0;
      if (indexing) bytes.push(...integer(random, 0x40, 6, name));
      else bytes.push(...integer(random, random.chance(0.3) ? 0x10 : 0, 4, name));
      if (name === 0) bytes.push(...string(random, huffmanPieces));
      bytes.push(...string(random, huffmanPieces));
    } else bytes.push(...integer(random, 0x20, 5, random.int(0, 5000)));
  }
  return Buffer.from(bytes);
}

/** A copy of `block` with a few bytes changed, left out or put in, or cut short. */
export function mutate(random: Random, block: Buffer): Buffer {
  let result = Buffer.from(block);
  for (let count = random.int(1, 3); count > 0 && result.length > 0; count--) {
    const at = random.int(0, result.length - 1);
    const kind = random.float();
    if (kind < 0.5) result[at] ^= 1 << random.int(0, 7);
    else if (kind < 0.7) result[at] = random.int(0, 255);
    else if (kind < 0.8) result = result.subarray(0, at);
    else if (kind < 0.9) result = Buffer.concat([result.subarray(0, at), result.subarray(at + 1)]);
    else result = Buffer.concat([result.subarray(0, at), Buffer.from([random.int(0, 255)]), result.subarray(at)]);
  }
  return result;
}
