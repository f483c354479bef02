// Records on their way from OpenSSL to sockets, gathered so that several leave with one system call.
//
// OpenSSL writes each record to a BIO by itself: a system call, and a packet of its own, for every 16 KiB or less.
// While a session has a queue, its records go to a BIO pair instead, whose other end is read in place and given to the
// socket. What the socket refuses stays in the queue: it is encrypted, and its place in the order of records is taken.
// So the session keeps the queue until it is empty, and whatever OpenSSL itself writes meanwhile (an answer to a key
// update, close_notify) goes behind it.
// Invariant: a queue is drained from its start, and emptied as a whole, so that its bytes are always in one piece.
// Owned by one worker, as its sessions are (session.ts). Hot module: allocates only when it needs more queues than ever.

import { allocate, type OpenSsl, openSsl, type RecordIo } from '../ffi/openssl.ts';

/** What goes around the plaintext of a record: 22 bytes in TLS 1.3, 29 with the ciphers of 1.2 that we offer. */
const RECORD_OVERHEAD_BYTES = 64;

/** The largest record (RFC 8446 §5.2). */
const RECORD_ROOM_BYTES = 16384 + RECORD_OVERHEAD_BYTES;

/**
 * Eight large records: about what one receive brings. With four, bytes cost 3 % more CPU. A client that does not read
 * holds no more memory for it: what is not queued would be kept as it is.
 */
const QUEUE_BYTES_MAX = 8 * RECORD_ROOM_BYTES;

/** Room for what OpenSSL writes by itself. */
const SLACK_BYTES = 1024;

/** Queues without a session that are kept. */
const SPARES_MAX = 2;

const MSG_NOSIGNAL = 0x4000;

/** Where the records of one session go. */
export class RecordQueue {
  /** The end that the session writes to, and ours: BIOs. */
  readonly input: number;
  readonly output: number;
  /** Where its first byte lies. */
  readonly address: number;
  /** Socket of the session. */
  fd = -1;
  /** Bytes that the socket has taken; those behind them are still to go. */
  sentBytes = 0;
  /** Room that the records since it was empty may have taken. */
  usedBytes = 0;
  /** The socket has refused some: no further record may come before it is empty. */
  stuck = false;
  /** Bytes that the session's owner has been told were not taken, although they are among these. */
  owedBytes = 0;

  constructor(input: number, output: number, address: number) {
    this.input = input;
    this.output = output;
    this.address = address;
  }
}

/** The queues of one packet thread. */
export class RecordQueues {
  private readonly ssl: OpenSsl = openSsl();
  private readonly io: RecordIo;
  private readonly used = new Map<number, RecordQueue>();
  private readonly spares: RecordQueue[] = [];
  /** Where OpenSSL writes addresses that are known already. */
  private readonly pointer = allocate(new Uint8Array(8));

  constructor(io: RecordIo) {
    this.io = io;
  }

  /** Sessions that have a queue. */
  get count(): number {
    return this.used.size;
  }

  /** The queue of a session, if it has one. */
  of(ssl: number): RecordQueue | undefined {
    return this.used.get(ssl);
  }

  /** Whether there may be no room for another record. */
  isFull(queue: RecordQueue): boolean {
    return queue.usedBytes + RECORD_ROOM_BYTES > QUEUE_BYTES_MAX;
  }

  /** A record with so many bytes of plaintext has been written. */
  noteRecord(queue: RecordQueue, bytes: number): void {
    queue.usedBytes += bytes + RECORD_OVERHEAD_BYTES;
  }

  /** From now on the records of a session are queued. Undefined: no memory is left for that. */
  begin(ssl: number): RecordQueue | undefined {
    const queue = this.spares.pop() ?? this.make();
    if (queue === undefined) return undefined;
    queue.fd = this.ssl.SSL_get_fd(ssl);
    this.ssl.BIO_up_ref(queue.input);
    this.ssl.SSL_set0_wbio(ssl, queue.input);
    this.used.set(ssl, queue);
    return queue;
  }

  /** Gives everything to the socket: 0 when the queue is empty, -EAGAIN when it is not, or another negative error number. */
  drain(queue: RecordQueue): number {
    const bytes = this.ssl.BIO_ctrl_pending(queue.output);
    while (queue.sentBytes < bytes) {
      const { sentBytes } = queue;
      const count = this.ssl.send(queue.fd, queue.address + sentBytes, bytes - sentBytes, MSG_NOSIGNAL);
      if (count < 0) return -this.io.errno();
      queue.sentBytes += count;
    }
    if (bytes > 0) this.ssl.BIO_nread(queue.output, this.pointer, bytes);
    queue.sentBytes = 0;
    queue.usedBytes = 0;
    return 0;
  }

  /** The records of a session go to its socket again. What is in the queue is dropped. */
  end(ssl: number, queue: RecordQueue): void {
    const socket = this.ssl.SSL_get_rbio(ssl);
    this.ssl.BIO_up_ref(socket);
    this.ssl.SSL_set0_wbio(ssl, socket);
    this.drop(ssl, queue);
  }

  /** The same for a session that is not going to write any more. */
  drop(ssl: number, queue: RecordQueue): void {
    this.used.delete(ssl);
    const bytes = this.ssl.BIO_ctrl_pending(queue.output);
    if (bytes > 0) this.ssl.BIO_nread(queue.output, this.pointer, bytes);
    queue.sentBytes = 0;
    queue.usedBytes = 0;
    queue.stuck = false;
    queue.owedBytes = 0;
    if (this.spares.length < SPARES_MAX) {
      this.spares.push(queue);
    } else {
      this.ssl.BIO_free(queue.input);
      this.ssl.BIO_free(queue.output);
    }
  }

  private make(): RecordQueue | undefined {
    const { ssl } = this;
    const input = new BigUint64Array(1);
    const output = new BigUint64Array(1);
    const address = new BigUint64Array(1);
    // The way back is not used.
    if (ssl.BIO_new_bio_pair(input, QUEUE_BYTES_MAX + SLACK_BYTES, output, 1) !== 1) return undefined;
    // Its memory stays where it is for its whole life: a byte shows where.
    ssl.BIO_write(Number(input[0]), new Uint8Array(1), 1);
    ssl.BIO_nread0(Number(output[0]), address);
    ssl.BIO_nread(Number(output[0]), this.pointer, 1);
    return new RecordQueue(Number(input[0]), Number(output[0]), Number(address[0]));
  }
}
