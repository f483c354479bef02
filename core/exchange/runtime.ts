// A snapshot as one worker uses it: routes opened, endpoints joined with their connections, texts
// as bytes. Built between two batches when a snapshot arrives; immutable afterwards, except for the
// state of balancers. Exchanges in flight keep the runtime they started with.

import type { ParserLimits } from '../http1/message.ts';
import { HpackConstant } from '../http2/hpack-encoder.ts';
import { noBytes, Text } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import { Balancer, type BalancerEnvironment, countsActive } from '../lb/balancer.ts';
import { Endpoint } from '../lb/endpoint.ts';
import type { NodeState } from '../lb/node-state.ts';
import { useLimitNames } from '../limits/limit-names.ts';
import { RouteTable } from '../routing/route-table.ts';
import { StreamRoutes } from '../routing/stream-routes.ts';
import type { RequestRecorder } from '../telemetry/request-recorder.ts';
import type { Peer } from '../telemetry/workload-metrics.ts';
import type { TlsContext } from '../tls/context.ts';
import type { TlsContexts } from '../tls/contexts.ts';
import type {
  BackendSettings,
  BackendTlsSettings,
  BackendTunnelSettings,
  EndpointSettings,
  HttpSettings,
  ListenerSettings,
  RateLimitsSnapshot,
  ServerContextSettings,
  Snapshot,
} from '../workers/snapshot.ts';
import { type HashKeys, hashKeysOf } from './hash-key.ts';
import {
  DestinationEndpoints,
  destinationPeer,
  MeshRuntime,
  tunnelPlace,
  type WorkloadRuntime,
} from './mesh-runtime.ts';
import { ruleLimits } from './rule-limits.ts';
import { RefPolicy, RulePolicy } from './rule-policy.ts';

const encoder = new TextEncoder();

const noNames: ReadonlyMap<string, TlsContext | null> = new Map();

/** What a request without a rule is offered: two empty lines. */
const noChoice = encoder.encode('\n');

/** A listener of a worker. Lives as long as its address is configured, across snapshots. */
export class ListenerRuntime {
  settings: ListenerSettings;
  /** Index in the current snapshot, for route lookups; -1 once it is removed. */
  index: number;
  /** Node proxies: whose connections come here; null: it is virtual, or a gateway's. */
  workload: WorkloadRuntime | null = null;
  private name: Uint8Array | null = null;
  readonly fd: number;
  /** The watched listening socket; null once it is not accepting any more. */
  watch: Connection | null = null;
  /** Requests come over TLS. */
  https: boolean;
  /** Clients may or must show a certificate. */
  validatesClients = false;
  /** Where its tunnels lead, by port (0: any other); null: CONNECT is a request like others. */
  tunnels: { port: number; target: ListenerRuntime }[] | null = null;
  /** Server contexts by exact name, and by wildcard with its `*`. */
  private names: ReadonlyMap<string, TlsContext | null> = noNames;
  private defaultContext: TlsContext | null = null;
  /** Gone from the configuration: its connections end with their current exchange. */
  removed = false;

  constructor(settings: ListenerSettings, index: number, fd: number) {
    this.settings = settings;
    this.index = index;
    this.fd = fd;
    this.https = settings.scheme === 'https';
  }

  /** Takes over what a newer snapshot says of the same listening socket. */
  update(settings: ListenerSettings, index: number): void {
    this.index = index;
    if (settings === this.settings) return;
    this.settings = settings;
    this.name = null;
    this.https = settings.scheme === 'https';
  }

  /** Made when first asked for: a mesh has thousands of listeners, and few of them take connections on one node. */
  get nameBytes(): Uint8Array {
    this.name ??= encoder.encode(this.settings.name);
    return this.name;
  }

  /** It is not in the current snapshot: what is begun on its connections has only routes that are for all listeners. */
  remove(): void {
    this.removed = true;
    this.index = -1;
  }

  /** The listener that takes a tunnel to this port, or null. */
  tunnelTarget(port: number): ListenerRuntime | null {
    let other: ListenerRuntime | null = null;
    for (const tunnel of this.tunnels!) {
      if (tunnel.port === port) return tunnel.target;
      if (tunnel.port === 0) other = tunnel.target;
    }
    return other;
  }

  /** Takes the server contexts that the snapshot gives this listener. */
  useContexts(contexts: readonly ServerContextSettings[], made: TlsContexts): void {
    const { tls } = this.settings;
    this.names = noNames;
    this.defaultContext = null;
    this.validatesClients = false;
    if (tls === null || tls.passthrough) return;
    const names = new Map<string, TlsContext | null>();
    if (tls.names.length > 0) this.names = names;
    for (const { hostname, context } of tls.names) {
      names.set(hostname, made.server(contexts[context]));
      if (contexts[context].clientValidation !== null) this.validatesClients = true;
    }
    if (tls.defaultContext < 0) return;
    // On a node there is one for each workload, and many workloads that nobody asks for anything.
    this.defaultContext = made.server(contexts[tls.defaultContext], this.settings.mesh !== null);
    if (contexts[tls.defaultContext].clientValidation !== null) this.validatesClients = true;
  }

  /** The context for a client that asks for `serverName` (lower case; null: no SNI), or null. */
  contextFor(serverName: string | null): TlsContext | null {
    if (serverName === null) return this.defaultContext;
    const exact = this.names.get(serverName);
    if (exact !== undefined) return exact;
    // A wildcard stands for one label (RFC 6125 §6.4.3).
    const dot = serverName.indexOf('.');
    const wildcard = dot < 0 ? undefined : this.names.get(`*${serverName.slice(dot)}`);
    return wildcard ?? this.defaultContext;
  }
}

/**
 * Connections of two backends to one address are shared only where they would be the same: one that was
 * verified for a name, or shows a certificate, is good for nothing else.
 */
function sharingKey({ protocol, proxyProtocol, tls, tunnel }: BackendSettings): string {
  const way = [tunnel?.port, tunnel?.tls.key, tunnel?.tls.serverName, tunnel?.tls.verifyNames];
  return JSON.stringify([protocol, proxyProtocol, tls?.key, tls?.serverName, tls?.verifyNames, ...way]);
}

/** Of a workload without a certificate: there is no context, so no tunnel of it gets as far as a handshake. */
const noCertificate: BackendTlsSettings = {
  key: '',
  serverName: '',
  verifyNames: null,
  caPem: null,
  certificate: null,
  verify: true,
  minVersion: '1.3',
  maxVersion: '1.3',
};

function hasTunnel(settings: BackendSettings): settings is BackendSettings & { tunnel: BackendTunnelSettings } {
  return settings.tunnel !== null;
}

const noSamples = new SharedArrayBuffer(0);

/** A backend of one snapshot. */
export interface BackendRuntime {
  settings: BackendSettings;
  nameBytes: Uint8Array;
  endpoints: Endpoint[];
  balancer: Balancer;
  /** What `hashOn` asks for, prepared; null: nothing. */
  hashKeys: HashKeys | null;
  /** Somebody keeps account of its attempts: attempt-tracker.ts is told of each. */
  tracked: boolean;
  /** The tunnels to its endpoints, as the backend that they are themselves; null: there are none. */
  tunnel: BackendRuntime | null;
  /** Its endpoints are made by the destinations of connections; null: it has endpoints of its own. */
  destinations: DestinationEndpoints | null;
  /** What a workload uses: whom its traffic counts for; null: for nobody. */
  peer: Peer | null;
  /** It stands for the tunnels of the backend of its name. */
  isTunnel: boolean;
  /** Context of TLS connections; null: plain TCP, or (see `settings.tls`) one that could not be made. */
  tlsContext: TlsContext | null;
}

/** What a workload uses in place of a backend: its place in `Runtime.backends`, and the `key` that the workload had. */
interface Variant {
  at: number;
  key: string;
}

/** The endpoints of a backend are in the snapshot that is being opened. */
function keepEndpoints({ endpoints }: BackendRuntime): void {
  for (const endpoint of endpoints) {
    endpoint.removed = false;
    if (endpoint.tunnel !== null) endpoint.tunnel.removed = false;
  }
}

export class Runtime {
  readonly epoch: number;
  readonly http: HttpSettings;
  readonly requestLimits: ParserLimits;
  readonly responseLimits: ParserLimits;
  readonly routes: RouteTable;
  readonly streamRoutes: StreamRoutes;
  /** What exchanges use: the backends of the snapshot in a gateway, what `backendFor` has given in a node proxy. */
  readonly backends: BackendRuntime[];
  /** Null: this is a gateway. */
  readonly mesh: MeshRuntime | null;
  private readonly snapshot: Snapshot;
  /** The backends of the snapshot; those of a node proxy are made when first used, since it has thousands and uses few. */
  private readonly bases: (BackendRuntime | undefined)[];
  private readonly baseOf: (index: number) => BackendRuntime;
  /** What workloads use in place of a backend, by its index; made when first used. */
  private readonly variants = new Map<WorkloadRuntime | null, Map<number, Variant>>();
  private readonly makeVariant: (index: number, workload: WorkloadRuntime | null) => BackendRuntime;
  /** Load and health that all workers of the node share. */
  readonly node: NodeState;
  readonly rateLimits: RateLimitsSnapshot;
  /** Latencies of backends with adaptive concurrency, by slot. */
  readonly latencySamples: Int32Array;
  private readonly rulePolicies: RulePolicy[];
  private readonly refPolicies: RefPolicy[];
  /** `via: 1.x name\r\n` for messages received as HTTP/1.0, HTTP/1.1 and HTTP/2 (RFC 9110 §7.6.3); or empty. */
  readonly viaLines: [Text, Text, Text];
  /** The same, and Server, as fields of HTTP/2 responses; null where nothing is added. */
  readonly viaFields: [HpackConstant | null, HpackConstant | null, HpackConstant | null];
  readonly serverField: HpackConstant | null;
  /** `server: name\r\n`, or empty when the upstream's passes through. */
  readonly serverLine: Text;
  /** `name: ` of the reason header, or empty. */
  readonly reasonName: Text;
  /** Protocols that Upgrade may name, lower case. */
  readonly upgradeProtocols: Uint8Array[];
  /** Keeps the heads of requests; null: nobody does. Set before the first request. */
  recorder: RequestRecorder | null = null;
  /** What each rule offers, as the recorder wants it, made when first recorded. */
  private readonly ruleChoices: (Uint8Array | undefined)[] = [];
  /** Label of each rule as bytes, made when first logged. */
  private readonly ruleLabels: (Uint8Array | undefined)[] = [];

  /**
   * Opens a snapshot on the node state that it names. `endpoints` holds the worker's endpoints by address: known ones are kept,
   * new ones added. `contexts` holds its TLS contexts. `environment` is what balancers need of
   * the worker; those of `previous` whose backend has not changed go on.
   */
  constructor(
    snapshot: Snapshot,
    node: NodeState,
    endpoints: Map<string, Endpoint>,
    contexts: TlsContexts,
    environment: Omit<BalancerEnvironment, 'node'>,
    previous: Runtime | null = null,
  ) {
    this.node = node;
    this.rateLimits = snapshot.rateLimits;
    this.latencySamples = new Int32Array(snapshot.latencySamples ?? noSamples);
    useLimitNames(snapshot.rateLimits.tables);
    this.rulePolicies = snapshot.rulePolicies.map(
      (settings) => new RulePolicy(settings, ruleLimits(settings.rateLimits, snapshot.rateLimits.tables, node.worker)),
    );
    this.refPolicies = snapshot.refPolicies.map((settings) => new RefPolicy(settings));
    const http = snapshot.http;
    this.epoch = snapshot.epoch;
    this.http = http;
    this.requestLimits = {
      headBytesMax: http.requestHeadBytesMax,
      headerCountMax: http.headerCountMax,
      uriBytesMax: http.uriBytesMax,
    };
    this.responseLimits = {
      headBytesMax: http.responseHeadBytesMax,
      headerCountMax: http.headerCountMax,
      uriBytesMax: http.uriBytesMax,
    };
    this.snapshot = snapshot;
    // What a snapshot has left as it was is the same object (core/workers/snapshot-delta.ts).
    const old = previous?.snapshot;
    this.routes = old?.routes === snapshot.routes ? previous!.routes : new RouteTable(snapshot.routes);
    this.streamRoutes =
      old?.streamRoutes === snapshot.streamRoutes ? previous!.streamRoutes : new StreamRoutes(snapshot.streamRoutes);
    const known = new Map<string, BackendRuntime>();
    for (const base of previous?.bases ?? []) if (base !== undefined) known.set(base.settings.name, base);
    const balancerOf = (settings: BackendSettings): Balancer => {
      const balancer = known.get(settings.name)?.balancer;
      return balancer?.suits(settings, node) ? balancer : new Balancer(settings, { ...environment, node });
    };
    const isMesh = snapshot.mesh !== null;
    const endpointOf = (
      place: Pick<EndpointSettings, 'address' | 'host' | 'port'>,
      settings: BackendSettings,
      owner = '',
    ): Endpoint => {
      const key = `${place.address} ${sharingKey(settings)}${owner}`;
      let endpoint = endpoints.get(key);
      if (endpoint === undefined) {
        endpoint = new Endpoint(place, key);
        endpoints.set(key, endpoint);
      }
      endpoint.removed = false;
      return endpoint;
    };
    const tunnelOf = (
      settings: BackendSettings & { tunnel: BackendTunnelSettings },
      balancer: Balancer,
      tlsContext: TlsContext | null,
    ): BackendRuntime => {
      const { tls } = settings.tunnel;
      return {
        // What is limited are the connections inside, not those that carry them.
        settings: {
          ...settings,
          endpoints: [],
          protocol: 'h2',
          tls,
          proxyProtocol: 0,
          tunnel: null,
          policy: { ...settings.policy, circuitBreaker: null },
        },
        nameBytes: encoder.encode(settings.name),
        endpoints: [],
        balancer,
        hashKeys: null,
        tracked: false,
        tunnel: null,
        destinations: null,
        peer: null,
        isTunnel: true,
        tlsContext,
      };
    };
    const backendOf = (settings: BackendSettings, places: readonly EndpointSettings[]): BackendRuntime => {
      const tlsContext = settings.tls === null ? null : contexts.client(settings.tls, settings.protocol);
      const tunnelContext = hasTunnel(settings) ? contexts.client(settings.tunnel.tls, 'h2') : null;
      const before = known.get(settings.name);
      if (
        before?.settings === settings &&
        before.balancer.suits(settings, node) &&
        before.tlsContext === tlsContext &&
        (before.tunnel?.tlsContext ?? null) === tunnelContext
      ) {
        keepEndpoints(before);
        return before;
      }
      const balancer = balancerOf(settings);
      const tunnel = hasTunnel(settings) ? tunnelOf(settings, balancer, tunnelContext) : null;
      return {
        settings,
        nameBytes: encoder.encode(settings.name),
        endpoints: places.map((place) => {
          const endpoint = endpointOf(place, settings);
          if (tunnel !== null) {
            const { host } = place;
            const { port } = settings.tunnel!;
            endpoint.tunnel = endpointOf(
              { address: host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`, host, port },
              tunnel.settings,
            );
          }
          return endpoint;
        }),
        balancer,
        isTunnel: false,
        destinations: null,
        peer: null,
        tunnel,
        hashKeys: hashKeysOf(settings.policy.balancer),
        tracked:
          settings.policy.circuitBreaker !== null ||
          settings.policy.adaptiveConcurrency !== null ||
          settings.policy.outlierDetection !== null ||
          countsActive(settings.policy.balancer),
        tlsContext,
      };
    };
    this.bases = isMesh
      ? new Array(snapshot.backends.length).fill(undefined)
      : snapshot.backends.map((settings) => backendOf(settings, settings.endpoints));
    this.backends = isMesh ? [] : (this.bases as BackendRuntime[]);
    this.baseOf = (index) => {
      // Each workload has endpoints of its own.
      this.bases[index] ??= backendOf(snapshot.backends[index]!, []);
      return this.bases[index];
    };
    this.mesh =
      snapshot.mesh === null ? null : new MeshRuntime(snapshot.mesh, contexts, node.worker, previous?.mesh ?? null);
    this.makeVariant = (index, workload) => {
      const base = this.baseOf(index);
      const { settings } = base;
      if (workload === null) return base;
      const tls = workload.tls;
      const tunnel =
        tls === null
          ? tunnelOf({ ...settings, tunnel: { port: 0, tls: noCertificate } }, base.balancer, null)
          : tunnelOf({ ...settings, tunnel: { port: 0, tls } }, base.balancer, workload.tlsContext);
      const scope = settings.originalDestination;
      const make = (place: Pick<EndpointSettings, 'address' | 'host' | 'port'>, identity: string | null): Endpoint => {
        // Those of destinations come and go between snapshots, so they are nobody else's.
        const endpoint = endpointOf(place, settings, `${workload.key} ${identity ?? ''} ${scope ?? ''}`);
        endpoint.workload = workload;
        endpoint.tunnel = null;
        if (identity !== null) {
          endpoint.tunnel = endpointOf(tunnelPlace(place.host), tunnel.settings, `${workload.key} ${identity}`);
          endpoint.tunnel.workload = workload;
          endpoint.tunnel.verifyNames = [identity];
        }
        return endpoint;
      };
      const endpoints = settings.endpoints.map((place) => make(place, place.identity));
      const destinations =
        scope === null
          ? null
          : new DestinationEndpoints(
              endpoints,
              (place) => {
                const identity = this.mesh!.identityAt(place.host, scope, workload);
                return identity === undefined ? null : make(place, identity);
              },
              (endpoint) => destinationPeer(workload, settings.name, endpoint),
            );
      const peer = destinationPeer(workload, settings.name, null);
      return { ...base, endpoints, tunnel, destinations, peer };
    };
    if (isMesh && previous !== null && previous.variants.size > 0) this.keepVariants(previous);
    this.viaLines = [
      new Text(http.via === '' ? '' : `via: 1.0 ${http.via}\r\n`),
      new Text(http.via === '' ? '' : `via: 1.1 ${http.via}\r\n`),
      new Text(http.via === '' ? '' : `via: 2.0 ${http.via}\r\n`),
    ];
    this.viaFields = [
      http.via === '' ? null : new HpackConstant('via', `1.0 ${http.via}`),
      http.via === '' ? null : new HpackConstant('via', `1.1 ${http.via}`),
      http.via === '' ? null : new HpackConstant('via', `2.0 ${http.via}`),
    ];
    this.serverField = http.server === '' ? null : new HpackConstant('server', http.server);
    this.serverLine = new Text(http.server === '' ? '' : `server: ${http.server}\r\n`);
    this.reasonName = new Text(http.reasonHeader === '' ? '' : `${http.reasonHeader}: `);
    this.upgradeProtocols = http.upgradeProtocols.map((protocol) => encoder.encode(protocol.toLowerCase()));
  }

  /**
   * The backend that a connection of a workload uses in place of `index`, the one of the snapshot: with connections,
   * certificate and network namespace of its own. In a gateway it is `index` itself.
   */
  backendFor(index: number, workload: WorkloadRuntime | null): number {
    if (this.mesh === null) return index;
    let variants = this.variants.get(workload);
    if (variants === undefined) {
      variants = new Map();
      this.variants.set(workload, variants);
    }
    let variant = variants.get(index);
    if (variant === undefined) {
      const at = this.backends.push(this.makeVariant(index, workload)) - 1;
      variant = { at, key: workload === null ? '' : workload.key };
      variants.set(index, variant);
    }
    return variant.at;
  }

  /** What workloads use in place of backends that are still there goes on, as it is where nothing has changed. */
  private keepVariants(previous: Runtime): void {
    const byName = new Map(this.snapshot.backends.map(({ name }, index) => [name, index]));
    for (const [workload, variants] of previous.variants) {
      if (workload === null || !this.mesh!.workloads.includes(workload)) continue;
      const { key } = workload;
      for (const [indexBefore, { at, key: keyBefore }] of variants) {
        const before = previous.backends[at];
        const index = byName.get(before.settings.name) ?? -1;
        if (index < 0) continue;
        const isSame = key === keyBefore && this.baseOf(index) === previous.bases[indexBefore];
        // Those that stand for the destinations of connections ask the mesh of now where these lead.
        if (!isSame || before.destinations !== null || before.tunnel?.tlsContext !== workload.tlsContext) {
          const { destinations } = this.backends[this.backendFor(index, workload)];
          if (destinations !== null && before.destinations !== null) destinations.keep(before.destinations);
          continue;
        }
        keepEndpoints(before);
        let kept = this.variants.get(workload);
        if (kept === undefined) {
          kept = new Map();
          this.variants.set(workload, kept);
        }
        kept.set(index, { at: this.backends.push(before) - 1, key });
      }
    }
  }

  /** What a rule does besides choosing a backend, or null. */
  policyOf(rule: number): RulePolicy | null {
    const index = this.routes.policy(rule);
    return index < 0 ? null : this.rulePolicies[index]!;
  }

  /** What a rule's backend reference does, or null. */
  refPolicyOf(rule: number, ref: number): RefPolicy | null {
    const index = this.routes.backendRefPolicy(rule, ref);
    return index < 0 ? null : this.refPolicies[index]!;
  }

  /** Label of a rule and the weights of its backends, two lines (core/telemetry/recorder-layout.ts). */
  ruleChoice(rule: number): Uint8Array {
    if (rule < 0) return noChoice;
    let choice = this.ruleChoices[rule];
    if (choice === undefined) {
      const shares: string[] = [];
      for (let ref = 0; ref < this.routes.backendRefCount(rule); ref++) {
        const { name } = this.snapshot.backends[this.routes.backendRefIndex(rule, ref)]!;
        shares.push(`${name}=${this.routes.backendRefWeight(rule, ref)}`);
      }
      choice = encoder.encode(`${this.routes.ruleLabel(rule)}\n${shares.join(',')}`);
      this.ruleChoices[rule] = choice;
    }
    return choice;
  }

  /** Label of a rule for logs and records; empty for -1. */
  ruleLabel(rule: number): Uint8Array {
    if (rule < 0) return noBytes;
    let label = this.ruleLabels[rule];
    if (label === undefined) {
      label = encoder.encode(this.routes.ruleLabel(rule));
      this.ruleLabels[rule] = label;
    }
    return label;
  }
}
