// Automatic certificates of the running configuration: which ones its listeners want, and the manager
// that obtains them. Certificates go to the certificate store, challenges to the workers.
//
//   prepare(config) --> delivered from storage, or placeholders --> adopt(config) --> ordered
//
// Owned by the control thread. Invariant: at most one manager works; another account or CA replaces it.

import { readFileSync } from 'node:fs';
import type { AcmeConfig, Config } from '../../config/config.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import type { Log } from '../../core/workers/log.ts';
import type { Certificates } from '../certificates/certificates.ts';
import { AcmeManager, type WantedCertificate } from './manager.ts';

/** Connects an AcmeManager with the gateway. */
export class AcmeCertificates {
  private readonly certificates: Certificates;
  private readonly log: Log;
  private manager: AcmeManager | undefined;
  /** The account that `manager` works for, as text. */
  private account = '';

  constructor(certificates: Certificates, log: Log) {
    this.certificates = certificates;
    this.log = log;
  }

  /**
   * Has what a configuration wants delivered, from storage or as placeholders, before it is compiled.
   * Uses no network. Throws an ExitError with one sentence when the account's settings cannot be used.
   */
  async prepare(config: Config): Promise<void> {
    const wanted = wantedBy(config);
    if (config.acme === null || wanted.length === 0) {
      await this.stop();
      return;
    }
    const account = JSON.stringify(config.acme);
    if (account !== this.account) {
      await this.stop();
      this.manager = this.open(config.acme);
      this.account = account;
    }
    try {
      await this.manager!.load(wanted);
    } catch (error) {
      throw new ExitError(ExitCode.CONFIG_INVALID, `acme: ${(error as Error).message}.`);
    }
  }

  /** The configuration runs and listeners accept: what is due is ordered from now on. */
  start(): void {
    this.manager?.start();
  }

  /** Ends a running order and takes its challenges back. */
  async stop(): Promise<void> {
    const { manager } = this;
    this.manager = undefined;
    this.account = '';
    await manager?.stop();
  }

  private open(config: AcmeConfig): AcmeManager {
    try {
      return new AcmeManager({
        settings: {
          directoryUrl: config.directory,
          storage: config.storage,
          termsOfServiceAgreed: true, // Required by the schema.
          ...(config.email === null ? {} : { email: config.email }),
          ...(config.externalAccount === null ? {} : { externalAccountBinding: config.externalAccount }),
          ...(config.caFile === null ? {} : { caPem: readFileSync(config.caFile, 'utf8') }),
        },
        challenges: this.certificates.challenges,
        onCertificate: (certificate) => this.certificates.supply(certificate),
        log: this.log,
      });
    } catch (error) {
      throw new ExitError(ExitCode.CONFIG_INVALID, `acme: ${(error as Error).message}.`);
    }
  }
}

/** One certificate for each listener with names of its own; listeners with the same names share it. */
function wantedBy(config: Config): WantedCertificate[] {
  return config.listeners.flatMap(({ tls }) => (tls === null || tls.acme === null ? [] : [tls.acme]));
}
