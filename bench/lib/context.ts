// What the scenarios share: the options, the proxies found, the backends, and the running fleet.
//
// Invariant: at most one fleet runs at a time, so that an idle proxy of another scenario never
// shares the core with a measured one.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Balance, FrontProtocol, Peer, ProxyOptions, StartedProxy } from '../peers/peer.ts';
import type { Access } from './access.ts';
import {
  type Backend,
  type BackendKind,
  bodyPath,
  fastAddresses,
  SMALL_BODY_BYTES,
  smallPath,
  startBackend,
  UPLOAD_PATH,
} from './backend.ts';
import { cProgramsDir } from './c-programs.ts';
import { certificateFiles } from './certificate.ts';
import { GRPC_BODY_BYTES } from './grpc.ts';
import type { Machine } from './machine.ts';
import type { BenchOptions } from './options.ts';
import { freePort } from './ports.ts';
import { temporaryDir } from './processes.ts';
import { hostName, routePrefix } from './routes.ts';
import { checkAnswer, waitUntilServing } from './serving.ts';
import { startSlowServer } from './slow-server.ts';
import type { TrafficSet } from './traffic.ts';

/** Core of the proxy that is measured. */
export const PROXY_CORE = 0;
/** Core of the load generator and the backend. */
export const LOAD_CORE = 1;

/** A problem that quotes a process's last words is cut after this many characters. */
const PROBLEM_CHARS_MAX = 400;

/** A proxy that serves. */
export interface RunningProxy {
  peer: Peer;
  /** Name in tables: the peer's, with the variant where one scenario has several. */
  name: string;
  port: number;
  /** How clients speak to it. */
  access: Access;
  accessLogPath: string | null;
  started: StartedProxy;
  backend: Backend;
  /** When its first 200 was seen, from performance.now(). */
  servingAtMs: number;
}

/** How a scenario wants its proxies; what is left out is: one worker, pinned, no log, one route, HTTP/1.1 without TLS. */
export interface ProxyWish {
  workers?: number;
  pinned?: boolean;
  accessLog?: boolean;
  routes?: 'one' | 'many';
  /** With `grpc` the proxy speaks HTTP/2 to it; `tls` needs the protocol `tls-passthrough`. */
  backend?: BackendKind;
  protocol?: FrontProtocol;
  /** Whether the proxy terminates TLS. */
  tls?: boolean;
  /** Spread over nine addresses of the backend, or these and a slow one; default: one address of the backend. */
  backends?: 'nine' | 'ten-one-slow';
  balance?: Balance;
  /** Traffic features; for Portcullis. */
  traffic?: TrafficSet;
  /** Responses compressed with gzip at this level; for peers that have it. */
  gzipLevel?: number;
  /** Added to the name in tables. */
  variant?: string;
}

/** State of one benchmark run. */
export class BenchContext {
  readonly options: BenchOptions;
  readonly machine: Machine;
  /** Proxies that are installed and asked for, Portcullis first. */
  readonly peers: readonly Peer[];
  #fleet: RunningProxy[] = [];
  #fleetKey = '';
  #backends = new Map<string, Promise<Backend>>();
  #bystander: Promise<Backend> | undefined;
  #slow: ReturnType<typeof startSlowServer> | undefined;
  #started = 0;
  #problems: string[] = [];

  constructor(options: BenchOptions, machine: Machine, peers: readonly Peer[]) {
    this.options = options;
    this.machine = machine;
    this.peers = peers;
  }

  /** Backend for uploads: backend.c drains bodies at the least cost, so it is preferred where it can be built. */
  get uploadBackend(): 'nginx' | 'c' {
    return cProgramsDir() === null ? this.options.backend : 'c';
  }

  /** Notes something that makes figures doubtful; takeProblems() hands it to the results. */
  problem(text: string): void {
    const line = text.replaceAll(/\s+/g, ' ').trim().slice(0, PROBLEM_CHARS_MAX);
    this.#problems.push(line);
    console.error(`  !! ${line}`);
  }

  /** Problems since the last call. */
  takeProblems(): string[] {
    return this.#problems.splice(0);
  }

  /** One proxy, started, checked and serving. The caller stops it. */
  async startProxy(peer: Peer, wish: ProxyWish): Promise<RunningProxy> {
    const pinned = wish.pinned ?? true;
    const backend = await this.#backend(wish.backend ?? this.options.backend, pinned ? LOAD_CORE : null);
    const name = wish.variant === undefined ? peer.name : `${peer.name}, ${wish.variant}`;
    const dir = join(temporaryDir(), `${peer.name}-${this.#started++}`);
    mkdirSync(dir);
    const options: ProxyOptions = {
      dir,
      port: await freePort(),
      backendPort: backend.port,
      workers: wish.workers ?? 1,
      core: pinned ? PROXY_CORE : null,
      accessLogPath: wish.accessLog ? join(dir, 'access.log') : null,
      routes: wish.routes ?? 'one',
      protocol: wish.protocol ?? 'http/1.1',
      tls: wish.tls ? await certificateFiles() : null,
      moreBackends: await this.#moreBackends(wish.backends, backend.port),
      balance: wish.balance ?? 'RoundRobin',
      traffic: wish.traffic ?? null,
      bystanderPort: wish.traffic === 'mirror-elsewhere' ? await this.#bystanderPort() : null,
      gzipLevel: wish.gzipLevel ?? null,
      upstreamProtocol: backend.kind === 'grpc' ? 'h2c' : 'http/1.1',
    };
    const access = accessTo(options, backend);
    const started = await peer.start(options);
    const many = options.routes === 'many';
    const host = many ? hostName(0) : 'localhost';
    const path = many ? `${routePrefix(0)}/item` : smallPath(backend.kind);
    const bodyBytes = backend.kind === 'grpc' ? GRPC_BODY_BYTES : SMALL_BODY_BYTES;
    let servingAtMs = 0;
    try {
      servingAtMs = await waitUntilServing(started.process, access, path, host);
      await checkAnswer(name, access, path, host, bodyBytes);
    } catch (error) {
      await started.process.stop();
      throw error;
    }
    const { port, accessLogPath } = options;
    return { peer, name, port, access, accessLogPath, started, backend, servingAtMs };
  }

  /**
   * Every peer for which `fits` holds, once for each wish, all running side by side. A fleet with the
   * same wishes as the last one is used again. A proxy that does not start is a problem, not an end.
   */
  async fleet(
    wishes: readonly ProxyWish[],
    fits: (peer: Peer) => boolean = () => true,
  ): Promise<readonly RunningProxy[]> {
    const peers = this.peers.filter(fits);
    const key = JSON.stringify([wishes, peers.map((peer) => peer.name)]);
    if (key === this.#fleetKey && this.#fleet.every(isAlive)) return this.#fleet;
    await this.stopFleet();
    for (const peer of peers) {
      for (const wish of wishes) {
        try {
          this.#fleet.push(await this.startProxy(peer, wish));
        } catch (error) {
          this.problem(`${peer.name} could not take part: ${error instanceof Error ? error.message : error}`);
        }
      }
    }
    this.#fleetKey = key;
    return this.#fleet;
  }

  /** Stops the running fleet. */
  async stopFleet(): Promise<void> {
    this.#fleetKey = '';
    await Promise.all(this.#fleet.splice(0).map((proxy) => proxy.started.process.stop()));
  }

  /** Addresses of upstreams beside the first one. */
  async #moreBackends(backends: ProxyWish['backends'], port: number): Promise<string[]> {
    if (backends === undefined) return [];
    return backends === 'nine' ? fastAddresses(port) : [...fastAddresses(port), await this.#slowBackend()];
  }

  /** Address of a backend that takes its time; started with the first use. */
  async #slowBackend(): Promise<string> {
    this.#slow ??= startSlowServer(LOAD_CORE);
    return (await this.#slow).address;
  }

  /**
   * Port of a backend beside the measured one, which has a core only when nobody else wants it: the nearest thing
   * to one on another machine. Started with the first use.
   */
  async #bystanderPort(): Promise<number> {
    this.#bystander ??= startBackend('nginx', LOAD_CORE, true);
    return (await this.#bystander).port;
  }

  async #backend(kind: BackendKind, core: number | null): Promise<Backend> {
    const key = `${kind} ${core}`;
    let backend = this.#backends.get(key);
    const { process } = (await backend) ?? {};
    if (process?.exited) {
      this.problem(`the ${kind} backend died (${process.ending}) and was started again`);
      backend = undefined;
    }
    if (backend === undefined) {
      backend = startBackend(kind, core).then(async (started) => {
        const label = `the ${kind} backend`;
        if (kind === 'grpc') {
          await checkAnswer(label, started.access, smallPath(kind), 'localhost', GRPC_BODY_BYTES);
          return started;
        }
        await checkAnswer(label, started.access, bodyPath(16_384), 'localhost', 16_384);
        await checkAnswer(label, started.access, UPLOAD_PATH, 'localhost', SMALL_BODY_BYTES);
        return started;
      });
      this.#backends.set(key, backend);
    }
    return backend;
  }
}

/** How clients speak to a proxy that runs with these options. */
function accessTo(options: ProxyOptions, backend: Backend): Access {
  // Bytes passed on unread are spoken as the backend speaks.
  if (options.protocol === 'tcp' || options.protocol === 'tls-passthrough') {
    return { ...backend.access, port: options.port };
  }
  const grpc = backend.kind === 'grpc';
  return { port: options.port, tls: options.tls !== null, protocol: grpc ? 'grpc' : options.protocol };
}

function isAlive(proxy: RunningProxy): boolean {
  return !proxy.started.process.exited && !proxy.backend.process.exited;
}
