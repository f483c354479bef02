// A configuration that is refused after its endpoints were found, and one that runs.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Config } from '../../../../config/config.ts';
import { Discovery } from '../../../../gateway/discovery/discovery.ts';

test('a refused configuration changes no endpoints of the running one; its file is taken by the next look', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const file = join(directory, 'list.yaml');
  writeFileSync(file, '- "10.0.0.1:80"\n- "a.test:80"\n');
  const changes: string[] = [];
  const discovery = new Discovery(
    () => {},
    (source) => void changes.push(source),
    ({ servers }) =>
      async () => ({ answers: [{ host: servers[0] ?? '', port: 0, weight: 1, priority: 0 }], ttlMs: 60_000 }),
    { quietMs: 60_000, delayMaxMs: 60_000, pollMs: 60_000 },
  );
  t.after(() => discovery.close());
  const configured = (server: string): Config =>
    ({
      dns: { servers: [server], timeoutMs: 1000, ttlMinMs: 1000, ttlMaxMs: 60_000 },
      backends: [{ name: 'app', endpoints: [], endpointsFile: file }],
    }) as unknown as Config;
  const found = async (config: Config): Promise<unknown[]> => {
    const { config: complete, resolved } = await discovery.rediscover(config);
    return [complete.backends[0]!.endpoints.map(({ address }) => address), resolved.get('a.test:80')?.[0]?.host];
  };
  const running = configured('192.0.2.1');
  await discovery.discover(running);
  discovery.adopt(running);
  assert.deepEqual(await found(running), [['10.0.0.1:80', 'a.test:80'], '192.0.2.1']);

  writeFileSync(file, '- "a.test:80"\n');
  const refused = await discovery.discover(configured('192.0.2.2'));
  assert.equal(refused.resolved.get('a.test:80')?.[0]?.host, '192.0.2.2');
  assert.deepEqual(await found(running), [['10.0.0.1:80', 'a.test:80'], '192.0.2.1']);
  // Any other snapshot of the running configuration.
  assert.deepEqual(changes, []);
  discovery.adopt(running);
  assert.deepEqual(changes, ['file']);
  assert.deepEqual(await found(running), [['a.test:80'], '192.0.2.1']);

  const next = configured('192.0.2.3');
  await discovery.discover(next);
  discovery.adopt(next);
  assert.deepEqual(await found(next), [['a.test:80'], '192.0.2.3']);
});
