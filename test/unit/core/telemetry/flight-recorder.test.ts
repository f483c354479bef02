// The flight recorder: what is kept, what a record says, cutting, overwriting, and reading while a
// worker writes.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Detail, Reason } from '../../../../core/exchange/reasons.ts';
import { AttemptFailure, RetryEnd } from '../../../../core/exchange/retry-outcome.ts';
import { FLIGHT_HEADER_BYTES, RECORD_BYTES } from '../../../../core/telemetry/flight-layout.ts';
import { findRecord, readRecords } from '../../../../core/telemetry/flight-reader.ts';
import { createFlightBuffer, FlightRecorder } from '../../../../core/telemetry/flight-recorder.ts';
import { bytesOf, exampleSource } from './support.ts';

test('a record says everything about its exchange', () => {
  const buffer = createFlightBuffer(4);
  const source = exampleSource(
    {},
    {
      status: 502,
      reason: Reason.STALE_UPSTREAM_CONNECTION,
      detail: Detail.UPSTREAM_RESET,
      errno: 104,
      generated: true,
      responseComplete: false,
      attempts: 2,
      retryEnd: RetryEnd.EXHAUSTED,
      attemptFailure: AttemptFailure.STATUS + 503,
      reusedConnection: true,
      upstreamConnectionUses: 41,
      upstreamConnectionAgeMs: 60_000.5,
      upstreamMs: -1,
    },
  );
  new FlightRecorder(buffer).record(source);
  const text = (value: string): object => ({ text: value, length: value.length, truncated: false });
  assert.deepEqual(readRecords([buffer]), [
    {
      worker: 0,
      number: 1,
      time: '2026-11-20T23:36:04.007Z',
      wallMs: Date.UTC(2026, 10, 20, 23, 36, 4, 7),
      requestId: text('a1b2c3'),
      method: 'GET',
      host: text('shop.example.com'),
      path: text('/cart?id=7'),
      protocol: 'HTTP/1.1',
      clientAddress: '192.0.2.7',
      clientPort: 41_000,
      listener: 'http',
      epoch: 3,
      route: 'shop rule 0',
      backend: 'cart',
      endpoint: '10.0.0.1:9001',
      attempts: 2,
      retryEnd: RetryEnd.EXHAUSTED,
      attemptFailure: 'status_503',
      reusedConnection: true,
      upstreamConnectionUses: 41,
      upstreamConnectionAgeMs: 60_000.5,
      durationMs: 12.346,
      connectMs: 1.5,
      upstreamMs: null,
      bytesReceived: 12,
      bytesSent: 3456,
      status: 502,
      reason: Reason.STALE_UPSTREAM_CONNECTION,
      reasonFlag: 'UCS',
      detail: Detail.UPSTREAM_RESET,
      detailName: 'upstream_reset',
      errno: 104,
      generated: true,
      responseStarted: true,
      responseComplete: false,
      tunnel: false,
      workload: '',
      side: '',
      peer: '',
      service: '',
      policy: '',
    },
  ]);
});

test('of an exchange of a mesh a record says whose it was, and who was at the other end, with names as long as they get', () => {
  const service = `shop/${'c'.repeat(50)}.shop.svc.cluster.local:8080`;
  const peer = `spiffe://cluster.local/ns/shop/sa/${'w'.repeat(60)}`;
  const buffer = createFlightBuffer(2);
  const recorder = new FlightRecorder(buffer);
  const mesh = {
    ...{ hasMesh: true, workload: bytesOf('shop/web-0'), peer: bytesOf(peer), policy: bytesOf('shop/guard') },
    ...{ listener: bytesOf(service), route: bytesOf(`${service} rule 1`), backend: bytesOf(service) },
  };
  recorder.record(exampleSource({}, { ...mesh, service: bytesOf(service), wallMs: 1 }));
  recorder.record(exampleSource({}, { ...mesh, isInbound: true, wallMs: 2 }));
  const seen = readRecords([buffer]).map(({ workload, side, peer, service, policy }) => [
    workload,
    side,
    peer,
    service,
    policy,
  ]);
  assert.deepEqual(seen, [
    ['shop/web-0', 'inbound', peer, '', 'shop/guard'],
    ['shop/web-0', 'outbound', peer, service, 'shop/guard'],
  ]);
  assert.equal(readRecords([buffer])[1]!.route, `${service} rule 1`);
});

const notable: [what: string, fields: Parameters<typeof exampleSource>[1], kept: boolean][] = [
  ['a quick success', {}, false],
  ['a reason', { reason: Reason.DOWNSTREAM_CONNECTION_TERMINATION }, true],
  ['a 500 of the upstream', { status: 500 }, true],
  ['a 404', { status: 404 }, false],
  ['a slow success', { durationMs: 250 }, true],
  ['one just under slow', { durationMs: 249.9 }, false],
  ['a long tunnel that ended well', { durationMs: 1e6, tunnel: true, status: 101 }, false],
  ['a tunnel that failed', { reason: Reason.UPSTREAM_TIMEOUT, tunnel: true, status: 101 }, true],
];

for (const [what, fields, kept] of notable) {
  test(`${what} is ${kept ? '' : 'not '}recorded`, () => {
    const buffer = createFlightBuffer(4);
    const recorder = new FlightRecorder(buffer, 250);
    assert.equal(recorder.recordIfNotable(exampleSource({}, fields ?? {})), kept);
    assert.equal(readRecords([buffer]).length, kept ? 1 : 0);
  });
}

test('long texts are cut, and their true lengths kept', () => {
  const buffer = createFlightBuffer(2);
  const recorder = new FlightRecorder(buffer);
  recorder.record(exampleSource());
  recorder.record(exampleSource());
  const source = exampleSource(
    {
      requestId: 'i'.repeat(70),
      method: 'M'.repeat(32),
      host: 'h'.repeat(255),
      path: `/${'p'.repeat(99_999)}`,
    },
    {
      listener: bytesOf('l'.repeat(100)),
      route: bytesOf('r'.repeat(100)),
      backend: bytesOf('b'.repeat(100)),
      endpoint: bytesOf('[2001:db8:1111:2222:3333:4444:5555:6666]:65535'),
      workload: bytesOf('w'.repeat(200)),
      peer: bytesOf('p'.repeat(200)),
      policy: bytesOf('o'.repeat(200)),
    },
  );
  // Over the first record: the second, behind it, must stay as it is.
  recorder.record(source);
  const [first, second] = readRecords([buffer]);
  assert.deepEqual(first.requestId, { text: 'i'.repeat(64), length: 70, truncated: true });
  assert.equal(first.method, 'M'.repeat(16));
  assert.deepEqual(first.host, { text: 'h'.repeat(64), length: 255, truncated: true });
  assert.equal(first.listener, 'l'.repeat(96));
  assert.equal(first.route, 'r'.repeat(96));
  assert.equal(first.backend, 'b'.repeat(96));
  assert.equal(first.workload, 'w'.repeat(96));
  assert.equal(first.peer, 'p'.repeat(128));
  assert.equal(first.policy, 'o'.repeat(96));
  assert.equal(first.endpoint, '[2001:db8:1111:2222:3333:4444:5555:6666]:65535');
  assert.match(first.path.text, /^\/p{20,}$/);
  assert.equal(first.path.length, 65_535, 'lengths end there');
  assert.equal(first.path.truncated, true);
  assert.equal(second.path.text, '/cart?id=7', 'the next record is not touched');
  assert.equal(second.number, 2);
});

test('a path keeps over 200 bytes in an ordinary record', () => {
  const buffer = createFlightBuffer(1);
  new FlightRecorder(buffer).record(exampleSource({ path: `/${'p'.repeat(199)}` }));
  assert.equal(readRecords([buffer])[0].path.truncated, false);
});

test('the oldest records are overwritten, and the rest come newest first over all workers', () => {
  const buffers = [createFlightBuffer(4), createFlightBuffer(4)];
  const recorders = buffers.map((buffer) => new FlightRecorder(buffer));
  for (let i = 0; i < 11; i++) {
    recorders[i % 2].record(exampleSource({ requestId: `id${i}` }, { wallMs: 1_000_000 + i }));
  }
  const ids = readRecords(buffers).map(({ requestId }) => requestId.text);
  assert.deepEqual(ids, ['id10', 'id9', 'id8', 'id7', 'id6', 'id5', 'id4', 'id3']);
  assert.deepEqual(
    readRecords(buffers, 3).map(({ requestId, worker }) => `${requestId.text} w${worker}`),
    ['id10 w0', 'id9 w1', 'id8 w0'],
  );
});

test('a request is found by its id, the newest where an id was used twice', () => {
  const buffers = [createFlightBuffer(8), createFlightBuffer(8)];
  const recorders = buffers.map((buffer) => new FlightRecorder(buffer));
  recorders[0].record(exampleSource({ requestId: 'twice', path: '/new' }, { wallMs: 2000 }));
  recorders[1].record(exampleSource({ requestId: 'twice', path: '/old' }, { wallMs: 1000 }));
  recorders[1].record(exampleSource({ requestId: 'once' }, { wallMs: 3000 }));
  const long = 'x'.repeat(80);
  recorders[0].record(exampleSource({ requestId: long, path: '/long' }, { wallMs: 500 }));
  assert.equal(findRecord(buffers, 'twice')?.path.text, '/new');
  assert.equal(findRecord(buffers, 'once')?.worker, 1);
  assert.equal(findRecord(buffers, long)?.path.text, '/long');
  assert.equal(findRecord(buffers, 'onc'), undefined);
  assert.equal(findRecord(buffers, 'once '), undefined);
  assert.equal(findRecord(buffers, ''), undefined);
});

test('a record that is being written is left out, and its place is used again', () => {
  const buffer = createFlightBuffer(2);
  const recorder = new FlightRecorder(buffer);
  recorder.record(exampleSource({ requestId: 'one' }));
  recorder.record(exampleSource({ requestId: 'two' }));
  const sequence = new Int32Array(buffer, FLIGHT_HEADER_BYTES + RECORD_BYTES, 1);
  sequence[0] |= 1; // As a worker that died while writing the second record leaves it.
  assert.deepEqual(
    readRecords([buffer]).map(({ requestId }) => requestId.text),
    ['one'],
  );
  assert.equal(findRecord([buffer], 'two'), undefined);
  const successor = new FlightRecorder(buffer);
  successor.record(exampleSource({ requestId: 'three' }));
  successor.record(exampleSource({ requestId: 'four' }));
  assert.deepEqual(
    readRecords([buffer]).map(({ requestId }) => requestId.text),
    ['four', 'three'],
  );
});

test('a record that begins to be overwritten while it is copied is left out', (t) => {
  const buffer = createFlightBuffer(2);
  const recorder = new FlightRecorder(buffer);
  recorder.record(exampleSource({ requestId: 'one' }));
  recorder.record(exampleSource({ requestId: 'two' }));
  const bytes = new Uint8Array(buffer, FLIGHT_HEADER_BYTES, RECORD_BYTES);
  const load = Atomics.load as (words: Int32Array, index: number) => number;
  // The worker gets as far as some of the first record's bytes just after the reader's first check.
  t.mock.method(Atomics, 'load', (words: Int32Array, index: number) => {
    const value = load(words, index);
    if (words.byteOffset === FLIGHT_HEADER_BYTES) {
      words[0] |= 1;
      bytes.fill(0x58, RECORD_BYTES / 2);
    }
    return value;
  });
  assert.deepEqual(
    readRecords([buffer]).map(({ requestId }) => requestId.text),
    ['two'],
  );
});

test('what is read while a worker writes is always one whole record', async (t) => {
  const buffer = createFlightBuffer(2);
  const at = (path: string): string => JSON.stringify(new URL(path, import.meta.url).href);
  // Every text and number of a record is made from the same count.
  const writer = new Worker(
    `const { parentPort, workerData } = require('node:worker_threads');
     (async () => {
       const { FlightRecorder } = await import(${at('../../../../core/telemetry/flight-recorder.ts')});
       const { exampleSource } = await import(${at('./support.ts')});
       const recorder = new FlightRecorder(workerData.buffer);
       const sources = Array.from({ length: 10 }, (_, i) => exampleSource(
         { requestId: String(i).repeat(60), path: '/' + String(i).repeat(200) },
         { status: 500 + i, bytesSent: i, epoch: i },
       ));
       parentPort.postMessage('writing');
       const stop = new Int32Array(workerData.stop);
       for (let n = 0; Atomics.load(stop, 0) === 0; n++) recorder.record(sources[n % 10]);
     })();`,
    { eval: true, workerData: { buffer, stop: new SharedArrayBuffer(4) } },
  );
  t.after(() => writer.terminate());
  await new Promise((resolve) => writer.once('message', resolve));
  let records = 0;
  let different = new Set<number>();
  for (let round = 0; round < 200_000 && (records < 3000 || different.size < 5); round++) {
    for (const record of readRecords([buffer])) {
      const digit = record.epoch;
      records++;
      different = different.add(digit);
      assert.equal(record.requestId.text, String(digit).repeat(60));
      assert.equal(record.path.text, `/${String(digit).repeat(200)}`);
      assert.equal(record.status, 500 + digit);
      assert.equal(record.bytesSent, digit);
      assert.equal((record.number - 1) % 10, digit);
    }
  }
  assert.ok(records >= 1000, `only ${records} records could be read`);
});

test('an empty recorder has no records', () => {
  assert.deepEqual(readRecords([createFlightBuffer(2)]), []);
  assert.throws(() => createFlightBuffer(0), RangeError);
});
