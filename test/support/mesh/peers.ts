// Peers at either end of a tunnel that are not node proxies: with any certificate, from the CA of the mesh or from
// somewhere else.
//
// Source: HBONE is HTTP/2 CONNECT (RFC 9113 §8.5) inside mutual TLS.

import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import * as http2 from 'node:http2';
import { connect as connectTls, createSecureContext } from 'node:tls';
import { NamespaceSockets } from '../../../core/ffi/netns.ts';
import { buildCertificate, certificateToPem, keyToPem } from '../../../mesh-agent/identity/certificate.ts';
import { generateIssuer, type Issuer, loadStoredIssuer } from '../../../mesh-agent/identity/issuer.ts';
import { generateKey, publicKeyInfo } from '../../../mesh-agent/identity/keys.ts';
import type { TestNamespace } from '../netns/network.ts';
import type { Clients, Lifetime } from './sockets.ts';

/** Where tunnels end. */
export const TUNNEL_PORT = 15_008;

const HOUR_MS = 3_600_000;

/** A certificate to show, and whom to trust. */
export interface Papers {
  chainPem: string;
  keyPem: string;
}

/** Makes certificates as the CA of a mesh does, and as it never would. */
export class Forger {
  private readonly issuer: Issuer;

  private constructor(issuer: Issuer) {
    this.issuer = issuer;
  }

  /** With the keys of a CA, whose directory this is. */
  static async ofMesh(directory: string): Promise<Forger> {
    const id = readdirSync(directory)
      .find((name) => name.startsWith('issuer-'))!
      .slice('issuer-'.length);
    return new Forger((await loadStoredIssuer(directory, id))!);
  }

  /** With a root of its own, of the same name. */
  static async stranger(trustDomain = 'cluster.local'): Promise<Forger> {
    return new Forger(await generateIssuer(trustDomain, Date.now()));
  }

  /** A certificate that is valid for an hour, or was. */
  async issue(identity: string, expired = false): Promise<Papers> {
    const key = await generateKey();
    const fromMs = Date.now() - (expired ? 2 * HOUR_MS : HOUR_MS / 2);
    const { signer, chain } = this.issuer;
    const leaf = buildCertificate(
      {
        ...{ identity, commonName: '', publicKey: publicKeyInfo(key) },
        ...{ notBeforeMs: fromMs, notAfterMs: fromMs + HOUR_MS, pathLength: null },
      },
      signer,
      signer.key,
    );
    const above = chain.map(({ x509 }) => x509.toString());
    return { chainPem: [certificateToPem(leaf), ...above].join(''), keyPem: keyToPem(key) };
  }

  /** Its root. */
  get rootPem(): string {
    return this.issuer.root.x509.toString();
  }
}

/** What became of a tunnel: the status of CONNECT with who answered, or how the connection ended before that. */
export type TunnelOutcome =
  | {
      kind: 'answered';
      status: number;
      peer: string;
      stream: http2.ClientHttp2Stream;
      session: http2.ClientHttp2Session;
    }
  | { kind: 'refused'; reason: string };

/**
 * Opens a tunnel to the proxy of a workload, from any namespace and with any papers; null: with none. `newest`: the
 * newest version of TLS that is offered.
 */
export async function openTunnel(
  clients: Clients,
  from: TestNamespace,
  host: string,
  authority: string,
  papers: Papers | null,
  newest: 'TLSv1.3' | 'TLSv1.2' = 'TLSv1.3',
): Promise<TunnelOutcome> {
  const socket = await clients.connect(from, host, TUNNEL_PORT);
  const secure = connectTls({
    ...{ socket, ALPNProtocols: ['h2'], rejectUnauthorized: false, maxVersion: newest },
    ...(papers === null ? {} : { cert: papers.chainPem, key: papers.keyPem }),
  });
  return new Promise((resolve) => {
    const refused = (error?: Error & { code?: string }): void =>
      resolve({ kind: 'refused', reason: error?.code ?? error?.message ?? 'closed' });
    secure.once('error', refused);
    secure.once('close', () => refused());
    secure.once('secureConnect', () => {
      const session = http2.connect(`https://${authority}`, { createConnection: () => secure });
      session.once('error', refused);
      const stream = session.request({ ':method': 'CONNECT', ':authority': authority });
      stream.on('error', refused);
      stream.once('response', (headers) => {
        const peer = new X509Certificate(secure.getPeerCertificate(true).raw).subjectAltName ?? '';
        resolve({ kind: 'answered', status: headers[':status']!, peer, stream, session });
      });
    });
  });
}

/** A server where a workload's proxy should be, which answers whatever comes through tunnels itself. */
export class FalseProxy {
  /** CONNECTs that were taken. */
  tunnels = 0;
  private readonly server: http2.Http2SecureServer;

  private constructor(server: http2.Http2SecureServer) {
    this.server = server;
  }

  /** Listens in the workload's namespace. */
  static async start(lifetime: Lifetime, at: TestNamespace, papers: Papers, trustPem: string): Promise<FalseProxy> {
    const sockets = new NamespaceSockets();
    lifetime.after(() => sockets.close());
    const opened = await sockets.open(at.path, { kind: 'listen', host: '0.0.0.0', port: TUNNEL_PORT });
    if (!opened.ok) throw new Error(opened.message);
    const server = http2.createSecureServer({
      ...{ cert: papers.chainPem, key: papers.keyPem, ca: trustPem },
      ...{ requestCert: true, rejectUnauthorized: false, allowHTTP1: false },
    });
    const proxy = new FalseProxy(server);
    const sessions = new Set<http2.Http2Session>();
    server.on('session', (session) => {
      sessions.add(session);
      session.once('close', () => sessions.delete(session));
      session.on('error', () => {});
    });
    server.on('stream', (stream: http2.ServerHttp2Stream, headers) => {
      stream.on('error', () => {});
      if (headers[':method'] !== 'CONNECT') return stream.close();
      proxy.tunnels++;
      stream.respond({ ':status': 200 });
      stream.once('data', () => stream.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfalse'));
    });
    server.on('tlsClientError', () => {});
    lifetime.after(() => {
      for (const session of sessions) session.destroy();
      server.close();
    });
    server.listen({ fd: opened.fds[0]! });
    await once(server, 'listening');
    return proxy;
  }

  /** Shows another certificate from now on. */
  show({ chainPem, keyPem }: Papers, trustPem: string): void {
    createSecureContext({ cert: chainPem, key: keyPem });
    this.server.setSecureContext({ cert: chainPem, key: keyPem, ca: trustPem });
  }
}
