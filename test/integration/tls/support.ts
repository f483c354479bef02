// What the TLS, TCP and PROXY protocol tests share: one real gateway with certificates made at test
// time, wires over TLS to it, and scripted upstreams behind it.
//
// Configurations name their files relative to the directory of the site. When a test file is over, the
// gateway must be empty (nothing in flight, nothing open, no buffer in use, no worker lost) and end
// cleanly.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { after } from 'node:test';
import tls from 'node:tls';
import { type Certificate, type CertificateOptions, makeCertificate } from '../../unit/core/tls/certificates.ts';
import { becomes, listen, Upstream, withLimit } from '../http/support.ts';
import { openWire, Wire } from '../http/wire.ts';
import { Gateway, get, portcullis } from '../support.ts';

/** The authority that certificates of tests come from unless they say otherwise. */
export const authority = makeCertificate({ name: 'test authority', ca: true });

/** A certificate of the test authority. */
export function issue(name: string, names: string[], options: Partial<CertificateOptions> = {}): Certificate {
  return makeCertificate({ name, issuer: authority, names, ...options });
}

/** Files `NAME.crt` and `NAME.key` of certificates, and `ca.crt` of the authority. */
export function filesOf(certificates: Record<string, Certificate>): Record<string, string> {
  const files: Record<string, string> = { 'ca.crt': authority.pem };
  for (const [name, { pem, keyPem }] of Object.entries(certificates)) {
    files[`${name}.crt`] = pem;
    files[`${name}.key`] = keyPem;
  }
  return files;
}

/** YAML of a certificate of `filesOf`. */
export function pairOf(name: string, more = ''): string {
  return `{certificate: ${name}.crt, key: ${name}.key${more}}`;
}

/** What a gateway is started with. */
export interface SiteOptions {
  config: string;
  files?: Record<string, string>;
  env?: NodeJS.ProcessEnv;
  /** Command in front of the launcher, such as a shell with limits. */
  command?: string[];
  /** Workers that are checked for restarts at the end. Default 1. */
  workers?: number;
}

/** One gateway on a configuration of its own. */
export class Site {
  readonly gateway: Gateway;
  readonly directory = mkdtempSync(join(tmpdir(), 'portcullis-tls-'));
  readonly workers: number;
  private adminPort = 0;
  private readonly wires: Wire[] = [];
  private readonly closers: (() => unknown)[] = [];

  constructor({ config, files = {}, env = {}, command = [], workers = 1 }: SiteOptions) {
    this.workers = workers;
    const configFile = join(this.directory, 'gateway.yaml');
    writeFileSync(configFile, config);
    for (const [name, text] of Object.entries(files)) this.write(name, text);
    const [program, ...args] = [...command, portcullis, 'run', '--config', configFile];
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
    this.gateway = new Gateway(child, configFile);
  }

  /** Waits until the gateway serves. */
  async started(): Promise<this> {
    await this.gateway.serving();
    this.adminPort = await this.gateway.adminPort();
    return this;
  }

  /** Writes a file of the site. */
  write(name: string, text: string): void {
    writeFileSync(join(this.directory, name), text);
  }

  /** Has something ended before the gateway is checked for what is left. */
  beforeClose(closer: () => unknown): void {
    this.closers.push(closer);
  }

  /** A plain connection to a listener. */
  async plain(listener: string, host?: string): Promise<Wire> {
    return this.keep(await openWire(await this.gateway.port(listener), host));
  }

  /** A connection over TLS to a listener, its handshake done. Trusts the test authority. */
  async secure(listener: string, options: tls.ConnectionOptions = {}): Promise<Wire> {
    return this.keep(await openSecure(await this.gateway.port(listener), options));
  }

  /** Closes a connection at the end, if the test leaves it open. */
  keep(wire: Wire): Wire {
    this.wires.push(wire);
    return wire;
  }

  /** Text of /metrics. */
  async metrics(): Promise<string> {
    return (await get(this.adminPort, '/metrics')).body;
  }

  /** Value of one series of /metrics; 0 if there is none. */
  async metric(series: string): Promise<number> {
    const line = (await this.metrics()).split('\n').find((text) => text.startsWith(`portcullis_${series} `));
    return line === undefined ? 0 : Number(line.slice(line.lastIndexOf(' ') + 1));
  }

  /** Waits until a series has a value. */
  metricBecomes(series: string, value: number): Promise<void> {
    let last = 0;
    return becomes(`${series} ${value}`, async () => {
      last = await this.metric(series);
      return last === value;
    }).catch((error: Error) => {
      throw new Error(`${error.message}: it is ${last}\n${this.gateway.stderr.slice(-2000)}`);
    });
  }

  /**
   * Closes the wires of earlier tests, does something with clients that end by themselves, and waits until
   * the gateway has closed all their connections.
   */
  async leavingNothing(action: () => Promise<void>): Promise<void> {
    for (const wire of this.wires.splice(0)) wire.close();
    await this.metricBecomes('downstream_connections_open', 0);
    await action();
    await this.metricBecomes('downstream_connections_open', 0);
  }

  /** All lines of access.log. */
  lines(): Record<string, unknown>[] {
    const text = readFileSync(join(this.directory, 'access.log'), 'utf8');
    return text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  /** Waits for the access log line that has these values. */
  async logged(values: Record<string, unknown>): Promise<Record<string, unknown>> {
    let found: Record<string, unknown> | undefined;
    await becomes(`log line with ${JSON.stringify(values)}`, async () => {
      found = this.lines().find((line) => Object.entries(values).every(([name, value]) => line[name] === value));
      return found !== undefined;
    }).catch((error: Error) => {
      throw new Error(
        `${error.message}, only\n${this.lines()
          .map((line) => JSON.stringify(line))
          .join('\n')}`,
      );
    });
    return found!;
  }

  /** Reloads and waits until the workers run on the new configuration. */
  async reload(config?: string): Promise<void> {
    const before = [...this.gateway.stderr.matchAll(/configuration reloaded/g)].length;
    if (config !== undefined) this.gateway.configure(config);
    this.gateway.kill('SIGHUP');
    await this.gateway.log(/configuration reloaded/, before + 1);
  }

  /** Resident memory of the gateway, in bytes. */
  residentBytes(): number {
    const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.gateway.pid}/status`, 'latin1'));
    return Number(match![1]) * 1024;
  }

  /** Closes everything, and asserts that nothing is left in the gateway. */
  async close(): Promise<void> {
    try {
      for (const wire of this.wires) wire.close();
      for (const closer of this.closers) await closer();
      for (const gauge of ['requests_in_flight', 'downstream_connections_open', 'upstream_connections_open']) {
        await this.metricBecomes(gauge, 0);
      }
      await this.metricBecomes('tunnels_open', 0);
      await this.metricBecomes('buffers_in_use', 0);
      for (let worker = 0; worker < this.workers; worker++) {
        assert.equal(await this.metric(`worker_restarts_total{worker="${worker}"}`), 0, this.gateway.stderr);
      }
      this.gateway.kill('SIGTERM');
      const { code, stderr } = await this.gateway.finished;
      assert.equal(code, 0, stderr);
    } finally {
      this.abandon();
      await this.gateway.finished;
    }
  }

  /** Ends the gateway whatever it holds. */
  abandon(): void {
    this.gateway.kill('SIGKILL');
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Starts a gateway for a test file; it is closed, and checked for leaks, after the last test. */
export async function startSite(options: SiteOptions): Promise<Site> {
  const site = new Site(options);
  after(() => site.close());
  return site.started();
}

/** Opens a connection over TLS and does the handshake; both halves end separately. */
export async function openSecure(port: number, options: tls.ConnectionOptions = {}): Promise<Wire> {
  const raw = await openWire(port);
  return startTls(raw.socket, options);
}

/** Does a TLS handshake on a connected socket. Rejects with the error of the handshake. */
export function startTls(socket: Duplex, options: tls.ConnectionOptions = {}): Promise<Wire> {
  socket.removeAllListeners('data');
  return withLimit(
    'TLS handshake',
    new Promise((resolve, reject) => {
      const secure = tls.connect({
        socket,
        ca: authority.pem,
        servername: 'a.example',
        allowHalfOpen: true,
        ...options,
      } as tls.ConnectionOptions);
      secure.once('error', reject);
      secure.once('secureConnect', () => {
        secure.off('error', reject);
        resolve(new Wire(secure));
      });
    }),
  );
}

/** The TLS socket of a wire that `openSecure` made. */
export function tlsOf(wire: Wire): tls.TLSSocket {
  return wire.socket as tls.TLSSocket;
}

/** Common name of the certificate that the gateway has shown. */
export function subjectOf(wire: Wire): string {
  return String(tlsOf(wire).getPeerCertificate().subject.CN);
}

/** A scripted upstream on a free port, closed with the test file. */
export async function openUpstream(name = 'upstream'): Promise<Upstream> {
  const upstream = new Upstream(name, await listen());
  after(() => upstream.close());
  return upstream;
}

/** Answers an upstream gives by itself: its name. */
export function named(name: string): () => string {
  return () => `HTTP/1.1 200 OK\r\nContent-Length: ${name.length}\r\n\r\n${name}`;
}

/** Runs a command to its end with text on standard input; what it printed and its exit code. */
export function run(command: string, args: string[], input = ''): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    child.stderr.on('data', (chunk) => (output += chunk));
    child.once('error', reject);
    child.stdin.on('error', () => {});
    child.once('close', (code) => resolve({ code, output }));
    child.stdin.end(input);
  });
}

/** The first ClientHello that a client with these options sends. */
export function clientHello(options: tls.ConnectionOptions = {}): Promise<Buffer> {
  return new Promise((resolve) => {
    const pipe = new Duplex({
      read() {},
      write(chunk: Buffer, _encoding, done) {
        resolve(chunk);
        done();
      },
    });
    const secure = tls.connect({ socket: pipe, servername: 'a.example', ...options } as tls.ConnectionOptions);
    secure.on('error', () => {});
  });
}

/** A socket's other face: what is written to it first leaves byte by byte, the rest as it is. */
export function trickling(socket: Socket): Duplex {
  socket.setNoDelay(true);
  let first = true;
  const pipe = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      if (!first) {
        socket.write(chunk, done);
        return;
      }
      first = false;
      const next = (at: number): void => {
        if (at < chunk.length) socket.write(chunk.subarray(at, at + 1), () => setImmediate(next, at + 1));
        else done();
      };
      next(0);
    },
    final(done) {
      socket.end(done);
    },
    destroy(error, done) {
      socket.destroy();
      done(error);
    },
  });
  socket.on('data', (chunk) => pipe.push(chunk));
  socket.on('end', () => pipe.push(null));
  socket.on('error', (error) => pipe.destroy(error));
  return pipe;
}
