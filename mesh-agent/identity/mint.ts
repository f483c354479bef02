// One issuance: a signing request in, a workload's certificate out. What Piscina runs (mint-job.ts).
//
// Pure: time, signer and what was authorised come from the caller. Spec: X509-SVID §3.1, §4.

import { buildCertificate, certificateToPem, type Signer } from './certificate.ts';
import { readSigningRequest } from './csr.ts';
import { IdentityError } from './errors.ts';

/**
 * How far back certificates are dated, so that a node whose clock is behind takes them. Five minutes is what
 * Kerberos allows between clocks; whoever is further off has other troubles.
 */
export const BACKDATE_MS = 300_000;

/** Shortest lifetime that is worth signing: below that, a renewal would come too late. */
const LIFETIME_MIN_MS = 60_000;

/** What to sign. Cloneable. */
export interface MintTask {
  /** The request, PEM, as it came in. */
  csr: string;
  /** SPIFFE id that the caller is authorised for; the request names it or none. */
  identity: string;
  /** From now on. */
  lifetimeMs: number;
  nowMs: number;
  signer: Signer;
  /** No certificate outlives this: the first end in the signer's chain. */
  issuerNotAfterMs: number;
}

/** What was signed. */
export interface Minted {
  certificatePem: string;
  notAfterMs: number;
}

/** Signs a certificate for a request. Throws an IdentityError: `csr-*`, `issuer-expired`. */
export function mint(task: MintTask): Minted {
  const { signer, identity, nowMs } = task;
  const request = readSigningRequest(task.csr);
  if (request.identity !== null && request.identity !== identity) {
    throw new IdentityError(
      'csr-names',
      `the certificate request is refused: it names ${request.identity}, but ${identity} was asked for`,
    );
  }
  const notAfterMs = lifetimeEndMs(nowMs, task.lifetimeMs, task.issuerNotAfterMs);
  const certificate = buildCertificate(
    {
      identity,
      commonName: '',
      publicKey: request.publicKeyInfo,
      notBeforeMs: nowMs - BACKDATE_MS,
      notAfterMs,
      pathLength: null,
    },
    signer,
    signer.key,
  );
  return { certificatePem: certificateToPem(certificate), notAfterMs };
}

/**
 * When a certificate ends: after its lifetime, never after its issuer, in whole seconds. Throws an IdentityError
 * `issuer-expired` when the issuer leaves it less than a minute.
 */
export function lifetimeEndMs(nowMs: number, lifetimeMs: number, issuerNotAfterMs: number): number {
  if (issuerNotAfterMs < nowMs + LIFETIME_MIN_MS) {
    throw new IdentityError(
      'issuer-expired',
      `the certificate of the mesh CA ends ${new Date(issuerNotAfterMs).toISOString()}`,
      'renew the intermediate, or rotate the root',
    );
  }
  const endMs = Math.min(nowMs + Math.max(lifetimeMs, LIFETIME_MIN_MS), issuerNotAfterMs);
  return Math.floor(endMs / 1000) * 1000;
}
