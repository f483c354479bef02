// Who is asking, and which identities that caller may have certificates for.
//
// An attestor looks at one kind of evidence (a join token, a service-account token, the certificate of an
// earlier issuance); callers are tried against several in turn. The control plane's xDS server asks
// the same attestors. Control thread only.

import type { X509Certificate } from 'node:crypto';
import { IdentityError } from './errors.ts';
import {
  formatNodeIdentity,
  formatWorkloadIdentity,
  nodeOfIdentity,
  parseSpiffeId,
  parseWorkloadIdentity,
} from './spiffe.ts';

/** What a caller brings along. */
export interface Evidence {
  /** First value of a request header (gRPC metadata) by its lower-case name; undefined: not sent. */
  header(name: string): string | undefined;
  /** The client's certificate, verified against the trust bundle by TLS; undefined: none, or not verified. */
  peerCertificate?: X509Certificate | undefined;
}

/** What an authenticated caller may ask for. */
export interface Caller {
  /** For logs and status: which evidence, of whom; never a secret. */
  name: string;
  /** SPIFFE ids that it may have certificates for. The first is its own. */
  identities: readonly string[];
  /** Namespaces in which it may have any service account's. */
  namespaces: readonly string[];
  /** The node whose proxy it is: it may have the node's identity, and those of workloads that run there. */
  node: string | null;
  /**
   * Counts one use of evidence that can be used up, before anything is signed; rejects with
   * `unauthenticated` when nothing is left. What it resolves to gives the use back.
   */
  claim?: () => Promise<() => Promise<void>>;
}

/** One way to find out who a caller is. */
export interface Attestor {
  /**
   * The caller; null when the evidence is not of this attestor's kind. Rejects with an IdentityError
   * `unauthenticated` for evidence of its kind that does not hold, and `ca-unreachable` when it cannot be judged now.
   */
  authenticate(evidence: Evidence): Promise<Caller | null>;
}

/** Whether a workload of the identity runs on the node, as far as the control plane knows. */
export type RunsOnNode = (node: string, identity: string) => boolean | Promise<boolean>;

/** Who a service-account token is for, as the Kubernetes API server says. */
export interface ServiceAccountReview {
  namespace: string;
  serviceAccount: string;
  /** The pod that the token is bound to; empty: to none. */
  pod: string;
  /** The node of that pod; empty: unknown. */
  node: string;
}

/** Asks the Kubernetes API server about a token (TokenReview). */
export interface TokenReviewer {
  /** Rejects with an IdentityError: `unauthenticated` for a bad token, `ca-unreachable` when there was no answer. */
  review(token: string): Promise<ServiceAccountReview>;
}

/** Tries attestors in turn; the first that knows the kind of evidence decides. Rejects when none does. */
export async function authenticate(attestors: readonly Attestor[], evidence: Evidence): Promise<Caller> {
  for (const attestor of attestors) {
    const caller = await attestor.authenticate(evidence);
    if (caller !== null) return caller;
  }
  throw new IdentityError(
    'unauthenticated',
    'the caller brought neither a token nor a certificate of this mesh',
    'give the node a join token, or its service-account token',
  );
}

/**
 * Refuses an identity that a caller may not have, with `identity-not-allowed`; `spiffe-id` for one that is
 * no workload's or node's. The answer does not say what runs where. `isBlocked`: identities that nobody may have.
 */
export async function authorise(
  caller: Caller,
  identity: string,
  trustDomain: string,
  runsOnNode: RunsOnNode,
  isBlocked: (identity: string) => boolean = () => false,
): Promise<void> {
  if (parseSpiffeId(identity).trustDomain !== trustDomain) {
    throw new IdentityError('identity-not-allowed', `${identity} is not of the trust domain ${trustDomain}`);
  }
  // Of the identity, not of who asks: the nodes of a workload that is locked out are in good standing.
  if (isBlocked(identity)) {
    throw new IdentityError('identity-not-allowed', `${identity} is blocked (attestation.blockedIdentities)`);
  }
  const node = nodeOfIdentity(identity);
  const namespace = node === null ? parseWorkloadIdentity(identity).namespace : null;
  if (caller.identities.includes(identity)) return;
  if (namespace !== null && caller.namespaces.includes(namespace)) return;
  if (caller.node !== null) {
    if (node === caller.node) return;
    if (namespace !== null && (await runsOnNode(caller.node, identity))) return;
  }
  throw new IdentityError('identity-not-allowed', `${caller.name} may not have a certificate for ${identity}`);
}

/** The token of an `authorization: Bearer` header; undefined: none. */
export function bearerToken(evidence: Evidence): string | undefined {
  const value = evidence.header('authorization');
  if (value === undefined || !/^bearer /i.test(value)) return undefined;
  return value.slice(7).trim();
}

/**
 * Callers with a certificate of this mesh: each may have its own identity again, and a node those of
 * its workloads. TLS has verified the certificate at the handshake, so that it may have run out since.
 */
export class CertificateAttestor implements Attestor {
  private readonly trustDomain: string;
  private readonly isBlocked: (identity: string) => boolean;
  private readonly nowMs: () => number;

  /**
   * `isBlocked`: identities that may not be renewed any more, such as those of a node that was taken out of the
   * mesh; there is no other way to end them. `nowMs`: milliseconds since 1970.
   */
  constructor(
    trustDomain: string,
    isBlocked: (identity: string) => boolean = () => false,
    nowMs: () => number = Date.now,
  ) {
    this.trustDomain = trustDomain;
    this.isBlocked = isBlocked;
    this.nowMs = nowMs;
  }

  /** See Attestor. A bearer token goes before the certificate: it is the newer evidence. */
  async authenticate(evidence: Evidence): Promise<Caller | null> {
    const { peerCertificate } = evidence;
    if (peerCertificate === undefined || bearerToken(evidence) !== undefined) return null;
    const identity = identityOfPeer(peerCertificate);
    if (identity === null || parseSpiffeId(identity).trustDomain !== this.trustDomain) return null;
    if (Date.parse(peerCertificate.validTo) < this.nowMs()) {
      throw new IdentityError('unauthenticated', `the certificate of ${identity} has expired since it connected`);
    }
    if (this.isBlocked(identity)) throw new IdentityError('unauthenticated', `${identity} is blocked`);
    return { name: identity, identities: [identity], namespaces: [], node: nodeOfIdentity(identity) };
  }
}

/** Callers with a Kubernetes service-account token. */
export class ServiceAccountAttestor implements Attestor {
  private readonly trustDomain: string;
  private readonly reviewer: TokenReviewer;
  private readonly nodeAccounts: ReadonlySet<string>;
  private readonly isBlocked: (identity: string) => boolean;

  /**
   * `nodeAccounts`: service accounts of node proxies, as `namespace/name`; only they speak for a node. `isBlocked`: as of
   * CertificateAttestor.
   */
  constructor(
    trustDomain: string,
    reviewer: TokenReviewer,
    nodeAccounts: readonly string[],
    isBlocked: (identity: string) => boolean = () => false,
  ) {
    this.trustDomain = trustDomain;
    this.reviewer = reviewer;
    this.nodeAccounts = new Set(nodeAccounts);
    this.isBlocked = isBlocked;
  }

  /** See Attestor. Takes every bearer token that looks like a JWT; join tokens do not. */
  async authenticate(evidence: Evidence): Promise<Caller | null> {
    const token = bearerToken(evidence);
    if (token === undefined || token.split('.').length !== 3) return null;
    const { namespace, serviceAccount, pod, node } = await this.reviewer.review(token);
    const account = `${namespace}/${serviceAccount}`;
    const isNode = node !== '' && this.nodeAccounts.has(account);
    const own = formatWorkloadIdentity({ trustDomain: this.trustDomain, namespace, serviceAccount });
    const identities = isNode ? [own, formatNodeIdentity(this.trustDomain, node)] : [own];
    // Or whoever is locked out would come in again with a token, which the kubelet goes on renewing.
    const blocked = identities.find(this.isBlocked);
    if (blocked !== undefined) throw new IdentityError('unauthenticated', `${blocked} is blocked`);
    return {
      name: `service account ${account}${pod === '' ? '' : ` in pod ${pod}`}`,
      identities,
      namespaces: [],
      node: isNode ? node : null,
    };
  }
}

/** The one SPIFFE id of a verified peer certificate; null: none or several, which SPIFFE forbids. */
export function identityOfPeer(certificate: X509Certificate): string | null {
  // Node.js quotes a name with a comma or quote in it; none of those is an identity.
  const uris = (certificate.subjectAltName ?? '').split(', ').filter((name) => name.startsWith('URI:'));
  if (certificate.ca || uris.length !== 1) return null;
  const identity = uris[0]!.slice('URI:'.length);
  try {
    parseSpiffeId(identity);
  } catch {
    return null;
  }
  return identity;
}
