// Faults that are injected into requests of a rule: a delay before they are sent on, an answer in place of the
// backend's. Which requests are concerned is decided once, while the head is at hand.
// Prepared once per snapshot and policy, immutable afterwards. Hot module: no allocation.
// Spec: Envoy's fault filter (delay, then abort, each by its own share; header conditions).

import type { HeaderTable } from '../http1/header-table.ts';
import type { Text } from '../io/bytes.ts';
import type { FaultSettings } from '../workers/filter-settings.ts';
import { grpcAnswers } from './filter-texts.ts';
import { httpStatusOfGrpc } from './grpc.ts';
import { Reason, reasonText } from './reasons.ts';
import type { RequestIds } from './request-id.ts';

/** Bits of `Exchange.fault`: what is still to be done to an exchange, or has been. */
export const FaultState = {
  DELAY: 1,
  ABORT: 2,
  /** It waits for the end of its delay. */
  DELAYING: 4,
  /** It has been delayed. */
  DELAYED: 8,
} as const;

const { ABORT, DELAY } = FaultState;

/** Shares are of so many. */
const WHOLE = 1_000_000;

const encoder = new TextEncoder();

export class Fault {
  readonly delayMs: number;
  /** HTTP status of aborted requests. */
  readonly status: number;
  /** Answers to aborted RPCs by GrpcKind; null: by `status`. */
  private readonly answers: Text[] | null;
  private readonly delayShare: number;
  private readonly abortShare: number;
  private readonly names: Uint8Array[];
  private readonly values: Uint8Array[];

  constructor(settings: FaultSettings) {
    const { delayMs, abortStatus, abortGrpcStatus, headers } = settings;
    this.delayMs = delayMs;
    this.delayShare = delayMs > 0 ? settings.delayShare : 0;
    this.answers =
      abortGrpcStatus < 0 ? null : grpcAnswers(abortGrpcStatus, reasonText(Reason.FAULT_INJECTED).sentence);
    // As Envoy answers requests that are no RPCs.
    this.status = abortStatus > 0 ? abortStatus : httpStatusOfGrpc(abortGrpcStatus);
    this.abortShare = abortStatus > 0 || abortGrpcStatus >= 0 ? settings.abortShare : 0;
    this.names = headers.map(({ name }) => encoder.encode(name));
    this.values = headers.map(({ value }) => encoder.encode(value));
  }

  /** The whole answer to an aborted RPC (`grpc` is the GrpcKind of its client); null: one by `status`. */
  answerFor(grpc: number): Text | null {
    return grpc === 0 || this.answers === null ? null : this.answers[grpc];
  }

  /** Decides what is done to a request with these fields: bits of FaultState. */
  decide(memory: Uint8Array, headers: HeaderTable, ids: RequestIds): number {
    for (let i = 0; i < this.names.length; i++) {
      if (!hasField(memory, headers, this.names[i], this.values[i])) return 0;
    }
    return (falls(this.delayShare, ids) ? DELAY : 0) | (falls(this.abortShare, ids) ? ABORT : 0);
  }
}

/** Whether this time is one of `share` in a million. */
function falls(share: number, ids: RequestIds): boolean {
  if (share <= 0) return false;
  return share >= WHOLE || (ids.next() >>> 1) % WHOLE < share;
}

/** Whether a field has this name (lower case) and exactly this value. */
function hasField(memory: Uint8Array, headers: HeaderTable, name: Uint8Array, value: Uint8Array): boolean {
  for (let field = 0; field < headers.count; field++) {
    if (headers.nameLength(field) !== name.length || headers.valueLength(field) !== value.length) continue;
    const nameOffset = headers.nameOffset(field);
    const valueOffset = headers.valueOffset(field);
    let i = 0;
    while (i < name.length && lower(memory[nameOffset + i]) === name[i]) i++;
    if (i < name.length) continue;
    i = 0;
    while (i < value.length && memory[valueOffset + i] === value[i]) i++;
    if (i === value.length) return true;
  }
  return false;
}

/** ASCII letters to lower case, everything else as it is. */
function lower(byte: number): number {
  return byte >= 65 && byte <= 90 ? byte | 32 : byte;
}
