// What the recorder keeps of requests, and that its reader never shows a half-overwritten one.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Family } from '../../../../core/ffi/sockaddr.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { createRecorderBuffer, recorderBytesPerWorker } from '../../../../core/telemetry/recorder-layout.ts';
import {
  decodeRequest,
  type RecordedRequest,
  readRecordings,
  recordingsTooLong,
} from '../../../../core/telemetry/recorder-reader.ts';
import { type RecorderSettings, RequestRecorder } from '../../../../core/telemetry/request-recorder.ts';

const BYTES = 64 * 1024;

function settingsOf(redactHeaders: string[] = [], workers = 1): RecorderSettings {
  const buffers = Array.from({ length: workers }, () => createRecorderBuffer(BYTES));
  return { buffers, key: Int32Array.of(1, 2, 3, 4), redactHeaders, maxAgeMs: 60_000 };
}

const connection = {
  listener: { nameBytes: Buffer.from('http'), https: false },
  clientCertificate: null,
  serverNameBytes: Buffer.from(''),
  peerFamily: Family.INET,
  peerPort: 4711,
  peer0: (10 << 24) | 7,
  peer1: 0,
  peer2: 0,
  peer3: 0,
} as unknown as Connection;

/** Records a head given as lines, and returns what `end` wants. */
function record(
  recorder: RequestRecorder,
  lines: string[],
  wallMs = 1000,
  choice = 'shop rule 1\na=9,b=1',
  backend = 'a',
  client = connection,
): number {
  const bytes = Buffer.alloc(64 * 1024);
  const length = bytes.write(`${lines.join('\r\n')}\r\n\r\n`, 'latin1');
  const head = new RequestHead();
  const limits = { headBytesMax: bytes.length, headerCountMax: 256, uriBytesMax: bytes.length };
  assert.ok(parseRequestHead(bytes, 0, length, limits, head) > 0, lines[0]);
  return recorder.record(bytes, head, client, Buffer.from(choice), Buffer.from(backend), 11, 3, wallMs);
}

function readAll({ buffers }: RecorderSettings, sinceMs = 0): RecordedRequest[] {
  return readRecordings(buffers, sinceMs).map(decodeRequest);
}

test('a request is kept with everything that routing looks at, and with how it ended', () => {
  const settings = settingsOf();
  const recorder = new RequestRecorder(settings, 0);
  const recorded = record(recorder, ['GET /cart?id=1 HTTP/1.1', 'Host: shop.test:8080', 'X-A: \xe9', 'x-a:2']);
  assert.equal(readAll(settings)[0]!.status, 0);
  recorder.end(recorded, 503, 7, true);
  assert.deepEqual(readAll(settings), [
    {
      time: '1970-01-01T00:00:01.000Z',
      epoch: 3,
      listener: 'http',
      method: 'GET',
      host: 'shop.test:8080',
      path: '/cart?id=1',
      protocol: 'HTTP/1.1',
      headers: [
        ['host', 'shop.test:8080'],
        ['x-a', '\xe9'],
        ['x-a', '2'],
      ],
      client: '10.0.0.7',
      tls: false,
      serverName: '',
      certificate: null,
      route: 'shop rule 1',
      backend: 'a',
      backends: { a: 9, b: 1 },
      status: 503,
      reason: 7,
      generated: true,
    },
  ]);
});

test('the names of a verified client certificate are kept, and cannot break the record', () => {
  const names = ['spiffe://test/a', 'two\nlines', 'b\u00fc.test'];
  const certificate = (verified: boolean) => ({
    verified,
    sha256Bytes: Buffer.from('ab12'),
    subjectAltNames: names.map((name) => Buffer.from(name)),
  });
  const shown = (verified: boolean): RecordedRequest => {
    const settings = settingsOf();
    const client = { ...connection, clientCertificate: certificate(verified) } as unknown as Connection;
    record(new RequestRecorder(settings, 0), ['GET / HTTP/1.1', 'Host: a', 'X-A: 1'], 1, '\n', '', client);
    return readAll(settings)[0]!;
  };
  assert.deepEqual(shown(true).certificate, {
    sha256: 'ab12',
    subjectAltNames: ['spiffe://test/a', 'two?lines', 'b\u00fc.test'],
  });
  assert.deepEqual(shown(true).headers[1], ['x-a', '1']);
  assert.equal(shown(false).certificate, null);
});

test('targets of every form are kept as routing sees them', () => {
  const cases: [line: string, host: string, path: string][] = [
    ['GET http://other.test/a?b HTTP/1.1', 'other.test', '/a?b'],
    ['GET http://other.test?b HTTP/1.1', 'other.test', '/?b'],
    ['GET http://other.test HTTP/1.1', 'other.test', '/'],
    ['OPTIONS * HTTP/1.1', 'shop.test', '*'],
    ['CONNECT other.test:443 HTTP/1.1', 'other.test:443', 'other.test:443'],
  ];
  for (const [line, host, path] of cases) {
    const settings = settingsOf();
    record(new RequestRecorder(settings, 0), [line, `Host: ${line.startsWith('CONNECT') ? host : 'shop.test'}`]);
    const [request] = readAll(settings);
    assert.deepEqual([request!.host, request!.path], [host, path], line);
  }
});

test('secrets are hashed: credentials, the values of cookies and the fields that are named', () => {
  const settings = settingsOf(['x-api-key']);
  const recorder = new RequestRecorder(settings, 0);
  record(recorder, [
    'GET / HTTP/1.1',
    'Host: a',
    'Authorization: Bearer top-secret',
    'Proxy-Authorization: top-secret',
    'Cookie: session=top-secret; lang=top-secret; top-secret; empty=',
    'X-API-Key: top-secret',
    'X-API-Keys: not secret',
  ]);
  const [{ headers }] = readAll(settings) as [RecordedRequest];
  const bytes = Buffer.from(settings.buffers[0]!.slice(0)).toString('latin1');
  assert.doesNotMatch(bytes, /top-secret/);
  const hashed = /hashed:[0-9a-f]{16}/.exec(headers[1]![1])![0];
  assert.deepEqual(headers.slice(1), [
    ['authorization', `Bearer ${hashed}`],
    ['proxy-authorization', hashed],
    ['cookie', `session=${hashed}; lang=${hashed}; ${hashed}; empty=`],
    ['x-api-key', hashed],
    ['x-api-keys', 'not secret'],
  ]);
});

test('many cookies do not grow a record beyond its room', () => {
  const settings = settingsOf();
  const recorder = new RequestRecorder(settings, 0);
  const cookies = Array.from({ length: 90 }, (_, index) => `c${index}=v`).join(';');
  record(recorder, ['GET / HTTP/1.1', 'Host: a', `Cookie: ${cookies}`, `Cookie: ${cookies}`, 'X-Last: yes']);
  const [{ headers }] = readAll(settings) as [RecordedRequest];
  assert.equal(headers[1]![1].match(/hashed:/g)!.length, 65, 'the first ones one by one, the rest together');
  assert.match(headers[2]![1], /^hashed:[0-9a-f]{16}$/);
  assert.deepEqual(headers[3], ['x-last', 'yes']);
});

test('the newest records stay whole when the ring has gone round many times', () => {
  const settings = settingsOf();
  const recorder = new RequestRecorder(settings, 0);
  const count = 5000;
  for (let i = 0; i < count; i++) {
    const recorded = record(
      recorder,
      [`GET /${'p'.repeat(i % 97)}/${i} HTTP/1.1`, 'Host: a', `X-B: ${'b'.repeat(i % 61)}`],
      i,
    );
    recorder.end(recorded, 200 + (i % 100), 0, false);
  }
  const requests = readAll(settings);
  assert.ok(requests.length > 200 && requests.length < 1000, `${requests.length} records`);
  requests.forEach(({ path, status, headers }, index) => {
    const i = count - requests.length + index;
    assert.equal(path, `/${'p'.repeat(i % 97)}/${i}`);
    assert.equal(status, 200 + (i % 100));
    assert.deepEqual(headers[1], ['x-b', 'b'.repeat(i % 61)]);
  });
});

test('an exchange that ends after its record has been overwritten changes no other', () => {
  const settings = settingsOf();
  const recorder = new RequestRecorder(settings, 0);
  const early = record(recorder, ['GET /early HTTP/1.1', 'Host: a']);
  for (let i = 0; i < 2000; i++) record(recorder, [`GET /${i} HTTP/1.1`, 'Host: a']);
  recorder.end(early, 500, 1, true);
  assert.deepEqual(new Set(readAll(settings).map(({ status }) => status)), new Set([0]));
});

test('a successor goes on where its predecessor stopped', () => {
  const settings = settingsOf();
  record(new RequestRecorder(settings, 0), ['GET /1 HTTP/1.1', 'Host: a'], 1);
  record(new RequestRecorder(settings, 0), ['GET /2 HTTP/1.1', 'Host: a'], 2);
  assert.deepEqual(
    readAll(settings).map(({ path }) => path),
    ['/1', '/2'],
  );
});

test('records of all workers come in the order of time, without those that are too old', () => {
  const settings = settingsOf([], 2);
  const [first, second] = [new RequestRecorder(settings, 0), new RequestRecorder(settings, 1)];
  record(first, ['GET /1 HTTP/1.1', 'Host: a'], 1000);
  record(second, ['GET /2 HTTP/1.1', 'Host: a'], 2000);
  record(first, ['GET /3 HTTP/1.1', 'Host: a'], 3000);
  assert.deepEqual(
    readAll(settings).map(({ path }) => path),
    ['/1', '/2', '/3'],
  );
  assert.deepEqual(
    readAll(settings, 2000).map(({ path }) => path),
    ['/2', '/3'],
  );
});

test('a head that is too long for the ring is left out and counted', () => {
  const settings = settingsOf();
  const recorder = new RequestRecorder(settings, 0);
  assert.equal(record(recorder, ['GET / HTTP/1.1', 'Host: a', `X-Long: ${'x'.repeat(9000)}`]), 0);
  assert.deepEqual(readAll(settings), []);
  assert.equal(recordingsTooLong(settings.buffers), 1);
});

test('a request without route or backend has none in its record', () => {
  const settings = settingsOf();
  record(new RequestRecorder(settings, 0), ['GET / HTTP/1.1', 'Host: a'], 1, '\n', '');
  const [request] = readAll(settings);
  assert.deepEqual([request!.route, request!.backend, request!.backends], ['', '', {}]);
});

test('what is overwritten while a reader copies the ring is left out', (t) => {
  const settings = settingsOf();
  const recorder = new RequestRecorder(settings, 0);
  let written = 0;
  const write = (count: number): void => {
    for (const end = written + count; written < end; written++) {
      record(recorder, [`GET /${'p'.repeat(written % 89)}/${written} HTTP/1.1`, 'Host: a'], written);
    }
  };
  write(2000);
  const paths = (): number[] => readAll(settings).map(({ path }) => Number(path.split('/')[2]));
  const before = paths();
  // The writer comes by between the reader's look at the ring's end and its copying.
  const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as Uint8Array;
  const { set } = typedArray;
  let pending = 0;
  t.mock.method(typedArray, 'set', function copy(this: Uint8Array, source: ArrayLike<number>, offset?: number): void {
    const count = pending;
    pending = 0;
    write(count);
    set.call(this, source, offset);
  });
  for (const count of [1, 7, 60, before.length - 20]) {
    pending = count;
    const newest = written - 1;
    const seen = paths();
    assert.ok(seen.length > 0 && seen.length < before.length + 20, `${count}: ${seen.length}`);
    assert.deepEqual(
      seen,
      Array.from({ length: seen.length }, (_, index) => newest - seen.length + 1 + index),
      'the newest ones of before, whole',
    );
  }
  pending = 3 * before.length;
  assert.deepEqual(paths(), [], 'all have been overwritten');
});

test('a reader sees only whole records while another thread writes', async () => {
  // Large, so that copying it takes long enough for the writer to come by.
  const bytes = 4 * 1024 * 1024;
  const settings = { ...settingsOf(), buffers: [createRecorderBuffer(bytes)] };
  // The writer goes on until the reader has seen the ring go round.
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const code = `
    const { workerData } = require('node:worker_threads');
    Promise.all([
      import(workerData.root + 'core/telemetry/request-recorder.ts'),
      import(workerData.root + 'core/http1/message.ts'),
      import(workerData.root + 'core/http1/request-parser.ts'),
    ]).then(([{ RequestRecorder }, { RequestHead }, { parseRequestHead }]) => {
      const recorder = new RequestRecorder(workerData.settings, 0);
      const connection = { ...workerData.connection, listener: { nameBytes: Buffer.from('http'), https: false } };
      const memory = Buffer.alloc(4096);
      const head = new RequestHead();
      const limits = { headBytesMax: 4096, headerCountMax: 64, uriBytesMax: 4096 };
      const choice = Buffer.from('r rule 1\\na=1');
      for (let i = 0; Atomics.load(workerData.stop, 0) === 0; i++) {
        const text = String(i).padStart(8, '0').repeat(1 + (i % 50));
        const length = memory.write('GET /' + text + ' HTTP/1.1\\r\\nHost: a\\r\\nX-Same: ' + text + '\\r\\n\\r\\n');
        parseRequestHead(memory, 0, length, limits, head);
        recorder.record(memory, head, connection, choice, Buffer.from('a'), 11, 1, i);
      }
    });`;
  const plain = { ...connection, listener: null, serverNameBytes: new Uint8Array(0) };
  const root = new URL('../../../../', import.meta.url).href;
  const writer = new Worker(code, { eval: true, workerData: { root, settings, stop, connection: plain } });
  try {
    const words = new Int32Array(settings.buffers[0]!);
    let seen = 0;
    while (Atomics.load(words, 0) >>> 0 < 6 * bytes) {
      for (const { path, headers } of readAll(settings)) {
        seen++;
        assert.equal(path.slice(1), headers[1]![1]);
        assert.match(path, /^\/(\d{8})\1*$/);
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.ok(seen > 0, 'the reader saw records');
  } finally {
    Atomics.store(stop, 0, 1);
    await writer.terminate();
  }
});

test('rings of all workers together have no more than the memory that was given', () => {
  for (const workers of [1, 2, 3, 8]) {
    const bytes = recorderBytesPerWorker(16 * 1024 * 1024, workers);
    assert.ok(bytes * workers <= 16 * 1024 * 1024 && bytes * workers * 2 > 8 * 1024 * 1024, `${workers}: ${bytes}`);
    assert.doesNotThrow(() => createRecorderBuffer(bytes));
  }
  assert.throws(() => createRecorderBuffer(100_000), RangeError);
});
