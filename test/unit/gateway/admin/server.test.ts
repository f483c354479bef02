// The admin port: its pages, its probes, and what it refuses.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadConfig } from '../../../../config/load.ts';
import { Reason } from '../../../../core/exchange/reasons.ts';
import { startAdminServer } from '../../../../gateway/admin/server.ts';
import { exampleSource } from '../../core/telemetry/support.ts';
import { fakeState, startAdmin, writers } from './support.ts';

test('the index names every page, and every page it names exists', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  const { status, body } = await ask('/');
  assert.equal(status, 200);
  const pages = [...body.matchAll(/^(\/[\w-]+)/gm)].map(([, path]) => path);
  assert.deepEqual(pages, [
    '/metrics',
    '/healthz',
    '/readyz',
    '/config',
    '/backends',
    '/reloads',
    '/breakers',
    '/requests',
    '/explain',
    '/recorded-requests',
  ]);
  for (const page of pages) assert.notEqual((await ask(page)).status, 404, page);
});

test('a page that does not exist is 404', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  for (const path of ['/nothing', '/metrics/', '//metrics', '/config/x', '/healthz%00']) {
    assert.equal((await ask(path)).status, 404, path);
  }
});

test('only GET and HEAD are allowed', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
    const answer = await ask('/config', { method });
    assert.equal(answer.status, 405, method);
    assert.equal(answer.headers.allow, 'GET, HEAD');
  }
});

test('HEAD gives the head of GET without its body', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  const head = await ask('/healthz', { method: 'HEAD' });
  assert.equal(head.status, 200);
  assert.equal(head.headers['content-length'], String((await ask('/healthz')).body.length));
  assert.equal(head.body, '');
});

test('the configuration is shown without what may be a password, a token or an API key', async (t) => {
  const modifiers = (name: string): string => `
            - type: RequestHeaderModifier
              requestHeaderModifier:
                set: [{name: x-set, value: secret-${name}-request-set}]
                add: [{name: x-add, value: secret-${name}-request-add}]
            - type: ResponseHeaderModifier
              responseHeaderModifier:
                set: [{name: x-set, value: secret-${name}-response-set}]
                add: [{name: x-add, value: secret-${name}-response-add}]`;
  const yaml = `
listeners: [{name: http, address: "127.0.0.1:8080"}]
redis: {address: "127.0.0.1:6379", password: secret-password}
routes:
  - name: r
    rules:
      - matches:
          - headers: [{name: x-key, value: secret-match}, {name: x-form, type: RegularExpression, value: "seen-[a-z]+"}]
        filters:${modifiers('rule')}
            - type: FaultInjection
              faultInjection: {abort: {percent: 1, statusCode: 503}, headers: [{name: x-fault, value: secret-fault}]}
        sessionPersistence: {type: Cookie, secret: "secret-cookie-of-thirty-two-characters"}
        rateLimits: [{name: all, global: true, requests: 1, period: 1s}]
        backendRefs:
          - name: app
            filters:${modifiers('ref')}
backends:
  - name: app
    endpoints: ["127.0.0.1:1"]
    healthCheck: {path: /seen-path, headers: [{name: x-token, value: secret-health}]}
`;
  const loaded = loadConfig(yaml, '/gateway.yaml', {});
  assert.ok('config' in loaded, JSON.stringify(loaded));
  const { config } = loaded;
  assert.equal(new Set(JSON.stringify(config).match(/"secret-[a-z-]+"/g)).size, 13, 'all of them are in it');
  const { ask } = await startAdmin(t, { ...fakeState(), config });
  const { body } = await ask('/config');
  assert.deepEqual(body.match(/"secret-[a-z-]+"/g), null);
  for (const seen of ['seen-[a-z]+', '/seen-path', 'x-key', 'x-set', 'x-fault', 'x-token']) {
    assert.ok(body.includes(seen), seen);
  }
  assert.equal(config.redis!.password, 'secret-password', 'what runs stays as it is');
  assert.equal(config.backends[0]!.healthCheck!.headers[0]!.value, 'secret-health');
});

test('a Host that is a name is refused, addresses and localhost are not', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  for (const host of ['evil.example', 'evil.example:9901', '127.0.0.1.evil.example', 'localhost.evil', '[evil]']) {
    assert.equal((await ask('/config', { host })).status, 403, host);
  }
  for (const host of ['127.0.0.1', '10.1.2.3:9901', 'localhost', 'LOCALHOST:9901', '[::1]:9901', '[::1]']) {
    assert.equal((await ask('/config', { host })).status, 200, host);
  }
});

test('healthz is 200 while every worker answers, and names those that do not', async (t) => {
  const state = fakeState();
  const { ask } = await startAdmin(t, state);
  assert.deepEqual([(await ask('/healthz')).status, (await ask('/healthz')).body], [200, 'healthy\n']);
  state.workers[1].healthy = false;
  const silent = await ask('/healthz');
  assert.deepEqual([silent.status, silent.body], [503, 'not healthy: worker 1 does not answer\n']);
  state.workers[1].up = false;
  assert.equal((await ask('/healthz')).body, 'not healthy: worker 1 is not running\n');
});

test('readyz is 200 only with the configuration on all workers and no shutdown, and says why not', async (t) => {
  const state = fakeState();
  const { ask } = await startAdmin(t, state);
  assert.deepEqual([(await ask('/readyz')).status, (await ask('/readyz')).body], [200, 'ready\n']);

  state.epoch = 4;
  state.workers[0].epochApplied = 4;
  const behind = await ask('/readyz');
  assert.deepEqual([behind.status, behind.body], [503, 'not ready: worker 1 runs on configuration 3, not yet on 4\n']);
  state.workers[1].epochApplied = 4;
  assert.equal((await ask('/readyz')).status, 200);

  state.draining = true;
  assert.deepEqual([(await ask('/readyz')).status, (await ask('/readyz')).body], [503, 'not ready: shutting down\n']);
  assert.equal((await ask('/healthz')).status, 200, 'a gateway that shuts down is not ill');
});

test('readyz is 503 before the first configuration', async (t) => {
  const state = fakeState();
  state.epoch = 0;
  state.workers = [];
  const { ask } = await startAdmin(t, state);
  assert.equal(
    (await ask('/readyz')).body,
    'not ready: no configuration has been applied yet; no worker has been started yet\n',
  );
});

test('config says what runs, since when, and from which file', async (t) => {
  const state = fakeState();
  state.workers[0].lastPongMs = Date.UTC(2026, 0, 3);
  state.workers[1].lastPongMs = 0;
  const { ask } = await startAdmin(t, state);
  const answer = await ask('/config');
  assert.match(String(answer.headers['content-type']), /^application\/json/);
  const value = JSON.parse(answer.body);
  assert.equal(value.epoch, 3);
  assert.equal(value.loadedAt, '2026-01-02T00:00:00.000Z');
  assert.equal(value.file, '/etc/portcullis/gateway.yaml');
  assert.deepEqual(value.workers, [
    { index: 0, up: true, healthy: true, restarts: 0, epochApplied: 3, lastAnswerAt: '2026-01-03T00:00:00.000Z' },
    { index: 1, up: true, healthy: true, restarts: 1, epochApplied: 3, lastAnswerAt: null },
  ]);
  assert.deepEqual(value.config, { workers: 2, routes: [] });
});

test('reloads shows the last loads with what became of connections', async (t) => {
  const state = fakeState();
  const report = { kept: 10, drained: 1, closed: 2, upstreamClosed: 3, pauseMs: 0.5 };
  state.reloads = [
    { atMs: Date.UTC(2026, 0, 2), result: 'applied', epoch: 3, durationMs: 4.5, report, errors: [] },
    { atMs: Date.UTC(2026, 0, 3), result: 'refused', epoch: 3, durationMs: 1, errors: ['gateway.yaml:3:1: no'] },
  ];
  const { ask } = await startAdmin(t, state);
  assert.deepEqual(JSON.parse((await ask('/reloads')).body).reloads, [
    { at: '2026-01-02T00:00:00.000Z', result: 'applied', epoch: 3, durationMs: 4.5, errors: [], report },
    {
      at: '2026-01-03T00:00:00.000Z',
      result: 'refused',
      epoch: 3,
      durationMs: 1,
      errors: ['gateway.yaml:3:1: no'],
      report: null,
    },
  ]);
});

test('requests lists the records of one workload only, if it is asked for that', async (t) => {
  const state = fakeState();
  const { ask } = await startAdmin(t, state);
  const { flight } = writers(state);
  const encode = (text: string) => new TextEncoder().encode(text);
  for (let i = 0; i < 9; i++) {
    const workload = encode(i % 3 === 0 ? 'shop/web-0' : 'shop/cart-0');
    const fields = { wallMs: 1000 + i, status: 502, hasMesh: true, workload };
    flight[i % 2].record(exampleSource({ requestId: `id${i}` }, fields));
  }
  const ids = async (query: string): Promise<string[]> =>
    JSON.parse((await ask(`/requests?${query}`)).body).requests.map(
      (record: { requestId: { text: string } }) => record.requestId.text,
    );
  assert.deepEqual(await ids('workload=shop/web-0'), ['id6', 'id3', 'id0']);
  assert.deepEqual(await ids('workload=shop/web-0&limit=2'), ['id6', 'id3']);
  assert.deepEqual(await ids('workload=shop/web'), []);
  // Longer than records have room for.
  const long = `shop/${'x'.repeat(200)}-0`;
  const fields = { wallMs: 2000, status: 502, hasMesh: true, workload: encode(long) };
  flight[0]!.record(exampleSource({ requestId: 'long' }, fields));
  assert.deepEqual(await ids(`workload=${long}`), ['long']);
});

test('requests lists the newest records up to a limit', async (t) => {
  const state = fakeState();
  const { ask } = await startAdmin(t, state);
  const { flight } = writers(state);
  for (let i = 0; i < 6; i++) {
    flight[i % 2].record(exampleSource({ requestId: `id${i}` }, { wallMs: 1000 + i, status: 502 }));
  }
  const ids = async (path: string): Promise<string[]> =>
    JSON.parse((await ask(path)).body).requests.map((record: { requestId: { text: string } }) => record.requestId.text);
  assert.deepEqual(await ids('/requests'), ['id5', 'id4', 'id3', 'id2', 'id1', 'id0']);
  assert.deepEqual(await ids('/requests?limit=2'), ['id5', 'id4']);
  for (const limit of ['0', '-1', 'x', '1001', '1.5']) {
    assert.equal((await ask(`/requests?limit=${limit}`)).status, 400, limit);
  }
});

test('explain finds a request by its id, whatever characters it has', async (t) => {
  const state = fakeState();
  const { ask } = await startAdmin(t, state);
  const id = 'a b&c=%2F+é';
  writers(state).flight[1].record(exampleSource({ requestId: id }, { status: 404, reason: Reason.NO_ROUTE }));
  const answer = await ask(`/explain?id=${encodeURIComponent(id)}`);
  assert.equal(answer.status, 200);
  const value = JSON.parse(answer.body);
  assert.equal(value.record.requestId.text, id);
  assert.ok(value.explanation.some((line: string) => line.includes('Reason NR')));

  const unknown = await ask('/explain?id=other');
  assert.equal(unknown.status, 404);
  assert.match(JSON.parse(unknown.body).error, /no record of request other/);
  assert.equal((await ask('/explain')).status, 400);
});

test('a page that cannot be made is a 500 that says why, and the port goes on', async (t) => {
  const state = fakeState();
  const loop: Record<string, unknown> = {};
  loop.self = loop;
  state.config = loop;
  const { ask } = await startAdmin(t, state);
  const answer = await ask('/config');
  assert.equal(answer.status, 500);
  assert.match(answer.body, /This page could not be made: TypeError/);
  assert.equal((await ask('/healthz')).status, 200);
});

test('a taken port rejects with the system error', async (t) => {
  const { server } = await startAdmin(t, fakeState());
  await assert.rejects(startAdminServer('127.0.0.1', server.port, fakeState()), { code: 'EADDRINUSE' });
});
