// The trust bundle of a node: what it has, what replaces it, and what remains across a restart.
//
// Bundles only move forward. Control thread of a node.

import type { Log } from '../../core/workers/log.ts';
import { IdentityError } from './errors.ts';
import { splitCertificates } from './pem.ts';
import { readPrivateFile, writePrivateFile } from './private-files.ts';
import { bundleFromJson, bundleToJson, makeTrustBundle, sameContent, type TrustBundle } from './trust-bundle.ts';

/** Holds the bundle that a node verifies with. */
export class TrustStore {
  private readonly path: string | null;
  private readonly log: Log;
  private readonly listeners = new Set<(bundle: TrustBundle) => void>();
  private bundle: TrustBundle;

  private constructor(bundle: TrustBundle, path: string | null, log: Log) {
    this.bundle = bundle;
    this.path = path;
    this.log = log;
  }

  /**
   * Opens the store with the roots that the node was installed with (PEM), or with a later bundle that an earlier
   * process left at `path` in a private directory; null: nothing is kept. Rejects with an IdentityError.
   */
  static async open(trustDomain: string, rootsPem: string, path: string | null, log: Log): Promise<TrustStore> {
    const text = path === null ? null : await readPrivateFile(path);
    if (text !== null) {
      try {
        return new TrustStore(bundleFromJson(trustDomain, text), path, log);
      } catch (error) {
        log('warn', 'the stored trust bundle is damaged; the roots of the installation are used', {
          file: path ?? undefined,
          cause: (error as Error).message,
        });
      }
    }
    return new TrustStore(makeTrustBundle(trustDomain, 0, splitCertificates(rootsPem)), path, log);
  }

  /** The bundle to verify with. */
  get current(): TrustBundle {
    return this.bundle;
  }

  /**
   * Takes a bundle, as it came from the control plane: whether it is new. It is in use when this resolves, and
   * may be confirmed once all listeners have acted on it. Rejects with an IdentityError: `bundle-malformed`,
   * `bundle-stale`; the old bundle stays.
   */
  async apply(json: string): Promise<boolean> {
    const bundle = bundleFromJson(this.bundle.trustDomain, json);
    const { sequence } = this.bundle;
    if (bundle.sequence < sequence) {
      throw new IdentityError(
        'bundle-stale',
        `trust bundle ${bundle.sequence} is older than ${sequence}, which is in use`,
      );
    }
    if (bundle.sequence === sequence) {
      if (sameContent(bundle, this.bundle)) return false;
      throw new IdentityError('bundle-stale', `trust bundle ${sequence} is in use with other roots`);
    }
    this.bundle = bundle;
    for (const listener of this.listeners) listener(bundle);
    if (this.path !== null) {
      await writePrivateFile(this.path, bundleToJson(bundle)).catch((error: Error) => {
        this.log('error', 'the trust bundle cannot be stored', { cause: error.message });
      });
    }
    return true;
  }

  /** Calls back with every new bundle; returns what ends that. */
  onChange(listener: (bundle: TrustBundle) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}
