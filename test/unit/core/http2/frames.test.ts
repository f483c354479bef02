import assert from 'node:assert/strict';
import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import { test } from 'node:test';
import {
  ErrorCode,
  errorCodeName,
  errorCodeOf,
  FrameError,
  frameErrorSentence,
  SCOPE_STREAM,
} from '../../../../core/http2/errors.ts';
import {
  checkFrame,
  checkPriority,
  Flag,
  FRAME_HEADER_BYTES,
  FrameContent,
  FrameType,
  frameFlags,
  frameLength,
  frameStreamId,
  frameType,
  matchPreface,
  PREFACE,
  PREFACE_BYTES,
  readDataContent,
  readErrorCode,
  readHeadersContent,
  readUint31,
  readWindowIncrement,
  readWord,
  writeFrameHeader,
  writeGoaway,
  writePing,
  writePingAck,
  writeRstStream,
  writeSettings,
  writeSettingsAck,
  writeWindowUpdate,
} from '../../../../core/http2/frames.ts';
import { applySettings, PeerSettings, SETTINGS_COUNT_MAX, SettingsId } from '../../../../core/http2/settings.ts';
import { nameOf } from '../../../support/name-of.ts';

const { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY } = FrameType;
const { WINDOW_UPDATE, CONTINUATION, PRIORITY_UPDATE } = FrameType;
const { ACK, END_HEADERS, END_STREAM, PADDED } = Flag;
const MAX = 16_384;

/** What `checkFrame` finds, as `NAME` or `NAME of stream`; empty for nothing. */
function found(length: number, type: number, flags: number, streamId: number, max = MAX): string {
  return named(checkFrame(length, type, flags, streamId, max));
}

function named(error: number): string {
  if (error === 0) return '';
  return nameOf(FrameError, error & ~SCOPE_STREAM) + ((error & SCOPE_STREAM) === 0 ? '' : ' of stream');
}

/** The bytes that `write` puts behind a first byte that must stay, as hexadecimal. */
function written(write: (memory: Uint8Array, at: number) => number): string {
  const memory = new Uint8Array(128).fill(0xee);
  const end = write(memory, 1);
  assert.equal(memory[0], 0xee);
  assert.ok(
    memory.subarray(end).every((byte) => byte === 0xee),
    'nothing is written beyond the frame',
  );
  return Buffer.from(memory.subarray(1, end)).toString('hex');
}

test('frame headers are read back as they were written, to the limits of their fields', () => {
  const memory = new Uint8Array(32);
  for (const [length, type, flags, streamId] of [
    [0, DATA, 0, 0],
    [16_777_215, 0xff, 0xff, 0x7fff_ffff],
    [0x010203, HEADERS, END_HEADERS | END_STREAM, 0x04050607],
  ]) {
    assert.equal(writeFrameHeader(memory, 3, length!, type!, flags!, streamId!), 3 + FRAME_HEADER_BYTES);
    assert.equal(frameLength(memory, 3), length);
    assert.equal(frameType(memory, 3), type);
    assert.equal(frameFlags(memory, 3), flags);
    assert.equal(frameStreamId(memory, 3), streamId);
  }
});

test('the reserved bit of a stream identifier is ignored', () => {
  const memory = Uint8Array.from([0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
  assert.equal(frameStreamId(memory, 0), 0x7fff_ffff);
  assert.equal(readUint31(Uint8Array.from([0x80, 0, 0, 5]), 0), 5);
});

test('frames are written byte for byte as RFC 9113 draws them', () => {
  const cases: [(memory: Uint8Array, at: number) => number, string][] = [
    [
      (memory, at) => writeSettings(memory, at, Uint32Array.of(3, 100, 4, 0xffff_ffff, 9, 9), 2),
      '00000c 04 00 00000000 0003 00000064 0004 ffffffff',
    ],
    [(memory, at) => writeSettings(memory, at, new Uint32Array(0), 0), '000000 04 00 00000000'],
    [writeSettingsAck, '000000 04 01 00000000'],
    [(memory, at) => writePing(memory, at, 0x01020304, -1), '000008 06 00 00000000 01020304 ffffffff'],
    [(memory, at) => writeRstStream(memory, at, 0x7fff_ffff, ErrorCode.CANCEL), '000004 03 00 7fffffff 00000008'],
    [(memory, at) => writeWindowUpdate(memory, at, 5, 0x7fff_ffff), '000004 08 00 00000005 7fffffff'],
    [
      (memory, at) => writeGoaway(memory, at, 7, ErrorCode.ENHANCE_YOUR_CALM, Buffer.from('no')),
      '00000a 07 00 00000000 00000007 0000000b 6e6f',
    ],
    [(memory, at) => writeGoaway(memory, at, 7, 0, new Uint8Array(0)), '000008 07 00 00000000 00000007 00000000'],
  ];
  for (const [write, expected] of cases) assert.equal(written(write), expected.replaceAll(' ', ''));
});

test('a PING is answered with its own eight bytes, even in the place where it arrived', () => {
  const memory = Uint8Array.from([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0xfb, 6, 7, 8]);
  writePingAck(memory, 0, FRAME_HEADER_BYTES);
  assert.deepEqual([...memory], [0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 0xfb, 6, 7, 8]);
  const other = new Uint8Array(40);
  other.set([9, 8, 7, 6, 5, 4, 3, 0xf2], 4);
  writePingAck(other, 0, 4);
  assert.deepEqual([...other.subarray(9, 17)], [9, 8, 7, 6, 5, 4, 3, 0xf2]);
});

/** Rule of each frame type: length, type, flags, stream, and what is found. */
const rules: [string, number, number, number, number, string][] = [
  ['DATA on a stream', 10, DATA, 0, 1, ''],
  ['empty DATA', 0, DATA, END_STREAM, 1, ''],
  ['DATA on stream 0', 10, DATA, 0, 0, 'STREAM_ID_ZERO'],
  ['padded DATA without a pad length', 0, DATA, PADDED, 1, 'FRAME_TOO_SHORT of stream'],
  ['padded DATA with only a pad length', 1, DATA, PADDED, 1, ''],
  ['DATA beyond the limit', MAX + 1, DATA, 0, 1, 'FRAME_TOO_LARGE of stream'],
  ['DATA at the limit', MAX, DATA, 0, 1, ''],
  ['HEADERS on a stream', 10, HEADERS, END_HEADERS, 3, ''],
  ['HEADERS on stream 0', 10, HEADERS, END_HEADERS, 0, 'STREAM_ID_ZERO'],
  ['HEADERS with priority and no room for it', 4, HEADERS, Flag.PRIORITY, 3, 'FRAME_TOO_SHORT'],
  ['HEADERS with priority and nothing else', 5, HEADERS, Flag.PRIORITY, 3, ''],
  ['padded HEADERS with priority and no room for both', 5, HEADERS, Flag.PRIORITY | PADDED, 3, 'FRAME_TOO_SHORT'],
  ['HEADERS beyond the limit', MAX + 1, HEADERS, 0, 1, 'FRAME_TOO_LARGE'],
  ['PRIORITY', 5, PRIORITY, 0, 1, ''],
  ['PRIORITY on stream 0', 5, PRIORITY, 0, 0, 'STREAM_ID_ZERO'],
  ['short PRIORITY', 4, PRIORITY, 0, 1, 'PRIORITY_LENGTH of stream'],
  ['long PRIORITY', 6, PRIORITY, 0, 1, 'PRIORITY_LENGTH of stream'],
  ['RST_STREAM', 4, RST_STREAM, 0, 1, ''],
  ['RST_STREAM on stream 0', 4, RST_STREAM, 0, 0, 'STREAM_ID_ZERO'],
  ['short RST_STREAM', 3, RST_STREAM, 0, 1, 'RST_STREAM_LENGTH'],
  ['huge RST_STREAM', MAX + 1, RST_STREAM, 0, 1, 'FRAME_TOO_LARGE'],
  ['SETTINGS', 12, SETTINGS, 0, 0, ''],
  ['empty SETTINGS', 0, SETTINGS, 0, 0, ''],
  ['SETTINGS on a stream', 12, SETTINGS, 0, 1, 'STREAM_ID_NOT_ZERO'],
  ['SETTINGS of an odd length', 13, SETTINGS, 0, 0, 'SETTINGS_LENGTH'],
  ['acknowledgement of SETTINGS', 0, SETTINGS, ACK, 0, ''],
  ['acknowledgement of SETTINGS with settings', 6, SETTINGS, ACK, 0, 'SETTINGS_ACK_LENGTH'],
  ['SETTINGS beyond the limit', MAX + 2, SETTINGS, 0, 0, 'FRAME_TOO_LARGE'],
  ['PUSH_PROMISE', 10, PUSH_PROMISE, 0, 1, 'PUSH_PROMISE_RECEIVED'],
  ['PING', 8, PING, 0, 0, ''],
  ['answer to PING', 8, PING, ACK, 0, ''],
  ['PING on a stream', 8, PING, 0, 1, 'STREAM_ID_NOT_ZERO'],
  ['short PING', 7, PING, 0, 0, 'PING_LENGTH'],
  ['long PING', 9, PING, ACK, 0, 'PING_LENGTH'],
  ['GOAWAY', 8, GOAWAY, 0, 0, ''],
  ['GOAWAY with a text', 100, GOAWAY, 0, 0, ''],
  ['GOAWAY on a stream', 8, GOAWAY, 0, 1, 'STREAM_ID_NOT_ZERO'],
  ['short GOAWAY', 7, GOAWAY, 0, 0, 'GOAWAY_LENGTH'],
  ['WINDOW_UPDATE of the connection', 4, WINDOW_UPDATE, 0, 0, ''],
  ['WINDOW_UPDATE of a stream', 4, WINDOW_UPDATE, 0, 1, ''],
  ['short WINDOW_UPDATE of a stream', 3, WINDOW_UPDATE, 0, 1, 'WINDOW_UPDATE_LENGTH'],
  ['long WINDOW_UPDATE', 5, WINDOW_UPDATE, 0, 0, 'WINDOW_UPDATE_LENGTH'],
  ['CONTINUATION', 10, CONTINUATION, END_HEADERS, 1, ''],
  ['CONTINUATION on stream 0', 10, CONTINUATION, 0, 0, 'STREAM_ID_ZERO'],
  ['CONTINUATION beyond the limit', MAX + 1, CONTINUATION, 0, 1, 'FRAME_TOO_LARGE'],
  ['PRIORITY_UPDATE', 9, PRIORITY_UPDATE, 0, 0, ''],
  ['a frame of unknown type', 9, 0xfa, 0xff, 1, ''],
  ['a frame of unknown type beyond the limit', MAX + 1, 0xfa, 0, 1, 'FRAME_TOO_LARGE of stream'],
  ['a frame of unknown type on stream 0 beyond the limit', MAX + 1, 0xfa, 0, 0, 'FRAME_TOO_LARGE'],
];

for (const [name, length, type, flags, streamId, expected] of rules) {
  test(`${name}: ${expected === '' ? 'passes' : expected}`, () => {
    assert.equal(found(length, type, flags, streamId), expected);
  });
}

test('flags that mean nothing to a type are ignored', () => {
  assert.equal(found(0, DATA, 0xff & ~PADDED, 1), '');
  assert.equal(found(8, GOAWAY, 0xff, 0), '');
  assert.equal(found(4, WINDOW_UPDATE, 0xff, 1), '');
  assert.equal(found(0, CONTINUATION, 0xff, 1), '');
});

test('a larger limit that was announced counts', () => {
  assert.equal(found(MAX + 1, DATA, 0, 1, 16_777_215), '');
  assert.equal(found(16_777_215, HEADERS, 0, 1, 16_777_214), 'FRAME_TOO_LARGE');
});

test('each rule has the error code that its RFC asks for', () => {
  const codes: [string, number][] = [
    ['FRAME_TOO_LARGE', ErrorCode.FRAME_SIZE_ERROR],
    ['FRAME_TOO_SHORT', ErrorCode.FRAME_SIZE_ERROR],
    ['STREAM_ID_ZERO', ErrorCode.PROTOCOL_ERROR],
    ['STREAM_ID_NOT_ZERO', ErrorCode.PROTOCOL_ERROR],
    ['PADDING_TOO_LONG', ErrorCode.PROTOCOL_ERROR],
    ['PRIORITY_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['PRIORITY_ON_ITSELF', ErrorCode.PROTOCOL_ERROR],
    ['RST_STREAM_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['SETTINGS_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['SETTINGS_ACK_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['SETTINGS_TOO_MANY', ErrorCode.ENHANCE_YOUR_CALM],
    ['ENABLE_PUSH_INVALID', ErrorCode.PROTOCOL_ERROR],
    ['INITIAL_WINDOW_TOO_LARGE', ErrorCode.FLOW_CONTROL_ERROR],
    ['MAX_FRAME_SIZE_INVALID', ErrorCode.PROTOCOL_ERROR],
    ['ENABLE_CONNECT_INVALID', ErrorCode.PROTOCOL_ERROR],
    ['NO_PRIORITIES_INVALID', ErrorCode.PROTOCOL_ERROR],
    ['PUSH_PROMISE_RECEIVED', ErrorCode.PROTOCOL_ERROR],
    ['PING_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['GOAWAY_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['WINDOW_UPDATE_LENGTH', ErrorCode.FRAME_SIZE_ERROR],
    ['WINDOW_UPDATE_ZERO', ErrorCode.PROTOCOL_ERROR],
  ];
  for (const [name, code] of codes) {
    const error = FrameError[name as keyof typeof FrameError];
    assert.equal(errorCodeName(errorCodeOf(error)), errorCodeName(code), name);
    assert.equal(nameOf(FrameError, error), name, 'no two rules have one number');
    assert.equal(errorCodeOf(error | SCOPE_STREAM), code);
    assert.equal(error & SCOPE_STREAM, 0);
  }
  const sentences = Object.values(FrameError).map(frameErrorSentence);
  assert.equal(new Set(sentences).size, sentences.length);
  for (const sentence of sentences) assert.match(sentence, /^A[\x20-\x7e]*\.$|^(The|SETTINGS)[\x20-\x7e]*\.$/);
});

test('errors without a rule are still describable', () => {
  assert.equal(errorCodeName(0x99), 'UNKNOWN');
  assert.equal(frameErrorSentence(ErrorCode.CANCEL), 'HTTP/2 error CANCEL.');
});

test('error codes that RFC 9113 does not define count as INTERNAL_ERROR', () => {
  const code = (...bytes: number[]): number => readErrorCode(Uint8Array.from(bytes), 0);
  assert.equal(code(0, 0, 0, 8), ErrorCode.CANCEL);
  assert.equal(code(0, 0, 0, 13), ErrorCode.HTTP_1_1_REQUIRED);
  assert.equal(code(0, 0, 0, 14), ErrorCode.INTERNAL_ERROR);
  assert.equal(code(0, 0, 1, 8), ErrorCode.INTERNAL_ERROR);
  assert.equal(code(0xff, 0xff, 0xff, 0xff), ErrorCode.INTERNAL_ERROR);
});

test('a window increment of 0 is an error of what it was meant for, and the reserved bit does not help', () => {
  assert.equal(readWindowIncrement(Uint8Array.of(0x7f, 0xff, 0xff, 0xff), 0, 1), 0x7fff_ffff);
  assert.equal(readWindowIncrement(Uint8Array.of(0x80, 0, 0, 1), 0, 0), 1);
  assert.equal(named(-readWindowIncrement(Uint8Array.of(0, 0, 0, 0), 0, 0)), 'WINDOW_UPDATE_ZERO');
  assert.equal(named(-readWindowIncrement(Uint8Array.of(0x80, 0, 0, 0), 0, 3)), 'WINDOW_UPDATE_ZERO of stream');
});

test('padding of DATA is told from its content', () => {
  const content = new FrameContent();
  const memory = Uint8Array.of(0xee, 3, 65, 66, 0, 0, 0);
  assert.equal(readDataContent(memory, 1, 6, PADDED | END_STREAM, content), 0);
  assert.deepEqual([content.offset, content.length], [2, 2]);
  assert.equal(readDataContent(memory, 1, 6, END_STREAM, content), 0);
  assert.deepEqual([content.offset, content.length], [1, 6]);
});

test('padding may be all that a DATA frame has, but not more than it has', () => {
  const content = new FrameContent();
  assert.equal(readDataContent(Uint8Array.of(4, 0, 0, 0, 0), 0, 5, PADDED, content), 0);
  assert.deepEqual([content.offset, content.length], [1, 0]);
  assert.equal(named(readDataContent(Uint8Array.of(5, 0, 0, 0, 0), 0, 5, PADDED, content)), 'PADDING_TOO_LONG');
  assert.equal(named(readDataContent(Uint8Array.of(255), 0, 1, PADDED, content)), 'PADDING_TOO_LONG');
  assert.equal(readDataContent(Uint8Array.of(0), 0, 1, PADDED, content), 0);
  assert.deepEqual([content.offset, content.length], [1, 0]);
});

test('padding and priority of HEADERS are told from the header block', () => {
  const content = new FrameContent();
  const both = Uint8Array.of(0xee, 2, 0x80, 0, 0, 1, 15, 0x82, 0x84, 0, 0);
  assert.equal(readHeadersContent(both, 1, 10, PADDED | Flag.PRIORITY, 3, content), 0);
  assert.deepEqual([content.offset, content.length], [7, 2]);
  assert.equal(readHeadersContent(both, 1, 10, PADDED, 3, content), 0);
  assert.deepEqual([content.offset, content.length], [2, 7]);
  assert.equal(readHeadersContent(both, 2, 9, Flag.PRIORITY, 3, content), 0);
  assert.deepEqual([content.offset, content.length], [7, 4]);
  assert.equal(readHeadersContent(both, 2, 9, 0, 3, content), 0);
  assert.deepEqual([content.offset, content.length], [2, 9]);
});

test('padding of HEADERS must leave room for the priority fields', () => {
  const content = new FrameContent();
  const flags = PADDED | Flag.PRIORITY;
  assert.equal(readHeadersContent(Uint8Array.of(1, 0, 0, 0, 1, 15, 0), 0, 7, flags, 3, content), 0);
  assert.equal(content.length, 0);
  assert.equal(
    named(readHeadersContent(Uint8Array.of(2, 0, 0, 0, 1, 15, 0), 0, 7, flags, 3, content)),
    'PADDING_TOO_LONG',
  );
  assert.equal(named(readHeadersContent(Uint8Array.of(3, 0, 0), 0, 3, PADDED, 3, content)), 'PADDING_TOO_LONG');
});

test('a stream that depends on itself is reset, but its header block can still be decoded', () => {
  const content = new FrameContent();
  const memory = Uint8Array.of(0x80, 0, 0, 3, 15, 0x82);
  assert.equal(named(readHeadersContent(memory, 0, 6, Flag.PRIORITY, 3, content)), 'PRIORITY_ON_ITSELF of stream');
  assert.deepEqual([content.offset, content.length], [5, 1]);
  assert.equal(named(checkPriority(memory, 0, 3)), 'PRIORITY_ON_ITSELF of stream');
  assert.equal(checkPriority(memory, 0, 5), 0);
});

test('the preface is recognised byte by byte, and anything else at its first byte that differs', () => {
  for (let length = 0; length <= PREFACE_BYTES; length++) assert.equal(matchPreface(PREFACE, 0, length), length);
  assert.equal(matchPreface(Buffer.concat([PREFACE, Buffer.from('more')]), 0, 28), PREFACE_BYTES);
  for (let at = 0; at < PREFACE_BYTES; at++) {
    const wrong = Uint8Array.from(PREFACE);
    wrong[at]! ^= 1;
    assert.equal(matchPreface(wrong, 0, at), at);
    assert.equal(matchPreface(wrong, 0, at + 1), -1);
    assert.equal(matchPreface(wrong, 0, PREFACE_BYTES), -1);
  }
  assert.equal(matchPreface(Buffer.from('xPRI * HTTP/2.0'), 1, 14), 14);
  assert.equal(matchPreface(Buffer.from('PRI /x HTTP/1.1\r\n'), 0, 17), -1);
  assert.equal(matchPreface(Buffer.from('POST / HTTP/1.1'), 0, 2), -1);
});

// -- settings ------------------------------------------------------------------------

/** Applies [id, value] pairs as one frame; the name of the error or ''. */
function apply(settings: PeerSettings, pairs: [number, number][], fromServer = false): string {
  const memory = new Uint8Array(4096);
  const end = writeSettings(memory, 7, Uint32Array.from(pairs.flat()), pairs.length);
  const length = end - 7 - FRAME_HEADER_BYTES;
  return named(applySettings(memory, 7 + FRAME_HEADER_BYTES, length, settings, fromServer));
}

test('settings take effect, the last of equals counts, and unknown ones are ignored', () => {
  const settings = new PeerSettings();
  assert.equal(
    apply(settings, [
      [SettingsId.HEADER_TABLE_SIZE, 0],
      [SettingsId.ENABLE_PUSH, 0],
      [SettingsId.MAX_CONCURRENT_STREAMS, 7],
      [SettingsId.INITIAL_WINDOW_SIZE, 1],
      [SettingsId.MAX_FRAME_SIZE, 16_777_215],
      [SettingsId.MAX_HEADER_LIST_SIZE, 9000],
      [SettingsId.ENABLE_CONNECT_PROTOCOL, 1],
      [SettingsId.NO_RFC7540_PRIORITIES, 1],
      [0x0a0a, 0xffff_ffff],
      [7, 5],
      [SettingsId.INITIAL_WINDOW_SIZE, 0x7fff_ffff],
    ]),
    '',
  );
  assert.deepEqual(
    { ...settings },
    {
      headerTableBytes: 0,
      headerTableBytesLeast: 0,
      enablePush: false,
      maxConcurrentStreams: 7,
      initialWindowBytes: 0x7fff_ffff,
      frameBytesMax: 16_777_215,
      headerListBytesMax: 9000,
      enableConnectProtocol: true,
    },
  );
  assert.equal(apply(settings, []), '');
  assert.equal(settings.maxConcurrentStreams, 7);
  settings.reset();
  assert.deepEqual({ ...settings }, { ...new PeerSettings() });
});

test('values beyond 31 bits mean the most that is kept', () => {
  const settings = new PeerSettings();
  const most = 0xffff_ffff;
  assert.equal(
    apply(settings, [
      [SettingsId.HEADER_TABLE_SIZE, most],
      [SettingsId.MAX_CONCURRENT_STREAMS, most],
      [SettingsId.MAX_HEADER_LIST_SIZE, 0x8000_0000],
    ]),
    '',
  );
  assert.equal(settings.headerTableBytes, 0x7fff_ffff);
  assert.equal(settings.maxConcurrentStreams, 0x7fff_ffff);
  assert.equal(settings.headerListBytesMax, 0x7fff_ffff);
});

test('the smallest header table size of a frame is kept beside the last', () => {
  const settings = new PeerSettings();
  const size = SettingsId.HEADER_TABLE_SIZE;
  apply(settings, [
    [size, 100],
    [size, 0],
    [size, 8000],
  ]);
  assert.deepEqual([settings.headerTableBytesLeast, settings.headerTableBytes], [0, 8000]);
  apply(settings, [[SettingsId.ENABLE_PUSH, 0]]);
  assert.deepEqual([settings.headerTableBytesLeast, settings.headerTableBytes], [8000, 8000]);
  apply(settings, [[size, 9000]]);
  assert.deepEqual([settings.headerTableBytesLeast, settings.headerTableBytes], [9000, 9000]);
});

const badSettings: [string, [number, number][], boolean, string][] = [
  ['ENABLE_PUSH 2', [[SettingsId.ENABLE_PUSH, 2]], false, 'ENABLE_PUSH_INVALID'],
  ['ENABLE_PUSH 1 of a client', [[SettingsId.ENABLE_PUSH, 1]], false, ''],
  ['ENABLE_PUSH 1 of a server', [[SettingsId.ENABLE_PUSH, 1]], true, 'ENABLE_PUSH_INVALID'],
  ['ENABLE_PUSH 0 of a server', [[SettingsId.ENABLE_PUSH, 0]], true, ''],
  ['INITIAL_WINDOW_SIZE 2^31', [[SettingsId.INITIAL_WINDOW_SIZE, 0x8000_0000]], false, 'INITIAL_WINDOW_TOO_LARGE'],
  ['INITIAL_WINDOW_SIZE 2^32 - 1', [[SettingsId.INITIAL_WINDOW_SIZE, 0xffff_ffff]], true, 'INITIAL_WINDOW_TOO_LARGE'],
  ['MAX_FRAME_SIZE 16383', [[SettingsId.MAX_FRAME_SIZE, 16_383]], false, 'MAX_FRAME_SIZE_INVALID'],
  ['MAX_FRAME_SIZE 2^24', [[SettingsId.MAX_FRAME_SIZE, 16_777_216]], false, 'MAX_FRAME_SIZE_INVALID'],
  ['MAX_FRAME_SIZE 2^32 - 1', [[SettingsId.MAX_FRAME_SIZE, 0xffff_ffff]], false, 'MAX_FRAME_SIZE_INVALID'],
  ['ENABLE_CONNECT_PROTOCOL 2', [[SettingsId.ENABLE_CONNECT_PROTOCOL, 2]], true, 'ENABLE_CONNECT_INVALID'],
  ['ENABLE_CONNECT_PROTOCOL 0', [[SettingsId.ENABLE_CONNECT_PROTOCOL, 0]], true, ''],
  ['NO_RFC7540_PRIORITIES 2', [[SettingsId.NO_RFC7540_PRIORITIES, 2]], false, 'NO_PRIORITIES_INVALID'],
];

for (const [name, pairs, fromServer, expected] of badSettings) {
  test(`SETTINGS with ${name}: ${expected === '' ? 'applied' : expected}`, () => {
    assert.equal(apply(new PeerSettings(), pairs, fromServer), expected);
  });
}

test('extended CONNECT cannot be taken back', () => {
  const settings = new PeerSettings();
  assert.equal(apply(settings, [[SettingsId.ENABLE_CONNECT_PROTOCOL, 1]], true), '');
  assert.equal(apply(settings, [[SettingsId.ENABLE_CONNECT_PROTOCOL, 1]], true), '');
  assert.equal(apply(settings, [[SettingsId.ENABLE_CONNECT_PROTOCOL, 0]], true), 'ENABLE_CONNECT_INVALID');
});

test('a SETTINGS frame stuffed with settings is refused', () => {
  const pairs = Array.from({ length: SETTINGS_COUNT_MAX }, (): [number, number] => [0x0a0a, 1]);
  assert.equal(apply(new PeerSettings(), pairs), '');
  assert.equal(apply(new PeerSettings(), [...pairs, [0x0a0a, 1]]), 'SETTINGS_TOO_MANY');
});

// -- against nghttp2 -----------------------------------------------------------------

test('nghttp2 understands every frame that is written, and its frames are understood', {
  timeout: 20_000,
}, async (t) => {
  const server = http2.createServer({ settings: { maxConcurrentStreams: 77, enableConnectProtocol: true } });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const seen: Record<string, unknown> = {};
  const sessions = new Promise<http2.ServerHttp2Session>((resolve) => server.once('session', resolve));
  server.once('stream', (stream: http2.ServerHttp2Stream) => {
    stream.on('error', () => {});
    stream.once('close', () => {
      seen.reset = stream.rstCode;
    });
    stream.respond();
    // More than the first window: the rest is sent once WINDOW_UPDATE has arrived.
    stream.write(Buffer.alloc(100_000, 97));
  });
  const socket = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  t.after(() => {
    socket.destroy();
    server.close();
  });

  const memory = new Uint8Array(4096);
  const send = (write: (at: number) => number): void => {
    socket.write(Buffer.from(memory.slice(0, write(0))));
  };
  socket.write(PREFACE);
  send((at) =>
    writeSettings(
      memory,
      at,
      Uint32Array.of(SettingsId.HEADER_TABLE_SIZE, 1234, SettingsId.MAX_CONCURRENT_STREAMS, 9),
      2,
    ),
  );
  // :method GET, :path /, :scheme http, :authority localhost (a literal without indexing).
  const block = [0x82, 0x84, 0x86, 0x01, 9, ...Buffer.from('localhost')];
  send((at) => {
    const payload = writeFrameHeader(memory, at, block.length, HEADERS, END_HEADERS | END_STREAM, 1);
    memory.set(block, payload);
    return payload + block.length;
  });
  send((at) => writePing(memory, at, 0x11223344, 0x55667788));

  const settings = new PeerSettings();
  const content = new FrameContent();
  let bytes = Buffer.alloc(0);
  let dataBytes = 0;
  let pong = '';
  let rest = false;
  const session = await sessions;
  session.once('goaway', (code, last, data) => {
    seen.goaway = [code, last, String(data)];
  });
  const done = Promise.withResolvers<void>();
  session.once('close', () => done.resolve());
  session.on('error', () => {});
  session.once('remoteSettings', (remote) => {
    seen.settings = [remote.headerTableSize, remote.maxConcurrentStreams];
  });
  socket.on('data', (piece: Buffer) => {
    bytes = Buffer.concat([bytes, piece]);
    while (bytes.length >= FRAME_HEADER_BYTES && bytes.length >= FRAME_HEADER_BYTES + frameLength(bytes, 0)) {
      const length = frameLength(bytes, 0);
      const type = frameType(bytes, 0);
      const flags = frameFlags(bytes, 0);
      assert.equal(found(length, type, flags, frameStreamId(bytes, 0)), '');
      if (type === SETTINGS && (flags & ACK) === 0) {
        assert.equal(applySettings(bytes, FRAME_HEADER_BYTES, length, settings, true), 0);
        send((at) => writeSettingsAck(memory, at));
      } else if (type === PING) {
        if ((flags & ACK) !== 0) {
          pong = [readWord(bytes, 9), readWord(bytes, 13)].map((word) => word.toString(16)).join(' ');
        }
      } else if (type === DATA) {
        assert.equal(readDataContent(bytes, FRAME_HEADER_BYTES, length, flags, content), 0);
        dataBytes += content.length;
        if (dataBytes === 65_535 && !rest) {
          rest = true;
          send((at) => writeWindowUpdate(memory, writeWindowUpdate(memory, at, 0, 40_000), 1, 40_000));
        }
        if (dataBytes === 100_000) {
          send((at) => writeRstStream(memory, at, 1, ErrorCode.CANCEL));
          send((at) => writeGoaway(memory, at, 0, ErrorCode.ENHANCE_YOUR_CALM, Buffer.from('enough')));
        }
      }
      bytes = bytes.subarray(FRAME_HEADER_BYTES + length);
    }
  });
  await done.promise;

  assert.equal(settings.maxConcurrentStreams, 77);
  assert.equal(settings.enableConnectProtocol, true);
  assert.equal(pong, '11223344 55667788');
  assert.equal(dataBytes, 100_000);
  assert.deepEqual(seen.settings, [1234, 9]);
  assert.equal(seen.reset, ErrorCode.CANCEL);
  assert.deepEqual(seen.goaway, [ErrorCode.ENHANCE_YOUR_CALM, 0, 'enough']);
});
