// Application protocol negotiation (RFC 7301): the wire form of protocol lists, the server's
// choice, and small numbers for the protocols that the core knows.
// Owned by one thread; the callback runs once per handshake and neither throws nor allocates.

import { allocate, openSsl, registerAlpnSelect, release, selectedAlpn } from '../ffi/openssl.ts';

/** What a session speaks, as a number. */
export const Alpn = {
  /** Nothing was negotiated: HTTP/1.1, as far as HTTP is concerned. */
  NONE: 0,
  HTTP1: 1,
  H2: 2,
  /** An ACME challenge (RFC 8737): the handshake is all there is. */
  ACME: 3,
  /** Another protocol: `selectedAlpn` has its name. */
  OTHER: 4,
} as const;

/** A protocol number. */
export type Alpn = (typeof Alpn)[keyof typeof Alpn];

const numbers = new Map<string, Alpn>([
  ['', Alpn.NONE],
  ['http/1.1', Alpn.HTTP1],
  ['h2', Alpn.H2],
  ['acme-tls/1', Alpn.ACME],
]);

/** Number of a protocol by its ALPN name; '' is none. */
function alpnNumber(name: string): Alpn {
  return numbers.get(name) ?? Alpn.OTHER;
}

/** What a session whose handshake is done has agreed on. */
export function sessionAlpn(ssl: number): Alpn {
  return alpnNumber(selectedAlpn(ssl));
}

/** Longest name of a protocol (RFC 7301 §3.1). */
const NAME_BYTES_MAX = 255;

/** The wire form of a list: each name behind its length (RFC 7301 §3.1). Throws for an impossible name. */
export function encodeAlpn(names: readonly string[]): Uint8Array {
  const parts = names.map((name) => {
    const bytes = Buffer.from(name, 'latin1');
    if (bytes.length === 0 || bytes.length > NAME_BYTES_MAX || bytes.toString('latin1') !== name) {
      throw new Error(`"${name}" is not a possible ALPN protocol: 1 to ${NAME_BYTES_MAX} bytes`);
    }
    return Buffer.concat([Buffer.of(bytes.length), bytes]);
  });
  return Buffer.concat(parts);
}

// What the callback answers (SSL_CTX_set_alpn_select_cb).
const CHOSEN = 0;
const ALERT_FATAL = 2;
/** Result of SSL_select_next_proto when both lists have something in common. */
const NEGOTIATED = 1;

/** Lists in C memory that are in use, by address: their lengths. */
const lengths = new Map<number, number>();
let callback = 0;

/** The server's first protocol that the client offers too; none is fatal (RFC 7301 §3.2). */
function select(_ssl: number, out: number, outLength: number, offered: number, offeredLength: number, list: number) {
  const length = lengths.get(list);
  if (length === undefined) return ALERT_FATAL;
  const result = openSsl().SSL_select_next_proto(out, outLength, list, length, offered, offeredLength);
  return result === NEGOTIATED ? CHOSEN : ALERT_FATAL;
}

/**
 * Makes a server context (its SSL_CTX) choose from `names`, in their order. Returns the list in C
 * memory, for `freeAlpnList` when the last session of the context has gone; 0 for an empty list.
 */
export function setServerAlpn(context: number, names: readonly string[]): number {
  if (names.length === 0) return 0;
  const bytes = encodeAlpn(names);
  const list = allocate(bytes);
  lengths.set(list, bytes.length);
  if (callback === 0) callback = registerAlpnSelect(select);
  openSsl().SSL_CTX_set_alpn_select_cb(context, callback, list);
  return list;
}

/** Frees what `setServerAlpn` returned. */
export function freeAlpnList(list: number): void {
  const length = lengths.get(list);
  if (length === undefined) return;
  lengths.delete(list);
  release(list, length);
}
