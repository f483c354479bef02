// Responses that this proxy makes itself: one status, one machine-readable reason, one sentence.
//
// The texts are prepared once; a response is put together from them in scratch memory, so that a
// flood of bad requests costs little. The body is one line of plain text: status, reason flag and
// sentence, and the request id that `portcullis explain` takes.
// Spec: RFC 9110 §15 (status codes), §10.2.3 (Retry-After). Hot module: no allocation.

import { bytesOf, putBytes, putDecimal, putRange } from '../io/bytes.ts';
import { DETAIL_PARSE, reasonText, REASON_COUNT } from './reasons.ts';
import type { Runtime } from './runtime.ts';
import { type DateLine } from './response-head.ts';
import { parseErrorSentence } from '../http1/errors.ts';

const phrases: Record<number, string> = {
  200: 'OK',
  400: 'Bad Request',
  404: 'Not Found',
  405: 'Method Not Allowed',
  408: 'Request Timeout',
  413: 'Content Too Large',
  414: 'URI Too Long',
  417: 'Expectation Failed',
  429: 'Too Many Requests',
  431: 'Request Header Fields Too Large',
  500: 'Internal Server Error',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
  505: 'HTTP Version Not Supported',
};

const statusLines = new Map<number, Uint8Array>();
const statusTexts = new Map<number, Uint8Array>();
for (const [status, phrase] of Object.entries(phrases)) {
  statusLines.set(Number(status), bytesOf(`HTTP/1.1 ${status} ${phrase}\r\n`));
  statusTexts.set(Number(status), bytesOf(`${status} ${phrase}: `));
}
const defaultServer = bytesOf('server: portcullis\r\n');
const contentType = bytesOf('content-type: text/plain; charset=utf-8\r\ncontent-length: ');
const closeLine = bytesOf('connection: close\r\n');
const keepAliveLine = bytesOf('connection: keep-alive\r\n');
const requestIdName = bytesOf('x-request-id: ');
const lineEnd = bytesOf('\r\n');
const requestIdText = bytesOf('\nrequest id: ');
const newline = bytesOf('\n');
const noBytes = new Uint8Array(0);

const flags: Uint8Array[] = [];
const sentences: Uint8Array[] = [];
for (let reason = 0; reason < REASON_COUNT; reason++) {
  const text = reasonText(reason);
  flags.push(bytesOf(text.flag));
  sentences.push(bytesOf(`${text.flag}: ${text.sentence}`));
}

/** Sentence of each parse error met so far, made when first needed. */
const parseSentences: (Uint8Array | undefined)[] = [];

function parseSentence(error: number): Uint8Array {
  let bytes = parseSentences[error];
  if (bytes === undefined) {
    bytes = bytesOf(` ${parseErrorSentence(error)}`);
    parseSentences[error] = bytes;
  }
  return bytes;
}

/** Upper bound of the size of a generated response. */
export const GENERATED_BYTES_MAX = 2048;

/** What a generated response is to say of its connection. */
export const GeneratedConnection = { DEFAULT: 0, CLOSE: 1, KEEP_ALIVE: 2 } as const;

/**
 * Writes a generated response at `at` (GENERATED_BYTES_MAX of room). The request id lies at
 * `idOffset`. With `withBody` false (HEAD) the fields are the same and the body is left out.
 * Returns the offset after it.
 */
export function writeGenerated(
  memory: Uint8Array,
  at: number,
  status: number,
  reason: number,
  detail: number,
  idOffset: number,
  idLength: number,
  connection: number,
  withBody: boolean,
  runtime: Runtime,
  date: DateLine,
): number {
  const statusLine = statusLines.get(status) ?? statusLines.get(500)!;
  const statusText = statusTexts.get(status) ?? statusTexts.get(500)!;
  const sentence = sentences[reason];
  const parse = detail >= DETAIL_PARSE ? parseSentence(detail - DETAIL_PARSE) : noBytes;
  const idBytes = idLength > 0 ? requestIdText.length + idLength : 0;
  const bodyLength = statusText.length + sentence.length + parse.length + idBytes + newline.length;
  let dest = putBytes(memory, at, statusLine);
  dest = putBytes(memory, dest, date.bytes);
  dest = putBytes(memory, dest, runtime.serverLine.length > 0 ? runtime.serverLine : defaultServer);
  dest = putBytes(memory, dest, contentType);
  dest = putDecimal(memory, dest, bodyLength);
  dest = putBytes(memory, dest, lineEnd);
  if (idLength > 0) {
    dest = putBytes(memory, dest, requestIdName);
    dest = putRange(memory, dest, idOffset, idLength);
    dest = putBytes(memory, dest, lineEnd);
  }
  if (runtime.reasonName.length > 0) {
    dest = putBytes(memory, dest, runtime.reasonName);
    dest = putBytes(memory, dest, flags[reason]);
    dest = putBytes(memory, dest, lineEnd);
  }
  if (connection === GeneratedConnection.CLOSE) dest = putBytes(memory, dest, closeLine);
  else if (connection === GeneratedConnection.KEEP_ALIVE) dest = putBytes(memory, dest, keepAliveLine);
  dest = putBytes(memory, dest, lineEnd);
  if (!withBody) return dest;
  dest = putBytes(memory, dest, statusText);
  dest = putBytes(memory, dest, sentence);
  dest = putBytes(memory, dest, parse);
  if (idLength > 0) {
    dest = putBytes(memory, dest, requestIdText);
    dest = putRange(memory, dest, idOffset, idLength);
  }
  return putBytes(memory, dest, newline);
}
