// Rate limits of a rule, applied to a request whose head is at hand: which key, which bucket, and what the
// response is to say of it.
//
// Local limits are decided at once, on the shared buckets of core/limits/limit-table.ts. For global ones
// Redis is asked (limit-gate.ts); where it is away, or does not answer in time, its failure policy
// decides. The limits of a rule are looked at in their order, local ones first. The first that refuses ends that, and what
// the local ones before it have taken is given back: a refused request costs nothing.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 6585 §4 (429), RFC 9110 §10.2.3 (Retry-After).

import { FIELD_WORDS } from '../http1/header-table.ts';
import type { RequestHead } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import { KeyHash } from '../limits/key-hash.ts';
import { LimitCounter } from '../limits/limit-table.ts';
import { isIpv4, networkFirst, networkSecond } from './client-network.ts';
import type { Exchange } from './exchange.ts';
import { findField } from './field-name.ts';
import { readForwardedClient } from './forwarded-client.ts';
import { ClaimReader } from './jwt-claim.ts';
import { limitKeyText } from './limit-key-text.ts';
import { ResponseLines } from './response-lines.ts';
import { ExchangeLimits, KeyPart, type LimitOutcome, LimitState, type RateLimit } from './rule-limits.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ALLOWED, DENIED, FALLBACK, GLOBAL } = LimitCounter;
const { CLAIM, HEADER, HOST, PATH } = KeyPart;
const { RATE_LIMIT, RETRY_AFTER } = ResponseLines;
const { ASK, NONE } = LimitState;
const FIELD_STEP = FIELD_WORDS;
/** Words of a field in the header table (HeaderTable). */
const VALUE_OFFSET = 2;
const VALUE_LENGTH = 3;
const STATE_DENIED = LimitState.DENIED;

/** What decides for a global limit that Redis cannot be asked about. */
export const LimitFailure = { OPEN: 0, CLOSED: 1, LOCAL: 2 } as const;
const { CLOSED, OPEN } = LimitFailure;

/** Seconds that clients are told to wait where nobody knows. */
const RETRY_SECONDS_UNKNOWN = 1;

export class RateLimits {
  private readonly reactor: Reactor;
  private readonly hash = new KeyHash();
  private readonly claims = new ClaimReader();
  /** Network of the client whose key is being hashed. */
  private readonly client = new DataView(new ArrayBuffer(8));

  constructor(reactor: Reactor) {
    this.reactor = reactor;
  }

  /**
   * Applies the limits of an exchange whose policy has some, and whose head has just been written for the
   * upstream: sets `limitState`. `redisUp` says that global limits are to be asked for (the state is then ASK,
   * unless a local one refuses), `failure` (LimitFailure) what else decides on those.
   */
  apply(exchange: Exchange, head: RequestHead, redisUp: boolean, failure: number): void {
    const { all, anyGlobal, policyLine } = exchange.policy!.limits!;
    const outcome = exchange.limits ?? this.begin(exchange);
    outcome.reset(all.length);
    if (policyLine.length > 0) exchange.responseLines |= RATE_LIMIT;
    const { each } = outcome;
    for (let i = 0; i < all.length; i++) {
      if (all[i].global) continue;
      if (all[i].keyed) this.readKey(all[i], each[i], exchange, head);
      if (!this.take(all[i], each[i])) {
        this.deny(exchange, i, false);
        return;
      }
    }
    if (!anyGlobal) {
      this.passed(exchange);
      return;
    }
    for (let i = 0; i < all.length; i++)
      if (all[i].global && all[i].keyed) this.readKey(all[i], each[i], exchange, head);
    if (redisUp) {
      exchange.limitState = ASK;
      this.keepKeys(exchange, head);
    } else {
      this.decideWithoutRedis(exchange, failure);
    }
  }

  /** Decides on global limits by the failure policy: sets `limitState` to NONE or DENIED. */
  decideWithoutRedis(exchange: Exchange, failure: number): void {
    const { all } = exchange.policy!.limits!;
    const { each } = exchange.limits!;
    exchange.limitState = NONE;
    for (let i = 0; i < all.length; i++) {
      const limit = all[i];
      const outcome = each[i];
      if (!limit.global) continue;
      limit.table.counters[FALLBACK]++;
      let allowed = true;
      if (failure === OPEN || failure === CLOSED) {
        allowed = failure === OPEN || limit.dryRun;
        outcome.passed = failure === OPEN ? 1 : 0;
        // Nothing is known of them.
        outcome.remaining = -1;
        outcome.seconds = RETRY_SECONDS_UNKNOWN;
      } else {
        allowed = this.take(limit, outcome);
      }
      if (!allowed) {
        this.deny(exchange, i, false);
        return;
      }
    }
    this.passed(exchange);
  }

  /**
   * Takes over what Redis says of the global limit at place `i`: whether it lets the request pass, and the numbers
   * for its response. `settled` follows the last one.
   */
  answer(exchange: Exchange, i: number, allowed: boolean, remaining: number, seconds: number): void {
    const outcome = exchange.limits!.each[i];
    exchange.policy!.limits!.all[i].table.counters[GLOBAL]++;
    outcome.passed = allowed ? 1 : 0;
    outcome.remaining = remaining;
    outcome.seconds = seconds;
  }

  /** All global limits have been answered: sets `limitState` to NONE or DENIED. */
  settled(exchange: Exchange): void {
    const { all } = exchange.policy!.limits!;
    const { each } = exchange.limits!;
    exchange.limitState = NONE;
    for (let i = 0; i < all.length; i++) {
      if (all[i].global && each[i].passed === 0 && !all[i].dryRun) {
        this.deny(exchange, i, true);
        return;
      }
    }
    this.passed(exchange);
  }

  /** Takes a request from a bucket of this node; false if the request is refused. */
  private take(limit: RateLimit, outcome: LimitOutcome): boolean {
    const { table } = limit;
    const allowed = table.takeAt(outcome.hashLow, outcome.hashHigh, table.ticksAt(this.reactor.nowMs));
    outcome.passed = allowed ? 1 : 0;
    outcome.remaining = table.remaining;
    outcome.seconds = table.retrySeconds > 0 ? table.retrySeconds : table.fullSeconds;
    return allowed || limit.dryRun;
  }

  private passed(exchange: Exchange): void {
    const { all } = exchange.policy!.limits!;
    const { each } = exchange.limits!;
    for (let i = 0; i < all.length; i++) all[i].table.counters[each[i].passed === 1 ? ALLOWED : DENIED]++;
  }

  /**
   * The limit at place `refusing` refuses; what others have taken here is given back. `byRedis` says that Redis
   * has decided on the global ones: it takes from all or none.
   */
  private deny(exchange: Exchange, refusing: number, byRedis: boolean): void {
    const { all } = exchange.policy!.limits!;
    const outcome = exchange.limits!;
    const { each } = outcome;
    exchange.limitState = STATE_DENIED;
    outcome.denied = refusing;
    all[refusing].table.counters[DENIED]++;
    for (let i = 0; i < all.length; i++) {
      // Those that were not looked at have not passed.
      if (i === refusing || each[i].passed === 0 || (byRedis && all[i].global)) continue;
      all[i].table.giveBack(each[i].hashLow, each[i].hashHigh);
    }
    exchange.retryAfterSeconds = Math.max(1, each[refusing].seconds);
    exchange.responseLines |= RETRY_AFTER;
  }

  private begin(exchange: Exchange): ExchangeLimits {
    const limits = new ExchangeLimits();
    exchange.limits = limits;
    return limits;
  }

  // -- keys ---------------------------------------------------------------------------

  /** Hashes the key of a limit. */
  private readKey(limit: RateLimit, outcome: LimitOutcome, exchange: Exchange, head: RequestHead): void {
    const { key, table } = limit;
    const { hash } = this;
    hash.begin(table.seed0, table.seed1);
    for (let i = 0; i < key.length; i++) {
      const part = key[i];
      let { view } = this.reactor;
      let offset = 0;
      // Not there.
      let length = -1;
      switch (part.kind) {
        case PATH:
          offset = head.pathOffset;
          length = head.pathOnlyLength;
          break;
        case HOST:
          offset = head.authorityOffset;
          length = head.authorityLength === 0 ? -1 : head.authorityLength;
          break;
        case HEADER: {
          const field = findField(view, head.headers, part.field);
          if (field < 0) break;
          // Not by the table's methods: the engine compiles only so much into one method, and the rounds are to be in it.
          const { words } = head.headers;
          offset = words[field * FIELD_STEP + VALUE_OFFSET]!;
          length = words[field * FIELD_STEP + VALUE_LENGTH]!;
          break;
        }
        case CLAIM: {
          const { claims } = this;
          if (!claims.read(this.reactor.memory, view, head, part.nameBytes)) break;
          view = claims.view;
          offset = claims.offset;
          length = claims.length;
          break;
        }
        default:
          view = this.client;
          length = this.writeClient(this.clientOf(exchange));
      }
      hash.part(view, offset, length);
    }
    hash.end();
    outcome.hashLow = hash.low;
    outcome.hashHigh = hash.high;
  }

  /** Writes the network of a client, most of them a word, to `client`. Returns its length in bytes. */
  private writeClient(address: PeerAddress): number {
    const { client } = this;
    client.setInt32(0, networkFirst(address), true);
    if (isIpv4(address)) return 4;
    client.setInt32(4, networkSecond(address), true);
    return 8;
  }

  private clientOf(exchange: Exchange): PeerAddress {
    const { trustedHops } = exchange.runtime!.http;
    const peer = exchange.downstream!;
    if (trustedHops === 0) return peer;
    const { forwardedForOffset, forwardedForLength } = exchange;
    return readForwardedClient(this.reactor.memory, forwardedForOffset, forwardedForLength, trustedHops, peer);
  }

  /** Keeps the keys of global limits as texts: a message to the control thread is made of them. */
  private keepKeys(exchange: Exchange, head: RequestHead): void {
    const { all } = exchange.policy!.limits!;
    const { each } = exchange.limits!;
    for (let i = 0; i < all.length; i++) {
      if (!all[i].global) continue;
      each[i].key = limitKeyText(all[i].key, this.reactor, this.claims, head, this.clientOf(exchange));
    }
  }
}
