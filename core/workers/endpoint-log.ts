// The log's view of endpoints that cannot be reached: one line when one begins to fail on this node,
// and one when it works again, whatever number of workers and requests meet it.
//
// Owned by the control thread. Workers report a failing endpoint again and again, at most once per
// ENDPOINT_REPORT_INTERVAL_MS each; what nobody has reported for a while is forgotten, which also
// bounds the memory for endpoints that have left the configuration.

import { DETAIL_TLS, Detail, detailSentence } from '../exchange/reasons.ts';
import { errnoSentence } from '../ffi/errno.ts';
import { type TlsFailure, tlsFailureSentence } from '../tls/errors.ts';
import type { Log } from './log.ts';
import type { EndpointReport } from './protocol.ts';

/** Time without a report after which a failure counts as a new one. Several report intervals long. */
const FORGET_AFTER_MS = 60_000;

/** Least time between two lines about one endpoint's failing: it may come and go many times a second. */
const LINE_INTERVAL_MS = 10_000;

interface Failing {
  /** Time of the last report, in milliseconds. */
  reportedMs: number;
  /** Time of the last line that it fails. */
  loggedMs: number;
  /** It works again; kept, so that the next line waits for its time. */
  recovered: boolean;
}

/** Puts the reports of all workers together. */
export class EndpointLog {
  private readonly log: Log;
  private readonly nowMs: () => number;
  private readonly endpoints = new Map<string, Failing>();

  constructor(log: Log, nowMs: () => number = () => performance.now()) {
    this.log = log;
    this.nowMs = nowMs;
  }

  /** Takes a worker's report and logs what is new. */
  note({ address, backend, detail, errno }: EndpointReport): void {
    const nowMs = this.nowMs();
    this.forget(nowMs);
    const known = this.endpoints.get(address);
    if (detail === Detail.NONE) {
      if (known === undefined || known.recovered) return;
      known.recovered = true;
      known.reportedMs = nowMs;
      this.log('info', 'endpoint works again', { endpoint: address, backend });
      return;
    }
    if (known !== undefined) {
      known.reportedMs = nowMs;
      if (!known.recovered || nowMs - known.loggedMs < LINE_INTERVAL_MS) return;
    }
    this.endpoints.set(address, { reportedMs: nowMs, loggedMs: nowMs, recovered: false });
    this.log('warn', 'endpoint fails', { endpoint: address, backend, cause: causeOf(detail, errno) });
  }

  private forget(nowMs: number): void {
    for (const [address, { reportedMs }] of this.endpoints) {
      if (nowMs - reportedMs >= FORGET_AFTER_MS) this.endpoints.delete(address);
    }
  }
}

function causeOf(detail: number, errno: number): string {
  if (detail === Detail.CONNECT_TIMER) return "no answer within the backend's connectTimeout";
  if (errno !== 0) return errnoSentence(errno);
  return detail >= DETAIL_TLS
    ? `TLS: ${tlsFailureSentence((detail - DETAIL_TLS) as TlsFailure)}`
    : detailSentence(detail);
}
