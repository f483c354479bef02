// The mesh CA: what it signs with at the moment, whom it lets roots be trusted by, and rotation carried out.
//
//   DIRECTORY/state.json       phase of the rotation and what proxies have confirmed (rotation-store.ts)
//   DIRECTORY/issuer-<id>/     roots and intermediates that were generated (issuer.ts)
//
// Control thread of one process: the directory is not shared. Who may have what is decided before
// (certificate-service.ts). Every step of a rotation is on disk before anybody sees it.

import { type Clock, systemClock } from '../../core/process/clock.ts';
import type { Log } from '../../core/workers/log.ts';
import { buildCertificate, certificateToPem, keyToPem } from './certificate.ts';
import { IdentityError } from './errors.ts';
import {
  generateIssuer,
  type Issuer,
  type IssuerFiles,
  intermediateDueMs,
  issuerEndMs,
  loadIssuerFiles,
  removeStoredIssuers,
  storeIssuer,
  withIntermediate,
  withLink,
} from './issuer.ts';
import { generateKey, publicKeyInfo } from './keys.ts';
import { BACKDATE_MS, lifetimeEndMs } from './mint.ts';
import { Minter } from './minter.ts';
import { openIssuers } from './opening.ts';
import { makePrivateDirectory } from './private-files.ts';
import {
  abortRotation,
  forgetProxy,
  proxyConfirmed,
  proxyConnected,
  proxyGone,
  proxyRefused,
  type RotationState,
  signerId,
  startRotation,
  trustedIds,
} from './rotation.ts';
import { RotationKeeper, type RotationStatus } from './rotation-keeper.ts';
import { RotationFile, type RotationStore } from './rotation-store.ts';
import { parseTrustDomain } from './spiffe.ts';
import { makeTrustBundle, type TrustBundle } from './trust-bundle.ts';

const HOUR_MS = 3_600_000;
/** Lifetime of workload certificates: a stolen key is worth a day at most. */
const LEAF_LIFETIME_MS = 24 * HOUR_MS;
/** How often intermediates and rotations are looked after without an event. */
const MAINTENANCE_MS = 60_000;
/** The log warns when what signs ends within this. */
const EXPIRY_WARNING_MS = 30 * 24 * HOUR_MS;
const EXPIRY_REMINDER_MS = 24 * HOUR_MS;

/** How to open a CA. */
export interface AuthorityOptions {
  /** Private directory; made when it is not there. */
  directory: string;
  trustDomain: string;
  log: Log;
  /** An operator's CA; without: one is generated. */
  files?: IssuerFiles;
  /** The operator's CA that a rotation moves to, or moved to and has not yet been made the first. */
  nextFiles?: IssuerFiles;
  /** Longest lifetime of workload certificates, and the default; at most the default of 24 h is recommended. */
  leafLifetimeMs?: number;
  /** How long a rotation waits for proxies that are gone; default: `leafLifetimeMs`, after which theirs have expired. */
  goneWaitMs?: number;
  clock?: Clock;
  /** Default: a file in the directory. */
  store?: RotationStore;
}

/** A signed certificate. */
export interface Issued {
  /** PEM texts: the leaf, then intermediates; no root. */
  chain: string[];
  /** The bundle at the time of signing. */
  bundle: TrustBundle;
  notAfterMs: number;
}

/** A certificate with its key. */
export interface KeyedCertificate {
  /** Leaf first, no root. */
  chainPem: string;
  /** PKCS #8, not encrypted. */
  keyPem: string;
  notAfterMs: number;
}

/** The certificate authority of one trust domain. */
export class MeshAuthority {
  readonly trustDomain: string;
  private readonly options: AuthorityOptions;
  private readonly clock: Clock;
  private readonly leafLifetimeMs: number;
  private readonly keeper: RotationKeeper;
  private readonly minter = new Minter();
  private readonly issuers: Map<string, Issuer>;
  private readonly listeners = new Set<(bundle: TrustBundle) => void>();
  /** Requests that are being signed. */
  private readonly signing = new Set<Promise<unknown>>();
  private current: TrustBundle;
  private timer: unknown;
  private warnedMs = 0;
  private closed = false;

  private constructor(
    options: AuthorityOptions,
    store: RotationStore,
    state: RotationState,
    issuers: Map<string, Issuer>,
  ) {
    this.options = options;
    this.trustDomain = options.trustDomain;
    this.clock = options.clock ?? systemClock;
    this.leafLifetimeMs = options.leafLifetimeMs ?? LEAF_LIFETIME_MS;
    this.issuers = issuers;
    this.keeper = new RotationKeeper(state, {
      store,
      nowMs: () => this.clock.nowMs(),
      goneWaitMs: options.goneWaitMs ?? this.leafLifetimeMs,
      entered: (entered, signerChanged) => this.entered(entered, signerChanged),
      failed: (error) => options.log('error', 'the state of the mesh CA cannot be stored', { cause: error.message }),
    });
    this.current = this.bundleOf(state);
  }

  /**
   * Opens the CA of a directory, and makes it where there is none. Rejects with an IdentityError: `unsafe-permissions`,
   * `storage`, `ca-material`, `rotation` (state and files contradict each other).
   */
  static async open(options: AuthorityOptions): Promise<MeshAuthority> {
    const { directory, trustDomain } = options;
    parseTrustDomain(trustDomain);
    await makePrivateDirectory(directory);
    const store = options.store ?? new RotationFile(directory);
    const nowMs = (options.clock ?? systemClock).nowMs();
    const { state, issuers } = await openIssuers({ ...options, store, nowMs });
    const authority = new MeshAuthority(options, store, state, issuers);
    await authority.maintain();
    authority.schedule();
    return authority;
  }

  /** The present trust bundle. */
  get bundle(): TrustBundle {
    return this.current;
  }

  /** Calls back with every new trust bundle; returns what ends that. */
  onBundle(listener: (bundle: TrustBundle) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** The SPIFFE id in a request; null: none. Rejects with an IdentityError: `csr-*`, `overloaded`. */
  inspect(csr: string): Promise<string | null> {
    return this.minter.inspect(csr);
  }

  /**
   * Signs a request, PEM, for an identity that its caller may have: that was decided before. `lifetimeMs`
   * 0: the default. Rejects with an IdentityError: `csr-*`, `issuer-expired`, `overloaded`.
   */
  async issue(csr: string, identity: string, lifetimeMs = 0): Promise<Issued> {
    const issuer = this.signer();
    const { bundle } = this;
    const rotating = this.keeper.state.phase !== 'idle';
    const minting = this.minter.mint({
      csr,
      identity,
      lifetimeMs: this.lifetime(lifetimeMs),
      nowMs: this.clock.nowMs(),
      signer: issuer.signer,
      issuerNotAfterMs: issuerEndMs(issuer),
    });
    this.signing.add(minting);
    try {
      const { certificatePem, notAfterMs } = await minting;
      return { chain: [certificatePem, ...this.chainAbove(issuer, rotating)], bundle, notAfterMs };
    } finally {
      this.signing.delete(minting);
    }
  }

  /** A certificate and key for a server of the control plane itself, which is also reached by names. */
  async issueForServer(
    identity: string,
    names: { dnsNames?: readonly string[]; ipAddresses?: readonly string[] },
  ): Promise<KeyedCertificate> {
    const issuer = this.signer();
    const key = await generateKey();
    const nowMs = this.clock.nowMs();
    const notAfterMs = lifetimeEndMs(nowMs, this.leafLifetimeMs, issuerEndMs(issuer));
    const certificate = buildCertificate(
      {
        identity,
        commonName: '',
        publicKey: publicKeyInfo(key),
        notBeforeMs: nowMs - BACKDATE_MS,
        notAfterMs,
        pathLength: null,
        ...names,
      },
      issuer.signer,
      issuer.signer.key,
    );
    const chainPem = [certificateToPem(certificate), ...this.chainAbove(issuer, true)].join('');
    return { chainPem, keyPem: keyToPem(key), notAfterMs };
  }

  /**
   * Begins a rotation: to a generated root, or to `nextFiles` of the options. Resolves when the new root is on
   * disk and in the bundle. Rejects with an IdentityError, `rotation` when one is under way.
   */
  startRotation(): Promise<void> {
    return this.keeper.step(async (state) => {
      const nowMs = this.clock.nowMs();
      const { nextFiles, directory } = this.options;
      // Throws before anything is made.
      startRotation(state, 'new', nowMs);
      if (nextFiles === undefined && this.options.files !== undefined) {
        throw new IdentityError(
          'rotation',
          'the CA is given as files (ca.files), and there are none of the next one',
          'give them as ca.nextFiles, restart the control plane, then rotate',
        );
      }
      const old = this.issuers.get(state.activeId)!;
      const made = nextFiles === undefined ? generateIssuer(this.trustDomain, nowMs) : loadIssuerFiles(nextFiles);
      const next = withLink(await made, old, this.trustDomain, nowMs);
      const started = startRotation(state, next.id, nowMs);
      if (next.stored) await storeIssuer(directory, next);
      this.issuers.set(next.id, next);
      return started;
    });
  }

  /** Turns a rotation back. Rejects with an IdentityError `rotation` when there is none, or it is too late. */
  abortRotation(): Promise<void> {
    return this.keeper.step((state) => abortRotation(state, this.clock.nowMs()));
  }

  /** Where the rotation stands. */
  rotationStatus(): RotationStatus {
    return this.keeper.status();
  }

  /** A proxy has connected. To be called before it is sent anything; `proxy` is its name, the same each time. */
  proxyConnected(proxy: string): void {
    this.keeper.note((state) => proxyConnected(state, proxy));
  }

  /**
   * A proxy has put the bundle of a sequence to use in all of its workers. `issuers`: ids of the roots that the
   * certificates it uses lead to.
   */
  proxyConfirmed(proxy: string, sequence: number, issuers: readonly string[]): void {
    this.keeper.note((state) => proxyConfirmed(state, proxy, sequence, issuers));
  }

  /** A proxy does not take the bundle, for this reason. */
  proxyRefused(proxy: string, reason: string): void {
    this.options.log('warn', 'a proxy refuses the trust bundle', { proxy, reason });
    this.keeper.note((state) => proxyRefused(state, proxy, reason));
  }

  /** The connection of a proxy has ended. */
  proxyGone(proxy: string): void {
    this.keeper.note((state) => proxyGone(state, proxy, this.clock.nowMs()));
  }

  /** An operator says that a proxy will not come back, so that a rotation need not wait for it; whether it was known. */
  forgetProxy(proxy: string): boolean {
    const known = Object.hasOwn(this.keeper.state.proxies, proxy);
    this.keeper.note((state) => forgetProxy(state, proxy));
    return known;
  }

  /** Resolves when everything that was called for is done and on disk, or has failed. */
  settled(): Promise<void> {
    return this.keeper.settled();
  }

  /** Renews the intermediate when it is due, and takes the steps that a rotation can take by now. */
  maintain(): Promise<void> {
    return this.keeper.proceed(async () => {
      const nowMs = this.clock.nowMs();
      for (const [id, issuer] of this.issuers) {
        if (intermediateDueMs(issuer) > nowMs || issuer.root.notAfterMs <= nowMs) continue;
        const renewed = await withIntermediate(issuer, this.trustDomain, nowMs);
        await storeIssuer(this.options.directory, renewed);
        this.issuers.set(id, renewed);
        this.options.log('info', 'the intermediate certificate of the mesh was renewed', { root: id });
      }
      const endMs = issuerEndMs(this.signer());
      if (endMs < nowMs + EXPIRY_WARNING_MS && nowMs >= this.warnedMs + EXPIRY_REMINDER_MS) {
        this.warnedMs = nowMs;
        this.options.log('warn', 'the certificate of the mesh CA is about to expire', {
          root: signerId(this.keeper.state),
          expires: new Date(endMs).toISOString(),
          advice: 'rotate the root, or renew the files of the CA',
        });
      }
    });
  }

  /** Stops signing. State is on disk when this resolves. */
  async close(): Promise<void> {
    this.closed = true;
    this.clock.clearTimer(this.timer);
    await this.keeper.settled();
    await this.minter.close();
  }

  private schedule(): void {
    this.timer = this.clock.setTimer(() => {
      this.maintain()
        .catch((error) => this.options.log('error', 'the mesh CA cannot look after itself', { cause: error.message }))
        .finally(() => {
          if (!this.closed) this.schedule();
        });
    }, MAINTENANCE_MS);
  }

  /** A step of the rotation is on disk. */
  private async entered(state: RotationState, signerChanged: boolean): Promise<void> {
    // Requests that the old root is signing are answered before anybody hears of the new one.
    if (signerChanged) await Promise.allSettled(this.signing);
    this.current = this.bundleOf(state);
    this.options.log('info', 'the rotation of the mesh root has moved on', {
      phase: state.phase,
      sequence: state.sequence,
      active: state.activeId,
      next: state.nextId ?? undefined,
    });
    for (const listener of this.listeners) listener(this.current);
    if (state.phase !== 'idle') return;
    for (const id of this.issuers.keys()) {
      if (id !== state.activeId) this.issuers.delete(id);
    }
    await removeStoredIssuers(this.options.directory, [state.activeId]);
  }

  private bundleOf(state: RotationState): TrustBundle {
    const roots = trustedIds(state).map((id) => certificateToPem(this.issuers.get(id)!.root.x509.raw));
    return makeTrustBundle(this.trustDomain, state.sequence, roots, signerId(state));
  }

  private signer(): Issuer {
    return this.issuers.get(signerId(this.keeper.state))!;
  }

  /** What is sent after a leaf; the link only where whoever verifies may have missed the rotation. */
  private chainAbove({ chain, link }: Issuer, mayHaveMissed: boolean): string[] {
    const linked = mayHaveMissed && link !== null && link.notAfterMs > this.clock.nowMs() ? [link] : [];
    return [...chain, ...linked].map(({ x509 }) => certificateToPem(x509.raw));
  }

  private lifetime(wantedMs: number): number {
    return wantedMs > 0 ? Math.min(wantedMs, this.leafLifetimeMs) : this.leafLifetimeMs;
  }
}
