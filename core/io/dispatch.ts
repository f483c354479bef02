// One event of epoll: notes what it says in the connection, and has the connection's protocol act on it.
// Hot module: no allocation, exception, promise, closure or log line.

import { Epoll } from '../ffi/kernel.ts';
import type { Connection } from './connection.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { OUT, RDHUP, HUP, ERR } = Epoll;

/**
 * Handles the event at `word` of `events`, whose slot and generation are at `dataIndex` in it. One of an earlier
 * occupant of the slot is for nobody. The handlers may close any connection.
 */
export function dispatch(
  connections: readonly (Connection | undefined)[],
  events: Int32Array,
  word: number,
  dataIndex: number,
): void {
  const bits = events[word];
  const generation = events[word + dataIndex + 1];
  const connection = connections[events[word + dataIndex]];
  if (connection === undefined || connection.generation !== generation) return;
  if ((bits & (RDHUP | HUP | ERR)) !== 0) connection.readHangup = true;
  if ((bits & (OUT | HUP | ERR)) !== 0) {
    connection.protocol!.writable(connection);
    if (connection.generation !== generation) return;
  }
  if ((bits & ~OUT) !== 0) {
    connection.readReady = true;
    connection.protocol!.readable(connection);
  }
}
