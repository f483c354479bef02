// TLS as the transport of a connection (core/io/transport.ts): the reactor's receives and sends go
// through OpenSSL, and whoever handles the connection does not notice.
// Owned by one worker. Hot module: no allocation.

import { type Kernel, Shutdown } from '../ffi/kernel.ts';
import type { Connection } from '../io/connection.ts';
import type { Transport } from '../io/transport.ts';
import type { TlsSessions } from './session.ts';

export class TlsTransport implements Transport {
  private readonly sessions: TlsSessions;
  private readonly kernel: Kernel;

  constructor(sessions: TlsSessions, kernel: Kernel) {
    this.sessions = sessions;
    this.kernel = kernel;
  }

  recv(connection: Connection, offset: number, length: number): number {
    const { sessions } = this;
    const count = sessions.recv(connection.tls, offset, length);
    connection.tlsMore = count > 0 && sessions.readMore;
    return count;
  }

  send(connection: Connection, offset: number, length: number): number {
    return this.sessions.send(connection.tls, offset, length);
  }

  cork(connection: Connection): boolean {
    return this.sessions.cork(connection.tls);
  }

  uncork(connection: Connection): number {
    return this.sessions.uncork(connection.tls);
  }

  hasMore(connection: Connection): boolean {
    return connection.tlsMore || connection.readHangup;
  }

  shutdownWrite(connection: Connection): void {
    this.sessions.shutdown(connection.tls);
    this.kernel.shutdown(connection.fd, Shutdown.WRITE);
  }

  error(connection: Connection): number {
    return connection.errno !== 0 ? connection.errno : this.kernel.socketError(connection.fd);
  }

  close(connection: Connection, abort: boolean): void {
    this.sessions.uncork(connection.tls);
    // Without close_notify the peer knows that what it has is not all (RFC 8446 §6.1).
    if (!abort) this.sessions.shutdown(connection.tls);
    this.sessions.free(connection.tls);
    connection.tls = 0;
    if (abort) this.kernel.abortOnClose(connection.fd);
    this.kernel.close(connection.fd);
  }
}
