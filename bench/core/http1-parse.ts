// Micro benchmark: nanoseconds per HTTP/1 head parsed, for a browser-like GET and an ordinary response.
// Run: scripts/node bench/core/http1-parse.ts
// Heads lie at changing offsets of a large block, as they do in a worker's arena. Prints the best and the
// median of many short rounds; the best is the figure to compare, the median shows the noise.

import { findHeadEnd } from '../../core/http1/head-scan.ts';
import { type ParserLimits, RequestHead, ResponseHead } from '../../core/http1/message.ts';
import { parseRequestHead } from '../../core/http1/request-parser.ts';
import { parseResponseHead } from '../../core/http1/response-parser.ts';

const REQUEST = [
  'GET /products/search?category=shoes&page=2 HTTP/1.1',
  'Host: shop.example.com',
  'User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
  'Accept: text/html,application/xhtml+xml,*/*;q=0.8',
  'Accept-Language: en-GB,en;q=0.5',
  'Accept-Encoding: gzip, deflate, br',
  'Referer: https://shop.example.com/',
  'Connection: keep-alive',
  'Cookie: session=0123456789abcdef',
  '',
  '',
].join('\r\n');

const RESPONSE = [
  'HTTP/1.1 200 OK',
  'Server: nginx/1.22.1',
  'Date: Mon, 01 Jun 2026 10:00:00 GMT',
  'Content-Type: application/json',
  'Content-Length: 128',
  'Connection: keep-alive',
  'Cache-Control: max-age=60',
  'ETag: "5f3c1a2b-80"',
  '',
  '',
].join('\r\n');

const SLOTS = 256;
const SLOT_BYTES = 4096;
const ROUNDS = 300;
const PARSES_PER_ROUND = 4_000;

const memory = new Uint8Array(new ArrayBuffer(SLOTS * SLOT_BYTES));
const limits: ParserLimits = { headBytesMax: 16_384, headerCountMax: 100, uriBytesMax: 8192 };
const request = new RequestHead();
const response = new ResponseHead();

/** Puts a copy of `text` at the start of every slot and returns its length in bytes. */
function fill(text: string): number {
  const bytes = Buffer.from(text, 'latin1');
  for (let slot = 0; slot < SLOTS; slot++) memory.set(bytes, slot * SLOT_BYTES);
  return bytes.length;
}

/** Measures `parse` on `text` and prints one line. */
function measure(name: string, text: string, parse: (offset: number, length: number) => number): void {
  const length = fill(text);
  const rounds: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.hrtime.bigint();
    let total = 0;
    for (let i = 0; i < PARSES_PER_ROUND; i++) total += parse((i % SLOTS) * SLOT_BYTES, length);
    const elapsedNs = Number(process.hrtime.bigint() - start);
    if (total !== length * PARSES_PER_ROUND) throw new Error(`${name}: a parse failed`);
    rounds.push(elapsedNs / PARSES_PER_ROUND);
  }
  rounds.sort((a, b) => a - b);
  const best = rounds[0].toFixed(0);
  const median = rounds[ROUNDS >> 1].toFixed(0);
  console.log(`${name}: ${length} bytes, best ${best} ns, median ${median} ns`);
}

measure('request head', REQUEST, (offset, length) => parseRequestHead(memory, offset, length, limits, request));
measure('response head', RESPONSE, (offset, length) => parseResponseHead(memory, offset, length, limits, response));
measure('end of head', REQUEST, (offset, length) => findHeadEnd(memory, offset, length, offset) - offset);
