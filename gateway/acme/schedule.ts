// When to renew, and when to try again: the arithmetic alone.

import type { AcmeErrorKind } from './errors.ts';

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

/** Share of the lifetime after which a certificate is renewed: a third is left for failures. */
const RENEWAL_SHARE = 2 / 3;
/** Renewals are spread over this share of the lifetime, so that many gateways do not come at once. */
const RENEWAL_SPREAD = 0.04;

/**
 * Waits after failures, growing threefold. Let's Encrypt allows five failed validations per hostname
 * and hour; the first hour has four attempts.
 */
const BACKOFF_FIRST_MS = 2 * MINUTE_MS;
const BACKOFF_FACTOR = 3;
const BACKOFF_MAX_MS = DAY_MS;
/** A CA that is out of reach counts no failures, and may be back any minute; so may a disk. */
const BACKOFF_OUTAGE_MAX_MS = HOUR_MS;

/** How soon the CA is asked again when it wants a certificate renewed, where it does not say. */
const RENEWAL_INFO_DEFAULT_MS = 6 * HOUR_MS;
const RENEWAL_INFO_MIN_MS = MINUTE_MS;
const RENEWAL_INFO_MAX_MS = DAY_MS;

/** When to renew a certificate that is valid in this span, in milliseconds since 1970. `random`: [0, 1). */
export function renewalTimeMs(notBeforeMs: number, notAfterMs: number, random: number): number {
  const lifetimeMs = notAfterMs - notBeforeMs;
  return notBeforeMs + lifetimeMs * (RENEWAL_SHARE + (random - 0.5) * RENEWAL_SPREAD);
}

/** When to renew within the window that the CA suggests: anywhere, evenly (RFC 9773 §4.2). */
export function windowTimeMs(startMs: number, endMs: number, random: number): number {
  return startMs + (endMs - startMs) * random;
}

/** Milliseconds until the CA's renewal information is read again (RFC 9773 §4.3). 0: the CA did not say. */
export function renewalInfoDelayMs(retryAfterMs: number): number {
  if (retryAfterMs === 0) return RENEWAL_INFO_DEFAULT_MS;
  return Math.min(Math.max(retryAfterMs, RENEWAL_INFO_MIN_MS), RENEWAL_INFO_MAX_MS);
}

/**
 * Milliseconds until the next attempt, after `failures` (at least 1) failures in a row. Between half
 * and the whole of the step, evenly; never less than what the CA asked for, plus up to a tenth.
 */
export function backoffMs(failures: number, kind: AcmeErrorKind, retryAfterMs: number, random: number): number {
  const outage = kind === 'unreachable' || kind === 'storage';
  const maxMs = outage ? BACKOFF_OUTAGE_MAX_MS : BACKOFF_MAX_MS;
  const stepMs = Math.min(BACKOFF_FIRST_MS * BACKOFF_FACTOR ** (failures - 1), maxMs);
  return Math.max(stepMs * (0.5 + random * 0.5), retryAfterMs * (1 + random * 0.1));
}
