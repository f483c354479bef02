// What a request is routed by. One per worker, filled for each request before the look-up.
//
// Most tables look at listener, host and path alone; the rest is looked at only where a rule has a
// condition on it, and `client` only has to be set for tables that say so (RouteTable.needsClient).
// Everything lies in `memory`, which belongs to the caller, and is read during the look-up only.
// Hot module: plain fields.

import type { RequestHead } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';

/** What routes ask of a client's certificate. Texts are bytes. */
export interface RouteCertificate {
  /** The chain leads to a trusted authority; otherwise the certificate counts for nothing. */
  readonly verified: boolean;
  /** Names of every kind; DNS names in lower case, IP addresses in their shortest form. */
  readonly subjectAltNames: readonly Uint8Array[];
  /** SHA-256 of the certificate, lower-case hexadecimal. */
  readonly sha256Bytes: Uint8Array;
}

/** One request as the route table sees it. */
export class RouteRequest {
  readonly memory: Uint8Array;
  /** Method, target and fields of the request. */
  readonly head: RequestHead;
  /** Index in `Snapshot.listeners`. */
  listener = 0;
  /** Host without port. Length 0 matches only routes without hostnames. */
  hostOffset = 0;
  hostLength = 0;
  /** Path without query. Length 0 means "/" (RFC 9112 §3.2.2, §3.2.3). */
  pathOffset = 0;
  pathLength = 0;
  /** What the client has shown; null: nothing. */
  certificate: RouteCertificate | null = null;
  /** The client's address; null: not known, and in no network. */
  client: PeerAddress | null = null;
  /**
   * After a look-up that has found a rule: bytes of the path that a PathPrefix match took, without a
   * slash at their end; -1 when the path was matched as a whole (Exact, RegularExpression).
   */
  prefixLength = -1;

  /** `memory` and `head` stay the same for all requests of a worker. */
  constructor(memory: Uint8Array, head: RequestHead) {
    this.memory = memory;
    this.head = head;
  }
}
