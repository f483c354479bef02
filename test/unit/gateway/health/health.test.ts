import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Config } from '../../../../config/config.ts';
import { createNodeState, NodeState } from '../../../../core/lb/node-state.ts';
import { noBackendPolicy } from '../../../../core/workers/policies.ts';
import type { BackendSettings, Snapshot } from '../../../../core/workers/snapshot.ts';
import { Health } from '../../../../gateway/health/health.ts';
import { OutlierControl } from '../../../../gateway/health/outlier-control.ts';

test('ejections come to their end although snapshots follow each other quickly', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const looks = t.mock.method(OutlierControl.prototype, 'tick');
  const health = new Health(new NodeState(createNodeState(1, 16, 4), -1), () => {});
  const outlierDetection = {
    consecutive5xx: 2,
    consecutiveGatewayFailures: 0,
    intervalMs: 60_000,
    baseEjectionMs: 10_000,
    maxEjectionMs: 25_000,
    maxEjectionPercent: 50,
    successRate: null,
    failurePercentage: null,
    ramp: [100],
    rampStepMs: 5000,
  };
  const adopt = (policy: BackendSettings['policy']): void => {
    const backend = {
      name: 'app',
      slot: 1,
      endpoints: [{ address: 'e', slot: 0 }],
      policy,
    } as unknown as BackendSettings;
    health.adopt(
      { backends: [{ name: 'app', healthCheck: null }] } as unknown as Config,
      { backends: [backend] } as unknown as Snapshot,
    );
  };
  for (let i = 0; i < 10; i++) {
    adopt({ ...noBackendPolicy, outlierDetection });
    t.mock.timers.tick(400);
  }
  assert.equal(looks.mock.callCount(), 4);
  health.close();
  t.mock.timers.tick(5000);
  assert.equal(looks.mock.callCount(), 4);
});
