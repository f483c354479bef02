// The certificate that a client has shown, in the forms that requests, logs and routes use. Made once
// per handshake, and only on listeners that validate clients.
// Format of X-Forwarded-Client-Cert: Envoy's (Hash, Cert omitted, Subject, URI, DNS).

import { decodeSockaddr, encodeSockaddr } from '../ffi/sockaddr.ts';
import type { PeerCertificate } from '../tls/peer.ts';

const encoder = new TextEncoder();

export class ClientCertificate {
  /** The chain leads to a trusted authority. */
  readonly verified: boolean;
  /** RFC 2253 style, `CN=alice,O=Example`. */
  readonly subject: string;
  /** SHA-256 of the certificate, lower-case hexadecimal. */
  readonly sha256: string;
  /** The SPIFFE identity, or ''. */
  readonly spiffeId: string;
  /** Milliseconds since 1970. */
  readonly notAfterMs: number;
  readonly dnsNames: readonly string[];
  /** All names as routes compare them: DNS names in lower case, IP addresses in one form (RFC 5952). */
  readonly subjectAltNames: readonly Uint8Array[];
  /** `sha256` as bytes. */
  readonly sha256Bytes: Uint8Array;
  /** Element of X-Forwarded-Client-Cert for a verified client. */
  readonly forwarded: Uint8Array;
  /** Subject as bytes, for logs. */
  readonly subjectBytes: Uint8Array;

  constructor(certificate: PeerCertificate) {
    this.verified = certificate.verified;
    this.subject = certificate.subject
      .split('\n')
      .filter((part) => part !== '')
      .reverse()
      .join(',');
    this.sha256 = certificate.sha256;
    this.spiffeId = certificate.spiffeId;
    this.notAfterMs = certificate.notAfterMs;
    this.dnsNames = certificate.names.dns;
    const { dns, uri, ip, email } = certificate.names;
    const names = [...dns.map((name) => name.toLowerCase()), ...uri, ...ip.map(shortAddress), ...email];
    this.subjectAltNames = names.map((name) => encoder.encode(name));
    this.sha256Bytes = encoder.encode(this.sha256);
    const parts = [`Hash=${this.sha256}`, `Subject="${quote(this.subject)}"`];
    for (const uri of certificate.names.uri) parts.push(`URI=${element(uri)}`);
    for (const name of certificate.names.dns) parts.push(`DNS=${element(name)}`);
    this.forwarded = encoder.encode(parts.join(';'));
    this.subjectBytes = encoder.encode(this.subject);
  }
}

/** An IP address in its shortest form; other text as it is. */
function shortAddress(text: string): string {
  const sockaddr = encodeSockaddr(text, 0);
  return sockaddr === undefined ? text : decodeSockaddr(sockaddr, 0)!.host;
}

/** Text inside double quotes; what no field value may hold becomes a question mark. */
function quote(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?').replace(/["\\]/g, '\\$&');
}

/** A value that is quoted only where it has to be. */
function element(text: string): string {
  return /[,;="]/.test(text) ? `"${quote(text)}"` : quote(text);
}
