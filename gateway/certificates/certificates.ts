// Everything about certificates that changes while the gateway runs: files, expiry, ticket keys, and what
// ACME obtains. Tells the app when workers have to hear of it.
// Owned by the control thread.

import type { TlsMaterial } from '../../config/compile-tls.ts';
import type { Config } from '../../config/config.ts';
import type { Violation } from '../../config/validate.ts';
import type { Log } from '../../core/workers/log.ts';
import type { AcmeChallengeSettings } from '../../core/workers/protocol.ts';
import type { CertificateState } from '../admin/state.ts';
import { Challenges } from './challenges.ts';
import { checkCertificateFiles } from './check-files.ts';
import { CertificateStore, type SuppliedCertificate } from './store.ts';
import { ROTATION_INTERVAL_MS, TicketKeyRotation } from './ticket-rotation.ts';
import { FileWatcher, WATCH_TIMES, type WatchTimes } from './watch.ts';

/** What is to be done when something has changed. */
export interface CertificateEvents {
  /** Certificates or authorities may be new: call `reread`, and compile a new snapshot if it says so. */
  changed: () => void;
  /** New ticket keys, newest first, for all workers. */
  ticketKeys: (keys: readonly Uint8Array[]) => void;
  /** All challenges that are open now, for all workers. */
  challenges: (challenges: AcmeChallengeSettings) => void;
}

/** Clocks and times; the defaults are right outside tests. */
export interface CertificateOptions {
  /** Milliseconds since 1970. */
  now?: () => number;
  watch?: WatchTimes;
  rotationIntervalMs?: number;
}

/** The certificates of the gateway. */
export class Certificates {
  /** Challenges of ACME orders; the workers answer them. */
  readonly challenges: Challenges;
  private readonly store: CertificateStore;
  private readonly watcher: FileWatcher;
  private readonly tickets: TicketKeyRotation;
  private events: CertificateEvents | undefined;
  /** Certificates that came from ACME; how many of them the snapshot being made, and the running one, have. */
  private supplies = 0;
  private suppliesPrepared = 0;
  private suppliesInUse = 0;

  constructor(log: Log, options: CertificateOptions = {}) {
    this.store = new CertificateStore(log, options.now);
    this.watcher = new FileWatcher(() => this.look(), options.watch ?? WATCH_TIMES);
    this.tickets = new TicketKeyRotation(
      () => this.events?.ticketKeys(this.tickets.keys),
      options.rotationIntervalMs ?? ROTATION_INTERVAL_MS,
    );
    this.challenges = new Challenges((challenges) => this.events?.challenges(challenges));
  }

  /** For `loadConfigFile`: what is wrong with the files that a configuration names. */
  readonly check = (root: unknown, configFile: string): Violation[] =>
    checkCertificateFiles(root, configFile, this.store);

  /** Tells `events` of changes from now on. */
  listen(events: CertificateEvents): void {
    this.events = events;
  }

  /**
   * Reads what a configuration names, for `compileSnapshot`. Throws an ExitError with one sentence when
   * something cannot be used; what is in use and has turned bad stays as it was, and is logged.
   */
  prepare(config: Config): TlsMaterial {
    this.suppliesPrepared = this.supplies;
    return this.store.prepare(config, this.tickets.keys);
  }

  /** What the files of the running configuration hold, as last read. */
  material(): TlsMaterial {
    this.suppliesPrepared = this.supplies;
    return this.store.material(this.tickets.keys);
  }

  /** The configuration runs: its files are watched, others forgotten. */
  adopt(config: Config): void {
    this.suppliesInUse = this.suppliesPrepared;
    this.watcher.watch(this.store.adopt(config));
    if (config.listeners.some(({ tls }) => tls !== null && !tls.passthrough)) this.tickets.start();
    else this.tickets.stop();
  }

  /** Reads the files in use again, and logs what it finds. Whether a new snapshot is needed. */
  reread(): boolean {
    return this.store.reread() || this.supplies !== this.suppliesInUse;
  }

  /**
   * Takes a certificate that was obtained for names of `listeners[].tls.acme.hostnames`, at the start or
   * later. Throws an Error that says what is wrong with it.
   */
  supply(certificate: SuppliedCertificate): void {
    if (!this.store.supply(certificate)) return;
    this.supplies++;
    this.events?.changed();
  }

  /** Certificates in use. */
  states(): CertificateState[] {
    return this.store.states();
  }

  /** Stops watching and rotating. */
  close(): void {
    this.watcher.close();
    this.tickets.stop();
    this.events = undefined;
  }

  private look(): void {
    this.store.warnOfExpiry();
    this.events?.changed();
  }
}
