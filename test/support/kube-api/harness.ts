// Starts the API server for tests and sources that read it, and ends both with the test.

import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { KubeConfig } from '@kubernetes/client-node';
import type { LogLevel } from '../../../core/workers/log.ts';
import type { LoadKubeConfig } from '../../../mesh-agent/kubernetes/api-client.ts';
import { KubernetesSource, type KubernetesSourceOptions } from '../../../mesh-agent/kubernetes/source.ts';
import type { MeshState, MeshUpdate, Workload } from '../../../mesh-agent/model/mesh-state.ts';
import { KubeApi } from './server.ts';

/** Failures are retried quickly here. */
export const QUICK = { firstMs: 5, maxMs: 40 };

/** How long anything that works is waited for: a safety net. */
const WAIT_LIMIT_MS = 60_000;

/** A running API server. */
export async function startApi(t: TestContext, tls?: { key: string; cert: string }): Promise<KubeApi> {
  const api = new KubeApi(tls);
  await api.listen();
  t.after(() => api.stop());
  return api;
}

/** Credentials for it. */
export function configFor(api: KubeApi, user: { token?: string } = {}, cluster: { caData?: string } = {}): KubeConfig {
  const config = new KubeConfig();
  const skipTLSVerify = api.url.startsWith('http:');
  config.loadFromClusterAndUser(
    { name: 'test', server: api.url, skipTLSVerify, ...cluster },
    { name: 'test', ...user },
  );
  return config;
}

/** A line of the log. */
export interface Line {
  level: LogLevel;
  message: string;
  fields: Record<string, unknown>;
}

/** A source with what it has told. */
export class Followed {
  readonly source: KubernetesSource;
  readonly updates: MeshUpdate[] = [];
  readonly lines: Line[] = [];
  private readonly checks = new Set<() => void>();

  constructor(load: LoadKubeConfig, options: Partial<KubernetesSourceOptions> = {}) {
    this.source = new KubernetesSource({
      kubeConfig: load,
      backoff: QUICK,
      ...options,
      log: (level, message, fields = {}) => {
        this.lines.push({ level, message, fields });
        this.notify();
      },
    });
  }

  /** See MeshSource. */
  start(): Promise<void> {
    return this.source.start((update) => {
      this.updates.push(update);
      this.notify();
    });
  }

  /** The newest state. */
  get state(): MeshState {
    const update = this.updates.at(-1);
    assert.ok(update, 'no state has been told yet');
    return update.state;
  }

  /** A pod's workload of the newest state. */
  pod(name: string, namespace = 'shop'): Workload | undefined {
    return this.state.workloads.get(`Kubernetes//Pod/${namespace}/${name}`);
  }

  /** Waits until the newest state, or the log, is so. */
  until(what: string, holds: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        this.checks.delete(check);
      };
      const check = (): void => {
        if (this.updates.length === 0 || !holds()) return;
        settle();
        resolve();
      };
      const timer = setTimeout(() => {
        settle();
        reject(
          new Error(`not so: ${what}\n${JSON.stringify(this.source.state, null, 1)}\n${JSON.stringify(this.lines)}`),
        );
      }, WAIT_LIMIT_MS);
      this.checks.add(check);
      check();
    });
  }

  /** Waits for a pod to be there and so. */
  untilPod(name: string, holds: (workload: Workload) => boolean = () => true): Promise<void> {
    return this.until(`pod ${name}`, () => {
      const workload = this.pod(name);
      return workload !== undefined && holds(workload);
    });
  }

  private notify(): void {
    for (const check of [...this.checks]) check();
  }
}

/** A source that has told its first state. */
export async function follow(
  t: TestContext,
  api: KubeApi,
  options: Partial<KubernetesSourceOptions> & { token?: string } = {},
): Promise<Followed> {
  const { token, ...rest } = options;
  const followed = new Followed(async () => configFor(api, token === undefined ? {} : { token }), rest);
  t.after(() => followed.source.close());
  await followed.start();
  return followed;
}
