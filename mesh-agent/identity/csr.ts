// Certificate signing requests (PKCS #10): making ours, and reading anybody's.
//
// What comes in is hostile until proven otherwise: whatever the bytes, the outcome is a checked request or
// an IdentityError of a `csr-*` code. A request may carry a key, its proof of possession and at most one
// name, the SPIFFE id; everything else of a certificate is the CA's decision, and asking for it is refused
// rather than passed over, so that nobody believes to have got what they did not.
// Minting threads and control threads. Spec: RFC 2986 §4, RFC 2985 §5.4.2 (extensionRequest).

import { createPublicKey, type KeyObject } from 'node:crypto';
import * as der from './asn1.ts';
import { identityName, Oid, readNames } from './certificate.ts';
import { IdentityError, type IdentityErrorCode } from './errors.ts';
import {
  describeKey,
  type KeyKind,
  kindOfKey,
  publicKeyInfo,
  signatureAlgorithm,
  signBytes,
  verifyBytes,
} from './keys.ts';
import { fromPem, toPem } from './pem.ts';
import { parseSpiffeId } from './spiffe.ts';

/** Largest request in bytes of PEM: one with an RSA key of 8192 bits and the longest SPIFFE id has under 8 KiB. */
export const CSR_BYTES_MAX = 16_384;

const EXTENSION_REQUEST = '1.2.840.113549.1.9.14';

/** A request that has passed all checks of its own. */
export interface SigningRequest {
  /** The SPIFFE id in its SAN; null: it names none and leaves that to the CA. */
  identity: string | null;
  publicKey: KeyObject;
  /** SubjectPublicKeyInfo, DER. */
  publicKeyInfo: Buffer;
  keyKind: KeyKind;
}

/** A request for an identity, PEM. Empty subject, the id in a critical SAN, as ztunnel does. */
export function createSigningRequest(identity: string, key: KeyObject): string {
  parseSpiffeId(identity);
  const attribute = der.sequence(der.oid(EXTENSION_REQUEST), der.setOf(der.sequence(identityName(identity))));
  const info = der.sequence(
    der.integer(Uint8Array.of(0)),
    der.sequence(),
    der.fromDer(publicKeyInfo(key)),
    der.context(0, attribute),
  );
  const signature = signBytes(der.toDer(info), key);
  return toPem('CERTIFICATE REQUEST', der.toDer(der.sequence(info, signatureAlgorithm(key), der.bitString(signature))));
}

/** Throws an IdentityError `csr-oversized` for a request that is not even worth handing to another thread. */
export function checkRequestSize(pem: string): void {
  if (pem.length > CSR_BYTES_MAX) throw refusal('csr-oversized', `it is larger than ${CSR_BYTES_MAX} bytes`);
}

/** Reads and checks a request, PEM. Throws an IdentityError of a `csr-*` code, and nothing else. */
export function readSigningRequest(pem: string): SigningRequest {
  checkRequestSize(pem);
  const bytes = fromPem('CERTIFICATE REQUEST', pem) ?? fromPem('NEW CERTIFICATE REQUEST', pem);
  if (bytes === null) throw refusal('csr-malformed', 'it is not one PEM block of a certificate request');
  try {
    return readRequest(bytes);
  } catch (error) {
    // Parsers of DER and of keys throw errors of many kinds; all of them mean the same.
    throw error instanceof IdentityError
      ? error
      : refusal('csr-malformed', `not PKCS #10: ${(error as Error).message}`);
  }
}

function readRequest(bytes: Buffer): SigningRequest {
  const outer = der.partsOfSequence(der.fromDer(bytes));
  const [info, algorithm, signature] = outer;
  const fields = der.partsOfSequence(info);
  if (outer.length !== 3 || fields.length < 3 || fields.length > 4)
    throw new Error('it has too many or too few fields');
  const [version, subject, keyInfo, attributes] = fields;
  if (!der.integerOf(version).equals(Buffer.of(0))) throw new Error('its version is not 0');
  const publicKey = createPublicKey({ key: der.toDer(keyInfo!), format: 'der', type: 'spki' });
  const keyKind = kindOfKey(publicKey);
  if (keyKind === null) {
    throw refusal(
      'csr-key-type',
      `its key is ${describeKey(publicKey)}; ECDSA P-256 and P-384, Ed25519 and RSA of 2048 to 8192 bits are taken`,
    );
  }
  const verified = verifyBytes(algorithm!, der.toDer(info!), publicKey, der.bitsOf(signature));
  if (verified === null) {
    throw refusal(
      'csr-key-type',
      'its signature algorithm is not taken; it must be one with SHA-256, SHA-384 or SHA-512',
    );
  }
  if (!verified) throw refusal('csr-signature', 'it is not signed by the key that it is about');
  // Only now: the requester of what follows has the key.
  if (der.partsOfSequence(subject).length > 0) {
    throw refusal('csr-subject', 'its subject (such as a common name) is not empty; the identity goes into the SAN');
  }
  const identity = attributes === undefined ? null : readAttributes(attributes);
  return { identity, publicKey, publicKeyInfo: publicKeyInfo(publicKey), keyKind };
}

function readAttributes(attributes: der.Asn1): string | null {
  const list = der.partsOfContext(attributes, 0);
  if (list.length === 0) return null;
  const [id, values, ...rest] = der.partsOfSequence(list[0]);
  if (list.length > 1 || der.oidOf(id) !== EXTENSION_REQUEST) {
    throw refusal('csr-extensions', 'it has attributes other than one request for extensions');
  }
  const sets = der.partsOfSet(values);
  if (sets.length !== 1 || rest.length > 0) throw new Error('its request for extensions is malformed');
  const extensions = der.partsOfSequence(sets[0]).map((item) => der.partsOfSequence(item));
  const [names, ...others] = extensions;
  if (names === undefined) return null;
  if (others.length > 0 || der.oidOf(names[0]) !== Oid.subjectAltName) {
    throw refusal(
      'csr-extensions',
      'it asks for extensions other than one SAN; usages and constraints are the decision of the CA',
    );
  }
  if (names.length > 3 || (names.length === 3 && !der.isTrue(names[1]))) throw new Error('its SAN is malformed');
  return readIdentity(der.octetsOf(names.at(-1)));
}

function readIdentity(value: Buffer): string {
  const { uris, otherNames } = readNames(value);
  if (otherNames || uris.length !== 1) {
    throw refusal('csr-names', 'its SAN has names other than one SPIFFE id');
  }
  const [identity] = uris as [string];
  try {
    parseSpiffeId(identity);
  } catch (error) {
    throw refusal('csr-names', (error as Error).message);
  }
  return identity;
}

function refusal(code: IdentityErrorCode, cause: string): IdentityError {
  return new IdentityError(code, `the certificate request is refused: ${cause}`);
}
