// What outlives the process: the account, the certificates, and when to try again.
//
//   STORAGE/<CA>/account.json            account key and URL
//   STORAGE/<CA>/lock                    who is ordering at the moment (lock.ts)
//   STORAGE/<CA>/<name>-<hash>.pem       private key, certificate, chain
//   STORAGE/<CA>/<name>-<hash>.retry     failures so far, time of the next attempt
//
// <CA> is the directory's host and a hash of its URL, so that a change from a staging CA to the real
// one starts afresh. A damaged file is set aside under another name and reported, never deleted.
// Several gateways may share the directory. Control thread only.

import { createHash, createPrivateKey, type KeyObject } from 'node:crypto';
import { readdir, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../core/process/clock.ts';
import { makePrivateDirectory, readText, removeFile, replaceFile, TEMPORARY_MARK } from '../../core/process/files.ts';
import type { Log } from '../../core/workers/log.ts';
import { storageError } from './errors.ts';
import { type CertificateFacts, type KeyedCertificate, keyToPem, readCertificate } from './x509.ts';

/** An account at the CA. */
export interface StoredAccount {
  key: KeyObject;
  /** Empty while it is not registered. */
  url: string;
  /** Empty for none. */
  email: string;
}

/** A certificate from the storage, checked. */
export interface StoredCertificate extends KeyedCertificate {
  facts: CertificateFacts;
}

/** What keeps the next order back. */
export interface RetryState {
  /** Failures in a row; 0: the last order succeeded. */
  failures: number;
  /** No attempt before this time, in milliseconds since 1970. */
  nextAttemptMs: number;
  /** Cause of the last failure; empty for none. */
  cause: string;
}

/** Longest part of a hostname in a file's name; file names end at 255 bytes. */
const NAME_CHARS_MAX = 150;
/** Unfinished files older than this are of a crash. */
const TEMPORARY_AGE_MS = 3_600_000;

/** The part of a storage directory that belongs to one CA. */
export class AcmeStorage {
  /** Where everything is. */
  readonly path: string;
  private readonly log: Log;
  private readonly clock: Clock;
  private warnedMode = false;

  /** Touches nothing yet; call `prepare`. */
  constructor(root: string, directoryUrl: string, log: Log, clock: Clock) {
    const host = new URL(directoryUrl).hostname.replace(/[^a-z0-9.-]/g, '_');
    this.path = join(root, `${host}-${shortHash(directoryUrl)}`);
    this.log = log;
    this.clock = clock;
  }

  /** Makes the directory and removes what crashes left. Throws an AcmeError of kind `storage`. */
  async prepare(): Promise<void> {
    await this.attempt('the storage directory cannot be used', async () => {
      const others = await makePrivateDirectory(this.path);
      if (others !== 0 && !this.warnedMode) {
        this.warnedMode = true;
        this.log('warn', 'other users may look into the storage of certificates and private keys', {
          directory: this.path,
          advice: `chmod 700 ${this.path}`,
        });
      }
      const nowMs = Date.now();
      for (const name of await readdir(this.path)) {
        if (!name.includes(TEMPORARY_MARK)) continue;
        const path = join(this.path, name);
        const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: nowMs }));
        if (nowMs - mtimeMs > TEMPORARY_AGE_MS) await removeFile(path);
      }
    });
  }

  /** The account; null when there is none, or a damaged one. */
  readAccount(): Promise<StoredAccount | null> {
    return this.read('account.json', 'a new account is registered', (text) => {
      const { privateKey, url, email } = JSON.parse(text) as Record<string, unknown>;
      if (typeof url !== 'string' || typeof email !== 'string') throw new Error('it lacks url or email');
      const key = createPrivateKey(String(privateKey));
      if (key.asymmetricKeyDetails?.namedCurve !== 'prime256v1') throw new Error('its key is not ECDSA P-256');
      return { key, url, email };
    });
  }

  /** Writes the account. Throws an AcmeError of kind `storage`, as all writes do. */
  async writeAccount({ key, url, email }: StoredAccount): Promise<void> {
    await this.write('account.json', `${JSON.stringify({ privateKey: keyToPem(key), url, email }, null, 2)}\n`);
  }

  /** The certificate for exactly these hostnames; null when there is none, or a damaged one. */
  readCertificate(hostnames: readonly string[]): Promise<StoredCertificate | null> {
    return this.read(`${certificateName(hostnames)}.pem`, 'a new certificate is ordered', (text) => {
      const keyEnd = text.indexOf('-----BEGIN CERTIFICATE-----');
      if (keyEnd < 0) throw new Error('it holds no certificate');
      const pair = { keyPem: text.slice(0, keyEnd), chainPem: text.slice(keyEnd) };
      const facts = readCertificate(pair);
      const missing = hostnames.find((hostname) => !facts.hostnames.includes(hostname));
      if (missing !== undefined) throw new Error(`its certificate is not for ${missing}`);
      return { ...pair, facts };
    });
  }

  /** Writes a certificate with its key, both in one file so that they cannot part. */
  async writeCertificate(hostnames: readonly string[], { keyPem, chainPem }: KeyedCertificate): Promise<void> {
    await this.write(`${certificateName(hostnames)}.pem`, `${keyPem.trimEnd()}\n${chainPem.trimEnd()}\n`);
  }

  /** What is known of failures; null for none. */
  readRetry(hostnames: readonly string[]): Promise<RetryState | null> {
    return this.read(`${certificateName(hostnames)}.retry`, 'failures before it are forgotten', (text) => {
      const { failures, nextAttemptMs, cause } = JSON.parse(text) as Record<string, unknown>;
      if (!Number.isSafeInteger(failures) || typeof nextAttemptMs !== 'number') throw new Error('it lacks a number');
      return { failures: failures as number, nextAttemptMs, cause: String(cause) };
    });
  }

  /** Writes what is known of failures. */
  async writeRetry(hostnames: readonly string[], state: RetryState): Promise<void> {
    await this.write(`${certificateName(hostnames)}.retry`, `${JSON.stringify(state, null, 2)}\n`);
  }

  /** Path of the file that keeps the next attempt back, for the log. */
  retryPath(hostnames: readonly string[]): string {
    return join(this.path, `${certificateName(hostnames)}.retry`);
  }

  /** Reads and checks a file; one that fails the check is set aside. `consequence` is for the log. */
  private async read<T>(name: string, consequence: string, parse: (text: string) => T): Promise<T | null> {
    const path = join(this.path, name);
    const text = await this.attempt('a file cannot be read', () => readText(path));
    if (text === null) return null;
    try {
      return parse(text);
    } catch (error) {
      await this.setAside(path, error as Error, consequence);
      return null;
    }
  }

  private async setAside(path: string, error: Error, consequence: string): Promise<void> {
    const aside = `${path}.damaged-${new Date(this.clock.nowMs()).toISOString().replace(/[:.]/g, '')}`;
    // A read-only storage cannot even do this; the file is then found damaged again, and said so again.
    const moved = await rename(path, aside).then(
      () => true,
      () => false,
    );
    this.log('warn', 'a file in the ACME storage is damaged', {
      file: path,
      // A parser's message quotes the text, which may be a private key.
      cause: error instanceof SyntaxError ? 'it is not JSON' : error.message,
      consequence,
      keptAs: moved ? aside : undefined,
    });
  }

  private write(name: string, text: string): Promise<void> {
    return this.attempt('a file cannot be written', () => replaceFile(join(this.path, name), text));
  }

  private async attempt<T>(what: string, action: () => Promise<T>): Promise<T> {
    try {
      return await action();
    } catch (error) {
      throw storageError(what, this.path, error as NodeJS.ErrnoException);
    }
  }
}

/** Name, without ending, of the files for a set of hostnames; their order does not matter. */
export function certificateName(hostnames: readonly string[]): string {
  const sorted = [...hostnames].sort();
  return `${sorted[0]!.slice(0, NAME_CHARS_MAX)}-${shortHash(sorted.join())}`;
}

function shortHash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12);
}
