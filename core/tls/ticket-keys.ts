// Session tickets: the keys that seal them, and the callback that gives OpenSSL the right one.
//
// Tickets are stateless (RFC 5077 §4, RFC 8446 §4.6.1), so any worker opens what another sealed, as
// long as both were given the same keys. The newest key seals; all keys open, and a ticket under an
// older one is replaced. So is every one of TLS 1.3, whose clients use a ticket once (RFC 8446
// §C.4) and could resume only every other connection otherwise. Keys lie in C memory, where OpenSSL reads them, and are wiped when dropped.
// Owned by one thread. The callback runs a few times per handshake; it neither throws nor allocates.

import { allocate, hmacSha256Parameters, openSsl, registerTicketKey, release } from '../ffi/openssl.ts';

/** Bytes of one key: 16 of name, 32 for HMAC-SHA-256, 32 for AES-256-CBC (as nginx's 80-byte files). */
export const TICKET_KEY_BYTES = 80;

/** Most keys of one context: a rotation every half lifetime needs three. */
const TICKET_KEYS_MAX = 16;

/** Ticket keys, newest first; each has TICKET_KEY_BYTES. */
export type TicketKeys = readonly Uint8Array[];

const NAME_BYTES = 16;
const MAC_OFFSET = NAME_BYTES;
const MAC_BYTES = 32;
const CIPHER_OFFSET = MAC_OFFSET + MAC_BYTES;

// What the callback answers (SSL_CTX_set_tlsext_ticket_key_evp_cb).
const FAILED = -1;
const NO_KEY = 0;
const USED = 1;
const USED_RENEW = 2;

const TLS1_3_VERSION = 0x0304;

/** Keys of one context, copied to C memory. */
export class TicketKeyRing {
  /** Addresses of the keys, newest first. */
  readonly addresses: readonly number[];

  /** Copies the keys. Throws for none, too many, or a key of another size. */
  constructor(keys: TicketKeys) {
    if (keys.length === 0 || keys.length > TICKET_KEYS_MAX) {
      throw new Error(`a context takes 1 to ${TICKET_KEYS_MAX} session ticket keys, not ${keys.length}`);
    }
    for (const key of keys) {
      if (key.length !== TICKET_KEY_BYTES) {
        throw new Error(`a session ticket key has ${TICKET_KEY_BYTES} bytes, not ${key.length}`);
      }
    }
    this.addresses = keys.map(allocate);
  }

  /** Wipes and frees the keys; the ring must not be used any more. */
  free(): void {
    for (const address of this.addresses) release(address, TICKET_KEY_BYTES);
  }
}

interface Installed {
  callback: number;
  cipher: number;
  macParameters: number;
  rings: Map<number, TicketKeyRing>;
}

let installed: Installed | undefined;

/** What all contexts of the thread share. */
function install(): Installed {
  installed ??= {
    callback: registerTicketKey(chooseKey),
    // Fetched once: looking it up by name in each callback costs more than using it.
    cipher: openSsl().EVP_CIPHER_fetch(0, 'AES-256-CBC', null),
    macParameters: hmacSha256Parameters(),
    rings: new Map(),
  };
  return installed;
}

/**
 * Makes a context (its SSL_CTX) use a ring from now on, and returns the one before, which the
 * caller frees. Null takes the ring away; a context that is going to be freed needs that.
 */
export function setTicketKeyRing(context: number, ring: TicketKeyRing | null): TicketKeyRing | undefined {
  const { callback, rings } = install();
  const before = rings.get(context);
  if (ring === null) {
    rings.delete(context);
  } else {
    rings.set(context, ring);
    if (before === undefined) openSsl().SSL_CTX_set_tlsext_ticket_key_evp_cb(context, callback);
  }
  return before;
}

function chooseKey(
  ssl: number,
  keyName: number,
  iv: number,
  cipherContext: number,
  macContext: number,
  encrypt: number,
): number {
  const { SSL_get_SSL_CTX, SSL_version, RAND_bytes, memcpy, memcmp } = openSsl();
  const { EVP_EncryptInit_ex2, EVP_DecryptInit_ex2, EVP_MAC_init } = openSsl();
  const { cipher, macParameters, rings } = installed!;
  const addresses = rings.get(SSL_get_SSL_CTX(ssl))?.addresses;
  if (addresses === undefined) return NO_KEY;
  if (encrypt === 1) {
    const key = addresses[0];
    if (RAND_bytes(iv, 16) !== 1) return FAILED;
    memcpy(keyName, key, NAME_BYTES);
    if (EVP_EncryptInit_ex2(cipherContext, cipher, key + CIPHER_OFFSET, iv, 0) !== 1) return FAILED;
    return EVP_MAC_init(macContext, key + MAC_OFFSET, MAC_BYTES, macParameters) === 1 ? USED : FAILED;
  }
  for (let i = 0; i < addresses.length; i++) {
    const key = addresses[i];
    if (memcmp(keyName, key, NAME_BYTES) !== 0) continue;
    if (EVP_MAC_init(macContext, key + MAC_OFFSET, MAC_BYTES, macParameters) !== 1) return FAILED;
    if (EVP_DecryptInit_ex2(cipherContext, cipher, key + CIPHER_OFFSET, iv, 0) !== 1) return FAILED;
    return i === 0 && SSL_version(ssl) !== TLS1_3_VERSION ? USED : USED_RENEW;
  }
  return NO_KEY;
}
