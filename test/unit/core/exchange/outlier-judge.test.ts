// Which ends of attempts speak against an endpoint.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Exchange } from '../../../../core/exchange/exchange.ts';
import { GrpcKind } from '../../../../core/exchange/grpc.ts';
import { isEndpointFailure, judgeAnswer, judgedStatus, judgeFailure } from '../../../../core/exchange/outlier-judge.ts';
import { Detail, Reason } from '../../../../core/exchange/reasons.ts';
import { ResponseHead } from '../../../../core/http1/message.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import { createNodeState, EndpointWord, NodeState } from '../../../../core/lb/node-state.ts';
import { memoryReactor, wideLimits } from './support.ts';

const reactor = memoryReactor();

test('the endpoint is to blame for failures to connect, to answer and to end, not for those of others', () => {
  const blamed: [reason: number, detail: number][] = [
    [Reason.UPSTREAM_CONNECT_FAILURE, Detail.CONNECT_ERRNO],
    [Reason.UPSTREAM_CONNECT_FAILURE, Detail.CONNECT_TIMER],
    [Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_RESET],
    [Reason.UPSTREAM_TIMEOUT, Detail.BACKEND_REQUEST_TIMER],
    [Reason.UPSTREAM_TIMEOUT, Detail.REQUEST_TIMER],
    [Reason.UPSTREAM_PROTOCOL_ERROR, Detail.RESPONSE_HEAD_INVALID],
  ];
  for (const [reason, detail] of blamed) assert.equal(isEndpointFailure(reason, detail), true, `${reason} ${detail}`);
  const innocent: [reason: number, detail: number][] = [
    [Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_GOAWAY],
    [Reason.UPSTREAM_TIMEOUT, Detail.GRPC_TIMER],
    [Reason.STALE_UPSTREAM_CONNECTION, Detail.UPSTREAM_RESET],
    [Reason.DOWNSTREAM_CONNECTION_TERMINATION, Detail.DOWNSTREAM_RESET],
    [Reason.DOWNSTREAM_TIMEOUT, Detail.REQUEST_BODY_TIMER],
    [Reason.UPSTREAM_OVERFLOW, Detail.STREAM_QUEUE_FULL],
    [Reason.OVERLOAD, Detail.NO_DESCRIPTORS],
  ];
  for (const [reason, detail] of innocent)
    assert.equal(isEndpointFailure(reason, detail), false, `${reason} ${detail}`);
});

/** An exchange with a backend that has outlier detection, and its endpoint's counts. */
function harness() {
  const node = new NodeState(createNodeState(1, 4, 2), 0);
  const outlierDetection = {
    ...{ consecutive5xx: 100, consecutiveGatewayFailures: 0, intervalMs: 1000, baseEjectionMs: 1000 },
    ...{ maxEjectionMs: 1000, maxEjectionPercent: 100, successRate: null, ramp: [100], rampStepMs: 1000 },
    failurePercentage: { threshold: 100, minimumHosts: 1, requestVolume: 1 },
  };
  const settings = { slot: 0, endpoints: [{ slot: 1 }], policy: { outlierDetection } };
  const runtime = { node, backends: [{ settings }] };
  const exchange = { runtime, backend: 0, endpoint: 0, answered: false, answerFailed: false } as unknown as Exchange;
  return {
    exchange,
    counts: (): number[] =>
      [
        EndpointWord.CONSECUTIVE_5XX,
        EndpointWord.CONSECUTIVE_GATEWAY_FAILURES,
        EndpointWord.INTERVAL_REQUESTS,
        EndpointWord.INTERVAL_FAILURES,
      ].map((word) => node.words[node.endpointAt(1) + word]!),
  };
}

test('answers count by their status: 5xx is a failure, 502 to 504 a gateway failure too', () => {
  const { exchange, counts } = harness();
  judgeAnswer(exchange, 500, 0);
  assert.deepEqual(counts(), [1, 0, 1, 1]);
  judgeAnswer(exchange, 503, 0);
  judgeAnswer(exchange, 504, 0);
  assert.deepEqual(counts(), [3, 2, 3, 3]);
  judgeAnswer(exchange, 499, 0);
  assert.deepEqual(counts(), [0, 0, 4, 3]);
});

test('an attempt without an answer is one failed request', () => {
  const { exchange, counts } = harness();
  judgeFailure(exchange, Reason.UPSTREAM_CONNECT_FAILURE, Detail.CONNECT_ERRNO, 0);
  assert.deepEqual(counts(), [1, 1, 1, 1]);
});

test('an answer that is cut counts as a failure once, whatever its status', () => {
  for (const [status, expected] of [
    [200, [1, 1, 1, 1]],
    [502, [1, 1, 1, 1]],
  ] as const) {
    const { exchange, counts } = harness();
    judgeAnswer(exchange, status, 0);
    exchange.answered = true;
    judgeFailure(exchange, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_RESET, 0);
    assert.deepEqual(counts(), expected);
  }
});

test('an RPC that ends with its head is judged by its gRPC status', () => {
  const { memory, arena } = reactor;
  const judged = (grpc: number, status: number, grpcStatus: string): number => {
    const text = `HTTP/1.1 ${status} x\r\ncontent-type: application/grpc\r\n${grpcStatus}\r\n`;
    memory.set(Buffer.from(text, 'latin1'), arena.receiveOffset);
    const head = new ResponseHead();
    assert.equal(parseResponseHead(memory, arena.receiveOffset, text.length, wideLimits, head), text.length);
    return judgedStatus({ grpc } as Exchange, memory, head);
  };
  assert.equal(judged(GrpcKind.GRPC, 200, 'grpc-status: 14\r\n'), 503);
  assert.equal(judged(GrpcKind.GRPC, 200, 'Grpc-Status: 4\r\n'), 504);
  assert.equal(judged(GrpcKind.WEB, 200, 'grpc-status: 13\r\n'), 500);
  assert.equal(judged(GrpcKind.GRPC, 200, 'grpc-status: 99\r\n'), 500);
  assert.equal(judged(GrpcKind.GRPC, 200, 'grpc-status: 5\r\n'), 404);
  assert.equal(judged(GrpcKind.GRPC, 200, 'grpc-status: 0\r\n'), 200);
  assert.equal(judged(GrpcKind.GRPC, 503, ''), 503);
  assert.equal(judged(GrpcKind.GRPC, 200, 'grpc-status: x\r\n'), 200);
  assert.equal(judged(GrpcKind.NONE, 200, 'grpc-status: 14\r\n'), 200);
});
