// Policies on trial (dry run): what they would have refused is counted, and said in the log now and then.
// Owned by one worker. Only for what is let in and would not be.

import type { Refusal } from '../authorization/authorization.ts';
import { POLICY_SLOTS } from '../authorization/policy-numbers.ts';
import type { RequestHead } from '../http1/message.ts';
import { PEER_TEXT_BYTES_MAX, putPeer, SPILL_BYTES } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import { MetricSection } from '../telemetry/metrics.ts';
import type { ProxyContext } from './context.ts';

const { POLICY_TRIALS } = MetricSection;

/** Least time between two lines of a worker about the same policy. */
const LOG_INTERVAL_MS = 1000;

/** Most bytes of a method or target in a line. */
const LOGGED_BYTES_MAX = 200;

export class PolicyTrials {
  private readonly context: ProxyContext;
  /** By the policy's counter: when it was last logged, and how often it was not since. */
  private readonly loggedMs = new Float64Array(POLICY_SLOTS).fill(Number.NEGATIVE_INFINITY);
  private readonly unlogged = new Int32Array(POLICY_SLOTS);

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** Notes what would have been refused: the request `head` of a connection, or (null) the connection itself. */
  note(trial: Refusal, connection: Connection, head: RequestHead | null): void {
    const { metrics, reactor } = this.context;
    let due = false;
    for (const { slot } of trial.policies) {
      metrics.counters[POLICY_TRIALS + slot]++;
      if (reactor.nowMs - this.loggedMs[slot]! >= LOG_INTERVAL_MS) due = true;
      else this.unlogged[slot]!++;
    }
    if (due) this.log(trial, connection, head);
  }

  private log({ word, policies }: Refusal, connection: Connection, head: RequestHead | null): void {
    const { connectionLog, memory, reactor } = this.context;
    let unlogged = 0;
    for (const { slot } of policies) {
      unlogged = Math.max(unlogged, this.unlogged[slot]!);
      this.unlogged[slot] = 0;
      this.loggedMs[slot] = reactor.nowMs;
    }
    const what =
      head === null
        ? 'a connection'
        : `${text(memory, head.methodOffset, head.methodLength)} ${text(memory, head.targetOffset, head.targetLength)}`;
    const { workload, destination, access } = connection;
    const { identity } = access!.facts.source;
    const peer = peerText(connection);
    const who = identity === '' ? peer : `${identity} (${peer})`;
    const where = `${workload?.settings.name ?? ''} at ${destination ?? ''}`;
    const more = unlogged === 0 ? '' : `; ${unlogged} more since the last such line`;
    connectionLog.log('info', `dry run: ${what} of ${who} to ${where} would be refused: ${word}${more}`);
  }
}

/** Bytes that a parser has let through as method or target: visible ASCII. */
function text(memory: Uint8Array, offset: number, length: number): string {
  const shown = Buffer.from(memory.subarray(offset, offset + Math.min(length, LOGGED_BYTES_MAX))).toString('latin1');
  return length > LOGGED_BYTES_MAX ? `${shown}...` : shown;
}

function peerText(connection: Connection): string {
  const bytes = new Uint8Array(PEER_TEXT_BYTES_MAX + SPILL_BYTES);
  const end = putPeer(new DataView(bytes.buffer), 0, connection);
  return Buffer.from(bytes.subarray(0, end)).toString('latin1');
}
