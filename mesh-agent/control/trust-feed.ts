// Trust bundles for proxies, and what they say to them, for the rotation of the root.
//
// Control thread of the control plane. The bundle is one resource of a type of its own, beside the versions of
// the mesh: a proxy that is slow to take it does not hold those up. A node counts as one proxy, by the name that was
// proven and not by the one that it claims: of several streams of a node (an old proxy and its successor, a
// connection that is dead but not yet noticed) all have to confirm.
//
//   connected --subscribe--> sent --ack with issuers--> confirmed --other issuers--> confirmed
//                             |  ^                          | a new bundle
//                             +--+---- nack: refused <------+ (sent)

import type { TrustBundle } from '../identity/trust-bundle.ts';
import { bundleToJson } from '../identity/trust-bundle.ts';
import {
  type DeltaRequest,
  ISSUERS_METADATA,
  lengthDelimited,
  resourceCodec,
  TRUST_TYPE,
  trustCodec,
} from './protocol.ts';

/** Most roots that a proxy says its certificates lead to: as many as a bundle has. */
const ISSUERS_MAX = 16;
const ISSUER = /^[0-9a-f]{16}$/;

/** Longest reason of a refusal that is kept. */
const REASON_LENGTH_MAX = 1000;

/** What the feed needs of the CA; MeshAuthority is one. */
export interface TrustSource {
  readonly bundle: TrustBundle;
  onBundle(listener: (bundle: TrustBundle) => void): () => void;
  proxyConnected(proxy: string): void;
  proxyConfirmed(proxy: string, sequence: number, issuers: readonly string[]): void;
  proxyRefused(proxy: string, reason: string): void;
  proxyGone(proxy: string): void;
}

/** Sends the trust bundle to all streams, and tells the CA what their nodes say. */
export class TrustFeed {
  private readonly source: TrustSource;
  private readonly nodes = new Map<string, Set<TrustStream>>();
  private readonly unsubscribe: () => void;
  private encoded: { sequence: number; item: Buffer } | undefined;
  private closed = false;

  constructor(source: TrustSource) {
    this.source = source;
    this.unsubscribe = source.onBundle(() => {
      this.encoded = undefined;
      for (const streams of this.nodes.values()) for (const stream of streams) stream.pump();
    });
  }

  /** A proxy of a node has connected. To be called before it is sent anything. */
  connect(node: string, send: (bytes: Buffer) => void): TrustStream {
    const stream = new TrustStream(this, node, send);
    const streams = this.nodes.get(node);
    if (streams === undefined) this.nodes.set(node, new Set([stream]));
    else streams.add(stream);
    if (!this.closed) this.source.proxyConnected(node);
    return stream;
  }

  /** The stream has ended. */
  disconnect(stream: TrustStream): void {
    const { node } = stream;
    const streams = this.nodes.get(node);
    if (streams?.delete(stream) !== true || this.closed) return;
    if (streams.size > 0) {
      this.report(node);
      return;
    }
    this.nodes.delete(node);
    this.source.proxyGone(node);
  }

  /** The CA is told nothing from now on. */
  close(): void {
    this.closed = true;
    this.unsubscribe();
  }

  /** The present bundle as an item of `resources`, encoded once. */
  present(): { sequence: number; item: Buffer } {
    if (this.encoded === undefined) {
      const { bundle } = this.source;
      const value = trustCodec.encode({ json: Buffer.from(bundleToJson(bundle)) });
      const { sequence, trustDomain: name } = bundle;
      const resource = { type_url: TRUST_TYPE, value };
      const bytes = resourceCodec.encode({ name, version: String(sequence), aliases: [], resource });
      this.encoded = { sequence, item: lengthDelimited(2, bytes) };
    }
    return this.encoded;
  }

  /** Tells the CA where a node stands, as far as all of its streams have said. */
  report(node: string): void {
    if (this.closed) return;
    const streams = [...(this.nodes.get(node) ?? [])];
    const refusal = streams.find((stream) => stream.refusal !== '')?.refusal;
    if (refusal !== undefined) {
      this.source.proxyRefused(node, refusal);
      return;
    }
    const issuers = new Set<string>();
    let sequence = Number.POSITIVE_INFINITY;
    for (const stream of streams) {
      if (stream.confirmed === 0 || stream.issuers === null) return;
      sequence = Math.min(sequence, stream.confirmed);
      for (const id of stream.issuers) issuers.add(id);
    }
    this.source.proxyConfirmed(node, sequence, [...issuers].sort());
  }
}

/** One stream's subscription to the bundle. */
export class TrustStream {
  readonly node: string;
  /** Sequence of the bundle that it has confirmed; 0: none. */
  confirmed = 0;
  /** Roots that its certificates lead to; null: it has not said. */
  issuers: readonly string[] | null = null;
  /** Why it does not take the bundle that it was sent last; empty: it has not refused it. */
  refusal = '';
  private readonly feed: TrustFeed;
  private readonly send: (bytes: Buffer) => void;
  private subscribed = false;
  private nonces = 0;
  private sentSequence = -1;
  private outstanding: string | null = null;

  constructor(feed: TrustFeed, node: string, send: (bytes: Buffer) => void) {
    this.feed = feed;
    this.node = node;
    this.send = send;
  }

  /** A request about the bundle has arrived. */
  recvRequest({ node, responseNonce, errorDetail }: DeltaRequest): void {
    this.subscribed = true;
    const issuers = issuersOf(node?.metadata?.fields[ISSUERS_METADATA]?.stringValue);
    let said = issuers !== null;
    if (issuers !== null) this.issuers = issuers;
    // An answer to anything but the last response is about something that has been overtaken.
    if (responseNonce !== '' && responseNonce === this.outstanding) {
      this.outstanding = null;
      said = true;
      if (errorDetail === null) this.confirmed = this.sentSequence;
      else this.refusal = errorDetail.message.slice(0, REASON_LENGTH_MAX) || 'it does not say why';
    }
    if (said) this.feed.report(this.node);
    this.pump();
  }

  /** Sends the present bundle, unless it was sent already or an answer is still to come. */
  pump(): void {
    if (!this.subscribed || this.outstanding !== null) return;
    const { sequence, item } = this.feed.present();
    if (sequence === this.sentSequence) return;
    this.sentSequence = sequence;
    this.refusal = '';
    this.outstanding = `trust-${++this.nonces}`;
    const text = (field: number, value: string): Buffer => lengthDelimited(field, Buffer.from(value));
    this.send(Buffer.concat([text(1, String(sequence)), item, text(4, TRUST_TYPE), text(5, this.outstanding)]));
  }
}

/** Null: it says nothing, or nothing that could be so. */
function issuersOf(text: string | undefined): string[] | null {
  if (text === undefined) return null;
  const ids = text.split(',').filter((id) => id !== '');
  return ids.length <= ISSUERS_MAX && ids.every((id) => ISSUER.test(id)) ? ids : null;
}
