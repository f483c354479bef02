// TLS contexts: certificates, versions, ciphers, ALPN, tickets and trust, made once per
// configuration and used by many sessions.
//
// Each packet worker builds its own contexts from bytes that the control thread has checked (by
// building them too), because OpenSSL's callbacks must run on the thread that registered them.
// A context is counted: `freeContext` while sessions live only marks it, and the last session to
// go frees it (session.ts). Owned by one thread; nothing here is on the packet path.

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { rootCertificates } from 'node:tls';
import {
  clearErrors,
  ERR_LIB_PEM,
  openSsl,
  SslCtrl,
  SslMode,
  SslOption,
  SslVerify,
  takeErrors,
  X509Flag,
} from '../ffi/openssl.ts';
import { encodeAlpn, freeAlpnList, setServerAlpn } from './alpn.ts';
import { setTicketKeyRing, TicketKeyRing, type TicketKeys } from './ticket-keys.ts';

/** A TLS version that Portcullis speaks. */
export type TlsVersion = '1.2' | '1.3';

/** A certificate with its chain, leaf first, and its private key, as PEM texts. */
export interface CertificatePem {
  chainPem: string;
  /** Not encrypted. */
  keyPem: string;
}

/** Whether and how clients have to prove who they are. */
export interface ClientValidation {
  /** Authorities that may sign client certificates. */
  caPem: string;
  /** `optional`: a client may send none; a bad one fails the handshake in both modes. */
  mode: 'optional' | 'required';
  /** Most intermediate certificates of a chain. Default: OpenSSL's own limit (100). */
  depth?: number;
}

/** What both kinds of contexts have in common. */
export interface ContextOptions {
  /** Default 1.2. */
  minVersion?: TlsVersion;
  /** Default 1.3. */
  maxVersion?: TlsVersion;
  /** TLS 1.3 cipher suites in OpenSSL's notation, colon-separated. */
  cipherSuites?: string;
  /** TLS 1.2 ciphers in OpenSSL's notation. */
  ciphers?: string;
  /** Key exchange groups in OpenSSL's notation. */
  groups?: string;
}

/** What a server context is made of. */
export interface ServerContextOptions extends ContextOptions {
  /** At least one; at most one of each key type (ECDSA and RSA side by side). */
  certificates: readonly CertificatePem[];
  /** Protocols in the server's order; empty: no ALPN. */
  alpn: readonly string[];
  clientValidation?: ClientValidation;
  /** Null: no session tickets, so no resumption. */
  ticketKeys: TicketKeys | null;
  /** How long a ticket can be used, in seconds. Default 7200. */
  ticketLifetimeS?: number;
}

/** What a client context is made of. */
export interface ClientContextOptions extends ContextOptions {
  /** Trusted authorities. Default: those of the system (`systemRootsPem`). */
  caPem?: string;
  /** Sent to servers that ask for it. */
  certificate?: CertificatePem;
  /** Protocols to offer, best first; empty: no ALPN. */
  alpn: readonly string[];
  /** False: any certificate is taken, and no name is looked at. */
  verify: boolean;
}

/** A context. Its fields belong to core/tls. */
export interface TlsContext {
  /** SSL_CTX; 0: it was to be made when it is first used (`later`), and OpenSSL refuses it. */
  readonly pointer: number;
  readonly server: boolean;
  /** Whether the peer's certificate must hold. */
  readonly verify: boolean;
  /** Sessions that use it. */
  sessions: number;
  /** `freeContext` was called. */
  released: boolean;
  readonly hasTickets: boolean;
}

/** The C side of a context. */
interface Opened {
  pointer: number;
  /** ALPN list in C memory; 0 for none. */
  alpnList: number;
}

/** Default TLS 1.3 cipher suites: AES-128 first, as it costs least and is not the weak part. */
const DEFAULT_CIPHER_SUITES = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';

/** Default TLS 1.2 ciphers: forward secrecy and authenticated encryption only (RFC 9325 §4.2). */
const DEFAULT_CIPHERS = [
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-RSA-CHACHA20-POLY1305',
].join(':');

/**
 * Default groups: the post-quantum hybrid first where it exists (`?`), then the classical ones.
 * The hybrid costs about 7 KiB of memory for as long as a session lives (OpenSSL 3.5).
 */
const DEFAULT_SERVER_GROUPS = '?X25519MLKEM768:X25519:P-256:P-384';

/** The same for clients, which send a key share (`*`) of both kinds: no round trip more with either server. */
const DEFAULT_CLIENT_GROUPS = '?*X25519MLKEM768:*X25519:P-256:P-384';

const versionNumbers: Record<TlsVersion, number> = { '1.2': 0x0303, '1.3': 0x0304 };

const DEFAULT_TICKET_LIFETIME_S = 7200;

/**
 * Tickets after a full TLS 1.3 handshake: two, as nginx and OpenSSL send, since clients that open
 * connections in parallel use each once (RFC 8446 §C.4). After a resumption one is sent.
 */
const TICKETS_PER_HANDSHAKE = 2;

/**
 * Input buffer of a client session: four full records (16,406 bytes each in TLS 1.3). An upstream's
 * records are often many and full, and four of them then come with one system call; see also
 * `TlsSessions.recv` on what relies on it. Held only while a record is being read.
 */
const CLIENT_READ_BUFFER_BYTES = 66 * 1024;

/** Where the system keeps its trusted authorities, in order; SSL_CERT_FILE comes before. */
const SYSTEM_ROOT_FILES = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/cert.pem',
];

/**
 * Makes a server context. The texts are copied. Throws an Error with one sentence that says which
 * part OpenSSL refused and why. `later`: it is made for the first session, takes no memory (30 KiB) until then, and can
 * have no tickets.
 */
export function createServerContext(options: ServerContextOptions, later = false): TlsContext {
  if (options.certificates.length === 0) throw new Error('a TLS server needs at least one certificate');
  const hasTickets = options.ticketKeys !== null;
  if (hasTickets && later) throw new Error('a TLS context with session tickets is made at once');
  const context = new Context(true, options.clientValidation !== undefined, hasTickets, (pointer) => {
    const ssl = openSsl();
    setCommon(pointer, options, DEFAULT_SERVER_GROUPS);
    ssl.SSL_CTX_set_options(pointer, SslOption.CIPHER_SERVER_PREFERENCE + SslOption.PRIORITIZE_CHACHA);
    for (const certificate of options.certificates) useCertificate(pointer, certificate);
    setClientValidation(pointer, options.clientValidation);
    if (options.ticketKeys === null) {
      ssl.SSL_CTX_set_options(pointer, SslOption.NO_TICKET);
      ssl.SSL_CTX_set_num_tickets(pointer, 0);
    } else {
      ssl.SSL_CTX_set_num_tickets(pointer, TICKETS_PER_HANDSHAKE);
      ssl.SSL_CTX_set_timeout(pointer, options.ticketLifetimeS ?? DEFAULT_TICKET_LIFETIME_S);
      setTicketKeyRing(pointer, new TicketKeyRing(options.ticketKeys));
    }
    return setServerAlpn(pointer, options.alpn);
  });
  if (!later) context.open();
  return context;
}

/** Makes a client context, for connections to upstreams. Errors and `later` as for `createServerContext`. */
export function createClientContext(options: ClientContextOptions, later = false): TlsContext {
  const context = new Context(false, options.verify, false, (pointer) => {
    const ssl = openSsl();
    setCommon(pointer, options, DEFAULT_CLIENT_GROUPS);
    ssl.SSL_CTX_set_default_read_buffer_len(pointer, CLIENT_READ_BUFFER_BYTES);
    if (options.certificate !== undefined) useCertificate(pointer, options.certificate);
    if (options.verify) {
      const store = options.caPem === undefined ? systemStore() : makeStore(options.caPem);
      ssl.SSL_CTX_set1_cert_store(pointer, store);
      if (options.caPem !== undefined) ssl.X509_STORE_free(store);
    }
    ssl.SSL_CTX_set_verify(pointer, options.verify ? SslVerify.PEER : SslVerify.NONE, 0);
    if (options.alpn.length > 0) {
      const list = encodeAlpn(options.alpn);
      // Unlike the rest of OpenSSL it returns 0 for success.
      if (ssl.SSL_CTX_set_alpn_protos(pointer, list, list.length) !== 0) fail('the ALPN protocols are refused');
    }
    return 0;
  });
  if (!later) context.open();
  return context;
}

/**
 * Gives a context back. Sessions that use it live on; new ones must not be made from it.
 * Calling it twice is harmless.
 */
export function freeContext(context: TlsContext): void {
  if (context.released) return;
  context.released = true;
  if (context.sessions === 0) (context as Context).destroy();
}

/** For session.ts: one more session uses the context. */
export function retainContext(context: TlsContext): void {
  context.sessions++;
}

/** For session.ts: the session with this SSL_CTX has been freed. */
export function leaveContext(pointer: number): void {
  const context = contexts.get(pointer);
  if (context === undefined) return;
  context.sessions--;
  if (context.released && context.sessions === 0) context.destroy();
}

/**
 * Replaces the ticket keys of a server context, newest first; sessions are not disturbed.
 * Throws for keys of a wrong size and for a context that was made without tickets.
 */
export function updateTicketKeys(context: TlsContext, keys: TicketKeys): void {
  if (!context.hasTickets) throw new Error('this TLS context was made without session tickets');
  if (context.released) throw new Error('this TLS context has been given back');
  setTicketKeyRing(context.pointer, new TicketKeyRing(keys))?.free();
}

/**
 * The trusted authorities of the system as PEM text: the file named by SSL_CERT_FILE, the usual
 * files, else the list of Node.js. Throws when SSL_CERT_FILE names a file that cannot be read.
 */
export function systemRootsPem(): string {
  const named = process.env.SSL_CERT_FILE;
  if (named !== undefined && named !== '') {
    try {
      return readFileSync(named, 'latin1');
    } catch (error) {
      throw new Error(`SSL_CERT_FILE names a file that cannot be read: ${(error as Error).message}`);
    }
  }
  for (const path of SYSTEM_ROOT_FILES) {
    try {
      return readFileSync(path, 'latin1');
    } catch {
      // Each distribution has another; the list of Node.js comes last.
    }
  }
  return rootCertificates.join('\n');
}

// -- building ------------------------------------------------------------------

const contexts = new Map<number, Context>();

/** Roots of the system, read once per thread: parsing them takes about as long as a hundred handshakes. */
let systemStorePointer = 0;

function systemStore(): number {
  if (systemStorePointer === 0) systemStorePointer = makeStore(systemRootsPem());
  return systemStorePointer;
}

class Context implements TlsContext {
  readonly server: boolean;
  readonly verify: boolean;
  readonly hasTickets: boolean;
  sessions = 0;
  released = false;
  private readonly fill: (pointer: number) => number;
  /** Null: not made yet. */
  private opened: Opened | null = null;

  /** `fill` sets everything up and returns the ALPN list in C memory. */
  constructor(server: boolean, verify: boolean, hasTickets: boolean, fill: (pointer: number) => number) {
    this.server = server;
    this.verify = verify;
    this.hasTickets = hasTickets;
    this.fill = fill;
  }

  get pointer(): number {
    if (this.opened === null) {
      try {
        this.open();
      } catch {
        // The control thread has tried it before, so that is a defect; sessions fail, and all else goes on.
        this.opened = { pointer: 0, alpnList: 0 };
      }
    }
    return this.opened!.pointer;
  }

  /** Makes the SSL_CTX, has it filled, and takes everything back if that fails. */
  open(): void {
    const ssl = openSsl();
    clearErrors();
    const pointer = ssl.SSL_CTX_new(this.server ? ssl.TLS_server_method() : ssl.TLS_client_method());
    if (pointer === 0) fail('a TLS context cannot be made');
    try {
      this.opened = { pointer, alpnList: this.fill(pointer) };
      contexts.set(pointer, this);
    } catch (error) {
      setTicketKeyRing(pointer, null)?.free();
      ssl.SSL_CTX_free(pointer);
      throw error;
    } finally {
      clearErrors();
    }
  }

  /** Gives everything back. */
  destroy(): void {
    if (this.opened === null || this.opened.pointer === 0) return;
    const { pointer, alpnList } = this.opened;
    contexts.delete(pointer);
    setTicketKeyRing(pointer, null)?.free();
    openSsl().SSL_CTX_free(pointer);
    freeAlpnList(alpnList);
  }
}

function setCommon(pointer: number, options: ContextOptions, defaultGroups: string): void {
  const ssl = openSsl();
  const { minVersion = '1.2', maxVersion = '1.3' } = options;
  if (minVersion > maxVersion) {
    throw new Error(`the least TLS version ${minVersion} is above the highest, ${maxVersion}`);
  }
  const modes =
    SslMode.ENABLE_PARTIAL_WRITE | SslMode.ACCEPT_MOVING_WRITE_BUFFER | SslMode.AUTO_RETRY | SslMode.RELEASE_BUFFERS;
  ssl.SSL_CTX_ctrl(pointer, SslCtrl.MODE, modes, null);
  ssl.SSL_CTX_ctrl(pointer, SslCtrl.SET_READ_AHEAD, 1, null);
  // Nothing is kept in the context: tickets carry sessions, and upstream sessions belong to pools.
  ssl.SSL_CTX_ctrl(pointer, SslCtrl.SET_SESS_CACHE_MODE, 0, null);
  ssl.SSL_CTX_set_options(pointer, SslOption.NO_RENEGOTIATION + SslOption.NO_COMPRESSION);
  ssl.SSL_CTX_ctrl(pointer, SslCtrl.SET_MIN_PROTO_VERSION, versionNumbers[minVersion], null);
  ssl.SSL_CTX_ctrl(pointer, SslCtrl.SET_MAX_PROTO_VERSION, versionNumbers[maxVersion], null);
  const { cipherSuites = DEFAULT_CIPHER_SUITES, ciphers = DEFAULT_CIPHERS, groups = defaultGroups } = options;
  if (ssl.SSL_CTX_set_ciphersuites(pointer, cipherSuites) !== 1) {
    fail(`the TLS 1.3 cipher suites "${cipherSuites}" are refused`);
  }
  if (ssl.SSL_CTX_set_cipher_list(pointer, ciphers) !== 1) fail(`the TLS 1.2 ciphers "${ciphers}" are refused`);
  if (ssl.SSL_CTX_ctrl(pointer, SslCtrl.SET_GROUPS_LIST, 0, groups) !== 1) {
    fail(`the key exchange groups "${groups}" are refused`);
  }
}

/** Adds a certificate with chain and key. OpenSSL takes its own references. */
function useCertificate(pointer: number, { chainPem, keyPem }: CertificatePem): void {
  const ssl = openSsl();
  const key = readKey(keyPem);
  let chain: number[];
  try {
    chain = readCertificates(chainPem, 'the certificate');
  } catch (error) {
    ssl.EVP_PKEY_free(key);
    throw error;
  }
  const [leaf, ...issuers] = chain;
  const stack = ssl.OPENSSL_sk_new_null();
  for (const issuer of issuers) ssl.OPENSSL_sk_push(stack, issuer);
  const status = ssl.SSL_CTX_use_cert_and_key(pointer, leaf, key, stack, 0);
  const errors = takeErrors();
  ssl.OPENSSL_sk_free(stack);
  for (const certificate of chain) ssl.X509_free(certificate);
  ssl.EVP_PKEY_free(key);
  if (status === 1) return;
  if (errors.text.includes('not replacing certificate')) {
    throw new Error('two certificates have the same type of key: one per type and context');
  }
  throw new Error(`the certificate cannot be used with this private key: ${errors.text}`);
}

/** All certificates of a PEM text; the caller frees them. */
function readCertificates(pem: string, what: string): number[] {
  const ssl = openSsl();
  const bio = memoryBio(pem);
  const found: number[] = [];
  for (;;) {
    const certificate = ssl.PEM_read_bio_X509(bio, 0, 0, 0);
    if (certificate === 0) break;
    found.push(certificate);
  }
  ssl.BIO_free(bio);
  const errors = takeErrors();
  // Reason 108, no start line: the end of the text.
  const complete = errors.library === ERR_LIB_PEM && errors.reason === 108;
  if (complete && found.length > 0) return found;
  for (const certificate of found) ssl.X509_free(certificate);
  if (complete) throw new Error(`${what} has no PEM block of a certificate`);
  throw new Error(`${what} cannot be read (PEM block ${found.length + 1}): ${errors.text}`);
}

/** The private key of a PEM text; the caller frees it. */
function readKey(pem: string): number {
  const ssl = openSsl();
  const bio = memoryBio(pem);
  // An empty passphrase: without one OpenSSL would ask on the terminal.
  const key = ssl.PEM_read_bio_PrivateKey(bio, 0, 0, '');
  ssl.BIO_free(bio);
  const errors = takeErrors();
  if (key !== 0) return key;
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED/.test(pem)) {
    throw new Error('the private key is encrypted: it has to be stored without a passphrase');
  }
  if (!pem.includes('PRIVATE KEY-----')) throw new Error('the private key has no PEM block of a private key');
  throw new Error(`the private key cannot be read: ${errors.text}`);
}

function memoryBio(text: string): number {
  const ssl = openSsl();
  const bytes = Buffer.from(text, 'utf8');
  const bio = ssl.BIO_new(ssl.BIO_s_mem());
  if (bio === 0) fail('there is no memory left for a certificate');
  if (bytes.length > 0) ssl.BIO_write(bio, bytes, bytes.length);
  return bio;
}

/** A store of trusted certificates; the caller frees its reference. */
function makeStore(pem: string): number {
  const ssl = openSsl();
  const certificates = readCertificates(pem, 'the list of authorities');
  const store = ssl.X509_STORE_new();
  for (const certificate of certificates) {
    ssl.X509_STORE_add_cert(store, certificate);
    ssl.X509_free(certificate);
  }
  // What the operator trusts ends a chain, be it a root, an intermediate or the very certificate.
  ssl.X509_STORE_set_flags(store, X509Flag.PARTIAL_CHAIN);
  clearErrors();
  return store;
}

function setClientValidation(pointer: number, validation: ClientValidation | undefined): void {
  const ssl = openSsl();
  // A ticket is good only where clients are validated in the same way: otherwise one from a listener
  // that asks for nothing would get past one that does.
  const scope = createHash('sha256').update('portcullis');
  if (validation !== undefined) {
    const { caPem, mode, depth } = validation;
    const store = makeStore(caPem);
    ssl.SSL_CTX_set1_cert_store(pointer, store);
    ssl.X509_STORE_free(store);
    // The names of the authorities tell clients which of their certificates to send.
    for (const certificate of readCertificates(caPem, 'the list of authorities')) {
      ssl.SSL_CTX_add_client_CA(pointer, certificate);
      ssl.X509_free(certificate);
    }
    if (depth !== undefined) ssl.SSL_CTX_set_verify_depth(pointer, depth);
    const required = mode === 'required' ? SslVerify.FAIL_IF_NO_PEER_CERT : 0;
    ssl.SSL_CTX_set_verify(pointer, SslVerify.PEER | required, 0);
    scope.update(JSON.stringify([caPem, mode, depth ?? -1]));
  }
  const id = scope.digest();
  ssl.SSL_CTX_set_session_id_context(pointer, id, id.length);
}

/** Throws with OpenSSL's reason behind what failed. */
function fail(what: string): never {
  const { text } = takeErrors();
  throw new Error(text === '' ? what : `${what}: ${text}`);
}
