// The mesh settings of a snapshot as one worker uses them: workloads of the node, where captured connections go,
// and the endpoints that original destinations make.
//
// A workload is one object for as long as its uid is configured, across snapshots: connections hold it, so that
// nothing that was begun for one workload can ever be sent with the certificate of another. Its place in the list of
// a snapshot is nothing but that.
// Owned by one worker; made between batches, asked once per connection.

import { Authorization } from '../authorization/authorization.ts';
import { usePolicyNumbers } from '../authorization/policy-numbers.ts';
import type { AuthorizationSettings } from '../authorization/settings.ts';
import { decodeSockaddr } from '../ffi/sockaddr.ts';
import { Party } from '../io/turns.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { MeshPort } from '../tcp/mesh-ports.ts';
import {
  type Peer,
  PeerSide,
  resetWorkloadGauges,
  WorkloadCounter,
  WorkloadCounters,
} from '../telemetry/workload-metrics.ts';
import type { TlsContext } from '../tls/context.ts';
import type { TlsContexts } from '../tls/contexts.ts';
import type {
  DestinationSettings,
  MeshSettings,
  OriginalDestinationScope,
  WorkloadSettings,
} from '../workers/mesh-settings.ts';
import type { BackendTlsSettings, EndpointSettings } from '../workers/snapshot.ts';

/** Addresses that one workload may be connected to, or have been lately; a scan of ports must end somewhere. */
export const DESTINATIONS_MAX = 32_768;

/** Time between two looks for addresses that may be forgotten. */
const FORGET_EVERY_MS = 1000;

/** What of a workload a snapshot has changed, as bits. */
export const WorkloadChange = {
  /** Who may reach it, or in which mode. */
  POLICIES: 1,
  /** Whose certificates are trusted in tunnels of it. */
  TRUST: 2,
} as const;

/** A workload of this node. */
export class WorkloadRuntime extends Party {
  settings: WorkloadSettings;
  nameBytes: Uint8Array;
  /** What it shows in tunnels, and the context for that; null: it has no certificate. */
  tls: BackendTlsSettings | null = null;
  tlsContext: TlsContext | null = null;
  /** Who may reach it; null: everybody. */
  authorization: Authorization | null = null;
  readonly counters: WorkloadCounters;
  /** Connections that are open, by WorkloadSide. */
  readonly open = new Int32Array(4);
  /** No snapshot names it any more: what is in progress ends, and nothing is begun. */
  removed = false;
  /** WorkloadChange: what open connections have not all been judged by yet (rechecks.ts). */
  changed = 0;
  /** Most bytes of buffers that it may hold; 0: no limit. */
  bufferBytesMax = 0;
  /** Roots that its tunnels were last made with; '': it has not had a certificate. */
  private caPem = '';
  /** New connections that it may have now, and since when that is right. */
  private tokens = Number.POSITIVE_INFINITY;
  private tokensMs = 0;

  /** Without `counters` it counts for nobody. */
  constructor(settings: WorkloadSettings, counters = new WorkloadCounters(null, 0, -1)) {
    super(counters.words, counters.base + WorkloadCounter.BUFFER_BYTES);
    this.counters = counters;
    this.settings = settings;
    this.nameBytes = new TextEncoder().encode(settings.name);
  }

  /** Says who may reach it now. */
  authorize(authorization: Authorization | null): void {
    if (authorization !== this.authorization) this.changed |= WorkloadChange.POLICIES;
    this.authorization = authorization;
  }

  /** Takes over what a newer snapshot says of it. */
  update(settings: WorkloadSettings, contexts: TlsContexts): void {
    const { certificate } = settings;
    if (settings.strict !== this.settings.strict) this.changed |= WorkloadChange.POLICIES;
    if (certificate !== null && certificate.caPem !== this.caPem) {
      if (this.caPem !== '') this.changed |= WorkloadChange.TRUST;
      this.caPem = certificate.caPem;
    }
    this.settings = settings;
    this.nameBytes = new TextEncoder().encode(settings.name);
    this.tls =
      certificate === null
        ? null
        : {
            key: certificate.key,
            serverName: '',
            // No name would do: endpoints say which identity the other end must have.
            verifyNames: ['spiffe://invalid'],
            caPem: certificate.caPem,
            certificate: { chainPem: certificate.chainPem, keyPem: certificate.keyPem },
            verify: true,
            minVersion: '1.3',
            maxVersion: '1.3',
          };
    this.tlsContext = this.tls === null ? null : contexts.client(this.tls, 'h2', true);
  }

  /** It holds as many buffers as it may: there is nothing new for it until some are free again. */
  get isFull(): boolean {
    return this.bufferBytesMax > 0 && this.bufferBytes > this.bufferBytesMax;
  }

  /** New connections that it may have now; a second without any brings as many as that second allows. */
  connectionsAllowed(nowMs: number): number {
    const { connectionsPerSecondMax: rate } = this.settings;
    if (rate === 0) return Number.POSITIVE_INFINITY;
    this.tokens = Math.min(rate, this.tokens + ((nowMs - this.tokensMs) * rate) / 1000);
    this.tokensMs = nowMs;
    return Math.floor(this.tokens);
  }

  /** Milliseconds until there will be one, when there is none now. */
  get connectionWaitMs(): number {
    return Math.max(1, Math.ceil(((1 - this.tokens) * 1000) / this.settings.connectionsPerSecondMax));
  }

  /** One of those is used. */
  useConnection(): void {
    this.tokens--;
  }

  /** Tells connections of this workload, in its present namespace and with its present certificate, from all others. */
  get key(): string {
    return `${this.settings.uid} ${this.settings.namespaceFd} ${this.tls?.key ?? ''}`;
  }
}

/** Mesh settings of one snapshot. */
export class MeshRuntime {
  readonly settings: MeshSettings;
  /** In the order of the settings. */
  readonly workloads: WorkloadRuntime[];
  /** Connections may leave the mesh no longer, and not all that have left before are known to have ended. */
  private egressChanged: boolean;

  /** `previous` are the settings of the snapshot before: its workloads go on. `worker` is whose counters are used. */
  constructor(settings: MeshSettings, contexts: TlsContexts, worker: number, previous: MeshRuntime | null) {
    this.settings = settings;
    if (previous === null) resetWorkloadGauges(settings.counters, worker);
    usePolicyNumbers(settings.policyNumbers);
    const compiled = new Map(previous?.workloads.map(({ authorization }) => [authorization?.key, authorization]));
    // Workloads with the same policies have them from one object.
    const authorizationOf = (policies: AuthorizationSettings | null): Authorization | null => {
      if (policies === null) return null;
      const one = compiled.get(policies.key) ?? new Authorization(policies);
      compiled.set(policies.key, one);
      return one;
    };
    const known = new Map(previous?.workloads.map((workload) => [workload.settings.uid, workload]));
    this.workloads = settings.workloads.map((one) => {
      const workload =
        known.get(one.uid) ?? new WorkloadRuntime(one, new WorkloadCounters(settings.counters, worker, one.slot));
      workload.update(one, contexts);
      workload.authorize(authorizationOf(one.authorization));
      // Nothing of a new one is open yet.
      if (!known.has(one.uid)) workload.changed = 0;
      return workload;
    });
    for (const workload of previous?.workloads ?? []) workload.removed = !this.workloads.includes(workload);
    const hadEgress = previous !== null && (previous.egressChanged || previous.settings.otherListener >= 0);
    this.egressChanged = hadEgress && settings.otherListener < 0;
  }

  /** There may be open connections that would not be let in or out any more. */
  get hasChanged(): boolean {
    return this.egressChanged || this.workloads.some(({ changed }) => changed !== 0);
  }

  /** All open connections have been judged by what is in force. */
  settled(): void {
    this.egressChanged = false;
    for (const workload of this.workloads) workload.changed = 0;
  }

  /** Shares the buffers of the worker out. */
  limitBuffers(capacityBytes: number): void {
    for (const workload of this.workloads) {
      workload.bufferBytesMax = Math.floor((capacityBytes * workload.settings.bufferPercentMax) / 100);
    }
  }

  /**
   * How a backend of a scope leads a workload to an address: in a tunnel to this identity; null: directly; undefined:
   * not at all, whatever led there before.
   */
  identityAt(host: string, scope: OriginalDestinationScope, from: WorkloadRuntime): string | null | undefined {
    if (scope === 'any') return null;
    const isOwn = from.settings.addresses.includes(host);
    if (scope === 'own') return isOwn ? null : undefined;
    return isOwn ? null : this.settings.destinations.get(host)?.identity;
  }

  /** What is known of `ip:port`; null: it is not of the mesh. */
  destination(address: string): DestinationSettings | null {
    const { destinations } = this.settings;
    return destinations.get(address) ?? destinations.get(hostOf(address)) ?? null;
  }
}

/** The endpoints of a backend without any of its own: each address that was asked for is one. */
export class DestinationEndpoints {
  readonly endpoints: Endpoint[];
  /** Whom each of them counts for. */
  readonly peers: Peer[] = [];
  private readonly indexes = new Map<string, number>();
  /** Indexes of endpoints that have been forgotten. */
  private readonly free: number[] = [];
  private forgottenMs = Number.NEGATIVE_INFINITY;
  private readonly make: (place: Pick<EndpointSettings, 'address' | 'host' | 'port'>) => Endpoint | null;
  private readonly peerOf: (endpoint: Endpoint) => Peer;

  /** `make` gives the endpoint of a place, or null: there is none; all are put into `endpoints`. `peerOf` says whom one counts for. */
  constructor(endpoints: Endpoint[], make: DestinationEndpoints['make'], peerOf: DestinationEndpoints['peerOf']) {
    this.endpoints = endpoints;
    this.make = make;
    this.peerOf = peerOf;
  }

  /** Index of the endpoint of an address; -1: there is none, or there are too many. */
  endpointOf(address: string | null): number {
    if (address === null) return -1;
    const known = this.indexes.get(address);
    if (known !== undefined) return known;
    if (this.isFull) return -1;
    const host = hostOf(address);
    const port = Number(address.slice(address.lastIndexOf(':') + 1));
    const endpoint = this.make({ address, host, port });
    if (endpoint === null) return -1;
    const index = this.free.pop() ?? this.endpoints.length;
    this.indexes.set(address, index);
    this.peers[index] = this.peerOf(endpoint);
    this.endpoints[index] = endpoint;
    return index;
  }

  /** There is no room for another address. */
  get isFull(): boolean {
    return this.endpoints.length >= DESTINATIONS_MAX && this.free.length === 0;
  }

  /** Whether it is time to look again which addresses may be forgotten. */
  mayForget(nowMs: number): boolean {
    return nowMs - this.forgottenMs >= FORGET_EVERY_MS;
  }

  /** Forgets the addresses without connections, apart from those at the indexes in `used`. Returns their endpoints. */
  forget(used: ReadonlySet<number>, nowMs: number): Endpoint[] {
    this.forgottenMs = nowMs;
    const forgotten: Endpoint[] = [];
    for (const [address, index] of this.indexes) {
      const endpoint = this.endpoints[index]!;
      if (used.has(index) || hasConnections(endpoint)) continue;
      this.indexes.delete(address);
      this.free.push(index);
      forgotten.push(endpoint);
    }
    return forgotten;
  }

  /** Keeps those endpoints of an earlier snapshot that have connections. */
  keep(before: DestinationEndpoints): void {
    for (const address of before.indexes.keys()) {
      if (hasConnections(before.endpoints[before.indexes.get(address)!]!)) this.endpointOf(address);
    }
  }
}

/** Whether an endpoint has connections that may serve again, or tunnels that may carry some. */
function hasConnections({ idleCount, http2, tunnel }: Endpoint): boolean {
  return idleCount > 0 || (http2?.members.length ?? 0) > 0 || (tunnel?.tunnels?.carriers.length ?? 0) > 0;
}

/** Whom connections to a backend, or to one of the addresses that it stands for, count for. */
export function destinationPeer(workload: WorkloadRuntime, backend: string, endpoint: Endpoint | null): Peer {
  // A workload that is reached by its own address is known by its identity.
  const identity = endpoint?.tunnel?.verifyNames?.[0];
  return workload.counters.peer(PeerSide.DESTINATION, identity ?? backend);
}

/** Address text of `ip:port` or `[ip]:port`. */
export function addressText({ host, port }: { host: string; port: number }): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** IP address of `ip:port` or `[ip]:port`, without brackets. */
export function hostOf(address: string): string {
  const host = address.slice(0, address.lastIndexOf(':'));
  return host.startsWith('[') ? host.slice(1, -1) : host;
}

/** `ip:port` of a socket address in memory; null: it is not one. */
export function readAddressText(memory: Uint8Array, offset: number): string | null {
  const address = decodeSockaddr(memory, offset);
  return address === undefined ? null : addressText(address);
}

/** Where tunnels to an endpoint begin. */
export function tunnelPlace(host: string): Pick<EndpointSettings, 'address' | 'host' | 'port'> {
  return { address: addressText({ host, port: MeshPort.TUNNELS }), host, port: MeshPort.TUNNELS };
}
