// What may be done with a method again. Spec: RFC 9110 §9.2. Hot module: no allocation.

import { Method } from '../http1/message.ts';

/** Methods that may be sent twice (RFC 9110 §9.2.2). */
export function isIdempotent(method: number): boolean {
  switch (method) {
    case Method.GET:
    case Method.HEAD:
    case Method.PUT:
    case Method.DELETE:
    case Method.OPTIONS:
    case Method.TRACE:
      return true;
    default:
      return false;
  }
}
