// Lines in the gateway's log about single connections that failed before any request: handshakes,
// mostly. Of many in one second only a few are written, so that a flood of bad clients costs neither
// disk nor sight.
// Owned by one worker. Not for the packet path: runs once per failed connection.

import { PEER_TEXT_BYTES_MAX, putPeer, SPILL_BYTES } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';

/** Most lines that a worker writes in one second. */
const LINES_PER_SECOND = 10;

/** Writes a line to the gateway's log. */
export type WorkerLog = (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void;

export class ConnectionLog {
  /** Set by the worker; says nothing before. */
  log: WorkerLog = () => {};
  private readonly reactor: Reactor;
  private second = 0;
  private linesInSecond = 0;

  constructor(reactor: Reactor) {
    this.reactor = reactor;
  }

  /** Says what became of a connection, and why. */
  tell(connection: Connection, event: string, cause: string): void {
    const second = Math.floor(this.reactor.nowMs / 1000);
    if (second !== this.second) {
      const missed = this.linesInSecond - LINES_PER_SECOND;
      if (missed > 0) this.log('info', `${missed} more failures of connections were not logged`);
      this.second = second;
      this.linesInSecond = 0;
    }
    if (++this.linesInSecond > LINES_PER_SECOND) return;
    const { listener, serverName, endpoint } = connection;
    const name = serverName === null ? '' : ` for ${serverName}`;
    const where =
      listener === null
        ? `with upstream ${endpoint === null ? '' : endpoint.address}`
        : `with client ${peerText(connection)} on listener ${listener.settings.name}`;
    this.log('info', `${event} ${where}${name}: ${cause}`);
  }
}

function peerText(connection: Connection): string {
  const bytes = new Uint8Array(PEER_TEXT_BYTES_MAX + SPILL_BYTES);
  const end = putPeer(new DataView(bytes.buffer), 0, connection);
  return Buffer.from(bytes.subarray(0, end)).toString('latin1');
}
