// What can go wrong with identities, named: every refusal of this folder is an IdentityError.
//
// The codes are stable: tests, metrics and gRPC statuses go by them. Control threads only.

/** Codes of refusals, by whose turn it is. */
export type IdentityErrorCode =
  /** Text that is no SPIFFE id, trust domain, or identity of the mesh's form. */
  | 'spiffe-id'
  /** The request to sign is larger than any honest one. */
  | 'csr-oversized'
  /** Not PEM, not DER, or not a PKCS #10 request. */
  | 'csr-malformed'
  /** Not signed by the key that it is about. */
  | 'csr-signature'
  /** A key that is too weak, of a kind that is not accepted, or signed with a hash that is not. */
  | 'csr-key-type'
  /** A subject that is not empty: names are in the SAN only. */
  | 'csr-subject'
  /** Names other than the one SPIFFE id that was asked for. */
  | 'csr-names'
  /** Attributes or extensions that a workload has no say in, such as a CA flag. */
  | 'csr-extensions'
  /** The caller did not say who it is, or not convincingly. */
  | 'unauthenticated'
  /** The caller may not have a certificate for this identity. */
  | 'identity-not-allowed'
  /** The CA's own certificate is not valid (long enough) any more. */
  | 'issuer-expired'
  /** More requests than the CA takes at a time: try again later. */
  | 'overloaded'
  /** A CA certificate or key that cannot be used. */
  | 'ca-material'
  /** A private file or directory that others can read or change. */
  | 'unsafe-permissions'
  /** The disk refused. */
  | 'storage'
  /** Another process uses the CA's directory. */
  | 'in-use'
  /** A trust bundle that cannot be read. */
  | 'bundle-malformed'
  /** A trust bundle that is older than the one in use. */
  | 'bundle-stale'
  /** A certificate that does not lead to a trusted root, or is not what was asked for. */
  | 'untrusted-certificate'
  /** The CA could not be reached or had no answer. */
  | 'ca-unreachable'
  /** A step of a root rotation that the present phase does not allow, or state that contradicts the CA's files. */
  | 'rotation'
  /** A mistake of the program. */
  | 'internal';

/** A refusal: what is wrong, in one clause, and what to do about it where that is not obvious. */
export class IdentityError extends Error {
  override readonly name = 'IdentityError';
  /** Stable, for tests, metrics and gRPC statuses. */
  readonly code: IdentityErrorCode;
  /** What an operator can do about it: one sentence without a full stop; empty where the cause says it. */
  readonly advice: string;

  /** `cause` is one clause without a full stop, and never quotes a secret. */
  constructor(code: IdentityErrorCode, cause: string, advice = '') {
    super(cause);
    this.code = code;
    this.advice = advice;
  }
}

/** Any error as an IdentityError; others than ours are mistakes in the program and keep their message. */
export function asIdentityError(error: unknown): IdentityError {
  if (error instanceof IdentityError) return error;
  return new IdentityError('internal', error instanceof Error ? error.message : String(error), 'report this as a bug');
}

/** The error for a file or directory that the system refused; `what` begins its cause. */
export function storageError(what: string, path: string, error: unknown): IdentityError {
  if (error instanceof IdentityError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const causes: Record<string, string> = {
    ENOENT: 'it does not exist',
    EACCES: 'this user may not use it',
    EPERM: 'this user may not use it',
    ENOSPC: 'the disk is full',
    EROFS: 'its file system is read-only',
    ENOTDIR: 'a file is in the way',
    EISDIR: 'it is a directory',
  };
  return new IdentityError('storage', `${what} ${path}: ${causes[code ?? ''] ?? message}`);
}
