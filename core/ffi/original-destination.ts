// Where a captured connection was going: the destination before the redirect of mesh-agent/capture.
//
// A redirect (nftables `redirect`) rewrites the destination; connection tracking remembers the old one. TPROXY
// rewrites nothing: there the local address of the accepted socket is the destination.
// Owned by one thread, which makes one of these. Hot module: called once per accepted connection; results are
// numbers in fields that the next call overwrites.
// Source: SO_ORIGINAL_DST in linux/netfilter_ipv4.h, IP6T_SO_ORIGINAL_DST in linux/netfilter_ipv6/ip6_tables.h.

import koffi from 'koffi';
import { type MappedMemory, mapMemory, unmapMemory, viewMemory } from './memory.ts';
import { Family, SOCKADDR_IN_BYTES, SOCKADDR_IN6_BYTES } from './sockaddr.ts';

const SOL_IP = 0;
const SOL_IPV6 = 41;
const SO_ORIGINAL_DST = 80;

const { INET, INET6 } = Family;
const V4_BYTES = SOCKADDR_IN_BYTES;
const V6_BYTES = SOCKADDR_IN6_BYTES;

/** Address words of `::ffff:0:0/96`, and where its IPv4 address is. */
const MAPPED_WORD = 0xffff;

const ORIGINAL_AT = 0;
const LOCAL_AT = 64;
const LENGTH_AT = 128;
const AREA_BYTES = 4096;
const SOCKADDR_MAX = 64;

type NumberCall = (...args: number[]) => number;

/** What a lookup says; anything else is a negative error number. */
export const Lookup = {
  /** The fields hold the destination. */
  FOUND: 0,
  /**
   * The connection came straight to the listener: nobody redirected it. Connecting to its "destination" would lead
   * back to the listener, for ever.
   */
  DIRECT: 1,
} as const;

const { FOUND, DIRECT } = Lookup;

/** Reads destinations, for the thread that makes it. */
export class OriginalDestination {
  /** Family.INET or Family.INET6; an IPv4 address in an IPv6 socket counts as IPv4. */
  family = 0;
  /** 0 to 65535. */
  port = 0;
  /** The address as big-endian 32-bit words (signed); of an IPv4 address only the first counts, the rest is 0. */
  readonly address = new Int32Array(4);
  /** The destination as `connect` takes it, when `family` is INET. A view: the next lookup overwrites it. */
  readonly sockaddr4: Uint8Array;
  /** The same when `family` is INET6. */
  readonly sockaddr6: Uint8Array;

  private readonly memory: MappedMemory;
  private readonly base: number;
  private readonly view: DataView;
  private readonly getsockopt: NumberCall;
  private readonly getsockname: NumberCall;

  constructor() {
    const libc = koffi.load(null);
    this.getsockopt = libc.func('int getsockopt(int fd, int level, int name, uint64 value, uint64 length)');
    this.getsockname = libc.func('int getsockname(int fd, uint64 address, uint64 length)');
    this.memory = mapMemory(AREA_BYTES);
    this.base = this.memory.address;
    const buffer = viewMemory(this.memory);
    this.view = new DataView(buffer);
    this.sockaddr4 = new Uint8Array(buffer, ORIGINAL_AT, V4_BYTES);
    this.sockaddr6 = new Uint8Array(buffer, ORIGINAL_AT, V6_BYTES);
  }

  /**
   * Destination before a redirect, of a connection that a listener of this family accepted. -ENOENT: connection
   * tracking knows nothing of it, so no rule is installed.
   */
  redirected(fd: number, listenerFamily: number): number {
    const { view, base } = this;
    view.setUint32(LENGTH_AT, SOCKADDR_MAX, true);
    const level = listenerFamily === INET6 ? SOL_IPV6 : SOL_IP;
    if (this.getsockopt(fd, level, SO_ORIGINAL_DST, base + ORIGINAL_AT, base + LENGTH_AT) < 0) return -koffi.errno();
    view.setUint32(LENGTH_AT, SOCKADDR_MAX, true);
    if (this.getsockname(fd, base + LOCAL_AT, base + LENGTH_AT) < 0) return -koffi.errno();
    const direct = this.sameAddress();
    this.decode();
    return direct ? DIRECT : FOUND;
  }

  /** Destination of a connection that a transparent listener accepted. Never `Lookup.DIRECT`. */
  transparent(fd: number): number {
    const { view, base } = this;
    view.setUint32(LENGTH_AT, SOCKADDR_MAX, true);
    if (this.getsockname(fd, base + ORIGINAL_AT, base + LENGTH_AT) < 0) return -koffi.errno();
    this.decode();
    return FOUND;
  }

  /** Gives the memory back; the object must not be used any more. */
  close(): void {
    unmapMemory(this.memory);
  }

  /** Whether both socket addresses name the same family, port and address (flow and scope do not count). */
  private sameAddress(): boolean {
    const { view } = this;
    if (view.getUint32(ORIGINAL_AT, true) !== view.getUint32(LOCAL_AT, true)) return false;
    const six = view.getUint16(ORIGINAL_AT, true) === INET6;
    const start = six ? 8 : 4;
    const end = six ? 24 : 8;
    for (let at = start; at < end; at += 4) {
      if (view.getInt32(ORIGINAL_AT + at, true) !== view.getInt32(LOCAL_AT + at, true)) return false;
    }
    return true;
  }

  private decode(): void {
    const { view, address } = this;
    this.port = view.getUint16(ORIGINAL_AT + 2, false);
    this.family = view.getUint16(ORIGINAL_AT, true);
    if (this.family !== INET6) {
      address[0] = view.getInt32(ORIGINAL_AT + 4, false);
      address[1] = address[2] = address[3] = 0;
      return;
    }
    for (let i = 0; i < 4; i++) address[i] = view.getInt32(ORIGINAL_AT + 8 + i * 4, false);
    if (address[0] !== 0 || address[1] !== 0 || address[2] !== MAPPED_WORD) return;
    const v4 = address[3]!;
    view.setUint16(ORIGINAL_AT, INET, true);
    view.setInt32(ORIGINAL_AT + 4, v4, false);
    view.setInt32(ORIGINAL_AT + 8, 0);
    view.setInt32(ORIGINAL_AT + 12, 0);
    this.family = INET;
    address[0] = v4;
    address[2] = address[3] = 0;
  }
}
