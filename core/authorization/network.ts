// IP networks that authorisation policies name: an address, or a network in CIDR form.
//
// IPv4 addresses written in IPv6 (::ffff:10.0.0.1) are IPv4 everywhere (RFC 4291 §2.5.5.2). Bits behind a prefix say
// nothing, as in Istio. Immutable; asked once per connection, or per request behind proxies.
// Hot module: no allocation per comparison.

import { isIP } from 'node:net';
import { encodeSockaddr, Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from '../io/connection.ts';

const { INET, INET6 } = Family;
const MAPPED = 0xffff;
const MAPPED_BITS = 96;

/** A network. */
export class Network {
  /** Family.INET or Family.INET6. */
  readonly family: number;
  /** Length of the prefix. */
  readonly bits: number;
  private readonly words: Int32Array;

  private constructor(family: number, bits: number, words: Int32Array) {
    this.family = family;
    this.bits = bits;
    this.words = words;
  }

  /** Reads a network; null: the text is none. */
  static parse(text: string): Network | null {
    const [host = '', length, more] = text.split('/');
    const version = isIP(host);
    if (version === 0 || host.includes('%') || more !== undefined) return null;
    const max = version === 4 ? 32 : 128;
    if (length !== undefined && !/^(0|[1-9]\d{0,2})$/.test(length)) return null;
    const bits = length === undefined ? max : Number(length);
    if (bits > max) return null;
    const address = parseAddress(host)!;
    const { peer0, peer1, peer2, peer3, peerFamily } = address;
    if (version === 4) return new Network(INET, bits, Int32Array.of(peer0));
    if (peerFamily === INET && bits >= MAPPED_BITS) return new Network(INET, bits - MAPPED_BITS, Int32Array.of(peer0));
    // A network that has IPv4-mapped addresses among others has none of them: those are IPv4.
    if (peerFamily === INET) return new Network(INET6, bits, Int32Array.of(0, 0, MAPPED, peer0));
    return new Network(INET6, bits, Int32Array.of(peer0, peer1, peer2, peer3));
  }

  /** Whether an address lies in the network. */
  contains(peer: PeerAddress): boolean {
    const { words, bits } = this;
    const mapped = isMapped(peer);
    const family = mapped ? INET : peer.peerFamily;
    if (family !== this.family) return false;
    if (!sameStart(words[0]!, mapped ? peer.peer3 : peer.peer0, bits)) return false;
    if (bits <= 32) return true;
    if (!sameStart(words[1]!, peer.peer1, bits - 32)) return false;
    if (bits <= 64) return true;
    if (!sameStart(words[2]!, peer.peer2, bits - 64)) return false;
    return bits <= 96 || sameStart(words[3]!, peer.peer3, bits - 96);
  }
}

/** Networks of which any one will do. */
export class NetworkList {
  private readonly networks: readonly Network[];
  private readonly unknown: boolean;

  constructor(texts: readonly string[]) {
    const networks: Network[] = [];
    for (const text of texts) {
      const network = Network.parse(text);
      if (network !== null) networks.push(network);
    }
    this.networks = networks;
    this.unknown = networks.length < texts.length;
  }

  /** Whether an address (null: not known) is in one of the networks; with `lenient` also if that cannot be told. */
  has(peer: PeerAddress | null, lenient: boolean): boolean {
    if (peer === null || peer.peerFamily === 0) return lenient;
    if (this.unknown && lenient) return true;
    for (let i = 0; i < this.networks.length; i++) if (this.networks[i]!.contains(peer)) return true;
    return false;
  }
}

/** Words of an IP address, IPv4-mapped ones as IPv4; null: the text is none. For load and new connections. */
export function parseAddress(host: string): PeerAddress | null {
  const sockaddr = encodeSockaddr(host, 0);
  if (sockaddr === undefined) return null;
  const view = new DataView(sockaddr.buffer);
  const none = { peerPort: 0, peer1: 0, peer2: 0, peer3: 0 };
  if (sockaddr[0] === INET) return { ...none, peerFamily: INET, peer0: view.getInt32(4) };
  const [peer0, peer1, peer2, peer3] = [8, 12, 16, 20].map((at) => view.getInt32(at)) as [
    number,
    number,
    number,
    number,
  ];
  const address = { peerFamily: INET6, peerPort: 0, peer0, peer1, peer2, peer3 };
  return isMapped(address) ? { ...none, peerFamily: INET, peer0: peer3 } : address;
}

function isMapped(peer: PeerAddress): boolean {
  return peer.peerFamily === INET6 && peer.peer0 === 0 && peer.peer1 === 0 && peer.peer2 === MAPPED;
}

/** Whether the first `bits` bits of two words are the same; all of them from 32 on. */
function sameStart(a: number, b: number, bits: number): boolean {
  if (bits <= 0) return true;
  return bits >= 32 ? (a | 0) === (b | 0) : (a ^ b) >>> (32 - bits) === 0;
}
