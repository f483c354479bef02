// Session persistence: the response names the endpoint that served it, in a cookie or a header field, and
// requests that bring the name back go to the same endpoint for as long as it can be used.
//
// The name is a keyed hash of backend and address, so that it stays true while endpoints come and go, over
// reloads, and on every gateway with the same configuration. It does not tell the address. Where a session
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
import type { BackendSettings } from '../workers/snapshot.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { findCookie, putAll, putHex32, putHex64, Range } from './hash-key.ts';
import type { BackendRuntime } from './runtime.ts';

const encoder = new TextEncoder();

const NAME_DIGITS = 16;
const TIMES_DIGITS = 34;
const DASH = 45;
/** Clocks of gateways may differ by so much. */
const CLOCK_SKEW_S = 60;

const lineEnd = encoder.encode('\r\n');
const maxAge = encoder.encode('; Max-Age=');

/** Names of a backend's endpoints under one key. */
class SessionNames {
  readonly high: Int32Array;
  readonly low: Int32Array;
  /** Endpoint + 1 by the lowest bits of `low`, with the next free place for those that meet. */
  private readonly places: Int32Array;
  private readonly mask: number;

  constructor({ name, endpoints }: BackendSettings, secret: string) {
    const count = endpoints.length;
    this.high = new Int32Array(count);
    this.low = new Int32Array(count);
    const size = 2 ** Math.ceil(Math.log2(2 * count + 2));
    this.places = new Int32Array(size);
    this.mask = size - 1;
    endpoints.forEach(({ address }, endpoint) => {
      const digest = createHmac('sha256', secret).update(`${name}\n${address}`).digest();
      this.high[endpoint] = digest.readInt32BE(0);
      this.low[endpoint] = digest.readInt32BE(4);
      let place = this.low[endpoint] & this.mask;
      while (this.places[place] !== 0) place = (place + 1) & this.mask;
      this.places[place] = endpoint + 1;
    });
  }

  /** The endpoint of a name, or -1. */
  find(high: number, low: number): number {
    const { places, mask } = this;
    for (let place = low & mask; places[place] !== 0; place = (place + 1) & mask) {
      const endpoint = places[place] - 1;
      if (this.low[endpoint] === low && this.high[endpoint] === high) return endpoint;
    }
    return -1;
  }
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
  private readonly secret: string;
  /** By balancer, which lives as long as the backend's endpoints stay as they are. */
  private readonly namesOf = new Map<Balancer, SessionNames>();

  constructor(settings: SessionPersistenceSettings) {
    const { name, path, sameSite } = settings;
    this.isCookie = settings.type === 'Cookie';
    this.name = encoder.encode(name);
    this.absoluteTimeoutS = settings.absoluteTimeoutS;
    this.idleTimeoutS = settings.idleTimeoutS;
    this.timed = this.absoluteTimeoutS > 0 || this.idleTimeoutS > 0;
    this.permanent = settings.permanent;
    this.secret = settings.secret;
    this.start = encoder.encode(this.isCookie ? `set-cookie: ${name}=` : `${name}: `);
    const attributes = this.isCookie ? `; Path=${path}; HttpOnly; SameSite=${sameSite}` : '';
    this.attributes = encoder.encode(attributes);
    this.attributesSecure = encoder.encode(this.isCookie ? `${attributes}; Secure` : '');
  }

  /** Names of a backend's endpoints. */
  names(backend: BackendRuntime): SessionNames {
    let names = this.namesOf.get(backend.balancer);
    if (names === undefined) {
      names = new SessionNames(backend.settings, this.secret);
      this.namesOf.set(backend.balancer, names);
    }
    return names;
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
  const high = readHex32(memory, offset);
  const low = readHex32(memory, offset + 8);
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
    const index = routes.backendRefIndex(rule, ref);
    const backend = backends[index];
    const endpoint = session.names(backend).find(high, low);
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
  const names = session.names(exchange.runtime!.backends[exchange.backend]);
  const nowS = Math.floor(reactor.wallMs / 1000);
  const startS = same ? exchange.sessionStartS : nowS;
  let end = putAll(memory, at, session.start);
  end = putHex64(memory, end, names.high[exchange.endpoint], names.low[exchange.endpoint]);
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
