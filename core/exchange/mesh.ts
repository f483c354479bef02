// Connections of the mesh where they arrive on a node: captured ones that leave a workload, plain ones that come to it,
// and tunnels. Each is given its workload, its destination and the virtual listener that serves it from then on.
//
//   outbound --original destination--> service, workload, or outside: a virtual listener --\
//   inbound  --original destination--> plain text, if the workload takes that -------------- detection --> HTTP or TCP
//   tunnels  --TLS, CONNECT ip:port--> one of the workload's own addresses -----------------/
//
// Owned by one worker. Works per connection, nothing per request.
// Spec: Istio ambient's HBONE; SO_ORIGINAL_DST.

import { Lookup } from '../ffi/original-destination.ts';
import type { RequestHead } from '../http1/message.ts';
import type { Connection } from '../io/connection.ts';
import type { Turns } from '../io/turns.ts';
import { MeshPort } from '../tcp/mesh-ports.ts';
import { CloseCause } from '../telemetry/metrics.ts';
import { WorkloadCounter } from '../telemetry/workload-metrics.ts';
import { Alpn } from '../tls/alpn.ts';
import type { ProxyContext } from './context.ts';
import { addressText, type DestinationEndpoints, readAddressText, type WorkloadRuntime } from './mesh-runtime.ts';
import { Detail, Reason } from './reasons.ts';
import type { ListenerRuntime } from './runtime.ts';

/** What a connection counts as at its workload: as begun by it, as come to it, or as a tunnel that carries such. */
export const WorkloadSide = { NONE: 0, OUTBOUND: 1, INBOUND: 2, TUNNELS: 3 } as const;
const { INBOUND, OUTBOUND, TUNNELS } = WorkloadSide;
const { BUSY_MS, OUTBOUND_ACCEPTED, OUTBOUND_OPEN } = WorkloadCounter;

const sides = { outbound: OUTBOUND, inbound: INBOUND, tunnels: TUNNELS, virtual: OUTBOUND } as const;

/** Where this proxy listens in the namespaces of workloads (mesh-agent/capture): nothing of a workload is there. */
const proxyPorts: ReadonlySet<number> = new Set(Object.values(MeshPort));

/** How long new connections of a workload wait that holds as many buffers as it may. */
const FULL_PAUSE_MS = 50;

/** Longest pause of a workload that has new connections too fast: its limits may have changed then. */
const RATE_PAUSE_MS_MAX = 1000;

export class Mesh {
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** Takes over a connection that a listener of the mesh has accepted. */
  accepted(connection: Connection): void {
    const { settings, workload } = connection.listener!;
    const { role } = settings.mesh!;
    if (workload === null || workload.removed) {
      this.context.preamble.close(connection, CloseCause.FINISHED);
      return;
    }
    connection.workload = workload;
    workload.useConnection();
    const side = sides[role];
    if (this.isAtLimit(workload, side)) {
      this.refuse(connection, Reason.OVERLOAD, Detail.WORKLOAD_CONNECTIONS);
      return;
    }
    this.count(connection, workload, side);
    if (role === 'tunnels') this.context.preamble.accepted(connection);
    else if (this.readDestination(connection)) {
      if (role === 'outbound') this.leave(connection);
      else this.arrive(connection, workload);
    }
  }

  /** Milliseconds for which a listener is to accept nothing, since its workload has had enough; 0: it may. */
  pauseMs(listener: ListenerRuntime): number {
    const { workload } = listener;
    if (workload === null) return 0;
    if (workload.isFull) return FULL_PAUSE_MS;
    if (workload.connectionsAllowed(this.context.reactor.nowMs) > 0) return 0;
    return Math.min(workload.connectionWaitMs, RATE_PAUSE_MS_MAX);
  }

  /** Connections that a listener which need not pause may accept at once. */
  acceptsMax(listener: ListenerRuntime): number {
    const { workload } = listener;
    return workload === null ? Number.POSITIVE_INFINITY : workload.connectionsAllowed(this.context.reactor.nowMs);
  }

  private isAtLimit({ open, settings }: WorkloadRuntime, side: number): boolean {
    return settings.connectionsMax > 0 && open[side]! >= settings.connectionsMax;
  }

  /** Counts a connection at its workload. */
  private count(connection: Connection, workload: WorkloadRuntime, side: number): void {
    const { words, base } = workload.counters;
    connection.workloadSide = side;
    workload.open[side]!++;
    words[base + OUTBOUND_OPEN + side - 1]!++;
    words[base + OUTBOUND_ACCEPTED + side - 1]!++;
  }

  /** Why the workload of a tunnel may not have another connection through it (Detail); 0: it has it, and counts it. */
  admitTunnelled(connection: Connection): number {
    const workload = connection.workload!;
    if (!this.isTrusted(connection, workload)) return Detail.TUNNEL_IDENTITY;
    if (this.isAtLimit(workload, INBOUND)) return Detail.WORKLOAD_CONNECTIONS;
    if (workload.isFull) return Detail.WORKLOAD_BUFFERS;
    if (workload.connectionsAllowed(this.context.reactor.nowMs) < 1) return Detail.WORKLOAD_RATE;
    workload.useConnection();
    this.count(connection, workload, INBOUND);
    return 0;
  }

  /** Whether the client of a tunnel still is who the handshake has shown it to be, and one of the trust domain. */
  private isTrusted({ clientCertificate }: Connection, { settings, tls }: WorkloadRuntime): boolean {
    if (clientCertificate === null || tls === null) return false;
    const { verified, spiffeId, notAfterMs } = clientCertificate;
    const trustDomain = settings.identity.slice(0, settings.identity.indexOf('/', 'spiffe://'.length) + 1);
    return verified && spiffeId.startsWith(trustDomain) && notAfterMs > this.context.reactor.wallMs;
  }

  /** Reads where a redirected connection was going. */
  private readDestination(connection: Connection): boolean {
    const { kernel } = this.context.reactor;
    const status = kernel.originalDestination(connection.fd, connection.peerFamily);
    const text = status === Lookup.FOUND ? readAddressText(kernel.memory, kernel.addressOffset) : null;
    if (text === null) {
      // Nobody redirected it: its "destination" is this very listener.
      this.refuse(connection, Reason.NO_ROUTE, Detail.NOT_CAPTURED);
      return false;
    }
    connection.destination = text;
    return true;
  }

  /** A connection that leaves its workload; also one that has waited until its destination was known. */
  leave(connection: Connection): void {
    const mesh = this.context.runtime.mesh!;
    const found = mesh.destination(connection.destination!);
    if (mesh.settings.discovery !== null && this.context.destinationGate.takes(connection, found !== null)) return;
    const index = found === null ? mesh.settings.otherListener : found.listener;
    if (index < 0) this.refuse(connection, Reason.NO_ROUTE, Detail.EGRESS_REFUSED);
    else this.serve(connection, this.context.listenerAt(index));
  }

  /** A connection in plain text that comes to a workload. */
  private arrive(connection: Connection, workload: WorkloadRuntime): void {
    if (workload.settings.strict) {
      this.refuse(connection, Reason.NO_ROUTE, Detail.PLAINTEXT_REFUSED);
      return;
    }
    this.context.authorizer.admit(connection, workload);
    this.serve(connection, this.inboundListener(connection.destination!));
  }

  /**
   * The listener that takes a tunnel of a workload to the authority of a CONNECT, whose port has been read; null: that
   * is not the workload's, or the proxy's own. Sets the destination of the connection.
   */
  tunnelTarget(connection: Connection, head: RequestHead, port: number): ListenerRuntime | null {
    const { authorityOffset, hostLength } = head;
    const host = Buffer.from(this.context.memory.subarray(authorityOffset, authorityOffset + hostLength)).toString(
      'latin1',
    );
    const bare = host.startsWith('[') ? host.slice(1, -1) : host;
    const { removed, settings } = connection.workload!;
    if (removed || !settings.addresses.includes(bare) || proxyPorts.has(port)) return null;
    connection.destination = addressText({ host: bare, port });
    this.context.authorizer.admit(connection, connection.workload!);
    return this.inboundListener(connection.destination);
  }

  private inboundListener(destination: string): ListenerRuntime {
    const { inbound, inboundProtocols } = this.context.runtime.mesh!.settings;
    return this.context.listenerAt(inbound[inboundProtocols.get(destination) ?? 'auto']);
  }

  /** Hands a connection whose bytes are what the workload sent or gets to a virtual listener. */
  serve(connection: Connection, listener: ListenerRuntime): void {
    connection.listener = listener;
    if (listener.settings.mesh?.detect) this.context.detection.accepted(connection);
    else this.context.handOver(connection, Alpn.NONE);
  }

  /** Counts time of the worker for the workloads that had turns in a measured batch, by the length of those. */
  shareTime(turns: Turns, ms: number): void {
    const { workloads } = this.context.runtime.mesh!;
    let total = turns.nobody.busyMs;
    turns.nobody.busyMs = 0;
    for (let i = 0; i < workloads.length; i++) total += workloads[i]!.busyMs;
    if (total === 0) return;
    for (let i = 0; i < workloads.length; i++) {
      const workload = workloads[i]!;
      if (workload.busyMs === 0) continue;
      const { words, base } = workload.counters;
      words[base + BUSY_MS]! += (ms * workload.busyMs) / total;
      workload.busyMs = 0;
    }
  }

  /** Forgets addresses that nothing is connected to any more, for a workload that has been connected to very many. */
  makeRoom(destinations: DestinationEndpoints): void {
    const { reactor } = this.context;
    if (!destinations.mayForget(reactor.nowMs)) return;
    const used = new Set<number>();
    reactor.forEach(({ exchange }) => {
      if (exchange === null || exchange.backend < 0) return;
      if (exchange.runtime!.backends[exchange.backend]!.destinations === destinations) used.add(exchange.endpoint);
    });
    for (const endpoint of destinations.forget(used, reactor.nowMs)) this.context.dropEndpoint(endpoint);
  }

  /** A counted connection has been closed. */
  closed(workload: WorkloadRuntime, side: number): void {
    const { words, base } = workload.counters;
    workload.open[side]!--;
    words[base + OUTBOUND_OPEN + side - 1]!--;
  }

  private refuse(connection: Connection, reason: number, detail: number): void {
    this.context.downstreamTcp.refuseConnection(connection, reason, detail);
  }
}
