// Session persistence: the response names the endpoint that served it, in a cookie or a header field, and
// requests that bring the name back go to the same endpoint for as long as it can be used.
//
// The name is a hash of backend and address, encrypted under the rule's secret: it stays true while endpoints come and
// go, over reloads, and on every gateway with the same configuration, and does not tell the address. Since it can be
// decrypted, all rules share one table of hashes of a backend, which is carried over from snapshot to snapshot. Where a session
// has a timeout, the times of its beginning and its last use stand in the value as well: nothing is
// remembered here.
//
//   0f3a5c7e9b1d2468                      without timeouts
//   0f3a5c7e9b1d2468-6920a1b2-6920a1ff    with: seconds since 1970
//
// Owned by one worker. Hot module: no allocation per request.
// Spec: Gateway API SessionPersistence (GEP-1619), RFC 6265 §4.1 (Set-Cookie).

import { createHmac } from 'node:crypto';
import type { RequestHead } from '../http1/message.ts';
import { putDecimal } from '../io/bytes.ts';
import type { Balancer } from '../lb/balancer.ts';
import type { SessionPersistenceSettings } from '../lb/settings.ts';
import { HASH_KEY_WORDS, KeyedHash } from '../telemetry/keyed-hash.ts';
import type { BackendSettings, EndpointSettings } from '../workers/snapshot.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { findCookie, putAll, putHex32, putHex64, Range } from './hash-key.ts';
import type { BackendRuntime } from './runtime.ts';
import { Speck } from './speck.ts';

const encoder = new TextEncoder();

const NAME_DIGITS = 16;
const TIMES_DIGITS = 34;
const DASH = 45;
/** Clocks of gateways may differ by so much. */
const CLOCK_SKEW_S = 60;

const lineEnd = encoder.encode('\r\n');
const maxAge = encoder.encode('; Max-Age=');

/** Two words that stand for an endpoint of a backend, wherever it stands in the list; no secret. */
const endpointHash = new KeyedHash(new Int32Array(HASH_KEY_WORDS));

/** Endpoints of a backend by their hashes, for the names under all secrets. */
class EndpointHashes {
  readonly high: Int32Array;
  readonly low: Int32Array;
  readonly endpoints: readonly EndpointSettings[];
  /** Endpoint + 1 by the lowest bits of `low`, with the next free place for those that meet. */
  private readonly places: Int32Array;
  private readonly mask: number;

  /** Endpoints that `known` has too are taken over: hashing all of thousands would hold up a worker. */
  constructor({ name, endpoints }: BackendSettings, known: EndpointHashes | null) {
    const count = endpoints.length;
    this.high = new Int32Array(count);
    this.low = new Int32Array(count);
    this.endpoints = endpoints;
    const size = 2 ** Math.ceil(Math.log2(2 * count + 2));
    this.places = new Int32Array(size);
    this.mask = size - 1;
    let byAddress: Map<string, number> | null = null;
    for (let endpoint = 0; endpoint < count; endpoint++) {
      const { address } = endpoints[endpoint];
      let before = -1;
      if (known !== null) {
        const { endpoints: old } = known;
        if (endpoint < old.length && old[endpoint].address === address) {
          before = endpoint;
        } else {
          byAddress ??= new Map(old.map((one, index) => [one.address, index]));
          before = byAddress.get(address) ?? -1;
        }
      }
      if (before < 0) {
        const text = encoder.encode(`${name}\n${address}`);
        endpointHash.hash(text, 0, text.length);
      }
      this.high[endpoint] = before < 0 ? endpointHash.high : known!.high[before];
      this.low[endpoint] = before < 0 ? endpointHash.low : known!.low[before];
      let place = this.low[endpoint] & this.mask;
      while (this.places[place] !== 0) place = (place + 1) & this.mask;
      this.places[place] = endpoint + 1;
    }
  }

  /** The endpoint with this hash, or -1. */
  find(high: number, low: number): number {
    const { places, mask } = this;
    for (let place = low & mask; places[place] !== 0; place = (place + 1) & mask) {
      const endpoint = places[place] - 1;
      if (this.low[endpoint] === low && this.high[endpoint] === high) return endpoint;
    }
    return -1;
  }
}

/** By balancer, which lives as long as the backend's endpoints stay as they are. */
const hashesOfBalancers = new WeakMap<Balancer, EndpointHashes>();
/** The last ones of each backend by name, for its next balancer; those that were made longest ago go first. */
const lastHashes = new Map<string, EndpointHashes>();
const LAST_HASHES_MAX = 1024;

function hashesOf({ balancer, settings }: BackendRuntime): EndpointHashes {
  let hashes = hashesOfBalancers.get(balancer);
  if (hashes === undefined) {
    hashes = new EndpointHashes(settings, lastHashes.get(settings.name) ?? null);
    hashesOfBalancers.set(balancer, hashes);
    lastHashes.delete(settings.name);
    lastHashes.set(settings.name, hashes);
    if (lastHashes.size > LAST_HASHES_MAX) lastHashes.delete(lastHashes.keys().next().value!);
  }
  return hashes;
}

/** Session persistence of a rule, prepared. */
export class SessionPersistence {
  readonly isCookie: boolean;
  readonly name: Uint8Array;
  readonly absoluteTimeoutS: number;
  readonly idleTimeoutS: number;
  /** Times are part of the value. */
  readonly timed: boolean;
  readonly permanent: boolean;
  /** What stands before the value and behind it; the line end apart. */
  readonly start: Uint8Array;
  readonly attributes: Uint8Array;
  readonly attributesSecure: Uint8Array;
  /** Makes names of hashes of endpoints, and back. */
  readonly cipher: Speck;

  constructor(settings: SessionPersistenceSettings) {
    const { name, path, sameSite } = settings;
    this.isCookie = settings.type === 'Cookie';
    this.name = encoder.encode(name);
    this.absoluteTimeoutS = settings.absoluteTimeoutS;
    this.idleTimeoutS = settings.idleTimeoutS;
    this.timed = this.absoluteTimeoutS > 0 || this.idleTimeoutS > 0;
    this.permanent = settings.permanent;
    const key = createHmac('sha256', settings.secret).update('session names').digest();
    this.cipher = new Speck(key.readUInt32LE(0), key.readUInt32LE(4), key.readUInt32LE(8), key.readUInt32LE(12));
    this.start = encoder.encode(this.isCookie ? `set-cookie: ${name}=` : `${name}: `);
    const attributes = this.isCookie ? `; Path=${path}; HttpOnly; SameSite=${sameSite}` : '';
    this.attributes = encoder.encode(attributes);
    this.attributesSecure = encoder.encode(this.isCookie ? `${attributes}; Secure` : '');
  }
}

const value = new Range();

/**
 * Chooses the backend and endpoint that the request's session belongs to, among those of its rule. Returns false,
 * with nothing chosen, when there is no session, it is over, or its endpoint is gone or cannot be used.
 * A session lasts even where the weight of its backend is 0 by now (GEP-1619, traffic splitting).
 */
export function resumeSession(
  context: ProxyContext,
  exchange: Exchange,
  head: RequestHead,
  session: SessionPersistence,
): boolean {
  const { memory } = context;
  if (!findValue(memory, head, session)) return false;
  const { offset } = value;
  if (value.length !== (session.timed ? TIMES_DIGITS : NAME_DIGITS)) return false;
  if (!isHex(memory, offset, NAME_DIGITS)) return false;
  const { cipher } = session;
  cipher.decrypt(readHex32(memory, offset), readHex32(memory, offset + 8));
  const { high, low } = cipher;
  let startS = 0;
  if (session.timed) {
    if (memory[offset + 16] !== DASH || memory[offset + 25] !== DASH) return false;
    if (!isHex(memory, offset + 17, 8) || !isHex(memory, offset + 26, 8)) return false;
    startS = readHex32(memory, offset + 17) >>> 0;
    const usedS = readHex32(memory, offset + 26) >>> 0;
    const nowS = Math.floor(context.reactor.wallMs / 1000);
    if (startS > nowS + CLOCK_SKEW_S || usedS > nowS + CLOCK_SKEW_S) return false;
    if (session.absoluteTimeoutS > 0 && nowS - startS >= session.absoluteTimeoutS) return false;
    if (session.idleTimeoutS > 0 && nowS - usedS >= session.idleTimeoutS) return false;
  }
  const runtime = exchange.runtime!;
  const { routes, backends } = runtime;
  const { rule } = exchange;
  const count = routes.backendRefCount(rule);
  for (let ref = 0; ref < count; ref++) {
    const index = runtime.backendFor(routes.backendRefIndex(rule, ref), exchange.downstream!.workload);
    const backend = backends[index];
    const endpoint = hashesOf(backend).find(high, low);
    if (endpoint < 0 || !backend.balancer.isUsable(endpoint)) continue;
    const refPolicy = runtime.refPolicyOf(rule, ref);
    if (refPolicy !== null && refPolicy.subset !== null && !backend.balancer.isInSubset(endpoint, refPolicy.subset))
      continue;
    exchange.backend = index;
    exchange.refPolicy = refPolicy;
    exchange.endpoint = endpoint;
    exchange.sessionBackend = index;
    exchange.sessionEndpoint = endpoint;
    exchange.sessionStartS = startS;
    return true;
  }
  return false;
}

/** Finds what the client has sent as its session, and says in `value` where it lies. */
function findValue(memory: Uint8Array, head: RequestHead, { isCookie, name }: SessionPersistence): boolean {
  if (isCookie) return findCookie(memory, head, name, value);
  const { headers } = head;
  for (let field = 0; field < headers.count; field++) {
    if (!valueEquals(memory, headers.nameOffset(field), headers.nameLength(field), name)) continue;
    value.offset = headers.valueOffset(field);
    value.length = headers.valueLength(field);
    return true;
  }
  return false;
}

/** Value of a hexadecimal digit in lower case; -1 for any other byte. */
function digitOf(byte: number): number {
  if (byte >= 48 && byte <= 57) return byte - 48;
  return byte >= 97 && byte <= 102 ? byte - 87 : -1;
}

function isHex(memory: Uint8Array, offset: number, length: number): boolean {
  for (let i = 0; i < length; i++) if (digitOf(memory[offset + i]) < 0) return false;
  return true;
}

function readHex32(memory: Uint8Array, offset: number): number {
  let word = 0;
  for (let i = 0; i < 8; i++) word = (word << 4) | digitOf(memory[offset + i]);
  return word;
}

/**
 * Writes the line that tells the client its session, where it does not know it yet: after a first request, when another
 * endpoint has answered, and whenever the time of last use counts. Returns the offset after it.
 */
export function putSessionLine(context: ProxyContext, exchange: Exchange, at: number): number {
  const session = exchange.policy === null ? null : exchange.policy.session;
  // What the gateway says itself is no endpoint's answer.
  if (session === null || exchange.generated || exchange.endpoint < 0) return at;
  const same = exchange.sessionEndpoint === exchange.endpoint && exchange.sessionBackend === exchange.backend;
  if (same && session.idleTimeoutS === 0) return at;
  const { memory, reactor } = context;
  const { cipher } = session;
  const hashes = hashesOf(exchange.runtime!.backends[exchange.backend]);
  cipher.encrypt(hashes.high[exchange.endpoint], hashes.low[exchange.endpoint]);
  const nowS = Math.floor(reactor.wallMs / 1000);
  const startS = same ? exchange.sessionStartS : nowS;
  let end = putAll(memory, at, session.start);
  end = putHex64(memory, end, cipher.high, cipher.low);
  if (session.timed) {
    memory[end] = DASH;
    end = putHex32(memory, end + 1, startS);
    memory[end] = DASH;
    end = putHex32(memory, end + 1, nowS);
  }
  if (session.isCookie) {
    if (session.permanent) {
      end = putAll(memory, end, maxAge);
      end = putDecimal(memory, end, Math.max(1, session.absoluteTimeoutS - (nowS - startS)));
    }
    const secure = exchange.downstream!.listener!.https;
    end = putAll(memory, end, secure ? session.attributesSecure : session.attributes);
  }
  return putAll(memory, end, lineEnd);
}
