// What tells an RPC from other requests, its deadline, and this proxy's own answers to it, read by
// a parser that is not ours.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HTTPParser } from 'http-parser-js';
import { GENERATED_BYTES_MAX, GeneratedConnection } from '../../../../core/exchange/generated.ts';
import {
  clientTimeoutMs,
  dropClientTimeout,
  GRPC_TIMEOUT_LINE_BYTES_MAX,
  GRPC_TIMEOUT_MAX_MS,
  GrpcKind,
  GrpcStatus,
  grpcKind,
  grpcStatusOf,
  isGrpc,
  parseGrpcTimeout,
  putGrpcEnd,
  putGrpcTimeout,
  writeGeneratedGrpc,
} from '../../../../core/exchange/grpc.ts';
import {
  DETAIL_PARSE,
  Detail,
  detailSentence,
  REASON_COUNT,
  Reason,
  reasonText,
} from '../../../../core/exchange/reasons.ts';
import { DateLine } from '../../../../core/exchange/response-head.ts';
import type { Runtime } from '../../../../core/exchange/runtime.ts';
import { ParseError, parseErrorSentence } from '../../../../core/http1/errors.ts';
import { HeaderTable } from '../../../../core/http1/header-table.ts';
import { SPILL_BYTES } from '../../../../core/io/bytes.ts';
import { editedRequest, parsedHead, reactor } from './grpc-fixture.ts';
import { assertUntouched, fieldsOf, GUARD, runtimeOf, textOf } from './support.ts';

const date = new DateLine();

function kindOf(contentType: string): number {
  // What lies behind the value must not be looked at.
  const memory = Buffer.from(`__${contentType}-web-text+proto`);
  return grpcKind(memory, 2, contentType.length);
}

test('a content type says whether it is gRPC, gRPC-Web or its text form', () => {
  for (const type of ['application/grpc', 'application/grpc+proto', 'application/grpc;charset=utf-8']) {
    assert.equal(kindOf(type), GrpcKind.GRPC, type);
    assert.equal(kindOf(type.toUpperCase()), GrpcKind.GRPC, type);
    assert.equal(isGrpc(Buffer.from(type), 0, type.length), true, type);
  }
  for (const type of ['application/grpc-web', 'application/grpc-web+proto', 'application/grpc-web ; x=y']) {
    assert.equal(kindOf(type), GrpcKind.WEB, type);
    assert.equal(isGrpc(Buffer.from(type), 0, type.length), false, type);
  }
  for (const type of ['application/grpc-web-text', 'application/grpc-web-text+json', 'application/grpc-web-text,*/*']) {
    assert.equal(kindOf(type), GrpcKind.WEB_TEXT, type);
  }
});

test('content types that only look like gRPC are not', () => {
  for (const type of [
    '',
    'application/grp',
    'application/grpcx',
    'application/grpc-',
    'application/grpc-websocket',
    'application/grpc-web-',
    'application/grpc-web-texts',
    'application/json',
    'text/grpc',
    ' application/grpc',
  ]) {
    assert.equal(kindOf(type), GrpcKind.NONE, type);
  }
});

function timeoutOf(text: string): number {
  const memory = Buffer.from(`9${text}9m`);
  return parseGrpcTimeout(memory, 1, text.length);
}

test('timeouts of every unit become milliseconds, never fewer than meant', () => {
  assert.equal(timeoutOf('1H'), 3_600_000);
  assert.equal(timeoutOf('2M'), 120_000);
  assert.equal(timeoutOf('30S'), 30_000);
  assert.equal(timeoutOf('250m'), 250);
  assert.equal(timeoutOf('1000u'), 1);
  assert.equal(timeoutOf('1001u'), 2);
  assert.equal(timeoutOf('1n'), 1);
  assert.equal(timeoutOf('99999999n'), 100);
  assert.equal(timeoutOf('0S'), 0);
  assert.equal(timeoutOf('00000001m'), 1);
});

test('timeouts too long to matter are all the same', () => {
  assert.equal(timeoutOf('99999999m'), 99_999_999);
  for (const text of ['99999999H', '99999999M', '99999999S', '299H']) {
    assert.equal(timeoutOf(text), GRPC_TIMEOUT_MAX_MS, text);
  }
  assert.equal(timeoutOf('298H'), 298 * 3_600_000);
});

test('malformed timeouts are told', () => {
  for (const text of ['', 'm', '5', '5s', '5 m', '-1m', '+1m', '1.5S', '123456789m', '0x1m', ' 1m', '1mm', '1h']) {
    assert.ok(timeoutOf(text) < 0, JSON.stringify(text));
  }
});

test('a head says its timeout once', () => {
  const { memory } = reactor;
  assert.equal(clientTimeoutMs(memory, parsedHead('Grpc-Timeout:  7S \r\n')), 7000);
  assert.equal(clientTimeoutMs(memory, parsedHead('')), GRPC_TIMEOUT_MAX_MS);
  assert.ok(clientTimeoutMs(memory, parsedHead('grpc-timeout: 1S\r\ngrpc-timeout: 2S\r\n')) < 0);
  assert.ok(clientTimeoutMs(memory, parsedHead('grpc-timeout: 1S, 2S\r\n')) < 0);
  assert.ok(clientTimeoutMs(memory, parsedHead('grpc-timeout:\r\n')) < 0);
});

test('a dropped timeout is absent from the head, and nothing else is', () => {
  const head = parsedHead('a: 1\r\ngrpc-timeout: 1H\r\nb: 2\r\n');
  dropClientTimeout(reactor.memory, head);
  assert.equal(clientTimeoutMs(reactor.memory, head), GRPC_TIMEOUT_MAX_MS);
  dropClientTimeout(reactor.memory, parsedHead('a: 1\r\n'));
  assert.equal(editedRequest('a: 1\r\ngrpc-timeout: 1H\r\nb: 2\r\n', dropClientTimeout), 'a: 1\r\nb: 2\r\n');
});

test('a written timeout reads as the same time, or a little less', () => {
  const { memory, arena } = reactor;
  const at = arena.scratchOffset + 8;
  for (const timeoutMs of [1, 9, 10, 999, 1000, 12_345, 99_999_999, 100_000_001, GRPC_TIMEOUT_MAX_MS]) {
    memory.fill(GUARD, at - 8, at + 64);
    const end = putGrpcTimeout(reactor, at, timeoutMs);
    assertUntouched(memory, at - 8, at, 'before');
    assertUntouched(memory, at + GRPC_TIMEOUT_LINE_BYTES_MAX, at + 64, 'after');
    const line = textOf(memory, at, end - at);
    const value = /^grpc-timeout: (\d{1,8}[mS])\r\n$/.exec(line)?.[1];
    assert.ok(value !== undefined, line);
    const readMs = timeoutOf(value);
    assert.ok(readMs <= timeoutMs && readMs > timeoutMs - 1000, line);
    if (timeoutMs <= 99_999_999) assert.equal(readMs, timeoutMs);
  }
});

// -- statuses ---------------------------------------------------------------------

test('reasons map to the gRPC status that says whether a retry makes sense', () => {
  const wanted: [reason: number, status: number, grpc: number][] = [
    [Reason.NO_ROUTE, 404, GrpcStatus.UNIMPLEMENTED],
    [Reason.NO_HEALTHY_UPSTREAM, 503, GrpcStatus.UNAVAILABLE],
    [Reason.UPSTREAM_CONNECT_FAILURE, 503, GrpcStatus.UNAVAILABLE],
    [Reason.UPSTREAM_CONNECT_FAILURE, 504, GrpcStatus.UNAVAILABLE],
    [Reason.UPSTREAM_CONNECTION_TERMINATION, 502, GrpcStatus.UNAVAILABLE],
    [Reason.UPSTREAM_TIMEOUT, 504, GrpcStatus.DEADLINE_EXCEEDED],
    [Reason.UPSTREAM_PROTOCOL_ERROR, 502, GrpcStatus.INTERNAL],
    [Reason.RATE_LIMITED, 429, GrpcStatus.UNAVAILABLE],
    [Reason.DOWNSTREAM_PROTOCOL_ERROR, 400, GrpcStatus.INTERNAL],
    [Reason.REQUEST_TOO_LARGE, 413, GrpcStatus.RESOURCE_EXHAUSTED],
    [Reason.OVERLOAD, 503, GrpcStatus.UNAVAILABLE],
  ];
  for (const [reason, status, grpc] of wanted) {
    assert.equal(grpcStatusOf(status, reason), grpc, reasonText(reason).flag);
  }
});

test('without a telling reason the HTTP status decides', () => {
  const wanted = new Map([
    [400, GrpcStatus.INTERNAL],
    [401, GrpcStatus.UNAUTHENTICATED],
    [403, GrpcStatus.PERMISSION_DENIED],
    [404, GrpcStatus.UNIMPLEMENTED],
    [429, GrpcStatus.UNAVAILABLE],
    [502, GrpcStatus.UNAVAILABLE],
    [503, GrpcStatus.UNAVAILABLE],
    [504, GrpcStatus.UNAVAILABLE],
    [200, GrpcStatus.UNKNOWN],
    [418, GrpcStatus.UNKNOWN],
    [500, GrpcStatus.UNKNOWN],
  ]);
  for (const [status, grpc] of wanted) {
    assert.equal(grpcStatusOf(status, Reason.NONE), grpc, String(status));
    // A reason that this table does not know yet.
    assert.equal(grpcStatusOf(status, REASON_COUNT), grpc, String(status));
  }
});

// -- generated responses --------------------------------------------------------------

interface Wanted {
  kind: number;
  status: number;
  reason: number;
  detail: number;
  id: string;
  connection: number;
}

const usual: Wanted = {
  kind: GrpcKind.GRPC,
  status: 503,
  reason: Reason.NO_HEALTHY_UPSTREAM,
  detail: Detail.NO_ENDPOINTS,
  id: 'a1b2',
  connection: GeneratedConnection.DEFAULT,
};

interface Answer {
  status: number;
  fields: Map<string, string>;
  complete: boolean;
}

function generated(wanted: Partial<Wanted>, runtime: Runtime = runtimeOf()): Answer {
  const { kind, status, reason, detail, id, connection } = { ...usual, ...wanted };
  const { memory, arena } = reactor;
  const idOffset = arena.receiveOffset;
  memory.set(Buffer.from(id, 'latin1'), idOffset);
  const at = arena.scratchOffset + 16;
  memory.fill(GUARD, at - 16, at + GENERATED_BYTES_MAX + 64);
  const end = writeGeneratedGrpc(
    reactor,
    at,
    kind,
    status,
    reason,
    detail,
    idOffset,
    id.length,
    connection,
    runtime,
    date,
  );
  assert.ok(end - at <= GENERATED_BYTES_MAX, `${end - at} bytes`);
  assertUntouched(memory, at - 16, at, 'before the response');
  assertUntouched(memory, end + SPILL_BYTES, at + GENERATED_BYTES_MAX + 64, 'after the response');

  const answer: Answer = { status: 0, fields: new Map(), complete: false };
  const parser = new HTTPParser(HTTPParser.RESPONSE);
  parser[HTTPParser.kOnHeadersComplete] = (info) => {
    answer.status = info.statusCode;
    for (let i = 0; i < info.headers.length; i += 2) {
      const name = info.headers[i].toLowerCase();
      assert.ok(!answer.fields.has(name), `${name} twice`);
      answer.fields.set(name, info.headers[i + 1]);
    }
  };
  parser[HTTPParser.kOnBody] = () => assert.fail('a body');
  parser[HTTPParser.kOnMessageComplete] = () => {
    answer.complete = true;
  };
  const bytes = Buffer.from(memory.subarray(at, end));
  assert.equal(parser.execute(bytes), bytes.length);
  return answer;
}

test('every reason and detail gives a complete head with status 200 and a message', () => {
  const details = [...Object.values(Detail), ...Object.values(ParseError).map((error) => DETAIL_PARSE + error)];
  const runtime = runtimeOf({ server: 's'.repeat(256), reasonHeader: 'r'.repeat(64) });
  for (let reason = 0; reason < REASON_COUNT; reason++) {
    for (const detail of details) {
      // The longest id, of bytes that all have to be escaped.
      const answer = generated({ reason, detail, id: '\xff'.repeat(128) }, runtime);
      assert.deepEqual([answer.status, answer.complete], [200, true]);
      assert.match(answer.fields.get('grpc-status')!, /^\d{1,2}$/);
      const message = decodeURIComponent(answer.fields.get('grpc-message')!.replaceAll('%FF', '.'));
      const { flag, sentence } = reasonText(reason);
      assert.ok(message.startsWith(`${flag}: ${sentence}`), message);
    }
  }
});

test('the message names the parse error, and the id that `explain` takes', () => {
  const { fields } = generated({
    status: 400,
    reason: Reason.DOWNSTREAM_PROTOCOL_ERROR,
    detail: DETAIL_PARSE + ParseError.HOST_DUPLICATE,
    id: 'id-7',
  });
  assert.equal(fields.get('grpc-status'), '13');
  assert.equal(
    fields.get('grpc-message'),
    `DPE: ${reasonText(Reason.DOWNSTREAM_PROTOCOL_ERROR).sentence} ` +
      `${parseErrorSentence(ParseError.HOST_DUPLICATE)} Request id: id-7`,
  );
  assert.equal(fields.get('x-request-id'), 'id-7');
});

test('what could break the message is percent-encoded in it', () => {
  const { fields } = generated({ id: 'a%b\xe9c' });
  assert.match(fields.get('grpc-message')!, / Request id: a%25b%E9c$/);
  // The parser of this test reads fields as ASCII.
  assert.match(fields.get('x-request-id')!, /^a%b.c$/);
});

test('without an id there is none in fields or message', () => {
  const { fields } = generated({ id: '' });
  assert.equal(fields.has('x-request-id'), false);
  assert.equal(fields.get('grpc-message'), `UH: ${reasonText(Reason.NO_HEALTHY_UPSTREAM).sentence}`);
});

test('trailers that end an RPC say the same, as lines and as positions', () => {
  const { memory, arena } = reactor;
  const idOffset = arena.receiveOffset;
  memory.set(Buffer.from('id%7'), idOffset);
  const at = arena.scratchOffset + 16;
  memory.fill(GUARD, at - 16, at + GENERATED_BYTES_MAX + 64);
  const trailers = new HeaderTable();
  putGrpcEnd(reactor, at, trailers, 504, Reason.UPSTREAM_TIMEOUT, Detail.REQUEST_TIMER, idOffset, 4);
  const status = 'grpc-status: 4';
  const message = `grpc-message: UT: ${reasonText(Reason.UPSTREAM_TIMEOUT).sentence} Request id: id%257`;
  assert.deepEqual(fieldsOf(memory, trailers), [status, message]);
  const text = `${status}\r\n${message}\r\n`;
  assert.equal(textOf(memory, at, text.length), text);
  assertUntouched(memory, at - 16, at, 'before the trailers');
  assertUntouched(memory, at + text.length + SPILL_BYTES, at + GENERATED_BYTES_MAX + 64, 'after the trailers');
});

test('what the client did wrong in gRPC is named', () => {
  for (const detail of [Detail.GRPC_TIMEOUT_INVALID, Detail.GRPC_WEB_BODY_INVALID]) {
    const { fields } = generated({ status: 400, reason: Reason.DOWNSTREAM_PROTOCOL_ERROR, detail, id: '' });
    const sentence = reasonText(Reason.DOWNSTREAM_PROTOCOL_ERROR).sentence;
    assert.equal(fields.get('grpc-message'), `DPE: ${sentence} ${detailSentence(detail)}`);
  }
});

test('the content type is one that the client asked for', () => {
  const typeOf = (kind: number): string | undefined => generated({ kind }).fields.get('content-type');
  assert.equal(typeOf(GrpcKind.GRPC), 'application/grpc');
  assert.equal(typeOf(GrpcKind.WEB), 'application/grpc-web+proto');
  assert.equal(typeOf(GrpcKind.WEB_TEXT), 'application/grpc-web-text+proto');
});

test('connection, server and reason header are those of other generated responses', () => {
  const field = (connection: number): string | undefined => generated({ connection }).fields.get('connection');
  assert.equal(field(GeneratedConnection.DEFAULT), undefined);
  assert.equal(field(GeneratedConnection.CLOSE), 'close');
  assert.equal(field(GeneratedConnection.KEEP_ALIVE), 'keep-alive');
  assert.equal(generated({}).fields.get('server'), 'portcullis');
  const { fields } = generated({}, runtimeOf({ server: 'ours', reasonHeader: 'x-reason' }));
  assert.equal(fields.get('server'), 'ours');
  assert.equal(fields.get('x-reason'), 'UH');
  assert.equal(fields.get('date'), new Date(Math.floor(reactor.wallMs / 1000) * 1000).toUTCString());
});
