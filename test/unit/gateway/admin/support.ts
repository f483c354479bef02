// A gateway state that a test can change, and requests to an admin port on it.

import { request } from 'node:http';
import type { TestContext } from 'node:test';
import type { AdminServer } from '../../../../core/process/admin-pages.ts';
import { createFlightBuffer, FlightRecorder } from '../../../../core/telemetry/flight-recorder.ts';
import { createMetricsBuffer, WorkerMetrics } from '../../../../core/telemetry/metrics.ts';
import { startAdminServer } from '../../../../gateway/admin/server.ts';
import type { AdminState, WorkerState } from '../../../../gateway/admin/state.ts';

/** AdminState as plain, changeable values. */
export type FakeState = { -readonly [K in keyof AdminState]: AdminState[K] } & { workers: WorkerState[] };

/** Two healthy workers on configuration 3. */
export function fakeState(): FakeState {
  const worker = (index: number): WorkerState => ({
    index,
    up: true,
    healthy: true,
    restarts: index,
    lastPongMs: Date.now(),
    epochApplied: 3,
  });
  return {
    version: '1.2.3',
    startedAtMs: Date.UTC(2026, 0, 1),
    epoch: 3,
    loadedAtMs: Date.UTC(2026, 0, 2),
    configFile: '/etc/portcullis/gateway.yaml',
    config: { workers: 2, routes: [] },
    draining: false,
    workers: [worker(0), worker(1)],
    certificates: [],
    backends: [],
    circuitBreakers: [],
    reloads: [],
    reloadsApplied: 3,
    reloadsRefused: 1,
    metrics: [createMetricsBuffer(), createMetricsBuffer()],
    flightRecords: [createFlightBuffer(8), createFlightBuffer(8)],
    recorder: { buffers: [], key: new Int32Array(4), redactHeaders: [], maxAgeMs: 1000 },
    rateLimiting: null,
    overload: null,
    adaptiveConcurrency: [],
  };
}

/** Writers into the shared areas of a fake state, by worker. */
export function writers(state: FakeState): { metrics: WorkerMetrics[]; flight: FlightRecorder[] } {
  return {
    metrics: state.metrics.map((buffer) => new WorkerMetrics(buffer)),
    flight: state.flightRecords.map((buffer) => new FlightRecorder(buffer)),
  };
}

/** An answer of the admin port. */
export interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: string;
}

/** An admin port on a free port, closed when the test ends, and a function that asks it. */
export async function startAdmin(
  t: TestContext,
  state: AdminState,
): Promise<{
  server: AdminServer;
  ask: (path: string, options?: { method?: string; host?: string }) => Promise<Answer>;
}> {
  const server = await startAdminServer('127.0.0.1', 0, state);
  t.after(() => server.close());
  const ask = (path: string, { method = 'GET', host = `127.0.0.1:${server.port}` } = {}): Promise<Answer> =>
    new Promise((resolve, reject) => {
      const headers = { host };
      const outgoing = request({ host: '127.0.0.1', port: server.port, path, method, headers, agent: false });
      outgoing.on('error', reject);
      outgoing.on('response', (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (text: string) => {
          body += text;
        });
        response.on('end', () => resolve({ status: response.statusCode!, headers: response.headers, body }));
      });
      outgoing.end();
    });
  return { server, ask };
}
