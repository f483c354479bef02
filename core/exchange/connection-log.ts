// Lines in the gateway's log about single connections that failed before any request: handshakes,
// mostly. Of many alike in one second only a few are written, so that a flood of bad clients costs
// neither disk nor sight, and hides no failure of another kind.
// Owned by one worker. Not for the packet path: runs once per failed connection.

import { PEER_TEXT_BYTES_MAX, putPeer, SPILL_BYTES } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';

/** Most lines that a worker writes in one second about one listener or endpoint and one cause. */
const ALIKE_LINES_PER_SECOND = 5;
/** Most lines that a worker writes in one second; bounds the memory of what was written, too. */
const LINES_PER_SECOND = 50;

/** Writes a line to the gateway's log. */
export type WorkerLog = (level: 'debug' | 'info' | 'warn' | 'error', message: string) => void;

export class ConnectionLog {
  /** Set by the worker; says nothing before. */
  log: WorkerLog = () => {};
  private readonly reactor: Reactor;
  private second = 0;
  private linesInSecond = 0;
  private missedInSecond = 0;
  /** Lines written in this second, by place and cause. */
  private readonly alike = new Map<string, number>();

  constructor(reactor: Reactor) {
    this.reactor = reactor;
  }

  /** Says what became of a connection, and why. */
  tell(connection: Connection, event: string, cause: string): void {
    const second = Math.floor(this.reactor.nowMs / 1000);
    if (second !== this.second) this.startSecond(second);
    const { listener, serverName, endpoint, workload } = connection;
    const place = listener === null ? (endpoint?.address ?? '') : listener.settings.name;
    const owner = workload ?? endpoint?.workload ?? null;
    // The names of its own sockets begin with that.
    const whose = owner === null || place.startsWith(owner.settings.name) ? '' : `, workload ${owner.settings.name}`;
    const kind = `${place}${whose} ${event}: ${cause}`;
    const lines = this.alike.get(kind) ?? 0;
    if (lines >= ALIKE_LINES_PER_SECOND || this.linesInSecond >= LINES_PER_SECOND) {
      this.missedInSecond++;
      return;
    }
    this.alike.set(kind, lines + 1);
    this.linesInSecond++;
    const name = serverName === null ? '' : ` for ${serverName}`;
    const where =
      listener === null ? `with upstream ${place}` : `with client ${peerText(connection)} on listener ${place}`;
    this.log('info', `${event} ${where}${name}${whose}: ${cause}`);
  }

  private startSecond(second: number): void {
    if (this.missedInSecond > 0) {
      this.log('info', `${this.missedInSecond} more failures of connections were not logged`);
    }
    this.second = second;
    this.linesInSecond = 0;
    this.missedInSecond = 0;
    this.alike.clear();
  }
}

function peerText(connection: Connection): string {
  const bytes = new Uint8Array(PEER_TEXT_BYTES_MAX + SPILL_BYTES);
  const end = putPeer(new DataView(bytes.buffer), 0, connection);
  return Buffer.from(bytes.subarray(0, end)).toString('latin1');
}
