// `portcullis control` as a process, for tests of the mesh's commands.

import assert from 'node:assert/strict';
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { temporaryDirectory, writeConfig } from '../../unit/mesh-agent/commands/support.ts';
import { type Running, runToEnd, start } from '../support.ts';

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
