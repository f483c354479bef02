// A claim of the bearer token in Authorization, read without verifying the token: good enough to
// tell honest clients apart, not to trust anything (whoever needs that verifies tokens before).
//
// Runs only for limits that ask for it, and makes strings and objects; the token's size is bounded by that of a head.
// Spec: RFC 6750 §2.1 (Bearer), RFC 7519 §3 and §7.2, RFC 7515 §7.1 (compact form).

import type { RequestHead } from '../http1/message.ts';
import { findFieldNamed } from './fields.ts';

const decoder = new TextDecoder();
const encoder = new TextEncoder();
const authorization = encoder.encode('authorization');

/** Largest payload that is looked at, in characters of base64url. */
const PAYLOAD_LENGTH_MAX = 16 * 1024;

/** The claim `name` of the token that a request carries; see `readClaim`. */
export function bearerClaim(memory: Uint8Array, { headers }: RequestHead, name: string): Uint8Array | null {
  // By its name: a filter of the rule may have marked it as one to drop.
  const field = findFieldNamed(memory, headers, authorization);
  return field < 0 ? null : readClaim(memory, headers.valueOffset(field), headers.valueLength(field), name);
}

/**
 * The claim `name` of the token in the value at `offset`, as bytes: a text as it is, anything else as JSON. Null when
 * there is no such claim, or no token.
 */
export function readClaim(memory: Uint8Array, offset: number, length: number, name: string): Uint8Array | null {
  const value = decoder.decode(memory.slice(offset, offset + length));
  const payload = /^bearer +[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*$/i.exec(value)?.[1];
  if (payload === undefined || payload.length > PAYLOAD_LENGTH_MAX) return null;
  let claims: unknown;
  try {
    claims = JSON.parse(Buffer.from(payload, 'base64url').toString());
  } catch {
    return null;
  }
  if (typeof claims !== 'object' || claims === null || !Object.hasOwn(claims, name)) return null;
  const claim = (claims as Record<string, unknown>)[name];
  return encoder.encode(typeof claim === 'string' ? claim : JSON.stringify(claim));
}
