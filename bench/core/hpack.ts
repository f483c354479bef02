// Micro-benchmark of HPACK: nanoseconds per header block, decoding and encoding.
//
//   scripts/node bench/core/hpack.ts
//
// "first" is the first block of a connection, which fills the tables; "repeated" is the same request again with
// another path, as most blocks of a connection are. Prints the best and the median of many short
// rounds; the best is the figure to compare, the median shows the noise. At the end: the bytes that a heap
// profile of the repeated blocks found allocated in core/, which are to be none.

import { Session } from 'node:inspector/promises';
import { HeaderTable } from '../../core/http1/header-table.ts';
import { HpackDecoder } from '../../core/http2/hpack-decoder.ts';
import { HpackEncoder } from '../../core/http2/hpack-encoder.ts';

const BROWSER: readonly (readonly [string, string])[] = [
  [':method', 'GET'],
  [':scheme', 'https'],
  [':authority', 'shop.example.com'],
  [':path', '/products/search?category=shoes&page=2'],
  ['sec-ch-ua', '"Chromium";v="126", "Not.A/Brand";v="24"'],
  ['sec-ch-ua-mobile', '?0'],
  ['sec-ch-ua-platform', '"Linux"'],
  ['upgrade-insecure-requests', '1'],
  ['user-agent', 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0'],
  ['accept', 'text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8'],
  ['sec-fetch-site', 'same-origin'],
  ['sec-fetch-mode', 'navigate'],
  ['referer', 'https://shop.example.com/'],
  ['accept-encoding', 'gzip, deflate, br'],
  ['accept-language', 'en-GB,en;q=0.5'],
  ['cookie', 'session=0123456789abcdef0123456789abcdef; theme=dark'],
];

const GRPC: readonly (readonly [string, string])[] = [
  [':method', 'POST'],
  [':scheme', 'http'],
  [':path', '/helloworld.Greeter/SayHello'],
  [':authority', 'greeter.internal:50051'],
  ['te', 'trailers'],
  ['content-type', 'application/grpc'],
  ['user-agent', 'grpc-go/1.64.0'],
  ['grpc-timeout', '999m'],
];

const RESPONSE: readonly (readonly [string, string])[] = [
  [':status', '200'],
  ['server', 'portcullis'],
  ['date', 'Mon, 01 Jun 2026 10:00:00 GMT'],
  ['content-type', 'application/json'],
  ['content-length', '128'],
  ['cache-control', 'max-age=60'],
  ['etag', '"5f3c1a2b-80"'],
];

const ROUNDS = 100;
const BLOCKS_PER_ROUND = 2_000;
const SOURCE_AT = 0;
const INPUT_AT = 8192;
const INPUT_BYTES = 4096;
const OUTPUT_AT = 32_768;
const OUTPUT_BYTES = 16_384;

const memory = new Uint8Array(new ArrayBuffer(65_536));
const headers = new HeaderTable();

/** Puts the fields' lines at SOURCE_AT and their positions, with ids, into `table`, by decoding a block of them. */
function place(fields: readonly (readonly [string, string])[], table: HeaderTable): void {
  const block: number[] = [];
  for (const [name, value] of fields)
    block.push(0, name.length, ...Buffer.from(name), value.length, ...Buffer.from(value));
  memory.set(block, INPUT_AT);
  const result = new HpackDecoder(0, 65_536).decode(memory, INPUT_AT, block.length, SOURCE_AT, INPUT_AT, table, 100);
  if (result !== 0 || table.count !== fields.length) throw new Error('the fields are not valid');
}

/** Encodes the fields of `table` to `at` and returns the end. */
function encode(encoder: HpackEncoder, table: HeaderTable, at: number): number {
  const { words } = table;
  at = encoder.begin(memory, at);
  for (let word = 0; word < table.count * 5; word += 5) {
    at = encoder.putField(
      memory,
      at,
      words[word],
      words[word + 1],
      words[word + 2],
      words[word + 3],
      words[word + 4],
      false,
    );
  }
  return at;
}

/** Measures `run`, called with a number that counts up, and prints one line. */
function measure(name: string, bytes: number, run: (i: number) => number): void {
  const rounds: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.hrtime.bigint();
    for (let i = 0; i < BLOCKS_PER_ROUND; i++) if (run(i) < 0) throw new Error(`${name}: a block failed`);
    rounds.push(Number(process.hrtime.bigint() - start) / BLOCKS_PER_ROUND);
  }
  rounds.sort((a, b) => a - b);
  const best = rounds[0].toFixed(0);
  const median = rounds[ROUNDS >> 1].toFixed(0);
  console.log(`${name}: ${bytes} bytes, best ${best} ns, median ${median} ns`);
}

/** Repeated blocks, kept for the heap profile. */
const repeated: (() => number)[] = [];

for (const [kind, fields] of [
  ['browser request', BROWSER],
  ['gRPC request', GRPC],
  ['response', RESPONSE],
] as const) {
  const table = new HeaderTable();
  place(fields, table);

  // Blocks of a connection whose tables are full of what repeats. The third is like all that follow it.
  const encoder = new HpackEncoder();
  const starts: number[] = [];
  const ends: number[] = [];
  for (let block = 0; block < 3; block++) {
    starts.push(INPUT_AT + block * INPUT_BYTES);
    ends.push(encode(encoder, table, starts[block]));
  }
  const decode = (decoder: HpackDecoder, block: number): number =>
    decoder.decode(memory, starts[block], ends[block] - starts[block], OUTPUT_AT, OUTPUT_BYTES, headers, 100);

  // New coders for each block would measure their allocation, so the table is emptied by size updates in between.
  const firstEncoder = new HpackEncoder();
  measure(`${kind}, encode first`, ends[0] - starts[0], () => {
    firstEncoder.setTableSizeMax(0);
    firstEncoder.setTableSizeMax(4096);
    return encode(firstEncoder, table, OUTPUT_AT) - OUTPUT_AT;
  });
  const encodeRepeated = (): number => encode(encoder, table, OUTPUT_AT) - OUTPUT_AT;
  measure(`${kind}, encode repeated`, ends[2] - starts[2], encodeRepeated);

  // The second block of a connection inserts most: what was seen twice.
  const firstDecoder = new HpackDecoder(4096, 65_536);
  const emptied = INPUT_AT + 3 * INPUT_BYTES;
  memory.set([0x20, 0x3f, 0xe1, 0x1f], emptied);
  memory.copyWithin(emptied + 4, starts[0], ends[0]);
  const emptiedLength = ends[0] - starts[0] + 4;
  measure(`${kind}, decode first`, ends[0] - starts[0], () =>
    firstDecoder.decode(memory, emptied, emptiedLength, OUTPUT_AT, OUTPUT_BYTES, headers, 100),
  );
  const decoder = new HpackDecoder(4096, 65_536);
  decode(decoder, 0);
  decode(decoder, 1);
  const decodeRepeated = (): number => decode(decoder, 2);
  measure(`${kind}, decode repeated`, ends[2] - starts[2], decodeRepeated);
  repeated.push(encodeRepeated, decodeRepeated);
  console.log(
    `${kind}: decoder owns ${decoder.ownedBytes} bytes of tables, encoder ${encoder.ownedBytes}; ${headers.count} fields`,
  );
}

const session = new Session();
session.connect();
await session.post('HeapProfiler.enable');
await session.post('HeapProfiler.startSampling', {
  samplingInterval: 512,
  includeObjectsCollectedByMajorGC: true,
  includeObjectsCollectedByMinorGC: true,
});
for (const run of repeated) for (let i = 0; i < 200_000; i++) run();
const { profile } = await session.post('HeapProfiler.stopSampling');
session.disconnect();
let coreBytes = 0;
const nodes = [profile.head];
for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
  if (node.callFrame.url.includes('/core/http')) coreBytes += node.selfSize;
  nodes.push(...node.children);
}
console.log(`allocated in core/ by ${repeated.length * 200_000} repeated blocks: ${coreBytes} bytes`);
