// Trust in the other ends of tunnels, after their handshakes: certificates run out and roots are removed while tunnels
// live. Both sides of a tunnel are looked at in the same way.
//
//   certificate runs out --> GOAWAY: no further connection through this carrier, those that it has go on
//   root removed         --> GOAWAY, and connections that still go on after GRACE_MS are ended
//
// A carrier is a connection that carries tunnels, incoming (downstream-http2.ts) or ours (upstream-tunnels.ts).
// Owned by one worker. Works per carrier, nothing per request.

import type { Http2Session } from '../http2/session.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { noTransport } from '../io/transport.ts';
import { CloseCause } from '../telemetry/metrics.ts';
import type { TlsContext } from '../tls/context.ts';
import { peerCertificate } from '../tls/peer.ts';
import { isSessionOf, verifiesPeer } from '../tls/verify.ts';
import type { ProxyContext } from './context.ts';
import type { WorkloadRuntime } from './mesh-runtime.ts';
import { Detail, Reason } from './reasons.ts';

/** How long connections through a carrier go on whose other end is not trusted any more. */
export const GRACE_MS = 30_000;

/** What is asked of TLS; the simulation, which has none, has answers of its own. */
export interface PeerProofs {
  /** Whether a session was begun with a context. */
  isSessionOf: (ssl: number, context: TlsContext) => boolean;
  /** Whether the peer of a session would be let in by a context now. */
  verifies: (ssl: number, context: TlsContext) => boolean;
  /** When the certificate of the peer of a session runs out, milliseconds since 1970. */
  notAfterMs: (ssl: number) => number;
}

const tlsProofs: PeerProofs = {
  isSessionOf,
  verifies: verifiesPeer,
  notAfterMs: (ssl) => peerCertificate(ssl)?.notAfterMs ?? 0,
};

/** A carrier that is to end. */
interface Ending {
  carrier: Connection;
  generation: number;
  deadlineMs: number;
}

export class PeerTrust implements Protocol {
  proofs: PeerProofs = tlsProofs;
  private readonly context: ProxyContext;
  /** In the order of their deadlines. */
  private ending: Ending[] = [];
  /** Whose timer ends them; null: there are none. */
  private clock: Connection | null = null;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** A carrier to a workload of this node has been accepted, and speaks HTTP/2. */
  accepted(carrier: Connection): void {
    const { http2Session, clientCertificate, listener, workload, serverName } = carrier;
    if (http2Session === null || clientCertificate === null) return;
    const { reactor, http2 } = this.context;
    http2Session.goawayDeadlineMs = reactor.nowMs + Math.max(1, clientCertificate.notAfterMs - reactor.wallMs);
    http2.shutdowns.arm(http2Session);
    if (!this.isCurrent(carrier, workload!, listener!.contextFor(serverName))) this.distrust(carrier);
  }

  /**
   * When one of our carriers takes no more connections, milliseconds since 1970; 0: at once, since its other end is not
   * trusted any more. The handshake is done.
   */
  usableUntilMs(carrier: Connection): number {
    const { workload } = carrier.endpoint!;
    if (workload === null) return Number.POSITIVE_INFINITY;
    return this.isCurrent(carrier, workload, workload.tlsContext) ? this.proofs.notAfterMs(carrier.tls) : 0;
  }

  /** Whether a handshake was done by what is in force now, or would be. Roots may have changed in the middle of it. */
  private isCurrent(carrier: Connection, workload: WorkloadRuntime, context: TlsContext | null): boolean {
    if (workload.removed || context === null) return true;
    return this.proofs.isSessionOf(carrier.tls, context) || this.proofs.verifies(carrier.tls, context);
  }

  /** Looks again at a carrier of a workload that has other roots now. */
  recheck(carrier: Connection, workload: WorkloadRuntime): void {
    const session = carrier.http2Session!;
    const context = session.isServer ? carrier.listener!.contextFor(carrier.serverName) : workload.tlsContext;
    // Nothing to verify with: nothing new is begun then, in either direction.
    if (context === null || session.closing || session.lingering) return;
    if (!this.proofs.verifies(carrier.tls, context)) this.distrust(carrier);
  }

  /** The other end of a carrier is not trusted any more. */
  private distrust(carrier: Connection): void {
    const { context } = this;
    const session = carrier.http2Session!;
    if (this.ending.some((one) => one.carrier === carrier && one.generation === carrier.generation)) return;
    // Ours is for addresses with other roots, where nobody looks for one any more.
    if (session.isServer) eachIn(session, (connection) => this.endSoon(connection));
    context.http2.shutdowns.finish(session, CloseCause.DRAIN);
    if (session.streamCount === 0) return;
    const deadlineMs = context.reactor.nowMs + GRACE_MS;
    this.ending.push({ carrier, generation: carrier.generation, deadlineMs });
    this.startClock();
  }

  /** What is in progress on a connection through a tunnel may end; nothing is begun on it any more. */
  private endSoon(connection: Connection): void {
    const { detection, downstreamHttp1, downstreamHttp2, http2, preamble } = this.context;
    if (connection.access !== null) connection.access.trusted = false;
    if (connection.protocol === detection) preamble.close(connection, CloseCause.DRAIN);
    else if (connection.protocol === http2) downstreamHttp2.closeIfIdle(connection);
    else if (connection.protocol === downstreamHttp1) downstreamHttp1.closeIfIdle(connection);
  }

  // -- the end of the grace ----------------------------------------------------------------------

  private startClock(): void {
    const { reactor } = this.context;
    if (this.clock !== null) return;
    this.clock = reactor.openVirtual(this, noTransport);
    // Without a slot for the timer nobody would end them later.
    if (this.clock === null) this.endAll(Number.POSITIVE_INFINITY);
    else reactor.setTimer(this.clock, GRACE_MS);
  }

  readable(): void {}

  writable(): void {}

  sendFailed(): void {}

  expired(clock: Connection): void {
    const { reactor } = this.context;
    this.endAll(reactor.nowMs);
    const [next] = this.ending;
    if (next !== undefined) {
      reactor.setTimer(clock, Math.max(1, Math.ceil(next.deadlineMs - reactor.nowMs)));
      return;
    }
    this.clock = null;
    reactor.close(clock, false);
  }

  /** Ends the carriers whose time is over. */
  private endAll(nowMs: number): void {
    const due = this.ending.filter(({ deadlineMs }) => deadlineMs <= nowMs);
    this.ending = this.ending.filter(({ deadlineMs }) => deadlineMs > nowMs);
    for (const { carrier, generation } of due) if (carrier.generation === generation) this.end(carrier.http2Session!);
  }

  private end(session: Http2Session): void {
    const { tunnel, http2 } = this.context;
    eachIn(session, (connection) => {
      const { exchange, tunnelPeer } = connection;
      if (connection.protocol === tunnel) {
        if (session.isServer) tunnel.refuse(connection, Reason.UNAUTHORIZED, Detail.TUNNEL_UNTRUSTED);
        else if (tunnelPeer !== null) {
          tunnel.refuse(tunnelPeer, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.TUNNEL_UNTRUSTED);
        }
      } else if (session.isServer && exchange !== null) {
        // Ends with its stream, and keeps this.
        exchange.reason = Reason.UNAUTHORIZED;
        exchange.detail = Detail.TUNNEL_UNTRUSTED;
      }
    });
    http2.shutdowns.terminate(session);
  }

  /** Closes everything at once. */
  close(): void {
    this.ending = [];
    if (this.clock !== null) this.context.reactor.close(this.clock, false);
    this.clock = null;
  }
}

/** Visits connections and requests in the streams of a connection, also of HTTP/2 inside a tunnel; visits may close any. */
function eachIn(session: Http2Session, visit: (connection: Connection) => void): void {
  const found: { connection: Connection; generation: number }[] = [];
  const collect = ({ streams }: Http2Session): void => {
    for (let slot = 0; streams !== null && slot < streams.capacity; slot++) {
      const connection = streams.at(slot)?.connection ?? null;
      if (connection === null) continue;
      found.push({ connection, generation: connection.generation });
      if (connection.http2Session !== null) collect(connection.http2Session);
    }
  };
  collect(session);
  for (const { connection, generation } of found) if (connection.generation === generation) visit(connection);
}
