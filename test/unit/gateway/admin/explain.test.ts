// `portcullis explain`: the sentences for each kind of outcome, and the command against a running
// admin port.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  DETAIL_PARSE,
  DETAIL_TLS,
  Detail,
  REASON_COUNT,
  Reason,
  reasonText,
} from '../../../../core/exchange/reasons.ts';
import { type FlightRecord, readRecords } from '../../../../core/telemetry/flight-reader.ts';
import { createFlightBuffer, FlightRecorder } from '../../../../core/telemetry/flight-recorder.ts';
import type { LogSource } from '../../../../core/telemetry/log-source.ts';
import { TlsFailure } from '../../../../core/tls/errors.ts';
import { startAdminServer } from '../../../../gateway/admin/server.ts';
import { explainRecord, runExplain } from '../../../../gateway/explain.ts';
import { bytesOf, exampleSource, type SourceTexts } from '../../core/telemetry/support.ts';
import { fakeState, startAdmin, writers } from './support.ts';

function recordOf(texts: SourceTexts, fields: Partial<LogSource>): FlightRecord {
  const buffer = createFlightBuffer(1);
  new FlightRecorder(buffer).record(exampleSource(texts, fields));
  return readRecords([buffer])[0];
}

const none = new Uint8Array(0);
const unrouted: Partial<LogSource> = {
  route: none,
  backend: none,
  endpoint: none,
  attempts: 0,
  connectMs: -1,
  upstreamMs: -1,
};

const cases: { name: string; texts?: SourceTexts; fields: Partial<LogSource>; lines: string[] }[] = [
  {
    name: 'no route',
    texts: { method: 'POST', path: '/nowhere' },
    fields: { ...unrouted, status: 404, reason: Reason.NO_ROUTE, generated: true, durationMs: 0.25 },
    lines: [
      '192.0.2.7:41000 asked for POST /nowhere of shop.example.com on listener "http" (HTTP/1.1); that ended at 2026-11-20T23:36:04.007Z, after 0.25 ms.',
      'It matched no rule (configuration epoch 3, worker 0).',
      'The client got status 404, made by this gateway; 12 body bytes came from the client, 3456 went to it.',
      'Reason NR: No route matches this host and path on this listener.',
      'Hint: compare the host "shop.example.com" and the path with the hostnames and matches of your routes; GET /config of the admin port shows what runs now.',
    ],
  },
  {
    name: 'a refused connection',
    fields: {
      status: 503,
      reason: Reason.UPSTREAM_CONNECT_FAILURE,
      detail: Detail.CONNECT_ERRNO,
      errno: 111,
      generated: true,
      connectMs: -1,
      upstreamMs: -1,
      bytesSent: 0,
    },
    lines: [
      '192.0.2.7:41000 asked for GET /cart?id=7 of shop.example.com on listener "http" (HTTP/1.1); that ended at 2026-11-20T23:36:04.007Z, after 12 ms.',
      'It matched shop rule 0 and was meant for backend "cart" (configuration epoch 3, worker 0).',
      'It went to endpoint 10.0.0.1:9001.',
      'A new connection was started, and was never ready.',
      'The client got status 503, made by this gateway; 12 body bytes came from the client, 0 went to it.',
      'Reason UF: The connection to the upstream endpoint failed.',
      'The system reported an error for the connection attempt.',
      'The system said: connection refused (ECONNREFUSED).',
      'Hint: nothing listens at 10.0.0.1:9001: is the service running, on this port?',
    ],
  },
  {
    name: 'a stale kept connection',
    texts: { method: 'POST', path: '/cart' },
    fields: {
      status: 502,
      reason: Reason.STALE_UPSTREAM_CONNECTION,
      detail: Detail.UPSTREAM_RESET,
      errno: 104,
      generated: true,
      reusedConnection: true,
      upstreamConnectionUses: 41,
      upstreamConnectionAgeMs: 61_250,
      connectMs: 0.05,
      upstreamMs: -1,
    },
    lines: [
      '192.0.2.7:41000 asked for POST /cart of shop.example.com on listener "http" (HTTP/1.1); that ended at 2026-11-20T23:36:04.007Z, after 12 ms.',
      'It matched shop rule 0 and was meant for backend "cart" (configuration epoch 3, worker 0).',
      'It went to endpoint 10.0.0.1:9001.',
      'The connection was a kept one: 61.3 s old, with 41 earlier requests.',
      'No byte of a response came.',
      'The client got status 502, made by this gateway; 12 body bytes came from the client, 3456 went to it.',
      'Reason UCS: The upstream closed a kept-alive connection just as the request was sent on it.',
      'The upstream reset the connection (RST).',
      'The system said: connection reset by peer (ECONNRESET).',
      'Hint: the upstream\'s keep-alive timeout is shorter than this gateway\'s idleTimeout; set backends[].idleTimeout of "cart" below it. The request was not sent again, because that was not safe.',
    ],
  },
  {
    name: 'an upstream that breaks off its response',
    fields: {
      reason: Reason.UPSTREAM_CONNECTION_TERMINATION,
      detail: Detail.UPSTREAM_FIN,
      responseComplete: false,
    },
    lines: [
      '192.0.2.7:41000 asked for GET /cart?id=7 of shop.example.com on listener "http" (HTTP/1.1); that ended at 2026-11-20T23:36:04.007Z, after 12 ms.',
      'It matched shop rule 0 and was meant for backend "cart" (configuration epoch 3, worker 0).',
      'It went to endpoint 10.0.0.1:9001.',
      'A new connection was ready 1.5 ms after the request began.',
      'The first byte of its response came 10 ms after that.',
      'The client got status 200, from the upstream, and did not get all of it; 12 body bytes came from the client, 3456 went to it.',
      'Reason UC: The upstream closed its connection before its response was complete.',
      'The upstream finished its side of the connection (FIN).',
      "Hint: 10.0.0.1:9001 broke off in the middle of its response: its log at this time should say why; the client's connection was aborted so that the response does not look complete.",
    ],
  },
  {
    name: 'bytes that are no request',
    texts: { method: '', path: '', host: '', requestId: '' },
    fields: {
      ...unrouted,
      status: 400,
      reason: Reason.DOWNSTREAM_PROTOCOL_ERROR,
      detail: DETAIL_PARSE + 16,
      generated: true,
      bytesReceived: 0,
      bytesSent: 0,
    },
    lines: [
      '192.0.2.7:41000 sent something that did not become a request on listener "http"; that ended at 2026-11-20T23:36:04.007Z, after 12 ms.',
      'It matched no rule (configuration epoch 3, worker 0).',
      'The client got status 400, made by this gateway; 0 body bytes came from the client, 0 went to it.',
      'Reason DPE: The client sent bytes that are not valid HTTP.',
      'A line ends in a line feed without a carriage return.',
    ],
  },
  {
    name: 'a slow but good request',
    fields: { durationMs: 4321, upstreamMs: 4300 },
    lines: [
      '192.0.2.7:41000 asked for GET /cart?id=7 of shop.example.com on listener "http" (HTTP/1.1); that ended at 2026-11-20T23:36:04.007Z, after 4321 ms.',
      'It matched shop rule 0 and was meant for backend "cart" (configuration epoch 3, worker 0).',
      'It went to endpoint 10.0.0.1:9001.',
      'A new connection was ready 1.5 ms after the request began.',
      'The first byte of its response came 4300 ms after that.',
      'The client got status 200, from the upstream; 12 body bytes came from the client, 3456 went to it.',
      'Nothing failed: the exchange is recorded because it took long.',
    ],
  },
];

for (const { name, texts, fields, lines } of cases) {
  test(`explains ${name}`, () => {
    assert.deepEqual(explainRecord(recordOf(texts ?? {}, fields)), lines);
  });
}

const endings: { name: string; texts?: SourceTexts; fields: Partial<LogSource>; last: RegExp }[] = [
  {
    name: "an upstream's own error",
    fields: { status: 500 },
    last: /the error is the upstream application's own\.$/,
  },
  {
    name: 'a second attempt that met the same',
    fields: {
      reason: Reason.STALE_UPSTREAM_CONNECTION,
      detail: Detail.RETRIES_EXHAUSTED,
      attempts: 2,
      reusedConnection: true,
    },
    last: /The request was sent once more and met the same\.$/,
  },
  {
    name: 'a connect timeout',
    fields: { reason: Reason.UPSTREAM_CONNECT_FAILURE, detail: Detail.CONNECT_TIMER },
    last: /backends\[\]\.connectTimeout\.$/,
  },
  {
    name: 'a request that is too large',
    fields: { reason: Reason.REQUEST_TOO_LARGE, detail: Detail.BODY_TOO_LARGE },
    last: /raise limits\.maxRequestBodySize/,
  },
  {
    name: 'a client that left before the response',
    fields: { reason: Reason.DOWNSTREAM_CONNECTION_TERMINATION, responseStarted: false, status: 0 },
    last: /clients that leave before a response/,
  },
  {
    name: 'a backend without endpoints',
    fields: { reason: Reason.NO_HEALTHY_UPSTREAM, detail: Detail.NO_ENDPOINTS, endpoint: none },
    last: /check the endpoints of backend "cart"/,
  },
  {
    name: 'a tunnel that somebody else answers',
    fields: { reason: Reason.UPSTREAM_CONNECT_FAILURE, detail: DETAIL_TLS + TlsFailure.WRONG_HOST },
    last: /the tunnel to it \(port 15008 .*was reached, and is somebody else: the log line "TLS handshake failed"/,
  },
  {
    name: 'a tunnel to a node with other roots',
    fields: { reason: Reason.UPSTREAM_CONNECT_FAILURE, detail: DETAIL_TLS + TlsFailure.UNKNOWN_CA },
    last: /was reached, and nobody who is trusted here has signed its certificate: .*the roots of both nodes/,
  },
  {
    name: 'a tunnel whose root was removed',
    fields: { reason: Reason.UPSTREAM_CONNECTION_TERMINATION, detail: Detail.TUNNEL_UNTRUSTED },
    last: /portcullis mesh roots/,
  },
  {
    name: 'a workload without a certificate',
    fields: { reason: Reason.UPSTREAM_CONNECT_FAILURE, detail: Detail.NO_CERTIFICATE },
    last: /the log of the node and \/mesh/,
  },
  {
    name: 'a connection of a workload that was refused',
    fields: {
      ...{ reason: Reason.UPSTREAM_CONNECT_FAILURE, detail: Detail.CONNECT_ERRNO, errno: 111 },
      workload: bytesOf('shop/web-0'),
    },
    last: /or at port 15008 of its host, .*the proxy of its node running/,
  },
  {
    name: 'a connection of a workload that was closed',
    fields: {
      ...{ reason: Reason.UPSTREAM_CONNECTION_TERMINATION, detail: Detail.UPSTREAM_FIN, upstreamMs: -1 },
      workload: bytesOf('shop/web-0'),
    },
    last: /the proxy of its node, which closes what policies do not allow/,
  },
  {
    name: 'a connection that could not be marked',
    fields: { reason: Reason.UPSTREAM_CONNECT_FAILURE, detail: Detail.CONNECT_ERRNO, errno: 1 },
    last: /CAP_NET_ADMIN/,
  },
];

for (const { name, texts, fields, last } of endings) {
  test(`ends the explanation of ${name} with what to think of it`, () => {
    assert.match(explainRecord(recordOf(texts ?? {}, fields)).at(-1)!, last);
  });
}

test('every reason has its flag and sentence in the explanation', () => {
  for (let reason = 1; reason < REASON_COUNT; reason++) {
    const { flag, sentence } = reasonText(reason);
    assert.ok(explainRecord(recordOf({}, { reason })).includes(`Reason ${flag}: ${sentence}`));
  }
});

test('what a client sends cannot reach the terminal as control codes', () => {
  const path = Uint8Array.of(0x2f, 0x1b, 0x5b, 0x32, 0x4a, 0xc2, 0x9b, 0x0a, 0x7f);
  const line = explainRecord(recordOf({ path, requestId: path }, { status: 500 }))[0];
  assert.ok(line.includes('/\\x1b[2J\\x9b\\x0a\\x7f of shop'), line);
});

// -- the command ---------------------------------------------------------------------

async function run(args: string[]): Promise<{ code: number; out: string; err: string }> {
  let out = '';
  let err = '';
  const code = await runExplain(args, { write: (text) => (out += text) }, { write: (text) => (err += text) });
  return { code, out, err };
}

test('the command prints the explanation that the admin port gives', async (t) => {
  const state = fakeState();
  const { server } = await startAdmin(t, state);
  writers(state).flight[0].record(exampleSource({ requestId: 'my id' }, { status: 500 }));
  const admin = `127.0.0.1:${server.port}`;
  const plain = await run(['my id', '--admin', admin]);
  assert.equal(plain.code, 0);
  assert.equal(plain.err, '');
  assert.match(plain.out, /^192\.0\.2\.7:41000 asked for GET/);
  assert.ok(plain.out.endsWith("the upstream application's own.\n"));

  const json = await run(['--json', `--admin=${admin}`, 'my id']);
  assert.equal(json.code, 0);
  assert.equal(JSON.parse(json.out).record.requestId.text, 'my id');
});

test('an id without a record gives code 1 and says so', async (t) => {
  const { server } = await startAdmin(t, fakeState());
  const { code, out, err } = await run(['other', '--admin', `127.0.0.1:${server.port}`]);
  assert.equal(code, 1);
  assert.equal(out, '');
  assert.match(err, /^no record of request other: only failed and slow requests are recorded/);
});

test('an admin port that nobody listens on gives code 1 and says so', async () => {
  const server = await startAdminServer('127.0.0.1', 0, fakeState());
  await server.close();
  const { code, err } = await run(['x', '--admin', `127.0.0.1:${server.port}`]);
  assert.equal(code, 1);
  assert.match(err, /^cannot reach the admin port 127\.0\.0\.1:\d+: .*ECONNREFUSED.*is the gateway running/);
});

const misuses: [args: string[], sentence: RegExp][] = [
  [[], /a request id is missing/],
  [['a', 'b'], /one request id is expected, not also "b"/],
  [['a', '--admin'], /--admin needs HOST:PORT/],
  [['a', '--admin', 'nowhere'], /expected HOST:PORT, not "nowhere"/],
  [['a', '--admin', 'h:99999'], /expected HOST:PORT/],
  [['a', '--verbose'], /unknown option --verbose/],
];

for (const [args, sentence] of misuses) {
  test(`explain ${args.join(' ')} is wrong use: code 2, the cause and the usage`, async () => {
    const { code, out, err } = await run(args);
    assert.equal(code, 2);
    assert.equal(out, '');
    assert.match(err, sentence);
    assert.match(err, /usage: portcullis explain ID/);
  });
}

test('--help prints the usage', async () => {
  const { code, out } = await run(['--help']);
  assert.equal(code, 0);
  assert.match(out, /^usage: portcullis explain ID/);
});
