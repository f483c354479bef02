// Access log lines: their exact text in each format, escaping of whatever clients send, and drops.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DETAIL_LIMIT, DETAIL_PARSE, Detail, Reason } from '../../../../core/exchange/reasons.ts';
import { AttemptFailure, RetryEnd } from '../../../../core/exchange/retry-outcome.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';
import { useLimitNames } from '../../../../core/limits/limit-names.ts';
import { AccessLog } from '../../../../core/telemetry/access-log.ts';
import { accessLogFields } from '../../../../core/telemetry/access-log-format.ts';
import { createByteRing } from '../../../../core/telemetry/byte-ring.ts';
import type { LogSource } from '../../../../core/telemetry/log-source.ts';
import { LogProtocol, unknownPeer } from '../../../../core/telemetry/log-source.ts';
import { Counter, createMetricsBuffer, WorkerMetrics } from '../../../../core/telemetry/metrics.ts';
import { bytesOf, exampleSource, takeAll } from './support.ts';

function logTo(ring: SharedArrayBuffer, format: string): { log: AccessLog; counters: Float64Array } {
  const metrics = new WorkerMetrics(createMetricsBuffer());
  return { log: new AccessLog(ring, format, 5, metrics), counters: metrics.counters };
}

test('a JSON line of a node proxy says more, and a template may name that anywhere', () => {
  const encode = (text: string) => new TextEncoder().encode(text);
  const peer = 'spiffe://cluster.local/ns/shop/sa/web';
  const mesh = {
    ...{ workload: encode('shop/web-0'), side: encode('outbound'), peer: encode(peer) },
    ...{ service: encode('shop/cart:80'), policy: encode('shop/"guard"') },
  };
  const ring = createByteRing(64 * 1024);
  new AccessLog(ring, 'json', 5, new WorkerMetrics(createMetricsBuffer()), true).log(exampleSource({}, mesh));
  const { workload, side, peer: shown, service, policy, ...rest } = JSON.parse(takeAll(ring));
  assert.deepEqual(
    [workload, side, shown, service, policy],
    ['shop/web-0', 'outbound', peer, 'shop/cart:80', 'shop/"guard"'],
  );
  assert.equal(Object.keys(rest).length, accessLogFields.length - 5);
  const format = '%{workload} %{side} %{peer} %{service} %{policy}';
  assert.equal(
    lineOf(format, exampleSource({}, mesh)),
    `shop/web-0 outbound ${peer} shop/cart:80 shop/\\x22guard\\x22\n`,
  );
  assert.equal(lineOf(format, exampleSource()), '- - - - -\n');
});

test('long names of rate limits are whole in the log wherever in the ring their line lies', () => {
  const name = `shop/cart.shop.svc.cluster.local/${'n'.repeat(200)}`;
  useLimitNames([{ id: 7, name }]);
  const empty = { method: '', path: '', host: '', userAgent: '', referer: '', requestId: '' };
  const source = exampleSource(empty, { detail: DETAIL_LIMIT + 7 });
  const ring = createByteRing(4096);
  const { log } = logTo(ring, '%{detail}');
  // 17 lines fill the ring nearly, so that all lengths of a rest at its end come up in time.
  for (let line = 0; line < 400; line++) {
    log.log(source);
    assert.equal(takeAll(ring), `limit_${name}\n`, `line ${line}`);
  }
});

/** One line in a format; a small ring makes it lie across the end now and then. */
function lineOf(format: string, source: LogSource): string {
  const ring = createByteRing(64 * 1024);
  logTo(ring, format).log.log(source);
  return takeAll(ring);
}

/** A generator of numbers below `bound` that gives the same ones for the same seed (xorshift32). */
function random(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % bound;
  };
}

test('a JSON line has every field, in order, with numbers as numbers', () => {
  const encode = (text: string) => new TextEncoder().encode(text);
  const tls = {
    tlsVersion: encode('TLSv1.3'),
    serverName: encode('shop.example.com'),
    clientSubject: encode('CN="a"'),
  };
  const line = lineOf('json', exampleSource({}, tls));
  assert.ok(line.endsWith('}\n'));
  const value = JSON.parse(line);
  assert.deepEqual(Object.keys(value), accessLogFields.slice(0, accessLogFields.indexOf('workload')));
  assert.deepEqual(value, {
    time: '2026-11-20T23:36:04.007Z',
    method: 'GET',
    path: '/cart?id=7',
    host: 'shop.example.com',
    protocol: 'HTTP/1.1',
    status: 200,
    reason: null,
    detail: null,
    bytesReceived: 12,
    bytesSent: 3456,
    durationMs: 12.345,
    upstreamMs: 10.25,
    clientAddress: '192.0.2.7',
    clientPort: 41_000,
    requestId: 'a1b2c3',
    userAgent: 'curl/8.5.0',
    referer: null,
    route: 'shop rule 0',
    backend: 'cart',
    endpoint: '10.0.0.1:9001',
    listener: 'http',
    attempts: 1,
    epoch: 3,
    worker: 5,
    tlsVersion: 'TLSv1.3',
    serverName: 'shop.example.com',
    clientSubject: 'CN="a"',
    retry: null,
    attemptFailure: null,
  });
});

test('the common format is what nginx calls combined', () => {
  const source = exampleSource({ referer: 'https://example.com/"x"' });
  assert.equal(
    lineOf('common', source),
    '192.0.2.7 - - [20/Nov/2026:23:36:04 +0000] "GET /cart?id=7 HTTP/1.1" 200 3456 "https://example.com/\\x22x\\x22" "curl/8.5.0"\n',
  );
});

test('what did not happen is null in JSON and a dash elsewhere', () => {
  const source = exampleSource(
    { method: '', path: '', host: '', userAgent: '', requestId: '' },
    {
      client: unknownPeer,
      listener: new Uint8Array(0),
      route: new Uint8Array(0),
      backend: new Uint8Array(0),
      endpoint: new Uint8Array(0),
      upstreamMs: -1,
      status: 0,
      reason: Reason.DOWNSTREAM_PROTOCOL_ERROR,
      detail: DETAIL_PARSE + 16,
    },
  );
  const value = JSON.parse(lineOf('json', source));
  const absent = Object.keys(value).filter((name) => value[name] === null);
  assert.deepEqual(absent, [
    'method',
    'path',
    'host',
    'upstreamMs',
    'clientAddress',
    'requestId',
    'userAgent',
    'referer',
    'route',
    'backend',
    'endpoint',
    'listener',
    'tlsVersion',
    'serverName',
    'clientSubject',
    'retry',
    'attemptFailure',
  ]);
  assert.equal(value.reason, 'DPE');
  assert.equal(value.detail, 'bare_lf');
  assert.equal(
    lineOf('%{method} %{route} %{upstreamMs} %{clientAddress} %{status} %{detail}', source),
    '- - - - 0 bare_lf\n',
  );
});

test('what became of retries, and the attempt that failed last, are words', () => {
  const lineFor = (retryEnd: number, attemptFailure: number): string =>
    lineOf('%{retry} %{attemptFailure}', exampleSource({}, { retryEnd, attemptFailure }));
  assert.equal(lineFor(RetryEnd.SUCCEEDED, AttemptFailure.STATUS + 503), 'succeeded status_503\n');
  assert.equal(lineFor(RetryEnd.BUDGET, AttemptFailure.GRPC_STATUS + 14), 'budget grpc_status_14\n');
  assert.equal(lineFor(RetryEnd.UNSAFE, Detail.UPSTREAM_FIN), 'unsafe upstream_fin\n');
});

test('reasons and details are words', () => {
  const source = exampleSource({}, { reason: Reason.UPSTREAM_TIMEOUT, detail: Detail.BACKEND_REQUEST_TIMER });
  assert.equal(lineOf('%{reason}/%{detail}', source), 'UT/backend_request_timer\n');
});

test('protocols have the names of their request lines', () => {
  for (const [protocol, name] of [
    [LogProtocol.HTTP_1_0, 'HTTP/1.0'],
    [LogProtocol.HTTP_1_1, 'HTTP/1.1'],
  ] as const) {
    assert.equal(lineOf('%{protocol}', exampleSource({}, { protocol })), `${name}\n`);
  }
});

test('any bytes from the wire give valid JSON that says each of them', () => {
  const next = random(20_261_120);
  for (let round = 0; round < 300; round++) {
    const bytes = Uint8Array.from({ length: next(80) + 1 }, () => next(256));
    const line = lineOf('json', exampleSource({ path: bytes, userAgent: bytes, requestId: bytes }));
    assert.equal(line.indexOf('\n'), line.length - 1, 'one line');
    assert.match(line, /^[\x20-\x7e]+\n$/, 'only printable ASCII');
    const value = JSON.parse(line);
    const expected = String.fromCharCode(...bytes);
    assert.equal(value.path, expected);
    assert.equal(value.userAgent, expected);
    assert.equal(value.requestId, expected);
  }
});

test('bytes from the wire cannot end a field or a line of a template', () => {
  const path = Uint8Array.of(0x2f, 0x22, 0x5c, 0x0a, 0x1b, 0xe9, 0x7f);
  assert.equal(lineOf('"%{path}"', exampleSource({ path })), '"/\\x22\\x5c\\x0a\\x1b\\xe9\\x7f"\n');
});

test('names from the configuration keep their UTF-8', () => {
  const route = new TextEncoder().encode('café "1"');
  const ring = createByteRing(4096);
  logTo(ring, 'json').log.log(exampleSource({}, { route }));
  const bytes = Uint8Array.from(takeAll(ring), (character) => character.charCodeAt(0));
  assert.equal(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)).route, 'café "1"');
});

test('times agree with the calendar', () => {
  const next = random(7);
  const times = [0, 951_782_399_999, 951_782_400_000, 4_107_542_399_999, 1_709_251_199_000, 1_709_164_800_001];
  for (let i = 0; i < 500; i++) times.push(next(2 ** 31) * 2000 + next(1000));
  const ring = createByteRing(64 * 1024);
  const { log } = logTo(ring, '%{time}');
  for (const wallMs of times) {
    log.log(exampleSource({}, { wallMs }));
    assert.equal(takeAll(ring), `${new Date(wallMs).toISOString()}\n`);
  }
});

test('the common time changes with the second, and the milliseconds within it', () => {
  const ring = createByteRing(4096);
  const { log } = logTo(ring, '%{time}');
  const base = Date.UTC(2026, 11, 31, 23, 59, 59);
  for (const offset of [0, 1, 999, 1000]) log.log(exampleSource({}, { wallMs: base + offset }));
  assert.equal(
    takeAll(ring),
    '2026-12-31T23:59:59.000Z\n2026-12-31T23:59:59.001Z\n2026-12-31T23:59:59.999Z\n2027-01-01T00:00:00.000Z\n',
  );
});

const addresses = [
  ['192.0.2.7', '192.0.2.7'],
  ['255.255.255.255', '255.255.255.255'],
  ['::', '::'],
  ['::1', '::1'],
  ['2001:db8::', '2001:db8::'],
  ['2001:db8::1', '2001:db8::1'],
  ['2001:0:0:1:0:0:0:1', '2001:0:0:1::1'],
  ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
  ['2001:0:0:1:1:0:0:1', '2001::1:1:0:0:1'],
  ['fe80:ABCD:0123:4567:89ab:cdef:fedc:ba98', 'fe80:abcd:123:4567:89ab:cdef:fedc:ba98'],
  ['::ffff:192.0.2.7', '192.0.2.7'],
] as const;

for (const [address, text] of addresses) {
  test(`a client at ${address} is logged as ${text}`, () => {
    const sockaddr = encodeSockaddr(address, 80)!;
    const view = new DataView(sockaddr.buffer);
    const at = sockaddr[0] === 2 ? 4 : 8;
    const word = (index: number): number => (at + index * 4 + 4 <= sockaddr.length ? view.getInt32(at + index * 4) : 0);
    const client = {
      peerFamily: sockaddr[0],
      peerPort: 80,
      peer0: word(0),
      peer1: word(1),
      peer2: word(2),
      peer3: word(3),
    };
    assert.equal(lineOf('%{clientAddress}', exampleSource({}, { client })), `${text}\n`);
  });
}

test('numbers are exact up to 2^53, and fractions have three digits', () => {
  const source = exampleSource(
    {},
    { bytesSent: Number.MAX_SAFE_INTEGER, bytesReceived: 0, durationMs: 86_400_000.9999, upstreamMs: 0.0005 },
  );
  assert.equal(
    lineOf('%{bytesSent} %{bytesReceived} %{durationMs} %{upstreamMs}', source),
    '9007199254740991 0 86400000.999 0.000\n',
  );
});

test('lines that find no room are dropped and counted, and logging goes on when there is room', () => {
  const ring = createByteRing(1024);
  const { log, counters } = logTo(ring, '%{requestId} %{path}');
  const next = random(99);
  let taken = '';
  let tried = 0;
  for (let round = 0; round < 50; round++) {
    for (let i = 0; i < 30; i++) {
      log.log(exampleSource({ requestId: `id${tried++}`, path: `/${'p'.repeat(next(40))}` }));
    }
    taken += takeAll(ring);
  }
  const lines = taken.split('\n').slice(0, -1);
  for (const line of lines) assert.match(line, /^id\d+ \/p*$/);
  assert.equal(counters[Counter.ACCESS_LOG_LINES], lines.length);
  assert.equal(counters[Counter.ACCESS_LOG_DROPPED], tried - lines.length);
  assert.ok(counters[Counter.ACCESS_LOG_DROPPED] > 0, 'the ring was too small for all');
  assert.ok(lines.length >= 50, 'each round had room for some');
});

test('a line that does not fit in the whole ring is dropped, and nothing is overwritten', () => {
  const ring = createByteRing(1024);
  const { log, counters } = logTo(ring, '%{path}');
  log.log(exampleSource({ path: '/short' }));
  log.log(exampleSource({ path: Uint8Array.from({ length: 1200 }, () => 0xff) }));
  assert.equal(takeAll(ring), '/short\n');
  assert.equal(counters[Counter.ACCESS_LOG_DROPPED], 1);
});

test('however often a template repeats its longest field, a line never overwrites what is unread', () => {
  const ring = createByteRing(2048);
  const { log, counters } = logTo(ring, '%{path}%{path}%{path}%{path}%{path}');
  const source = exampleSource(
    { path: Uint8Array.from({ length: 40 }, () => 0xff), method: '', host: '', userAgent: '', requestId: '' },
    { listener: bytesOf(''), route: bytesOf(''), backend: bytesOf(''), endpoint: bytesOf('') },
  );
  const line = `${'\\xff'.repeat(200)}\n`;
  for (let i = 0; i < 20; i++) log.log(source);
  const lines = counters[Counter.ACCESS_LOG_LINES];
  assert.ok(lines > 0 && lines < 20);
  assert.equal(takeAll(ring), line.repeat(lines));
});

test('lines that cross the end of the ring are whole', () => {
  const ring = createByteRing(4096);
  const { log, counters } = logTo(ring, 'json');
  for (let i = 0; i < 200; i++) {
    log.log(exampleSource({ requestId: `id${i}` }));
    assert.equal(JSON.parse(takeAll(ring)).requestId, `id${i}`);
  }
  assert.equal(counters[Counter.ACCESS_LOG_LINES], 200);
});

test('an empty format logs nothing', () => {
  const ring = createByteRing(256);
  const { log, counters } = logTo(ring, '');
  assert.equal(log.enabled, false);
  log.log(exampleSource());
  assert.equal(takeAll(ring), '');
  assert.equal(counters[Counter.ACCESS_LOG_DROPPED], 0);
});
