// Keys and signatures: which kinds the mesh takes, and how X.509 names them.
//
// Workloads and the CA use ECDSA P-256. Requests from others and CA files may use what is as strong.
// Spec: RFC 5758 §3.2 (ECDSA), RFC 4055 §5 (RSA), RFC 8410 §3 (Ed25519), RFC 7093 §2 (key ids).

import { createHash, createPublicKey, generateKeyPair, type KeyObject, sign, verify } from 'node:crypto';
import { promisify } from 'node:util';
import { type Asn1, nothing, oid, oidOf, partsOfSequence, sequence, toDer } from './asn1.ts';

/** Weakest RSA key that is taken, in bits. */
export const RSA_BITS_MIN = 2048;
/** Largest RSA key that is taken, in bits: verifying with larger ones is a way to keep the CA busy. */
const RSA_BITS_MAX = 8192;

/** Kinds of keys. */
export type KeyKind = 'P-256' | 'P-384' | 'RSA' | 'Ed25519';

interface Algorithm {
  oid: string;
  /** Digest for `sign`; null: the algorithm has its own. */
  digest: string | null;
  /** Whether its parameters are NULL rather than absent. */
  nullParameters: boolean;
}

/** How keys of each kind sign here. */
const algorithms: Record<KeyKind, Algorithm> = {
  'P-256': { oid: '1.2.840.10045.4.3.2', digest: 'sha256', nullParameters: false },
  'P-384': { oid: '1.2.840.10045.4.3.3', digest: 'sha384', nullParameters: false },
  RSA: { oid: '1.2.840.113549.1.1.11', digest: 'sha256', nullParameters: true },
  Ed25519: { oid: '1.3.101.112', digest: null, nullParameters: false },
};

/** Signature algorithms in requests, by kind of key: the CA needs no more than one strong hash of each. */
const accepted: Record<KeyKind, Record<string, string | null>> = {
  'P-256': { '1.2.840.10045.4.3.2': 'sha256', '1.2.840.10045.4.3.3': 'sha384', '1.2.840.10045.4.3.4': 'sha512' },
  'P-384': { '1.2.840.10045.4.3.2': 'sha256', '1.2.840.10045.4.3.3': 'sha384', '1.2.840.10045.4.3.4': 'sha512' },
  RSA: {
    '1.2.840.113549.1.1.11': 'sha256',
    '1.2.840.113549.1.1.12': 'sha384',
    '1.2.840.113549.1.1.13': 'sha512',
  },
  Ed25519: { '1.3.101.112': null },
};

const generate = promisify(generateKeyPair) as (
  type: 'ec',
  options: { namedCurve: string },
) => Promise<{ privateKey: KeyObject; publicKey: KeyObject }>;

/** A new ECDSA P-256 key, made off the calling thread. */
export async function generateKey(): Promise<KeyObject> {
  return (await generate('ec', { namedCurve: 'P-256' })).privateKey;
}

/** The kind of a key; null for one that is not taken: other curves, weak or giant RSA, DSA. */
export function kindOfKey(key: KeyObject): KeyKind | null {
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = key;
  if (type === 'ed25519') return 'Ed25519';
  if (type === 'ec') {
    if (details?.namedCurve === 'prime256v1') return 'P-256';
    if (details?.namedCurve === 'secp384r1') return 'P-384';
  }
  if (type === 'rsa') {
    const bits = details?.modulusLength ?? 0;
    if (bits >= RSA_BITS_MIN && bits <= RSA_BITS_MAX) return 'RSA';
  }
  return null;
}

/** What a key is, for an error: `rsa of 1024 bits`, `ec on secp521r1`. */
export function describeKey(key: KeyObject): string {
  const { asymmetricKeyType: type = 'unknown', asymmetricKeyDetails: details } = key;
  if (details?.modulusLength !== undefined) return `${type} of ${details.modulusLength} bits`;
  return details?.namedCurve === undefined ? type : `${type} on ${details.namedCurve}`;
}

/** The SubjectPublicKeyInfo of a key, private or public, in DER. */
export function publicKeyInfo(key: KeyObject): Buffer {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return publicKey.export({ type: 'spki', format: 'der' });
}

/** Key identifier: the first 20 bytes of the SHA-256 of the key (RFC 7093 §2). */
export function keyId(info: Uint8Array): Buffer {
  return createHash('sha256').update(info).digest().subarray(0, 20);
}

/** The AlgorithmIdentifier of signatures made with a key. Throws a RangeError for a kind that is not taken. */
export function signatureAlgorithm(key: KeyObject): Asn1 {
  const { oid: id, nullParameters } = algorithms[kindOrThrow(key)];
  return nullParameters ? sequence(oid(id), nothing()) : sequence(oid(id));
}

/** Signs bytes as `signatureAlgorithm` says. Throws a RangeError for a kind that is not taken. */
export function signBytes(bytes: Uint8Array, key: KeyObject): Buffer {
  return sign(algorithms[kindOrThrow(key)].digest, bytes, key);
}

/**
 * Whether a signature is right; null when its algorithm is not one that is taken for this kind of key (SHA-1, PSS,
 * unknown). Throws an Error for a malformed AlgorithmIdentifier.
 */
export function verifyBytes(algorithm: Asn1, bytes: Uint8Array, key: KeyObject, signature: Uint8Array): boolean | null {
  const kind = kindOrThrow(key);
  const parts = partsOfSequence(algorithm);
  const id = oidOf(parts[0]);
  if (!Object.hasOwn(accepted[kind], id)) return null;
  const expected = kind === 'RSA' ? sequence(oid(id), nothing()) : sequence(oid(id));
  if (!toDer(algorithm).equals(toDer(expected))) throw new Error('parameters of the signature algorithm');
  return verify(accepted[kind][id]!, bytes, key, signature);
}

function kindOrThrow(key: KeyObject): KeyKind {
  const kind = kindOfKey(key);
  if (kind === null) throw new RangeError(`keys of the kind ${describeKey(key)} are not taken`);
  return kind;
}
