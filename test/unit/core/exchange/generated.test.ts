// Responses that the proxy makes itself, read by a parser that is not ours.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HTTPParser } from 'http-parser-js';
import { GENERATED_BYTES_MAX, GeneratedConnection, writeGenerated } from '../../../../core/exchange/generated.ts';
import { DETAIL_PARSE, Detail, REASON_COUNT, Reason, reasonText } from '../../../../core/exchange/reasons.ts';
import { DateLine } from '../../../../core/exchange/response-head.ts';
import type { Runtime } from '../../../../core/exchange/runtime.ts';
import { ParseError, parseErrorSentence } from '../../../../core/http1/errors.ts';
import { SPILL_BYTES } from '../../../../core/io/bytes.ts';
import { assertUntouched, GUARD, memoryReactor, runtimeOf, textOf } from './support.ts';

const reactor = memoryReactor();
const date = new DateLine();
const statuses = [200, 400, 404, 405, 408, 413, 414, 417, 429, 431, 500, 501, 502, 503, 504, 505];
const details = [...Object.values(Detail), ...Object.values(ParseError).map((error) => DETAIL_PARSE + error)];

interface Wanted {
  status: number;
  reason: number;
  detail: number;
  id: string;
  connection: number;
  withBody: boolean;
}

const usual: Wanted = {
  status: 503,
  reason: Reason.NO_HEALTHY_UPSTREAM,
  detail: Detail.NO_ENDPOINTS,
  id: 'a1b2',
  connection: GeneratedConnection.DEFAULT,
  withBody: true,
};

function generated(wanted: Partial<Wanted>, runtime: Runtime = runtimeOf()): string {
  const { status, reason, detail, id, connection, withBody } = { ...usual, ...wanted };
  const { memory, arena } = reactor;
  const idOffset = arena.receiveOffset;
  memory.set(Buffer.from(id), idOffset);
  const at = arena.scratchOffset + 16;
  memory.fill(GUARD, at - 16, at + GENERATED_BYTES_MAX + 64);
  const end = writeGenerated(
    reactor,
    at,
    status,
    reason,
    detail,
    idOffset,
    id.length,
    connection,
    withBody,
    runtime,
    date,
  );
  assert.ok(end - at <= GENERATED_BYTES_MAX, `${end - at} bytes`);
  assertUntouched(memory, at - 16, at, 'before the response');
  assertUntouched(memory, end + SPILL_BYTES, at + GENERATED_BYTES_MAX + 64, 'after the response');
  return textOf(memory, at, end - at);
}

interface Parsed {
  status: number;
  message: string;
  fields: Map<string, string>;
  body: string;
  complete: boolean;
}

function parse(text: string): Parsed {
  const parsed: Parsed = { status: 0, message: '', fields: new Map(), body: '', complete: false };
  const parser = new HTTPParser(HTTPParser.RESPONSE);
  parser[HTTPParser.kOnHeadersComplete] = (info) => {
    parsed.status = info.statusCode;
    parsed.message = info.statusMessage;
    for (let i = 0; i < info.headers.length; i += 2) {
      const name = info.headers[i].toLowerCase();
      assert.ok(!parsed.fields.has(name), `${name} twice`);
      parsed.fields.set(name, info.headers[i + 1]);
    }
  };
  parser[HTTPParser.kOnBody] = (chunk, offset, length) => {
    parsed.body += chunk.toString('latin1', offset, offset + length);
  };
  parser[HTTPParser.kOnMessageComplete] = () => {
    parsed.complete = true;
  };
  const bytes = Buffer.from(text, 'latin1');
  assert.equal(parser.execute(bytes), bytes.length);
  return parsed;
}

test('every status, reason and detail gives a complete response with the right length', () => {
  for (const status of statuses) {
    for (let reason = 0; reason < REASON_COUNT; reason++) {
      // Details change the body only from DETAIL_PARSE on, but all may come.
      for (const detail of reason === Reason.DOWNSTREAM_PROTOCOL_ERROR ? details : [0, details[reason]]) {
        const text = generated({ status, reason, detail });
        const about = `${status} ${reason} ${detail}`;
        const { fields, body, ...parsed } = parse(text);
        assert.deepEqual([parsed.status, parsed.complete], [status, true], about);
        assert.equal(Number(fields.get('content-length')), body.length, about);
        assert.ok(
          body.startsWith(`${status} ${parsed.message}: ${reasonText(reason).flag}: ${reasonText(reason).sentence}`),
        );
        assert.match(body, /[a-z0-9]\n$/);
        assert.equal(fields.get('content-type'), 'text/plain; charset=utf-8');
      }
    }
  }
});

test('the body names the parse error, and the id that `explain` takes', () => {
  const detail = DETAIL_PARSE + ParseError.HOST_DUPLICATE;
  const { body, fields } = parse(
    generated({ status: 400, reason: Reason.DOWNSTREAM_PROTOCOL_ERROR, detail, id: 'id-7' }),
  );
  assert.equal(
    body,
    `400 Bad Request: DPE: ${reasonText(Reason.DOWNSTREAM_PROTOCOL_ERROR).sentence} ` +
      `${parseErrorSentence(ParseError.HOST_DUPLICATE)}\nrequest id: id-7\n`,
  );
  assert.equal(fields.get('x-request-id'), 'id-7');
});

test('without an id there is none in fields or body', () => {
  const { body, fields } = parse(generated({ id: '' }));
  assert.equal(fields.has('x-request-id'), false);
  assert.doesNotMatch(body, /request id/);
});

test('a response to HEAD has the same fields and no body (RFC 9110 §9.3.2)', () => {
  const full = generated({});
  const head = generated({ withBody: false });
  assert.ok(head.endsWith('\r\n\r\n'));
  assert.ok(full.startsWith(head) && full.length > head.length);
});

test('says what becomes of the connection', () => {
  const field = (connection: number): string | undefined => parse(generated({ connection })).fields.get('connection');
  assert.equal(field(GeneratedConnection.DEFAULT), undefined);
  assert.equal(field(GeneratedConnection.CLOSE), 'close');
  assert.equal(field(GeneratedConnection.KEEP_ALIVE), 'keep-alive');
});

test('server and reason header follow the settings', () => {
  const plain = parse(generated({})).fields;
  assert.equal(plain.get('server'), 'portcullis');
  const { fields } = parse(generated({}, runtimeOf({ server: 'ours', reasonHeader: 'x-reason' })));
  assert.equal(fields.get('server'), 'ours');
  assert.equal(fields.get('x-reason'), 'UH');
  assert.equal(fields.get('date'), new Date(Math.floor(reactor.wallMs / 1000) * 1000).toUTCString());
});

test('the longest id, server name and texts stay within the room', () => {
  const runtime = runtimeOf({ server: 's'.repeat(256), reasonHeader: 'r'.repeat(64) });
  for (let reason = 0; reason < REASON_COUNT; reason++) {
    for (const detail of details) generated({ status: 431, reason, detail, id: 'i'.repeat(128) }, runtime);
  }
});

test('a status that only a filter answers with is said as it is, with or without a phrase', () => {
  const known = parse(generated({ status: 422 }));
  assert.equal(known.status, 422);
  assert.match(known.body, /^422 Unprocessable Content: UH: /);
  const unknown = parse(generated({ status: 599 }));
  assert.equal(unknown.status, 599);
  assert.match(unknown.body, /^599: UH: /);
});
