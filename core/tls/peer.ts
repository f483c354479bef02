// What a handshake agreed on and who the peer is. Asked once per connection, and only when something
// needs it (a log format, a filter, an identity): texts and objects are fine here.
// Functions take the number of a session whose handshake is done. Owned by one thread.
// Spec: RFC 5280 §4.2.1.6 (subject alternative names), SPIFFE X.509-SVID.

import { X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import { certificateDer, openSsl, X509Flag } from '../ffi/openssl.ts';

/** Subject alternative names of a certificate, by kind. */
export interface AlternativeNames {
  dns: string[];
  uri: string[];
  ip: string[];
  email: string[];
}

/** The certificate that a peer has shown. */
export interface PeerCertificate {
  der: Uint8Array;
  pem: string;
  /** One `KEY=value` per line, as Node.js writes it; '' if empty. */
  subject: string;
  issuer: string;
  names: AlternativeNames;
  /** SHA-256 of the DER bytes, lower-case hexadecimal without colons. */
  sha256: string;
  /** Serial number, hexadecimal. */
  serial: string;
  /** Milliseconds since 1970. */
  notBeforeMs: number;
  notAfterMs: number;
  /** The SPIFFE identity, if the certificate has exactly one URI and that is one; else ''. */
  spiffeId: string;
  /** The chain leads to a trusted authority. False when the context does not verify and it does not. */
  verified: boolean;
}

/** The protocol version, such as `TLSv1.3`. */
export function sessionVersion(ssl: number): string {
  const version = openSsl().SSL_version(ssl);
  return version === 0x0304 ? 'TLSv1.3' : version === 0x0303 ? 'TLSv1.2' : `0x${version.toString(16)}`;
}

/** Whether the handshake resumed an earlier session. */
export function sessionResumed(ssl: number): boolean {
  return openSsl().SSL_session_reused(ssl) === 1;
}

/** The peer's certificate, or null when it has shown none. A resumed session has that of the first one. */
export function peerCertificate(ssl: number): PeerCertificate | null {
  const { SSL_get0_peer_certificate, SSL_get_verify_result } = openSsl();
  const certificate = SSL_get0_peer_certificate(ssl);
  const der = certificate === 0 ? undefined : certificateDer(certificate);
  if (der === undefined) return null;
  const x509 = new X509Certificate(der);
  const names = parseAlternativeNames(x509.subjectAltName ?? '');
  return {
    der,
    pem: x509.toString(),
    subject: x509.subject ?? '',
    issuer: x509.issuer ?? '',
    names,
    sha256: x509.fingerprint256.replaceAll(':', '').toLowerCase(),
    serial: x509.serialNumber,
    notBeforeMs: Date.parse(x509.validFrom),
    notAfterMs: Date.parse(x509.validTo),
    // X.509-SVID §2: an SVID has exactly one URI; more make it no SVID.
    spiffeId: names.uri.length === 1 && names.uri[0].startsWith('spiffe://') ? names.uri[0] : '',
    verified: SSL_get_verify_result(ssl) === 0,
  };
}

/** Whether a name to verify is a URI, not a DNS name or an address. */
export function isUri(name: string): boolean {
  return name.includes('://');
}

/** Whether the peer's certificate is for one of the names; see `TlsSessions.connect` for their forms. */
export function matchesAnyName(ssl: number, names: readonly string[]): boolean {
  const { SSL_get0_peer_certificate, X509_check_host, X509_check_ip_asc } = openSsl();
  const certificate = SSL_get0_peer_certificate(ssl);
  if (certificate === 0) return false;
  const flags = X509Flag.CHECK_NO_PARTIAL_WILDCARDS | X509Flag.CHECK_NEVER_SUBJECT;
  const uris = names.some(isUri) ? (peerCertificate(ssl)?.names.uri ?? []) : [];
  return names.some((name) => {
    if (isUri(name)) return uris.includes(name);
    if (isIP(name) !== 0) return X509_check_ip_asc(certificate, name, 0) === 1;
    return X509_check_host(certificate, name, Buffer.byteLength(name), flags, 0) === 1;
  });
}

const kinds: Record<string, keyof AlternativeNames> = {
  DNS: 'dns',
  URI: 'uri',
  'IP Address': 'ip',
  email: 'email',
};

/**
 * Parses the text that Node.js makes of subject alternative names: `DNS:a.example, URI:"x, y"`.
 * Names with special characters are JSON strings in it, so that none can pass for two.
 */
export function parseAlternativeNames(text: string): AlternativeNames {
  const names: AlternativeNames = { dns: [], uri: [], ip: [], email: [] };
  for (const [, kind, quoted, plain] of text.matchAll(/(?:^|, )([^:,"]+):(?:("(?:[^"\\]|\\.)*")|([^,"]*))/g)) {
    const list = kinds[kind];
    if (list === undefined) continue;
    names[list].push(quoted === undefined ? plain : (JSON.parse(quoted) as string));
  }
  return names;
}
