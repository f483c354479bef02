import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { HeaderId } from '../../../../core/http1/header-ids.ts';
import { HpackDecoder, OUTPUT_SPARE_BYTES } from '../../../../core/http2/hpack-decoder.ts';
import { HpackError, hpackErrorSentence } from '../../../../core/http2/hpack-errors.ts';
import { PSEUDO_FIRST, PseudoId } from '../../../../core/http2/pseudo-ids.ts';
import { decode, literal, memory, OUTPUT_AT } from './hpack-fixture.ts';

const WITH_INDEXING = 0x40;
const WITHOUT_INDEXING = 0x00;
const LIST_BYTES_MAX = 65_536;

function newDecoder(tableBytesLimit = 4096, listBytesMax = LIST_BYTES_MAX): HpackDecoder {
  return new HpackDecoder(tableBytesLimit, listBytesMax);
}

interface Vector {
  name: string;
  tableBytesLimit?: number;
  blocks: { block: string; fields: string[]; tableCount: number; tableBytes: number; neverIndexed?: number[] }[];
}

const vectors: Vector[] = JSON.parse(
  readFileSync(new URL('../../../data/hpack/rfc7541-appendix-c.json', import.meta.url), 'utf8'),
);

for (const vector of vectors) {
  test(`decodes RFC 7541 ${vector.name}`, () => {
    const decoder = newDecoder();
    for (const [index, expected] of vector.blocks.entries()) {
      let block = expected.block;
      if (index === 0 && vector.tableBytesLimit === 256) {
        // The examples assume a table of 256 bytes: announced, and confirmed by a size update.
        decoder.setSizeLimit(256);
        block = `3fe101${block}`;
      }
      const got = decode(decoder, block);
      assert.equal(got.error, '');
      assert.deepEqual(got.fields, expected.fields);
      assert.deepEqual(got.neverIndexed, expected.neverIndexed ?? []);
      assert.deepEqual([decoder.tableCount, decoder.tableBytes], [expected.tableCount, expected.tableBytes]);
    }
  });
}

test('lines lie one after another, and the table points into them', () => {
  const got = decode(
    newDecoder(),
    `8286 ${literal(WITHOUT_INDEXING, 'x', '')} ${literal(WITHOUT_INDEXING, 'te', 'trailers')}`,
  );
  assert.equal(got.text, ':method: GET\r\n:scheme: http\r\nx: \r\nte: trailers\r\n');
  assert.deepEqual(got.ids, [PseudoId.METHOD, PseudoId.SCHEME, HeaderId.OTHER, HeaderId.TE]);
});

test('known fields are found by static name, dynamic entry and literal name', () => {
  const decoder = newDecoder();
  const got = decode(
    decoder,
    `7a 01 61 ${literal(WITH_INDEXING, 'user-agent', 'b')} be 0f2f 01 63 ${literal(0, 'connection', 'd')}`,
  );
  assert.deepEqual(got.fields, ['user-agent: a', 'user-agent: b', 'user-agent: b', 'user-agent: c', 'connection: d']);
  const ua = HeaderId.USER_AGENT;
  assert.deepEqual(got.ids, [ua, ua, ua, ua, HeaderId.CONNECTION]);
  assert.equal(decoder.seen, (1 << ua) | (1 << HeaderId.CONNECTION));
  assert.equal(decoder.repeated, 1 << ua);
});

test('pseudo-header fields are counted and have bits of their own', () => {
  const decoder = newDecoder();
  const got = decode(decoder, `8286 ${literal(0, ':protocol', 'websocket')} 0f13 02 6869`);
  assert.equal(got.malformed, '');
  assert.equal(decoder.pseudoCount, 3);
  const bit = (id: number): number => 1 << (id - PSEUDO_FIRST);
  assert.equal(decoder.pseudoSeen, bit(PseudoId.METHOD) | bit(PseudoId.SCHEME) | bit(PseudoId.PROTOCOL));
  assert.equal(decoder.seen, 0);
});

test('what one block says does not remain for the next', () => {
  const decoder = newDecoder();
  decode(decoder, `8282 ${literal(0x10, 'authorization', 'x')} ${literal(0x10, 'te', 'y')} ${literal(0, 'te', 'z')}`);
  assert.notEqual(decoder.malformed, 0);
  assert.equal(decoder.sensitiveCount, 2);
  const got = decode(decoder, '82 86 84');
  assert.deepEqual([got.malformed, got.neverIndexed], ['', []]);
  assert.deepEqual([decoder.seen, decoder.repeated, decoder.sensitiveCount], [0, 0, 0]);
});

const compressionErrors: readonly (readonly [string, string, string])[] = [
  ['INDEX_INVALID', 'index 0', '80'],
  ['INDEX_INVALID', 'an index behind an empty dynamic table', 'be'],
  ['INDEX_INVALID', 'a name index behind the table', '7f00 0161'],
  ['INDEX_INVALID', 'the largest index', 'ff ffffff7f'],
  ['TRUNCATED', 'an end within the index', 'ff'],
  ['TRUNCATED', 'an end within a longer index', 'ff80'],
  ['TRUNCATED', 'an end before the value', '44'],
  ['TRUNCATED', 'an end within the value length', '447f'],
  ['TRUNCATED', 'an end within the value', '4403 6162'],
  ['TRUNCATED', 'an end within the name', '4003 6162'],
  ['TRUNCATED', 'an end within a size update', '3f'],
  ['INTEGER_OVERFLOW', 'an index of five continuation bytes', 'ff 8080808001'],
  ['INTEGER_OVERFLOW', 'a string length of 2^32', '44ff 81ffffff0f'],
  ['INTEGER_OVERFLOW', 'endless zeros', '447f 80808080808080808000'],
  ['HUFFMAN_EOS', 'EOS in a value', '4484 ffffffff'],
  ['HUFFMAN_EOS', 'EOS after symbols', '4485 1fffffffff'],
  ['HUFFMAN_PADDING', 'eight bits of padding', '4482 1fff'],
  ['HUFFMAN_PADDING', 'only padding', '4481 ff'],
  ['HUFFMAN_PADDING', 'padding of zeros', '4481 18'],
  ['HUFFMAN_PADDING', 'a code cut short', '4481 fe'],
  ['SIZE_UPDATE_TOO_LARGE', 'a size update above the limit', '3fe21f'],
  ['SIZE_UPDATE_MISPLACED', 'a size update after a field', '8220'],
];
for (const [error, what, block] of compressionErrors) {
  test(`${error}: ${what}`, () => {
    assert.equal(decode(newDecoder(), block).error, error);
    // The same when the output is full, and the block is only followed for the table's sake.
    const fieldFirst = `82 ${block}`;
    const expected = block.startsWith('3fe2') ? 'SIZE_UPDATE_MISPLACED' : error;
    const full = decode(newDecoder(), fieldFirst, OUTPUT_SPARE_BYTES);
    assert.deepEqual([full.error, full.tooLarge], [expected, true]);
  });
}

test('an integer of four continuation bytes is read', () => {
  // A value of 127 + 129 bytes, its length written with more bytes than needed.
  const got = decode(newDecoder(), `04 7f 81818000 ${'61'.repeat(256)}`);
  assert.equal(got.error, '');
  assert.equal(got.fields[0], `:path: ${'a'.repeat(256)}`);
});

test('every code of the Huffman table decodes to its byte, alone and between others', () => {
  // 'a' around each; the bits are those of RFC 7541 Appendix B for symbols at both ends of each length.
  const codes: readonly (readonly [number, string])[] = [
    [0x30, '00000'],
    [0x74, '01001'],
    [0x20, '010100'],
    [0x75, '101101'],
    [0x3a, '1011100'],
    [0x7a, '1111011'],
    [0x26, '11111000'],
    [0x5a, '11111101'],
    [0x21, '1111111000'],
    [0x3f, '1111111100'],
    [0x27, '11111111010'],
    [0x7c, '11111111100'],
    [0x23, '111111111010'],
    [0x3e, '111111111011'],
    [0x00, '1111111111000'],
    [0x7e, '1111111111101'],
    [0x5e, '11111111111100'],
    [0x7d, '11111111111101'],
    [0x3c, '111111111111100'],
    [0x7b, '111111111111110'],
    [0x5c, '1111111111111110000'],
    [0xd0, '1111111111111110010'],
    [0x80, '11111111111111100110'],
    [0x01, '11111111111111111011000'],
    [0x09, '111111111111111111101010'],
    [0xff, '11111111111111111111101110'],
    [0x02, '1111111111111111111111100010'],
    [0x0a, '111111111111111111111111111100'],
    [0x16, '111111111111111111111111111110'],
  ];
  for (const [byte, code] of codes) {
    for (const [before, after] of [
      ['', ''],
      ['00011', '00011'],
      ['00011'.repeat(9), '00011'.repeat(9)],
    ]) {
      const bits = before + code + after;
      const padded = bits.padEnd(Math.ceil(bits.length / 8) * 8, '1');
      const bytes = padded.match(/.{8}/g)!.map((eight) => Number.parseInt(eight, 2));
      const block = Buffer.from([0x04, 0x80 | bytes.length, ...bytes]);
      const decoder = newDecoder();
      decode(decoder, block);
      // Also bytes that no field may hold: read from where they were written.
      const as = 'a'.repeat(before.length / 5);
      const length = as.length * 2 + 1;
      const text = Buffer.from(memory.subarray(OUTPUT_AT + 7, OUTPUT_AT + 7 + length)).toString('latin1');
      assert.equal(text, `${as}${String.fromCharCode(byte)}${as}`, `byte ${byte}`);
    }
  }
});

const malformed: readonly (readonly [string, string, string])[] = [
  ['NAME_EMPTY', '', 'x'],
  ['NAME_UPPER_CASE', 'Te', 'x'],
  ['NAME_INVALID', 'a b', 'x'],
  ['NAME_INVALID', 'a:b', 'x'],
  ['NAME_INVALID', 'a\r\nb', 'x'],
  ['NAME_INVALID', 'a\x80', 'x'],
  ['NAME_INVALID', 'a\0', 'x'],
  ['VALUE_INVALID', 'a', 'x\0y'],
  ['VALUE_INVALID', 'a', 'x\r\nhost: evil'],
  ['VALUE_INVALID', 'a', '\n'],
  ['VALUE_INVALID', 'a', 'long enough for words\x7f'],
  ['VALUE_INVALID', 'a', 'long enough \x1f for words'],
  ['VALUE_WHITE_SPACE', 'a', ' x'],
  ['VALUE_WHITE_SPACE', 'a', 'x\t'],
  ['VALUE_WHITE_SPACE', 'a', ' '],
  ['PSEUDO_UNKNOWN', ':', 'x'],
  ['PSEUDO_UNKNOWN', ':host', 'x'],
  ['PSEUDO_UNKNOWN', ':methods', 'x'],
];
for (const [rule, name, value] of malformed) {
  test(`${rule}: ${JSON.stringify(name)} with ${JSON.stringify(value)} is left out, and again when it is repeated`, () => {
    const decoder = newDecoder();
    const first = decode(decoder, `82 ${literal(WITH_INDEXING, name, value)} ${literal(0, 'te', 'ok')}`);
    assert.deepEqual([first.error, first.malformed], ['', rule]);
    assert.equal(first.text, ':method: GET\r\nte: ok\r\n');
    assert.equal(decoder.tableCount, 1);
    const again = decode(decoder, '82be');
    assert.deepEqual([again.malformed, again.text], [rule, ':method: GET\r\n']);
    // As the name of another field, a wrong name stays wrong and a wrong value is gone.
    const named = decode(decoder, '7e 02 6f6b');
    assert.equal(named.malformed, rule.startsWith('VALUE') ? '' : rule);
  });
}

test('tabs and bytes from 0x80 may stand within a value', () => {
  const value = 'a\tb \x80\xff\xfe\xf0 and on \t c';
  const got = decode(newDecoder(), literal(0, 'a', value));
  assert.deepEqual([got.malformed, got.fields], ['', [`a: ${value}`]]);
});

test('PSEUDO_AFTER_REGULAR and PSEUDO_DUPLICATE', () => {
  const late = decode(newDecoder(), `82 ${literal(0, 'te', 'x')} 84`);
  assert.deepEqual([late.malformed, late.fields], ['PSEUDO_AFTER_REGULAR', [':method: GET', 'te: x']]);
  const twice = decode(newDecoder(), '82 84 85');
  assert.deepEqual([twice.malformed, twice.fields], ['PSEUDO_DUPLICATE', [':method: GET', ':path: /']]);
});

test('the list size counts name, value and 32 bytes per field, up to the limit itself', () => {
  // :method GET is 42 bytes, :path / is 38.
  assert.equal(decode(newDecoder(4096, 80), '8284').tooLarge, false);
  const over = decode(newDecoder(4096, 79), '8284');
  assert.deepEqual([over.error, over.tooLarge, over.fields], ['', true, [':method: GET']]);
});

test('the output range and the number of fields are limits too', () => {
  const lines = ':method: GET\r\n:path: /\r\n';
  assert.equal(decode(newDecoder(), '8284', lines.length + OUTPUT_SPARE_BYTES).tooLarge, false);
  assert.equal(decode(newDecoder(), '8284', lines.length + OUTPUT_SPARE_BYTES - 1).tooLarge, true);
  assert.equal(decode(newDecoder(), '8284', 1000, 2).tooLarge, false);
  assert.deepEqual(decode(newDecoder(), '8284', 1000, 1).fields, [':method: GET']);
  assert.equal(decode(newDecoder(), '82'.repeat(1) + literal(0, 'a', 'b').repeat(300)).fields.length, 256);
});

test('a Huffman string is measured by what it decodes to', () => {
  // Ten bytes are sixteen symbols of five bits.
  const block = `04 8a ${'00'.repeat(10)}`;
  const lineBytes = `:path: ${'0'.repeat(16)}\r\n`.length;
  assert.equal(decode(newDecoder(), block, lineBytes + OUTPUT_SPARE_BYTES).text.length, lineBytes);
  assert.equal(decode(newDecoder(), block, lineBytes + OUTPUT_SPARE_BYTES - 1).tooLarge, true);
  // 24-bit symbols: the bound by length is far above what they need.
  const long = `04 8c ${'ffffea'.repeat(4)}`;
  const got = decode(newDecoder(), long, ':path: tttt\r\n'.length + OUTPUT_SPARE_BYTES);
  assert.deepEqual([got.error, got.tooLarge, got.malformed], ['', false, 'VALUE_WHITE_SPACE']);
});

test('nothing is written behind the output range, whatever a block holds', () => {
  const block = `${literal(WITH_INDEXING, 'name', 'v'.repeat(90))} be be 04 8a ${'1c'.repeat(10)} ${literal(0, 'n', 'w'.repeat(70))}`;
  for (let room = OUTPUT_SPARE_BYTES; room < 420; room++) {
    decode(newDecoder(), block, room);
    assert.equal(Buffer.compare(memory.subarray(OUTPUT_AT + room, OUTPUT_AT + 500), Buffer.alloc(500 - room, 0x2a)), 0);
  }
});

test('the table stays in step through a block that is too large', () => {
  const decoder = newDecoder(4096, 200);
  const block = [
    literal(WITH_INDEXING, 'x-first', '1'),
    literal(0, 'x-large', 'a'.repeat(300)),
    literal(WITH_INDEXING, 'server', 'late'),
    '7f00 02 6f6b', // Name of entry 63, a new value.
    `40 83 ${Buffer.from([0x1c, 0x64, 0x3f]).toString('hex')} 01 62`,
  ].join('');
  const large = decode(decoder, block);
  assert.deepEqual([large.error, large.tooLarge, large.fields], ['', true, ['x-first: 1']]);
  assert.equal(decoder.tableCount, 4);
  const next = decode(decoder, 'c1 c0 bf');
  assert.deepEqual(next.fields, ['x-first: 1', 'server: late', 'x-first: ok']);
  // The id of a name that was only followed is found when it is used.
  assert.deepEqual(next.ids, [HeaderId.OTHER, HeaderId.SERVER, HeaderId.OTHER]);
  const asName = decode(decoder, '0f31 01 7a');
  assert.deepEqual([asName.fields, asName.ids], [['server: z'], [HeaderId.SERVER]]);
});

test('TABLE_FLOODED: a large block cannot make the decoder copy a large name for every few bytes', () => {
  const decoder = newDecoder(4096, 10_000);
  const name = literal(WITH_INDEXING, 'n'.repeat(3900), 'v');
  assert.equal(decode(decoder, name + '7e 00'.repeat(8000)).error, 'TABLE_FLOODED');
  // Common names repeated are no flood.
  const usual = newDecoder(4096, 1000);
  assert.equal(decode(usual, literal(WITH_INDEXING, 'x-request-identifier', 'v') + '7e 00'.repeat(8000)).error, '');
});

test('an entry larger than the table empties it and is still delivered', () => {
  const decoder = newDecoder();
  decode(decoder, literal(WITH_INDEXING, 'a', 'b'));
  const got = decode(
    decoder,
    `3f21 ${literal(WITH_INDEXING, 'a', 'b')} ${literal(WITH_INDEXING, 'name', 'v'.repeat(30))}`,
  );
  assert.deepEqual([got.error, got.fields.length, decoder.tableCount, decoder.tableBytes], ['', 2, 0, 0]);
});

test('a name may come from the entry that its field pushes out', () => {
  const decoder = newDecoder();
  // 96 bytes: the first entry, and nothing beside it.
  decode(decoder, `3f41 ${literal(WITH_INDEXING, 'x-name', 'v'.repeat(40))}`);
  const got = decode(decoder, `7e 28 ${'77'.repeat(40)}`);
  assert.deepEqual(got.fields, [`x-name: ${'w'.repeat(40)}`]);
  assert.deepEqual(decode(decoder, 'be').fields, got.fields);
});

test('a lowered limit has to be confirmed at the start of the next block', () => {
  const missing = newDecoder();
  missing.setSizeLimit(100);
  assert.equal(decode(missing, '82').error, 'SIZE_UPDATE_MISSING');
  const tooHigh = newDecoder();
  tooHigh.setSizeLimit(0);
  tooHigh.setSizeLimit(4096);
  assert.equal(decode(tooHigh, '3fe11f 82').error, 'SIZE_UPDATE_TOO_LARGE');
  const both = newDecoder();
  decode(both, literal(WITH_INDEXING, 'a', 'b'));
  both.setSizeLimit(0);
  both.setSizeLimit(4096);
  assert.equal(decode(both, '20 3fe11f 82').error, '');
  assert.equal(both.tableCount, 0);
  assert.equal(decode(both, '82').error, '');
});

test('a raised limit allows a larger table, but not before it is set', () => {
  const decoder = newDecoder(8192);
  decoder.setSizeLimit(8192);
  assert.equal(decode(decoder, '3fe13f 82').error, '');
  assert.equal(decode(newDecoder(8192), '3fe13f 82').error, 'SIZE_UPDATE_TOO_LARGE');
  assert.throws(() => decoder.setSizeLimit(8193), RangeError);
  assert.throws(() => newDecoder(65_536), RangeError);
});

test('a decoder owns no buffers until the peer inserts, and never more than its table needs', () => {
  const decoder = newDecoder();
  decode(decoder, '828684');
  assert.equal(decoder.ownedBytes, 0);
  decode(decoder, literal(WITH_INDEXING, 'a', 'b'));
  assert.ok(decoder.ownedBytes < 1024, `${decoder.ownedBytes} bytes for one entry`);
  for (let i = 0; i < 1000; i++) decode(decoder, literal(WITH_INDEXING, `n${i}`, 'v'.repeat(i % 90)));
  assert.equal(decode(decoder, 'be').fields[0], `n999: ${'v'.repeat(999 % 90)}`);
  assert.ok(decoder.ownedBytes < 8192, `${decoder.ownedBytes} bytes for a full table`);
});

test('each error has a sentence', () => {
  const sentences = Object.values(HpackError).map(hpackErrorSentence);
  assert.equal(new Set(sentences).size, sentences.length);
  for (const sentence of sentences) assert.match(sentence, /^(An?|The) .*\.$/);
  assert.equal(hpackErrorSentence(99), 'Unknown HPACK error 99.');
});
