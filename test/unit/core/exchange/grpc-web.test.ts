// Translation of gRPC-Web: heads, base64 both ways, messages and trailer frames, split at every byte.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BodyPiece } from '../../../../core/exchange/body.ts';
import { GrpcKind } from '../../../../core/exchange/grpc.ts';
import {
  atMessageEnd,
  base64BytesMax,
  base64Complete,
  decodeBase64,
  decodeRequestPiece,
  encodeBase64,
  endBase64,
  followMessages,
  GrpcWebError,
  GrpcWebState,
  grpcWebResponseKind,
  nextResponsePiece,
  putTrailerFrame,
  RETYPE_RESPONSE_BYTES_MAX,
  retypeRequest,
  retypeResponse,
  startResponsePiece,
  TRAILER_FRAME_BYTES_MAX,
  trailerFrameBytes,
  WEB_SCRATCH_BYTES,
} from '../../../../core/exchange/grpc-web.ts';
import { DateLine, OutFraming, rewriteResponseHead } from '../../../../core/exchange/response-head.ts';
import { FieldBits, parseFields } from '../../../../core/http1/fields.ts';
import { HeaderTable } from '../../../../core/http1/header-table.ts';
import { ResponseHead } from '../../../../core/http1/message.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import { seededRandom } from '../io/seed.ts';
import { editedRequest, parsedHead, reactor } from './grpc-fixture.ts';
import { assertUntouched, fieldsOf, GUARD, runtimeOf, textOf, wideLimits } from './support.ts';

const { WEB, WEB_TEXT } = GrpcKind;
const GUARD_BYTES = 16;

function state(): GrpcWebState {
  const fresh = new GrpcWebState();
  fresh.start(WEB_TEXT, WEB_TEXT);
  return fresh;
}

// -- heads --------------------------------------------------------------------------

test('a gRPC-Web request goes upstream as gRPC', () => {
  const edited = (type: string, kind: number): string =>
    editedRequest(`content-type: ${type}\r\ncontent-length: 12\r\nx: y\r\n`, (memory, head) =>
      retypeRequest(memory, head, kind),
    ).replaceAll(/ +/g, ' ');
  const rest = '\r\ncontent-length: 12\r\nx: y\r\n';
  assert.equal(edited('application/grpc-web', WEB), `content-type: application/grpc${rest}`);
  assert.equal(edited('application/grpc-web+proto', WEB), `content-type: application/grpc+proto${rest}`);
  assert.equal(edited('application/grpc-web+json;a="b c"', WEB), `content-type: application/grpc+json;a="b c"${rest}`);
  // Decoded bodies are shorter than announced.
  assert.equal(edited('application/grpc-web-text', WEB_TEXT), 'content-type: application/grpc\r\nx: y\r\n');
  assert.equal(edited('Application/GRPC-Web-Text+proto', WEB_TEXT), 'content-type: Application/GRPC+proto\r\nx: y\r\n');
});

test('the table of a retyped request says where the new content type lies', () => {
  const { memory } = reactor;
  const head = parsedHead('content-type: application/grpc-web-text+proto\r\nx: y\r\n');
  retypeRequest(memory, head, WEB_TEXT);
  assert.deepEqual(fieldsOf(memory, head.headers), ['host: h', 'content-type: application/grpc+proto', 'x: y']);
});

test('Accept chooses the form of the response, and the request does if it names none', () => {
  const chosen = (fields: string, kind: number): number =>
    grpcWebResponseKind(reactor.memory, parsedHead(fields), kind);
  assert.equal(chosen('', WEB), WEB);
  assert.equal(chosen('', WEB_TEXT), WEB_TEXT);
  assert.equal(chosen('accept: application/grpc-web-text\r\n', WEB), WEB_TEXT);
  assert.equal(chosen('accept: application/grpc-web+proto\r\n', WEB_TEXT), WEB);
  assert.equal(chosen('accept: */*\r\n', WEB_TEXT), WEB_TEXT);
  assert.equal(chosen('accept: application/grpc\r\n', WEB), WEB);
});

interface RetypedResponse {
  result: number;
  output: string;
  fields: string[];
}

/** Retypes a response head and lets it be rewritten as for an HTTP/1 client that gets chunks. */
function retyped(fields: string, kind: number): RetypedResponse {
  const { memory, arena } = reactor;
  const offset = arena.receiveOffset;
  const text = `HTTP/1.1 200 OK\r\n${fields}\r\n`;
  memory.fill(GUARD, offset - 64, offset);
  memory.set(Buffer.from(`${text}BODY`), offset);
  const head = new ResponseHead();
  assert.equal(parseResponseHead(memory, offset, text.length, wideLimits, head), text.length);
  const result = retypeResponse(memory, offset, head, kind);
  assertUntouched(memory, offset - 64, offset - RETYPE_RESPONSE_BYTES_MAX, 'before the head');
  const table = fieldsOf(memory, head.headers);
  const headOffset = result < 0 ? offset : result;
  const start = rewriteResponseHead(
    reactor,
    headOffset,
    head,
    head.endOffset,
    OutFraming.CHUNKED,
    0,
    runtimeOf(),
    new DateLine(),
  );
  assert.equal(textOf(memory, head.endOffset, 4), 'BODY');
  return { result, output: textOf(memory, start, head.endOffset - start), fields: table };
}

test('a gRPC response goes to the client as gRPC-Web, in chunks', () => {
  for (const [kind, suffix] of [
    [WEB, '-web'],
    [WEB_TEXT, '-web-text'],
  ] as const) {
    for (const parameters of ['', '+proto', ';x=y']) {
      const { output, fields } = retyped(
        `date: d\r\na: 1\r\ncontent-type: application/grpc${parameters}\r\ncontent-length: 5\r\nb: 2\r\n`,
        kind,
      );
      assert.equal(
        output,
        'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndate: d\r\na: 1\r\n' +
          `content-type: application/grpc${suffix}${parameters}\r\nb: 2\r\n\r\n`,
      );
      assert.deepEqual(fields, [
        'date: d',
        'a: 1',
        `content-type: application/grpc${suffix}${parameters}`,
        'content-length: 5',
        'b: 2',
      ]);
    }
  }
});

test('responses of other types are left as they are', () => {
  for (const fields of ['', 'content-type: text/html\r\n', 'content-type: application/grpc-web+proto\r\n']) {
    const { result, output } = retyped(`date: d\r\n${fields}`, WEB);
    assert.equal(result, -1);
    assert.equal(output, `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndate: d\r\n${fields}\r\n`);
  }
});

// -- base64 of requests -----------------------------------------------------------------

/** Decodes pieces, each with guards around it; null if refused or incomplete. */
function decoded(pieces: Buffer[]): Buffer | null {
  const decoder = state();
  const output: Buffer[] = [];
  for (const piece of pieces) {
    const memory = Buffer.alloc(piece.length + 2 * GUARD_BYTES, GUARD);
    piece.copy(memory, GUARD_BYTES);
    const length = decodeBase64(memory, GUARD_BYTES, piece.length, decoder);
    assertUntouched(memory, 0, GUARD_BYTES, 'before the piece');
    assertUntouched(memory, GUARD_BYTES + piece.length, memory.length, 'after the piece');
    if (length < 0) return null;
    assert.ok(length <= piece.length);
    output.push(memory.subarray(GUARD_BYTES, GUARD_BYTES + length));
  }
  return base64Complete(decoder) ? Buffer.concat(output) : null;
}

test('base64 split at any two bytes decodes to the same', () => {
  for (let length = 0; length <= 9; length++) {
    const content = Buffer.from(Array.from({ length }, (_, index) => 0xf1 - 37 * index));
    const text = Buffer.from(content.toString('base64'));
    for (let first = 0; first <= text.length; first++) {
      for (let second = first; second <= text.length; second++) {
        const pieces = [text.subarray(0, first), text.subarray(first, second), text.subarray(second)];
        assert.deepEqual(decoded(pieces), content, `${length} bytes, split at ${first} and ${second}`);
      }
    }
  }
});

test('segments that were padded one by one decode as one body', (t) => {
  const { random, label } = seededRandom(t);
  for (let round = 0; round < 300; round++) {
    const segments = Array.from({ length: random.int(0, 6) }, () => bytes(random.int(0, 40), () => random.next()));
    const text = Buffer.from(segments.map((segment) => segment.toString('base64')).join(''));
    const pieces: Buffer[] = [];
    for (let at = 0; at < text.length; ) {
      const end = Math.min(text.length, at + random.int(0, 17));
      pieces.push(text.subarray(at, end));
      at = end;
    }
    assert.deepEqual(decoded(pieces), Buffer.concat(segments), `${label} round ${round}`);
  }
});

test('what is not base64 is refused, wherever it is split', () => {
  for (const text of [
    'A',
    'AA',
    'AAA',
    'AAAAA',
    '=AAA',
    'A=AA',
    'A===',
    'AA=A',
    'AA=',
    'AAA==',
    'AA===',
    'AAAA=',
    'AB==', // Bits behind the padding.
    'AAB=',
    'AA A',
    'AAA\n',
    'AA-_', // The alphabet for URLs.
    'AAA\x00',
    'AAA\xff',
  ]) {
    const whole = Buffer.from(text, 'latin1');
    for (let split = 0; split <= whole.length; split++) {
      assert.equal(decoded([whole.subarray(0, split), whole.subarray(split)]), null, `${text} at ${split}`);
    }
  }
  assert.equal(decodeBase64(Buffer.from('AA!A'), 0, 4, state()), GrpcWebError.BASE64_INVALID);
});

// -- base64 of responses ------------------------------------------------------------------

/** Encodes pieces, ending base64 after those whose index `ends` has. */
function encoded(pieces: Buffer[], ends: (index: number) => boolean): string {
  const encoder = state();
  let text = '';
  for (const [index, piece] of pieces.entries()) {
    const room = base64BytesMax(piece.length);
    const memory = Buffer.alloc(piece.length + room + 2 * GUARD_BYTES, GUARD);
    piece.copy(memory);
    const at = piece.length + GUARD_BYTES;
    let end = encodeBase64(memory, 0, piece.length, at, encoder);
    if (ends(index)) end = endBase64(memory, end, encoder);
    assert.deepEqual(memory.subarray(0, piece.length), piece);
    assertUntouched(memory, piece.length, at, 'before the output');
    assertUntouched(memory, at + room, memory.length, 'after the room for the output');
    text += memory.toString('latin1', at, end);
  }
  return text;
}

function bytes(length: number, next: () => number): Buffer {
  return Buffer.from(Array.from({ length }, () => next() & 255));
}

test('a body split at any two bytes encodes to the same base64', () => {
  for (let length = 0; length <= 8; length++) {
    const content = Buffer.from(Array.from({ length }, (_, index) => 0xf1 - 37 * index));
    for (let first = 0; first <= length; first++) {
      for (let second = first; second <= length; second++) {
        const pieces = [content.subarray(0, first), content.subarray(first, second), content.subarray(second)];
        assert.equal(
          encoded(pieces, (index) => index === 2),
          content.toString('base64'),
          `${length} bytes, split at ${first} and ${second}`,
        );
      }
    }
  }
});

test('what was ended in between can be read up to there', (t) => {
  const { random, label } = seededRandom(t);
  for (let round = 0; round < 300; round++) {
    const pieces = Array.from({ length: random.int(1, 8) }, () => bytes(random.int(0, 50), () => random.next()));
    const ends = pieces.map((_, index) => index === pieces.length - 1 || random.chance(0.4));
    let wanted = '';
    let open: Buffer[] = [];
    for (const [index, piece] of pieces.entries()) {
      open.push(piece);
      if (!ends[index]) continue;
      wanted += Buffer.concat(open).toString('base64');
      open = [];
    }
    const text = encoded(pieces, (index) => ends[index]);
    assert.equal(text, wanted, `${label} round ${round}`);
    assert.deepEqual(decoded([Buffer.from(text)]), Buffer.concat(pieces), `${label} round ${round}`);
  }
});

// -- messages -----------------------------------------------------------------------------

function frame(flags: number, length: number, payload = length): Buffer {
  const header = Buffer.alloc(5);
  header[0] = flags;
  header.writeUInt32BE(length, 1);
  return Buffer.concat([header, Buffer.alloc(payload, 0x80)]);
}

test('the end of a message is known, wherever the stream is split', () => {
  const messages = [frame(0, 0), frame(1, 3), frame(0, 1), frame(0, 258), frame(1, 0)];
  const stream = Buffer.concat(messages);
  const ends = new Set([0]);
  let total = 0;
  for (const message of messages) ends.add((total += message.length));
  for (let first = 0; first <= stream.length; first++) {
    const follower = state();
    assert.equal(followMessages(stream, 0, first, follower), 0);
    assert.equal(atMessageEnd(follower), ends.has(first), `after ${first} bytes`);
    assert.equal(followMessages(stream, first, stream.length - first, follower), 0);
    assert.equal(atMessageEnd(follower), true, `split at ${first}`);
  }
  const follower = state();
  for (let at = 0; at < stream.length; at++) {
    assert.equal(followMessages(stream, at, 1, follower), 0);
    assert.equal(atMessageEnd(follower), ends.has(at + 1), `after ${at + 1} bytes`);
  }
});

test('a message of four gigabytes is followed to its end', () => {
  const follower = state();
  const start = frame(0, 0xffff_ffff, 0);
  assert.equal(followMessages(start, 0, start.length, follower), 0);
  const piece = new Uint8Array(2 ** 24).fill(0x80);
  for (let i = 0; i < 255; i++) assert.equal(followMessages(piece, 0, piece.length, follower), 0);
  assert.equal(followMessages(piece, 0, piece.length - 2, follower), 0);
  assert.equal(atMessageEnd(follower), false);
  assert.equal(followMessages(piece, 0, 1, follower), 0);
  assert.equal(atMessageEnd(follower), true);
});

test('an upstream cannot write a trailer frame, nor one with unknown flags', () => {
  for (const flags of [2, 0x7f, 0x80, 0x81, 0xff]) {
    const stream = Buffer.concat([frame(0, 2), frame(flags, 1)]);
    assert.equal(followMessages(stream, 0, stream.length, state()), GrpcWebError.MESSAGE_INVALID);
  }
});

// -- trailers -------------------------------------------------------------------------------

function trailersOf(memory: Uint8Array, lines: string): HeaderTable {
  const table = new HeaderTable();
  const text = Buffer.from(`${lines}\r\n`, 'latin1');
  memory.set(text, 0);
  assert.equal(parseFields(memory, 0, text.length, 256, table, new FieldBits()), text.length);
  return table;
}

test('trailers become a frame that a client reads like a header block', () => {
  const memory = Buffer.alloc(4096, GUARD);
  const trailers = trailersOf(memory, 'Grpc-Status: 5\r\ngrpc-message: no such%20\r\nX-Bin-bin:AAE=\r\nempty:\r\n');
  const size = trailerFrameBytes(trailers);
  const at = 1000;
  const end = putTrailerFrame(memory, at, trailers);
  assert.equal(end - at, size);
  assertUntouched(memory, at - 16, at, 'before the frame');
  assertUntouched(memory, end, end + 16, 'after the frame');
  assert.deepEqual([memory[at], memory.readUInt32BE(at + 1)], [0x80, size - 5]);
  assert.equal(
    memory.toString('latin1', at + 5, end),
    'grpc-status: 5\r\ngrpc-message: no such%20\r\nx-bin-bin: AAE=\r\nempty: \r\n',
  );
});

test('long trailers have a length of more than one byte, and too long ones are refused', () => {
  const memory = Buffer.alloc(64 * 1024);
  const overhead = 'x: \r\n'.length + 5;
  const longest = TRAILER_FRAME_BYTES_MAX - overhead;
  const trailers = trailersOf(memory, `x: ${'v'.repeat(longest)}\r\n`);
  assert.equal(trailerFrameBytes(trailers), TRAILER_FRAME_BYTES_MAX);
  const end = putTrailerFrame(memory, 30_000, trailers);
  assert.equal(end - 30_000, TRAILER_FRAME_BYTES_MAX);
  assert.equal(memory.readUInt32BE(30_001), TRAILER_FRAME_BYTES_MAX - 5);
  const tooLong = trailersOf(memory, `x: ${'v'.repeat(longest + 1)}\r\n`);
  assert.equal(trailerFrameBytes(tooLong), GrpcWebError.TRAILERS_TOO_LARGE);
});

test('a state that is started again remembers nothing', () => {
  const used = state();
  decodeBase64(Buffer.from('AAA'), 0, 3, used);
  encodeBase64(Buffer.alloc(32), 0, 2, 16, used);
  followMessages(Buffer.from([0, 1, 1]), 0, 3, used);
  used.translating = true;
  used.start(WEB, WEB);
  const fresh = new GrpcWebState();
  fresh.start(WEB, WEB);
  assert.deepEqual(used, fresh);
  assert.deepEqual([used.requestText, used.responseText], [false, false]);
});

// -- pieces -----------------------------------------------------------------------------------

const SCRATCH = 300_000;
const memory = Buffer.alloc(SCRATCH + WEB_SCRATCH_BYTES + GUARD_BYTES);

/** A piece whose payload lies at 1000, and its trailers, if any, at 0. */
function pieceOf(payload: Buffer, end: boolean, trailers: string | null): BodyPiece {
  const piece = new BodyPiece();
  piece.trailers = trailers === null ? null : trailersOf(memory, trailers);
  payload.copy(memory, 1000);
  piece.payloadOffset = 1000;
  piece.payloadLength = payload.length;
  piece.end = end;
  return piece;
}

/** All parts of a translated piece, each framed as a chunk would be before the next is asked for. */
function translated(piece: BodyPiece, translation: GrpcWebState): { text: string; ends: boolean[] } {
  memory.fill(GUARD, SCRATCH - GUARD_BYTES);
  assert.equal(startResponsePiece(memory, piece, translation), 0);
  const out = new BodyPiece();
  let text = '';
  const ends: boolean[] = [];
  while (nextResponsePiece(memory, piece, translation, SCRATCH, out)) {
    const { payloadOffset, payloadLength } = out;
    assert.ok(payloadLength > 0 || out.end, 'a part without use');
    assert.equal(out.trailers, null);
    text += memory.toString('latin1', payloadOffset, payloadOffset + payloadLength);
    ends.push(out.end);
    if (payloadOffset < SCRATCH) continue;
    assert.ok(payloadOffset - 10 >= SCRATCH && payloadOffset + payloadLength + 7 <= SCRATCH + WEB_SCRATCH_BYTES);
    memory.fill(GUARD, payloadOffset - 10, payloadOffset);
    memory.fill(GUARD, payloadOffset + payloadLength, payloadOffset + payloadLength + 7);
  }
  assertUntouched(memory, SCRATCH - GUARD_BYTES, SCRATCH, 'before the scratch area');
  assertUntouched(memory, SCRATCH + WEB_SCRATCH_BYTES, memory.length, 'after the scratch area');
  return { text, ends };
}

function web(responseKind: number): GrpcWebState {
  const translation = new GrpcWebState();
  translation.start(responseKind, responseKind);
  return translation;
}

test('messages and trailers of any size and split reach the client whole', (t) => {
  const { random, label } = seededRandom(t);
  for (let round = 0; round < 150; round++) {
    const messages = Array.from({ length: random.int(0, 4) }, () => {
      const payload = bytes(random.size(0, 60_000), () => random.next());
      return Buffer.concat([frame(random.int(0, 1), payload.length, 0), payload]);
    });
    const stream = Buffer.concat(messages);
    const lines = `grpc-status: 0\r\nx-${'y'.repeat(random.int(0, 90))}: ${'z'.repeat(random.int(0, 800))}\r\n`;
    const withTrailers = random.chance(0.8);
    const wanted = withTrailers
      ? Buffer.concat([stream, Buffer.from([0x80, 0, 0, lines.length >> 8, lines.length & 255]), Buffer.from(lines)])
      : stream;
    for (const kind of [WEB, WEB_TEXT]) {
      const translation = web(kind);
      let text = '';
      const ends: boolean[] = [];
      for (let at = 0; ; ) {
        const next = Math.min(stream.length, at + random.size(0, 130_000));
        const end = next === stream.length && random.chance(0.5);
        const part = translated(
          pieceOf(stream.subarray(at, next), end, end && withTrailers ? lines : null),
          translation,
        );
        text += part.text;
        ends.push(...part.ends);
        at = next;
        if (end) break;
      }
      const output = Buffer.from(text, 'latin1');
      const about = `${label} round ${round} kind ${kind}`;
      assert.deepEqual(kind === WEB ? output : decoded([output]), wanted, about);
      assert.deepEqual([ends.filter((end) => end).length, ends.at(-1)], [1, true], about);
    }
  }
});

test('a message in base64 can be read as soon as it is complete', () => {
  const translation = web(WEB_TEXT);
  const message = frame(0, 2);
  assert.deepEqual(translated(pieceOf(message, false, null), translation), {
    text: message.toString('base64'),
    ends: [false],
  });
  // A part of one waits, as far as it fills no group.
  assert.equal(translated(pieceOf(message.subarray(0, 5), false, null), translation).text.length, 4);
  assert.equal(translated(pieceOf(message.subarray(5, 6), false, null), translation).text.length, 4);
  assert.equal(translated(pieceOf(message.subarray(6), false, null), translation).text, 'gA==');
});

test('a translated body that cannot be true is refused', () => {
  const { MESSAGE_INVALID, MESSAGE_TRUNCATED, TRAILERS_TOO_LARGE } = GrpcWebError;
  const start = (payload: Buffer, end: boolean, trailers: string | null): number =>
    startResponsePiece(memory, pieceOf(payload, end, trailers), web(WEB));
  assert.equal(start(frame(0, 4).subarray(0, 8), false, null), 0);
  assert.equal(start(frame(0, 4).subarray(0, 8), true, 'grpc-status: 0\r\n'), MESSAGE_TRUNCATED);
  assert.equal(start(frame(0, 4).subarray(0, 3), true, null), MESSAGE_TRUNCATED);
  assert.equal(start(frame(0x80, 4), false, null), MESSAGE_INVALID);
  const huge = new HeaderTable();
  huge.count = 1;
  huge.words[3] = TRAILER_FRAME_BYTES_MAX;
  const piece = pieceOf(frame(0, 4), true, null);
  piece.trailers = huge;
  const translation = web(WEB);
  assert.equal(startResponsePiece(memory, piece, translation), TRAILERS_TOO_LARGE);
  // Nothing of the piece has been written, so its messages do not count.
  assert.equal(atMessageEnd(translation), true);
});

test('a request body is decoded in its text form only, and must not end within a group', () => {
  const text = frame(0, 2).toString('base64');
  const binary = pieceOf(Buffer.from(text), true, null);
  assert.equal(decodeRequestPiece(memory, binary, web(WEB)), 0);
  assert.equal(binary.payloadLength, text.length);
  const whole = pieceOf(Buffer.from(text), true, null);
  assert.equal(decodeRequestPiece(memory, whole, web(WEB_TEXT)), 0);
  assert.deepEqual(memory.subarray(whole.payloadOffset, whole.payloadOffset + whole.payloadLength), frame(0, 2));
  for (const [end, wanted] of [
    [false, 0],
    [true, GrpcWebError.BASE64_INVALID],
  ] as const) {
    const cut = pieceOf(Buffer.from(text.slice(0, -1)), end, null);
    assert.equal(decodeRequestPiece(memory, cut, web(WEB_TEXT)), wanted);
  }
});
