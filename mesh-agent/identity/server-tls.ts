// TLS of the control plane's own gRPC server: its certificate from the mesh CA, renewed in time, and client
// certificates verified against the present trust bundle, where a client has one.
//
// New contexts are for new connections; those that are open go on. Control thread.

import type { experimental, ServerCredentials } from '@grpc/grpc-js';
import { type Clock, systemClock } from '../../core/process/clock.ts';
import type { Log } from '../../core/workers/log.ts';
import type { KeyedCertificate, MeshAuthority } from './authority.ts';
import { bundleToPem } from './trust-bundle.ts';

/** Wait after a failure to sign the server's own certificate. */
const RETRY_MS = 10_000;
/** Longest timer: a clock that jumps is noticed within this. */
const TIMER_MAX_MS = 3_600_000;

/** Names of a server of the control plane. */
export interface ServerNames {
  /** SPIFFE id, such as that of its service account. */
  identity: string;
  dnsNames?: readonly string[];
  ipAddresses?: readonly string[];
}

type CaListener = (update: { caCertificate: Buffer } | null) => void;
type IdentityListener = (update: { certificate: Buffer; privateKey: Buffer } | null) => void;

/** Keeps the certificate and trusted roots of a gRPC server up to date; grpc-js asks it as a certificate provider. */
export class ServerTls implements experimental.CertificateProvider {
  private readonly authority: MeshAuthority;
  private readonly names: ServerNames;
  private readonly log: Log;
  private readonly clock: Clock;
  private readonly caListeners = new Set<CaListener>();
  private readonly identityListeners = new Set<IdentityListener>();
  private readonly unsubscribe: () => void;
  private certificate: KeyedCertificate | null = null;
  private issuer = '';
  private renewMs = 0;
  private timer: unknown;
  private renewing = false;
  private closed = false;

  private constructor(authority: MeshAuthority, names: ServerNames, log: Log, clock: Clock) {
    this.authority = authority;
    this.names = names;
    this.log = log;
    this.clock = clock;
    this.unsubscribe = authority.onBundle(({ issuer }) => {
      for (const listener of this.caListeners) listener(this.roots());
      if (issuer !== this.issuer) this.renewInTime();
    });
  }

  /** Signs the server's first certificate. Rejects with an IdentityError. */
  static async start(
    authority: MeshAuthority,
    names: ServerNames,
    log: Log,
    clock: Clock = systemClock,
  ): Promise<ServerTls> {
    const tls = new ServerTls(authority, names, log, clock);
    await tls.renew();
    tls.schedule();
    return tls;
  }

  /** Credentials for `server.bindAsync`: TLS, with a client certificate that is verified where there is one. */
  async credentials(): Promise<ServerCredentials> {
    const grpc = await import('@grpc/grpc-js');
    return grpc.experimental.createCertificateProviderServerCredentials(this, this, false);
  }

  /** The present certificate; for tests and status. */
  get current(): KeyedCertificate | null {
    return this.certificate;
  }

  /** See CertificateProvider of grpc-js: calls back at once, and with every change. */
  addCaCertificateListener(listener: CaListener): void {
    this.caListeners.add(listener);
    // Not before the caller is ready for it.
    process.nextTick(() => this.caListeners.has(listener) && listener(this.roots()));
  }

  /** See CertificateProvider. */
  removeCaCertificateListener(listener: CaListener): void {
    this.caListeners.delete(listener);
  }

  /** See CertificateProvider. */
  addIdentityCertificateListener(listener: IdentityListener): void {
    this.identityListeners.add(listener);
    process.nextTick(() => this.identityListeners.has(listener) && listener(this.keyed()));
  }

  /** See CertificateProvider. */
  removeIdentityCertificateListener(listener: IdentityListener): void {
    this.identityListeners.delete(listener);
  }

  /** Ends renewals. */
  close(): void {
    this.closed = true;
    this.unsubscribe();
    this.clock.clearTimer(this.timer);
  }

  private async renew(): Promise<void> {
    const { issuer } = this.authority.bundle;
    const { identity, ...names } = this.names;
    this.certificate = await this.authority.issueForServer(identity, names);
    this.issuer = issuer;
    const nowMs = this.clock.nowMs();
    this.renewMs = nowMs + (this.certificate.notAfterMs - nowMs) / 2;
    for (const listener of this.identityListeners) listener(this.keyed());
  }

  private renewInTime(): void {
    if (this.renewing || this.closed) return;
    this.renewing = true;
    this.renew()
      .catch((error) => {
        this.log('error', "the control plane's own certificate cannot be renewed", { cause: error.message });
        this.renewMs = this.clock.nowMs() + RETRY_MS;
      })
      .finally(() => {
        this.renewing = false;
        this.schedule();
      });
  }

  private schedule(): void {
    if (this.closed) return;
    this.clock.clearTimer(this.timer);
    const delayMs = Math.min(Math.max(this.renewMs - this.clock.nowMs(), 0), TIMER_MAX_MS);
    this.timer = this.clock.setTimer(() => {
      if (this.clock.nowMs() >= this.renewMs) this.renewInTime();
      else this.schedule();
    }, delayMs);
  }

  private roots(): { caCertificate: Buffer } {
    return { caCertificate: Buffer.from(bundleToPem(this.authority.bundle)) };
  }

  private keyed(): { certificate: Buffer; privateKey: Buffer } | null {
    if (this.certificate === null) return null;
    const { chainPem, keyPem } = this.certificate;
    return { certificate: Buffer.from(chainPem), privateKey: Buffer.from(keyPem) };
  }
}
