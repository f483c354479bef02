// What a snapshot of a node proxy has besides that of a gateway: whose traffic it carries, where captured
// connections go, and who may reach whom. A gateway has none of it, and pays nothing.
//
// Made by mesh-agent/node from the state of the mesh. Plain data, structured-cloneable, immutable.
// Lists and maps of listeners have indexes of `Snapshot.listeners`.

import type { PolicyNumbers } from '../authorization/policy-numbers.ts';
import type { AuthorizationSettings } from '../authorization/settings.ts';

/** What a listener of a node proxy is. */
export interface ListenerMeshSettings {
  /**
   * `outbound`: takes captured connections that leave a workload, `inbound`: those that come to it in plain text,
   * `tunnels`: HBONE for it. `virtual`: has no socket, and takes what the others decide is for it.
   */
  role: 'outbound' | 'inbound' | 'tunnels' | 'virtual';
  /** Whose traffic: index in `MeshSettings.workloads`; -1: virtual, any. */
  workload: number;
  /** Whether HTTP/1.1, HTTP/2 or something else is spoken is found out from the first bytes. */
  detect: boolean;
}

/** One workload of this node. */
export interface WorkloadSettings {
  /** Unique in the mesh; the same workload keeps it across snapshots. */
  uid: string;
  /** `namespace/name`, for logs and metrics. */
  name: string;
  /** `spiffe://...` */
  identity: string;
  /** IP addresses, canonical text. */
  addresses: string[];
  /** Descriptor of its network namespace, which outlives the snapshot; -1: that of the process. */
  namespaceFd: number;
  /** SO_MARK of what is sent for it, which its capture leaves alone; 0: none. */
  mark: number;
  /** What it shows in tunnels; null: it has no valid certificate, and no tunnels in either direction. */
  certificate: WorkloadCertificateSettings | null;
  /** Plain text from outside the mesh is refused. */
  strict: boolean;
  /** Place of the workload's counters (core/telemetry/workload-metrics.ts); -1: none. */
  slot: number;
  /** Most connections that it may have open in each direction, per worker; 0: no limit. */
  connectionsMax: number;
  /** Connections that it may begin, and that may come to it, together per second and worker; 0: no limit. */
  connectionsPerSecondMax: number;
  /** Percentage of a worker's buffers that it may hold before new connections and requests are refused; 0: no limit. */
  bufferPercentMax: number;
  /** Who may reach it; null: everybody. */
  authorization: AuthorizationSettings | null;
}

/** A certificate of the mesh, and whom its owner trusts. */
export interface WorkloadCertificateSettings {
  /** Hash of everything below. */
  key: string;
  chainPem: string;
  keyPem: string;
  /** Roots of the mesh. */
  caPem: string;
}

/** Where captured connections to an address go. */
export interface DestinationSettings {
  /** Index of the virtual listener that takes them. */
  listener: number;
  /** They go to that very address, in a tunnel to a workload with this identity; null: as they are, or to a service. */
  identity: string | null;
}

/**
 * Where a backend without endpoints of its own leads: to the addresses of the workload itself (`own`, delivery inside
 * its namespace), to those of the mesh (`mesh`, in tunnels to workloads that have them), or anywhere as it is (`any`).
 */
export type OriginalDestinationScope = 'own' | 'mesh' | 'any';

/** A node that knows what its workloads use, and asks for the rest when somebody connects to it. */
export interface DiscoverySettings {
  /** Networks in CIDR form, or addresses: nothing else is of the mesh. Empty: anything may be. */
  networks: readonly string[];
}

/** The mesh as the packet core of one node needs it. */
export interface MeshSettings {
  workloads: WorkloadSettings[];
  /** Their counters (core/telemetry/workload-metrics.ts). */
  counters: SharedArrayBuffer;
  /** Numbers of the policies of all workloads. */
  policyNumbers: PolicyNumbers;
  /** By `ip:port` (`[ip]:port` with IPv6), or by `ip` for every other port. */
  destinations: ReadonlyMap<string, DestinationSettings>;
  /** What is not among the destinations may be of the mesh all the same; null: it is not. */
  discovery: DiscoverySettings | null;
  /** Index of the virtual listener for all other destinations; -1: they are refused. */
  otherListener: number;
  /** Indexes of the virtual listeners for connections to workloads of this node, by declared protocol. */
  inbound: { auto: number; http: number; tcp: number };
  /** Ports of workloads whose protocol is declared: `ip:port`. Others are found out. */
  inboundProtocols: ReadonlyMap<string, 'http' | 'tcp'>;
}
