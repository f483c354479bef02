// TLS sessions of one packet thread: handshakes, reading and writing straight between sockets and
// the kernel's memory.
//
// A session is one number (its SSL); 0 is none. `recv` and `send` answer as Kernel.recv and
// Kernel.send do, so that a connection is used in the same way with and without TLS. What differs:
// OpenSSL reads ahead, so bytes may wait in its own buffer while the socket is empty. After `recv`
// has returned bytes, `readMore` says whether it must be called again without a new event.
// The socket stays the caller's; OpenSSL writes to it without MSG_NOSIGNAL, which is safe because
// Node.js ignores SIGPIPE.
// Owned by one worker. Hot module: `recv`, `send` and `pending` allocate nothing unless they fail.

import { isIP } from 'node:net';
import { Errno } from '../ffi/errno.ts';
import type { MappedMemory } from '../ffi/memory.ts';
import {
  clearErrors,
  createRecordIo,
  type OpenSsl,
  openSsl,
  type RecordIo,
  release,
  SslCtrl,
  SslError,
  takeErrors,
  X509Flag,
} from '../ffi/openssl.ts';
import { leaveContext, retainContext, type TlsContext } from './context.ts';
import { classifyErrors, failureDetail, TlsFailure, type TlsFailureDetail } from './errors.ts';
import { isUri, matchesAnyName } from './peer.ts';
import { type RecordQueue, RecordQueues } from './record-queue.ts';

const { EAGAIN, EPROTO, ECONNABORTED, ENOMEM } = Errno;
const { SSL, WANT_READ, WANT_WRITE, SYSCALL, ZERO_RETURN } = SslError;

/** Results of `handshake`. */
export const HANDSHAKE_DONE = 0;
/** Call again when the socket is readable. */
export const HANDSHAKE_WANT_READ = 1;
/** Call again when the socket is writable. */
export const HANDSHAKE_WANT_WRITE = 2;
/** `failure`, `alert` and `failureText` say why; the session can only be freed. */
export const HANDSHAKE_FAILED = -1;

/**
 * Result of `recv` when TCP ended without close_notify: the peer may have been cut off, so a body
 * that lasts until the end of the connection must not count as complete (RFC 9112 §9.8).
 * No receive on Linux fails with this error number otherwise.
 */
export const TLS_TRUNCATED = -ECONNABORTED;

/** In place of names to verify: the chain has to hold, whoever the peer is. */
export const ANY_NAME: readonly string[] = Object.freeze(['*']);

/** Most plaintext bytes of one record (RFC 8446 §5.1). */
const RECORD_BYTES_MAX = 16384;

/** SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN: SSL_free then leaves the TLS session usable for resumption. */
const BOTH_SHUT_DOWN = 3;

const TLSEXT_NAMETYPE_HOST_NAME = 0;

/** A copy of bytes that were given to OpenSSL, but that the socket has not taken. */
interface Held {
  address: number;
  bytes: number;
  /** How many of them have gone. */
  sent: number;
}

/** A failure found after bytes had been returned; the next `recv` or `send` reports it. */
interface Failed extends TlsFailureDetail {
  status: number;
}

/** The sessions of one packet thread. */
export class TlsSessions {
  /** Why the last call failed. */
  failure: TlsFailure = TlsFailure.NONE;
  /** Number of the alert that the peer sent with that failure; -1 for none. */
  alert = -1;
  /** The last failure for the log. */
  failureText = '';
  /**
   * After `recv` returned bytes: it must be called again without a new event, since OpenSSL may
   * hold more of them, or the socket may. False only when the socket was seen empty.
   */
  readMore = false;
  /**
   * After -EAGAIN of `recv`: it waits until the socket is writable, not readable. Happens only when
   * a key update has to be answered (RFC 8446 §4.6.3) while the socket is full.
   */
  recvWantsWrite = false;

  private readonly ssl: OpenSsl;
  private readonly io: RecordIo;
  /** Writes that the socket did not take, by session. */
  private readonly held = new Map<number, Held>();
  /** Records of sessions that write several at once. */
  private readonly queues: RecordQueues;
  private readonly failed = new Map<number, Failed>();
  /** Names that the peer's certificate must have one of, until the handshake is done. */
  private readonly names = new Map<number, readonly string[]>();

  /** Sessions that read into and write from the memory of the thread's kernel. */
  constructor(memory: MappedMemory) {
    this.ssl = openSsl();
    this.io = createRecordIo(memory);
    this.queues = new RecordQueues(this.io);
  }

  /** Starts the server's side on a connected socket; 0 when OpenSSL refuses (see `failureText`). */
  accept(context: TlsContext, fd: number): number {
    const ssl = this.open(context, fd);
    if (ssl !== 0) this.ssl.SSL_set_accept_state(ssl);
    return ssl;
  }

  /**
   * Starts the client's side. Returns 0 when it cannot be (see `failure`).
   *
   * `serverName` goes into SNI unless it is '' or an IP address. If the context verifies, the
   * certificate must be for one of `verifyNames`: DNS names (wildcard certificates match; the
   * subject's common name does not count, RFC 9525 §6.3), IP addresses, or URIs such as SPIFFE
   * identities, compared exactly. Null stands for `serverName`; no name at all is a failure, unless
   * ANY_NAME is given.
   *
   * `resumption` is what `takeResumption` gave for the same endpoint, context and names, or 0. It
   * stays the caller's and may be used again.
   */
  connect(
    context: TlsContext,
    fd: number,
    serverName: string,
    verifyNames: readonly string[] | null,
    resumption = 0,
  ): number {
    // RFC 6066 §3: SNI has no trailing dot.
    const host = serverName.endsWith('.') ? serverName.slice(0, -1) : serverName;
    const names = verifyNames ?? (host === '' ? [] : [host]);
    if (context.verify && names.length === 0) {
      this.fail(failureDetail(TlsFailure.NO_NAME));
      return 0;
    }
    const ssl = this.open(context, fd);
    if (ssl === 0) return 0;
    this.ssl.SSL_set_connect_state(ssl);
    if (host !== '' && isIP(host) === 0) {
      if (this.ssl.SSL_ctrl(ssl, SslCtrl.SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_HOST_NAME, host) !== 1) {
        return this.refuse(ssl);
      }
    }
    if (resumption !== 0) this.ssl.SSL_set_session(ssl, resumption);
    if (context.verify && names !== ANY_NAME) {
      if (!this.expectNames(ssl, names)) return this.refuse(ssl);
      // Checked again afterwards: a resumed session shows no certificate, and not every list of
      // names can be given to OpenSSL.
      this.names.set(ssl, names);
    }
    clearErrors();
    return ssl;
  }

  /**
   * Continues a handshake: HANDSHAKE_DONE, HANDSHAKE_WANT_READ, HANDSHAKE_WANT_WRITE, or
   * HANDSHAKE_FAILED. OpenSSL has then sent the alert that belongs to the failure, if any.
   * A client of TLS 1.3 is done before the server has looked at its certificate: the server's
   * refusal comes with the first `recv`.
   */
  handshake(ssl: number): number {
    clearErrors();
    const result = this.ssl.SSL_do_handshake(ssl);
    if (result === 1) return this.names.size === 0 || this.checkNames(ssl) ? HANDSHAKE_DONE : HANDSHAKE_FAILED;
    const errno = this.io.errno();
    const error = this.ssl.SSL_get_error(ssl, result);
    if (error === WANT_READ) return HANDSHAKE_WANT_READ;
    if (error === WANT_WRITE) return HANDSHAKE_WANT_WRITE;
    this.explain(ssl, error, errno);
    if (this.failure === TlsFailure.TRUNCATED) this.fail(failureDetail(TlsFailure.PEER_CLOSED));
    this.keepFailure(ssl, -EPROTO);
    return HANDSHAKE_FAILED;
  }

  /**
   * Reads up to `length` (> 0) bytes into memory at `offset`, as many as there are.
   *
   * Returns their number; 0 when the peer has sent close_notify; -EAGAIN when there is nothing now;
   * TLS_TRUNCATED; -EPROTO after a TLS failure (`failure`, `failureText`); or another negative error
   * number of the socket. With a positive result, look at `readMore`. A rest of `length` that a
   * record of full size does not fit into stays unused: what a record that is cut belongs to would have to be copied. The end of the TCP stream is an
   * event of its own (EPOLLRDHUP): once it was seen, call until the result is not positive.
   */
  recv(ssl: number, offset: number, length: number): number {
    const { SSL_has_pending } = this.ssl;
    let total = 0;
    // Only if its buffer is empty does OpenSSL ask the socket for a whole bufferful. If then nothing
    // is left in it after a record, which is smaller than the buffer, the socket gave less than was
    // asked for: it was empty, and what comes later brings a new event. (Records without data, of
    // another 16 KiB at least, would have to precede it in the same read to make this wrong; buffers
    // of clients, which do get session tickets, are larger for that reason.)
    let empty = SSL_has_pending(ssl) === 0;
    for (;;) {
      const count = this.io.read(ssl, offset + total, length - total);
      if (count <= 0) {
        const status = this.readFailed(ssl, count);
        if (total === 0) {
          this.readMore = false;
          return status;
        }
        // A failure, or the end, waits for the next call.
        this.readMore = status !== -EAGAIN;
        return total;
      }
      total += count;
      const left = SSL_has_pending(ssl) !== 0;
      if (empty && !left) {
        this.readMore = false;
        return total;
      }
      if (total === length || (total > RECORD_BYTES_MAX && length - total < RECORD_BYTES_MAX)) {
        this.readMore = true;
        return total;
      }
      empty = !left;
    }
  }

  /** Whether OpenSSL holds bytes of the session that `recv` has not returned. */
  pending(ssl: number): boolean {
    return this.ssl.SSL_has_pending(ssl) !== 0;
  }

  /**
   * Writes up to `length` (> 0) bytes from memory at `offset`, in records of up to 16 KiB. Returns
   * how many are taken, -EAGAIN when none, -EPROTO or another negative error number.
   *
   * As with a socket, the rest is offered again, from anywhere and in pieces of any size. (A record
   * is encrypted before the socket refuses it; a copy of it is kept and its last byte counts as not
   * taken, so that the caller comes back when the socket is writable.) More than one record leaves
   * with one system call.
   */
  send(ssl: number, offset: number, length: number): number {
    let total = 0;
    if (this.queues.count > 0) {
      const queue = this.queues.of(ssl);
      if (queue !== undefined) return this.sendQueued(ssl, queue, offset, length);
    }
    if (this.held.size > 0) {
      const status = this.sendHeld(ssl);
      if (status < 0) return status;
      total = status;
    }
    if (length - total > RECORD_BYTES_MAX) {
      const queue = this.queues.begin(ssl);
      if (queue !== undefined) {
        const count = this.write(ssl, queue, offset, length, total);
        if (queue.stuck || count < 0) return count;
        const status = this.release(ssl, queue);
        // The last byte is what the caller comes back for.
        return status === -EAGAIN ? count - 1 : status < 0 ? status : count;
      }
    }
    while (total < length) {
      const rest = length - total;
      const bytes = Math.min(rest, RECORD_BYTES_MAX);
      const count = this.io.write(ssl, offset + total, bytes);
      if (count <= 0) {
        let status = this.writeFailed(ssl, count);
        if (status === -EAGAIN) {
          const address = this.io.hold(offset + total, bytes);
          if (address !== 0) {
            this.hold(ssl, address, bytes);
            total += bytes - 1;
          } else {
            // What was encrypted can no longer be told apart: the session is lost.
            this.fail(failureDetail(TlsFailure.INTERNAL, 'no memory left'));
            this.keepFailure(ssl, -ENOMEM);
            status = -ENOMEM;
          }
        }
        return total > 0 ? total : status;
      }
      total += count;
    }
    return total;
  }

  /**
   * From now on, records of a session wait for `uncork`, a few of them at most. False: they do not, since some that
   * the socket has refused are waiting already, or there is no memory for it.
   */
  cork(ssl: number): boolean {
    if (this.held.has(ssl)) return false;
    const queue = this.queues.of(ssl);
    if (queue !== undefined) return !queue.stuck;
    return this.queues.begin(ssl) !== undefined;
  }

  /**
   * Ends `cork`: gives the socket the records that have waited. Returns 0; -EAGAIN when it has not taken all of them,
   * although all their bytes count as taken: the next `send`, when the socket is writable, is to offer one byte of
   * any value before what follows; or another negative error number, as of `send`.
   */
  uncork(ssl: number): number {
    const queue = this.queues.of(ssl);
    return queue === undefined || queue.stuck ? 0 : this.release(ssl, queue);
  }

  /**
   * Sends close_notify, without waiting for the peer's: 0, or -EAGAIN when the socket takes nothing
   * now. After a failure, or with bytes unsent, nothing is sent: the peer is to see a truncation.
   */
  shutdown(ssl: number): number {
    if (this.queues.count > 0) {
      this.uncork(ssl);
      if (this.queues.of(ssl) !== undefined) return 0;
    }
    if (this.failed.has(ssl) || this.held.has(ssl) || this.ssl.SSL_in_init(ssl) !== 0) return 0;
    const result = this.ssl.SSL_shutdown(ssl);
    if (result >= 0) return 0;
    const error = this.ssl.SSL_get_error(ssl, result);
    if (error === WANT_WRITE) return -EAGAIN;
    clearErrors();
    return 0;
  }

  /** Frees a session, once. The socket stays open. */
  free(ssl: number): void {
    const context = this.ssl.SSL_get_SSL_CTX(ssl);
    const held = this.held.get(ssl);
    if (held !== undefined) this.dropHeld(ssl, held);
    const queue = this.queues.of(ssl);
    if (queue !== undefined) this.queues.drop(ssl, queue);
    // A TCP end without close_notify is no reason to forget the TLS session (RFC 8446 §6.1); a fatal
    // failure is.
    if (!this.failed.delete(ssl)) this.ssl.SSL_set_shutdown(ssl, BOTH_SHUT_DOWN);
    this.names.delete(ssl);
    this.ssl.SSL_free(ssl);
    leaveContext(context);
  }

  /**
   * What lets a later `connect` to the same endpoint skip most of the handshake, or 0. Of TLS 1.3 it
   * arrives with the first bytes of a response, so ask after a `recv`, or before `free`. The caller
   * owns it (`freeResumption`) and replaces it by the latest: it is offered until the server declines.
   * RFC 8446 §C.4 advises clients to use each ticket once, against observers who link connections;
   * between a gateway and its own upstreams that hides nothing, and a full handshake costs ten times
   * as much.
   */
  takeResumption(ssl: number): number {
    const { SSL_get1_session, SSL_SESSION_is_resumable, SSL_SESSION_free } = this.ssl;
    const session = SSL_get1_session(ssl);
    if (session === 0 || SSL_SESSION_is_resumable(session) === 1) return session;
    SSL_SESSION_free(session);
    return 0;
  }

  /** Frees what `takeResumption` gave; sessions that resumed it live on. */
  freeResumption(resumption: number): void {
    this.ssl.SSL_SESSION_free(resumption);
  }

  // -- opening -------------------------------------------------------------------

  private open(context: TlsContext, fd: number): number {
    clearErrors();
    const ssl = context.released ? 0 : this.ssl.SSL_new(context.pointer);
    if (ssl === 0) {
      this.fail(failureDetail(TlsFailure.INTERNAL, context.released ? 'its context is gone' : takeErrors().text));
      return 0;
    }
    retainContext(context);
    return this.ssl.SSL_set_fd(ssl, fd) === 1 ? ssl : this.refuse(ssl);
  }

  private refuse(ssl: number): number {
    this.fail(failureDetail(TlsFailure.INTERNAL, takeErrors().text));
    this.free(ssl);
    return 0;
  }

  /**
   * Has OpenSSL itself look at the name, so that a wrong server gets its alert before it sees a
   * client certificate. Any of several DNS names will do for OpenSSL, but only one address.
   */
  private expectNames(ssl: number, names: readonly string[]): boolean {
    const { SSL_get0_param, X509_VERIFY_PARAM_set_hostflags } = this.ssl;
    const { X509_VERIFY_PARAM_add1_host, X509_VERIFY_PARAM_set1_ip_asc } = this.ssl;
    const param = SSL_get0_param(ssl);
    if (names.length === 1 && isIP(names[0]) !== 0) return X509_VERIFY_PARAM_set1_ip_asc(param, names[0]) === 1;
    for (const name of names) if (isUri(name) || isIP(name) !== 0) return true;
    X509_VERIFY_PARAM_set_hostflags(param, X509Flag.CHECK_NO_PARTIAL_WILDCARDS | X509Flag.CHECK_NEVER_SUBJECT);
    for (const name of names) {
      if (X509_VERIFY_PARAM_add1_host(param, name, Buffer.byteLength(name)) !== 1) return false;
    }
    return true;
  }

  private checkNames(ssl: number): boolean {
    const names = this.names.get(ssl);
    if (names === undefined) return true;
    this.names.delete(ssl);
    const matches = matchesAnyName(ssl, names);
    clearErrors();
    if (!matches) {
      this.fail(failureDetail(TlsFailure.WRONG_HOST, `none of ${names.join(', ')}`));
      this.keepFailure(ssl, -EPROTO);
    }
    return matches;
  }

  // -- writes that wait ------------------------------------------------------------

  private hold(ssl: number, address: number, bytes: number): void {
    this.held.set(ssl, { address, bytes, sent: 0 });
  }

  private dropHeld(ssl: number, held: Held): void {
    this.held.delete(ssl);
    release(held.address, held.bytes);
  }

  /** Sends what waits: 1, for the byte that counted as not taken; 0 if nothing waits; or an error. */
  private sendHeld(ssl: number): number {
    const held = this.held.get(ssl);
    if (held === undefined) return 0;
    while (held.sent < held.bytes) {
      const count = this.io.writeHeld(ssl, held.address + held.sent, held.bytes - held.sent);
      if (count <= 0) return this.writeFailed(ssl, count);
      held.sent += count;
    }
    this.dropHeld(ssl, held);
    return 1;
  }

  /** `send` for a session whose records are queued. */
  private sendQueued(ssl: number, queue: RecordQueue, offset: number, length: number): number {
    if (!queue.stuck) return this.write(ssl, queue, offset, length, 0);
    const { owedBytes } = queue;
    const status = this.queues.drain(queue);
    if (status === -EAGAIN) return status;
    this.queues.end(ssl, queue);
    if (status < 0) return this.socketFailed(ssl, status);
    if (owedBytes === length) return length;
    const count = this.send(ssl, offset + owedBytes, length - owedBytes);
    return count >= 0 ? owedBytes + count : count === -EAGAIN && owedBytes > 0 ? owedBytes : count;
  }

  /** Queues records of [offset + done, offset + length), and sends them whenever the queue is full; else as `send`. */
  private write(ssl: number, queue: RecordQueue, offset: number, length: number, done: number): number {
    let total = done;
    while (total < length) {
      if (this.queues.isFull(queue)) {
        const status = this.queues.drain(queue);
        if (status === -EAGAIN) {
          queue.stuck = true;
          return total > 0 ? total : status;
        }
        if (status < 0) {
          this.queues.end(ssl, queue);
          return this.socketFailed(ssl, status);
        }
      }
      const count = this.io.write(ssl, offset + total, Math.min(length - total, RECORD_BYTES_MAX));
      if (count <= 0) {
        const status = this.writeFailed(ssl, count);
        this.queues.end(ssl, queue);
        if (status !== -EAGAIN) return status;
        // There was room for the record: nothing of what the peer has got can be relied on.
        this.fail(failureDetail(TlsFailure.INTERNAL, 'a queue of records is full'));
        this.keepFailure(ssl, -EPROTO);
        return -EPROTO;
      }
      this.queues.noteRecord(queue, count);
      total += count;
    }
    return total;
  }

  /** Gives the socket what is queued, and the session its socket: see `uncork`. */
  private release(ssl: number, queue: RecordQueue): number {
    const status = this.queues.drain(queue);
    if (status === -EAGAIN) {
      queue.stuck = true;
      queue.owedBytes = 1;
      return status;
    }
    this.queues.end(ssl, queue);
    return status < 0 ? this.socketFailed(ssl, status) : 0;
  }

  /** The socket has failed under queued records. */
  private socketFailed(ssl: number, status: number): number {
    this.fail(failureDetail(TlsFailure.SOCKET));
    this.keepFailure(ssl, status);
    return status;
  }

  // -- failures --------------------------------------------------------------------

  private readFailed(ssl: number, result: number): number {
    const errno = this.io.errno();
    const error = this.ssl.SSL_get_error(ssl, result);
    this.recvWantsWrite = error === WANT_WRITE;
    if (error === WANT_READ || error === WANT_WRITE) return -EAGAIN;
    if (error === ZERO_RETURN) return 0;
    return this.endFailed(ssl, result, error, errno);
  }

  private writeFailed(ssl: number, result: number): number {
    const errno = this.io.errno();
    const error = this.ssl.SSL_get_error(ssl, result);
    if (error === WANT_WRITE || error === WANT_READ) return -EAGAIN;
    return this.endFailed(ssl, result, error, errno);
  }

  /** The rest of `readFailed` and `writeFailed`, once per session. */
  private endFailed(ssl: number, result: number, error: number, errno: number): number {
    const known = this.failed.get(ssl);
    if (known !== undefined) {
      clearErrors();
      this.fail(known);
      return known.status;
    }
    if (error === SSL && this.ssl.SSL_in_init(ssl) === 0) {
      // A fatal failure puts a session back into its initial state. This one is well, so the error
      // was in the queue before: somebody else on the thread left it there.
      const { text } = takeErrors();
      error = this.ssl.SSL_get_error(ssl, result);
      if (error === WANT_READ || error === WANT_WRITE) return -EAGAIN;
      if (error === ZERO_RETURN) return 0;
      this.fail(failureDetail(TlsFailure.INTERNAL, text));
      this.keepFailure(ssl, -EPROTO);
      return -EPROTO;
    }
    this.explain(ssl, error, errno);
    const status =
      this.failure === TlsFailure.TRUNCATED ? TLS_TRUNCATED : this.failure === TlsFailure.SOCKET ? -errno : -EPROTO;
    this.keepFailure(ssl, status);
    return status;
  }

  /** Finds the failure behind SSL_ERROR_SSL or SSL_ERROR_SYSCALL, and empties the error queue. */
  private explain(ssl: number, error: number, errno: number): void {
    const errors = takeErrors();
    if (error === SYSCALL && errors.library === 0) {
      this.fail(failureDetail(errno === 0 ? TlsFailure.TRUNCATED : TlsFailure.SOCKET));
      return;
    }
    const { SSL_get_verify_result, X509_verify_cert_error_string } = this.ssl;
    const verifyResult = SSL_get_verify_result(ssl);
    this.fail(classifyErrors(errors, verifyResult, X509_verify_cert_error_string(verifyResult) ?? ''));
  }

  private fail(detail: TlsFailureDetail): void {
    this.failure = detail.failure;
    this.alert = detail.alert;
    this.failureText = detail.text;
  }

  private keepFailure(ssl: number, status: number): void {
    const { failure, alert, failureText: text } = this;
    this.failed.set(ssl, { failure, alert, text, status });
  }
}
