// The node proxy's side of trust bundles: takes them, and says when they are in use and what certificates lead to.
//
// Control thread of the node proxy. A bundle is confirmed when everything that verifies has it, not when it has
// arrived: the control plane lets another root sign on the strength of that. Bundles are taken one after another.

import type { Log } from '../../core/workers/log.ts';
import { bundleFromJson, bundleToJson, type TrustBundle } from '../identity/trust-bundle.ts';
import type { TrustStore } from '../identity/trust-store.ts';
import { type DeltaResponse, type ResourceMessage, TRUST_TYPE, trustCodec } from './protocol.ts';

/** What a proxy has to do with trust. */
export interface ProxyTrust {
  /** Where bundles go. One without a file of its own is kept in the client's state file. */
  store: TrustStore;
  /**
   * Puts a bundle to use wherever certificates are verified (the workers of a proxy); it is confirmed when this
   * resolves, and refused with the error's message when it rejects. Absent: listeners of the store do it at once.
   */
  use?: (bundle: TrustBundle) => Promise<void>;
  /** Ids of the roots that the certificates in use lead to, such as `WorkloadCertificates.rootsInUse`. */
  rootsInUse: () => readonly string[];
  /** Calls back when that may have changed, such as `WorkloadCertificates.onChange`; returns what ends it. */
  onRootsChange: (listener: () => void) => () => void;
}

/** How often issuers are looked at without an event: a certificate that is given up tells nobody. */
const ISSUERS_CHECK_MS = 10_000;

/** What the receiver needs of the client that it belongs to. */
export interface TrustReceiverOptions {
  trust: ProxyTrust;
  trustDomain: string;
  log: Log;
  /** Says something on the present stream: an answer to the response with this nonce, or only issuers (empty nonce). */
  say: (issuers: string, nonce: string, refusal: string | null) => void;
  /** A bundle was taken (null), or refused for this reason. */
  taken: (refusal: string | null) => void;
}

/** Takes bundles for one proxy. */
export class TrustReceiver {
  private readonly options: TrustReceiverOptions;
  private readonly trust: ProxyTrust;
  private readonly trustDomain: string;
  private readonly log: Log;
  private readonly unsubscribe: () => void;
  private readonly timer: NodeJS.Timeout;
  private work: Promise<unknown> = Promise.resolve();
  /** Counts streams: an answer belongs to the one that the bundle came on. */
  private stream = 0;
  /** Issuers as the present stream was told; null: it waits for the answer to its first bundle. */
  private told: string | null = null;
  private closed = false;

  constructor(options: TrustReceiverOptions) {
    this.options = options;
    this.trust = options.trust;
    this.trustDomain = options.trustDomain;
    this.log = options.log;
    this.unsubscribe = options.trust.onRootsChange(() => this.tell());
    this.timer = setInterval(() => this.tell(), ISSUERS_CHECK_MS).unref();
  }

  /** The stream is over. */
  lost(): void {
    this.stream++;
    this.told = null;
  }

  /** Nothing is said any more. */
  close(): void {
    this.closed = true;
    this.unsubscribe();
    clearInterval(this.timer);
  }

  /** Takes the bundle that an earlier process has kept, unless the store has a newer one. */
  async load(resource: ResourceMessage): Promise<void> {
    try {
      const json = jsonOf(resource, this.trustDomain);
      const { sequence } = bundleFromJson(this.trustDomain, json);
      if (sequence > this.trust.store.current.sequence) await this.trust.store.apply(json);
    } catch (error) {
      this.log('warn', 'the trust bundle of the saved state is not used', { problem: (error as Error).message });
    }
  }

  /** Takes a response in, and answers when it is in use, or why it is not; the bundle before stays then. */
  receive({ nonce, resources }: DeltaResponse): void {
    const { stream } = this;
    this.work = this.work.then(async () => {
      const refusal = await this.take(resources);
      if (this.closed) return;
      this.options.taken(refusal);
      if (this.stream !== stream) return;
      this.told = this.issuers();
      this.options.say(this.told, nonce, refusal);
    });
  }

  /** The present bundle, to be kept. */
  saved(): ResourceMessage {
    const { store } = this.trust;
    const value = trustCodec.encode({ json: Buffer.from(bundleToJson(store.current)) });
    const version = String(store.current.sequence);
    return { name: this.trustDomain, version, aliases: [], resource: { type_url: TRUST_TYPE, value } };
  }

  /** Ids of the roots that certificates lead to, as they are said to the control plane. */
  private issuers(): string {
    return [...this.trust.rootsInUse()].sort().join(',');
  }

  /** Says which roots certificates lead to, when that is another thing than was said. */
  private tell(): void {
    const issuers = this.issuers();
    if (this.told === null || this.told === issuers) return;
    this.told = issuers;
    this.options.say(issuers, '', null);
  }

  private async take(resources: readonly ResourceMessage[]): Promise<string | null> {
    const { store, use } = this.trust;
    try {
      for (const resource of resources) {
        if (await store.apply(jsonOf(resource, this.trustDomain))) {
          const { sequence, roots, issuer } = store.current;
          this.log('info', 'trust bundle taken', { sequence, roots: roots.map(({ id }) => id).join(), issuer });
        }
      }
      await use?.(store.current);
      return null;
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.log('error', 'trust bundle refused, the one before stays', { reason });
      return reason;
    }
  }
}

/** Throws an Error for a resource that is no bundle of the trust domain. */
function jsonOf({ name, resource }: ResourceMessage, trustDomain: string): string {
  if (name !== trustDomain) throw new Error(`it is of the trust domain ${name}`);
  if (resource === null || resource.type_url !== TRUST_TYPE) throw new Error('it is not a trust bundle');
  return Buffer.from(trustCodec.decode(resource.value).json).toString('utf8');
}
