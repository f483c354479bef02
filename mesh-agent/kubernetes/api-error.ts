// What can go wrong between this process and a Kubernetes API server, with one name per kind of failure, so that
// callers can tell "ask again later" from "start over" and from "somebody has to do something".
//
// Control threads. Spec: Kubernetes API conventions, "Response Status Kind"; `metav1.StatusReason`.

/** What a failure means for the one who asked. */
export type ApiErrorCode =
  /** No answer: refused, reset, timed out, ended in the middle. Asking again may help. */
  | 'unreachable'
  /** The server asked for patience (429, 503, 504). */
  | 'overloaded'
  /** The version or continue token is older than what the server remembers (410). Listing anew helps. */
  | 'expired'
  /** The credentials are not accepted (401). */
  | 'unauthenticated'
  /** The credentials are accepted, and do not allow this (403). */
  | 'forbidden'
  /** The server does not know this resource (404). */
  | 'not-found'
  /** The server refused for another reason. */
  | 'refused'
  /** What came is not what the protocol says. */
  | 'malformed'
  /** The kubeconfig or the in-cluster credentials cannot be used. */
  | 'no-credentials';

/** A failed request to the API server. */
export class ApiError extends Error {
  readonly code: ApiErrorCode;
  /** HTTP status, or the `code` of the Status object; 0: there was no answer. */
  readonly status: number;
  /** `reason` of the Status object, such as `Expired`; empty where there is none. */
  readonly reason: string;
  /** How long the server wants to be left alone; 0: it did not say. */
  readonly retryAfterMs: number;
  /** A list that expired in the middle can be continued, inconsistently, with this; empty: it cannot. */
  readonly continueToken: string;

  constructor(code: ApiErrorCode, message: string, details: Partial<ApiErrorDetails> = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.status = details.status ?? 0;
    this.reason = details.reason ?? '';
    this.retryAfterMs = details.retryAfterMs ?? 0;
    this.continueToken = details.continueToken ?? '';
  }
}

interface ApiErrorDetails {
  status: number;
  reason: string;
  retryAfterMs: number;
  continueToken: string;
  cause: unknown;
}

/** The part of a `v1.Status` that is used here; any of it may be missing or of another type. */
interface StatusObject {
  code?: unknown;
  reason?: unknown;
  message?: unknown;
  metadata?: { continue?: unknown };
  details?: { retryAfterSeconds?: unknown; causes?: { reason?: unknown; message?: unknown }[] };
}

/**
 * The error that a Status object describes: the body of a refused request, or the object of an ERROR event.
 * `httpStatus` counts where the object has no code of its own; `retryAfter` is the header of that name.
 */
export function errorOfStatus(object: unknown, httpStatus: number, retryAfter = ''): ApiError {
  const body: StatusObject = typeof object === 'object' && object !== null ? object : {};
  const status = typeof body.code === 'number' ? body.code : httpStatus;
  const reason = text(body.reason);
  const seconds = typeof body.details?.retryAfterSeconds === 'number' ? body.details.retryAfterSeconds : 0;
  return new ApiError(codeOf(status, reason, body), text(body.message) || `the API server answered ${status}`, {
    status,
    reason,
    retryAfterMs: Math.max(0, seconds, /^\d{1,6}$/.test(retryAfter) ? Number(retryAfter) : 0) * 1000,
    continueToken: text(body.metadata?.continue),
  });
}

function codeOf(status: number, reason: string, body: StatusObject): ApiErrorCode {
  if (status === 410 || reason === 'Expired' || reason === 'Gone') return 'expired';
  // A version from the future: the server's store was restored from a backup, and ours is of the time after it.
  if (causesOf(body).some((cause) => cause.reason === 'ResourceVersionTooLarge')) return 'expired';
  switch (status) {
    case 401:
      return 'unauthenticated';
    case 403:
      return 'forbidden';
    case 404:
      return 'not-found';
    case 408:
    case 429:
    case 502:
    case 503:
    case 504:
      return 'overloaded';
    default:
      return 'refused';
  }
}

function causesOf(body: StatusObject): { reason?: unknown }[] {
  const causes = body.details?.causes;
  return Array.isArray(causes) ? causes.filter((cause) => typeof cause === 'object' && cause !== null) : [];
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
