// What is decided of a request when its head has come, before anything is sent: its rule and endpoint, the head as it
// goes upstream, and what its policies say. downstream.ts acts on it.
//
//   allowed? --> route --> endpoint --> recorded --> gRPC --> head for the upstream, filters --> shed? --> limits
//
// It needs the head being worked on (`context.requestHead`), which does not outlive the event.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.

import { TargetForm } from '../http1/message.ts';
import { LARGE_BLOCK_BYTES } from '../io/arena.ts';
import { noBytes } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import { negotiateCoding } from './content-coding.ts';
import type { ProxyContext } from './context.ts';
import { CorsState } from './cors.ts';
import { type Exchange, HttpVersion } from './exchange.ts';
import { writeFilteredHead } from './filter-stages.ts';
import { headFiltersOf } from './filters.ts';
import { readClientOfHead } from './forwarded-client.ts';
import { beginGrpc, GRPC_BITS } from './grpc-exchange.ts';
import { isShed, OverloadLevel } from './overload.ts';
import { requestHeadBytesMax, writeRequestHead } from './request-head.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const SHED_LEVEL = OverloadLevel.LOW;
const { PREFLIGHT } = CorsState;
const { HTTP_2 } = HttpVersion;

/**
 * Routes the head being worked on, chooses an endpoint, and writes the head as it goes upstream into
 * the exchange's block. Returns 0, or the status to refuse with. Afterwards the head's bytes may move.
 */
export function prepareRequest(context: ProxyContext, exchange: Exchange): number {
  const { reactor, runtime, requestHead: head } = context;
  const connection = exchange.downstream!;
  if (connection.access !== null) {
    const { authorizer } = context;
    exchange.detail = authorizer.ofRequest(connection);
    exchange.allowedBy = authorizer.allowedBy;
  }
  const rule = route(context, connection);
  let endpointAddress: Uint8Array = noBytes;
  if (rule >= 0) {
    exchange.rule = rule;
    exchange.policy = runtime.policyOf(rule);
    if (exchange.policy !== null && exchange.policy.compression !== null) {
      exchange.coding = negotiateCoding(context.memory, head.headers, exchange.policy.compression);
    }
    const requestTimeoutMs = runtime.routes.requestTimeoutMs(rule);
    if (requestTimeoutMs > 0) exchange.requestDeadlineMs = reactor.nowMs + requestTimeoutMs;
    endpointAddress = context.upstream.choose(exchange);
  }
  if (runtime.recorder !== null) record(context, exchange);
  const valid = (head.seen & GRPC_BITS) === 0 || beginGrpc(context.memory, head, exchange, reactor.nowMs);
  const filters = headFiltersOf(exchange);
  if (filters !== null) {
    const status = writeFilteredHead(context, exchange, filters, endpointAddress);
    if (status !== 0) return status;
  } else {
    const bytes = requestHeadBytesMax(head, runtime, endpointAddress.length, connection);
    if (bytes > LARGE_BLOCK_BYTES) return 431;
    const block = reactor.arena.allocate(bytes);
    if (block === 0) return 503;
    exchange.headBlock = block;
    writeRequestHead(reactor, block, head, exchange, runtime, connection, endpointAddress, context.ids);
  }
  if (runtime.node.overload >= SHED_LEVEL) exchange.shed = isShed(exchange, runtime.node.overload);
  if (connection.workload?.isFull) exchange.shed = true;
  const { policy } = exchange;
  // Neither what is shed nor a preflight, which browsers send by themselves, uses up a limit.
  // A listener that only redirects serves nothing that a limit could be on.
  const limited = policy !== null && policy.limits !== null && connection.listener!.settings.redirectToHttps === null;
  if (exchange.detail !== 0) return 403;
  if (valid && limited && !exchange.shed && (exchange.cors & PREFLIGHT) === 0) {
    context.limitGate.apply(exchange, head);
  }
  return valid ? 0 : 400;
}

/** Rule for the head being worked on, or -1. */
function route(context: ProxyContext, connection: Connection): number {
  const { memory, reactor, runtime, requestHead: head, routeRequest: request } = context;
  let pathOffset = head.pathOffset;
  let pathLength = head.pathOnlyLength;
  if (pathLength === 0 || head.targetForm >= TargetForm.AUTHORITY) {
    // "*", a CONNECT authority or an absolute target without path: routed like "/".
    pathOffset = reactor.arena.scratchOffset;
    pathLength = 1;
    memory[pathOffset] = 47;
  }
  request.listener = connection.listener!.index;
  request.hostOffset = head.authorityOffset;
  request.hostLength = head.hostLength;
  request.pathOffset = pathOffset;
  request.pathLength = pathLength;
  request.certificate = connection.clientCertificate;
  if (runtime.routes.needsClient) {
    const { trustedHops } = runtime.http;
    request.client = trustedHops > 0 ? readClientOfHead(memory, head.headers, trustedHops, connection) : connection;
  }
  return runtime.routes.lookup(request);
}

/** Keeps the head being worked on, as the client sent it, with what was chosen for it. */
function record(context: ProxyContext, exchange: Exchange): void {
  const { reactor, runtime, requestHead: head } = context;
  exchange.recorded = runtime.recorder!.record(
    context.memory,
    head,
    exchange.downstream!,
    runtime.ruleChoice(exchange.rule),
    exchange.backend < 0 ? noBytes : runtime.backends[exchange.backend].nameBytes,
    exchange.httpVersion === HTTP_2 ? 20 : 10 + head.versionMinor,
    runtime.epoch,
    reactor.wallMs,
  );
}
