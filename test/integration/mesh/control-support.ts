// A control plane on loopback, for tests with real clients.

import type { TestContext } from 'node:test';
import { credentials, Server, ServerCredentials } from '@grpc/grpc-js';
import type { Log } from '../../../core/workers/log.ts';
import { Discovery } from '../../../mesh-agent/control/discovery.ts';
import { XdsClient, type XdsClientOptions } from '../../../mesh-agent/control/xds-client.ts';
import {
  addDiscoveryService,
  type ProxyAuthenticator,
  xdsServerOptions,
} from '../../../mesh-agent/control/xds-service.ts';
import type { MeshUpdate } from '../../../mesh-agent/model/mesh-state.ts';
import { logLines } from '../../unit/mesh-agent/control/support.ts';

/** Callers say with a bearer token which node they are the proxy of. */
const byToken: ProxyAuthenticator = async ({ header }: { header(name: string): string | undefined }) => {
  const token = header('authorization') ?? '';
  if (!token.startsWith('Bearer node:')) throw new Error('the token is not known');
  const node = token.slice('Bearer node:'.length);
  return { name: `token of ${node}`, node: node === '' ? null : node };
};

/** A control plane that listens. */
export class ControlPlane {
  readonly discovery: Discovery;
  readonly lines: string[];
  port = 0;
  private readonly server: Server;

  constructor(authenticator = byToken, options: Partial<typeof xdsServerOptions> = {}) {
    this.server = new Server({ ...xdsServerOptions, ...options });
    const { log, lines } = logLines();
    this.lines = lines;
    this.discovery = new Discovery(log, 'cluster.local');
    addDiscoveryService(this.server, this.discovery, authenticator, log);
  }

  /** Listens on a port of its own, or where another control plane did. */
  async listen(t: TestContext, port = 0, tls = ServerCredentials.createInsecure()): Promise<this> {
    this.port = await new Promise<number>((resolve, reject) =>
      this.server.bindAsync(`127.0.0.1:${port}`, tls, (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      ),
    );
    t.after(() => this.stop());
    return this;
  }

  /** Goes away without a word. */
  stop(): void {
    this.server.forceShutdown();
  }
}

/** A node proxy's client, and what it was told. */
export class NodeClient {
  readonly client: XdsClient;
  readonly updates: MeshUpdate[] = [];
  readonly lines: string[];
  private waiting: (() => void)[] = [];

  constructor(t: TestContext, port: number, more: Partial<XdsClientOptions> & { token?: string } = {}) {
    const { log, lines } = logLines();
    this.lines = lines;
    const wake = (): void => {
      for (const resolve of this.waiting.splice(0)) resolve();
    };
    const noted: Log = (level, message, fields) => {
      log(level, message, fields);
      setImmediate(wake);
    };
    const { token = 'node:node-a', ...options } = more;
    this.client = new XdsClient({
      ...{ address: `127.0.0.1:${port}`, id: 'proxy-a', node: 'node-a', trustDomain: 'cluster.local', stateFile: null },
      credentials: () => credentials.createInsecure(),
      headers: () => ({ authorization: `Bearer ${token}` }),
      onUpdate: (update) => {
        this.updates.push(update);
        setImmediate(wake);
      },
      log: noted,
      reconnect: { firstMs: 10, maxMs: 50 },
      ...options,
    });
    t.after(() => this.client.close());
  }

  /** Waits until something is so after an update or a line of the log. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.waiting.push(resolve));
  }
}
