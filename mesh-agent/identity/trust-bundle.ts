// Trust bundles: the roots that certificates of the mesh lead to, and which of them signs now.
//
// Distributed as a SPIFFE bundle (a JWK set) with two things of ours: a sequence that only grows, by which a
// proxy confirms what it has, and the root that signs new certificates, so that proxies renew those of
// another. Immutable. Control threads.
// Spec: SPIFFE_Trust_Domain_and_Bundle §4, X509-SVID §6, RFC 7517 §4.7.

import type { X509Certificate } from 'node:crypto';
import { type CertificateFacts, certificateToPem, isIssuedBy, readCertificate } from './certificate.ts';
import { IdentityError } from './errors.ts';
import { parseTrustDomain } from './spiffe.ts';

/** Most roots that a bundle may have: an honest one has one, or two during a rotation. */
const ROOTS_MAX = 16;
/** Largest bundle that is read, in characters. */
const JSON_CHARS_MAX = 262_144;
/** How often a consumer without a push should look again. */
const REFRESH_HINT_SECONDS = 300;

/** A root of a bundle. */
export interface TrustedRoot {
  /** First 16 digits of the certificate's fingerprint. */
  id: string;
  /** PEM, with a line end. */
  pem: string;
  facts: CertificateFacts;
}

/** The roots of one trust domain at one time. */
export interface TrustBundle {
  trustDomain: string;
  /** Grows with every change. */
  sequence: number;
  roots: readonly TrustedRoot[];
  /** Id of the root that new certificates lead to; empty: not said. */
  issuer: string;
}

/** A bundle with everything that identifies roots worked out. Throws an IdentityError `bundle-malformed`. */
export function makeTrustBundle(
  trustDomain: string,
  sequence: number,
  roots: readonly string[],
  issuer = '',
): TrustBundle {
  const trusted = roots.map((pem) => {
    const facts = readRoot(pem, trustDomain);
    return { id: rootId(facts), pem: certificateToPem(facts.x509.raw), facts };
  });
  if (trusted.length === 0 || trusted.length > ROOTS_MAX) throw malformed(`it has ${trusted.length} roots`);
  return { trustDomain: parseTrustDomain(trustDomain), sequence, roots: trusted, issuer };
}

/** Short name of a root: the first 16 digits of its fingerprint. */
export function rootId(facts: CertificateFacts): string {
  return facts.fingerprint.slice(0, 16);
}

/** The bundle as all its roots in PEM, for TLS libraries. */
export function bundleToPem(bundle: TrustBundle): string {
  return bundle.roots.map(({ pem }) => pem).join('');
}

/** The bundle as SPIFFE has it: JSON text. */
export function bundleToJson(bundle: TrustBundle): string {
  const keys = bundle.roots.map(({ facts: { x509 } }) => ({
    ...publicJwk(x509),
    use: 'x509-svid',
    x5c: [x509.raw.toString('base64')],
  }));
  return JSON.stringify({
    keys,
    spiffe_sequence: bundle.sequence,
    spiffe_refresh_hint: REFRESH_HINT_SECONDS,
    portcullis_issuer: bundle.issuer,
  });
}

/** Reads a bundle of a trust domain from JSON text. Throws an IdentityError `bundle-malformed`. */
export function bundleFromJson(trustDomain: string, text: string): TrustBundle {
  if (text.length > JSON_CHARS_MAX) throw malformed('it is too large');
  let json: { keys?: unknown; spiffe_sequence?: unknown; portcullis_issuer?: unknown } | null;
  try {
    json = JSON.parse(text);
  } catch {
    throw malformed('it is not JSON');
  }
  if (typeof json !== 'object' || json === null || !Array.isArray(json.keys)) throw malformed('it has no list of keys');
  const { keys, spiffe_sequence: sequence, portcullis_issuer: issuer = '' } = json;
  if (!Number.isSafeInteger(sequence) || (sequence as number) < 0) throw malformed('it has no sequence number');
  if (typeof issuer !== 'string') throw malformed('its issuer is not a text');
  const roots: string[] = [];
  for (const key of keys as ({ use?: unknown; x5c?: unknown } | null)[]) {
    // X509-SVID §6.2: others and those without a certificate are passed over, and only the first one counts.
    const first = key?.use === 'x509-svid' && Array.isArray(key.x5c) ? key.x5c[0] : undefined;
    if (typeof first === 'string') roots.push(certificateToPem(Buffer.from(first, 'base64')));
  }
  return makeTrustBundle(trustDomain, sequence as number, roots, issuer);
}

/** Whether two bundles hold the same roots and issuer, whatever their sequence. */
export function sameContent(a: TrustBundle, b: TrustBundle): boolean {
  const ids = (bundle: TrustBundle): string => [...bundle.roots.map(({ id }) => id).sort(), bundle.issuer].join();
  return a.trustDomain === b.trustDomain && ids(a) === ids(b);
}

/**
 * The root that a chain (leaf first) leads to. Throws an IdentityError `untrusted-certificate` when it leads to
 * none, or one of its certificates is not valid at `nowMs`.
 */
export function verifyChain(bundle: TrustBundle, chain: readonly CertificateFacts[], nowMs: number): TrustedRoot {
  for (const [i, certificate] of chain.entries()) {
    const { notBeforeMs, notAfterMs } = certificate;
    if (nowMs < notBeforeMs || nowMs > notAfterMs) {
      throw new IdentityError(
        'untrusted-certificate',
        `certificate ${i} of the chain is not valid now`,
        "look at this machine's clock",
      );
    }
    const root = bundle.roots.find(({ facts }) => isIssuedBy(certificate, facts));
    if (root !== undefined) {
      if (root.facts.notAfterMs < nowMs)
        throw new IdentityError('untrusted-certificate', `the root ${root.id} has expired`);
      return root;
    }
    const next = chain[i + 1];
    if (next === undefined || !isIssuedBy(certificate, next)) break;
  }
  throw new IdentityError(
    'untrusted-certificate',
    `the chain does not lead to a root of the trust domain ${bundle.trustDomain}`,
    'if the root was rotated while this node was away, give it the present trust bundle',
  );
}

function readRoot(pem: string, trustDomain: string): CertificateFacts {
  let facts: CertificateFacts;
  try {
    facts = readCertificate(pem);
  } catch (error) {
    throw malformed((error as Error).message);
  }
  if (!facts.isCa) throw malformed('one of its roots is not a CA');
  const foreign = facts.uris.find((uri) => uri.startsWith('spiffe://') && uri !== `spiffe://${trustDomain}`);
  if (foreign !== undefined) throw malformed(`one of its roots is for ${foreign}`);
  return facts;
}

/** The key as JWK; a key kind that JWK has no form for makes no bundle. */
function publicJwk(x509: X509Certificate): object {
  return x509.publicKey.export({ format: 'jwk' });
}

function malformed(cause: string): IdentityError {
  return new IdentityError('bundle-malformed', `the trust bundle is refused: ${cause}`);
}
