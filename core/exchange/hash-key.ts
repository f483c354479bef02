// The key by which a consistent-hash policy chooses: a header field, a cookie, the client's address or a
// query parameter, whichever of those that the backend names comes first and is there.
//
// The hash is worked out while the request head is at hand, and kept in the exchange for retries.
// Values are hashed as they stand: nothing is decoded, and the lines of a repeated field count in
// their order. Owned by one worker. Hot module: no allocation per request.
// Source: Envoy, route hash policies (header, cookie, connection_properties, query_parameter).

import { Family } from '../ffi/sockaddr.ts';
import { HeaderId } from '../http1/header-ids.ts';
import type { RequestHead } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';
import { hashBytes, hashWord, mix } from '../lb/hash.ts';
import type { BalancerSettings, HashKeySettings } from '../lb/settings.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { readClientOfHead } from './forwarded-client.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { COOKIE, HOST } = HeaderId;
const { INET6 } = Family;

const encoder = new TextEncoder();

/** Kinds of keys. */
const Kind = { HEADER: 0, COOKIE: 1, SOURCE_ADDRESS: 2, QUERY_PARAM: 3 } as const;
const { HEADER, QUERY_PARAM } = Kind;
const KIND_COOKIE = Kind.COOKIE;
const { SOURCE_ADDRESS } = Kind;

/** One place where a key may be. */
export class HashKey {
  readonly kind: number;
  /** Of the field (lower case), the cookie or the parameter. */
  readonly name: Uint8Array;
  /** Of a cookie: whether it is made when it is missing. */
  readonly makes: boolean;
  /** `set-cookie: name=`, and what follows the value, with the line end. */
  readonly cookieStart: Uint8Array;
  readonly cookieEnd: Uint8Array;

  constructor(settings: HashKeySettings) {
    const { type } = settings;
    this.kind =
      type === 'header'
        ? HEADER
        : type === 'cookie'
          ? KIND_COOKIE
          : type === 'queryParam'
            ? QUERY_PARAM
            : SOURCE_ADDRESS;
    this.name = encoder.encode(type === 'sourceAddress' ? '' : settings.name);
    const cookie = type === 'cookie' ? settings : null;
    this.makes = cookie !== null && cookie.ttlS !== null;
    this.cookieStart = encoder.encode(`set-cookie: ${cookie?.name ?? ''}=`);
    const maxAge = cookie?.ttlS ? `; Max-Age=${cookie.ttlS}` : '';
    const path = cookie === null || cookie.path === '' ? '' : `; Path=${cookie.path}`;
    this.cookieEnd = encoder.encode(`${path}${maxAge}; HttpOnly\r\n`);
  }
}

/** The places in which a backend's policy looks for a key, the first one first. */
export class HashKeys {
  readonly keys: readonly HashKey[];
  /** The one whose cookie is made for clients that have none of the keys; null: none is. */
  readonly made: HashKey | null;

  constructor(settings: readonly HashKeySettings[]) {
    this.keys = settings.map((one) => new HashKey(one));
    this.made = this.keys.find(({ makes }) => makes) ?? null;
  }
}

/** The keys of a backend; null when its policy does not use any. */
export function hashKeysOf(settings: BalancerSettings | null): HashKeys | null {
  return settings === null || settings.hashOn.length === 0 ? null : new HashKeys(settings.hashOn);
}

/** Looks for a key and notes its hash in the exchange, and a cookie that the client is to get (`affinityHigh`). `head` is null for a connection that is passed on unread. */
export function readHashKey(context: ProxyContext, exchange: Exchange, keys: HashKeys, head: RequestHead | null): void {
  exchange.hash = 0;
  exchange.hashed = false;
  for (let i = 0; i < keys.keys.length && !exchange.hashed; i++) {
    const key = keys.keys[i];
    if (key.kind === SOURCE_ADDRESS) {
      exchange.hash = hashAddress(clientOf(context, exchange, head));
      exchange.hashed = true;
    } else if (head !== null) {
      if (key.kind === HEADER) hashHeader(context.memory, head, key.name, exchange);
      else if (key.kind === KIND_COOKIE) hashCookie(context, head, key, exchange);
      else hashParameter(context.memory, head, key.name, exchange);
    }
  }
}

function hashHeader(memory: Uint8Array, head: RequestHead, name: Uint8Array, exchange: Exchange): void {
  const { headers } = head;
  for (let field = 0; field < headers.count; field++) {
    if (!valueEquals(memory, headers.nameOffset(field), headers.nameLength(field), name)) continue;
    // In HTTP/2 there is no Host, but an authority, which the parser has put in its place.
    if (headers.id(field) === HOST) break;
    found(exchange, hashBytes(memory, headers.valueOffset(field), headers.valueLength(field), exchange.hash));
  }
  if (!exchange.hashed && head.authorityLength > 0 && valueEquals(hostName, 0, hostName.length, name)) {
    found(exchange, hashBytes(memory, head.authorityOffset, head.authorityLength, 0));
  }
}

const hostName = encoder.encode('host');

function found(exchange: Exchange, hash: number): void {
  exchange.hash = hash;
  exchange.hashed = true;
}

function hashCookie(context: ProxyContext, head: RequestHead, key: HashKey, exchange: Exchange): void {
  const { memory } = context;
  if (findCookie(memory, head, key.name, cookieValue)) {
    found(exchange, hashBytes(memory, cookieValue.offset, cookieValue.length, 0));
    return;
  }
  if (!key.makes) return;
  // Sixteen digits; made once, so that a retry or another backend does not change it.
  if (exchange.affinityHigh === 0 && exchange.affinityLow === 0) {
    exchange.affinityHigh = context.ids.next();
    exchange.affinityLow = context.ids.next() | 1;
  }
  const at = context.reactor.arena.scratchOffset;
  putHex64(memory, at, exchange.affinityHigh, exchange.affinityLow);
  found(exchange, hashBytes(memory, at, 16, 0));
}

function hashParameter(memory: Uint8Array, head: RequestHead, name: Uint8Array, exchange: Exchange): void {
  const end = head.pathOffset + head.pathLength;
  let at = head.pathOffset + head.pathOnlyLength + 1;
  while (at < end) {
    let next = at;
    while (next < end && memory[next] !== AMPERSAND) next++;
    const valueAt = at + name.length + 1;
    if (valueAt <= next && memory[valueAt - 1] === EQUALS && bytesEqual(memory, at, name)) {
      found(exchange, hashBytes(memory, valueAt, next - valueAt, 0));
      return;
    }
    at = next + 1;
  }
}

const AMPERSAND = 38;
const EQUALS = 61;
const SEMICOLON = 59;

/** Hash of an address; an IPv4 one has the same in both notations (RFC 4291 §2.5.5.2). */
function hashAddress({ peerFamily, peer0, peer1, peer2, peer3 }: PeerAddress): number {
  if (peerFamily !== INET6) return mix(hashWord(0, peer0));
  if (peer0 === 0 && peer1 === 0 && peer2 === 0xffff) return mix(hashWord(0, peer3));
  return mix(hashWord(hashWord(hashWord(hashWord(0, peer0), peer1), peer2), peer3));
}

/** The client's address: behind trusted proxies the one that the outermost of them has noted. */
function clientOf(context: ProxyContext, exchange: Exchange, head: RequestHead | null): PeerAddress {
  const peer = exchange.downstream!;
  const { trustedHops } = context.runtime.http;
  return head === null || trustedHops === 0 ? peer : readClientOfHead(context.memory, head.headers, trustedHops, peer);
}

// -- cookies ---------------------------------------------------------------------------

/** A part of memory. */
export class Range {
  offset = 0;
  length = 0;
}

const cookieValue = new Range();

/** Finds the first cookie of a name (RFC 6265 §4.2.1) and says where its value lies, without quotes. */
export function findCookie(memory: Uint8Array, head: RequestHead, name: Uint8Array, value: Range): boolean {
  const { headers } = head;
  for (let field = headers.find(COOKIE); field >= 0; field = headers.find(COOKIE, field + 1)) {
    let at = headers.valueOffset(field);
    const end = at + headers.valueLength(field);
    while (at < end) {
      while (at < end && (memory[at] === 32 || memory[at] === 9)) at++;
      let next = at;
      while (next < end && memory[next] !== SEMICOLON) next++;
      const valueAt = at + name.length + 1;
      if (valueAt <= next && memory[valueAt - 1] === EQUALS && bytesEqual(memory, at, name)) {
        let valueEnd = next;
        while (valueEnd > valueAt && (memory[valueEnd - 1] === 32 || memory[valueEnd - 1] === 9)) valueEnd--;
        const quoted = valueEnd - valueAt >= 2 && memory[valueAt] === 34 && memory[valueEnd - 1] === 34;
        value.offset = quoted ? valueAt + 1 : valueAt;
        value.length = valueEnd - valueAt - (quoted ? 2 : 0);
        return true;
      }
      at = next + 1;
    }
  }
  return false;
}

function bytesEqual(memory: Uint8Array, offset: number, text: Uint8Array): boolean {
  for (let i = 0; i < text.length; i++) if (memory[offset + i] !== text[i]) return false;
  return true;
}

/** Writes two words as sixteen lower-case hexadecimal digits. Returns the offset after them. */
export function putHex64(memory: Uint8Array, at: number, high: number, low: number): number {
  return putHex32(memory, putHex32(memory, at, high), low);
}

/** Writes a word as eight lower-case hexadecimal digits. Returns the offset after them. */
export function putHex32(memory: Uint8Array, at: number, word: number): number {
  for (let i = 0; i < 8; i++) {
    const digit = (word >>> (28 - 4 * i)) & 15;
    memory[at + i] = digit < 10 ? 48 + digit : 87 + digit;
  }
  return at + 8;
}

/** Writes the Set-Cookie line of a cookie that has been made for the client of this exchange. */
export function putAffinityLine(memory: Uint8Array, at: number, exchange: Exchange): number {
  const made = exchange.backend < 0 ? null : (exchange.runtime!.backends[exchange.backend].hashKeys?.made ?? null);
  if (made === null) return at;
  let end = putAll(memory, at, made.cookieStart);
  end = putHex64(memory, end, exchange.affinityHigh, exchange.affinityLow);
  return putAll(memory, end, made.cookieEnd);
}

/** Copies all bytes. Returns the offset after them. */
export function putAll(memory: Uint8Array, at: number, bytes: Uint8Array): number {
  for (let i = 0; i < bytes.length; i++) memory[at + i] = bytes[i];
  return at + bytes.length;
}
