// OpenSSL of the running Node.js binary, through koffi: the functions that core/tls needs, its
// error queue, and C memory for what OpenSSL keeps a pointer to.
//
// Everything belongs to the calling thread: the bindings, the callbacks and every object made
// through them. OpenSSL objects are plain numbers (addresses, always below 2^53; 0 is NULL).
// Invariant: the thread's error queue is empty between calls of core/tls. Whoever finds a failure
// drains it, so that the packet path need not clear it before each read and write (that costs
// several times a read's own call). Calls that are not on the packet path clear it first.
// `createRecordIo` is hot: range check, address, call. Constants: openssl/ssl.h, tls1.h, x509_vfy.h.

import koffi from 'koffi';
import { KERNEL_RESERVED_BYTES } from './kernel.ts';
import type { MappedMemory } from './memory.ts';

/** Results of SSL_get_error. */
export const SslError = { NONE: 0, SSL: 1, WANT_READ: 2, WANT_WRITE: 3, SYSCALL: 5, ZERO_RETURN: 6 } as const;

/** Commands of SSL_CTX_ctrl and SSL_ctrl (macros in ssl.h). */
export const SslCtrl = {
  MODE: 33,
  SET_READ_AHEAD: 41,
  SET_SESS_CACHE_MODE: 44,
  SET_TLSEXT_HOSTNAME: 55,
  SET_GROUPS_LIST: 92,
  SET_MIN_PROTO_VERSION: 123,
  SET_MAX_PROTO_VERSION: 124,
} as const;

/** Bits of SSL_CTX_set_options. */
export const SslOption = {
  NO_TICKET: 2 ** 14,
  NO_COMPRESSION: 2 ** 17,
  PRIORITIZE_CHACHA: 2 ** 21,
  CIPHER_SERVER_PREFERENCE: 2 ** 22,
  NO_RENEGOTIATION: 2 ** 30,
} as const;

/** Bits of SSL_CTX_set_mode. */
export const SslMode = {
  ENABLE_PARTIAL_WRITE: 0x01,
  ACCEPT_MOVING_WRITE_BUFFER: 0x02,
  AUTO_RETRY: 0x04,
  RELEASE_BUFFERS: 0x10,
} as const;

/** Modes of SSL_CTX_set_verify. */
export const SslVerify = { NONE: 0, PEER: 1, FAIL_IF_NO_PEER_CERT: 2 } as const;

/** Flags of X509_VERIFY_PARAM and X509_check_host. */
export const X509Flag = {
  /** Any certificate in the store ends a chain, not only self-signed ones. */
  PARTIAL_CHAIN: 0x80000,
  CHECK_NO_PARTIAL_WILDCARDS: 0x4,
  CHECK_NEVER_SUBJECT: 0x20,
} as const;

/** Longest text of one error. */
const ERROR_TEXT_BYTES = 256;

/** Most entries of an error queue (ERR_NUM_ERRORS). */
const ERRORS_MAX = 16;

/** Arguments are descriptors, flags, lengths and addresses: all numbers. */
type Call = (...args: number[]) => number;
/** For calls that also take texts or bytes, valid during the call only. */
type MixedCall = (...args: (number | string | Uint8Array | BigUint64Array | Uint32Array | null)[]) => number;
type TextCall = (...args: number[]) => string | null;

/** OpenSSL and a few libc functions, bound once per thread. Names and results are OpenSSL's own. */
function bindOpenSsl() {
  const lib = koffi.load(null);
  const call = (prototype: string) => lib.func(prototype) as unknown as Call;
  const mixed = (prototype: string) => lib.func(prototype) as unknown as MixedCall;
  const text = (prototype: string) => lib.func(prototype) as unknown as TextCall;
  return {
    // Contexts.
    TLS_server_method: call('uint64 TLS_server_method()'),
    TLS_client_method: call('uint64 TLS_client_method()'),
    SSL_CTX_new: call('uint64 SSL_CTX_new(uint64 method)'),
    SSL_CTX_free: call('void SSL_CTX_free(uint64 context)'),
    SSL_CTX_ctrl: mixed('long SSL_CTX_ctrl(uint64 context, int command, long number, const char *pointer)'),
    SSL_CTX_set_options: call('uint64 SSL_CTX_set_options(uint64 context, uint64 options)'),
    SSL_CTX_set_cipher_list: mixed('int SSL_CTX_set_cipher_list(uint64 context, const char *list)'),
    SSL_CTX_set_ciphersuites: mixed('int SSL_CTX_set_ciphersuites(uint64 context, const char *list)'),
    SSL_CTX_use_cert_and_key: call(
      'int SSL_CTX_use_cert_and_key(uint64 context, uint64 certificate, uint64 key, uint64 chain, int override)',
    ),
    SSL_CTX_set_alpn_select_cb: call(
      'void SSL_CTX_set_alpn_select_cb(uint64 context, uint64 callback, uint64 argument)',
    ),
    SSL_CTX_set_alpn_protos: mixed('int SSL_CTX_set_alpn_protos(uint64 context, const void *protocols, uint length)'),
    SSL_CTX_set_tlsext_ticket_key_evp_cb: call(
      'int SSL_CTX_set_tlsext_ticket_key_evp_cb(uint64 context, uint64 callback)',
    ),
    SSL_CTX_set_num_tickets: call('int SSL_CTX_set_num_tickets(uint64 context, uint64 count)'),
    SSL_CTX_set_timeout: call('long SSL_CTX_set_timeout(uint64 context, long seconds)'),
    SSL_CTX_set_session_id_context: mixed(
      'int SSL_CTX_set_session_id_context(uint64 context, const void *id, uint length)',
    ),
    SSL_CTX_set_default_read_buffer_len: call('void SSL_CTX_set_default_read_buffer_len(uint64 context, uint64 bytes)'),
    SSL_CTX_set_verify: call('void SSL_CTX_set_verify(uint64 context, int mode, uint64 callback)'),
    SSL_CTX_set_verify_depth: call('void SSL_CTX_set_verify_depth(uint64 context, int depth)'),
    SSL_CTX_get_cert_store: call('uint64 SSL_CTX_get_cert_store(uint64 context)'),
    SSL_CTX_set1_cert_store: call('void SSL_CTX_set1_cert_store(uint64 context, uint64 store)'),
    SSL_CTX_add_client_CA: call('int SSL_CTX_add_client_CA(uint64 context, uint64 certificate)'),

    // Certificates and keys.
    X509_STORE_new: call('uint64 X509_STORE_new()'),
    X509_STORE_free: call('void X509_STORE_free(uint64 store)'),
    X509_STORE_add_cert: call('int X509_STORE_add_cert(uint64 store, uint64 certificate)'),
    X509_STORE_set_flags: call('int X509_STORE_set_flags(uint64 store, uint64 flags)'),
    X509_STORE_CTX_new: call('uint64 X509_STORE_CTX_new()'),
    X509_STORE_CTX_free: call('void X509_STORE_CTX_free(uint64 verification)'),
    X509_STORE_CTX_init: call(
      'int X509_STORE_CTX_init(uint64 verification, uint64 store, uint64 certificate, uint64 chain)',
    ),
    X509_STORE_CTX_set_default: mixed('int X509_STORE_CTX_set_default(uint64 verification, const char *name)'),
    X509_verify_cert: call('int X509_verify_cert(uint64 verification)'),
    X509_free: call('void X509_free(uint64 certificate)'),
    i2d_X509: mixed('int i2d_X509(uint64 certificate, uint64 *out)'),
    X509_check_host: mixed(
      'int X509_check_host(uint64 certificate, const char *name, uint64 length, uint flags, uint64 matched)',
    ),
    X509_check_ip_asc: mixed('int X509_check_ip_asc(uint64 certificate, const char *address, uint flags)'),
    EVP_PKEY_free: call('void EVP_PKEY_free(uint64 key)'),
    BIO_s_mem: call('uint64 BIO_s_mem()'),
    BIO_new: call('uint64 BIO_new(uint64 method)'),
    BIO_write: mixed('int BIO_write(uint64 bio, const void *bytes, int length)'),
    BIO_free: call('int BIO_free(uint64 bio)'),
    BIO_up_ref: call('int BIO_up_ref(uint64 bio)'),
    BIO_new_bio_pair: mixed(
      'int BIO_new_bio_pair(uint64 *first, uint64 firstBytes, uint64 *second, uint64 secondBytes)',
    ),
    BIO_ctrl_pending: call('uint64 BIO_ctrl_pending(uint64 bio)'),
    BIO_nread0: mixed('int BIO_nread0(uint64 bio, uint64 *address)'),
    BIO_nread: call('int BIO_nread(uint64 bio, uint64 address, int length)'),
    PEM_read_bio_X509: call('uint64 PEM_read_bio_X509(uint64 bio, uint64 into, uint64 callback, uint64 argument)'),
    PEM_read_bio_PrivateKey: mixed(
      'uint64 PEM_read_bio_PrivateKey(uint64 bio, uint64 into, uint64 callback, const char *passphrase)',
    ),
    OPENSSL_sk_new_null: call('uint64 OPENSSL_sk_new_null()'),
    OPENSSL_sk_push: call('int OPENSSL_sk_push(uint64 stack, uint64 item)'),
    OPENSSL_sk_free: call('void OPENSSL_sk_free(uint64 stack)'),

    // Sessions.
    SSL_new: call('uint64 SSL_new(uint64 context)'),
    SSL_free: call('void SSL_free(uint64 ssl)'),
    SSL_set_fd: call('int SSL_set_fd(uint64 ssl, int fd)'),
    SSL_get_fd: call('int SSL_get_fd(uint64 ssl)'),
    SSL_get_rbio: call('uint64 SSL_get_rbio(uint64 ssl)'),
    SSL_set0_wbio: call('void SSL_set0_wbio(uint64 ssl, uint64 bio)'),
    SSL_set_accept_state: call('void SSL_set_accept_state(uint64 ssl)'),
    SSL_set_connect_state: call('void SSL_set_connect_state(uint64 ssl)'),
    SSL_ctrl: mixed('long SSL_ctrl(uint64 ssl, int command, long number, const char *pointer)'),
    SSL_do_handshake: call('int SSL_do_handshake(uint64 ssl)'),
    SSL_get_error: call('int SSL_get_error(uint64 ssl, int result)'),
    SSL_in_init: call('int SSL_in_init(uint64 ssl)'),
    SSL_has_pending: call('int SSL_has_pending(uint64 ssl)'),
    SSL_shutdown: call('int SSL_shutdown(uint64 ssl)'),
    SSL_set_shutdown: call('void SSL_set_shutdown(uint64 ssl, int mode)'),
    SSL_get_SSL_CTX: call('uint64 SSL_get_SSL_CTX(uint64 ssl)'),
    SSL_get0_param: call('uint64 SSL_get0_param(uint64 ssl)'),
    X509_VERIFY_PARAM_set_hostflags: call('void X509_VERIFY_PARAM_set_hostflags(uint64 param, uint flags)'),
    X509_VERIFY_PARAM_add1_host: mixed(
      'int X509_VERIFY_PARAM_add1_host(uint64 param, const char *name, uint64 length)',
    ),
    X509_VERIFY_PARAM_set1_ip_asc: mixed('int X509_VERIFY_PARAM_set1_ip_asc(uint64 param, const char *address)'),
    SSL_get1_session: call('uint64 SSL_get1_session(uint64 ssl)'),
    SSL_set_session: call('int SSL_set_session(uint64 ssl, uint64 session)'),
    SSL_SESSION_free: call('void SSL_SESSION_free(uint64 session)'),
    SSL_SESSION_is_resumable: call('int SSL_SESSION_is_resumable(uint64 session)'),

    // What a handshake agreed on.
    SSL_session_reused: call('int SSL_session_reused(uint64 ssl)'),
    SSL_version: call('int SSL_version(uint64 ssl)'),
    SSL_get0_alpn_selected: mixed('void SSL_get0_alpn_selected(uint64 ssl, uint64 *protocol, uint *length)'),
    SSL_get_peer_cert_chain: call('uint64 SSL_get_peer_cert_chain(uint64 ssl)'),
    SSL_get0_peer_certificate: call('uint64 SSL_get0_peer_certificate(uint64 ssl)'),
    SSL_get_verify_result: call('long SSL_get_verify_result(uint64 ssl)'),
    X509_verify_cert_error_string: text('str X509_verify_cert_error_string(long code)'),

    // Inside callbacks: addresses only.
    SSL_select_next_proto: call(
      'int SSL_select_next_proto(uint64 out, uint64 outLength, uint64 server, uint serverLength, uint64 client, uint clientLength)',
    ),
    RAND_bytes: call('int RAND_bytes(uint64 out, int length)'),
    EVP_CIPHER_fetch: mixed('uint64 EVP_CIPHER_fetch(uint64 library, const char *name, const char *properties)'),
    EVP_EncryptInit_ex2: call(
      'int EVP_EncryptInit_ex2(uint64 context, uint64 cipher, uint64 key, uint64 iv, uint64 parameters)',
    ),
    EVP_DecryptInit_ex2: call(
      'int EVP_DecryptInit_ex2(uint64 context, uint64 cipher, uint64 key, uint64 iv, uint64 parameters)',
    ),
    EVP_MAC_init: call('int EVP_MAC_init(uint64 context, uint64 key, uint64 length, uint64 parameters)'),

    // Errors and memory.
    ERR_clear_error: call('void ERR_clear_error()'),
    ERR_get_error: call('uint64 ERR_get_error()'),
    ERR_error_string_n: mixed('void ERR_error_string_n(uint64 error, void *text, uint64 length)'),
    ERR_reason_error_string: text('str ERR_reason_error_string(uint64 error)'),
    CRYPTO_malloc: mixed('uint64 CRYPTO_malloc(uint64 bytes, const char *file, int line)'),
    CRYPTO_clear_free: mixed('void CRYPTO_clear_free(uint64 pointer, uint64 bytes, const char *file, int line)'),
    memcpy: call('uint64 memcpy(uint64 to, uint64 from, uint64 bytes)'),
    send: call('int64 send(int fd, uint64 buffer, uint64 length, int flags)'),
    memcmp: call('int memcmp(uint64 a, uint64 b, uint64 bytes)'),
    copyIn: lib.func('memcpy', 'uint64', ['uint64', 'const void *', 'uint64']) as unknown as MixedCall,
    copyOut: lib.func('memcpy', 'uint64', ['void *', 'uint64', 'uint64']) as unknown as MixedCall,
  };
}

/** The bound functions. */
export type OpenSsl = ReturnType<typeof bindOpenSsl>;

let bound: OpenSsl | undefined;

/** OpenSSL of the calling thread. Throws when the running binary does not export it. */
export function openSsl(): OpenSsl {
  bound ??= bindOpenSsl();
  return bound;
}

// -- errors --------------------------------------------------------------------

/** What an error queue held: the first error of libssl, or else the first, and a text with its reason. */
export interface OpenSslErrors {
  /** Library of the error (ERR_LIB_SSL is 20); 0 when the queue was empty. */
  library: number;
  /** Reason of the error, within its library. */
  reason: number;
  /** OpenSSL's own words, such as `certificate verify failed`; '' when the queue was empty. */
  text: string;
}

/** Library number of libssl. */
export const ERR_LIB_SSL = 20;
/** Library number of the PEM reader. */
export const ERR_LIB_PEM = 9;

/** Empties the error queue of the thread. */
export function clearErrors(): void {
  openSsl().ERR_clear_error();
}

/** Takes all errors out of the queue of the thread. */
export function takeErrors(): OpenSslErrors {
  const { ERR_get_error } = openSsl();
  const found: OpenSslErrors = { library: 0, reason: 0, text: '' };
  for (let i = 0; i < ERRORS_MAX; i++) {
    const code = ERR_get_error();
    if (code === 0) break;
    // Packed as in ERR_PACK: system errors have bit 31, others 8 bits of library and 23 of reason.
    const library = code >= 2 ** 31 ? 2 : Math.floor(code / 2 ** 23) & 255;
    const reason = code % 2 ** 23;
    // The first is the cause, except that libssl says better than what lies below it what it was doing.
    if (found.library !== 0 && (found.library === ERR_LIB_SSL || library !== ERR_LIB_SSL)) continue;
    found.library = library;
    found.reason = reason;
    found.text = errorText(code);
  }
  return found;
}

function errorText(code: number): string {
  const reason = openSsl().ERR_reason_error_string(code);
  if (reason !== null) return reason;
  const bytes = new Uint8Array(ERROR_TEXT_BYTES);
  openSsl().ERR_error_string_n(code, bytes, bytes.length);
  return Buffer.from(bytes.subarray(0, bytes.indexOf(0))).toString('latin1');
}

// -- C memory ------------------------------------------------------------------

/** Copies bytes to C memory, for what OpenSSL keeps. The caller releases it. Throws when there is none left. */
export function allocate(bytes: Uint8Array): number {
  const address = openSsl().CRYPTO_malloc(bytes.length, '', 0);
  if (address === 0) throw new Error(`no memory left for ${bytes.length} bytes`);
  openSsl().copyIn(address, bytes, bytes.length);
  return address;
}

/** Overwrites and frees what `allocate` or `RecordIo.hold` gave. */
export function release(address: number, bytes: number): void {
  openSsl().CRYPTO_clear_free(address, bytes, '', 0);
}

/** Copies `length` bytes at an address that OpenSSL gave. */
function readBytes(address: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  if (length > 0) openSsl().copyOut(bytes, address, length);
  return bytes;
}

/**
 * The DER encoding of a certificate, or undefined when it cannot be encoded.
 * The certificate stays the caller's.
 */
export function certificateDer(certificate: number): Uint8Array | undefined {
  const { i2d_X509 } = openSsl();
  const length = i2d_X509(certificate, null);
  if (length <= 0) return undefined;
  const address = allocate(new Uint8Array(length));
  // i2d moves the pointer that it is given behind what it wrote.
  i2d_X509(certificate, BigUint64Array.of(BigInt(address)));
  const der = readBytes(address, length);
  release(address, length);
  return der;
}

/** The ALPN protocol that was agreed on, '' if none. */
export function selectedAlpn(ssl: number): string {
  const address = new BigUint64Array(1);
  const length = new Uint32Array(1);
  openSsl().SSL_get0_alpn_selected(ssl, address, length);
  if (address[0] === 0n) return '';
  return Buffer.from(readBytes(Number(address[0]), length[0])).toString('latin1');
}

// -- callbacks -----------------------------------------------------------------

/** Chooses an ALPN protocol: all arguments are addresses or lengths; see SSL_CTX_set_alpn_select_cb. */
export type AlpnSelect = (
  ssl: number,
  out: number,
  outLength: number,
  offered: number,
  offeredLength: number,
  argument: number,
) => number;

/** Chooses a ticket key: all arguments are addresses; see SSL_CTX_set_tlsext_ticket_key_evp_cb. */
export type TicketKey = (
  ssl: number,
  keyName: number,
  iv: number,
  cipherContext: number,
  macContext: number,
  encrypt: number,
) => number;

let callbackTypes: ReturnType<typeof makePrototypes> | undefined;

function makePrototypes() {
  return {
    alpn: koffi.pointer(koffi.proto('int portcullisAlpnSelect(uint64, uint64, uint64, uint64, uint, uint64)')),
    ticket: koffi.pointer(koffi.proto('int portcullisTicketKey(uint64, uint64, uint64, uint64, uint64, int)')),
  };
}

/** The types of the callbacks. They have names, so each thread makes them once. */
function prototypes(): ReturnType<typeof makePrototypes> {
  callbackTypes ??= makePrototypes();
  return callbackTypes;
}

/**
 * Makes a function callable from C, for the life of the thread and on this thread only. It must not
 * throw: OpenSSL would see 0. Register each once and use it for all contexts; they are never freed.
 */
export function registerAlpnSelect(select: AlpnSelect): number {
  return Number(koffi.register(select, prototypes().alpn));
}

/** Like `registerAlpnSelect`, for ticket keys. */
export function registerTicketKey(choose: TicketKey): number {
  return Number(koffi.register(choose, prototypes().ticket));
}

/**
 * The parameters that make an EVP_MAC_CTX of HMAC use SHA-256: an array of OSSL_PARAM
 * (core.h: key, type, data, size, return size) in C memory, for the life of the thread.
 */
export function hmacSha256Parameters(): number {
  const OSSL_PARAM_UTF8_STRING = 4;
  const PARAM_BYTES = 40;
  const digest = 'SHA256';
  const words = new BigUint64Array((2 * PARAM_BYTES) / 8);
  words[0] = BigInt(allocate(Buffer.from('digest\0')));
  words[1] = BigInt(OSSL_PARAM_UTF8_STRING);
  words[2] = BigInt(allocate(Buffer.from(`${digest}\0`)));
  words[3] = BigInt(digest.length);
  words[4] = 2n ** 64n - 1n;
  return allocate(new Uint8Array(words.buffer));
}

// -- records ---------------------------------------------------------------------

/** SSL_read and SSL_write between sessions and the memory that a packet thread's kernel uses. */
export interface RecordIo {
  /** SSL_read into [offset, offset + length). Throws for a range outside the memory. */
  read(ssl: number, offset: number, length: number): number;
  /** SSL_write from [offset, offset + length). Throws for a range outside the memory. */
  write(ssl: number, offset: number, length: number): number;
  /** Copies a range to C memory; the caller `release`s it. 0 when there is none left. */
  hold(offset: number, length: number): number;
  /** SSL_write from what `hold` gave. */
  writeHeld(ssl: number, address: number, length: number): number;
  /** The error number of the last system call of the thread; to be asked straight after a failure. */
  errno(): number;
}

class MappedRecordIo implements RecordIo {
  private readonly base: number;
  private readonly size: number;
  private readonly sslRead: Call;
  private readonly sslWrite: Call;

  constructor(memory: MappedMemory) {
    this.base = memory.address;
    this.size = memory.bytes;
    const lib = koffi.load(null);
    this.sslRead = lib.func('int SSL_read(uint64 ssl, uint64 buffer, int length)') as unknown as Call;
    this.sslWrite = lib.func('int SSL_write(uint64 ssl, uint64 buffer, int length)') as unknown as Call;
  }

  read(ssl: number, offset: number, length: number): number {
    this.check(offset, length);
    return this.sslRead(ssl, this.base + offset, length);
  }

  write(ssl: number, offset: number, length: number): number {
    this.check(offset, length);
    return this.sslWrite(ssl, this.base + offset, length);
  }

  hold(offset: number, length: number): number {
    this.check(offset, length);
    const address = openSsl().CRYPTO_malloc(length, '', 0);
    if (address !== 0) openSsl().memcpy(address, this.base + offset, length);
    return address;
  }

  writeHeld(ssl: number, address: number, length: number): number {
    return this.sslWrite(ssl, address, length);
  }

  errno(): number {
    return koffi.errno();
  }

  private check(offset: number, length: number): void {
    if (offset < KERNEL_RESERVED_BYTES || length <= 0 || offset + length > this.size) {
      throw new RangeError(`memory range ${offset}+${length} is outside ${KERNEL_RESERVED_BYTES}..${this.size}`);
    }
  }
}

/** Record input and output over the memory of the calling thread's kernel; offsets are the same. */
export function createRecordIo(memory: MappedMemory): RecordIo {
  return new MappedRecordIo(memory);
}
