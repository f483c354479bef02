// From a configuration to a snapshot: settings, endpoints, DNS names, off-thread compiling.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { compileSnapshot } from '../../../config/compile.ts';
import { compileRoutesOffThread, RULES_ON_THREAD_MAX } from '../../../config/compile-off-thread.ts';
import { compileRoutes } from '../../../config/compile-routes.ts';
import type { Config } from '../../../config/config.ts';
import { loadConfig } from '../../../config/load.ts';
import { RequestHead } from '../../../core/http1/message.ts';
import { RouteRequest } from '../../../core/routing/route-request.ts';
import { RouteTable } from '../../../core/routing/route-table.ts';
import { noBackendPolicy, noEndpointPolicy } from '../../../core/workers/policies.ts';

function load(yaml: string): Config {
  const result = loadConfig(yaml, '/gateway.yaml', {});
  assert.ok('config' in result, JSON.stringify(result));
  return result.config;
}

const yaml = `
responseReasonHeader: x-reason
headers: {via: edge, server: portcullis, requestId: false}
trustedHops: 1
accessLog: {path: "-", format: common}
failureRecords: {slowThreshold: 250ms}
limits: {maxRequestBodySize: 1MiB}
timeouts: {idle: 5s}
listeners:
  - {name: a, address: "127.0.0.1:8080"}
  - {name: b, address: "[::1]:8081", allowConnect: true}
routes:
  - {name: r, listeners: [b], rules: [{timeouts: {request: 2s}, backendRefs: [{name: two}]}]}
backends:
  - {name: one, endpoints: ["10.0.0.1:80"], connectTimeout: 1s}
  - name: two
    endpoints:
      - {address: "cart.internal:9001", weight: 2}
      - "cart.internal:9002"
      - {address: "[2001:DB8::1]:80", weight: 5}
      - {address: "10.0.0.7:9001", weight: 3}
`;

test('a snapshot carries settings, listeners and backends in the order of the file', () => {
  const snapshot = compileSnapshot(load(yaml), 7, new Map());
  assert.equal(snapshot.epoch, 7);
  assert.deepEqual(snapshot.http, {
    requestHeadBytesMax: 32768,
    responseHeadBytesMax: 32768,
    headerCountMax: 100,
    uriBytesMax: 8192,
    requestBodyBytesMax: 1048576,
    requestsPerConnectionMax: 0,
    requestHeadTimeoutMs: 10_000,
    idleTimeoutMs: 5000,
    streamIdleTimeoutMs: 60_000,
    tunnelIdleTimeoutMs: 3_600_000,
    trustedHops: 1,
    forwardedHeaders: true,
    requestIdHeader: false,
    via: 'edge',
    server: 'portcullis',
    reasonHeader: 'x-reason',
    upgradeProtocols: ['websocket'],
    http2: {
      concurrentStreamsMax: 128,
      streamWindowBytes: 262_144,
      connectionWindowBytes: 1_048_576,
      resetsPerSecondMax: 100,
      controlFramesPerSecondMax: 1000,
    },
  });
  const plain = { tcp: false, tls: null, proxyProtocol: false, redirectToHttps: null, tunnels: null, mesh: null };
  const http = { scheme: 'http', http1: true, http2: true };
  assert.deepEqual(snapshot.listeners, [
    { name: 'a', address: '127.0.0.1:8080', port: 8080, allowConnect: false, ...http, ...plain },
    { name: 'b', address: '[::1]:8081', port: 8081, allowConnect: true, ...http, ...plain },
  ]);
  assert.deepEqual(snapshot.tls, { contexts: [], ticketKeys: [] });
  assert.deepEqual(snapshot.streamRoutes, []);
  assert.deepEqual(snapshot.accessLog, { enabled: true, format: 'common' });
  assert.deepEqual(snapshot.flightRecords, { slowThresholdMs: 250 });
  assert.deepEqual(snapshot.backends[0], {
    name: 'one',
    endpoints: [
      {
        address: '10.0.0.1:80',
        host: '10.0.0.1',
        port: 80,
        weight: 1,
        slot: 0,
        policy: noEndpointPolicy,
        identity: null,
      },
    ],
    originalDestination: null,
    sameProtocol: false,
    slot: 0,
    policy: noBackendPolicy,
    connectTimeoutMs: 1000,
    idleTimeoutMs: 60_000,
    idleConnectionsMax: 1024,
    requestsPerConnectionMax: 0,
    protocol: 'http/1.1',
    tls: null,
    tunnel: null,
    proxyProtocol: 0,
    http2: { streamsPerConnectionMax: 100, connectionsMax: 4, pingIntervalMs: 30_000, pingTimeoutMs: 10_000 },
  });
  const table = new RouteTable(snapshot.routes);
  const request = new RouteRequest(Buffer.from('/'), new RequestHead());
  request.pathLength = 1;
  assert.equal(table.lookup(request), -1, 'the route is not for listener a');
  request.listener = 1;
  const rule = table.lookup(request);
  assert.equal(table.ruleLabel(rule), 'r rule 1');
  assert.equal(table.requestTimeoutMs(rule), 2000);
  assert.equal(snapshot.backends[table.backendRefIndex(rule, 0)]!.name, 'two');
  assert.deepEqual(structuredClone(snapshot).http, snapshot.http);
});

test('each address of a name gets its weight, and equal addresses add up', () => {
  const config = load(yaml);
  const resolved = new Map([
    [
      'cart.internal:9001',
      [
        { host: '10.0.0.6', port: 9001 },
        { host: '10.0.0.7', port: 9001 },
        { host: '10.0.0.6', port: 9001 },
      ],
    ],
  ]);
  const endpoints = compileSnapshot(config, 1, resolved).backends[1]!.endpoints;
  assert.deepEqual(
    endpoints.map(({ address, weight }) => [address, weight]),
    [
      ['10.0.0.6:9001', 2],
      ['10.0.0.7:9001', 5],
      ['[2001:db8::1]:80', 5],
    ],
  );
});

test('a name without an answer leaves its backend without endpoints', () => {
  const config = load(`
listeners: [{name: a, address: ":0"}]
routes: []
backends: [{name: b, endpoints: ["nowhere.internal:1"]}]
`);
  assert.deepEqual(compileSnapshot(config, 1, new Map()).backends[0]!.endpoints, []);
});

function largeConfig(rules: number): Config {
  const config = load(yaml);
  const rule = config.routes[0]!.rules[0]!;
  const routes = Array.from({ length: rules }, (_, index) => ({
    name: `r${index}`,
    listeners: null,
    hostnames: [`h${index}.example.com`],
    rules: [rule],
  }));
  return { ...config, routes };
}

test('a large table compiled in another thread is the same as one compiled here', async () => {
  const config = largeConfig(RULES_ON_THREAD_MAX + 1);
  const here = new Uint8Array(compileRoutes(config));
  for (const routes of await Promise.all([compileRoutesOffThread(config), compileRoutesOffThread(config)])) {
    assert.ok(routes instanceof SharedArrayBuffer);
    assert.ok(Buffer.from(routes).equals(here));
  }
});

test('a process that compiled off its main thread ends by itself', async () => {
  const module = new URL('../../../config/compile-off-thread.ts', import.meta.url).href;
  const script = `
    import { compileRoutesOffThread } from ${JSON.stringify(module)};
    const rule = { matches: [{ path: { type: 'PathPrefix', value: '/' } }], requestTimeoutMs: 0,
      backendRequestTimeoutMs: 0, backendRefs: [{ name: 'b', weight: 1 }] };
    const route = { name: 'r', listeners: null, hostnames: null, rules: new Array(2000).fill(rule) };
    const table = await compileRoutesOffThread({ listeners: [], backends: [{ name: 'b' }], routes: [route] });
    console.log(table.byteLength > 0);`;
  const args = ['--input-type=module', '--eval', script];
  const cwd = fileURLToPath(new URL('../../..', import.meta.url));
  // The limit only keeps a hanging process from hanging the tests.
  const { stdout } = await promisify(execFile)(process.execPath, args, { cwd, timeout: 60_000 });
  assert.equal(stdout.trim(), 'true');
});
