// PEM texts of certificates, keys and authorities: what they hold, and what is wrong with them.
//
// Control thread. Pure but for the clock that is passed in. What comes out can be given to OpenSSL as it
// is: the leaf first, then its issuers, and one private key without passphrase.
// Spec: RFC 7468 (PEM), RFC 5280 (certificates), RFC 8446 §4.4.2 (order of a chain).

import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import type { LoadedCertificate } from '../../config/compile-tls.ts';
import { hostnameProblem } from '../../config/names.ts';
import { createServerContext, freeContext } from '../../core/tls/context.ts';
import { parseAlternativeNames } from '../../core/tls/peer.ts';

/** A certificate that is good to use. */
export interface ParsedCertificate extends LoadedCertificate {
  /** For logs and metrics: the first DNS name, else the subject. */
  label: string;
  /** SHA-256 of the leaf, lower-case hexadecimal. */
  fingerprint: string;
  /** Milliseconds since 1970. */
  notBeforeMs: number;
  notAfterMs: number;
  /** Certificates of the file that are no part of the leaf's chain; they are left out. */
  strangers: number;
}

/** Why a text cannot be used, as the end of a sentence that starts with the file. */
export interface PemProblem {
  /** Which of the two files the problem is about. */
  part: 'certificate' | 'key';
  problem: string;
  expected: string;
}

/** What a certificate is for. */
export type Purpose = 'server' | 'client';

/** Smallest RSA key that OpenSSL uses at its default security level. */
const RSA_BITS_MIN = 2048;

const keyTypes = ['ec', 'rsa', 'rsa-pss', 'ed25519', 'ed448'];

/** OIDs of extended key usage (RFC 5280 §4.2.1.12): any, and servers. */
const ANY_USAGE = '2.5.29.37.0';
const SERVER_USAGE = '1.3.6.1.5.5.7.3.1';

const PEM_BLOCK = /-----BEGIN ([A-Z0-9 ]+)-----[\s\S]*?-----END \1-----/g;

const CERTIFICATE_EXPECTED = 'a PEM file with the certificate and its intermediates';
const KEY_EXPECTED = 'a PEM file with the private key of the certificate';

/**
 * Checks a certificate and its key: both can be read, belong together, are valid at `nowMs` (null: at
 * any time), and OpenSSL takes them. Both texts may hold other blocks too, so that one file can be given twice.
 */
export function parsePair(
  certificateText: string,
  keyText: string,
  purpose: Purpose,
  nowMs: number | null,
): ParsedCertificate | PemProblem {
  const certificates = parseCertificates(certificateText);
  if (!Array.isArray(certificates)) return certificates;
  const key = parseKey(keyText);
  if ('problem' in key) return key;
  const own = certificates.filter((certificate) => certificate.checkPrivateKey(key.key));
  // An authority that signs with the same key is not what is meant.
  const leaf = own.find(({ ca }) => !ca) ?? own[0];
  if (leaf === undefined) {
    const problem = `does not belong to the certificate, whose subject is ${subjectOf(certificates[0]!)}`;
    return { part: 'key', problem, expected: KEY_EXPECTED };
  }
  const problem = leafProblem(leaf, key.key, purpose, nowMs);
  if (problem !== undefined) return problem;
  const chain = orderChain(leaf, certificates);
  const names = dnsNames(leaf);
  const parsed: ParsedCertificate = {
    chainPem: chain.map(String).join(''),
    keyPem: key.pem,
    names,
    keyType: key.key.asymmetricKeyType!,
    label: names[0] ?? subjectOf(leaf),
    fingerprint: fingerprintOf(leaf),
    notBeforeMs: leaf.validFromDate.getTime(),
    notAfterMs: leaf.validToDate.getTime(),
    strangers: certificates.length - chain.length - certificates.filter((one) => isSelfIssued(one, leaf)).length,
  };
  return opensslProblem(parsed) ?? parsed;
}

/** Checks a list of authorities; the text is good if there is no problem. */
export function authoritiesProblem(text: string): PemProblem | undefined {
  const certificates = parseCertificates(text);
  if (Array.isArray(certificates)) return undefined;
  return { ...certificates, expected: 'a PEM file with the certificates of the authorities' };
}

function parseCertificates(text: string): X509Certificate[] | PemProblem {
  const refuse = (problem: string): PemProblem => ({ part: 'certificate', problem, expected: CERTIFICATE_EXPECTED });
  const blocks = [...text.matchAll(PEM_BLOCK)];
  const found: X509Certificate[] = [];
  const seen = new Set<string>();
  for (const [block, label] of blocks) {
    if (label === 'TRUSTED CERTIFICATE') return refuse('holds a TRUSTED CERTIFICATE, which only OpenSSL itself reads');
    if (label !== 'CERTIFICATE' && label !== 'X509 CERTIFICATE') continue;
    let certificate: X509Certificate;
    try {
      certificate = new X509Certificate(block);
    } catch (error) {
      return refuse(`holds a certificate (number ${found.length + 1}) that cannot be read: ${reasonOf(error)}`);
    }
    if (seen.has(certificate.fingerprint256)) continue;
    seen.add(certificate.fingerprint256);
    found.push(certificate);
  }
  if (found.length > 0) return found;
  if (blocks.some(([, label]) => label!.endsWith('PRIVATE KEY')))
    return refuse('holds a private key and no certificate');
  if (blocks.some(([, label]) => label!.endsWith('CERTIFICATE REQUEST'))) {
    return refuse('holds a request for a certificate, and none');
  }
  if (blocks.length > 0) return refuse(`holds ${blocks[0]![1]} and no certificate`);
  if (text.includes('-----BEGIN ')) return refuse('is cut off: a PEM block has no end');
  return refuse(text.trim() === '' ? 'is empty' : 'is not in PEM format');
}

function parseKey(text: string): { key: KeyObject; pem: string } | PemProblem {
  const refuse = (problem: string, expected = KEY_EXPECTED): PemProblem => ({ part: 'key', problem, expected });
  const blocks = [...text.matchAll(PEM_BLOCK)];
  const keys = blocks.filter(([, label]) => label!.endsWith('PRIVATE KEY'));
  if (keys.length === 0) {
    if (blocks.some(([, label]) => label === 'CERTIFICATE')) return refuse('holds a certificate and no private key');
    if (blocks.some(([, label]) => label!.endsWith('PUBLIC KEY')))
      return refuse('holds a public key and no private one');
    if (text.includes('-----BEGIN ') && blocks.length === 0) return refuse('is cut off: a PEM block has no end');
    return refuse(text.trim() === '' ? 'is empty' : 'holds no private key in PEM format');
  }
  if (keys.length > 1) return refuse(`holds ${keys.length} private keys`, 'a PEM file with one private key');
  const pem = `${keys[0]![0]}\n`;
  if (/^-----BEGIN ENCRYPTED|^Proc-Type: 4,ENCRYPTED/m.test(pem)) {
    return refuse(
      'is encrypted, and nobody is there to type the passphrase',
      'a key without passphrase (`openssl pkey -in OLD -out NEW`), readable by the gateway only',
    );
  }
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (error) {
    return refuse(`holds a private key that cannot be read: ${reasonOf(error)}`);
  }
  const type = key.asymmetricKeyType!;
  if (!keyTypes.includes(type))
    return refuse(`has a key of type ${type}, which TLS has no use for`, 'EC, RSA or Ed25519');
  const bits = key.asymmetricKeyDetails?.modulusLength;
  if (bits !== undefined && bits < RSA_BITS_MIN) {
    return refuse(`has an RSA key of only ${bits} bits`, `at least ${RSA_BITS_MIN} bits, or an EC key`);
  }
  return { key, pem };
}

function leafProblem(
  leaf: X509Certificate,
  key: KeyObject,
  purpose: Purpose,
  nowMs: number | null,
): PemProblem | undefined {
  const refuse = (problem: string, expected: string): PemProblem => ({ part: 'certificate', problem, expected });
  const { validFromDate: from, validToDate: to } = leaf;
  if (nowMs !== null && nowMs >= to.getTime())
    return refuse(`expired on ${dateOf(to)}`, 'a certificate that is valid now');
  if (nowMs !== null && nowMs < from.getTime()) {
    return refuse(`is not valid before ${dateOf(from)}`, 'a certificate that is valid now, and the right time');
  }
  const usages = leaf.keyUsage as string[] | undefined;
  if (purpose === 'server' && usages !== undefined && !usages.includes(SERVER_USAGE) && !usages.includes(ANY_USAGE)) {
    return refuse('is not for servers (extended key usage)', 'a certificate with the usage serverAuth');
  }
  return key.asymmetricKeyType === leaf.publicKey.asymmetricKeyType
    ? undefined
    : refuse('has another type of key than the private key', CERTIFICATE_EXPECTED);
}

/** The leaf and its issuers as far as they are at hand; an authority at the end is left out, as clients have it. */
function orderChain(leaf: X509Certificate, certificates: readonly X509Certificate[]): X509Certificate[] {
  const chain = [leaf];
  for (;;) {
    const last = chain[chain.length - 1]!;
    const issuer = certificates.find(
      (candidate) => !chain.includes(candidate) && !isSelfIssued(candidate, leaf) && last.checkIssued(candidate),
    );
    if (issuer === undefined) return chain;
    chain.push(issuer);
  }
}

/** An authority at the top; the leaf may be its own. */
function isSelfIssued(certificate: X509Certificate, leaf: X509Certificate): boolean {
  return certificate !== leaf && certificate.subject === certificate.issuer && certificate.checkIssued(certificate);
}

/** Names that clients can ask for. A name that no client can send is left out. */
function dnsNames(leaf: X509Certificate): string[] {
  const { dns } = parseAlternativeNames(leaf.subjectAltName ?? '');
  return [...new Set(dns.map((name) => name.toLowerCase()))].filter((name) => hostnameProblem(name) === undefined);
}

/** What only OpenSSL finds, such as a signature that is too weak: the pair is used once for a try. */
function opensslProblem({ chainPem, keyPem }: ParsedCertificate): PemProblem | undefined {
  try {
    freeContext(createServerContext({ certificates: [{ chainPem, keyPem }], alpn: [], ticketKeys: null }));
    return undefined;
  } catch (error) {
    const problem = `is refused by OpenSSL: ${(error as Error).message}`;
    return { part: 'certificate', problem, expected: CERTIFICATE_EXPECTED };
  }
}

/** `CN=a, O=b` of a subject, or what says that there is none. */
function subjectOf({ subject }: X509Certificate): string {
  return subject ? subject.split('\n').reverse().join(', ') : 'empty';
}

function fingerprintOf({ fingerprint256 }: X509Certificate): string {
  return fingerprint256.replaceAll(':', '').toLowerCase();
}

function dateOf(date: Date): string {
  return date.toISOString().replace(/\.\d+Z$/, 'Z');
}

/** OpenSSL's reason without its codes. */
function reasonOf(error: unknown): string {
  const { message } = error as Error;
  return /^error:[0-9A-F]+:[^:]*:[^:]*:(.*)$/.exec(message)?.[1] || message;
}
