// Three readers of one HTTP/1 byte stream: ours, llhttp (the parser inside Node) and http-parser-js.
// Each tells what messages it saw and how it ended, in one common form.

import { createRequire } from 'node:module';
import { ChunkedState, ChunkPhase, decodeChunked } from '../../core/http1/chunked.ts';
import { parseErrorName } from '../../core/http1/errors.ts';
import { findHeadEnd } from '../../core/http1/head-scan.ts';
import type { HeaderTable } from '../../core/http1/header-table.ts';
import { Method, type ParserLimits, RequestHead, ResponseHead } from '../../core/http1/message.ts';
import { parseRequestHead } from '../../core/http1/request-parser.ts';
import { parseResponseHead } from '../../core/http1/response-parser.ts';

export type MessageKind = 'request' | 'response';

/** One message as a reader saw it. Text is latin1, so that it stands for bytes. */
export interface SeenMessage {
  /** "METHOD target" or "status reason". */
  start: string;
  version: string;
  /** "name: value" in order. */
  fields: string[];
  keepAlive: boolean;
  body: string;
  trailers: string[];
  complete: boolean;
}

/** What a reader saw of a stream. */
export interface Reading {
  messages: SeenMessage[];
  /** 'more' (wants more bytes), 'stop' (what follows is not HTTP/1 or not wanted), or an error name. */
  end: string;
}

const limits: ParserLimits = { headBytesMax: 65_536, headerCountMax: 100, uriBytesMax: 8192 };
const TRAILER_BYTES_MAX = 8192;

const ARENA_BYTES = 64 * 1024;
const arena = new Uint8Array(ARENA_BYTES);
const requestHead = new RequestHead();
const responseHead = new ResponseHead();
const chunkedState = new ChunkedState();

function latin1(memory: Uint8Array, offset: number, length: number): string {
  return Buffer.from(memory.buffer, memory.byteOffset + offset, length).toString('latin1');
}

function tableFields(table: HeaderTable): string[] {
  const fields: string[] = [];
  for (let i = 0; i < table.count; i++) {
    const name = latin1(arena, table.nameOffset(i), table.nameLength(i));
    fields.push(`${name}: ${latin1(arena, table.valueOffset(i), table.valueLength(i))}`);
  }
  return fields;
}

/**
 * Reads a stream with our parsers as a connection would, arriving in `pieces`. Before every parse
 * the pending bytes are copied to another place in the arena and surrounded by `poison`.
 */
export function readWithOurs(kind: MessageKind, input: Uint8Array, pieces: readonly number[], poison: number): Reading {
  const messages: SeenMessage[] = [];
  let pending: Uint8Array = new Uint8Array(0);
  let scanned = 0;
  let message: SeenMessage | null = null;
  let bodyLeft = 0;
  let place = 64;

  /** Puts the pending bytes into the arena and returns their offset. */
  function expose(): number {
    place = 64 + ((place * 31 + 17) % 1024);
    arena.fill(poison, place - 64, place);
    arena.set(pending, place);
    arena.fill(poison, place + pending.length, place + pending.length + 64);
    return place;
  }

  /** Parses a head if one is there: an end, or null to go on. */
  function head(): string | null {
    const at = expose();
    if (scanned > 0) {
      const scanEnd = findHeadEnd(arena, at, pending.length, at + scanned);
      if (scanEnd < 0) {
        scanned = pending.length;
        return 'more';
      }
    }
    const isRequest = kind === 'request';
    const result = isRequest
      ? parseRequestHead(arena, at, pending.length, limits, requestHead)
      : parseResponseHead(arena, at, pending.length, limits, responseHead);
    if (result < 0) return parseErrorName(-result);
    if (result === 0) {
      if (scanned > 0) return 'a complete head wants more bytes';
      scanned = findHeadEnd(arena, at, pending.length, at) < 0 ? pending.length : -1;
      return scanned < 0 ? 'a complete head wants more bytes' : 'more';
    }
    scanned = 0;
    const parsed = isRequest ? requestHead : responseHead;
    const start = isRequest
      ? `${latin1(arena, requestHead.methodOffset, requestHead.methodLength)} ${latin1(arena, requestHead.targetOffset, requestHead.targetLength)}`
      : `${responseHead.status} ${latin1(arena, responseHead.reasonOffset, responseHead.reasonLength)}`;
    message = {
      start,
      version: `1.${parsed.versionMinor}`,
      fields: tableFields(parsed.headers),
      keepAlive: parsed.keepAlive,
      body: '',
      trailers: [],
      complete: false,
    };
    messages.push(message);
    pending = pending.slice(result);
    if (isRequest && (requestHead.method === Method.CONNECT || parsed.upgradeField >= 0)) return 'stop';
    const { status } = responseHead;
    if (!isRequest && status === 101) return 'stop';
    if (!isRequest && (status < 200 || status === 204 || status === 304)) bodyLeft = 0;
    else if (parsed.chunked) {
      bodyLeft = -1;
      chunkedState.reset();
    } else if (parsed.contentLength >= 0) bodyLeft = parsed.contentLength;
    else bodyLeft = isRequest ? 0 : Number.POSITIVE_INFINITY;
    return null;
  }

  /** Takes body bytes: an end, or null when the message is complete. */
  function body(current: SeenMessage): string | null {
    if (bodyLeft >= 0) {
      const size = Math.min(bodyLeft, pending.length);
      current.body += latin1(pending, 0, size);
      pending = pending.slice(size);
      bodyLeft -= size;
      return bodyLeft === 0 ? null : 'more';
    }
    const at = expose();
    const result = decodeChunked(arena, at, pending.length, chunkedState, TRAILER_BYTES_MAX);
    if (result < 0) return parseErrorName(-result);
    current.body += latin1(arena, chunkedState.payloadOffset, chunkedState.payloadLength);
    pending = pending.slice(chunkedState.consumed);
    if (chunkedState.phase !== ChunkPhase.DONE) return 'more';
    current.trailers = tableFields(chunkedState.trailers);
    return null;
  }

  let at = 0;
  for (const size of pieces) {
    pending = Buffer.concat([pending, input.subarray(at, at + size)]);
    at += size;
    for (;;) {
      let end: string | null = null;
      if (message === null) {
        if (pending.length === 0) break;
        end = head();
      }
      const current = message as SeenMessage | null;
      if (end === null && current !== null) {
        end = body(current);
        if (end === null) {
          current.complete = true;
          message = null;
          if (!current.keepAlive) end = 'stop';
        }
      }
      if (end === 'more') break;
      if (end !== null) {
        // How much of a body came before its error depends on the pieces.
        if (end !== 'stop' && current !== null && !current.complete) current.body = '';
        return { messages, end };
      }
    }
  }
  // A connection that ends here would still be told what is wrong with an unfinished head.
  if (message === null && scanned > 0) {
    scanned = 0;
    const end = head();
    if (end !== null) return { messages, end };
  }
  return { messages, end: 'more' };
}

/** The part of Node's internal parser interface that both other readers have. */
interface NodeParser {
  initialize(type: unknown, resource: object, maxHeaderSize?: number, lenientFlags?: number): void;
  execute(data: Buffer): number | (Error & { code?: string });
  [callback: number]: unknown;
}
interface NodeParserClass {
  new (): NodeParser;
  REQUEST: unknown;
  RESPONSE: unknown;
  kOnHeaders: number;
  kOnHeadersComplete: number;
  kOnBody: number;
  kOnMessageComplete: number;
}

const require = createRequire(import.meta.url);
const llhttp = require('node:_http_common') as { HTTPParser: NodeParserClass; methods: string[] };
const parserJs = require('http-parser-js') as {
  HTTPParser: NodeParserClass & { methods: string[]; encoding: string; kOnExecute: number };
};
parserJs.HTTPParser.encoding = 'latin1';
// Reading this property switches http-parser-js to the callback arguments of current Node.
void parserJs.HTTPParser.kOnExecute;

function pairs(list: readonly string[]): string[] {
  const fields: string[] = [];
  for (let i = 0; i < list.length; i += 2) fields.push(`${list[i]}: ${list[i + 1]}`);
  return fields;
}

function readWithNodeParser(Parser: NodeParserClass, methods: string[], kind: MessageKind, input: Buffer): Reading {
  const messages: SeenMessage[] = [];
  let current: SeenMessage | null = null;
  let early: string[] = [];
  let stopped = false;
  const parser = new Parser();
  parser.initialize(kind === 'request' ? Parser.REQUEST : Parser.RESPONSE, {}, 65_536, 0);
  let earlyUrl = '';
  parser[Parser.kOnHeaders] = (fields: string[], url: string) => {
    if (current === null) {
      early.push(...pairs(fields));
      earlyUrl += url;
    } else {
      current.trailers.push(...pairs(fields));
    }
  };
  parser[Parser.kOnHeadersComplete] = (
    major: number,
    minor: number,
    fields: string[] | undefined,
    method: number,
    url: string | undefined,
    status: number,
    reason: string,
    upgrade: boolean,
    keepAlive: boolean,
  ) => {
    // llhttp numbers QUERY, its newest method, apart from Node's list of names.
    current = {
      start: kind === 'request' ? `${methods[method] ?? 'QUERY'} ${url ?? earlyUrl}` : `${status} ${reason}`,
      version: `${major}.${minor}`,
      fields: [...early, ...pairs(fields ?? [])],
      keepAlive,
      body: '',
      trailers: [],
      complete: false,
    };
    early = [];
    earlyUrl = '';
    if (!stopped) messages.push(current);
    if (upgrade) stopped = true;
    return upgrade ? 2 : 0;
  };
  parser[Parser.kOnBody] = (chunk: Buffer, offset?: number, length?: number) => {
    // http-parser-js takes "-5" for a chunk size and then goes round for ever; this ends it.
    if (length !== undefined && length < 0) throw new Error('negative body length');
    const part = offset === undefined ? chunk : chunk.subarray(offset, offset + (length ?? 0));
    if (current !== null) current.body += part.toString('latin1');
  };
  parser[Parser.kOnMessageComplete] = () => {
    if (current !== null) current.complete = true;
    current = null;
  };
  let result: number | (Error & { code?: string });
  try {
    result = parser.execute(input);
  } catch (error) {
    result = error as Error;
  }
  if (stopped) return { messages, end: 'stop' };
  if (typeof result === 'number') return { messages, end: 'more' };
  return { messages, end: result.code ?? result.message };
}

/** Reads a stream with llhttp in its strict (default) mode. */
export function readWithLlhttp(kind: MessageKind, input: Buffer): Reading {
  return readWithNodeParser(llhttp.HTTPParser, llhttp.methods, kind, input);
}

/** Reads a stream with http-parser-js. */
export function readWithParserJs(kind: MessageKind, input: Buffer): Reading {
  return readWithNodeParser(parserJs.HTTPParser, parserJs.HTTPParser.methods, kind, input);
}

/** Methods that llhttp knows; it refuses all others. */
export const llhttpMethods: ReadonlySet<string> = new Set(llhttp.methods);
/** Methods that http-parser-js knows. */
export const parserJsMethods: ReadonlySet<string> = new Set(parserJs.HTTPParser.methods);
