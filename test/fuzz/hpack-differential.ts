// Differential fuzzing of HPACK: our decoder and encoder against nghttp2's, and against each other.
//
//   node test/fuzz/hpack-differential.ts [seed] [connections]
//
// Each case is one connection with several header blocks and changes of the table size:
//   toOurs     nghttp2 encodes, we decode: the same fields, and tables of the same size
//   fromOurs   we encode, nghttp2 and our decoder decode: the same fields, never-indexed marks and tables
//   hostile    random and damaged blocks: both decoders accept or refuse, and see the same; which fields are
//              malformed is decided a second time here; a decoder of ours with tight limits sees a
//              start of the same fields and has the same table after every block

import { pathToFileURL } from 'node:url';
import { knownHeaderId } from '../../core/http1/header-hash.ts';
import { HeaderTable } from '../../core/http1/header-table.ts';
import { HpackDecoder, isSensitive, OUTPUT_SPARE_BYTES } from '../../core/http2/hpack-decoder.ts';
import { HpackEncoder, hpackBytesMax } from '../../core/http2/hpack-encoder.ts';
import { HpackError, Malformed } from '../../core/http2/hpack-errors.ts';
import { idOfName } from '../../core/http2/hpack-static.ts';
import { PSEUDO_FIRST, pseudoNames } from '../../core/http2/pseudo-ids.ts';
import { Random } from '../sim/random.ts';
import { nameOf } from '../support/name-of.ts';
import { huffmanString, mutate, randomBlock, validFields } from './hpack-generate.ts';
import { Deflater, Inflater, type SeenField } from './hpack-nghttp2.ts';

const INPUT_AT = 64;
const INPUT_BYTES = 256 * 1024;
const OUTPUT_AT = INPUT_AT + INPUT_BYTES;
const OUTPUT_BYTES = 1024 * 1024;
const GUARD_BYTES = 16;
const GUARD = 0xa5;
const TABLE_LIMIT = 16_384;
/** What our encoder reads from lies here; it is rewritten for every list. */
const SOURCE_AT = OUTPUT_AT + OUTPUT_BYTES + 1024;

const memory = new Uint8Array(new ArrayBuffer(SOURCE_AT + 512 * 1024));
const headers = new HeaderTable();

/** What our decoder says about one block. */
interface Reading {
  error: number;
  fields: SeenField[];
  malformed: number;
  tooLarge: boolean;
}

/** Decodes with ours, and checks that table, text and properties agree with each other. */
function read(
  decoder: HpackDecoder,
  block: Uint8Array,
  random: Random,
  outBytesMax = OUTPUT_BYTES,
  countMax = 256,
): Reading {
  const at = INPUT_AT + random.int(0, 7);
  const outAt = OUTPUT_AT + random.int(0, 7);
  memory.set(block, at);
  const outEnd = outAt + Math.min(outBytesMax, OUTPUT_BYTES - 8);
  memory.fill(GUARD, outAt - GUARD_BYTES, outAt);
  memory.fill(GUARD, outEnd, outEnd + GUARD_BYTES);
  const error = decoder.decode(memory, at, block.length, outAt, outEnd - outAt, headers, countMax);
  for (let i = 1; i <= GUARD_BYTES; i++) {
    if (memory[outAt - i] !== GUARD || memory[outEnd + i - 1] !== GUARD) throw new Error('wrote outside its range');
  }
  if (Buffer.compare(memory.subarray(at, at + block.length), block) !== 0) throw new Error('changed its input');
  const fields: SeenField[] = [];
  let position = outAt;
  let seen = 0;
  let repeated = 0;
  let pseudoSeen = 0;
  let pseudoCount = 0;
  let sensitiveCount = 0;
  for (let field = 0; field < headers.count; field++) {
    const latin1 = (offset: number, length: number): string =>
      Buffer.from(memory.subarray(offset, offset + length)).toString('latin1');
    const name = latin1(headers.nameOffset(field), headers.nameLength(field));
    const value = latin1(headers.valueOffset(field), headers.valueLength(field));
    const line = `${name}: ${value}\r\n`;
    if (headers.nameOffset(field) !== position || latin1(position, line.length) !== line) throw new Error('not a line');
    position += line.length;
    const id = headers.id(field);
    if (id !== idOfName(name)) throw new Error(`${name} has id ${id}`);
    if (id >= PSEUDO_FIRST) {
      pseudoSeen |= 1 << (id - PSEUDO_FIRST);
      pseudoCount++;
    } else if (id > 0 && id < 32) {
      if (seen & (1 << id)) repeated |= 1 << id;
      seen |= 1 << id;
    }
    if (isSensitive(field)) sensitiveCount++;
    fields.push({ name, value, sensitive: isSensitive(field) });
  }
  const said = [
    decoder.outLength,
    decoder.seen,
    decoder.repeated,
    decoder.pseudoSeen,
    decoder.pseudoCount,
    decoder.sensitiveCount,
  ];
  const found = [position - outAt, seen, repeated, pseudoSeen, pseudoCount, sensitiveCount];
  if (said.join() !== found.join()) throw new Error(`properties ${said.join()} but the fields say ${found.join()}`);
  if (position > outEnd - OUTPUT_SPARE_BYTES + 4 && fields.length > 0) throw new Error('used the spare bytes');
  return { error: -error, fields, malformed: decoder.malformed, tooLarge: decoder.tooLarge };
}

/** Encodes with ours from bytes in memory. */
function write(encoder: HpackEncoder, fields: readonly SeenField[], random: Random): Buffer {
  let source = SOURCE_AT;
  const places: number[][] = [];
  let textBytes = 0;
  for (const { name, value } of fields) {
    source += random.int(0, 3);
    memory.set(Buffer.from(name + value, 'latin1'), source);
    const known = name.startsWith(':') ? idOfName(name) : knownHeaderId(memory, source, name.length);
    // Without its id a known field is to be encoded as well, if not always as briefly.
    places.push([source, name.length, source + name.length, value.length, random.chance(0.9) ? known : 0]);
    source += name.length + value.length;
    textBytes += name.length + value.length;
  }
  const start = OUTPUT_AT + random.int(0, 7);
  const bound = hpackBytesMax(fields.length, textBytes);
  memory.fill(GUARD, start + bound, start + bound + GUARD_BYTES);
  let at = encoder.begin(memory, start);
  fields.forEach((field, index) => {
    const [nameOffset, nameLength, valueOffset, valueLength, id] = places[index];
    at = encoder.putField(memory, at, nameOffset, nameLength, valueOffset, valueLength, id, field.sensitive);
  });
  for (let i = 0; i < GUARD_BYTES; i++) {
    if (memory[start + bound + i] !== GUARD) throw new Error('the encoder passed its bound');
  }
  return Buffer.from(memory.subarray(start, at));
}

function sameFields(ours: readonly SeenField[], theirs: readonly SeenField[]): boolean {
  return JSON.stringify(ours) === JSON.stringify(theirs);
}

/** Throws with both sides unless the fields are the same. */
function expectFields(what: string, ours: readonly SeenField[], theirs: readonly SeenField[]): void {
  if (sameFields(ours, theirs)) return;
  const at = ours.findIndex((field, index) => JSON.stringify(field) !== JSON.stringify(theirs[index]));
  const show = (list: readonly SeenField[]): string => `${list.length}: ${JSON.stringify(list[Math.max(0, at)])}`;
  throw new Error(`${what}: ours ${show(ours)}, theirs ${show(theirs)}`);
}

function expectTables(what: string, ours: { tableCount: number; tableBytes: number }, theirs: typeof ours): void {
  if (ours.tableCount === theirs.tableCount && ours.tableBytes === theirs.tableBytes) return;
  throw new Error(
    `${what}: our table has ${ours.tableCount} entries, ${ours.tableBytes} bytes; theirs ${theirs.tableCount}, ${theirs.tableBytes}`,
  );
}

function expectClean(what: string, reading: Reading): void {
  if (reading.error !== 0) throw new Error(`${what}: ${nameOf(HpackError, reading.error)}`);
  if (reading.malformed !== 0) throw new Error(`${what}: ${nameOf(Malformed, reading.malformed)}`);
  if (reading.tooLarge) throw new Error(`${what}: too large`);
}

function newDecoder(): HpackDecoder {
  return new HpackDecoder(TABLE_LIMIT, 10_000_000);
}

const tableSizes = [0, 0, 31, 32, 100, 500, 1000, 2000, 4095, 4096, 4097, 10_000, TABLE_LIMIT];

function toOurs(random: Random): void {
  const deflater = new Deflater(TABLE_LIMIT);
  const inflater = new Inflater();
  try {
    const decoder = newDecoder();
    const recent: SeenField[] = [];
    for (let block = random.int(1, 12); block > 0; block--) {
      for (let change = random.chance(0.2) ? random.int(1, 2) : 0; change > 0; change--) {
        const size = random.pick(tableSizes);
        decoder.setSizeLimit(size);
        deflater.resize(size);
        inflater.resize(size);
      }
      const bytes = deflater.encode(validFields(random, recent));
      const reading = read(decoder, bytes, random);
      expectClean('toOurs', reading);
      expectFields('toOurs', reading.fields, inflater.decode(bytes) ?? []);
      expectTables('toOurs', decoder, deflater);
    }
  } finally {
    deflater.close();
    inflater.close();
  }
}

function fromOurs(random: Random): void {
  const inflater = new Inflater();
  try {
    const decoder = newDecoder();
    const encoder = random.chance(0.8) ? new HpackEncoder() : new HpackEncoder(random.pick(tableSizes));
    const recent: SeenField[] = [];
    for (let block = random.int(1, 12); block > 0; block--) {
      for (let change = random.chance(0.2) ? random.int(1, 2) : 0; change > 0; change--) {
        const size = random.pick(tableSizes);
        decoder.setSizeLimit(size);
        inflater.resize(size);
        encoder.setTableSizeMax(size);
      }
      const fields = validFields(random, recent);
      const bytes = write(encoder, fields, random);
      const theirs = inflater.decode(bytes);
      if (theirs === null) throw new Error(`fromOurs: nghttp2 refuses ${bytes.toString('hex')}`);
      // What we make never-indexed of ourselves is more than what arrived so, never less.
      const expected = fields.map((field, index) => ({
        ...field,
        sensitive: field.sensitive || theirs[index]?.sensitive === true,
      }));
      expectFields('fromOurs', expected, theirs);
      expectTables('fromOurs', encoder, inflater);
      const reading = read(decoder, bytes, random);
      expectClean('fromOurs', reading);
      expectFields('fromOurs', reading.fields, theirs);
      expectTables('fromOurs', decoder, inflater);
    }
  } finally {
    inflater.close();
  }
}

/** Rules of RFC 9113 §8.2.1 and §8.3, said a second time. Returns the fields that keep them. */
function wellFormed(fields: readonly SeenField[]): SeenField[] {
  const kept: SeenField[] = [];
  let regular = false;
  const pseudo = new Set<string>();
  for (const field of fields) {
    if (!/^:?[a-z0-9!#$%&'*+.^_`|~-]+$/.test(field.name)) {
      if (!/^:$/.test(field.name)) continue;
    }
    if (/[^\t\x20-\x7e\x80-\xff]/.test(field.value) || /^[ \t]|[ \t]$/.test(field.value)) continue;
    if (field.name.startsWith(':')) {
      if (!pseudoNames.includes(field.name) || regular || pseudo.has(field.name)) continue;
      pseudo.add(field.name);
    } else regular = true;
    kept.push(field);
  }
  return kept;
}

function hostile(random: Random, report: FuzzReport): void {
  const inflater = new Inflater();
  const deflater = new Deflater();
  const encoder = new HpackEncoder();
  try {
    const decoder = newDecoder();
    const tight = newDecoder();
    const recent: SeenField[] = [];
    for (let block = random.int(1, 15); block > 0; block--) {
      if (random.chance(0.05)) {
        const size = random.pick(tableSizes.filter((bytes) => bytes <= 4096));
        for (const side of [decoder, tight]) side.setSizeLimit(size);
        inflater.resize(size);
        deflater.resize(size);
        encoder.setTableSizeMax(size);
      }
      const pieces = Array.from({ length: 4 }, () => huffmanString(random));
      const source = random.float();
      let bytes: Buffer;
      if (source < 0.6) bytes = randomBlock(random, inflater.tableCount, pieces);
      else if (source < 0.8) bytes = deflater.encode(validFields(random, recent));
      else bytes = write(encoder, validFields(random, recent), random);
      if (random.chance(0.07)) bytes = mutate(random, bytes);

      const reading = read(decoder, bytes, random);
      const theirs = inflater.decode(bytes);
      const limits = random.chance(0.5)
        ? { list: random.size(0, 4000), out: OUTPUT_BYTES, count: 256 }
        : { list: 10_000_000, out: random.size(OUTPUT_SPARE_BYTES, 2000), count: random.size(0, 60) };
      tight.listBytesMax = limits.list;
      const tightReading = read(tight, bytes, random, limits.out, limits.count);
      report.blocks++;

      const hex = bytes.toString('hex');
      if (tightReading.error !== reading.error && tightReading.error !== HpackError.TABLE_FLOODED) {
        throw new Error(
          `tight limits say ${nameOf(HpackError, tightReading.error)}, wide ones ${nameOf(HpackError, reading.error)}: ${hex}`,
        );
      }
      if (reading.error !== 0) {
        report.refused++;
        if (theirs === null) return;
        // We stop at a length that no sensible integer has; nghttp2 at the value.
        if (reading.error === HpackError.INTEGER_OVERFLOW) return;
        throw new Error(`ours ${nameOf(HpackError, reading.error)}, theirs fine: ${hex}`);
      }
      if (theirs === null) throw new Error(`ours fine, theirs not: ${hex}`);
      // Beyond its count our table is full: then the comparison is of the start.
      const expected = wellFormed(theirs);
      if (reading.tooLarge) expectFields('hostile', reading.fields, expected.slice(0, reading.fields.length));
      else {
        expectFields('hostile', reading.fields, expected);
        if ((reading.malformed !== 0) !== (expected.length !== theirs.length)) {
          throw new Error(
            `malformed ${nameOf(Malformed, reading.malformed)}, ${theirs.length - expected.length} left out: ${hex}`,
          );
        }
      }
      expectTables('hostile', decoder, inflater);
      if (tightReading.error === HpackError.TABLE_FLOODED) return;
      expectFields('tight', tightReading.fields, reading.fields.slice(0, tightReading.fields.length));
      const listBytes = theirs.reduce((sum, { name, value }) => sum + name.length + value.length + 32, 0);
      if (listBytes > limits.list && !tightReading.tooLarge) throw new Error('a list over the limit passed');
      if (!tightReading.tooLarge && tightReading.fields.length !== reading.fields.length)
        throw new Error('fields are missing');
      if (tightReading.tooLarge) report.tooLarge++;
      expectTables('tight', tight, decoder);
    }
  } finally {
    inflater.close();
    deflater.close();
  }
}

/** Outcome of a run. */
export interface FuzzReport {
  connections: number;
  blocks: number;
  refused: number;
  tooLarge: number;
  findings: string[];
}

/** Runs `connections` random connections. A finding names the seed of its own connection. */
export function fuzz(seed: number, connections: number): FuzzReport {
  const report: FuzzReport = { connections: 0, blocks: 0, refused: 0, tooLarge: 0, findings: [] };
  const seeds = new Random(seed);
  for (let i = 0; i < connections && report.findings.length < 10; i++) {
    const random = seeds.fork();
    report.connections++;
    const kind = i % 4;
    try {
      if (kind === 0) toOurs(random);
      else if (kind === 1) fromOurs(random);
      else hostile(random, report);
    } catch (error) {
      report.findings.push(`connection ${i}: ${(error as Error).stack}`);
    }
  }
  return report;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const seed = Number(process.argv[2] ?? Math.floor(Math.random() * 2 ** 32));
  const connections = Number(process.argv[3] ?? 4_000);
  console.log(`seed ${seed}, ${connections} connections`);
  const report = fuzz(seed, connections);
  console.log(report);
  process.exitCode = report.findings.length === 0 ? 0 : 1;
}
