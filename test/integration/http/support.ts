// A laboratory for HTTP/1 behaviour: one real gateway process between raw clients and raw upstreams.
//
// Each test takes an upstream of its own, with a hostname that is routed to it alone, so that no
// kept connection of one test can serve another although all share the gateway. When the file is
// over, every connection is closed and the gateway must be empty: nothing in flight, nothing
// open, no buffer in use, no worker lost, and a clean exit.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { Gateway, get, portcullis } from '../support.ts';
import { type Message, openWire, Wire } from './wire.ts';

/** A safety net only. */
const WAIT_LIMIT_MS = 60_000;

/** Settings of a laboratory; texts are YAML in flow style, each ending without a comma. */
export interface LabOptions {
  /** How many upstreams tests can take. */
  upstreams?: number;
  /** Top-level keys, one per line. */
  top?: string;
  /** Further keys of each route's rule. */
  rule?: string;
  /** Further keys of each backend. */
  backend?: string;
  /** Further keys of the listener. */
  listener?: string;
  /** Upstreams with keys of their own instead, by a name for their kind. */
  kinds?: Record<string, Pick<LabOptions, 'upstreams' | 'rule' | 'backend'>>;
  /** Further list items of `routes` and `backends`, for what upstreams of tests do not cover. */
  routes?: string[];
  backends?: string[];
}

/** A scripted upstream: connections wait until the test takes them. */
export class Upstream {
  /** Host that is routed to this upstream and nothing else. */
  readonly host: string;
  readonly port: number;
  /** Connections accepted so far. */
  accepted = 0;
  /** All connections so far, in order. */
  readonly wires: Wire[] = [];
  private readonly server: Server;
  private readonly waiting: Wire[] = [];
  private readonly takers: ((wire: Wire) => void)[] = [];

  constructor(host: string, server: Server) {
    this.host = host;
    this.server = server;
    this.port = (server.address() as AddressInfo).port;
    server.on('connection', (socket) => {
      const wire = new Wire(socket);
      this.accepted++;
      this.wires.push(wire);
      const taker = this.takers.shift();
      if (taker === undefined) this.waiting.push(wire);
      else taker(wire);
    });
  }

  /** Waits for the next connection of the gateway. */
  async connection(): Promise<Wire> {
    const waiting = this.waiting.shift();
    if (waiting !== undefined) return waiting;
    return withLimit(`connection to ${this.host}`, new Promise((resolve) => this.takers.push(resolve)));
  }

  /** Answers every request on every connection by itself from now on. */
  serve(answer: (request: Message) => string): void {
    const loop = async (wire: Wire): Promise<void> => {
      while (wire.ending === undefined) await wire.send(answer(await wire.request()));
    };
    const take = (wire: Wire): void => {
      loop(wire).catch(() => wire.close());
      this.takers.push(take);
    };
    this.takers.push(take);
  }

  /** Gives every connection to a handler from now on. */
  each(handle: (wire: Wire) => void): void {
    const take = (wire: Wire): void => {
      this.takers.push(take);
      handle(wire);
    };
    this.takers.push(take);
    for (let wire = this.waiting.shift(); wire !== undefined; wire = this.waiting.shift()) handle(wire);
  }

  /** Stops listening and closes all connections. */
  close(): void {
    this.server.close();
    for (const wire of this.wires) wire.close();
  }
}

/** One gateway with its upstreams. */
export class Lab {
  readonly gateway: Gateway;
  readonly directory: string;
  /** Ports of the listener and the admin port. */
  port = 0;
  adminPort = 0;
  readonly upstreams: Upstream[] = [];
  private readonly options: LabOptions;
  private readonly clients: Wire[] = [];
  private readonly closers: (() => unknown)[] = [];
  private readonly taken = new Set<Upstream>();

  constructor(options: LabOptions, upstreams: Upstream[], directory: string) {
    this.options = options;
    this.upstreams = upstreams;
    this.directory = directory;
    const configFile = join(directory, 'gateway.yaml');
    writeFileSync(configFile, this.config());
    const child = spawn(portcullis, ['run', '--config', configFile], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.gateway = new Gateway(child, configFile);
  }

  /** The configuration file, with other top-level keys if given. */
  config(top = this.options.top ?? ''): string {
    const { kinds = {}, listener, routes = [], backends = [] } = this.options;
    const keysOf = (host: string): LabOptions => kinds[/^[a-z]+/.exec(host)![0]] ?? this.options;
    const more = (text: string | undefined): string => (text === undefined ? '' : `, ${text}`);
    const lines = [
      'workers: 1',
      'admin: {address: "127.0.0.1:0"}',
      'drainTimeout: 10s',
      'responseReasonHeader: x-reason',
      top,
      `listeners: [{name: http, address: "127.0.0.1:0"${more(listener)}}]`,
      'routes:',
      ...routes.map((item) => `  - ${item}`),
    ];
    for (const { host } of this.upstreams) {
      const refs = `backendRefs: [{name: ${host}}]`;
      lines.push(`  - {name: ${host}, hostnames: [${host}], rules: [{${refs}${more(keysOf(host).rule)}}]}`);
    }
    lines.push('backends:', ...backends.map((item) => `  - ${item}`));
    for (const { host, port } of this.upstreams) {
      lines.push(`  - {name: ${host}, endpoints: ["127.0.0.1:${port}"]${more(keysOf(host).backend)}}`);
    }
    return `${lines.join('\n')}\n`;
  }

  /** An upstream that no other test has, of a kind if the laboratory has kinds. */
  upstream(kind = 't'): Upstream {
    const free = this.upstreams.find((upstream) => upstream.host.startsWith(kind) && !this.taken.has(upstream));
    assert.ok(free !== undefined, 'the laboratory has too few upstreams');
    this.taken.add(free);
    return free;
  }

  /** A new client connection; closed at the end if the test leaves it open. */
  async client(): Promise<Wire> {
    const wire = await openWire(this.port);
    this.clients.push(wire);
    return wire;
  }

  /** Value of one line of /metrics; 0 if there is none. */
  async metric(series: string): Promise<number> {
    const { body } = await get(this.adminPort, '/metrics');
    const line = body.split('\n').find((text) => text.startsWith(`${series} `));
    return line === undefined ? 0 : Number(line.slice(series.length + 1));
  }

  /** Does something that makes the gateway lose one kept upstream connection, and waits until it has. */
  async losingIdle(action: () => void): Promise<void> {
    const series = 'portcullis_upstream_connections_idle';
    const before = await this.metric(series);
    action();
    await this.metricBecomes(series, before - 1);
  }

  /** Waits until a metric has a value. */
  metricBecomes(series: string, value: number): Promise<void> {
    return becomes(`${series} ${value}`, async () => (await this.metric(series)) === value);
  }

  /** Stops the process while `action` runs: all it causes is there at once when the gateway goes on. */
  async whileStopped(action: () => Promise<void>): Promise<void> {
    const stat = `/proc/${this.gateway.pid}/stat`;
    this.gateway.kill('SIGSTOP');
    await becomes('stopped gateway', async () => / T /.test(readFileSync(stat, 'latin1')));
    try {
      await action();
    } finally {
      this.gateway.kill('SIGCONT');
    }
  }

  /** Has something ended before the gateway is checked for what is left: an upstream of another kind. */
  beforeClose(closer: () => unknown): void {
    this.closers.push(closer);
  }

  /** Closes everything, and asserts that nothing is left in the gateway. */
  async close(): Promise<void> {
    try {
      for (const closer of this.closers) await closer();
      for (const client of this.clients) client.close();
      for (const upstream of this.upstreams) upstream.close();
      for (const gauge of ['requests_in_flight', 'downstream_connections_open', 'upstream_connections_open']) {
        await this.metricBecomes(`portcullis_${gauge}`, 0);
      }
      await this.metricBecomes('portcullis_upstream_connections_idle', 0);
      await this.metricBecomes('portcullis_tunnels_open', 0);
      await this.metricBecomes('portcullis_buffers_in_use', 0);
      assert.equal(await this.metric('portcullis_worker_restarts_total{worker="0"}'), 0);
      this.gateway.kill('SIGTERM');
      const { code, stderr } = await this.gateway.finished;
      assert.equal(code, 0, stderr);
    } finally {
      this.gateway.kill('SIGKILL');
      await this.gateway.finished;
      rmSync(this.directory, { recursive: true, force: true });
    }
  }
}

/** Starts a gateway for a test file; it is closed, and checked for leaks, after the last test. */
export async function startLab(options: LabOptions = {}): Promise<Lab> {
  const upstreams: Upstream[] = [];
  for (const [kind, { upstreams: count = 12 }] of Object.entries(options.kinds ?? { t: options })) {
    for (let i = 0; i < count; i++) upstreams.push(new Upstream(`${kind}${i}.test`, await listen()));
  }
  const lab = new Lab(options, upstreams, mkdtempSync(join(tmpdir(), 'portcullis-http-')));
  after(() => lab.close());
  lab.port = await lab.gateway.port();
  lab.adminPort = await lab.gateway.adminPort();
  await lab.gateway.serving();
  return lab;
}

/** A listening server on a free loopback port. */
export async function listen(): Promise<Server> {
  const server = createServer({ allowHalfOpen: true });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

/** Waits until a condition holds. */
export async function becomes(what: string, condition: () => Promise<boolean>): Promise<void> {
  const limit = Date.now() + WAIT_LIMIT_MS;
  while (!(await condition())) {
    if (Date.now() > limit) throw new Error(`${what} did not come about`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Fails when a promise takes far too long. */
export function withLimit<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout;
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what}`)), WAIT_LIMIT_MS);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

/** A request head (and body) as text: `request('GET /a', host, 'X: y')`. */
export function request(line: string, host: string, ...fields: string[]): string {
  return [`${line} HTTP/1.1`, `Host: ${host}`, ...fields, '', ''].join('\r\n');
}

/** A response with Content-Length and a body. */
export function ok(body: string, ...fields: string[]): string {
  return ['HTTP/1.1 200 OK', ...fields, `Content-Length: ${body.length}`, '', body].join('\r\n');
}

/** Replaces what differs in every run: Date and generated request ids. */
export function normal(text: string): string {
  return text
    .replace(/date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT/g, 'date: NOW')
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}/g, 'ID');
}
