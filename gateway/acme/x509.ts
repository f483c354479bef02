// The X.509 that automatic certificates need: keys, signing requests, the self-signed certificates of
// TLS-ALPN-01 challenges and placeholders, and what is read back from certificates.
//
// All keys are ECDSA P-256. Signatures and parsing are those of node:crypto; only the encoding is here.
// Control thread only; an issuance costs about a millisecond.

import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  X509Certificate,
} from 'node:crypto';
import { bitString, der, integer, oid, readElements, sequence, Tag, time } from './der.ts';

const SHA256_WITH_ECDSA = sequence(oid('1.2.840.10045.4.3.2'));
const OID_COMMON_NAME = '2.5.4.3';
const OID_SUBJECT_ALT_NAME = '2.5.29.17';
const OID_AUTHORITY_KEY_ID = '2.5.29.35';
const OID_BASIC_CONSTRAINTS = '2.5.29.19';
const OID_SUBJECT_KEY_ID = '2.5.29.14';
const OID_EXTENSION_REQUEST = '1.2.840.113549.1.9.14';
/** id-pe-acmeIdentifier (RFC 8737 §6.1). */
const OID_ACME_IDENTIFIER = '1.3.6.1.5.5.7.1.31';

const HOUR_MS = 3_600_000;

/** A certificate with its chain, leaf first, and its private key, as PEM texts. */
export interface KeyedCertificate {
  chainPem: string;
  /** PKCS #8, not encrypted. */
  keyPem: string;
}

/** What the certificates built here differ in. */
export interface CertificateTemplate {
  /** Common name of the subject; empty for none. */
  commonName: string;
  /** DNS names; none for no SAN extension. */
  hostnames: readonly string[];
  notBeforeMs: number;
  notAfterMs: number;
  /** The key that the certificate is about. */
  publicKey: KeyObject;
  /** Who signs: common name and key. Self-signed: the subject's own. */
  issuer: { commonName: string; privateKey: KeyObject };
  /** Whether it may sign others. */
  authority?: boolean;
  /** Further extensions, encoded. */
  extensions?: readonly Uint8Array[];
}

/** What the renewal of a certificate goes by. */
export interface CertificateFacts {
  notBeforeMs: number;
  notAfterMs: number;
  /** DNS names of the leaf, in lower case. */
  hostnames: string[];
  issuer: string;
  /** SHA-256 of the leaf, hexadecimal. */
  fingerprint: string;
  /** How the CA's renewal information names it (RFC 9773 §4.1); undefined without an authority key id. */
  renewalId: string | undefined;
}

/** A new private key, ECDSA P-256. */
export function generateKey(): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
}

/** A private key as PKCS #8 PEM. */
export function keyToPem(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }) as string;
}

/**
 * A signing request (PKCS #10) in DER. The subject is empty and all names are in the SAN, which RFC
 * 8555 §7.4 allows; a common name would be limited to 64 bytes.
 */
export function createSigningRequest(hostnames: readonly string[], key: KeyObject): Uint8Array {
  const attribute = sequence(oid(OID_EXTENSION_REQUEST), der(Tag.SET, sequence(subjectAltName(hostnames))));
  const info = sequence(integer(Uint8Array.of(0)), sequence(), publicKeyInfo(key), der(0xa0, attribute));
  return signed(info, key);
}

/**
 * The certificate that answers a TLS-ALPN-01 challenge for one hostname (RFC 8737 §3), valid around
 * `nowMs`. Never to be shown to any client that does not ask for the protocol `acme-tls/1`.
 */
export function createChallengeCertificate(
  hostname: string,
  keyAuthorization: string,
  nowMs: number,
): KeyedCertificate {
  const digest = createHash('sha256').update(keyAuthorization).digest();
  return selfSigned('', [hostname], nowMs - HOUR_MS, nowMs + 24 * HOUR_MS, [
    extension(OID_ACME_IDENTIFIER, true, der(Tag.OCTET_STRING, digest)),
  ]);
}

/** A self-signed certificate for the time until the first one arrives; no client that verifies takes it. */
export function createPlaceholder(hostnames: readonly string[], nowMs: number): KeyedCertificate {
  return selfSigned('Portcullis placeholder', hostnames, nowMs - HOUR_MS, nowMs + 365 * 24 * HOUR_MS, []);
}

/** Builds and signs a certificate; returns DER. */
export function buildCertificate(template: CertificateTemplate): Uint8Array {
  const { issuer, publicKey } = template;
  const extensions = [...(template.extensions ?? [])];
  if (template.hostnames.length > 0) extensions.push(subjectAltName(template.hostnames));
  if (template.authority === true) {
    extensions.push(extension(OID_BASIC_CONSTRAINTS, true, sequence(der(Tag.BOOLEAN, Uint8Array.of(0xff)))));
  }
  extensions.push(extension(OID_SUBJECT_KEY_ID, false, der(Tag.OCTET_STRING, keyId(publicKey))));
  // [0] IMPLICIT keyIdentifier
  extensions.push(extension(OID_AUTHORITY_KEY_ID, false, sequence(der(0x80, keyId(issuer.privateKey)))));
  const serial = randomBytes(16);
  serial[0]! &= 0x7f;
  const info = sequence(
    der(0xa0, integer(Uint8Array.of(2))),
    integer(serial),
    SHA256_WITH_ECDSA,
    name(issuer.commonName),
    sequence(time(template.notBeforeMs), time(template.notAfterMs)),
    name(template.commonName),
    publicKeyInfo(publicKey),
    der(0xa3, sequence(...extensions)),
  );
  return signed(info, issuer.privateKey);
}

/** DER as PEM with the given label, e.g. `CERTIFICATE`. */
export function toPem(label: string, bytes: Uint8Array): string {
  const lines =
    Buffer.from(bytes)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

/**
 * Checks that a chain and a key belong together and reads what matters from the leaf. Throws an
 * Error with one clause that says what is wrong: no certificate, unreadable, not this key's.
 */
export function readCertificate({ chainPem, keyPem }: KeyedCertificate): CertificateFacts {
  const blocks = chainPem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0) throw new Error('it holds no certificate');
  let chain: X509Certificate[];
  let key: KeyObject;
  try {
    chain = blocks.map((block) => new X509Certificate(block));
  } catch {
    throw new Error('a certificate in it cannot be parsed');
  }
  try {
    key = createPrivateKey(keyPem);
  } catch {
    throw new Error('its private key cannot be parsed');
  }
  const leaf = chain[0]!;
  if (!leaf.checkPrivateKey(key)) throw new Error('its private key is not that of its certificate');
  return {
    notBeforeMs: Date.parse(leaf.validFrom),
    notAfterMs: Date.parse(leaf.validTo),
    hostnames: dnsNames(leaf),
    issuer: /^CN=(.+)$/m.exec(leaf.issuer)?.[1] ?? leaf.issuer.replace(/\n/g, ', '),
    fingerprint: createHash('sha256').update(leaf.raw).digest('hex'),
    renewalId: renewalId(leaf),
  };
}

function selfSigned(
  commonName: string,
  hostnames: readonly string[],
  notBeforeMs: number,
  notAfterMs: number,
  extensions: readonly Uint8Array[],
): KeyedCertificate {
  const key = generateKey();
  const issuer = { commonName, privateKey: key };
  const bytes = buildCertificate({
    commonName,
    hostnames,
    notBeforeMs,
    notAfterMs,
    publicKey: createPublicKey(key),
    issuer,
    extensions,
  });
  return { chainPem: toPem('CERTIFICATE', bytes), keyPem: keyToPem(key) };
}

/** `info` with its signature, the outer form that requests and certificates share. */
function signed(info: Uint8Array, key: KeyObject): Uint8Array {
  return sequence(info, SHA256_WITH_ECDSA, bitString(sign('sha256', info, key)));
}

function publicKeyInfo(key: KeyObject): Uint8Array {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return publicKey.export({ type: 'spki', format: 'der' });
}

/** Key identifier: the first 20 bytes of the hash of the key (RFC 7093 §2). */
function keyId(key: KeyObject): Uint8Array {
  return createHash('sha256').update(publicKeyInfo(key)).digest().subarray(0, 20);
}

function name(commonName: string): Uint8Array {
  if (commonName === '') return sequence();
  const attribute = sequence(oid(OID_COMMON_NAME), der(Tag.UTF8_STRING, Buffer.from(commonName)));
  return sequence(der(Tag.SET, attribute));
}

function subjectAltName(hostnames: readonly string[]): Uint8Array {
  // [2] IMPLICIT dNSName
  const names = hostnames.map((hostname) => der(0x82, Buffer.from(hostname, 'ascii')));
  return extension(OID_SUBJECT_ALT_NAME, false, sequence(...names));
}

function extension(id: string, critical: boolean, value: Uint8Array): Uint8Array {
  const flag = critical ? [der(Tag.BOOLEAN, Uint8Array.of(0xff))] : [];
  return sequence(oid(id), ...flag, der(Tag.OCTET_STRING, value));
}

function dnsNames(certificate: X509Certificate): string[] {
  return [...(certificate.subjectAltName ?? '').matchAll(/DNS:([^,\s"]+)/g)].map(([, dns]) => dns!.toLowerCase());
}

/** Authority key identifier and serial number, each in base64url (RFC 9773 §4.1). */
function renewalId(certificate: X509Certificate): string | undefined {
  const [outer] = readElements(certificate.raw);
  const fields = readElements(readElements(outer!.content)[0]!.content);
  const serial = fields.find(({ tag }) => tag === Tag.INTEGER);
  const extensions = fields.find(({ tag }) => tag === 0xa3);
  if (serial === undefined || extensions === undefined) return undefined;
  const wanted = readElements(oid(OID_AUTHORITY_KEY_ID))[0]!.content;
  for (const { content } of readElements(readElements(extensions.content)[0]!.content)) {
    const parts = readElements(content);
    if (Buffer.compare(parts[0]!.content, wanted) !== 0) continue;
    const value = readElements(parts.at(-1)!.content)[0]!;
    const keyIdentifier = readElements(value.content).find(({ tag }) => tag === 0x80);
    if (keyIdentifier === undefined) return undefined;
    return `${base64Url(keyIdentifier.content)}.${base64Url(serial.content)}`;
  }
  return undefined;
}

function base64Url(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64url');
}
