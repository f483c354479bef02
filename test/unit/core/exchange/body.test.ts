// Bodies: payload taken out of one framing, put into another, whatever the pieces it comes in.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  BodyPiece,
  CHUNK_HEADER_BYTES_MAX,
  frameChunk,
  framedOffset,
  putBodyEnd,
  readRequestBody,
  readResponseBody,
  startRequestChunks,
  startResponseChunks,
  TRAILER_BYTES_MAX,
} from '../../../../core/exchange/body.ts';
import { BodyFraming, Exchange } from '../../../../core/exchange/exchange.ts';
import { ParseError } from '../../../../core/http1/errors.ts';
import { pattern } from '../io/fake-kernel.ts';
import { seededRandom } from '../io/seed.ts';
import { GUARD, textOf } from './support.ts';

type Read = typeof readRequestBody;

const memory = new Uint8Array(256 * 1024);
const AT = 1024;

/** An exchange whose request (or response) body has the given framing. */
function exchangeWith(read: Read, framing: number, lengthBytes = 0): Exchange {
  const exchange = new Exchange();
  if (read === readRequestBody) {
    exchange.requestFraming = framing;
    exchange.requestRemaining = lengthBytes;
    if (framing === BodyFraming.CHUNKED) startRequestChunks(exchange);
  } else {
    exchange.responseFraming = framing;
    exchange.responseRemaining = lengthBytes;
    if (framing === BodyFraming.CHUNKED) startResponseChunks(exchange);
  }
  return exchange;
}

interface Body {
  payload: Buffer;
  end: boolean;
  error: number;
  /** Bytes of the stream that belong to the body. */
  consumed: number;
  /** What `putBodyEnd` makes of the trailers. */
  bodyEnd: string;
}

/** Reads a stream in pieces as a connection does: what is not consumed comes again with the next piece. */
function readAll(read: Read, exchange: Exchange, stream: Buffer, sizes: (at: number) => number): Body {
  const piece = new BodyPiece();
  const body: Body = { payload: Buffer.alloc(0), end: false, error: 0, consumed: 0, bodyEnd: '' };
  let arrived = 0;
  while (!body.end && arrived < stream.length) {
    arrived = Math.min(stream.length, arrived + sizes(arrived));
    memory.fill(GUARD);
    const input = stream.subarray(body.consumed, arrived);
    memory.set(input, AT);
    read(memory, AT, input.length, exchange, piece);
    body.error = Math.abs(piece.error);
    if (body.error !== 0) return body;
    assert.ok(piece.consumed <= input.length);
    body.payload = Buffer.concat([
      body.payload,
      memory.subarray(piece.payloadOffset, piece.payloadOffset + piece.payloadLength),
    ]);
    body.consumed += piece.consumed;
    body.end = piece.end;
    if (piece.end) {
      const end = putBodyEnd(memory, 128 * 1024, piece.trailers);
      body.bodyEnd = textOf(memory, 128 * 1024, end - 128 * 1024);
    }
  }
  return body;
}

test('a body of known length ends at its last byte, and what follows stays', () => {
  for (const read of [readRequestBody, readResponseBody]) {
    for (const size of [1, 3, 5, 100]) {
      const exchange = exchangeWith(read, BodyFraming.LENGTH, 10);
      const body = readAll(read, exchange, Buffer.from('0123456789NEXT'), () => size);
      assert.deepEqual([body.payload.toString(), body.end, body.consumed], ['0123456789', true, 10]);
    }
  }
});

test('a body that lacks bytes has not ended', () => {
  const body = readAll(
    readResponseBody,
    exchangeWith(readResponseBody, BodyFraming.LENGTH, 5),
    Buffer.from('1234'),
    () => 4,
  );
  assert.deepEqual([body.payload.toString(), body.end], ['1234', false]);
});

test('a response without a body ends at once; one that the close ends never does by itself', () => {
  const none = readAll(
    readResponseBody,
    exchangeWith(readResponseBody, BodyFraming.NONE),
    Buffer.from('NEXT'),
    () => 4,
  );
  assert.deepEqual([none.payload.length, none.consumed, none.end], [0, 0, true]);
  const close = readAll(
    readResponseBody,
    exchangeWith(readResponseBody, BodyFraming.CLOSE),
    Buffer.from('abc'),
    () => 1,
  );
  assert.deepEqual([close.payload.toString(), close.end], ['abc', false]);
});

test('a chunked body gives the same payload, end and trailers however it is split', () => {
  const stream = Buffer.from('3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nX-Sum: 7\r\nX-Empty:\r\n\r\nNEXT');
  for (const read of [readRequestBody, readResponseBody]) {
    for (let size = 1; size <= stream.length; size++) {
      const body = readAll(read, exchangeWith(read, BodyFraming.CHUNKED), stream, () => size);
      assert.deepEqual([body.payload.toString(), body.end, body.consumed], ['abc0123456789', true, stream.length - 4]);
      assert.equal(body.bodyEnd, '0\r\nX-Sum: 7\r\nX-Empty: \r\n\r\n', `pieces of ${size}`);
    }
  }
});

test('trailers that have no place there are not passed on (RFC 9110 §6.5.1)', () => {
  const refused = ['Authorization', 'Set-Cookie', 'Keep-Alive', 'TE', 'Content-Type', 'X-Forwarded-For', 'Forwarded'];
  const stream = Buffer.from(`0\r\nA: 1\r\n${refused.map((name) => `${name}: x\r\n`).join('')}B: 2\r\n\r\n`);
  const body = readAll(readResponseBody, exchangeWith(readResponseBody, BodyFraming.CHUNKED), stream, () => 1000);
  assert.equal(body.bodyEnd, '0\r\nA: 1\r\nB: 2\r\n\r\n');
});

test('a body without trailers ends in the plain last chunk', () => {
  const body = readAll(
    readRequestBody,
    exchangeWith(readRequestBody, BodyFraming.CHUNKED),
    Buffer.from('0\r\n\r\n'),
    () => 1,
  );
  assert.equal(body.bodyEnd, '0\r\n\r\n');
});

test('a malformed chunk and an oversized trailer section are errors of the body', () => {
  const errorOf = (text: string): number =>
    readAll(readRequestBody, exchangeWith(readRequestBody, BodyFraming.CHUNKED), Buffer.from(text), () => 1e6).error;
  assert.equal(errorOf('x\r\n'), ParseError.CHUNK_SIZE_INVALID);
  assert.equal(errorOf(`0\r\na: ${'x'.repeat(TRAILER_BYTES_MAX)}\r\n\r\n`), ParseError.TRAILERS_TOO_LARGE);
  assert.equal(errorOf('0\r\nContent-Length: 3\r\n\r\n'), ParseError.TRAILER_FORBIDDEN);
});

test('a decoder that was left in the middle starts afresh for the next body', () => {
  const exchange = exchangeWith(readRequestBody, BodyFraming.CHUNKED);
  readAll(readRequestBody, exchange, Buffer.from('ff\r\nabc'), () => 100);
  startRequestChunks(exchange);
  const body = readAll(readRequestBody, exchange, Buffer.from('1\r\nz\r\n0\r\n\r\n'), () => 100);
  assert.deepEqual([body.payload.toString(), body.end], ['z', true]);
});

test('a framed payload lies where it was, with its size in front and nothing else written', () => {
  for (const length of [1, 9, 10, 15, 16, 255, 256, 4095, 4096, 63_000, 65_536, 100_000]) {
    for (const last of [false, true]) {
      memory.fill(GUARD);
      const payload = pattern(length);
      memory.set(payload, AT);
      const end = frameChunk(memory, AT, length, last);
      const start = framedOffset();
      const after = last ? '\r\n0\r\n\r\n' : '\r\n';
      assert.equal(textOf(memory, start, AT - start), `${length.toString(16).toUpperCase()}\r\n`);
      assert.equal(Buffer.compare(memory.subarray(AT, AT + length), payload), 0);
      assert.equal(textOf(memory, AT + length, end - AT - length), after);
      assert.ok(AT - start <= CHUNK_HEADER_BYTES_MAX);
      assert.equal(memory[start - 1] === GUARD && memory[end] === GUARD, true);
    }
  }
});

test('random bodies survive any framing and splitting on both sides', (t) => {
  const { random, label } = seededRandom(t);
  for (let round = 0; round < 300; round++) {
    const payload = Buffer.from(pattern(random.size(0, 20_000), round));
    const chunks: Buffer[] = [];
    for (let at = 0; at < payload.length; ) {
      const size = Math.min(random.size(1, 5000), payload.length - at);
      memory.set(payload.subarray(at, at + size), AT);
      const last = at + size === payload.length && random.chance(0.5);
      const end = frameChunk(memory, AT, size, last);
      chunks.push(Buffer.from(memory.subarray(framedOffset(), end)));
      at += size;
      if (at === payload.length && !last) chunks.push(Buffer.from('0\r\n\r\n'));
    }
    if (payload.length === 0) chunks.push(Buffer.from('0\r\n\r\n'));
    const stream = Buffer.concat([...chunks, Buffer.from('0\r\n')]);
    const body = readAll(readResponseBody, exchangeWith(readResponseBody, BodyFraming.CHUNKED), stream, () =>
      random.size(1, 3000),
    );
    assert.equal(Buffer.compare(body.payload, payload), 0, `${label} round ${round}`);
    assert.deepEqual([body.end, body.consumed], [true, stream.length - 3], `${label} round ${round}`);
  }
});
