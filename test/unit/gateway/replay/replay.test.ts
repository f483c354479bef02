// What a replay makes of recorded requests: which rule of a configuration takes them, and how that
// compares with what had become of them.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Config } from '../../../../config/config.ts';
import { loadConfig } from '../../../../config/load.ts';
import type { RecordedRequest } from '../../../../core/telemetry/recorder-reader.ts';
import { formatReplay } from '../../../../gateway/replay/format.ts';
import { type ReplayResult, replayFile } from '../../../../gateway/replay/replay.ts';
import { ReplayRouter } from '../../../../gateway/replay/router.ts';

function configOf(yaml: string): Config {
  const result = loadConfig(yaml, '/gateway.yaml', {});
  if ('errors' in result) assert.fail(result.errors.map(({ problem }) => problem).join('\n'));
  return result.config;
}

const LISTENERS = 'listeners: [{name: http, address: "127.0.0.1:8080"}]';
const BACKENDS = `backends:
  - {name: a, endpoints: ["127.0.0.1:1"]}
  - {name: b, endpoints: ["127.0.0.1:2"]}
`;

/** A configuration whose one route, for any host, has these rules. */
function rules(...texts: string[]): Config {
  return configOf(
    `${LISTENERS}\nroutes:\n  - name: app\n    rules:\n${texts.map((text) => `      - ${text}\n`).join('')}${BACKENDS}`,
  );
}

/** A request that rule 1 of `app` has sent to backend a. */
const plain: RecordedRequest = {
  time: '2026-01-01T00:00:00.000Z',
  epoch: 1,
  listener: 'http',
  method: 'GET',
  host: 'app.test',
  path: '/',
  protocol: 'HTTP/1.1',
  headers: [],
  client: '192.0.2.1',
  tls: false,
  serverName: '',
  certificate: null,
  route: 'app rule 1',
  backend: 'a',
  backends: { a: 1 },
  status: 200,
  reason: 0,
  generated: false,
};

/** `label` or `kind`, and where to, in one text. */
function fate(config: Config, request: Partial<RecordedRequest>): string {
  const result = new ReplayRouter(config).fateOf({ ...plain, ...request });
  switch (result.kind) {
    case 'none':
      return result.cause;
    case 'answered':
      return result.how;
    case 'forwarded':
      return Object.keys(result.backends).join('+');
  }
}

test('method, fields, query, path and host decide as in the gateway', () => {
  const config = rules(
    '{matches: [{path: {value: /m}, method: POST}], backendRefs: [{name: b}]}',
    '{matches: [{path: {value: /h}, headers: [{name: X-A, value: "1"}]}], backendRefs: [{name: b}]}',
    '{matches: [{path: {value: /q}, queryParams: [{name: v, value: "2"}]}], backendRefs: [{name: b}]}',
    '{matches: [{path: {type: RegularExpression, value: "/r/[0-9]+"}}], backendRefs: [{name: b}]}',
    '{matches: [{grpc: {service: shop.Cart}}], backendRefs: [{name: b}]}',
    '{backendRefs: [{name: a}]}',
  );
  const cases: [request: Partial<RecordedRequest>, backend: string][] = [
    [{ path: '/m', method: 'POST' }, 'b'],
    [{ path: '/m' }, 'a'],
    [{ path: '/h', headers: [['x-a', '1']] }, 'b'],
    [{ path: '/h', headers: [['x-a', '2']] }, 'a'],
    [{ path: '/q?v=2' }, 'b'],
    [{ path: '/q?v=3' }, 'a'],
    [{ path: '/r/42' }, 'b'],
    [{ path: '/r/x' }, 'a'],
    [
      { path: '/shop.Cart/Add', method: 'POST', protocol: 'HTTP/2', headers: [['content-type', 'application/grpc']] },
      'b',
    ],
    [{ path: '/shop.Cart/Add', method: 'POST' }, 'a'],
    [{ path: '*', method: 'OPTIONS' }, 'a'],
    [{ path: 'app.test:443', host: 'app.test:443', method: 'CONNECT' }, 'a'],
    [{ host: '', protocol: 'HTTP/1.0' }, 'a'],
  ];
  for (const [request, backend] of cases) assert.equal(fate(config, request), backend, JSON.stringify(request));
});

test('a recorded body, upgrade or odd framing does not keep a request from being routed', () => {
  const config = rules('{backendRefs: [{name: a}]}');
  const headers: [string, string][] = [
    ['content-length', '12'],
    ['transfer-encoding', 'chunked'],
    ['connection', 'upgrade'],
    ['upgrade', 'websocket'],
    ['host', 'other.test'],
  ];
  assert.equal(fate(config, { headers }), 'a');
});

test('the client is the one behind the proxies that the new configuration trusts', () => {
  const rule = '{matches: [{sourceAddresses: ["203.0.113.0/24", "2001:db8::/32"]}], backendRefs: [{name: b}]}';
  const config = rules(rule, '{backendRefs: [{name: a}]}');
  const trusting = { ...config, trustedHops: 1 };
  const forwarded: [string, string][] = [
    ['x-forwarded-for', '198.51.100.1'],
    ['x-forwarded-for', '203.0.113.9'],
  ];
  assert.equal(fate(config, { client: '203.0.113.7' }), 'b');
  assert.equal(fate(config, { client: '2001:db8::1' }), 'b');
  assert.equal(fate(config, { client: '2001:db9::1' }), 'a');
  assert.equal(fate(config, { headers: forwarded }), 'a');
  assert.equal(fate(trusting, { headers: forwarded }), 'b');
});

test('names of a verified client certificate count', () => {
  const uri = 'spiffe://test/ns/shop/sa/cart';
  const config = rules(
    `{matches: [{clientCertificate: {subjectAltNames: [{value: "${uri}"}]}}], backendRefs: [{name: b}]}`,
    '{backendRefs: [{name: a}]}',
  );
  const certificate = (name: string) => ({ sha256: '0'.repeat(64), subjectAltNames: ['cart.test', name] });
  assert.equal(fate(config, { certificate: certificate(uri) }), 'b');
  assert.equal(fate(config, { certificate: certificate(`${uri}-2`) }), 'a');
  assert.equal(fate(config, {}), 'a');
});

test('answers of the gateway are told apart from backends', () => {
  const config = rules(
    '{matches: [{path: {value: /redirect}}], filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, hostname: other.test}}]}',
    '{matches: [{path: {value: /direct}}], filters: [{type: DirectResponse, directResponse: {statusCode: 204}}]}',
    '{matches: [{path: {value: /abort}}], filters: [{type: FaultInjection, faultInjection: {abort: {statusCode: 503}, headers: [{name: X-Fault, value: "yes"}]}}], backendRefs: [{name: a}]}',
    '{matches: [{path: {value: /half}}], filters: [{type: FaultInjection, faultInjection: {abort: {statusCode: 503, percent: 50}}}], backendRefs: [{name: a}]}',
    '{matches: [{path: {value: /cors}}], filters: [{type: CORS, cors: {allowOrigins: ["*"]}}], backendRefs: [{name: a}]}',
  );
  const preflight: [string, string][] = [
    ['origin', 'https://x.test'],
    ['access-control-request-method', 'PUT'],
  ];
  assert.equal(fate(config, { path: '/redirect' }), 'redirected with 301');
  assert.equal(fate(config, { path: '/direct' }), 'answered with 204');
  assert.equal(fate(config, { path: '/abort', headers: [['x-fault', 'yes']] }), 'denied by FaultInjection');
  assert.equal(fate(config, { path: '/abort' }), 'a');
  assert.equal(fate(config, { path: '/half' }), 'a');
  assert.equal(fate(config, { path: '/cors', method: 'OPTIONS', headers: preflight }), 'answered as a CORS preflight');
  assert.equal(fate(config, { path: '/cors', headers: preflight }), 'a');
  assert.equal(fate(config, { path: '/elsewhere' }), 'no rule');
});

test('the listener counts, by its name', () => {
  const config = configOf(`listeners:
  - {name: http, address: "127.0.0.1:8080", redirectToHttps: true}
  - {name: inside, address: "127.0.0.1:8081"}
routes:
  - {name: app, listeners: [inside], rules: [{backendRefs: [{name: a}]}]}
${BACKENDS}`);
  assert.equal(fate(config, {}), 'redirected to https with 301');
  assert.equal(fate(config, { listener: 'inside' }), 'a');
  assert.equal(fate(config, { listener: 'gone' }), 'no listener');
});

/** Replays these requests through a configuration. */
async function replay(t: TestContext, config: Config, requests: object[], header = {}): Promise<ReplayResult> {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-replay-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = join(directory, 'recording.jsonl');
  const lines = [{ portcullisRecording: 1, hashedHeaders: ['cookie'], tooLong: 0, ...header }, ...requests];
  writeFileSync(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
  return replayFile(file, config);
}

test('each request has one outcome, by what it did and what it would do', async (t) => {
  const forwarding = rules('{backendRefs: [{name: a}, {name: b, weight: 0}]}');
  const answering = rules('{filters: [{type: DirectResponse, directResponse: {statusCode: 204}}]}');
  const without = configOf(`${LISTENERS}\nroutes: []\n${BACKENDS}`);
  const unrouted = { ...plain, route: '', backend: '', backends: {}, status: 404, reason: 1, generated: true };
  const answered = { ...plain, backend: '', backends: {}, status: 204, generated: true };
  const failed = { ...plain, status: 503, reason: 2, generated: true };
  const split = { ...plain, backends: { a: 1, b: 1 } };
  const redirected = { ...plain, status: 301, generated: true };
  const cases: [config: Config, request: object, outcome: string][] = [
    [forwarding, plain, 'kept'],
    [forwarding, { ...plain, route: 'app rule 7' }, 'kept'],
    [forwarding, { ...plain, route: 'other rule 1' }, 'route'],
    [forwarding, failed, 'kept'],
    [forwarding, split, 'backend'],
    [forwarding, { ...plain, backends: { a: 5, b: 0 } }, 'kept'],
    [forwarding, unrouted, 'gained'],
    [forwarding, answered, 'forwarded'],
    // A listener that redirects: the rule was looked up all the same.
    [forwarding, redirected, 'forwarded'],
    [answering, plain, 'answered'],
    [answering, unrouted, 'answered'],
    [answering, answered, 'kept'],
    [answering, { ...answered, route: 'other rule 1' }, 'route'],
    [without, plain, 'lost'],
    [without, answered, 'lost'],
    [without, unrouted, 'kept'],
  ];
  for (const [config, request, outcome] of cases) {
    const { outcomes, changed } = await replay(t, config, [request]);
    assert.equal(Object.entries(outcomes).find(([, count]) => count > 0)![0], outcome, JSON.stringify(request));
    assert.equal(changed, outcome === 'kept' ? 0 : 1);
  }
});

test('the result has at most five examples of an outcome, and says how many there are', async (t) => {
  const config = rules('{backendRefs: [{name: b}]}');
  const result = await replay(
    t,
    config,
    Array.from({ length: 8 }, (_, index) => ({ ...plain, path: `/${index}` })),
  );
  assert.equal(result.outcomes.backend, 8);
  assert.deepEqual(
    result.examples.backend!.map(({ path }) => path),
    ['/0', '/1', '/2', '/3', '/4'],
  );
  assert.match(formatReplay(result), /^ {9}8 {2}would go to other backends\n( {12}GET .*\n){5} {12}and 3 more$/m);
});

test('texts from clients reach the terminal without control characters', async (t) => {
  const config = rules('{backendRefs: [{name: b}]}');
  const text = formatReplay(await replay(t, config, [{ ...plain, host: 'a\u001b[2J\u009bx' }]));
  assert.match(text, /a\\x1b\[2J\\x9bx/);
});

test('rules that look at hashed fields, and heads that were too long, are pointed out', async (t) => {
  const config = rules(
    '{matches: [{headers: [{name: Cookie, value: "canary=1"}]}], backendRefs: [{name: b}]}',
    '{backendRefs: [{name: a}]}',
  );
  const { notes } = await replay(t, config, [plain], { tooLong: 3 });
  assert.equal(notes.length, 2);
  assert.match(notes[0]!, /^rules match on cookie, whose values are hashed/);
  assert.match(notes[1]!, /^3 requests are not in the recording/);
  assert.deepEqual((await replay(t, config, [])).notes.slice(1), ['the recording holds no request']);
  assert.deepEqual((await replay(t, rules('{backendRefs: [{name: a}]}'), [plain])).notes, []);
});

test('a line that would be two lines of a head is refused', async (t) => {
  const config = rules('{backendRefs: [{name: a}]}');
  for (const bad of [
    { path: '/a b' },
    { method: 'GE T' },
    { host: 'a\r\nx: y' },
    { headers: [['x-a', 'b\nc']] },
    { headers: [['x-a']] },
    { backends: { a: 'one' } },
    { certificate: 'cart.test' },
  ]) {
    await assert.rejects(
      replay(t, config, [plain, { ...plain, ...bad }]),
      /recording\.jsonl:3: not a recorded request: /,
    );
  }
});
