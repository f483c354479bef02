// Automatic certificates: which ones are wanted, what the storage has, and when to order or renew.
//
// `load` delivers what is stored, or placeholders, without any network. `start` begins to work; then
// one task at a time asks the CA for what is due. The owner answers challenges and takes certificates.
// Owned by the control thread. Invariant: at most one order runs, and only under the storage's lock.

import type { KeyObject } from 'node:crypto';
import { type Clock, systemClock } from '../../core/process/clock.ts';
import type { Log } from '../../core/workers/log.ts';
import { SerialQueue } from '../serial-queue.ts';
import { AcmeClient, type ExternalAccountBinding } from './client.ts';
import { AcmeError, asAcmeError } from './errors.ts';
import { type ChallengeSink, type ChallengeType, issueCertificate } from './issue.ts';
import { StorageLock } from './lock.ts';
import { backoffMs, renewalInfoDelayMs, renewalTimeMs, windowTimeMs } from './schedule.ts';
import { AcmeStorage, certificateName, type RetryState, type StoredCertificate } from './storage.ts';
import { Transport } from './transport.ts';
import { createPlaceholder, generateKey, type KeyedCertificate, readCertificate } from './x509.ts';

/** One CA, one account, one storage directory. */
export interface AcmeSettings {
  /** https URL of the CA's directory. */
  directoryUrl: string;
  /** Where the CA sends notices. */
  email?: string;
  /** Directory; created when missing, with its parents. */
  storage: string;
  termsOfServiceAgreed: boolean;
  /** For CAs that tie accounts to customers. */
  externalAccountBinding?: ExternalAccountBinding;
  /** Trusted for the connection to the CA, instead of the public authorities; for private CAs. */
  caPem?: string;
}

/** A certificate that listeners need. */
export interface WantedCertificate {
  /** DNS names without wildcards, at least one; one certificate has them all. */
  hostnames: readonly string[];
  challenge: ChallengeType;
}

/** A certificate for the listeners. */
export interface DeliveredCertificate extends KeyedCertificate {
  /** As they were wanted. */
  hostnames: readonly string[];
  /** Self-signed, until the first real one arrives. */
  placeholder: boolean;
}

/** What an AcmeManager works with. */
export interface AcmeManagerOptions {
  settings: AcmeSettings;
  challenges: ChallengeSink;
  /** Takes a certificate into use, in place of the one before for the same hostnames. */
  onCertificate(certificate: DeliveredCertificate): void | Promise<void>;
  log: Log;
  /** Default: the system's. */
  clock?: Clock;
}

/** How one certificate stands, for the admin port and metrics. */
export interface CertificateStatus {
  hostnames: readonly string[];
  challenge: ChallengeType;
  /** `placeholder`: none has arrived yet. */
  state: 'valid' | 'expired' | 'placeholder';
  /** End of validity in milliseconds since 1970; undefined for a placeholder. */
  notAfterMs: number | undefined;
  /** When the next order is due, in milliseconds since 1970. */
  nextAttemptMs: number;
  /** Failed orders in a row. */
  failures: number;
  /** Cause of the last failure. */
  cause: string | undefined;
}

interface Entry {
  name: string;
  hostnames: readonly string[];
  challenge: ChallengeType;
  certificate: StoredCertificate | undefined;
  /** When to order, as far as the certificate goes. */
  renewMs: number;
  /** No order before this time, because of failures. */
  notBeforeMs: number;
  failures: number;
  cause: string | undefined;
  /** When to read the CA's renewal information; Infinity: not at all. */
  infoMs: number;
  /** Issued, but not on disk yet. */
  unsaved: boolean;
  /** When an order was last tried. */
  triedMs: number;
}

/** A conversation with the CA, as an account. */
interface Session {
  client: AcmeClient;
  /** Of the account. */
  key: KeyObject;
}

/** Longest timer; the wall clock may jump, and machines sleep. */
const TIMER_MAX_MS = 15 * 60_000;
/** Shortest pause between two looks at what is due. */
const TIMER_MIN_MS = 100;
/** A certificate is never renewed later than after this share of its lifetime, whatever the CA suggests. */
const LATEST_SHARE = 0.9;
/** The first look at the renewal information of a certificate comes within this time, at random. */
const FIRST_RENEWAL_INFO_SPREAD_MS = 10 * 60_000;
/**
 * Shortest time from one order to the next of the same certificate, at most a tenth of its lifetime:
 * a CA that wants every certificate renewed at once must not get an endless row of orders.
 */
const ORDER_INTERVAL_MIN_MS = 3_600_000;
/** How soon a certificate that could not be saved is tried to be saved again. */
const SAVE_RETRY_MS = 60_000;
/** A renewal that fails is only a warning as long as the old certificate lasts this long. */
const SOON_MS = 7 * 24 * 3_600_000;

const HOSTNAME = /^(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** Obtains and renews certificates. */
export class AcmeManager {
  private readonly settings: AcmeSettings;
  private readonly challenges: ChallengeSink;
  private readonly onCertificate: AcmeManagerOptions['onCertificate'];
  private readonly log: Log;
  private readonly clock: Clock;
  private readonly storage: AcmeStorage;
  /** Everything that asks the CA; a task may take minutes. */
  private readonly queue = new SerialQueue();
  /** Changes of what is wanted; they do not wait for the CA. */
  private readonly loads = new SerialQueue();
  private readonly stopping = new AbortController();
  private entries = new Map<string, Entry>();
  private started = false;
  private timer: unknown;
  /** While the CA as a whole is out of reach, nothing is asked of it. */
  private outageUntilMs = 0;
  private outages = 0;

  /** Touches neither files nor network. Throws an Error for a directory URL that is not https. */
  constructor(options: AcmeManagerOptions) {
    const { directoryUrl, storage } = options.settings;
    if (!URL.canParse(directoryUrl) || new URL(directoryUrl).protocol !== 'https:') {
      throw new Error(`the ACME directory ${JSON.stringify(directoryUrl)} is not an https URL`);
    }
    this.settings = options.settings;
    this.challenges = options.challenges;
    this.onCertificate = options.onCertificate;
    this.log = options.log;
    this.clock = options.clock ?? systemClock;
    this.storage = new AcmeStorage(storage, directoryUrl, this.log, this.clock);
  }

  /**
   * Sets which certificates are wanted, and resolves when each new one of them has been delivered from
   * the storage, or as a placeholder; no network is used. Wanted ones that were there before go on as
   * they are; others are forgotten here, and stay in the storage. A running order does not delay it. Rejects with an Error for hostnames
   * that cannot be had, changing nothing; problems of the storage are logged and do not reject.
   */
  async load(wanted: readonly WantedCertificate[]): Promise<void> {
    for (const { hostnames } of wanted) checkHostnames(hostnames);
    await this.loads.run(async () => {
      const before = this.entries;
      const entries = new Map<string, Entry>();
      for (const { hostnames, challenge } of wanted) {
        const name = certificateName(hostnames);
        if (entries.has(name)) continue;
        const known = before.get(name);
        if (known !== undefined) known.challenge = challenge;
        entries.set(name, known ?? (await this.loadEntry(name, hostnames, challenge)));
      }
      this.entries = entries;
      this.schedule();
    });
  }

  /** Begins to order what is due. Call it when the listeners accept, since the CA connects to them. */
  start(): void {
    this.started = true;
    this.schedule();
  }

  /** Resolves when the tasks that have begun, or whose time has come, are done; new ones may follow. */
  settled(): Promise<void> {
    return this.queue.run(async () => {});
  }

  /** How every wanted certificate stands. */
  statuses(): CertificateStatus[] {
    const nowMs = this.clock.nowMs();
    return [...this.entries.values()].map((entry) => {
      const { hostnames, challenge, certificate, failures, cause } = entry;
      const notAfterMs = certificate?.facts.notAfterMs;
      const state = notAfterMs === undefined ? 'placeholder' : notAfterMs <= nowMs ? 'expired' : 'valid';
      return { hostnames, challenge, state, notAfterMs, nextAttemptMs: this.orderMs(entry), failures, cause };
    });
  }

  /** Ends a running order, takes its challenges back, releases the lock. Nothing is called afterwards. */
  async stop(): Promise<void> {
    this.started = false;
    this.clock.clearTimer(this.timer);
    this.stopping.abort(new Error('the gateway stops'));
    await this.loads.run(async () => {});
    await this.settled();
  }

  private async loadEntry(name: string, hostnames: readonly string[], challenge: ChallengeType): Promise<Entry> {
    const entry: Entry = {
      name,
      hostnames,
      challenge,
      certificate: undefined,
      renewMs: 0,
      notBeforeMs: 0,
      failures: 0,
      cause: undefined,
      infoMs: Number.POSITIVE_INFINITY,
      unsaved: false,
      triedMs: 0,
    };
    let stored: StoredCertificate | null = null;
    try {
      stored = await this.storage.readCertificate(hostnames);
      adoptRetry(entry, await this.storage.readRetry(hostnames));
    } catch (error) {
      const { message, advice } = asAcmeError(error);
      this.log('error', 'the stored certificate cannot be read', {
        hostnames: list(hostnames),
        cause: message,
        advice,
      });
    }
    if (stored !== null) {
      this.adopt(entry, stored);
      const expired = stored.facts.notAfterMs <= this.clock.nowMs();
      this.log(expired ? 'warn' : 'info', expired ? 'stored certificate has expired' : 'stored certificate in use', {
        hostnames: list(hostnames),
        notAfter: isoTime(stored.facts.notAfterMs),
        renewal: isoTime(this.orderMs(entry)),
      });
      await this.deliver(entry, stored, false);
    } else {
      this.log('warn', 'no certificate yet; clients get a self-signed one and will refuse it', {
        hostnames: list(hostnames),
        nextAttempt: this.orderMs(entry) <= this.clock.nowMs() ? 'now' : isoTime(this.orderMs(entry)),
      });
      await this.deliver(entry, createPlaceholder(hostnames, this.clock.nowMs()), true);
    }
    return entry;
  }

  /** Takes a certificate into the schedule. */
  private adopt(entry: Entry, certificate: StoredCertificate): void {
    const { notBeforeMs, notAfterMs, renewalId } = certificate.facts;
    entry.certificate = certificate;
    entry.renewMs = renewalTimeMs(notBeforeMs, notAfterMs, this.clock.random());
    entry.infoMs =
      renewalId === undefined
        ? Number.POSITIVE_INFINITY
        : this.clock.nowMs() + this.clock.random() * FIRST_RENEWAL_INFO_SPREAD_MS;
  }

  private async deliver(entry: Entry, { chainPem, keyPem }: KeyedCertificate, placeholder: boolean): Promise<void> {
    try {
      await this.onCertificate({ hostnames: entry.hostnames, chainPem, keyPem, placeholder });
    } catch (error) {
      this.log('error', 'a certificate could not be taken into use', {
        hostnames: list(entry.hostnames),
        cause: (error as Error).message,
      });
    }
  }

  /** When an order for this certificate may be made and should be. */
  private orderMs(entry: Entry): number {
    return Math.max(entry.renewMs, entry.notBeforeMs);
  }

  /** When there is something to do for this certificate. */
  private dueMs(entry: Entry): number {
    const dueMs = Math.max(Math.min(this.orderMs(entry), entry.infoMs), this.outageUntilMs);
    return entry.unsaved ? Math.min(dueMs, this.clock.nowMs() + SAVE_RETRY_MS) : dueMs;
  }

  private schedule(): void {
    this.clock.clearTimer(this.timer);
    if (!this.started || this.entries.size === 0) return;
    const dueMs = Math.min(...[...this.entries.values()].map((entry) => this.dueMs(entry)));
    const delayMs = Math.min(Math.max(dueMs - this.clock.nowMs(), TIMER_MIN_MS), TIMER_MAX_MS);
    this.timer = this.clock.setTimer(() => {
      void this.queue.run(() => this.work()).catch((error) => this.crashed(error));
    }, delayMs);
  }

  /** Does what is due, and sets the next timer. */
  private async work(): Promise<void> {
    // Those that waited longest come first: an order that the CA always breaks off must not be the
    // only one that is ever tried.
    for (const entry of [...this.entries.values()].sort((a, b) => a.triedMs - b.triedMs)) {
      if (this.stopping.signal.aborted) return;
      // A reload may have ended the wish while another one was ordered.
      if (this.entries.get(entry.name) !== entry) continue;
      if (entry.unsaved) await this.save(entry);
      const nowMs = this.clock.nowMs();
      if (nowMs < this.outageUntilMs) break;
      if (entry.infoMs <= nowMs) await this.readRenewalInfo(entry);
      if (this.orderMs(entry) <= this.clock.nowMs()) await this.orderUnderLock(entry);
    }
    this.schedule();
  }

  private crashed(error: unknown): void {
    const { message } = asAcmeError(error);
    this.log('error', 'automatic certificates: a task failed', { cause: message });
    // Not at once: what failed without reason would fail again.
    this.outageUntilMs = this.clock.nowMs() + 3_600_000;
    this.schedule();
  }

  /** Asks the CA when it wants the certificate renewed (RFC 9773); without an answer, 2/3 of the lifetime stand. */
  private async readRenewalInfo(entry: Entry): Promise<void> {
    const { facts } = entry.certificate!;
    const { signal } = this.stopping;
    const transport = new Transport(this.settings.caPem, signal);
    try {
      const client = new AcmeClient(this.settings.directoryUrl, generateKey(), transport, this.clock, signal);
      const info = await client.renewalInfo(facts.renewalId!);
      if (info === undefined) {
        entry.infoMs = Number.POSITIVE_INFINITY;
        return;
      }
      entry.infoMs = this.clock.nowMs() + renewalInfoDelayMs(info.retryAfterMs);
      // A time chosen before still stands while it lies in the window (RFC 9773 §4.2).
      if (entry.renewMs >= info.startMs && entry.renewMs < info.endMs) return;
      const latestMs = facts.notBeforeMs + (facts.notAfterMs - facts.notBeforeMs) * LATEST_SHARE;
      entry.renewMs = Math.min(windowTimeMs(info.startMs, info.endMs, this.clock.random()), latestMs);
      this.log('info', 'the CA suggests when to renew', {
        hostnames: list(entry.hostnames),
        renewal: isoTime(entry.renewMs),
        explanation: info.explanationUrl,
      });
    } catch (error) {
      if (signal.aborted) return;
      const { message, retryAfterMs } = asAcmeError(error);
      entry.infoMs = this.clock.nowMs() + renewalInfoDelayMs(retryAfterMs);
      this.log('debug', 'the renewal information cannot be read', {
        hostnames: list(entry.hostnames),
        cause: message,
      });
    } finally {
      transport.close();
    }
  }

  /** Orders with the lock held, unless another gateway has done so meanwhile. */
  private async orderUnderLock(entry: Entry): Promise<void> {
    entry.triedMs = this.clock.nowMs();
    const lost = new AbortController();
    const signal = AbortSignal.any([this.stopping.signal, lost.signal]);
    let lock: StorageLock | undefined;
    try {
      await this.storage.prepare();
      lock = await StorageLock.acquire(
        this.storage.path,
        this.clock,
        signal,
        (owner) => this.log('info', 'another gateway is ordering; waiting for it', { owner }),
        () => lost.abort(lockLost()),
      );
      if (await this.adoptFromStorage(entry)) return;
      await this.order(entry, signal);
    } catch (error) {
      if (this.stopping.signal.aborted) return;
      this.fail(entry, asAcmeError(error), entry.failures + 1);
    } finally {
      await lock?.release();
    }
  }

  /** Whether the storage has what is needed, or says to wait: other gateways share it. */
  private async adoptFromStorage(entry: Entry): Promise<boolean> {
    const stored = await this.storage.readCertificate(entry.hostnames);
    const current = entry.certificate?.facts.fingerprint;
    if (stored !== null && stored.facts.fingerprint !== current && !entry.unsaved) {
      const { notAfterMs } = stored.facts;
      if (notAfterMs > (entry.certificate?.facts.notAfterMs ?? this.clock.nowMs())) {
        this.adopt(entry, stored);
        forgetFailures(entry);
        this.log('info', 'certificate taken from the storage, where another gateway put it', {
          hostnames: list(entry.hostnames),
          notAfter: isoTime(notAfterMs),
        });
        await this.deliver(entry, stored, false);
        if (entry.renewMs > this.clock.nowMs()) return true;
      }
    }
    const retry = await this.storage.readRetry(entry.hostnames);
    if (retry !== null && retry.failures >= entry.failures) adoptRetry(entry, retry);
    return entry.notBeforeMs > this.clock.nowMs();
  }

  private async order(entry: Entry, signal: AbortSignal): Promise<void> {
    // Written before the CA hears anything: a storage that cannot keep a certificate is found out now,
    // and a process that dies here, again and again, still waits longer each time.
    const failures = entry.failures + 1;
    await this.storage.writeRetry(entry.hostnames, this.retryState(failures, 'the gateway ended during the order'));
    const transport = new Transport(this.settings.caPem, signal);
    try {
      const session = await this.openSession(transport, signal);
      this.log('info', 'ordering a certificate', {
        hostnames: list(entry.hostnames),
        challenge: entry.challenge,
        directory: this.settings.directoryUrl,
      });
      const pair = await this.issue(entry, session);
      this.outages = 0;
      forgetFailures(entry);
      const facts = readCertificate(pair);
      this.adopt(entry, { ...pair, facts });
      const lifetimeMs = facts.notAfterMs - facts.notBeforeMs;
      entry.notBeforeMs = this.clock.nowMs() + Math.min(lifetimeMs / 10, ORDER_INTERVAL_MIN_MS);
      entry.unsaved = true;
      await this.save(entry);
      if (this.entries.get(entry.name) === entry) await this.deliver(entry, pair, false);
      this.log('info', 'certificate obtained', {
        hostnames: list(entry.hostnames),
        issuer: facts.issuer,
        fingerprint: facts.fingerprint,
        notAfter: isoTime(facts.notAfterMs),
        renewal: isoTime(entry.renewMs),
      });
    } catch (error) {
      // When the lock was lost, whoever has it now writes the state.
      if (signal.aborted) throw error;
      const failure = asAcmeError(error);
      this.fail(entry, failure, failures);
      const state = { failures: entry.failures, nextAttemptMs: entry.notBeforeMs, cause: failure.message };
      await this.storage.writeRetry(entry.hostnames, state).catch(() => {});
    } finally {
      transport.close();
    }
  }

  /** Orders; once more where the CA no longer knows the account. */
  private async issue(entry: Entry, session: Session): Promise<KeyedCertificate> {
    const { hostnames, challenge, certificate } = entry;
    const request = { hostnames, challenge, replaces: certificate?.facts.renewalId };
    const issue = () => issueCertificate(session.client, request, this.challenges, this.clock.nowMs());
    try {
      return await issue();
    } catch (error) {
      if (asAcmeError(error).problem !== 'accountDoesNotExist') throw error;
      this.log('warn', 'the CA does not know the account any more; it is registered anew');
      await this.register(session);
      return issue();
    }
  }

  private async openSession(transport: Transport, signal: AbortSignal): Promise<Session> {
    const { directoryUrl, email = '' } = this.settings;
    let account = await this.storage.readAccount();
    // The key is on disk before the CA sees it, so that no account is lost to a crash.
    if (account === null) {
      account = { key: generateKey(), url: '', email };
      await this.storage.writeAccount(account);
    }
    const client = new AcmeClient(directoryUrl, account.key, transport, this.clock, signal);
    const session = { client, key: account.key };
    client.accountUrl = account.url;
    if (account.url === '') await this.register(session);
    else if (account.email !== email) {
      await client.updateContact(this.settings.email);
      await this.storage.writeAccount({ ...account, email });
    }
    return session;
  }

  private async register({ client, key }: Session): Promise<void> {
    const { email, termsOfServiceAgreed, externalAccountBinding } = this.settings;
    await client.register(email, termsOfServiceAgreed, externalAccountBinding);
    await this.storage.writeAccount({ key, url: client.accountUrl, email: email ?? '' });
    this.log('info', 'account registered with the CA', { account: client.accountUrl });
  }

  /** Writes an issued certificate; what the CA has given is used even where the disk refuses it. */
  private async save(entry: Entry): Promise<void> {
    try {
      await this.storage.writeCertificate(entry.hostnames, entry.certificate!);
      entry.unsaved = false;
      const state = { failures: 0, nextAttemptMs: entry.notBeforeMs, cause: '' };
      await this.storage.writeRetry(entry.hostnames, state).catch(() => {});
    } catch (error) {
      const { message, advice } = asAcmeError(error);
      this.log('error', 'the certificate is in use but not stored; a restart would need a new one', {
        hostnames: list(entry.hostnames),
        cause: message,
        advice,
      });
    }
  }

  private retryState(failures: number, cause: string): RetryState {
    const delayMs = backoffMs(failures, 'refused', 0, this.clock.random());
    return { failures, nextAttemptMs: this.clock.nowMs() + delayMs, cause };
  }

  /** Says what went wrong, and puts the next attempt off. */
  private fail(entry: Entry, error: AcmeError, failures: number): void {
    const nowMs = this.clock.nowMs();
    // An outage is nobody's failure: it holds all certificates back, and costs none of them its turn.
    const outage = error.kind === 'unreachable' || error.kind === 'storage';
    if (outage) {
      this.outages++;
      this.outageUntilMs = nowMs + backoffMs(this.outages, error.kind, error.retryAfterMs, this.clock.random());
      entry.notBeforeMs = this.outageUntilMs;
    } else {
      this.outages = 0;
      entry.failures = failures;
      entry.notBeforeMs = nowMs + backoffMs(failures, error.kind, error.retryAfterMs, this.clock.random());
    }
    entry.cause = error.message;
    const notAfterMs = entry.certificate?.facts.notAfterMs;
    const lasts = notAfterMs !== undefined && notAfterMs - nowMs > SOON_MS;
    this.log(lasts ? 'warn' : 'error', 'certificate not obtained', {
      hostnames: list(entry.hostnames),
      cause: error.message,
      advice: error.advice,
      failures: outage ? undefined : failures,
      nextAttempt: isoTime(entry.notBeforeMs),
      inUse: notAfterMs === undefined ? 'a self-signed placeholder' : `the one valid until ${isoTime(notAfterMs)}`,
      toTryAtOnce:
        outage || error.kind === 'rateLimited'
          ? undefined
          : `remove ${this.storage.retryPath(entry.hostnames)} and restart`,
    });
  }
}

/** Throws an Error with one sentence unless a certificate can be had for these names by these challenges. */
function checkHostnames(hostnames: readonly string[]): void {
  if (hostnames.length === 0) throw new Error('an automatic certificate needs at least one hostname');
  for (const hostname of hostnames) {
    if (hostname.startsWith('*.')) {
      throw new Error(`no automatic certificate for ${hostname}: CAs want the dns-01 challenge for wildcards`);
    }
    if (!HOSTNAME.test(hostname)) throw new Error(`${JSON.stringify(hostname)} is not a DNS name in lower case`);
  }
  if (new Set(hostnames).size < hostnames.length) throw new Error(`a hostname is there twice: ${list(hostnames)}`);
}

function adoptRetry(entry: Entry, retry: RetryState | null): void {
  if (retry === null) return;
  entry.failures = retry.failures;
  entry.notBeforeMs = retry.nextAttemptMs;
  entry.cause = retry.cause === '' ? undefined : retry.cause;
}

function forgetFailures(entry: Entry): void {
  entry.failures = 0;
  entry.notBeforeMs = 0;
  entry.cause = undefined;
}

function lockLost(): AcmeError {
  const cause = 'the lock of the storage was taken over by another gateway during the order';
  return new AcmeError('storage', cause, 'nothing, once; otherwise see why this process or its disk stands still');
}

function list(hostnames: readonly string[]): string {
  return hostnames.join(',');
}

function isoTime(timeMs: number): string {
  return new Date(timeMs).toISOString();
}
