// What recognising an RPC does to its exchange and to the request head that goes upstream.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileRouteTable } from '../../../../config/compile-routes.ts';
import type { Exchange } from '../../../../core/exchange/exchange.ts';
import { GrpcKind } from '../../../../core/exchange/grpc.ts';
import { beginGrpc } from '../../../../core/exchange/grpc-exchange.ts';
import type { Runtime } from '../../../../core/exchange/runtime.ts';
import { editedRequest } from './grpc-fixture.ts';
import { openRuntime, snapshotOf } from './support.ts';

const NOW_MS = 5000;

interface Rule {
  requestTimeoutMs: number;
  backendRequestTimeoutMs: number;
  grpcWeb: boolean;
}

/** A runtime with one rule to one backend that speaks `protocol`. */
function runtimeWith(rule: Partial<Rule>, protocol: 'h2' | 'http/1.1'): Runtime {
  const snapshot = snapshotOf({});
  snapshot.routes = compileRouteTable({
    listeners: ['l'],
    backends: ['b'],
    routes: [
      {
        name: 'r',
        listeners: null,
        hostnames: null,
        rules: [
          {
            matches: [{ path: { type: 'PathPrefix', value: '/' } }],
            requestTimeoutMs: 0,
            backendRequestTimeoutMs: 0,
            grpcWeb: false,
            policy: null,
            backendRefs: [{ name: 'b', weight: 1, policy: null }],
            ...rule,
          },
        ],
      },
    ],
  });
  const runtime = openRuntime(snapshot);
  const settings = { name: 'b', protocol };
  Object.assign(runtime.backends, { 0: { settings } });
  return runtime;
}

interface Begun {
  ok: boolean;
  exchange: Exchange;
  /** Field lines as they go upstream, without those for TE. */
  lines: string;
}

function begin(fields: string, rule: Partial<Rule> | null = {}, protocol: 'h2' | 'http/1.1' = 'h2'): Begun {
  let ok = false;
  const seen: Exchange[] = [];
  const lines = editedRequest(fields, (memory, head, exchange) => {
    exchange.runtime = runtimeWith(rule ?? {}, protocol);
    if (rule !== null) {
      exchange.rule = 0;
      exchange.backend = 0;
      const requestTimeoutMs = exchange.runtime.routes.requestTimeoutMs(0);
      if (requestTimeoutMs > 0) exchange.requestDeadlineMs = NOW_MS + requestTimeoutMs;
    }
    ok = beginGrpc(memory, head, exchange, NOW_MS);
    seen.push(exchange);
  });
  return { ok, exchange: seen[0], lines };
}

const GRPC = 'content-type: application/grpc\r\n';

test('the client may have less time than the rule gives, never more', () => {
  const deadline = (timeout: string, rule: Partial<Rule>): [number, boolean, string] => {
    const { exchange, lines } = begin(`${GRPC}${timeout === '' ? '' : `grpc-timeout: ${timeout}\r\n`}`, rule);
    const sent = /grpc-timeout: (\w+)\r\n/.exec(lines)?.[1] ?? 'none';
    assert.equal(lines.split('grpc-timeout').length, sent === 'none' ? 1 : 2, lines);
    return [exchange.requestDeadlineMs, exchange.grpcDeadline, sent];
  };
  const at = (ms: number): number => NOW_MS + ms;
  assert.deepEqual(deadline('', {}), [0, false, 'none']);
  assert.deepEqual(deadline('2S', {}), [at(2000), true, '2S']);
  assert.deepEqual(deadline('0S', {}), [at(0), true, '0S']);
  assert.deepEqual(deadline('2S', { requestTimeoutMs: 3000 }), [at(2000), true, '2S']);
  assert.deepEqual(deadline('4S', { requestTimeoutMs: 3000 }), [at(3000), false, '3000m']);
  assert.deepEqual(deadline('3S', { requestTimeoutMs: 3000 }), [at(3000), false, '3S']);
  assert.deepEqual(deadline('', { requestTimeoutMs: 3000 }), [at(3000), false, '3000m']);
  assert.deepEqual(deadline('99999999H', { requestTimeoutMs: 3000 }), [at(3000), false, '3000m']);
  // No timer of ours runs so long.
  assert.deepEqual(deadline('99999999H', {}), [0, false, '99999999H']);
  // An attempt's limit is what the upstream has, but not the end of the exchange.
  assert.deepEqual(deadline('4S', { backendRequestTimeoutMs: 1000 }), [at(4000), true, '1000m']);
  assert.deepEqual(deadline('', { backendRequestTimeoutMs: 1000 }), [0, false, '1000m']);
  const both = { requestTimeoutMs: 3000, backendRequestTimeoutMs: 1000 };
  assert.deepEqual(deadline('4S', both), [at(3000), false, '1000m']);
  assert.deepEqual(deadline('2S', both), [at(2000), true, '1000m']);
  assert.deepEqual(deadline('500m', both), [at(500), true, '500m']);
  assert.deepEqual(deadline('2S', { requestTimeoutMs: 1000, backendRequestTimeoutMs: 3000 }), [
    at(1000),
    false,
    '1000m',
  ]);
});

test('other requests are not touched, whatever fields they have', () => {
  for (const fields of [
    'content-type: application/json\r\ngrpc-timeout: 1S\r\n',
    'content-type: application/json\r\ngrpc-timeout: nonsense\r\n',
    'content-type: application/grpc\r\ncontent-type: application/grpc\r\n',
  ]) {
    const { ok, exchange, lines } = begin(fields, { requestTimeoutMs: 500, grpcWeb: true });
    assert.deepEqual([ok, exchange.grpc, exchange.requestDeadlineMs], [true, GrpcKind.NONE, NOW_MS + 500]);
    assert.equal(lines, fields);
  }
});

test('a malformed timeout is refused, as an RPC', () => {
  for (const rule of [{}, null]) {
    const { ok, exchange } = begin(`${GRPC}grpc-timeout: soon\r\n`, rule);
    assert.deepEqual([ok, exchange.grpc], [false, GrpcKind.GRPC]);
  }
});

test('an RPC without a route is still one, for the answer', () => {
  const { ok, exchange } = begin(`${GRPC}grpc-timeout: 1S\r\n`, null);
  assert.deepEqual([ok, exchange.grpc, exchange.requestDeadlineMs], [true, GrpcKind.GRPC, 0]);
});

test('gRPC-Web becomes gRPC where the rule says so and the backend can take it', () => {
  const fields = 'content-type: application/grpc-web-text+proto\r\naccept: application/grpc-web\r\n';
  const { exchange, lines } = begin(fields, { grpcWeb: true });
  assert.equal(
    lines.replaceAll(/ +/g, ' '),
    'content-type: application/grpc+proto\r\naccept: application/grpc-web\r\nte: trailers\r\nconnection: te\r\n',
  );
  assert.equal(exchange.grpc, GrpcKind.WEB);
  assert.deepEqual([exchange.grpcWeb?.requestText, exchange.grpcWeb?.responseText], [true, false]);

  for (const [rule, protocol] of [
    [{ grpcWeb: false }, 'h2'],
    [{ grpcWeb: true }, 'http/1.1'],
    [null, 'h2'],
  ] as const) {
    const untouched = begin(fields, rule, protocol);
    assert.equal(untouched.lines, fields);
    assert.equal(untouched.exchange.grpc, GrpcKind.NONE);
  }
});

test('TE that the client of gRPC-Web sent is not sent twice', () => {
  const { lines } = begin('te: trailers\r\ncontent-type: application/grpc-web\r\n', { grpcWeb: true });
  assert.equal(lines.split('te: trailers').length, 2, lines);
});

test('gRPC-Web has deadlines too', () => {
  const { exchange, lines } = begin('grpc-timeout: 9S\r\ncontent-type: application/grpc-web\r\n', {
    grpcWeb: true,
    requestTimeoutMs: 3000,
  });
  assert.equal(exchange.requestDeadlineMs, NOW_MS + 3000);
  assert.match(lines, /^content-type:/);
  assert.match(lines, /\r\ngrpc-timeout: 3000m\r\n$/);
});

test('a pooled exchange forgets its RPC', () => {
  const { exchange } = begin('grpc-timeout: 9S\r\ncontent-type: application/grpc-web\r\n', {
    grpcWeb: true,
    backendRequestTimeoutMs: 3000,
  });
  assert.ok(exchange.grpc !== 0 && exchange.grpcTimeoutMs !== 0 && exchange.grpcDeadline);
  exchange.reset();
  assert.deepEqual([exchange.grpc, exchange.grpcTimeoutMs, exchange.grpcDeadline], [0, 0, false]);
});
