// Words for what became of further attempts: the same in metrics, logs and flight records.
// Numbers are written to shared memory: append only.

import { detailName } from '../telemetry/outcome-names.ts';

/** Why an exchange was not tried (again), or that it was with success. */
export const RetryEnd = {
  /** Nothing called for another attempt. */
  NONE: 0,
  /** The last attempt brought an answer that needed no other. */
  SUCCEEDED: 1,
  /** All attempts that the rule allows have been made. */
  EXHAUSTED: 2,
  /** The backend's retry budget had nothing left. */
  BUDGET: 3,
  /** The circuit breaker's limit on retries was reached. */
  LIMIT: 4,
  /** The method is not idempotent, and the upstream may have acted on the request. */
  UNSAFE: 5,
  /** The request body is gone: it was longer than retry.bodyBuffer, or no buffer was left. */
  BODY: 6,
  /** The wait before another attempt would have been longer than timeouts.request or maxRetryAfter allow. */
  TIME: 7,
  /** The first attempt was slow, and a second one brought the answer before it. */
  HEDGE_WON: 8,
  /** The first attempt was slow, and its answer came before that of a second one. */
  HEDGE_LOST: 9,
} as const;

/** Word of each RetryEnd; empty for NONE. */
export const retryEndNames: readonly string[] = Object.keys(RetryEnd).map((name) =>
  name === 'NONE' ? '' : name.toLowerCase(),
);

const sentences: readonly string[] = [
  '',
  'A further attempt brought this answer.',
  'No retries were left: all that retry.attempts allows were made.',
  "It was not tried again: the backend's retry budget was used up (retryBudget).",
  "It was not tried again: the backend's limit on retries was reached (circuitBreaker.maxRetries).",
  'It was not tried again: its method is not idempotent, and the backend may have acted on it (retry.retryUnsafe).',
  'It was not tried again: its body was too long to be kept (retry.bodyBuffer), or had trailers.',
  'It was not tried again: the wait would have been longer than timeouts.request or retry.maxRetryAfter allow.',
  'The first attempt was slow; a second one, sent meanwhile, brought this answer (hedge).',
  'The first attempt was slow; a second one was sent meanwhile, and was not needed (hedge).',
];

/** One plain sentence for a RetryEnd; empty for NONE. */
export function retryEndSentence(end: number): string {
  return sentences[end] ?? `Retry outcome ${end}.`;
}

/** A failed attempt as one number: a Detail (reasons.ts), or one of these bases plus a status. */
export const AttemptFailure = { NONE: 0, STATUS: 10_000, GRPC_STATUS: 20_000, REASON: 30_000 } as const;

/** Word for a failed attempt: `upstream_fin`, `status_503`, `grpc_status_14`; empty for none. */
export function attemptFailureName(failure: number): string {
  if (failure >= AttemptFailure.REASON) return `reason_${failure - AttemptFailure.REASON}`;
  if (failure >= AttemptFailure.GRPC_STATUS) return `grpc_status_${failure - AttemptFailure.GRPC_STATUS}`;
  if (failure >= AttemptFailure.STATUS) return `status_${failure - AttemptFailure.STATUS}`;
  return detailName(failure);
}
