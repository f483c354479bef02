// What a PROXY header says, of either version: who sent it, both addresses, and the additional fields.
//
// Positions are in the memory that was parsed, and valid as long as its bytes. Objects are made once and
// filled anew for each header: whoever has one reads it before the next.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.2, §2.2.1 to §2.2.7).

import type { PeerAddress } from '../io/connection.ts';

/** Whose connection it is (§2.2). */
export const ProxyCommand = {
  /** The sender's own, a health check for instance: the connection's real addresses count. */
  LOCAL: 0,
  /** Somebody else's, whom the sender relays. */
  PROXY: 1,
} as const;

/** Address family of a PROXY header that is neither Family.INET nor Family.INET6. */
export const ProxyFamily = {
  /** Not said (LOCAL, UNKNOWN, AF_UNSPEC): the connection's real addresses count. */
  NONE: 0,
  /** Unix sockets (AF_UNIX of sys/socket.h): likewise. */
  UNIX: 1,
} as const;

/** Transport of the relayed connection (§2.2). */
export const ProxyTransport = { NONE: 0, STREAM: 1, DGRAM: 2 } as const;

/** Bits of `ProxyTlvs.sslClient` (§2.2.6). */
export const SslClient = {
  /** The client used TLS. */
  SSL: 1,
  /** It presented a certificate on this connection. */
  CERT_CONN: 2,
  /** It presented a certificate at least once in the TLS session. */
  CERT_SESS: 4,
} as const;

/** A run of bytes in memory. */
export class ByteRange {
  /** -1: absent. */
  offset = -1;
  length = 0;

  /** Makes the range absent. */
  clear(): void {
    this.offset = -1;
    this.length = 0;
  }

  /** Makes it [offset, offset + length). */
  set(offset: number, length: number): void {
    this.offset = offset;
    this.length = length;
  }
}

/**
 * The additional fields of version 2 (§2.2.1 to §2.2.7), as positions in memory; valid as long as the
 * bytes that were parsed. The same object says what `writeProxyV2` adds.
 */
export class ProxyTlvs {
  /** Application protocol, as in ALPN. */
  readonly alpn = new ByteRange();
  /** Host name the client asked for, UTF-8: its SNI. As sent: neither checked nor in lower case. */
  readonly authority = new ByteRange();
  /** Opaque identifier of the connection, up to 128 bytes. */
  readonly uniqueId = new ByteRange();
  /** Name of a network namespace, ASCII. */
  readonly netns = new ByteRange();
  /** The SSL TLV is there, and with it `sslClient`, `sslVerify` and some of the ranges below. */
  ssl = false;
  /** Bits of `SslClient`. */
  sslClient = 0;
  /** 0: the client presented a certificate and it was verified. A signed 32-bit number. */
  sslVerify = 0;
  /** TLS version such as `TLSv1.3`. */
  readonly sslVersion = new ByteRange();
  /** Common name of the client's certificate, UTF-8. */
  readonly sslCommonName = new ByteRange();
  /** Cipher, and the algorithms of the server certificate's signature and key. */
  readonly sslCipher = new ByteRange();
  readonly sslSignature = new ByteRange();
  readonly sslKey = new ByteRange();
  /** Parsed: a CRC32C was there, and right. To write: add one. */
  checksum = false;

  /** Removes everything. */
  reset(): void {
    this.alpn.clear();
    this.authority.clear();
    this.uniqueId.clear();
    this.netns.clear();
    this.ssl = false;
    this.sslClient = 0;
    this.sslVerify = 0;
    this.sslVersion.clear();
    this.sslCommonName.clear();
    this.sslCipher.clear();
    this.sslSignature.clear();
    this.sslKey.clear();
    this.checksum = false;
  }
}

/** What a PROXY header says. */
export class ProxyHeader {
  /** After a return of 0: bytes from the header's begin that are needed to get further. A lower bound. */
  bytesNeeded = 0;
  /** 1 or 2. */
  version = 0;
  /** A ProxyCommand. UNKNOWN of version 1 is PROXY with no family. */
  command = 0;
  /** Family.INET or Family.INET6: `source` and `destination` are known; otherwise a ProxyFamily. */
  family = 0;
  /** A ProxyTransport. */
  transport = 0;
  /** The client, and the address that it connected to. `peerFamily` is `family`, or 0. */
  readonly source: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };
  readonly destination: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };
  /** Version 2 with addresses; all absent otherwise. */
  readonly tlvs = new ProxyTlvs();

  /** Back to "nothing known". */
  reset(): void {
    this.bytesNeeded = 0;
    this.version = 0;
    this.command = 0;
    this.family = 0;
    this.transport = 0;
    clearAddress(this.source);
    clearAddress(this.destination);
    this.tlvs.reset();
  }
}

function clearAddress(address: PeerAddress): void {
  address.peerFamily = 0;
  address.peerPort = 0;
  address.peer0 = 0;
  address.peer1 = 0;
  address.peer2 = 0;
  address.peer3 = 0;
}
