// How the bytes of a connection travel when not by plain socket calls: through TLS, or as a stream
// inside an HTTP/2 connection. Protocols above the reactor do not know the difference.
// Hot module: no allocation.

import type { Connection } from './connection.ts';

/** What the reactor calls instead of the kernel for a connection that has a transport. */
export interface Transport {
  /** Like Kernel.recv: a count, 0 at the orderly end, or a negative error number. */
  recv(connection: Connection, offset: number, length: number): number;
  /** Like Kernel.send: takes what can go now; -EAGAIN when a `writable` will follow. */
  send(connection: Connection, offset: number, length: number): number;
  /** From now on what is sent may wait for `uncork`, so that it takes fewer calls and packets. False: it does not. */
  cork?(connection: Connection): boolean;
  /**
   * Sends what has waited: 0, or a negative error number. After -EAGAIN the connection is to have one byte of unsent
   * output, of any value, before anything else.
   */
  uncork?(connection: Connection): number;
  /** Whether a receive may bring something although no event has said so since the last one. */
  hasMore(connection: Connection): boolean;
  /** Like Kernel.shutdown: tells the peer that our side is finished. */
  shutdownWrite(connection: Connection): void;
  /** Why the transport failed, like SO_ERROR: a positive error number, or 0. */
  error(connection: Connection): number;
  /** Lets go of everything, the descriptor included; with `abort` the peer can tell that it was cut. */
  close(connection: Connection, abort: boolean): void;
}

/** What carries no bytes, for timers and for connections that stand for nobody: takes whatever it is given. */
export const noTransport: Transport = {
  recv: () => 0,
  send: (_connection, _offset, length) => length,
  hasMore: () => false,
  shutdownWrite: () => {},
  error: () => 0,
  close: () => {},
};
