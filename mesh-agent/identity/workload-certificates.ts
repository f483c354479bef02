// The certificates of a node: one per identity that is in use here, always a valid one, never without a key
// that was made here and stays here.
//
//   hold ---> request ---> in use ---> half of its life is over, or another root signs ---> request ...
//               | failed: again and again, ever more slowly; the old one stays in use until it expires
//
// The packet core takes chain and key from `get` and `onChange`. Control thread of a node.

import { createHash, createPrivateKey, type KeyObject } from 'node:crypto';
import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '../../core/process/clock.ts';
import type { Log } from '../../core/workers/log.ts';
import { keyToPem, readCertificate } from './certificate.ts';
import type { CertificateSource } from './certificate-client.ts';
import { createSigningRequest } from './csr.ts';
import { asIdentityError, IdentityError } from './errors.ts';
import { generateKey } from './keys.ts';
import { splitCertificates } from './pem.ts';
import { makePrivateDirectory, readPrivateFile, writePrivateFile } from './private-files.ts';
import { parseSpiffeId } from './spiffe.ts';
import { type TrustBundle, verifyChain } from './trust-bundle.ts';
import type { TrustStore } from './trust-store.ts';

/** Renewals lie around half of the lifetime, in this share of it, so that a mesh does not renew all at once. */
const RENEWAL_SPREAD = 0.1;
/** Renewals because of another root are spread over this time. */
const ROTATION_SPREAD_MS = 20_000;
/** Less where certificates live so shortly that it is more than this part of their life. */
const ROTATION_SPREAD_LIFETIMES = 50;
/** Waits after failures, doubling, in full and half by chance. */
const BACKOFF_FIRST_MS = 1_000;
/** A CA that is away may be back any moment. */
const BACKOFF_AWAY_MAX_MS = 30_000;
/** A CA that refuses will do so again until somebody acts. */
const BACKOFF_REFUSED_MAX_MS = 300_000;
/** Requests under way at a time. */
const REQUESTS_MAX = 8;
/** Longest timer: a clock that jumps is noticed within this. */
const TIMER_MAX_MS = 600_000;

/** A certificate in use. */
export interface WorkloadCertificate {
  identity: string;
  /** Leaf first, then intermediates, PEM. */
  chainPem: string;
  /** PKCS #8 PEM. */
  keyPem: string;
  notBeforeMs: number;
  notAfterMs: number;
  /** Id of the root that it leads to. */
  rootId: string;
}

/** Told of a new certificate, or null when there is no valid one any more. */
export type CertificateListener = (identity: string, certificate: WorkloadCertificate | null) => void;

/** What the store of certificates needs. */
export interface WorkloadCertificatesOptions {
  source: CertificateSource;
  trust: TrustStore;
  log: Log;
  /** Wanted lifetime; 0: the CA's default. */
  lifetimeMs?: number;
  /** Private directory that certificates and keys outlive a restart in; without: they do not. */
  directory?: string;
  clock?: Clock;
}

interface Entry {
  identity: string;
  /** Number of users, such as workloads with this service account. */
  holders: number;
  certificate: WorkloadCertificate | null;
  /** When to ask next. */
  dueMs: number;
  failures: number;
  requesting: boolean;
  timer: unknown;
  waiters: ((certificate: WorkloadCertificate) => void)[];
  /** Why there is no newer certificate; null: nothing has failed. */
  error: IdentityError | null;
}

/** Keeps certificates of identities. */
export class WorkloadCertificates {
  private readonly options: WorkloadCertificatesOptions;
  private readonly clock: Clock;
  private readonly entries = new Map<string, Entry>();
  private readonly listeners = new Set<CertificateListener>();
  private readonly queue: Entry[] = [];
  private readonly unsubscribe: () => void;
  private requests = 0;
  private closed = false;

  /** Asks for nothing yet. */
  constructor(options: WorkloadCertificatesOptions) {
    this.options = options;
    this.clock = options.clock ?? systemClock;
    this.unsubscribe = options.trust.onChange((bundle) => this.bundleChanged(bundle));
  }

  /** Keeps a certificate for an identity from now on; once per user. Throws an IdentityError `spiffe-id`. */
  hold(identity: string): void {
    parseSpiffeId(identity);
    const known = this.entries.get(identity);
    if (known !== undefined) {
      known.holders++;
      return;
    }
    const entry: Entry = {
      identity,
      holders: 1,
      certificate: null,
      dueMs: this.clock.nowMs(),
      failures: 0,
      requesting: true,
      timer: null,
      waiters: [],
      error: null,
    };
    this.entries.set(identity, entry);
    this.restore(entry).finally(() => {
      entry.requesting = false;
      this.schedule(entry);
    });
  }

  /** Takes a `hold` back; with the last one, certificate and key are forgotten, on disk too. */
  release(identity: string): void {
    const entry = this.entries.get(identity);
    if (entry === undefined || --entry.holders > 0) return;
    this.clock.clearTimer(entry.timer);
    this.entries.delete(identity);
    if (this.options.directory !== undefined) unlink(this.path(identity)).catch(() => {});
  }

  /** The valid certificate of an identity; null: none (yet, or any more). */
  get(identity: string): WorkloadCertificate | null {
    const certificate = this.entries.get(identity)?.certificate ?? null;
    return certificate !== null && certificate.notAfterMs > this.clock.nowMs() ? certificate : null;
  }

  /** Why an identity that is held has no newer certificate; null: nothing has failed. */
  errorOf(identity: string): IdentityError | null {
    return this.entries.get(identity)?.error ?? null;
  }

  /** The certificate of an identity that is held, as soon as there is one. Rejects with the signal's reason. */
  async wait(identity: string, signal: AbortSignal): Promise<WorkloadCertificate> {
    signal.throwIfAborted();
    const present = this.get(identity);
    if (present !== null) return present;
    const entry = this.entries.get(identity);
    if (entry === undefined) throw new IdentityError('internal', `${identity} is not held`);
    const { promise, resolve, reject } = Promise.withResolvers<WorkloadCertificate>();
    const aborted = (): void => reject(signal.reason);
    signal.addEventListener('abort', aborted, { once: true });
    entry.waiters.push(resolve);
    try {
      return await promise;
    } finally {
      signal.removeEventListener('abort', aborted);
      entry.waiters = entry.waiters.filter((waiter) => waiter !== resolve);
    }
  }

  /** Calls back with every change; returns what ends that. */
  onChange(listener: CertificateListener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Ids of the roots that the certificates in use lead to: what a node confirms together with a bundle. */
  rootsInUse(): string[] {
    const nowMs = this.clock.nowMs();
    const certificates = [...this.entries.values()].map(({ certificate }) => certificate);
    const valid = certificates.filter((certificate) => certificate !== null && certificate.notAfterMs > nowMs);
    return [...new Set(valid.map((certificate) => certificate!.rootId))].sort();
  }

  /** Ends renewals; what is stored stays for the next process. */
  close(): void {
    this.closed = true;
    this.unsubscribe();
    for (const { timer } of this.entries.values()) this.clock.clearTimer(timer);
    this.queue.length = 0;
  }

  private schedule(entry: Entry): void {
    if (this.closed || this.entries.get(entry.identity) !== entry) return;
    this.clock.clearTimer(entry.timer);
    const nowMs = this.clock.nowMs();
    this.expire(entry, nowMs);
    if (entry.requesting) return;
    if (entry.dueMs <= nowMs) {
      entry.requesting = true;
      this.queue.push(entry);
      this.work();
      return;
    }
    const endMs = entry.certificate?.notAfterMs ?? Number.POSITIVE_INFINITY;
    const delayMs = Math.min(entry.dueMs - nowMs, endMs - nowMs, TIMER_MAX_MS);
    entry.timer = this.clock.setTimer(() => this.schedule(entry), Math.max(delayMs, 1));
  }

  private work(): void {
    while (this.requests < REQUESTS_MAX) {
      const entry = this.queue.shift();
      if (entry === undefined) return;
      this.requests++;
      this.request(entry).finally(() => {
        this.requests--;
        entry.requesting = false;
        this.schedule(entry);
        this.work();
      });
      // While it is asked for, a certificate may run out.
      const endMs = entry.certificate?.notAfterMs;
      if (endMs !== undefined) {
        const delayMs = Math.min(Math.max(endMs - this.clock.nowMs(), 1), TIMER_MAX_MS);
        entry.timer = this.clock.setTimer(() => this.schedule(entry), delayMs);
      }
    }
  }

  private async request(entry: Entry): Promise<void> {
    const { identity } = entry;
    const { source, lifetimeMs = 0 } = this.options;
    if (this.closed || this.entries.get(identity) !== entry) return;
    try {
      const key = await generateKey();
      const chain = await source.request(createSigningRequest(identity, key), identity, lifetimeMs);
      if (this.closed || this.entries.get(identity) !== entry) return;
      const certificate = this.check(identity, chain, key);
      entry.failures = 0;
      entry.error = null;
      this.use(entry, certificate, this.clock.nowMs());
      await this.store(certificate);
    } catch (error) {
      this.failed(entry, asIdentityError(error));
    }
  }

  /** Checks an answer. Throws an IdentityError `untrusted-certificate` for one that is not what was asked for. */
  private check(identity: string, chain: readonly string[], key: KeyObject): WorkloadCertificate {
    const facts = chain.map((pem) => readCertificate(pem));
    const [leaf] = facts;
    const { uris = [], isCa = true, notBeforeMs = 0, notAfterMs = 0 } = leaf ?? {};
    if (leaf === undefined || isCa || uris.length !== 1 || uris[0] !== identity) {
      throw new IdentityError(
        'untrusted-certificate',
        `the certificate is for ${uris.join(', ') || 'nobody'}, not ${identity}`,
      );
    }
    if (!leaf.x509.checkPrivateKey(key))
      throw new IdentityError('untrusted-certificate', 'the certificate is for another key');
    const { id } = verifyChain(this.options.trust.current, facts, this.clock.nowMs());
    return { identity, chainPem: chain.join(''), keyPem: keyToPem(key), notBeforeMs, notAfterMs, rootId: id };
  }

  private use(entry: Entry, certificate: WorkloadCertificate, fromMs: number): void {
    entry.certificate = certificate;
    const share = 0.5 + (this.clock.random() - 0.5) * RENEWAL_SPREAD;
    entry.dueMs = fromMs + (certificate.notAfterMs - fromMs) * share;
    const { issuer } = this.options.trust.current;
    if (issuer !== '' && issuer !== certificate.rootId) this.hasten(entry);
    for (const listener of this.listeners) listener(entry.identity, certificate);
    for (const resolve of entry.waiters.splice(0)) resolve(certificate);
  }

  private failed(entry: Entry, error: IdentityError): void {
    const away =
      error.code === 'ca-unreachable' || error.code === 'overloaded' || error.code === 'untrusted-certificate';
    const maxMs = away ? BACKOFF_AWAY_MAX_MS : BACKOFF_REFUSED_MAX_MS;
    const stepMs = Math.min(BACKOFF_FIRST_MS * 2 ** Math.min(entry.failures, 20), maxMs);
    entry.failures++;
    entry.dueMs = this.clock.nowMs() + stepMs * (0.5 + this.clock.random() * 0.5);
    // The same cause over and over is said once; another one is news.
    if (entry.error?.message !== error.message) {
      this.options.log('warn', 'a certificate cannot be had', {
        identity: entry.identity,
        code: error.code,
        cause: error.message,
        advice: error.advice === '' ? undefined : error.advice,
        validUntil: entry.certificate === null ? undefined : new Date(entry.certificate.notAfterMs).toISOString(),
      });
    }
    entry.error = error;
  }

  private expire(entry: Entry, nowMs: number): void {
    if (entry.certificate === null || entry.certificate.notAfterMs > nowMs) return;
    entry.certificate = null;
    this.options.log('error', 'a certificate has expired', { identity: entry.identity, cause: entry.error?.message });
    for (const listener of this.listeners) listener(entry.identity, null);
  }

  private bundleChanged(bundle: TrustBundle): void {
    for (const entry of this.entries.values()) {
      const rootId = entry.certificate?.rootId;
      if (rootId === undefined) {
        // What the CA sent may have been refused for want of this bundle.
        if (entry.error?.code === 'untrusted-certificate') entry.dueMs = this.clock.nowMs();
      } else if (bundle.issuer !== '' && rootId !== bundle.issuer) {
        this.hasten(entry);
      }
      this.schedule(entry);
    }
  }

  /** Renews soon, but not together with all others. */
  private hasten(entry: Entry): void {
    const { notBeforeMs, notAfterMs } = entry.certificate!;
    const spreadMs = Math.min(ROTATION_SPREAD_MS, (notAfterMs - notBeforeMs) / ROTATION_SPREAD_LIFETIMES);
    const soonMs = this.clock.nowMs() + this.clock.random() * spreadMs;
    entry.dueMs = Math.min(entry.dueMs, soonMs);
  }

  private path(identity: string): string {
    return join(this.options.directory!, `${createHash('sha256').update(identity).digest('hex').slice(0, 32)}.pem`);
  }

  private async store({ identity, keyPem, chainPem }: WorkloadCertificate): Promise<void> {
    if (this.options.directory === undefined) return;
    try {
      await makePrivateDirectory(this.options.directory);
      await writePrivateFile(this.path(identity), keyPem + chainPem);
      // Released meanwhile: nobody else would remove it.
      if (!this.entries.has(identity)) await unlink(this.path(identity)).catch(() => {});
    } catch (error) {
      this.options.log('error', 'a certificate cannot be stored', { identity, cause: (error as Error).message });
    }
  }

  /** Uses what an earlier process has left, if it still holds. */
  private async restore(entry: Entry): Promise<void> {
    const { directory, log } = this.options;
    if (directory === undefined) return;
    try {
      await makePrivateDirectory(directory);
      const text = await readPrivateFile(this.path(entry.identity));
      if (text === null || this.entries.get(entry.identity) !== entry) return;
      const certificate = this.check(entry.identity, splitCertificates(text), createPrivateKey(text));
      // It was signed some time after it begins to be valid; half of its life counts from there.
      this.use(entry, certificate, certificate.notBeforeMs);
    } catch (error) {
      log('warn', 'a stored certificate is not used', { identity: entry.identity, cause: (error as Error).message });
    }
  }
}
