import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HpackDecoder } from '../../../../core/http2/hpack-decoder.ts';
import {
  HpackConstant,
  HpackEncoder,
  HpackName,
  hpackBytesMax,
  StaticIndex,
} from '../../../../core/http2/hpack-encoder.ts';
import { PseudoId } from '../../../../core/http2/pseudo-ids.ts';
import { decode, encode, literal, memory, OUTPUT_AT } from './hpack-fixture.ts';

function hexOf(end: number): string {
  return Buffer.from(memory.subarray(OUTPUT_AT, end)).toString('hex');
}

/** How each block comes out: whole representations are told apart by their first byte. */
function tableCountAfter(lines: readonly string[], blocks: number): number {
  const encoder = new HpackEncoder();
  for (let block = 0; block < blocks; block++) encode(encoder, lines);
  return encoder.tableCount;
}

test('fields of the static table take one byte', () => {
  const encoder = new HpackEncoder();
  const lines = [':method: GET', ':scheme: https', ':path: /', 'accept-encoding: gzip, deflate'];
  assert.equal(encode(encoder, lines), '82878490');
  assert.equal(hexOf(encoder.putStatus(memory, OUTPUT_AT, 404)), '8d');
  assert.equal(hexOf(encoder.putIndexed(memory, OUTPUT_AT, StaticIndex.METHOD_POST)), '83');
  assert.equal(encoder.ownedBytes, 0);
});

test('encodes the requests of RFC 7541 C.4 as it does, where the policies agree', () => {
  const encoder = new HpackEncoder();
  const lines = [':method: GET', ':scheme: http', ':path: /', ':authority: www.example.com'];
  assert.equal(encode(encoder, lines), '828684418cf1e3c2e5f23a6ba0ab90f4ff');
  assert.equal(encode(encoder, lines), '828684be');
});

test('a string goes plain when it is short, or Huffman coding would not make it shorter', () => {
  const encoder = new HpackEncoder();
  // Six-bit codes.
  assert.equal(encode(encoder, [':path: -------']), '04072d2d2d2d2d2d2d');
  assert.equal(encode(encoder, [':path: --------']), '0486596596596596');
  assert.equal(encode(encoder, [`:path: ${'\\'.repeat(8)}`]), `0408${'5c'.repeat(8)}`);
});

test('values seen for the second time enter the table, unique ones never do', () => {
  const encoder = new HpackEncoder();
  const sizes = [1, 2, 3].map(() => encode(encoder, ['x-tenant: blue', 'user-agent: curl/8.0']).length / 2);
  assert.equal(encoder.tableCount, 2);
  assert.equal(sizes[2], 2);
  for (let i = 0; i < 50; i++) encode(encoder, [`x-trace: ${i}`]);
  assert.equal(encoder.tableCount, 2);
});

test('paths, dates, lengths, ids and addresses never enter the table', () => {
  const lines = [
    ':path: /a/b',
    'date: Mon, 01 Jun 2026 10:00:00 GMT',
    'content-length: 12',
    'x-request-id: 1f',
    'x-forwarded-for: 10.0.0.1',
    'set-cookie: session=0123456789abcdef',
    'cookie: session=0123456789abcdef',
    'etag: "1"',
    'location: /b',
  ];
  assert.equal(tableCountAfter(lines, 4), 0);
});

test('what connections share enters the table at once', () => {
  assert.equal(
    tableCountAfter([':authority: a.example', 'te: trailers', 'server: portcullis', 'content-type: a/b'], 1),
    4,
  );
});

test('secrets are never-indexed: credentials, short cookies and what arrived so', () => {
  const decoder = new HpackDecoder(4096, 65_536);
  const encoder = new HpackEncoder();
  const lines = [
    '!:method: GET',
    'authorization: Basic eDp5',
    'proxy-authorization: x',
    'cookie: a=1',
    'set-cookie: a=1',
    'cookie: theme=dark; session=0123456789',
    '!x-key: s',
    'x-key: s',
  ];
  for (let block = 0; block < 3; block++) {
    const got = decode(decoder, encode(encoder, lines));
    assert.deepEqual(got.neverIndexed, [0, 1, 2, 3, 4, 6]);
    assert.deepEqual(
      got.fields,
      lines.map((line) => line.replace('!', '')),
    );
  }
});

test('a name in the dynamic table serves fields with other values', () => {
  const encoder = new HpackEncoder();
  for (let block = 0; block < 2; block++) encode(encoder, ['x-name-of-some-length: 1']);
  assert.equal(encode(encoder, ['x-name-of-some-length: 2']), '0f2f0132');
});

test('prepared names and constants are coded like the same field from memory', () => {
  const [prepared, plain] = [new HpackEncoder(), new HpackEncoder()];
  const status = new HpackConstant('grpc-status', '0');
  const type = new HpackConstant('content-type', 'application/grpc');
  const message = new HpackName('grpc-message');
  for (let block = 0; block < 3; block++) {
    let at = prepared.begin(memory, OUTPUT_AT);
    at = prepared.putStatus(memory, at, 302);
    at = prepared.putConstant(memory, at, status);
    at = prepared.putConstant(memory, at, type);
    memory.set(Buffer.from('ok!'), 7);
    at = prepared.putNamed(memory, at, message, 7, 3, false);
    const hex = hexOf(at);
    assert.equal(
      hex,
      encode(plain, [':status: 302', 'grpc-status: 0', 'content-type: application/grpc', 'grpc-message: ok!']),
    );
  }
  memory.set(Buffer.from('ok'), 7);
  assert.equal(hexOf(prepared.putNamed(memory, OUTPUT_AT, new HpackName('x'), 7, 2, true)), literal(0x10, 'x', 'ok'));
});

test('a changed table limit is told at the start of the next block, the smallest first', () => {
  const encoder = new HpackEncoder();
  encode(encoder, [':authority: a.example']);
  encoder.setTableSizeMax(0);
  encoder.setTableSizeMax(1000);
  assert.equal(encode(encoder, [':method: GET']), '203fc90782');
  assert.equal(encoder.tableCount, 0);
  assert.equal(encode(encoder, [':method: GET']), '82');
  encoder.setTableSizeMax(1000);
  assert.equal(encode(encoder, [':method: GET']), '82');
});

test('our table has at most 4096 bytes, and no update says otherwise', () => {
  const encoder = new HpackEncoder();
  encoder.setTableSizeMax(65_536);
  assert.equal(encode(encoder, [':method: GET']), '82');
  for (let block = 0; block < 2; block++) {
    encode(
      encoder,
      Array.from({ length: 90 }, (_, i) => `x-${i % 30}: ${'v'.repeat(i)}`),
    );
  }
  for (let i = 0; i < 200; i++) encode(encoder, [`:authority: host-${i}.example`]);
  assert.ok(encoder.tableBytes <= 4096 && encoder.tableBytes > 4000, `${encoder.tableBytes}`);
  assert.ok(encoder.ownedBytes < 12_288, `${encoder.ownedBytes}`);
});

test('without a table everything still arrives', () => {
  const encoder = new HpackEncoder();
  encoder.setTableSizeMax(0);
  const decoder = new HpackDecoder(4096, 65_536);
  decoder.setSizeLimit(0);
  const lines = [
    ':method: PUT',
    ':path: /index.html',
    ':authority: a.example',
    'accept-encoding: gzip, deflate',
    'x-a: b',
  ];
  for (let block = 0; block < 3; block++) assert.deepEqual(decode(decoder, encode(encoder, lines)).fields, lines);
  assert.equal(encoder.ownedBytes, 0);
});

test('an entry that would push out most of the table stays out', () => {
  const encoder = new HpackEncoder();
  encoder.setTableSizeMax(200);
  for (let block = 0; block < 3; block++) encode(encoder, ['te: trailers', `x-long: ${'v'.repeat(100)}`]);
  assert.equal(encoder.tableCount, 1);
});

test('fields whose hashes collide are told apart', () => {
  // Equal ends and middle, which is all that the hash of a long value sees.
  const encoder = new HpackEncoder();
  const decoder = new HpackDecoder(4096, 65_536);
  const values = Array.from(
    { length: 12 },
    (_, i) => `${'a'.repeat(20)}${String(i).padStart(2, '0')}${'b'.repeat(60)}`,
  );
  for (let block = 0; block < 3; block++) {
    const lines = values.map((value) => `x-v: ${value}`);
    const bytes = encode(encoder, lines);
    assert.deepEqual(decode(decoder, bytes).fields, lines);
    if (block === 2) assert.equal(bytes.length / 2, values.length);
  }
});

test('strings of every length arrive, and the block stays within its bound', () => {
  const encoder = new HpackEncoder();
  const decoder = new HpackDecoder(4096, 65_536);
  for (const length of [0, 1, 3, 4, 7, 8, 125, 126, 127, 128, 254, 255, 256, 511, 513, 2048, 2049, 16_000]) {
    for (const byte of ['a', '~', '\xff']) {
      const lines = [`:path: ${byte.repeat(length)}`, `x-${'n'.repeat(Math.min(length, 300))}: ${byte}`];
      const block = encode(encoder, lines);
      assert.deepEqual(decode(decoder, block).fields, lines);
      const textBytes = lines.join('').length - 4;
      assert.ok(block.length / 2 <= hpackBytesMax(2, textBytes), `${block.length / 2}`);
    }
  }
});

test('a field with an id is coded by its id, whatever the name offset', () => {
  const encoder = new HpackEncoder(0);
  memory.set(Buffer.from('/x'), 3);
  const at = encoder.begin(memory, OUTPUT_AT);
  assert.equal(hexOf(encoder.putField(memory, at, 0, 0, 3, 2, PseudoId.PATH, false)), '2004022f78');
});
