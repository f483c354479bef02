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
import { CloseCause } from '../telemetry/metrics.ts';
import { Alpn } from '../tls/alpn.ts';
import type { ProxyContext } from './context.ts';
import { addressText, readAddressText, type WorkloadRuntime } from './mesh-runtime.ts';
import { Detail, Reason } from './reasons.ts';
import type { ListenerRuntime } from './runtime.ts';

/** What a connection counts as at its workload. */
export const WorkloadSide = { NONE: 0, OUTBOUND: 1, INBOUND: 2 } as const;
const { INBOUND, OUTBOUND } = WorkloadSide;

export class Mesh {
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** Takes over a connection that a listener of the mesh has accepted. */
  accepted(connection: Connection): void {
    const { mesh } = this.context.runtime;
    const { role, workload: index } = connection.listener!.settings.mesh!;
    const workload = mesh?.workloads[index] ?? null;
    if (mesh === null || workload === null) {
      // A reload that takes the workload away is on its way.
      this.context.preamble.close(connection, CloseCause.FINISHED);
      return;
    }
    connection.workload = workload;
    if (!this.admit(connection, workload, role === 'outbound' ? OUTBOUND : INBOUND)) return;
    if (role === 'tunnels') this.context.preamble.accepted(connection);
    else if (this.readDestination(connection)) {
      if (role === 'outbound') this.leave(connection);
      else this.arrive(connection, workload);
    }
  }

  /** Counts a connection at its workload, or refuses it. */
  private admit(connection: Connection, workload: WorkloadRuntime, side: number): boolean {
    const { connectionsMax } = workload.settings;
    const open = side === OUTBOUND ? workload.outbound : workload.inbound;
    if (connectionsMax > 0 && open >= connectionsMax) {
      this.refuse(connection, Reason.OVERLOAD, Detail.WORKLOAD_CONNECTIONS);
      return false;
    }
    connection.workloadSide = side;
    if (side === OUTBOUND) workload.outbound++;
    else workload.inbound++;
    return true;
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

  /** A connection that leaves its workload. */
  private leave(connection: Connection): void {
    const mesh = this.context.runtime.mesh!;
    const found = mesh.destination(connection.destination!);
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
   * is not the workload's. Sets the destination of the connection.
   */
  tunnelTarget(connection: Connection, head: RequestHead, port: number): ListenerRuntime | null {
    const { authorityOffset, hostLength } = head;
    const host = Buffer.from(this.context.memory.subarray(authorityOffset, authorityOffset + hostLength)).toString(
      'latin1',
    );
    const bare = host.startsWith('[') ? host.slice(1, -1) : host;
    if (!connection.workload!.settings.addresses.includes(bare)) return null;
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

  /** A counted connection has been closed. */
  closed(workload: WorkloadRuntime, side: number): void {
    if (side === OUTBOUND) workload.outbound--;
    else workload.inbound--;
  }

  private refuse(connection: Connection, reason: number, detail: number): void {
    this.context.downstreamTcp.refuseConnection(connection, reason, detail);
  }
}
