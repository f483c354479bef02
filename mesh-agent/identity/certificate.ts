// X.509 certificates of the mesh: what roots, intermediates, links and leaves look like, and what is
// read back from certificates.
//
// Encoding by node-forge's ASN.1, keys and signatures by node:crypto. Minting threads and control threads.
// Spec: RFC 5280 §4, X509-SVID §2 to §4.

import { createHash, type KeyObject, randomBytes, X509Certificate } from 'node:crypto';
import { isIPv4, isIPv6 } from 'node:net';
import * as der from './asn1.ts';
import { IdentityError } from './errors.ts';
import { keyId, signatureAlgorithm, signBytes } from './keys.ts';
import { fromPem, toPem } from './pem.ts';

/** Object identifiers of extensions and purposes (RFC 5280 §4.2). */
export const Oid = {
  commonName: '2.5.4.3',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  serverAuth: '1.3.6.1.5.5.7.3.1',
  clientAuth: '1.3.6.1.5.5.7.3.2',
} as const;

/** Bits of keyUsage in its first byte (RFC 5280 §4.2.1.3). */
const DIGITAL_SIGNATURE = 0x80;
const KEY_CERT_SIGN = 0x04;
const CRL_SIGN = 0x02;

/** Who signs a certificate. Cloneable to other threads: the key stays in OpenSSL. */
export interface Signer {
  /** Its certificate, DER. */
  certificate: Uint8Array;
  key: KeyObject;
}

/** What certificates differ in. */
export interface Template {
  /** SPIFFE id for the SAN. */
  identity: string;
  /** Common name of the subject; empty for leaves, whose names are in the SAN only. */
  commonName: string;
  /** SubjectPublicKeyInfo, DER. */
  publicKey: Uint8Array;
  notBeforeMs: number;
  notAfterMs: number;
  /** Intermediate CAs allowed below; null: not a CA. `Infinity`: any number. */
  pathLength: number | null;
  /** Further names for servers that are reached by them, such as the control plane. */
  dnsNames?: readonly string[];
  /** Further addresses of servers. */
  ipAddresses?: readonly string[];
}

/** What is read back from a certificate. */
export interface CertificateFacts {
  x509: X509Certificate;
  notBeforeMs: number;
  notAfterMs: number;
  /** Names of the kind URI. */
  uris: string[];
  /** Whether there are names of other kinds. */
  otherNames: boolean;
  /** Whether it may sign certificates, by its basic constraints and key usage. */
  isCa: boolean;
  /** Subject, DER. */
  subject: Buffer;
  /** Subject key identifier; null: none. */
  keyId: Buffer | null;
  /** SHA-256 of the certificate, hexadecimal. */
  fingerprint: string;
}

/** Makes a certificate; `signer` null: signed by `key` itself, a root. Returns DER. */
export function buildCertificate(template: Template, signer: Signer | null, key: KeyObject): Buffer {
  const { publicKey, commonName, pathLength } = template;
  const issuer = signer === null ? null : readCertificate(signer.certificate);
  const subject = nameOf(commonName);
  const issuerName = issuer === null ? subject : der.fromDer(issuer.subject);
  const ownKeyId = keyId(publicKey);
  const algorithm = signatureAlgorithm(key);
  const serial = randomBytes(16);
  // Positive, and always of the same length.
  serial[0] = (serial[0]! & 0x7f) | 0x40;
  const body = der.sequence(
    der.context(0, der.integer(Uint8Array.of(2))),
    der.integer(serial),
    algorithm,
    issuerName,
    der.sequence(der.time(template.notBeforeMs), der.time(template.notAfterMs)),
    subject,
    der.fromDer(publicKey),
    der.context(
      3,
      der.sequence(
        basicConstraints(pathLength),
        keyUsage(pathLength === null ? DIGITAL_SIGNATURE : KEY_CERT_SIGN | CRL_SIGN),
        ...(pathLength === null ? [extendedKeyUsage()] : []),
        extension(Oid.subjectKeyId, false, der.octetString(ownKeyId)),
        extension(Oid.authorityKeyId, false, der.sequence(der.contextPrimitive(0, issuer?.keyId ?? ownKeyId))),
        alternativeNames(template),
      ),
    ),
  );
  const signature = signBytes(der.toDer(body), key);
  return der.toDer(der.sequence(body, algorithm, der.bitString(signature)));
}

/** Reads a certificate, DER or PEM. Throws an IdentityError `ca-material` for what cannot be read. */
export function readCertificate(certificate: Uint8Array | string): CertificateFacts {
  try {
    const bytes = typeof certificate === 'string' ? fromPem('CERTIFICATE', certificate) : certificate;
    if (bytes === null) throw new Error('not one PEM block');
    return readFacts(bytes);
  } catch (error) {
    throw new IdentityError('ca-material', `a certificate cannot be parsed: ${(error as Error).message}`);
  }
}

/** A certificate as PEM. */
export function certificateToPem(certificate: Uint8Array): string {
  return toPem('CERTIFICATE', certificate);
}

/** Whether one certificate is signed by another, which is a CA: names, key and signature. */
export function isIssuedBy(certificate: CertificateFacts, issuer: CertificateFacts): boolean {
  return issuer.isCa && certificate.x509.checkIssued(issuer.x509) && certificate.x509.verify(issuer.x509.publicKey);
}

/** An extension (RFC 5280 §4.1) around its value. */
export function extension(id: string, critical: boolean, value: der.Asn1): der.Asn1 {
  const flag = critical ? [der.booleanTrue()] : [];
  return der.sequence(der.oid(id), ...flag, der.octetString(der.toDer(value)));
}

/** A SAN extension with a SPIFFE id and nothing else; critical, since it stands in for the subject. */
export function identityName(identity: string): der.Asn1 {
  return extension(Oid.subjectAltName, true, der.sequence(uriName(identity)));
}

/**
 * The names of a SAN's value: URIs, and whether there are others. Throws an Error for malformed ones, a
 * byte that is not printable ASCII in a URI among them.
 */
export function readNames(value: Uint8Array): { uris: string[]; otherNames: boolean } {
  const uris: string[] = [];
  let otherNames = false;
  for (const name of der.partsOfSequence(der.fromDer(value))) {
    // [6] IMPLICIT uniformResourceIdentifier
    if (!der.isContext(name, 6)) {
      otherNames = true;
      continue;
    }
    const text = der.bytesOf(name).toString('latin1');
    if (!/^[\x21-\x7e]+$/.test(text)) throw new Error('a URI has characters that are not ASCII');
    uris.push(text);
  }
  return { uris, otherNames };
}

function readFacts(bytes: Uint8Array): CertificateFacts {
  const x509 = new X509Certificate(bytes);
  const [body] = der.partsOfSequence(der.fromDer(bytes));
  // version, serial number, algorithm, issuer, validity, subject, key, extensions
  const fields = der.partsOfSequence(body);
  const extensions = fields.find((field) => der.isContext(field, 3));
  let names: { uris: string[]; otherNames: boolean } = { uris: [], otherNames: false };
  let ownKeyId: Buffer | null = null;
  let mayCertify = true;
  for (const item of extensions === undefined ? [] : der.partsOfSequence(der.partsOfContext(extensions, 3)[0])) {
    const parts = der.partsOfSequence(item);
    const id = der.oidOf(parts[0]);
    const value = der.octetsOf(parts.at(-1));
    if (id === Oid.subjectAltName) names = readNames(value);
    if (id === Oid.keyUsage) mayCertify = (der.bytesOf(der.fromDer(value))[1]! & KEY_CERT_SIGN) !== 0;
    if (id === Oid.subjectKeyId) ownKeyId = der.octetsOf(der.fromDer(value));
  }
  return {
    x509,
    notBeforeMs: Date.parse(x509.validFrom),
    notAfterMs: Date.parse(x509.validTo),
    ...names,
    isCa: x509.ca && mayCertify,
    subject: der.toDer(fields[5]!),
    keyId: ownKeyId,
    fingerprint: createHash('sha256').update(bytes).digest('hex'),
  };
}

function nameOf(commonName: string): der.Asn1 {
  if (commonName === '') return der.sequence();
  return der.sequence(der.setOf(der.sequence(der.oid(Oid.commonName), der.utf8String(commonName))));
}

function basicConstraints(pathLength: number | null): der.Asn1 {
  if (pathLength === null) return extension(Oid.basicConstraints, true, der.sequence());
  const limit = pathLength === Number.POSITIVE_INFINITY ? [] : [der.integer(Uint8Array.of(pathLength))];
  return extension(Oid.basicConstraints, true, der.sequence(der.booleanTrue(), ...limit));
}

function keyUsage(bits: number): der.Asn1 {
  // DER: trailing zero bits of a named bit list are not part of it.
  const unusedBits = 31 - Math.clz32(bits & -bits);
  return extension(Oid.keyUsage, true, der.bitString(Uint8Array.of(bits), unusedBits));
}

function extendedKeyUsage(): der.Asn1 {
  return extension(Oid.extendedKeyUsage, false, der.sequence(der.oid(Oid.serverAuth), der.oid(Oid.clientAuth)));
}

function alternativeNames({ identity, commonName, dnsNames = [], ipAddresses = [] }: Template): der.Asn1 {
  // [2] IMPLICIT dNSName, [7] IMPLICIT iPAddress
  const names = [
    uriName(identity),
    ...dnsNames.map((name) => der.contextPrimitive(2, Buffer.from(name, 'ascii'))),
    ...ipAddresses.map((address) => der.contextPrimitive(7, addressBytes(address))),
  ];
  return extension(Oid.subjectAltName, commonName === '', der.sequence(...names));
}

function uriName(uri: string): der.Asn1 {
  return der.contextPrimitive(6, Buffer.from(uri, 'ascii'));
}

function addressBytes(address: string): Uint8Array {
  if (isIPv4(address)) return Uint8Array.from(address.split('.').map(Number));
  if (!isIPv6(address)) throw new RangeError(`${address} is not an IP address`);
  // The URL parser writes an address in its shortest form, with IPv4 parts as hexadecimal ones.
  const [head = '', tail] = new URL(`http://[${address}]/`).hostname.slice(1, -1).split('::');
  const words = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16));
  const front = words(head);
  const back = tail === undefined ? [] : words(tail);
  const all = [...front, ...new Array<number>(8 - front.length - back.length).fill(0), ...back];
  return Uint8Array.from(all.flatMap((word) => [word >> 8, word & 0xff]));
}

/** A private key as PKCS #8 PEM, not encrypted. */
export function keyToPem(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }) as string;
}
