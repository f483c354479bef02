// Random request heads against a plain description of the rules, text in and text out.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
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
import { rewriteRequest } from './request-head-fixture.ts';
import { clientFrom, fieldsOf, runtimeOf, wideLimits } from './support.ts';

const ENDPOINT = '192.0.2.200:65535';

interface RandomRequest {
  method: string;
  /** Target as sent, and what of it goes upstream. */
  target: string;
  path: string;
  /** Authority of an absolute target. */
  authority: string | undefined;
  minor: number;
  fields: RandomField[];
  upgrade: string | undefined;
}

function randomRequest(random: Random): RandomRequest {
  const minor = random.chance(0.8) ? 1 : 0;
  const host = random.pick(['h', 'example.com:8080', '[2001:db8::1]:1', `${'a'.repeat(random.size(1, 3000))}.example`]);
  const query = random.pick(['', '?', '?q=1', `?${'x'.repeat(random.int(0, 300))}`]);
  const path = random.pick(['/', '/a/b', `/${'p'.repeat(random.int(0, 500))}`]);
  let method = random.pick(['GET', 'POST', 'OPTIONS', 'PATCH', 'BREW-COFFEE-VERY-SLOWLY']);
  let target = path + query;
  let authority: string | undefined;
  let upstreamPath = target;
  if (random.chance(0.3)) {
    authority = host;
    const bare = random.chance(0.4);
    target = `${random.pick(['http', 'HTTPS'])}://${host}${bare ? query : target}`;
    if (bare) upstreamPath = query === '' && method === 'OPTIONS' ? '*' : `/${query}`;
  } else if (random.chance(0.1)) {
    method = 'OPTIONS';
    target = upstreamPath = '*';
  }

  const fields: RandomField[] = [];
  const add = (name: string, value: string): void => void fields.push(randomField(random, name, value));
  if (minor === 1 || random.chance(0.5)) add('host', random.pick([host, host, host, 'other.example', '']));
  for (let i = random.int(0, 12); i > 0; i--) {
    const name = random.pick(['x-a', 'x-ab', 'x-b', 'accept', 'user-agent', 'cookie', 'trailer', 'x-custom-long-name']);
    add(name, randomValue(random));
  }
  const sometimes: [name: string, value: () => string][] = [
    ['keep-alive', () => 'timeout=5'],
    ['proxy-connection', () => 'keep-alive'],
    ['http2-settings', () => 'AAA'],
    ['proxy-authorization', () => 'Basic eA=='],
    ['te', () => random.pick(['trailers', 'TRAILERS', 'gzip', 'trailers, gzip', ''])],
    ['x-forwarded-for', () => random.pick(['', '192.0.2.1', '192.0.2.1, 2001:db8::3', 'z'.repeat(random.int(1, 200))])],
    ['x-forwarded-for', () => '198.51.100.7'],
    ['x-forwarded-proto', () => random.pick(['https', ''])],
    ['x-forwarded-host', () => 'public.example'],
    ['forwarded', () => 'for=192.0.2.1'],
    ['x-request-id', () => random.pick(['', 'id-1', 'i'.repeat(128), 'i'.repeat(129)])],
    ['x-request-id', () => 'id-2'],
    ['via', () => '1.1 other'],
  ];
  const density = random.pick([0, 0, 0.1, 0.5]);
  for (const [name, value] of sometimes) if (random.chance(density)) add(name, value());
  let upgrade: string | undefined;
  if (random.chance(density)) {
    upgrade = random.pick(['websocket', 'WebSocket', 'u'.repeat(random.int(1, 100))]);
    add('upgrade', upgrade);
    add('connection', 'upgrade');
  }
  if (random.chance(density)) add('connection', randomConnection(random, ['close', 'keep-alive']));
  if (random.chance(0.3)) add('content-length', String(random.int(0, 1e6)));
  return { method, target, path: upstreamPath, authority, minor, fields: shuffled(random, fields), upgrade };
}

/** The rules, as one would write them with strings. `{id}` stands for a generated id. */
function expectedOutput(
  request: RandomRequest,
  http: HttpSettings,
  client: string,
  scheme: string,
  upgrade: boolean,
): string {
  const { fields, authority } = request;
  const trusted = http.trustedHops > 0;
  const named = namedByConnection(fields);
  const hopByHop = ['connection', 'keep-alive', 'proxy-connection', 'upgrade', 'http2-settings', 'proxy-authorization'];
  let requestId: string | undefined;
  const kept = fields.filter(({ name, value }) => {
    if (hopByHop.includes(name) || name === 'te' || named.has(name)) return false;
    if (name === 'host') return authority === undefined;
    if (name === 'x-forwarded-for') return !http.forwardedHeaders;
    if (['x-forwarded-proto', 'x-forwarded-host', 'forwarded'].includes(name)) return trusted || !http.forwardedHeaders;
    if (name !== 'x-request-id') return true;
    if (requestId !== undefined || value === '' || value.length > 128) return false;
    if (!trusted && http.requestIdHeader) return false;
    requestId = value;
    return true;
  });
  const values = (wanted: string): string[] => fields.filter(({ name }) => name === wanted).map(({ value }) => value);
  const lines = kept.map(({ line }) => line);
  const sentHost = values('host')[0];
  const asked = authority ?? sentHost ?? '';
  if (authority !== undefined) lines.push(`host: ${authority}\r\n`);
  else if (sentHost === undefined) lines.push(`host: ${ENDPOINT}\r\n`);
  if (upgrade) lines.push(`connection: upgrade\r\nupgrade: ${request.upgrade}\r\n`);
  else if (values('te').some((value) => value.toLowerCase() === 'trailers')) {
    lines.push('te: trailers\r\nconnection: te\r\n');
  }
  if (http.forwardedHeaders) {
    const list = trusted ? values('x-forwarded-for').filter((value) => value !== '') : [];
    lines.push(`x-forwarded-for: ${[...list, client].join(', ')}\r\n`);
    if (!trusted || values('x-forwarded-proto').length === 0) lines.push(`x-forwarded-proto: ${scheme}\r\n`);
    if (asked !== '' && (!trusted || values('x-forwarded-host').length === 0)) {
      lines.push(`x-forwarded-host: ${asked}\r\n`);
    }
  }
  if (http.requestIdHeader && requestId === undefined) lines.push('x-request-id: {id}\r\n');
  if (http.via !== '') lines.push(`via: 1.${request.minor} ${http.via}\r\n`);
  return `${request.method} ${request.path} HTTP/1.1\r\n${lines.join('')}\r\n`;
}

test('random heads leave as the rules say, are valid, and stay within their room', (t) => {
  const { random, label } = seededRandom(t);
  const parsed = new RequestHead();
  for (let round = 0; round < 4000; round++) {
    const request = randomRequest(random);
    const runtime = runtimeOf({
      trustedHops: random.int(0, 2),
      forwardedHeaders: random.chance(0.6),
      requestIdHeader: random.chance(0.6),
      // Long enough that a bound without it would not hold.
      via: random.pick(['', 'p', 'v'.repeat(random.size(1, 2000))]),
    });
    const client = random.pick(['192.0.2.9', '255.255.255.255', '2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff', '::1']);
    const scheme = random.pick(['http', 'https'] as const);
    // As the downstream side decides it: HTTP/1.1, one Upgrade, named by Connection.
    const upgrade = request.upgrade !== undefined && request.minor === 1 && random.chance(0.7);

    const { method, target, minor, fields } = request;
    const input = `${method} ${target} HTTP/1.${minor}\r\n${fields.map(({ line }) => line).join('')}\r\n`;
    const empties = random.pick(['', '', '\r\n', '\r\n\r\n']);
    const bytes = Buffer.from(empties + input, 'latin1');
    const result = rewriteRequest(bytes, runtime, clientFrom(client, scheme), ENDPOINT, upgrade);
    const expected = expectedOutput(request, runtime.http, client, scheme, upgrade);
    const about = `${label} round ${round}: ${JSON.stringify(input)}`;
    const generated = expected.includes('x-request-id: {id}\r\n');
    assert.equal(generated ? result.output.replace(result.requestId, '{id}') : result.output, expected, about);
    assert.ok(result.requestId.length > 0, about);
    assert.equal(result.path, request.path, about);
    assert.equal(result.method, request.method, about);

    const output = Buffer.from(result.output, 'latin1');
    assert.equal(parseRequestHead(output, 0, output.length, wideLimits, parsed), output.length, about);
    assert.equal(fieldsOf(output, parsed.headers).filter((field) => /^host:/i.test(field)).length, 1, about);
    assert.equal(
      Buffer.from(output.subarray(parsed.authorityOffset, parsed.authorityOffset + parsed.authorityLength)).toString(),
      result.host,
      about,
    );
  }
});
