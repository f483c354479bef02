// SPIFFE ids: the names of workloads and nodes in certificates and policies.
//
//   spiffe://<trust domain>/ns/<namespace>/sa/<service account>    a workload (the form of Kubernetes and Istio)
//   spiffe://<trust domain>/node/<name>                            a node proxy itself
//
// Only what is already in its one normal form is taken: an id that could be written in two ways could
// pass one check and fail the other. Control threads only.
// Spec: SPIFFE-ID §2.1 (trust domain), §2.2 (path), §2.3 (length); names as Kubernetes has them (RFC 1123).

import { IdentityError } from './errors.ts';

/** Longest id in bytes (SPIFFE-ID §2.3). */
const SPIFFE_ID_BYTES_MAX = 2048;
/** Longest trust domain in bytes (SPIFFE-ID §2.3). */
const TRUST_DOMAIN_BYTES_MAX = 255;

const SCHEME = 'spiffe://';
const TRUST_DOMAIN = /^[a-z0-9._-]+$/;
const SEGMENT = /^[A-Za-z0-9._-]+$/;
/** DNS label (RFC 1123): names of namespaces. */
const LABEL = /^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$/;
const SUBDOMAIN_BYTES_MAX = 253;

/** A SPIFFE id in its parts. */
export interface SpiffeId {
  trustDomain: string;
  /** Segments of the path; none: the trust domain itself, as in CA certificates. */
  segments: readonly string[];
}

/** The identity of a workload: the service account that it runs as. */
export interface WorkloadIdentity {
  trustDomain: string;
  namespace: string;
  serviceAccount: string;
}

/** Takes a SPIFFE id apart. Throws an IdentityError `spiffe-id` that says what is wrong with it. */
export function parseSpiffeId(text: string): SpiffeId {
  if (text.length > SPIFFE_ID_BYTES_MAX) throw refusal(text, `it is longer than ${SPIFFE_ID_BYTES_MAX} bytes`);
  if (!text.startsWith(SCHEME)) throw refusal(text, `it does not begin with ${SCHEME}`);
  const [trustDomain = '', ...segments] = text.slice(SCHEME.length).split('/');
  checkTrustDomain(trustDomain, text);
  for (const segment of segments) {
    if (segment === '') throw refusal(text, 'its path has an empty segment');
    if (segment === '.' || segment === '..') throw refusal(text, `its path has a segment "${segment}"`);
    if (!SEGMENT.test(segment)) {
      throw refusal(text, 'its path has a character other than letters, digits, ".", "-" and "_"');
    }
  }
  return { trustDomain, segments };
}

/** Checks the name of a trust domain; returns it. Throws an IdentityError `spiffe-id`. */
export function parseTrustDomain(name: string): string {
  checkTrustDomain(name, name);
  return name;
}

/** The workload that an id names. Throws an IdentityError `spiffe-id` for every other form of id. */
export function parseWorkloadIdentity(text: string): WorkloadIdentity {
  const { trustDomain, segments } = parseSpiffeId(text);
  const [ns, namespace = '', sa, serviceAccount = ''] = segments;
  if (segments.length !== 4 || ns !== 'ns' || sa !== 'sa') {
    throw refusal(text, 'its path is not of the form /ns/<namespace>/sa/<service account>');
  }
  if (!isNamespaceName(namespace)) throw refusal(text, 'its namespace is not a DNS label');
  if (!isSubdomain(serviceAccount)) throw refusal(text, 'its service account is not a DNS subdomain name');
  return { trustDomain, namespace, serviceAccount };
}

/** The id of a workload. Throws an IdentityError `spiffe-id` where its parts make none. */
export function formatWorkloadIdentity({ trustDomain, namespace, serviceAccount }: WorkloadIdentity): string {
  const text = `${SCHEME}${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
  parseWorkloadIdentity(text);
  return text;
}

/** The id of the proxy of a node. Throws an IdentityError `spiffe-id` for a name that is none. */
export function formatNodeIdentity(trustDomain: string, node: string): string {
  const text = `${SCHEME}${parseTrustDomain(trustDomain)}/node/${node}`;
  if (!isSubdomain(node)) throw refusal(text, 'its node is not a DNS subdomain name');
  return text;
}

/** The name of the node whose proxy an id names; null for every other valid id. Throws for what is no id. */
export function nodeOfIdentity(text: string): string | null {
  const { segments } = parseSpiffeId(text);
  return segments.length === 2 && segments[0] === 'node' && isSubdomain(segments[1]!) ? segments[1]! : null;
}

/** Whether a text can be the name of a namespace (a DNS label, RFC 1123). */
export function isNamespaceName(text: string): boolean {
  return LABEL.test(text);
}

/** Whether a text can be the name of a service account or node (a DNS subdomain, RFC 1123). */
export function isSubdomain(text: string): boolean {
  return text.length <= SUBDOMAIN_BYTES_MAX && text.split('.').every((label) => LABEL.test(label));
}

function checkTrustDomain(name: string, text: string): void {
  if (name === '') throw refusal(text, 'its trust domain is empty');
  if (name.length > TRUST_DOMAIN_BYTES_MAX) {
    throw refusal(text, `its trust domain is longer than ${TRUST_DOMAIN_BYTES_MAX} bytes`);
  }
  if (!TRUST_DOMAIN.test(name)) {
    throw refusal(text, 'its trust domain has a character other than a-z, 0-9, ".", "-" and "_"');
  }
}

/** Longest part of a wrong id that is quoted. */
const QUOTE_CHARS_MAX = 100;

function refusal(text: string, cause: string): IdentityError {
  const quoted = text.length > QUOTE_CHARS_MAX ? `${text.slice(0, QUOTE_CHARS_MAX)}...` : text;
  return new IdentityError('spiffe-id', `${JSON.stringify(quoted)} is not an identity: ${cause}`);
}
