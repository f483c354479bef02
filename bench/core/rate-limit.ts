// Micro-benchmark of local rate limits: nanoseconds per check on the packet path.
//
//   scripts/node bench/core/rate-limit.ts
//
// "bucket" is the check alone: one compare-and-swap on shared memory. "request" is all that a rule with one limit
// costs a request, its fields in the response aside: reading the key out of the head, hashing, checking, counting.
// Keys are among 50,000 clients, so that buckets do not lie in the cache of the processor; "refused" is what is
// over the limit. Prints the best and the median of many short rounds, and bytes that a check allocates: the figures to
// keep are at most 300 ns, and none.

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

/** As many requests as are asked for pass, or next to none. */
const PASSING = 1_000_000;
const REFUSED = 1;

function settingsOf(name: string, requests: number, key: RateLimitKeyPart[]): RateLimitSettings {
  return {
    name,
    requests,
    periodMs: 1000,
    burst: requests === PASSING ? 1000 : 1,
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
  const bytes: number[] = [];
  for (let i = 0; i < ROUNDS; i++) {
    const { heapUsed } = process.memoryUsage();
    const start = process.hrtime.bigint();
    round();
    times.push(Number(process.hrtime.bigint() - start) / CHECKS);
    bytes.push((process.memoryUsage().heapUsed - heapUsed) / CHECKS);
  }
  bytes.sort((a, b) => a - b);
  times.sort((a, b) => a - b);
  const best = times[0]!.toFixed(0).padStart(5);
  const median = times[ROUNDS >> 1]!.toFixed(0).padStart(5);
  const allocated = bytes[ROUNDS >> 1]!.toFixed(1);
  console.log(`${name.padEnd(45)} best ${best} ns   median ${median} ns   ${allocated} bytes`);
}

const random = (words: Int32Array<ArrayBuffer>): void => void crypto.getRandomValues(words);
/** A millisecond for a thousand checks: in a field, as in the reactor. */
const clock = { nowMs: 1_000_000.5 };

for (const [name, key] of [
  ['bucket, no key', []],
  ['bucket, by key', [{ type: 'path' }]],
] as [string, RateLimitKeyPart[]][]) {
  const settings = settingsOf('bench', PASSING, key);
  const table = new LimitTable(createLimitTable(settings, 1, clock.nowMs, random), settings, 0);
  let client = 0;
  measure(name, () => {
    for (let i = 0; i < CHECKS; i++) {
      client = (client + 7919) % CLIENTS;
      table.take(Math.imul(client, 0x9e37_79b1), client + 1, clock.nowMs);
      clock.nowMs += 0.001;
    }
  });
}

const head = new RequestHead();
const memory = new Uint8Array(16 * 1024);
const claims = {
  iss: 'https://login.example.com/realms/shop',
  aud: ['shop', 'account'],
  exp: 1_800_000_000,
  iat: 1_799_999_700,
  scope: 'openid profile email orders:read',
  sub: '5f0c1a52-7c1e-4a0b-9c57-0d6b1f0f4a11',
  name: 'Ada Example',
};
const text = [
  'GET /products/search?category=shoes HTTP/1.1',
  'host: shop.example.com',
  'user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
  'accept: */*',
  'accept-language: en-GB,en;q=0.5',
  'accept-encoding: gzip, deflate, br',
  'x-api-key: 0123456789abcdef0123456789abcdef',
  'cookie: session=0123456789abcdef0123456789abcdef; theme=dark',
  `authorization: Bearer h.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.s`,
  '',
  '',
].join('\r\n');
memory.set(new TextEncoder().encode(text), 1024);
const limits = { headBytesMax: 32_768, headerCountMax: 100, uriBytesMax: 8192 };
if (parseRequestHead(memory, 1024, text.length, limits, head) <= 0) throw new Error('the head is not valid');
const keyAt = 1024 + text.indexOf('0123456789abcdef');

const reactor = { memory, view: new DataView(memory.buffer), nowMs: clock.nowMs } as unknown as Reactor;
const applied = new RateLimits(reactor);
const exchange = new Exchange();
const peer = { peerFamily: 2, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };
exchange.downstream = peer as unknown as Exchange['downstream'];
exchange.runtime = { http: { trustedHops: 0 } } as unknown as Exchange['runtime'];

const address: RateLimitKeyPart = { type: 'sourceAddress' };
const path: RateLimitKeyPart = { type: 'path' };
const host: RateLimitKeyPart = { type: 'header', name: 'host' };
const subject: RateLimitKeyPart = { type: 'jwtClaim', claim: 'sub' };
const apiKey: RateLimitKeyPart = { type: 'header', name: 'x-api-key' };

for (const [name, requests, key] of [
  ['request, no key', PASSING, []],
  ['request, by sourceAddress', PASSING, [address]],
  ['request, by path', PASSING, [path]],
  ['request, by host', PASSING, [host]],
  ['request, by header (32 bytes)', PASSING, [apiKey]],
  ['request, by path and sourceAddress', PASSING, [path, address]],
  ['request, by header, path and sourceAddress', PASSING, [apiKey, path, address]],
  ['request, by jwtClaim (215 bytes of payload)', PASSING, [subject]],
  ['request, no key, refused', REFUSED, []],
  ['request, by sourceAddress, refused', REFUSED, [address]],
] as [string, number, RateLimitKeyPart[]][]) {
  const settings = settingsOf('bench', requests, key);
  const buffer = createLimitTable(settings, 1, reactor.nowMs, random);
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
