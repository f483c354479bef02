// Recording the requests of a running gateway, and replaying them through another configuration.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:http2';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { RecordedRequest } from '../../core/telemetry/recorder-reader.ts';
import { becomes } from './http/support.ts';
import { fileLifetime } from './shared-gateway.ts';
import { type Lifetime, namedUpstream, runToEnd, startGateway, temporaryDirectory } from './support.ts';

/** Two hosts over two backends, one of them split, and a path without a route. */
function configOf(recorder: string, routes: string, port: number): string {
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
${recorder}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
${routes}
backends:
  - {name: a, endpoints: ["127.0.0.1:${port}"]}
  - {name: b, endpoints: ["127.0.0.1:${port}"]}
  - {name: c, endpoints: ["127.0.0.1:${port}"]}
`;
}

const ROUTES = `
  - name: shop
    hostnames: [shop.test]
    rules:
      - {matches: [{path: {value: /cart}}], backendRefs: [{name: a, weight: 1}, {name: b, weight: 1}]}
      - {backendRefs: [{name: b}]}
  - {name: blog, hostnames: [blog.test], rules: [{backendRefs: [{name: c}]}]}
`;

function get(port: number, host: string, path: string, headers: Record<string, string> = {}): Promise<number> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: '127.0.0.1', port, path, headers: { host, ...headers }, agent: false }, (response) => {
      response.resume();
      response.on('end', () => resolve(response.statusCode!));
    });
    sent.on('error', reject);
    sent.end();
  });
}

interface Page {
  status: number;
  text: string;
}

function admin(port: number, path: string, method = 'GET'): Promise<Page> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: '127.0.0.1', port, path, method, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk) => {
        text += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode!, text }));
    });
    sent.on('error', reject);
    sent.end();
  });
}

/** Header and records of a gateway, once there are so many: a client may be faster than the record. */
async function recordsOf(adminPort: number, count: number): Promise<string[]> {
  let lines: string[] = [];
  await becomes(`${count} records`, async () => {
    lines = (await admin(adminPort, '/recorded-requests')).text.trimEnd().split('\n');
    return lines.length > count;
  });
  return lines;
}

const file = fileLifetime();
let recorded: ReturnType<typeof recordingOf> | undefined;

/** What `portcullis recorded` writes of a gateway that got the requests of the tests; it is made once. */
function recording(): ReturnType<typeof recordingOf> {
  recorded ??= recordingOf(file);
  return recorded;
}

async function recordingOf(t: Lifetime): Promise<{ file: string; lines: string[] }> {
  const upstream = await namedUpstream(t, 'up');
  const gateway = startGateway(t, configOf('recorder: {redactHeaders: [X-Secret]}', ROUTES, upstream));
  const port = await gateway.port();
  const adminPort = await gateway.adminPort();
  await gateway.serving();
  for (let i = 0; i < 4; i++) assert.equal(await get(port, 'shop.test', `/cart/${i}?q=1`), 200);
  const secrets = { authorization: 'Bearer hush', cookie: 'sid=hush', 'x-secret': 'hush', 'x-canary': 'yes' };
  assert.equal(await get(port, 'shop.test', '/', secrets), 200);
  assert.equal(await get(port, 'blog.test:80', '/post'), 200);
  assert.equal(await get(port, 'other.test', '/'), 404);
  await recordsOf(adminPort, 7);
  const { code, stdout, stderr } = await runToEnd(t, 'recorded', '--admin', `127.0.0.1:${adminPort}`);
  assert.equal(stderr, '');
  assert.equal(code, 0);
  const file = join(temporaryDirectory(t), 'recording.jsonl');
  writeFileSync(file, stdout);
  return { file, lines: stdout.trimEnd().split('\n') };
}

/** Checks a configuration with these routes against a recording. */
async function replay(t: TestContext, file: string, routes: string, ...args: string[]) {
  const config = join(temporaryDirectory(t), 'new.yaml');
  writeFileSync(config, configOf('', routes, 9));
  return runToEnd(t, 'check', '--config', config, '--replay', file, ...args);
}

test('requests are recorded with where they went, and without secrets', async () => {
  const { lines } = await recording();
  assert.doesNotMatch(lines.join('\n'), /hush/);
  const [header, ...requests] = lines.map((line) => JSON.parse(line)) as [
    Record<string, unknown>,
    ...RecordedRequest[],
  ];
  assert.equal(header.portcullisRecording, 1);
  assert.equal(header.requests, 7);
  assert.deepEqual(header.hashedHeaders, ['authorization', 'proxy-authorization', 'cookie', 'x-secret']);
  assert.deepEqual(
    requests.map(({ host, path, route, backends, status }) => [host, path, route, backends, status]),
    [
      ...[0, 1, 2, 3].map((i) => ['shop.test', `/cart/${i}?q=1`, 'shop rule 1', { a: 1, b: 1 }, 200]),
      ['shop.test', '/', 'shop rule 2', { b: 1 }, 200],
      ['blog.test:80', '/post', 'blog rule 1', { c: 1 }, 200],
      ['other.test', '/', '', {}, 404],
    ],
  );
  for (const { backend } of requests.slice(0, 4)) assert.match(backend, /^[ab]$/);
  const fields = new Map(requests[4]!.headers);
  assert.match(fields.get('authorization')!, /^Bearer hashed:[0-9a-f]{16}$/);
  assert.match(fields.get('cookie')!, /^sid=hashed:[0-9a-f]{16}$/);
  assert.match(fields.get('x-secret')!, /^hashed:[0-9a-f]{16}$/);
  assert.equal(fields.get('x-canary'), 'yes');
  assert.equal(requests[0]!.client, '127.0.0.1');
  assert.equal(requests[0]!.listener, 'http');
});

test('a replay through the same routes changes nothing, through others it says what', async (t) => {
  const { file } = await recording();

  const same = await replay(t, file, ROUTES, '--warnings-as-errors');
  assert.equal(same.code, 0);
  assert.match(same.stdout, /: 7 recorded requests, 0 would fare otherwise\n {9}7 {2}keep their route and backends\n$/);

  const reweighted = await replay(
    t,
    file,
    ROUTES.replace('{name: a, weight: 1}', '{name: a, weight: 9}'),
    '--warnings-as-errors',
  );
  assert.equal(reweighted.code, 0);
  assert.match(reweighted.stdout, /^ {9}4 {2}go to the same backends in other shares$/m);

  const changedRoutes = `
  - name: shop
    hostnames: [shop.test]
    rules:
      - {matches: [{path: {value: /cart}}], backendRefs: [{name: a}]}
      - {backendRefs: [{name: b}, {name: c, weight: 0}]}
  - {name: rest, hostnames: [other.test], rules: [{backendRefs: [{name: c}]}]}
`;
  const text = await replay(t, file, changedRoutes);
  assert.equal(text.code, 0);
  assert.match(text.stdout, /: 7 recorded requests, 6 would fare otherwise$/m);
  assert.match(text.stdout, /^ {9}1 {2}keep their route and backends$/m);
  assert.match(text.stdout, /^ {9}4 {2}would go to other backends$/m);
  assert.match(
    text.stdout,
    /GET shop\.test\/cart\/0\?q=1 on http from 127\.0\.0\.1: shop rule 1, backend a or b -> shop rule 1, backend a$/m,
  );
  assert.match(text.stdout, /^ {9}1 {2}would lose their route \(404\)\n.*blog\.test:80\/post .* -> no route$/m);
  assert.match(text.stdout, /^ {9}1 {2}had no route \(404\) and would have one$/m);
  assert.equal((await replay(t, file, changedRoutes, '--warnings-as-errors')).code, 1);

  const json = await replay(t, file, changedRoutes, '--format', 'json');
  const { findings, replay: result } = JSON.parse(json.stdout);
  assert.deepEqual(
    findings.map(({ name }: { name: string }) => name),
    ['zero-weight'],
  );
  assert.deepEqual(
    [result.requests, result.changed, result.outcomes],
    [7, 6, { kept: 1, route: 0, backend: 4, lost: 1, answered: 0, forwarded: 0, gained: 1 }],
  );
  assert.equal(result.examples.backend.length, 4);
});

test('conditions and other listeners count in a replay', async (t) => {
  const { file } = await recording();
  const canary = `
  - name: shop
    hostnames: [shop.test]
    rules:
      - {matches: [{path: {value: /cart}}], backendRefs: [{name: a, weight: 1}, {name: b, weight: 1}]}
      - {matches: [{headers: [{name: X-Canary, value: "yes"}]}], backendRefs: [{name: c}]}
      - {backendRefs: [{name: b}]}
  - {name: blog, hostnames: [blog.test], rules: [{backendRefs: [{name: c}]}]}
`;
  const { stdout } = await replay(t, file, canary);
  assert.match(stdout, /, 1 would fare otherwise$/m);
  assert.match(stdout, /shop rule 2, backend b -> shop rule 2, backend c$/m);
});

test('requests of HTTP/2 are recorded like those of HTTP/1', async (t) => {
  const upstream = await namedUpstream(t, 'up');
  const gateway = startGateway(t, configOf('recorder: {}', ROUTES, upstream));
  const port = await gateway.port();
  const adminPort = await gateway.adminPort();
  await gateway.serving();
  const session = connect(`http://127.0.0.1:${port}`);
  t.after(() => session.destroy());
  // When the second one is answered, the first has ended on its worker too.
  for (const path of ['/cart?q=2', '/']) {
    const head = { ':path': path, ':authority': 'shop.test', cookie: 'sid=hush', 'x-canary': 'yes' };
    const stream = session.request(head);
    stream.resume();
    await once(stream, 'end');
  }
  const [, first] = await recordsOf(adminPort, 2);
  assert.doesNotMatch(first!, /hush/);
  const recorded: RecordedRequest = JSON.parse(first!);
  const { protocol, method, host, path, route, status, headers } = recorded;
  assert.deepEqual(
    [protocol, method, host, path, route, status],
    ['HTTP/2', 'GET', 'shop.test', '/cart?q=2', 'shop rule 1', 200],
  );
  assert.equal(new Map(headers).get('x-canary'), 'yes');
});

test('a recording survives a reload, and is refused by the admin port where nothing is recorded', async (t) => {
  const upstream = await namedUpstream(t, 'up');
  const gateway = startGateway(t, configOf('recorder: {}', ROUTES, upstream));
  const port = await gateway.port();
  const adminPort = await gateway.adminPort();
  await gateway.serving();
  await get(port, 'shop.test', '/before');
  await recordsOf(adminPort, 1);
  gateway.configure(configOf('recorder: {maxAge: 1h}', ROUTES, upstream));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded epoch=2/);
  await get(port, 'shop.test', '/after');
  const paths = (await recordsOf(adminPort, 2)).slice(1).map((line) => JSON.parse(line).path);
  assert.deepEqual(paths, ['/before', '/after']);
  assert.equal((await admin(adminPort, '/recorded-requests', 'HEAD')).status, 200);

  gateway.configure(configOf('', ROUTES, upstream));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded epoch=3/);
  assert.equal((await admin(adminPort, '/recorded-requests')).status, 404);
  const { code, stderr } = await runToEnd(t, 'recorded', `--admin=127.0.0.1:${adminPort}`);
  assert.equal(code, 1);
  assert.match(stderr, /not recorded: the configuration has no `recorder`/);
});

test('a file that is no recording, and one that is cut, are refused with one sentence', async (t) => {
  const directory = temporaryDirectory(t);
  const cases: [name: string, content: string, error: RegExp][] = [
    ['text.jsonl', 'hello\n', /text\.jsonl is no recording of requests/],
    ['newer.jsonl', '{"portcullisRecording": 2}\n', /is a recording of version 2; this Portcullis reads version 1/],
    [
      'cut.jsonl',
      '{"portcullisRecording": 1}\n{"listener": "ht',
      /cut\.jsonl:2: not a recorded request: it is no JSON/,
    ],
    ['partial.jsonl', '{"portcullisRecording": 1}\n{"listener": "http"}\n', /partial\.jsonl:2: .*"method" is not text/],
  ];
  for (const [name, content, error] of cases) {
    const file = join(directory, name);
    writeFileSync(file, content);
    const { code, stderr } = await replay(t, file, ROUTES);
    assert.equal(code, 2, name);
    assert.match(stderr, error);
  }
  const missing = await replay(t, join(directory, 'none.jsonl'), ROUTES);
  assert.equal(missing.code, 2);
  assert.match(missing.stderr, /none\.jsonl cannot be read: ENOENT/);
});
