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

/** What a request without a rule is offered: two empty lines. */
const noChoice = encoder.encode('\n');

/** A listener of a worker. Lives as long as its address is configured, across snapshots. */
export class ListenerRuntime {
  settings: ListenerSettings;
  /** Index in the current snapshot, for route lookups; -1 once it is removed. */
  index: number;
  /** Node proxies: whose connections come here; null: it is virtual, or a gateway's. */
  workload: WorkloadRuntime | null = null;
  nameBytes: Uint8Array;
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
  private names = new Map<string, TlsContext | null>();
  private defaultContext: TlsContext | null = null;
  /** Gone from the configuration: its connections end with their current exchange. */
  removed = false;

  constructor(settings: ListenerSettings, index: number, fd: number) {
    this.settings = settings;
    this.index = index;
    this.fd = fd;
    this.nameBytes = encoder.encode(settings.name);
    this.https = settings.scheme === 'https';
  }

  /** Takes over what a newer snapshot says of the same listening socket. */
  update(settings: ListenerSettings, index: number): void {
    this.settings = settings;
    this.index = index;
    this.nameBytes = encoder.encode(settings.name);
    this.https = settings.scheme === 'https';
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
    this.names = new Map();
    this.defaultContext = null;
    this.validatesClients = false;
    if (tls === null || tls.passthrough) return;
    for (const { hostname, context } of tls.names) {
      this.names.set(hostname, made.server(contexts[context]));
      if (contexts[context].clientValidation !== null) this.validatesClients = true;
    }
    if (tls.defaultContext < 0) return;
    this.defaultContext = made.server(contexts[tls.defaultContext]);
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

export class Runtime {
  readonly epoch: number;
  readonly http: HttpSettings;
  readonly requestLimits: ParserLimits;
  readonly responseLimits: ParserLimits;
  readonly routes: RouteTable;
  readonly streamRoutes: StreamRoutes;
  readonly backends: BackendRuntime[];
  /** Null: this is a gateway. */
  readonly mesh: MeshRuntime | null;
  /** What workloads use in place of a backend, by its index; made when first used. */
  private readonly variants = new Map<WorkloadRuntime, Map<number, number>>();
  private readonly makeVariant: (index: number, workload: WorkloadRuntime) => BackendRuntime;
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
    this.routes = new RouteTable(snapshot.routes);
    this.streamRoutes = new StreamRoutes(snapshot.streamRoutes);
    const known = new Map(previous?.backends.map(({ settings, balancer }) => [settings.name, balancer]));
    const balancerOf = (settings: BackendSettings): Balancer => {
      const balancer = known.get(settings.name);
      return balancer?.suits(settings, node) ? balancer : new Balancer(settings, { ...environment, node });
    };
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
    const backendOf = (settings: BackendSettings): BackendRuntime => {
      const balancer = balancerOf(settings);
      const tunnel = hasTunnel(settings)
        ? tunnelOf(settings, balancer, contexts.client(settings.tunnel.tls, 'h2'))
        : null;
      return {
        settings,
        nameBytes: encoder.encode(settings.name),
        endpoints: settings.endpoints.map((place) => {
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
        tlsContext: settings.tls === null ? null : contexts.client(settings.tls, settings.protocol),
      };
    };
    this.backends = snapshot.backends.map(backendOf);
    this.mesh =
      snapshot.mesh === null ? null : new MeshRuntime(snapshot.mesh, contexts, node.worker, previous?.mesh ?? null);
    this.makeVariant = (index, workload) => {
      const base = this.backends[index];
      const { settings } = base;
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
    const byName = new Map(this.backends.map(({ settings }, index) => [settings.name, index]));
    previous?.eachVariant((name, workload, before) => {
      const index = this.mesh?.workloads.includes(workload) ? (byName.get(name) ?? -1) : -1;
      if (index < 0) return;
      const { destinations } = this.backends[this.backendFor(index, workload)];
      if (destinations !== null && before.destinations !== null) destinations.keep(before.destinations);
    });
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
   * The backend that a connection of a workload uses in place of `index`: with connections, certificate and network
   * namespace of its own. Without a workload (in a gateway) it is `index` itself.
   */
  backendFor(index: number, workload: WorkloadRuntime | null): number {
    if (workload === null) return index;
    let variants = this.variants.get(workload);
    if (variants === undefined) {
      variants = new Map();
      this.variants.set(workload, variants);
    }
    let variant = variants.get(index);
    if (variant === undefined) {
      variant = this.backends.push(this.makeVariant(index, workload)) - 1;
      variants.set(index, variant);
    }
    return variant;
  }

  /** Calls `visit` with what workloads use in place of the backend of a name. */
  private eachVariant(visit: (name: string, workload: WorkloadRuntime, backend: BackendRuntime) => void): void {
    for (const [workload, variants] of this.variants) {
      for (const [index, variant] of variants) {
        visit(this.backends[index].settings.name, workload, this.backends[variant]);
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
        const { name } = this.backends[this.routes.backendRefIndex(rule, ref)]!.settings;
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
