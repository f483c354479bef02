// What an exchange knows of the RPC that it carries: recognised once, when its request head is prepared.
// Hot module: no allocation but the translation state of the first gRPC-Web exchange.
// Spec: gRPC over HTTP/2 (Requests), gRPC-Web (PROTOCOL-WEB).

import { HeaderId } from '../http1/header-ids.ts';
import type { RequestHead } from '../http1/message.ts';
import type { Exchange } from './exchange.ts';
import { clientTimeoutMs, dropClientTimeout, GRPC_TIMEOUT_MAX_MS, GrpcKind, grpcKind } from './grpc.ts';
import { GrpcWebState, grpcWebResponseKind, retypeRequest } from './grpc-web.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONTENT_TYPE } = HeaderId;
const { GRPC, NONE, WEB } = GrpcKind;

/** Bit of `RequestHead.seen` without which a request is no RPC. */
export const GRPC_BITS = 1 << CONTENT_TYPE;

/**
 * Looks whether a routed request (`exchange.rule`, `backend` and `requestDeadlineMs` are set) is an
 * RPC, and makes head and exchange ready for it, before the head is written for the upstream:
 * - its deadline becomes the shorter one of the rule's and grpc-timeout, and grpc-timeout is reduced
 *   to what the rule allows (added, if the client sent none and the rule has a limit);
 * - gRPC-Web becomes gRPC, if the rule says so (`grpcWeb`) and its backend speaks HTTP/2. Others are
 *   passed as they are: there are servers that understand gRPC-Web themselves.
 * Returns false if grpc-timeout is malformed: the request must be refused.
 */
export function beginGrpc(memory: Uint8Array, head: RequestHead, exchange: Exchange, nowMs: number): boolean {
  const { headers } = head;
  const field = headers.find(CONTENT_TYPE);
  // Two content types are none.
  if (field < 0 || headers.find(CONTENT_TYPE, field + 1) >= 0) return true;
  const kind = grpcKind(memory, headers.valueOffset(field), headers.valueLength(field));
  if (kind === NONE) return true;
  if (kind >= WEB) {
    if (!translates(exchange)) return true;
    const responseKind = grpcWebResponseKind(memory, head, kind);
    exchange.grpcWeb ??= new GrpcWebState();
    exchange.grpcWeb.start(kind, responseKind);
    retypeRequest(memory, head, kind);
    exchange.grpc = responseKind;
  } else {
    exchange.grpc = GRPC;
  }
  const clientMs = clientTimeoutMs(memory, head);
  if (clientMs < 0) return false;
  if (exchange.rule >= 0) limitTime(memory, head, exchange, clientMs, nowMs);
  return true;
}

function translates(exchange: Exchange): boolean {
  const { routes, backends } = exchange.runtime!;
  const { backend, rule } = exchange;
  return rule >= 0 && backend >= 0 && routes.grpcWeb(rule) && backends[backend].settings.protocol === 'h2';
}

function limitTime(memory: Uint8Array, head: RequestHead, exchange: Exchange, clientMs: number, nowMs: number): void {
  const { routes } = exchange.runtime!;
  const requestMs = routes.requestTimeoutMs(exchange.rule);
  const attemptMs = routes.backendRequestTimeoutMs(exchange.rule);
  if (clientMs < GRPC_TIMEOUT_MAX_MS && (requestMs === 0 || clientMs < requestMs)) {
    exchange.requestDeadlineMs = nowMs + clientMs;
    exchange.grpcDeadline = true;
  }
  const limitMs = requestMs === 0 || (attemptMs > 0 && attemptMs < requestMs) ? attemptMs : requestMs;
  // One that further attempts have to reduce is written by this proxy in any case.
  const retried = exchange.policy !== null && exchange.policy.retry !== null && clientMs < GRPC_TIMEOUT_MAX_MS;
  if (!retried && (limitMs === 0 || limitMs >= clientMs)) return;
  dropClientTimeout(memory, head);
  exchange.grpcTimeoutMs = Math.max(1, limitMs === 0 ? clientMs : Math.min(limitMs, clientMs));
}
