// Starts the programs of a test mesh inside their namespaces: the small application, constant load, nginx.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Finished, Running } from '../../integration/support.ts';
import type { TestNamespace } from '../netns/network.ts';

/** What a port of the application speaks; `banner` is a server that speaks first, and ends. */
export type AppKind = 'http' | 'h2c' | 'grpc' | 'echo' | 'banner';

/** A port of the application. */
export interface AppPort {
  port: number;
  kind: AppKind;
  /** What every request to it asks in turn: `http://` or `tcp://`. */
  calls?: string[];
}

/** The application, as app.ts takes it. */
export interface AppSpec {
  /** In every answer. */
  name: string;
  ports: AppPort[];
}

/** Constant load, as load.ts takes it. */
export interface LoadSpec {
  url: string;
  /** Requests under way at any time. */
  lanes: number;
  /** Every so many requests a lane opens a connection anew; 1: each on its own. */
  perConnection: number;
  /** Most requests in a second of all lanes together; 0: as fast as it goes. */
  rate?: number;
}

/** What load.ts counted. */
export interface LoadResult {
  requests: number;
  failed: number;
  /** The first of them, with when. */
  failures: string[];
  p50Ms: number;
  p99Ms: number;
}

const node = fileURLToPath(new URL('../../../scripts/node', import.meta.url));
const scriptOf = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** Runs one of this folder's scripts inside a namespace. */
export function startScript(at: TestNamespace, script: string, argument: object): Running {
  return new Running(at.spawn(node, [scriptOf(script), JSON.stringify(argument)]));
}

/** Starts the application; resolves when it listens. */
export async function startApp(at: TestNamespace, name: string, ...ports: AppPort[]): Promise<Running> {
  const app = startScript(at, './app.ts', { name, ports } satisfies AppSpec);
  await app.printed(/^ready$/);
  return app;
}

/** Load that runs until it is told to stop. */
export class ConstantLoad {
  private readonly process: Running;

  constructor(at: TestNamespace, spec: LoadSpec) {
    this.process = startScript(at, './load.ts', spec);
  }

  get pid(): number {
    return this.process.pid;
  }

  /** Waits until so many hundred more requests have ended. */
  async more(hundreds: number): Promise<void> {
    const seen = this.process.stdout.match(/^\.$/gm)?.length ?? 0;
    for (let count = 1; count <= hundreds; count++) await this.process.printed(/^\.$/, seen + count);
  }

  /** Ends it. */
  async stop(): Promise<LoadResult> {
    this.process.kill('SIGTERM');
    const { code, stdout, stderr } = await this.process.finished;
    if (code !== 0) throw new Error(`load.ts ended with ${code}: ${stderr}`);
    return JSON.parse(stdout.slice(stdout.indexOf('{'))) as LoadResult;
  }
}

/** Runs one of this folder's scripts inside a namespace to its end. */
export function runScript(at: TestNamespace, script: string, argument: object): Promise<Finished> {
  return startScript(at, script, argument).finished;
}

/** nginx as it is installed, on one port, with its files in `directory`. */
export async function startNginx(at: TestNamespace, directory: string, port: number, text: string): Promise<Running> {
  const file = join(directory, 'nginx.conf');
  // Without a master process nothing is left behind when it is killed.
  writeFileSync(
    file,
    `daemon off; master_process off; pid ${directory}/nginx.pid; error_log stderr notice;
events { worker_connections 2048; }
http {
  access_log off;
  client_body_temp_path ${directory}; proxy_temp_path ${directory}; fastcgi_temp_path ${directory};
  uwsgi_temp_path ${directory}; scgi_temp_path ${directory};
  server { listen [::]:${port} ipv6only=off; location / { return 200 "${text}"; } }
}
`,
  );
  const nginx = new Running(at.spawn('nginx', ['-c', file, '-p', directory]));
  await nginx.log(/nginx\/\S+$/);
  return nginx;
}
