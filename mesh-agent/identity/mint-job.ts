// Piscina jobs: reading requests and signing certificates, away from the control thread.
//
// Refusals are results, since an error that crosses threads loses its class and code.

import { readSigningRequest } from './csr.ts';
import { asIdentityError, type IdentityErrorCode } from './errors.ts';
import { type Minted, type MintTask, mint } from './mint.ts';

/** The outcome of a job: a result or a refusal. */
export type JobResult<T> =
  | { ok: true; value: T }
  | { ok: false; code: IdentityErrorCode; cause: string; advice: string };

/** Job `mintJob`: signs a certificate. */
export function mintJob(task: MintTask): JobResult<Minted> {
  return attempt(() => mint(task));
}

/** Job `inspectJob`: the SPIFFE id that a request names; null: none. */
export function inspectJob(csr: string): JobResult<string | null> {
  return attempt(() => readSigningRequest(csr).identity);
}

function attempt<T>(action: () => T): JobResult<T> {
  try {
    return { ok: true, value: action() };
  } catch (error) {
    const { code, message, advice } = asIdentityError(error);
    return { ok: false, code, cause: message, advice };
  }
}
