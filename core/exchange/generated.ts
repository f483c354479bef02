// Responses that this proxy makes itself: one status, one machine-readable reason, one sentence.
//
// The texts are prepared once; a response is put together from them in scratch memory, so that a
// flood of bad requests costs little. The body is one line of plain text: status, reason flag and
// sentence, and the request id that `portcullis explain` takes.
// Spec: RFC 9110 §15 (status codes), §10.2.3 (Retry-After). Hot module: no allocation.

import { parseErrorSentence } from '../http1/errors.ts';
import { statusLine, statusText } from '../http2/status-lines.ts';
import { putDecimal, putLineEnd, putRange, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import { DETAIL_PARSE, DETAIL_TLS, Detail, detailSentence, REASON_COUNT, reasonText } from './reasons.ts';
import type { DateLine } from './response-head.ts';
import type { Runtime } from './runtime.ts';

const defaultServer = new Text('server: portcullis\r\n');
const contentType = new Text('content-type: text/plain; charset=utf-8\r\ncontent-length: ');
const closeLine = new Text('connection: close\r\n');
const keepAliveLine = new Text('connection: keep-alive\r\n');
const requestIdName = new Text('x-request-id: ');
const requestIdText = new Text('\nrequest id: ');
const newline = new Text('\n');
const noText = new Text('');

const flags: Text[] = [];
const sentences: Text[] = [];
for (let reason = 0; reason < REASON_COUNT; reason++) {
  const text = reasonText(reason);
  flags.push(new Text(text.flag));
  sentences.push(new Text(`${text.flag}: ${text.sentence}`));
}

/** Sentence of each parse error met so far, made when first needed. */
const parseSentences: (Text | undefined)[] = [];

function parseSentence(error: number): Text {
  let bytes = parseSentences[error];
  if (bytes === undefined) {
    bytes = new Text(` ${parseErrorSentence(error)}`);
    parseSentences[error] = bytes;
  }
  return bytes;
}

const plainHttp = new Text(` ${detailSentence(Detail.PLAIN_HTTP)}`);

/** What a detail adds to the sentence of its reason: only what the client itself has done. */
function explanation(detail: number): Text {
  if (detail === Detail.PLAIN_HTTP) return plainHttp;
  return detail >= DETAIL_PARSE && detail < DETAIL_TLS ? parseSentence(detail - DETAIL_PARSE) : noText;
}

/** Body bytes of the response that `writeGenerated` wrote last. */
let writtenBodyBytes = 0;

/** Body bytes of the response that `writeGenerated` wrote last; 0 when the body was left out. */
export function generatedBodyBytes(): number {
  return writtenBodyBytes;
}

/** Upper bound of the size of a generated response. */
export const GENERATED_BYTES_MAX = 2048;

/** What a generated response is to say of its connection. */
export const GeneratedConnection = { DEFAULT: 0, CLOSE: 1, KEEP_ALIVE: 2 } as const;

/** Writes the fields that every generated response has first: Date and Server. Spills. */
export function putFirstFields(reactor: Reactor, at: number, runtime: Runtime, date: DateLine): number {
  const dest = putText(reactor.view, at, date.at(reactor.wallMs));
  return putText(reactor.view, dest, runtime.serverLine.length > 0 ? runtime.serverLine : defaultServer);
}

/** Writes those that every generated response has last (request id, reason, Connection) and the end of its head. Spills. */
export function putLastFields(
  reactor: Reactor,
  at: number,
  reason: number,
  idOffset: number,
  idLength: number,
  connection: number,
  runtime: Runtime,
): number {
  const { memory, view } = reactor;
  let dest = at;
  if (idLength > 0) {
    dest = putText(view, dest, requestIdName);
    dest = putRange(memory, dest, idOffset, idLength);
    dest = putLineEnd(view, dest);
  }
  if (runtime.reasonName.length > 0) {
    dest = putText(view, dest, runtime.reasonName);
    dest = putText(view, dest, flags[reason]);
    dest = putLineEnd(view, dest);
  }
  if (connection === GeneratedConnection.CLOSE) dest = putText(view, dest, closeLine);
  else if (connection === GeneratedConnection.KEEP_ALIVE) dest = putText(view, dest, keepAliveLine);
  return putLineEnd(view, dest);
}

/**
 * Writes a generated response at `at` (GENERATED_BYTES_MAX of room). The request id lies at
 * `idOffset`. With `withBody` false (HEAD) the fields are the same and the body is left out.
 * Returns the offset after it.
 */
export function writeGenerated(
  reactor: Reactor,
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
  const { memory, view } = reactor;
  const line = statusLine(status);
  const firstWords = statusText(status);
  const sentence = sentences[reason];
  const parse = explanation(detail);
  const idBytes = idLength > 0 ? requestIdText.length + idLength : 0;
  const bodyLength = firstWords.length + sentence.length + parse.length + idBytes + newline.length;
  writtenBodyBytes = withBody ? bodyLength : 0;
  let dest = putText(view, at, line);
  dest = putFirstFields(reactor, dest, runtime, date);
  dest = putText(view, dest, contentType);
  dest = putDecimal(memory, dest, bodyLength);
  dest = putLineEnd(view, dest);
  dest = putLastFields(reactor, dest, reason, idOffset, idLength, connection, runtime);
  if (!withBody) return dest;
  dest = putText(view, dest, firstWords);
  dest = putText(view, dest, sentence);
  dest = putText(view, dest, parse);
  if (idLength > 0) {
    dest = putText(view, dest, requestIdText);
    dest = putRange(memory, dest, idOffset, idLength);
  }
  return putText(view, dest, newline);
}
