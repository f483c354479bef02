// What may be done with a method again. Spec: RFC 9110 §9.2. Hot module: no allocation.

import { Method } from '../http1/message.ts';

/** Methods that only ask (RFC 9110 §9.2.1). */
export function isSafe(method: number): boolean {
  return method === Method.GET || method === Method.HEAD || method === Method.OPTIONS || method === Method.TRACE;
}

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
