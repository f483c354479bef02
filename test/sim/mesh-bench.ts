// A whole worker of a node proxy on the simulated kernel: workloads whose connections are captured, services, and
// servers behind them. Tunnels need TLS, which the simulation has not: everything goes as it is.

import { compileSnapshot } from '../../config/compile.ts';
import type { Config } from '../../config/config.ts';
import { loadConfig } from '../../config/load.ts';
import { policySlot } from '../../core/authorization/policy-numbers.ts';
import type { HostPort } from '../../core/ffi/sockaddr.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { createNodeState } from '../../core/lb/node-state.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-layout.ts';
import { readRecords } from '../../core/telemetry/flight-reader.ts';
import { Counter, createMetricsBuffer, MetricSection } from '../../core/telemetry/metrics.ts';
import { detailName } from '../../core/telemetry/outcome-names.ts';
import { type PeerTraffic, readPeers, readWorkload } from '../../core/telemetry/workload-metrics.ts';
import type { WorkloadSettings } from '../../core/workers/mesh-settings.ts';
import { NodeSlots } from '../../core/workers/node-slots.ts';
import { PacketWorker, type WorkerStats } from '../../core/workers/packet-worker.ts';
import type { DestinationAnswer, WorkerMessage } from '../../core/workers/protocol.ts';
import type { Snapshot } from '../../core/workers/snapshot.ts';
import { SnapshotDeltas } from '../../core/workers/snapshot-delta.ts';
import { type Endpoint, noFaults, SimKernel } from './kernel.ts';
import { Random } from './random.ts';
import { Scheduler } from './scheduler.ts';
import { type LinkProfile, plainLink, type SimSocket } from './tcp.ts';

/** Virtual address of the service, and its ports by what they are declared to be. */
export const VIP = '10.96.0.1';
export const PORTS = { http: 80, tcp: 9000, auto: 7000 } as const;

/** Where the service's workload and its servers are. */
export const BACKEND: HostPort = { host: '10.1.0.9', port: 8080 };

/** What a test may change of the mesh. */
export interface MeshOptions {
  /** Workloads of the node, by the number in their names. */
  workloads?: number[];
  /** Settings of all of them. */
  settings?: Partial<WorkloadSettings>;
  /** Captured connections to outside are refused. */
  egressRefused?: boolean;
  /** Servers of the service, `ip:port`. */
  endpoints?: string[];
  /** Their identity, if they are reached through tunnels. */
  endpointIdentity?: string;
  /** The node asks for what is in these networks (none: everywhere) and that it does not know; null: it knows all. */
  discoveryNetworks?: string[] | null;
  /** Virtual addresses of the service that the node knows. */
  vips?: string[];
}

/** What a bench is made with. */
export interface BenchOptions extends MeshOptions {
  seed?: number;
  links?: (random: Random) => { out: LinkProfile; in: LinkProfile };
  connectionsMax?: number;
  bufferBytes?: number;
  /** Longest time of a system call; 0: none takes any. */
  syscallMsMax?: number;
}

/** Names of listeners without a socket, with what they speak. */
const virtual = [
  ['service-http', '[http/1.1, h2c]', false],
  ['service-tcp', '[tcp]', false],
  ['service-auto', '[http/1.1, h2c]', true],
  ['passthrough', '[tcp]', false],
  ['in-auto', '[http/1.1, h2c]', true],
  ['in-http', '[http/1.1, h2c]', false],
  ['in-tcp', '[tcp]', false],
] as const;

/** Address of a workload. */
export function addressOf(workload: number): string {
  return `10.2.0.${workload}`;
}

function socketsOf(workload: number): { outbound: HostPort; inbound: HostPort } {
  return {
    outbound: { host: addressOf(workload), port: 15_001 },
    inbound: { host: addressOf(workload), port: 15_006 },
  };
}

function configOf(options: MeshOptions): Config {
  const { workloads = [1], settings = {}, egressRefused = false, endpoints = ['10.1.0.9:8080'] } = options;
  const { discoveryNetworks = null, vips = [VIP], endpointIdentity } = options;
  const behind = endpointIdentity === undefined ? {} : { identity: endpointIdentity };
  const listeners = [
    ...workloads.flatMap((number) => [
      `{name: w${number}-outbound, address: "${addressOf(number)}:15001", protocols: [tcp]}`,
      `{name: w${number}-inbound, address: "${addressOf(number)}:15006", protocols: [tcp]}`,
    ]),
    ...virtual.map(([name, protocols], at) => `{name: ${name}, address: "0.0.0.0:${at + 1}", protocols: ${protocols}}`),
  ];
  const loaded = loadConfig(
    `timeouts: {tunnelIdle: 60s, idle: 50s}
listeners: [${listeners.join(', ')}]
routes:
- {name: http, listeners: [service-http], rules: [{backendRefs: [{name: service}]}]}
- {name: auto, listeners: [service-auto], rules: [{backendRefs: [{name: service}]}]}
- {name: in, listeners: [in-auto, in-http], rules: [{backendRefs: [{name: inbound}]}]}
- {name: tcp, kind: TCP, listeners: [service-tcp], rules: [{backendRefs: [{name: service}]}]}
- {name: other, kind: TCP, listeners: [passthrough], rules: [{backendRefs: [{name: passthrough}]}]}
- {name: in-tcp, kind: TCP, listeners: [in-tcp], rules: [{backendRefs: [{name: inbound}]}]}
backends:
- {name: service, endpoints: [${endpoints.map((text) => `"${text}"`).join(', ')}], idleTimeout: 40s, connectTimeout: 2s}
- {name: inbound, endpoints: ["127.0.0.1:1"]}
- {name: passthrough, endpoints: ["127.0.0.1:1"]}`,
    'mesh.yaml',
    {},
  );
  if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
  const { config } = loaded;
  const streams = new Map(config.streamRoutes.map((route) => [route.name, route]));
  const passing = (name: string, listener: string) => ({
    ...streams.get(name)!,
    name: listener,
    listeners: [listener],
  });
  return {
    ...config,
    listeners: config.listeners.map((listener) => {
      const made = virtual.find(([name]) => name === listener.name);
      if (made !== undefined) {
        return { ...listener, address: '', mesh: { role: 'virtual', workload: -1, detect: made[2] } };
      }
      const role = listener.name.endsWith('outbound') ? 'outbound' : 'inbound';
      const workload = workloads.indexOf(Number(/\d+/.exec(listener.name)![0]));
      return { ...listener, mesh: { role, workload, detect: false } };
    }),
    streamRoutes: [
      passing('tcp', 'service-tcp'),
      passing('tcp', 'service-auto'),
      passing('other', 'passthrough'),
      passing('in-tcp', 'in-tcp'),
      passing('in-tcp', 'in-auto'),
    ],
    backends: config.backends.map((backend) =>
      backend.name === 'service'
        ? { ...backend, endpoints: backend.endpoints.map((one) => ({ ...one, ...behind })) }
        : {
            ...backend,
            endpoints: [],
            originalDestination:
              backend.name === 'inbound'
                ? ('own' as const)
                : backend.name === 'direct'
                  ? ('mesh' as const)
                  : ('any' as const),
          },
    ),
    mesh: {
      workloads: workloads.map((number) => ({
        uid: `uid-${number}`,
        name: `shop/w${number}`,
        identity: `spiffe://cluster.local/ns/shop/sa/w${number}`,
        addresses: [addressOf(number)],
        ...{ namespaceFd: -1, mark: 0, certificate: null, strict: false, slot: -1 },
        ...{ connectionsMax: 0, connectionsPerSecondMax: 0, bufferPercentMax: 0, authorization: null },
        ...settings,
      })),
      destinations: new Map(
        vips.flatMap((vip) =>
          Object.entries(PORTS).map(([kind, port]) => [
            `${vip}:${port}`,
            { listener: `service-${kind}`, identity: null },
          ]),
        ),
      ),
      discovery: discoveryNetworks === null ? null : { networks: discoveryNetworks },
      otherListener: egressRefused ? null : 'passthrough',
      inbound: { auto: 'in-auto', http: 'in-http', tcp: 'in-tcp' },
      inboundProtocols: new Map(
        workloads.flatMap((number) => [
          [`${addressOf(number)}:80`, 'http'] as const,
          [`${addressOf(number)}:9000`, 'tcp'] as const,
        ]),
      ),
    },
  };
}

/** A server outside: keeps its ends of connections. */
export class BenchServer implements Endpoint {
  readonly sockets: SimSocket[] = [];
  refuses = false;
  delayMs = 0;
  /** Connections that have been tried. */
  dials = 0;
  /** Called with each connection. */
  onConnected: (socket: SimSocket) => void = () => {};

  dial(): ReturnType<Endpoint['dial']> {
    this.dials++;
    return { type: this.refuses ? 'refuse' : 'accept', delayMs: this.delayMs };
  }

  connected(socket: SimSocket): void {
    this.sockets.push(socket);
    this.onConnected(socket);
  }

  /** The last connection. */
  get last(): SimSocket {
    return this.sockets.at(-1)!;
  }
}

/** A worker of a node proxy. */
export class MeshBench {
  readonly scheduler = new Scheduler();
  readonly kernel: SimKernel;
  readonly posted: WorkerMessage[] = [];
  readonly slots = new NodeSlots(1, createNodeState(1, 64, 16));
  /** The server of the service. */
  readonly server: BenchServer;
  private readonly worker: PacketWorker;
  private readonly metrics = createMetricsBuffer();
  private readonly flight = createFlightBuffer();
  private readonly sockets = new Map<string, number>();
  private options: MeshOptions;
  private epoch = 0;
  /** The snapshot handed over last. */
  private handed: Snapshot | null = null;
  private clientPort = 20_000;

  constructor(options: BenchOptions = {}) {
    this.options = options;
    const { bufferBytes = 2 * 1024 * 1024, connectionsMax = 64, syscallMsMax = 0 } = options;
    const random = new Random(options.seed ?? 1);
    this.kernel = new SimKernel({
      random,
      scheduler: this.scheduler,
      memoryBytes: kernelMemoryBytes(bufferBytes),
      links: () => options.links?.(random) ?? { out: plainLink, in: plainLink },
      faults: { ...noFaults, syscallMsMax },
    });
    const start = {
      ...{ index: 0, wakeFd: this.kernel.eventfd(), connectionsMax, metrics: this.metrics },
      ...{ accessLog: createByteRing(65_536), flightRecords: this.flight },
      descriptors: new SharedArrayBuffer(connectionsMax * 4),
    };
    this.worker = new PacketWorker(
      this.kernel,
      start,
      (message) => this.posted.push(message),
      null,
      (words) => words.fill(7),
    );
    this.server = this.serve(BACKEND);
    this.use({});
  }

  /** A server at an address. */
  serve(address: HostPort): BenchServer {
    const server = new BenchServer();
    this.kernel.setEndpoint(address, server);
    return server;
  }

  /** Puts a changed mesh in force. */
  use(change: MeshOptions): void {
    this.options = { ...this.options, ...change };
    const config = configOf(this.options);
    const snapshot = compileSnapshot(config, ++this.epoch, new Map(), undefined, undefined, this.slots);
    const listenerFds = snapshot.listeners.map(({ name, mesh }) => {
      let fd = this.sockets.get(name);
      if (fd === undefined) {
        const { outbound, inbound } = socketsOf(Number(/\d+/.exec(name)?.[0]));
        const address = name.endsWith('outbound') ? outbound : inbound;
        fd = mesh!.role === 'virtual' ? -2 - this.sockets.size : this.kernel.createListener(address);
        this.sockets.set(name, fd);
      }
      return fd;
    });
    const sent = structuredClone(new SnapshotDeltas().between(this.handed, snapshot));
    this.handed = snapshot;
    this.worker.handle({ type: 'snapshot', snapshot: sent, listenerFds });
    this.slots.keepOnly(snapshot.backends);
    this.slots.workloads.keepOnly(snapshot.mesh!.workloads);
    for (const [name, fd] of this.sockets) {
      if (listenerFds.includes(fd)) continue;
      this.sockets.delete(name);
      if (fd >= 0) this.kernel.close(fd);
    }
  }

  /** A connection of a workload to somewhere, captured; null: it is made to the node proxy itself. */
  leave(workload: number, host: string | null, port = 0): SimSocket {
    const from = { host: addressOf(workload), port: this.clientPort++ };
    return this.dial(socketsOf(workload).outbound, from, host === null ? null : { host, port });
  }

  /** A connection from elsewhere to a port of a workload. */
  arrive(workload: number, port: number): SimSocket {
    const from = { host: '10.9.0.1', port: this.clientPort++ };
    return this.dial(socketsOf(workload).inbound, from, { host: addressOf(workload), port });
  }

  /** The system of the node completes the handshake, whatever the worker does meanwhile. */
  private dial(address: HostPort, from: HostPort, original: HostPort | null): SimSocket {
    const client = this.kernel.dialIn(address, from, original);
    for (let step = 0; step < 1000 && client.state === 'connecting'; step++) {
      this.scheduler.advanceTo(this.scheduler.nowMs + 0.01);
    }
    return client;
  }

  /** Addresses that the worker has asked for since this was last looked at, with the workloads that connect there. */
  takeQuestions(): string[] {
    const asked = this.posted.flatMap((message) => (message.type === 'destinationQuestions' ? message.questions : []));
    this.posted.length = 0;
    return asked.map(({ host, workload }) => `${workload} ${host}`);
  }

  /** Tells the worker what is known of an address. */
  answer(host: string, verdict: Exclude<DestinationAnswer['verdict'], 'limit'>): void {
    this.worker.handle({ type: 'destinationAnswers', answers: [{ host, verdict }] });
  }

  /** Tells the worker that a workload may know no further address. */
  answerLimit(host: string, workload: string): void {
    this.worker.handle({ type: 'destinationAnswers', answers: [{ host, verdict: 'limit', workload }] });
  }

  /** Destinations that the worker says are in use since this was last asked. */
  takeUsed(): { hosts: string[]; all: boolean } {
    this.worker.handle({ type: 'reportDestinations', token: 1 });
    const answer = this.posted.pop();
    if (answer?.type !== 'destinationsUsed') throw new Error('the worker does not tell what is used');
    return { ...answer.used, hosts: answer.used.hosts.sort() };
  }

  /** Has the worker end. */
  drain(idleGraceMs: number, timeoutMs: number): void {
    this.worker.handle({ type: 'drain', idleGraceMs, timeoutMs });
  }

  /** Lets the worker run for a while. */
  run(ms = 5): void {
    const endMs = this.scheduler.nowMs + ms;
    while (this.scheduler.nowMs < endMs) this.worker.runBatch(Math.ceil(endMs - this.scheduler.nowMs));
  }

  /** One batch, which does not wait. */
  batch(): void {
    this.worker.runBatch(0);
  }

  /** What the worker holds. */
  get stats(): WorkerStats {
    return this.worker.stats();
  }

  /** What the worker counts as open downstream connections and requests in progress. */
  get gauges(): { downstream: number; inFlight: number; upstream: number; tunnels: number } {
    const counters = new Float64Array(this.metrics);
    return {
      downstream: counters[Counter.DOWNSTREAM_OPEN]!,
      inFlight: counters[Counter.REQUESTS_IN_FLIGHT]!,
      upstream: counters[Counter.UPSTREAM_OPEN]!,
      tunnels: counters[Counter.TUNNELS_OPEN]!,
    };
  }

  /** Why exchanges have failed, oldest first. */
  get details(): string[] {
    return readRecords([this.flight])
      .map(({ detail }) => detailName(detail))
      .reverse();
  }

  /** The system's errors that belong to those, oldest first; 0: none. */
  get errnos(): number[] {
    return readRecords([this.flight])
      .map(({ errno }) => errno)
      .reverse();
  }

  /** How often a policy on trial would have refused something. */
  trialsOf(policy: string): number {
    return new Float64Array(this.metrics)[MetricSection.POLICY_TRIALS + policySlot(policy)]!;
  }

  /** Counters of a workload by WorkloadCounter. */
  counters(workload: number): Float64Array {
    return readWorkload(this.slots.workloads.buffer, this.slotOf(workload));
  }

  /** Whom a workload has talked to. */
  peers(workload: number): PeerTraffic[] {
    return readPeers(this.slots.workloads.buffer, this.slotOf(workload));
  }

  private slotOf(workload: number): number {
    return this.slots.workloads.workloads.find(({ name }) => name === `shop/w${workload}`)!.slot;
  }
}

/** Everything that has come on a socket. */
export function textOf(socket: SimSocket): string {
  const chunk = new Uint8Array(1 << 20);
  const count = socket.recv(chunk);
  return count > 0 ? Buffer.from(chunk.subarray(0, count)).toString('latin1') : '';
}

/** Sends a text, unless the connection has been closed. */
export function send(socket: SimSocket, text: string): void {
  const sent = text === '' || socket.orphaned ? text.length : socket.send(Buffer.from(text, 'latin1'));
  if (sent >= 0 && sent < text.length) throw new Error('the connection takes no more');
}
