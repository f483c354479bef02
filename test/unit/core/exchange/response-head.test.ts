// Response heads rewritten in place: named cases first, then random heads against plain rules.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConnectionOption, DateLine, OutFraming } from '../../../../core/exchange/response-head.ts';
import { ResponseHead } from '../../../../core/http1/message.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import type { HttpSettings } from '../../../../core/workers/snapshot.ts';
import type { Random } from '../../../sim/random.ts';
import { seededRandom } from '../io/seed.ts';
import {
  namedByConnection,
  type RandomField,
  randomConnection,
  randomField,
  randomValue,
  shuffled,
} from './random-heads.ts';
import { dateValue, type Rewriting, rewriteResponse } from './response-head-fixture.ts';
import { runtimeOf, wideLimits } from './support.ts';

const { CLOSE, KEEP_ALIVE, NONE, UPGRADE } = ConnectionOption;
const dateLine = `date: ${dateValue}\r\n`;

function rewritten(input: string, how: Partial<Rewriting> = {}, http: Partial<HttpSettings> = {}): string {
  const all = { framing: OutFraming.KEEP, connection: NONE, gapBytes: 0, ...how };
  return rewriteResponse(Buffer.from(input, 'latin1'), runtimeOf(http), all);
}

test('a head with nothing to change passes byte for byte', () => {
  const input =
    'HTTP/1.1 200 OK\r\nDate:  today \r\nServer: s\r\nContent-Length: 5\r\nset-cookie: a\r\nset-cookie: b\r\n\r\n';
  assert.equal(rewritten(input), input);
});

test('a head without Date gets one (RFC 9110 §6.6.1), an informational one does not', () => {
  assert.equal(
    rewritten('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'),
    `HTTP/1.1 200 OK\r\n${dateLine}Content-Length: 0\r\n\r\n`,
  );
  assert.equal(rewritten('HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n'), 'HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n');
});

test('hop-by-hop fields and those that Connection names end here', () => {
  assert.equal(
    rewritten(
      'HTTP/1.1 200 OK\r\nX-Gone: 1\r\nDate: d\r\nKeep-Alive: timeout=5\r\nA: 1\r\nConnection: keep-alive, x-gone\r\n' +
        'Proxy-Connection: x\r\nTE: x\r\nUpgrade: h2\r\nB: 2\r\n\r\n',
    ),
    'HTTP/1.1 200 OK\r\nDate: d\r\nA: 1\r\nB: 2\r\n\r\n',
  );
});

test('a field named by a Connection that comes after it ends here, although fields move over that Connection', () => {
  assert.equal(
    rewritten('HTTP/1.1 200 OK\r\nX-A: 1\r\nDate: d\r\nKeep-Alive: 5\r\nC: 3\r\nConnection: x-a\r\n\r\n'),
    'HTTP/1.1 200 OK\r\nDate: d\r\nC: 3\r\n\r\n',
  );
});

test('a chunked body stays announced when Connection names Transfer-Encoding', () => {
  const input = 'HTTP/1.1 200 OK\r\nDate: d\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n';
  assert.match(rewritten(input, { framing: OutFraming.CHUNKED }), /\r\ntransfer-encoding: chunked\r\n/i);
});

test('a switch of protocols keeps its Upgrade, also when Connection names other fields', () => {
  const input =
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n';
  const expected =
    'HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n';
  assert.equal(rewritten(input, { connection: UPGRADE, framing: OutFraming.NONE }), expected);
  assert.equal(
    rewritten(input.replace('Connection: Upgrade', 'Connection: Upgrade, x-other'), {
      connection: UPGRADE,
      framing: OutFraming.NONE,
    }),
    expected,
  );
});

test('the body is framed anew as asked', () => {
  const length = 'HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 5\r\n\r\n';
  const chunked = 'HTTP/1.1 200 OK\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n';
  assert.equal(rewritten(length, { framing: OutFraming.KEEP }), length);
  assert.equal(
    rewritten(length, { framing: OutFraming.CHUNKED }),
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nDate: d\r\n\r\n',
  );
  assert.equal(rewritten(length, { framing: OutFraming.NONE }), 'HTTP/1.1 200 OK\r\nDate: d\r\n\r\n');
  assert.equal(rewritten(chunked, { framing: OutFraming.CHUNKED }), chunked);
  assert.equal(rewritten(chunked, { framing: OutFraming.NONE }), 'HTTP/1.1 200 OK\r\nDate: d\r\n\r\n');
});

test('the version is our own, whatever the upstream speaks (RFC 9110 §2.5)', () => {
  assert.equal(rewritten('HTTP/1.0 200 OK\r\nDate: d\r\n\r\n'), 'HTTP/1.1 200 OK\r\nDate: d\r\n\r\n');
});

test('Connection, Server and Via are what the settings and the client need', () => {
  const input = 'HTTP/1.0 204 No Content\r\nServer: theirs\r\nVia: 1.1 other\r\nDate: d\r\n\r\n';
  assert.equal(
    rewritten(input, { connection: CLOSE }, { server: 'ours', via: 'p' }),
    'HTTP/1.1 204 No Content\r\nserver: ours\r\nvia: 1.0 p\r\nconnection: close\r\nVia: 1.1 other\r\nDate: d\r\n\r\n',
  );
  assert.match(rewritten(input, { connection: KEEP_ALIVE }), /\r\nconnection: keep-alive\r\nServer: theirs\r\n/);
});

test('a head that is only a status line, with and without reason', () => {
  assert.equal(rewritten('HTTP/1.1 200\r\n\r\n'), `HTTP/1.1 200\r\n${dateLine}\r\n`);
  assert.equal(rewritten('HTTP/1.1 200 \r\n\r\n', { gapBytes: 9 }), `HTTP/1.1 200 \r\n${dateLine}\r\n`);
});

test('the date line follows the clock by whole seconds', () => {
  const date = new DateLine();
  const at = Date.UTC(2026, 1, 3, 4, 5, 6);
  const text = (ms: number): string => Buffer.from(date.at(ms).bytes.subarray(0, date.at(ms).length)).toString();
  assert.equal(text(at), 'date: Tue, 03 Feb 2026 04:05:06 GMT\r\n');
  assert.equal(text(at + 999), text(at));
  assert.equal(text(at + 1000), 'date: Tue, 03 Feb 2026 04:05:07 GMT\r\n');
  assert.equal(date.at(at + 1000), date.at(at + 1001), 'the text is made once a second');
});

interface RandomResponse {
  status: number;
  statusLine: string;
  minor: number;
  fields: RandomField[];
}

function randomResponse(random: Random): RandomResponse {
  const minor = random.chance(0.85) ? 1 : 0;
  const status = random.pick([100, 103, 200, 200, 200, 204, 301, 304, 404, 500, 599]);
  const reason = random.pick(['', ' ', ' OK', ` ${'long reason '.repeat(random.int(1, 8))}`, ' \u00e9t\u00e9']);
  const fields: RandomField[] = [];
  const add = (name: string, value: string): void => void fields.push(randomField(random, name, value));
  for (let i = random.int(0, 10); i > 0; i--) {
    const name = random.pick(['x-a', 'x-ab', 'x-b', 'accept', 'set-cookie', 'etag', 'proxy-authenticate', 'trailer']);
    add(name, randomValue(random));
  }
  const density = random.pick([0, 0.1, 0.6]);
  const sometimes: [name: string, value: () => string][] = [
    ['date', () => 'Tue, 03 Feb 2026 04:05:06 GMT'],
    ['server', () => 'theirs'],
    ['keep-alive', () => 'timeout=5'],
    ['proxy-connection', () => 'close'],
    ['te', () => 'trailers'],
    ['upgrade', () => 'h2c'],
    ['via', () => '1.1 other'],
    ['via', () => '1.0 another'],
    ['connection', () => randomConnection(random, ['close', 'keep-alive', 'upgrade', 'transfer-encoding'])],
    ['connection', () => randomConnection(random, ['close'])],
  ];
  for (const [name, value] of sometimes) if (random.chance(density)) add(name, value());
  const body = random.int(0, 2);
  if (body === 1) add('content-length', String(random.int(0, 1e9)));
  if (body === 2 && minor === 1) add('transfer-encoding', 'chunked');
  return { status, statusLine: `HTTP/1.${minor} ${status}${reason}\r\n`, minor, fields: shuffled(random, fields) };
}

/** The rules, as one would write them with strings. */
function expectedOutput(response: RandomResponse, how: Rewriting, http: HttpSettings): string {
  const { fields, status, minor } = response;
  const named = namedByConnection(fields);
  const dropped = new Set(['connection', 'keep-alive', 'proxy-connection', 'te']);
  if (how.framing !== OutFraming.CHUNKED) dropped.add('transfer-encoding');
  if (how.framing !== OutFraming.KEEP) dropped.add('content-length');
  if (how.connection !== UPGRADE) dropped.add('upgrade');
  if (http.server !== '') dropped.add('server');
  const kept = fields.filter(({ name }) => {
    // What this hop says itself does not depend on what the last one said of its own connection.
    const own = name === 'transfer-encoding' || name === 'upgrade';
    return !dropped.has(name) && (own || !named.has(name));
  });
  const has = (name: string): boolean => fields.some((field) => field.name === name);
  let added = '';
  if (!has('date') && status >= 200) added += dateLine;
  if (http.server !== '') added += `server: ${http.server}\r\n`;
  if (http.via !== '') added += `via: 1.${minor} ${http.via}\r\n`;
  if (how.framing === OutFraming.CHUNKED && !has('transfer-encoding')) added += 'transfer-encoding: chunked\r\n';
  added += ['', 'connection: close\r\n', 'connection: keep-alive\r\n', 'connection: upgrade\r\n'][how.connection];
  const statusLine = response.statusLine.replace('HTTP/1.0', 'HTTP/1.1');
  return `${statusLine}${added}${kept.map(({ line }) => line).join('')}\r\n`;
}

test('random heads leave as the rules say, with any framing, connection option and end', (t) => {
  const { random, label } = seededRandom(t);
  const parsed = new ResponseHead();
  for (let round = 0; round < 6000; round++) {
    const response = randomResponse(random);
    const runtime = runtimeOf({
      server: random.pick(['', 's', 'x'.repeat(random.int(1, 100))]),
      via: random.pick(['', 'p', 'v'.repeat(random.int(1, 100))]),
    });
    const how: Rewriting = {
      framing: random.pick(Object.values(OutFraming)),
      connection: random.pick(Object.values(ConnectionOption)),
      gapBytes: random.pick([0, 0, random.int(1, 12), random.int(1, 400)]),
    };
    const input = `${response.statusLine}${response.fields.map(({ line }) => line).join('')}\r\n`;
    const output = rewriteResponse(Buffer.from(input, 'latin1'), runtime, how);
    const about = `${label} round ${round}: ${JSON.stringify(how)} ${JSON.stringify(input)}`;
    assert.equal(output, expectedOutput(response, how, runtime.http), about);
    const bytes = Buffer.from(output, 'latin1');
    assert.equal(parseResponseHead(bytes, 0, bytes.length, wideLimits, parsed), bytes.length, about);
  }
});
