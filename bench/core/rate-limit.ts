// Micro-benchmark of local rate limits: nanoseconds per check on the packet path.
//
//   scripts/node bench/core/rate-limit.ts
//
// "bucket" is the check alone: one compare-and-swap on shared memory. "request" is all that a rule with one limit
// costs a request, its fields in the response aside: reading the key out of the head, hashing, checking, counting.
// Keys are among 50,000 clients, so that buckets do not lie in the cache of the processor. Prints the best
// and the median of many short rounds; the figure to keep is at most 300 ns.

import { Exchange } from '../../core/exchange/exchange.ts';
import { RateLimits } from '../../core/exchange/rate-limits.ts';
import { type RuleLimits, ruleLimits } from '../../core/exchange/rule-limits.ts';
import { RequestHead } from '../../core/http1/message.ts';
import { parseRequestHead } from '../../core/http1/request-parser.ts';
import type { Reactor } from '../../core/io/reactor.ts';
import type { RateLimitKeyPart, RateLimitSettings } from '../../core/limits/limit-settings.ts';
import { createLimitTable, LimitTable } from '../../core/limits/limit-table.ts';

const ROUNDS = 200;
const CHECKS = 10_000;
const CLIENTS = 50_000;

function settingsOf(name: string, key: RateLimitKeyPart[]): RateLimitSettings {
  return {
    name,
    requests: 1000,
    periodMs: 1000,
    burst: 1000,
    key,
    keysMax: 65_536,
    global: false,
    dryRun: false,
    headers: true,
  };
}

/** Prints nanoseconds per check of `round`, which does CHECKS of them. */
function measure(name: string, round: () => void): void {
  for (let i = 0; i < 20; i++) round();
  const times: number[] = [];
  for (let i = 0; i < ROUNDS; i++) {
    const start = process.hrtime.bigint();
    round();
    times.push(Number(process.hrtime.bigint() - start) / CHECKS);
  }
  times.sort((a, b) => a - b);
  const best = times[0]!.toFixed(0).padStart(5);
  const median = times[ROUNDS >> 1]!.toFixed(0).padStart(5);
  console.log(`${name.padEnd(40)} best ${best} ns   median ${median} ns`);
}

const random = (words: Int32Array<ArrayBuffer>): void => void crypto.getRandomValues(words);
let nowMs = 1_000_000;

for (const [name, key] of [
  ['bucket, no key', []],
  ['bucket, by key', [{ type: 'path' }]],
] as [string, RateLimitKeyPart[]][]) {
  const settings = settingsOf('bench', key);
  const table = new LimitTable(createLimitTable(settings, 1, nowMs, random), settings, 0);
  let client = 0;
  measure(name, () => {
    for (let i = 0; i < CHECKS; i++) {
      client = (client + 7919) % CLIENTS;
      table.take(Math.imul(client, 0x9e37_79b1), client + 1, nowMs);
      nowMs += 0.001;
    }
  });
}

const head = new RequestHead();
const memory = new Uint8Array(16 * 1024);
const text = [
  'GET /products/search?category=shoes HTTP/1.1',
  'host: shop.example.com',
  'user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
  'accept: */*',
  'accept-language: en-GB,en;q=0.5',
  'accept-encoding: gzip, deflate, br',
  'x-api-key: 0123456789abcdef0123456789abcdef',
  'cookie: session=0123456789abcdef0123456789abcdef; theme=dark',
  '',
  '',
].join('\r\n');
memory.set(new TextEncoder().encode(text), 1024);
const limits = { headBytesMax: 32_768, headerCountMax: 100, uriBytesMax: 8192 };
if (parseRequestHead(memory, 1024, text.length, limits, head) <= 0) throw new Error('the head is not valid');
const keyAt = 1024 + text.indexOf('0123456789abcdef');

const reactor = { memory, nowMs } as unknown as Reactor;
const applied = new RateLimits(reactor);
const exchange = new Exchange();
const peer = { peerFamily: 2, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };
exchange.downstream = peer as unknown as Exchange['downstream'];
exchange.runtime = { http: { trustedHops: 0 } } as unknown as Exchange['runtime'];

for (const [name, key] of [
  ['request, no key', []],
  ['request, by sourceAddress', [{ type: 'sourceAddress' }]],
  ['request, by header (32 bytes)', [{ type: 'header', name: 'x-api-key' }]],
  ['request, by path and sourceAddress', [{ type: 'path' }, { type: 'sourceAddress' }]],
] as [string, RateLimitKeyPart[]][]) {
  const settings = settingsOf('bench', key);
  const buffer = createLimitTable(settings, 1, nowMs, random);
  const rule: RuleLimits = ruleLimits([settings], [{ name: 'bench', id: 0, buffer }], 0)!;
  exchange.policy = { limits: rule } as unknown as Exchange['policy'];
  let client = 0;
  measure(name, () => {
    for (let i = 0; i < CHECKS; i++) {
      client = (client + 7919) % CLIENTS;
      peer.peer0 = client;
      memory[keyAt] = client & 0xff;
      memory[keyAt + 1] = client >> 8;
      exchange.limitState = 0;
      applied.apply(exchange, head, false, 0);
      reactor.nowMs += 0.001;
    }
  });
}
