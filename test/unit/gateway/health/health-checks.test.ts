// When checks run, and where their results go; the checks themselves and the clock are the test's.

import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { HealthCheckConfig } from '../../../../config/config.ts';
import { BackendWord, CheckState, createNodeState, EndpointWord, NodeState } from '../../../../core/lb/node-state.ts';
import type { LogFields } from '../../../../core/workers/log.ts';
import type { BackendSettings } from '../../../../core/workers/snapshot.ts';
import { HealthChecks } from '../../../../gateway/health/health-checks.ts';
import type { ProbeResult, ProbeTarget } from '../../../../gateway/health/probes.ts';

const settle = () => new Promise((resolve) => setImmediate(resolve));

const base: HealthCheckConfig = {
  type: 'HTTP',
  path: '/',
  host: '',
  method: 'GET',
  headers: [],
  expectedStatuses: [[200, 299]],
  grpcService: '',
  port: 0,
  intervalMs: 1000,
  timeoutMs: 300,
  jitterPercent: 10,
  unhealthyThreshold: 2,
  healthyThreshold: 2,
};

const good: ProbeResult = { outcome: 'success', cause: '' };
const bad: ProbeResult = { outcome: 'failure', cause: 'connection refused' };

function harness(t: TestContext) {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const node = new NodeState(createNodeState(1, 2048, 4), -1);
  const lines: string[] = [];
  const probed: ProbeTarget[] = [];
  const results = new Map<number, ProbeResult | 'never'>();
  const checks = new HealthChecks(
    node,
    (level, message, fields: LogFields = {}) =>
      lines.push(`${level} ${message} ${fields.endpoint} ${fields.cause ?? ''}`.trim()),
    {
      random: () => 0.5,
      probe: (target, signal) => {
        probed.push(target);
        const result = results.get(target.port) ?? good;
        if (result !== 'never') return Promise.resolve(result);
        return new Promise((resolve) => {
          signal.addEventListener('abort', () => resolve({ outcome: 'timeout', cause: 'no answer within 300 ms' }));
        });
      },
    },
  );
  t.after(() => checks.close());
  const backend = (ports: number[], more: Partial<BackendSettings> = {}): BackendSettings =>
    ({
      name: 'app',
      slot: 1,
      endpoints: ports.map((port) => ({ address: `e:${port}`, host: 'e', port, slot: port })),
      protocol: 'http/1.1',
      proxyProtocol: 0,
      tls: null,
      ...more,
    }) as unknown as BackendSettings;
  return {
    checks,
    lines,
    probed,
    results,
    use: (ports: number[], check: HealthCheckConfig | null = base, more: Partial<BackendSettings> = {}): void =>
      checks.use([{ settings: backend(ports, more), check }]),
    word: (slot: number): number => node.words[node.endpointAt(slot) + EndpointWord.CHECK]!,
    generation: (): number => node.words[node.backendAt(1) + BackendWord.GENERATION]!,
    /** Ports that are checked during so many milliseconds. */
    pass: async (ms: number): Promise<number[]> => {
      probed.length = 0;
      t.mock.timers.tick(ms);
      await settle();
      return probed.map(({ port }) => port);
    },
  };
}

test('first checks come at once one after the other, the next spread over the interval, then interval and jitter', async (t) => {
  const { use, pass } = harness(t);
  use([1, 2]);
  assert.deepEqual(await pass(0), [1]);
  assert.deepEqual(await pass(2), [2]);
  // Half of the interval and half of the other half.
  assert.deepEqual(await pass(747), []);
  assert.deepEqual(await pass(1), [1]);
  assert.deepEqual(await pass(2), [2]);
  assert.deepEqual(await pass(1047), []);
  assert.deepEqual(await pass(1), [1]);
});

test('results reach balancers and the log when they change what an endpoint is', async (t) => {
  const { use, pass, word, results, lines, generation, checks } = harness(t);
  results.set(2, bad);
  use([1, 2]);
  await pass(0);
  await pass(2);
  assert.equal(word(1), CheckState.HEALTHY);
  assert.equal(word(2), CheckState.UNHEALTHY);
  assert.equal(generation(), 2);
  assert.deepEqual(lines, ['debug endpoint healthy e:1', 'warn endpoint unhealthy e:2 connection refused']);
  results.set(2, good);
  await pass(752);
  await pass(1050);
  assert.equal(word(2), CheckState.HEALTHY);
  assert.equal(lines[2], 'info endpoint healthy e:2');
  assert.equal(generation(), 3);
  assert.deepEqual(checks.countsOf('app'), { success: 5, refusal: 0, failure: 1, timeout: 0 });
  assert.deepEqual(checks.stateOf('app', 'e:2'), { health: 'healthy', cause: '' });
});

test('a check that could not be made changes nothing that is known, and is shown with its cause', async (t) => {
  const { use, pass, word, results, lines, checks } = harness(t);
  results.set(1, { outcome: null, cause: 'not checked: no certificate' });
  use([1]);
  await pass(0);
  assert.equal(word(1), CheckState.UNKNOWN);
  assert.deepEqual(checks.stateOf('app', 'e:1'), { health: 'unknown', cause: 'not checked: no certificate' });
  // The first that could be made decides alone.
  results.set(1, bad);
  assert.deepEqual(await pass(752), [1]);
  assert.equal(word(1), CheckState.UNHEALTHY);
  results.set(1, { outcome: null, cause: 'not checked: no certificate' });
  assert.deepEqual(await pass(1050), [1]);
  assert.equal(word(1), CheckState.UNHEALTHY);
  assert.deepEqual(lines, ['warn endpoint unhealthy e:1 connection refused']);
  assert.deepEqual(checks.countsOf('app'), { success: 0, refusal: 0, failure: 1, timeout: 0 });
});

test('an endpoint that is reached through a tunnel is another one to checks when its identity changes', async (t) => {
  const { checks, pass, probed } = harness(t);
  const endpoints = (identity: string | null) => [{ address: 'e:1', host: 'e', port: 1, slot: 1, identity }];
  const backend = { name: 'app', slot: 1, protocol: 'http/1.1', proxyProtocol: 0, tls: null };
  const use = (identity: string | null): void =>
    checks.use([
      { settings: { ...backend, endpoints: endpoints(identity) } as unknown as BackendSettings, check: base },
    ]);
  use('spiffe://m/a');
  await pass(0);
  assert.deepEqual(
    probed.map(({ identity }) => identity),
    ['spiffe://m/a'],
  );
  use('spiffe://m/a');
  assert.deepEqual(await pass(0), []);
  use('spiffe://m/b');
  assert.deepEqual(await pass(0), [1], 'it is asked at once');
  assert.equal(probed[0]!.identity, 'spiffe://m/b');
});

test('a check that takes too long is ended, and never overlaps the next', async (t) => {
  const { use, pass, results, checks, word } = harness(t);
  results.set(1, 'never');
  use([1]);
  assert.deepEqual(await pass(0), [1]);
  assert.deepEqual(await pass(299), []);
  assert.equal(word(1), CheckState.UNKNOWN);
  await pass(1);
  assert.equal(word(1), CheckState.UNHEALTHY);
  assert.equal(checks.countsOf('app')!.timeout, 1);
  assert.deepEqual(checks.stateOf('app', 'e:1'), { health: 'unhealthy', cause: 'no answer within 300 ms' });
  assert.deepEqual(await pass(749), []);
  assert.deepEqual(await pass(1), [1]);
});

test('the same check goes on over a reload; another one keeps what is known until its first result', async (t) => {
  const { use, pass, results, word } = harness(t);
  results.set(1, bad);
  use([1]);
  await pass(0);
  use([1]);
  assert.deepEqual(await pass(10), []);
  assert.equal(word(1), CheckState.UNHEALTHY);
  results.set(1, good);
  use([1], { ...base, path: '/other' });
  assert.equal(word(1), CheckState.UNHEALTHY);
  assert.deepEqual(await pass(0), [1]);
  assert.equal(word(1), CheckState.HEALTHY);
});

test('other certificates, timeouts and thresholds change the next checks, and not what is known or when they come', async (t) => {
  const { use, pass, results, word, probed } = harness(t);
  const tls = (key: string, serverName = 'a') =>
    ({ tls: { key, serverName, certificate: null, caPem: key } }) as unknown as Partial<BackendSettings>;
  const check: HealthCheckConfig = { ...base, type: 'HTTPS' };
  use([1], check, tls('old'));
  await pass(0);
  results.set(1, bad);
  assert.deepEqual(await pass(750), [1]);
  use([1], { ...check, timeoutMs: 400, unhealthyThreshold: 3 }, tls('new'));
  assert.deepEqual(await pass(1049), []);
  assert.deepEqual(await pass(1), [1]);
  assert.deepEqual([probed[0]!.tls!.key, probed[0]!.check.timeoutMs], ['new', 400]);
  assert.equal(word(1), CheckState.HEALTHY);
  await pass(1050);
  assert.equal(word(1), CheckState.UNHEALTHY);
  // Another name is another question.
  use([1], check, tls('new', 'b'));
  assert.deepEqual(await pass(0), [1]);
});

test('another interval counts at once, and spreads the checks again', async (t) => {
  const { use, pass } = harness(t);
  use([1], { ...base, intervalMs: 3_600_000 });
  await pass(0);
  await pass(2_700_000);
  use([1], { ...base, intervalMs: 2000 });
  assert.deepEqual(await pass(1499), []);
  assert.deepEqual(await pass(1), [1]);
  assert.deepEqual(await pass(2099), []);
  assert.deepEqual(await pass(1), [1]);
});

test('checks end with their endpoint, and with their check the endpoint is as good as any', async (t) => {
  const { use, pass, results, word, checks } = harness(t);
  results.set(2, bad);
  use([1, 2]);
  await pass(0);
  await pass(2);
  use([2]);
  assert.deepEqual([...new Set(await pass(5000))], [2]);
  use([2], null);
  assert.equal(word(2), CheckState.UNKNOWN);
  assert.deepEqual(await pass(5000), []);
  assert.equal(checks.stateOf('app', 'e:2'), undefined);
  assert.equal(checks.countsOf('app'), undefined);
});

test('an endpoint that was away is what it was until its first result, or as good as any without a check', async (t) => {
  const { use, pass, results, word, checks, lines } = harness(t);
  results.set(2, bad);
  use([1, 2]);
  await pass(2);
  await pass(2);
  assert.equal(word(2), CheckState.UNHEALTHY);
  use([1]);
  use([1, 2]);
  assert.equal(checks.stateOf('app', 'e:2')!.health, 'unhealthy');
  lines.length = 0;
  results.set(2, good);
  await pass(5);
  assert.equal(word(2), CheckState.HEALTHY);
  assert.deepEqual(lines, ['info endpoint healthy e:2']);
  results.set(2, bad);
  await pass(5000);
  assert.equal(word(2), CheckState.HEALTHY, 'one failure');
  await pass(5000);
  assert.equal(word(2), CheckState.UNHEALTHY);
  use([1]);
  use([1, 2], null);
  assert.equal(word(2), CheckState.UNKNOWN);
});

test('a check that is stopped while it runs says nothing any more', async (t) => {
  const { use, pass, results, word, lines } = harness(t);
  results.set(1, 'never');
  use([1]);
  await pass(0);
  use([]);
  await pass(1000);
  assert.equal(word(1), CheckState.UNKNOWN);
  assert.deepEqual(lines, []);
});

test('another port is checked with HTTP/1.1, and HTTP is never TLS', async (t) => {
  const { use, pass, probed } = harness(t);
  const tls = { key: 'k' } as unknown as BackendSettings['tls'];
  use([1], { ...base, port: 9, type: 'HTTPS' }, { protocol: 'h2', tls });
  await pass(0);
  assert.deepEqual([probed[0]!.port, probed[0]!.http2, probed[0]!.tls], [9, false, tls]);
  use([1], base, { protocol: 'h2', tls });
  await pass(0);
  assert.deepEqual([probed[0]!.port, probed[0]!.http2, probed[0]!.tls], [1, true, null]);
});

test('only so many checks run at a time, and the others follow', async (t) => {
  const { use, pass, results, probed } = harness(t);
  const ports = Array.from({ length: 600 }, (_, index) => index + 1);
  for (const port of ports) results.set(port, 'never');
  use(ports, { ...base, intervalMs: 60_000, timeoutMs: 30_000 });
  assert.equal((await pass(1200)).length, 512);
  results.clear();
  t.mock.timers.tick(30_000);
  await settle();
  await settle();
  assert.equal(new Set(probed.map(({ port }) => port)).size, 600);
});
