// Connections of health checks: TCP, the PROXY protocol header where the backend wants one, and TLS with
// the backend's trust, name and client certificate, as requests have them. Whoever has another way to endpoints
// than plain TCP (a node proxy its tunnels) brings a `Dial` of its own for the first step.
//
// Control thread; one connection per check, so that a check also shows that connecting works.
// Spec: RFC 6125 (names), PROXY protocol 2.4.

import { connect, isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import {
  checkServerIdentity,
  connect as connectTls,
  createSecureContext,
  getCACertificates,
  type PeerCertificate,
  type SecureContext,
  type TLSSocket,
} from 'node:tls';
import { parseAlternativeNames } from '../../core/tls/peer.ts';
import type { BackendTlsSettings } from '../../core/workers/snapshot.ts';

/** PROXY protocol headers that speak of no client: v1 `UNKNOWN`, v2 `LOCAL`. */
const proxyHeaders: Record<1 | 2, Uint8Array> = {
  1: Buffer.from('PROXY UNKNOWN\r\n'),
  2: Buffer.from([0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x20, 0x00, 0x00, 0x00]),
};

/** Where a check connects to, and how. */
export interface ProbePlace {
  /** IP address. */
  host: string;
  port: number;
  /** Version of the PROXY protocol header; 0: none. */
  proxyProtocol: 0 | 1 | 2;
  /** Null: plain TCP. */
  tls: BackendTlsSettings | null;
  /** Node proxies: it is reached through a tunnel, whose other end must have this SPIFFE identity; null: directly. */
  identity: string | null;
}

/** A connection that a check has. */
export interface ProbeConnection {
  stream: Duplex;
  /** It is a tunnel, which was opened with this identity: what may be said of it is said of that. Null: it is none. */
  tunnelAs: string | null;
}

/**
 * Connects to a place, without its PROXY header and TLS. Rejects with the cause; an abort ends it, and the connection
 * later too. Errors after that are nobody's business.
 */
export type Dial = (place: ProbePlace, signal: AbortSignal) => Promise<ProbeConnection>;

/** A check cannot be made for a cause that is not the endpoint's: of that nothing is known then. */
export class CheckNotMade extends Error {}

/** Contexts by their key; those of configurations past are few and small. */
const contexts = new Map<string, SecureContext>();
const CONTEXTS_MAX = 1000;

/** Connects by plain TCP. */
export const dialDirectly: Dial = ({ host, port }, signal) =>
  new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    const stop = (): void => void socket.destroy();
    signal.addEventListener('abort', stop, { once: true });
    socket.once('close', () => {
      signal.removeEventListener('abort', stop);
      reject(new Error('connection closed'));
    });
    // Stays: an error after the check is over is nobody's business.
    socket.on('error', reject);
    socket.once('connect', () => resolve({ stream: socket, tunnelAs: null }));
  });

/** Connects; `alpn` is what is offered over TLS. Rejects with the cause; an abort ends it, and the connection later too. */
export async function openConnection(
  place: ProbePlace,
  alpn: readonly string[],
  signal: AbortSignal,
  dial: Dial,
): Promise<ProbeConnection> {
  const connection = await dial(place, signal);
  const { stream, tunnelAs } = connection;
  if (place.proxyProtocol !== 0) stream.write(proxyHeaders[place.proxyProtocol]);
  const { tls } = place;
  if (tls === null) return connection;
  return new Promise((resolve, reject) => {
    stream.on('error', reject);
    stream.once('close', () => reject(new Error('connection closed')));
    const secure = startTls(stream, tls, alpn);
    secure.on('error', reject);
    secure.once('secureConnect', () => resolve({ stream: secure, tunnelAs }));
  });
}

function startTls(socket: Duplex, settings: BackendTlsSettings, alpn: readonly string[]): TLSSocket {
  const { serverName, verifyNames, verify } = settings;
  return connectTls({
    socket,
    secureContext: contextOf(settings),
    ...(serverName === '' || isIP(serverName) > 0 ? {} : { servername: serverName }),
    ...(alpn.length === 0 ? {} : { ALPNProtocols: [...alpn] }),
    // Said in either case, so that NODE_TLS_REJECT_UNAUTHORIZED decides nothing.
    rejectUnauthorized: verify,
    checkServerIdentity: (_host, certificate) => {
      const names = verifyNames ?? [serverName];
      if (names.some((name) => hasName(certificate, name))) return undefined;
      return new Error(`the certificate is not for ${names.join(' or ')}`);
    },
  });
}

function contextOf(settings: BackendTlsSettings): SecureContext {
  let context = contexts.get(settings.key);
  if (context === undefined) {
    if (contexts.size >= CONTEXTS_MAX) contexts.clear();
    context = createSecureContext({
      ca: settings.caPem ?? getCACertificates('system'),
      ...(settings.certificate === null
        ? {}
        : { cert: settings.certificate.chainPem, key: settings.certificate.keyPem }),
      minVersion: `TLSv${settings.minVersion}`,
      maxVersion: `TLSv${settings.maxVersion}`,
    });
    contexts.set(settings.key, context);
  }
  return context;
}

/** Whether a certificate is for a name: DNS name, IP address or URI. */
function hasName(certificate: PeerCertificate, name: string): boolean {
  if (!name.includes('://')) return checkServerIdentity(name, certificate) === undefined;
  return parseAlternativeNames(certificate.subjectaltname ?? '').uri.includes(name);
}
