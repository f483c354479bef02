// A node proxy's client without a control plane: what it leaves behind.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { credentials } from '@grpc/grpc-js';
import { XdsClient } from '../../../../mesh-agent/control/xds-client.ts';
import { noLog } from './support.ts';

const HOUR_MS = 60 * 60_000;

for (const [when, isEarly] of [
  ['while it starts', true],
  ['afterwards', false],
] as const) {
  test(`a client that is closed ${when} looks at nothing any more, and connects to nobody`, async (t) => {
    t.mock.timers.enable({ apis: ['setInterval', 'setTimeout'] });
    let [looks, connections] = [0, 0];
    const client = new XdsClient({
      ...{ address: '127.0.0.1:9', id: 'proxy-a', node: 'node-a', trustDomain: 'cluster.local' },
      stateFile: '/nonexistent/mesh.state',
      credentials: () => {
        connections++;
        return credentials.createInsecure();
      },
      onUpdate: () => {},
      log: noLog,
      nowMs: () => {
        looks++;
        return 0;
      },
    });
    const started = client.start();
    if (!isEarly) {
      await started;
      t.mock.timers.tick(HOUR_MS);
      assert.ok(looks > 0);
    }
    await client.close();
    await started;
    const before = looks;
    t.mock.timers.tick(HOUR_MS);
    assert.equal(looks, before);
    if (isEarly) assert.equal(connections, 0);
  });
}
