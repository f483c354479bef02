// `portcullis control` as a process, for tests of the mesh's commands.

import assert from 'node:assert/strict';
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { credentials } from '@grpc/grpc-js';
import { XdsClient } from '../../../mesh-agent/control/xds-client.ts';
import { keyToPem } from '../../../mesh-agent/identity/certificate.ts';
import { CertificateClient, type ClientCertificate } from '../../../mesh-agent/identity/certificate-client.ts';
import { createSigningRequest } from '../../../mesh-agent/identity/csr.ts';
import { generateKey } from '../../../mesh-agent/identity/keys.ts';
import { TrustStore } from '../../../mesh-agent/identity/trust-store.ts';
import { temporaryDirectory, writeConfig } from '../../unit/mesh-agent/commands/support.ts';
import { type Running, runToEnd, start } from '../support.ts';

const silent = (): void => {};

/** Identity of the node that `Host` is. */
export const NODE = 'spiffe://cluster.local/node/host-a';

/** Configuration of a control plane on a directory; ports are chosen by the system. */
export const CONFIG = `trustDomain: cluster.local
listen: "127.0.0.1:0"
admin: {address: "127.0.0.1:0"}
ca: {directory: state/ca}
source: {directory: mesh}
`;

/** A workload and its service, on host-a. */
export function workload(name: string, address: string, extra = ''): string {
  return `kind: Workload
metadata: {name: ${name}, namespace: shop, labels: {app: ${name}}}
spec: {addresses: [${address}], serviceAccount: ${name}, node: host-a${extra}}
---
kind: Service
metadata: {name: ${name}, namespace: shop}
spec: {selector: {app: ${name}}, ports: [{port: 80, targetPort: 8080, protocol: http}]}
`;
}

/** A control plane on a directory of YAML. */
export class Control {
  readonly file: string;
  readonly process: Running;
  private readonly t: TestContext;
  readonly base: string;

  constructor(t: TestContext, files: Record<string, string>, config = CONFIG, base = temporaryDirectory(t)) {
    this.t = t;
    this.base = base;
    this.file = writeConfig(t, config, ['mesh'], base);
    for (const [name, text] of Object.entries(files)) this.write(name, text);
    this.process = start(t, ['control', '--config', this.file]);
  }

  /** Replaces a file of the mesh at once, as an operator's tools do. */
  write(name: string, text: string): void {
    writeFileSync(join(this.base, `.${name}.new`), text);
    renameSync(join(this.base, `.${name}.new`), join(this.base, 'mesh', name));
  }

  async address(): Promise<string> {
    return (await this.process.log(/info serving .*address=(\S+)/))[1]!;
  }

  async admin(): Promise<string> {
    return (await this.process.log(/info admin port address=(\S+)$/))[1]!;
  }

  async mesh(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await runToEnd(this.t, 'mesh', ...args);
    assert.equal(code, 0, stderr);
    return stdout;
  }

  async get(path: string): Promise<{ status: number; body: string }> {
    const response = await fetch(`http://${await this.admin()}${path}`);
    return { status: response.status, body: await response.text() };
  }
}

/** Makes a join token; returns its text. */
export const createToken = (control: Control, ...options: string[]): Promise<string> =>
  control.mesh('token', 'create', '--config', control.file, ...options).then((text) => text.trim());

/** A host that joins with a token, and the clients that its node proxy is made of. */
export class Host {
  readonly token: string;
  readonly roots: string;
  certificate: ClientCertificate | null = null;
  readonly client: CertificateClient;
  private readonly address: string;

  private constructor(t: TestContext, address: string, roots: string, token: string, trust: TrustStore) {
    this.address = address;
    this.roots = roots;
    this.token = token;
    this.client = new CertificateClient({
      address,
      serverName: 'localhost',
      trust,
      token: async () => this.token,
      certificate: () => this.certificate,
    });
    t.after(() => this.client.close());
  }

  static async of(t: TestContext, control: Control, token: string): Promise<Host> {
    const roots = await control.mesh('roots', '--admin', await control.admin());
    const trust = await TrustStore.open('cluster.local', roots, null, silent);
    return new Host(t, await control.address(), roots, token, trust);
  }

  async request(identity: string): Promise<ClientCertificate> {
    const key = await generateKey();
    const chain = await this.client.request(createSigningRequest(identity, key), identity, 0);
    return { chainPem: chain.join(''), keyPem: keyToPem(key) };
  }

  async join(): Promise<void> {
    this.certificate = await this.request(NODE);
  }

  /** Connects with the node's certificate; `until` waits for a state. */
  async follow(t: TestContext): Promise<{ xds: XdsClient; until(condition: () => boolean): Promise<void> }> {
    const waiting = new Set<() => void>();
    const tell = (): void => {
      for (const check of [...waiting]) check();
    };
    const { chainPem, keyPem } = this.certificate!;
    const xds = new XdsClient({
      address: this.address,
      serverName: 'localhost',
      credentials: () => credentials.createSsl(Buffer.from(this.roots), Buffer.from(keyPem), Buffer.from(chainPem)),
      id: 'proxy-a',
      node: 'host-a',
      trustDomain: 'cluster.local',
      stateFile: null,
      onUpdate: tell,
      log: (_level, message) => void (message.includes('is away') && tell()),
      reconnect: { firstMs: 20, maxMs: 100 },
    });
    t.after(() => xds.close());
    await xds.start();
    const until = (condition: () => boolean): Promise<void> =>
      new Promise((resolve) => {
        const check = (): void => {
          if (!condition()) return;
          waiting.delete(check);
          resolve();
        };
        waiting.add(check);
        check();
      });
    return { xds, until };
  }
}
