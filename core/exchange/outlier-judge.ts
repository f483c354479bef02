// What an attempt says about its endpoint, for outlier detection.
//
// An answer below 500 is a success, whatever comes after its head; 500 and above a failure; an RPC that ends with
// its head goes by the HTTP status that its grpc-status stands for; an attempt
// without an answer, or whose answer was cut, a failure where the endpoint is to blame. Failures of the
// gateway itself, of clients and of kept connections that the endpoint had closed say nothing.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Semantics: Envoy's outlier detection, local-origin events not split from others.

import type { ResponseHead } from '../http1/message.ts';
import { noteFailure, noteSuccess } from '../lb/outlier-detection.ts';
import type { Exchange } from './exchange.ts';
import { grpcStatusInHead, httpStatusOfGrpc } from './grpc.ts';
import { Detail, Reason } from './reasons.ts';

const { UPSTREAM_CONNECT_FAILURE, UPSTREAM_CONNECTION_TERMINATION, UPSTREAM_TIMEOUT, UPSTREAM_PROTOCOL_ERROR } = Reason;
const { GRPC_TIMER, UPSTREAM_GOAWAY, UPSTREAM_STREAM_REFUSED } = Detail;

/** Status by which an answer is judged: of an RPC that ends with its head, the one that grpc-status stands for. */
export function judgedStatus(exchange: Exchange, memory: Uint8Array, head: ResponseHead): number {
  if (exchange.grpc === 0) return head.status;
  const status = grpcStatusInHead(memory, head.headers);
  return status < 0 ? head.status : httpStatusOfGrpc(status);
}

/** The final response head has come, with this `judgedStatus`; the backend has outlier detection. */
export function judgeAnswer(exchange: Exchange, status: number, nowMs: number): void {
  const runtime = exchange.runtime!;
  const { slot, endpoints, policy } = runtime.backends[exchange.backend]!.settings;
  const endpointSlot = endpoints[exchange.endpoint]!.slot;
  const settings = policy.outlierDetection!;
  exchange.answerFailed = status >= 500;
  if (status < 500) {
    noteSuccess(runtime.node, settings, endpointSlot);
    return;
  }
  const isGatewayFailure = status >= 502 && status <= 504;
  noteFailure(runtime.node, settings, slot, endpointSlot, endpoints.length, isGatewayFailure, true, nowMs);
}

/** The attempt has failed, with a Reason and Detail; the backend has outlier detection. */
export function judgeFailure(exchange: Exchange, reason: number, detail: number, nowMs: number): void {
  if (!isEndpointFailure(reason, detail)) return;
  // The answer has counted as a failure already.
  if (exchange.answered && exchange.answerFailed) return;
  const runtime = exchange.runtime!;
  const { slot, endpoints, policy } = runtime.backends[exchange.backend]!.settings;
  const endpointSlot = endpoints[exchange.endpoint]!.slot;
  const settings = policy.outlierDetection!;
  noteFailure(runtime.node, settings, slot, endpointSlot, endpoints.length, true, !exchange.answered, nowMs);
}

/** Whether a failed attempt is the endpoint's fault. */
export function isEndpointFailure(reason: number, detail: number): boolean {
  switch (reason) {
    case UPSTREAM_CONNECT_FAILURE:
    case UPSTREAM_PROTOCOL_ERROR:
      return true;
    case UPSTREAM_CONNECTION_TERMINATION:
      // An endpoint that shuts down in good order says so, and is not ill.
      return detail !== UPSTREAM_GOAWAY && detail !== UPSTREAM_STREAM_REFUSED;
    case UPSTREAM_TIMEOUT:
      // How long it may take is the endpoint's business only where the gateway's operator says it.
      return detail !== GRPC_TIMER;
    default:
      return false;
  }
}
