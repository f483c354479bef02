// A snapshot as one worker uses it: routes opened, endpoints joined with their connections, texts
// as bytes. Built between two batches when a snapshot arrives; immutable afterwards, except for the
// positions of pickers. Exchanges in flight keep the runtime they started with.

import type { ParserLimits } from '../http1/message.ts';
import { HpackConstant } from '../http2/hpack-encoder.ts';
import { noBytes, Text } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import { Endpoint } from '../lb/endpoint.ts';
import type { NodeState } from '../lb/node-state.ts';
import type { Picker } from '../lb/picker.ts';
import { RoundRobin } from '../lb/round-robin.ts';
import { RouteTable } from '../routing/route-table.ts';
import { StreamRoutes } from '../routing/stream-routes.ts';
import type { TlsContext } from '../tls/context.ts';
import type { TlsContexts } from '../tls/contexts.ts';
import type {
  BackendSettings,
  HttpSettings,
  ListenerSettings,
  ServerContextSettings,
  Snapshot,
} from '../workers/snapshot.ts';

import { RefPolicy, RulePolicy } from './rule-policy.ts';

const encoder = new TextEncoder();

/** A listener of a worker. Lives as long as its address is configured, across snapshots. */
export class ListenerRuntime {
  settings: ListenerSettings;
  /** Index in the current snapshot, for route lookups. */
  index: number;
  nameBytes: Uint8Array;
  readonly fd: number;
  /** The watched listening socket; null once it is not accepting any more. */
  watch: Connection | null = null;
  /** Requests come over TLS. */
  https: boolean;
  /** Clients may or must show a certificate. */
  validatesClients = false;
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
function sharingKey({ protocol, proxyProtocol, tls }: BackendSettings): string {
  return JSON.stringify([protocol, proxyProtocol, tls?.key, tls?.serverName, tls?.verifyNames]);
}

/** A backend of one snapshot. */
export interface BackendRuntime {
  settings: BackendSettings;
  nameBytes: Uint8Array;
  endpoints: Endpoint[];
  picker: Picker;
  /** Somebody keeps account of its attempts: attempt-tracker.ts is told of each. */
  tracked: boolean;
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
  /** Load and health that all workers of the node share. */
  readonly node: NodeState;
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
  /** Label of each rule as bytes, made when first logged. */
  private readonly ruleLabels: (Uint8Array | undefined)[] = [];

  /**
   * Opens a snapshot on the node state that it names. `endpoints` holds the worker's endpoints by address: known ones are kept,
   * new ones added. `contexts` holds its TLS contexts. `seed()` gives numbers from 0 to 1 that spread
   * workers over a round.
   */
  constructor(
    snapshot: Snapshot,
    node: NodeState,
    endpoints: Map<string, Endpoint>,
    contexts: TlsContexts,
    seed: () => number,
  ) {
    this.node = node;
    this.rulePolicies = snapshot.rulePolicies.map((settings) => new RulePolicy(settings));
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
    this.backends = snapshot.backends.map((settings) => ({
      settings,
      nameBytes: encoder.encode(settings.name),
      endpoints: settings.endpoints.map((endpointSettings) => {
        const key = `${endpointSettings.address} ${sharingKey(settings)}`;
        let endpoint = endpoints.get(key);
        if (endpoint === undefined) {
          endpoint = new Endpoint(endpointSettings, key);
          endpoints.set(key, endpoint);
        }
        endpoint.removed = false;
        return endpoint;
      }),
      picker: new RoundRobin(
        settings.endpoints.map((endpoint) => endpoint.weight),
        seed(),
      ),
      tracked: false,
      tlsContext: settings.tls === null ? null : contexts.client(settings.tls, settings.protocol),
    }));
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
