// Rate limits of a rule, applied to a request whose head is at hand: which key, which bucket, and what the
// response is to say of it.
//
// Local limits are decided at once, on the shared buckets of core/limits/limit-table.ts. For global ones
// Redis is asked (global-limits.ts); where it is away, or does not answer in time, its failure policy
// decides. The limits of a rule are looked at in their order, local ones first. The first that refuses ends that, and what
// the local ones before it have taken is given back: a refused request costs nothing.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 6585 §4 (429), RFC 9110 §10.2.3 (Retry-After).

import type { RequestHead } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import { KeyHash } from '../limits/key-hash.ts';
import { LimitCounter } from '../limits/limit-table.ts';
import { isIpv4, networkFirst, networkSecond } from './client-network.ts';
import type { Exchange } from './exchange.ts';
import { findFieldNamed } from './fields.ts';
import { readForwardedClient } from './forwarded-client.ts';
import { bearerClaim } from './jwt-claim.ts';
import { limitKeyText } from './limit-key-text.ts';
import { ResponseLines } from './response-lines.ts';
import { ExchangeLimits, KeyPart, type LimitKeyPart, LimitState, type RateLimit } from './rule-limits.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ALLOWED, DENIED, FALLBACK, GLOBAL } = LimitCounter;
const { CLAIM, HEADER, PATH } = KeyPart;
const { RATE_LIMIT, RETRY_AFTER } = ResponseLines;
const { ASK, NONE } = LimitState;
const STATE_DENIED = LimitState.DENIED;

/** What decides for a global limit that Redis cannot be asked about. */
export const LimitFailure = { OPEN: 0, CLOSED: 1, LOCAL: 2 } as const;
const { CLOSED, OPEN } = LimitFailure;

/** Seconds that clients are told to wait where nobody knows. */
const RETRY_SECONDS_UNKNOWN = 1;

export class RateLimits {
  private readonly reactor: Reactor;
  private readonly hash = new KeyHash();

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
    outcome.denied = -1;
    outcome.count = all.length;
    if (policyLine.length > 0) exchange.responseLines |= RATE_LIMIT;
    for (let i = 0; i < all.length; i++) this.readKey(all[i], i, outcome, exchange, head);
    for (let i = 0; i < all.length; i++) {
      if (!all[i].global && !this.take(all[i], i, outcome)) {
        this.deny(exchange, i, false);
        return;
      }
    }
    if (!anyGlobal) {
      this.passed(exchange);
    } else if (redisUp) {
      exchange.limitState = ASK;
      this.keepKeys(exchange, head);
    } else {
      this.decideWithoutRedis(exchange, failure);
    }
  }

  /** Decides on global limits by the failure policy: sets `limitState` to NONE or DENIED. */
  decideWithoutRedis(exchange: Exchange, failure: number): void {
    const { all } = exchange.policy!.limits!;
    const outcome = exchange.limits!;
    exchange.limitState = NONE;
    for (let i = 0; i < all.length; i++) {
      const limit = all[i];
      if (!limit.global) continue;
      limit.table.counters[FALLBACK]++;
      let allowed = true;
      if (failure === OPEN || failure === CLOSED) {
        allowed = failure === OPEN || limit.dryRun;
        outcome.passed[i] = failure === OPEN ? 1 : 0;
        // Nothing is known of them.
        outcome.remaining[i] = -1;
        outcome.seconds[i] = RETRY_SECONDS_UNKNOWN;
      } else {
        allowed = this.take(limit, i, outcome);
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
    const outcome = exchange.limits!;
    exchange.policy!.limits!.all[i].table.counters[GLOBAL]++;
    outcome.passed[i] = allowed ? 1 : 0;
    outcome.remaining[i] = remaining;
    outcome.seconds[i] = seconds;
  }

  /** All global limits have been answered: sets `limitState` to NONE or DENIED. */
  settled(exchange: Exchange): void {
    const { all } = exchange.policy!.limits!;
    const outcome = exchange.limits!;
    exchange.limitState = NONE;
    for (let i = 0; i < all.length; i++) {
      if (all[i].global && outcome.passed[i] === 0 && !all[i].dryRun) {
        this.deny(exchange, i, true);
        return;
      }
    }
    this.passed(exchange);
  }

  /** Takes a request from a bucket of this node; false if the request is refused. */
  private take(limit: RateLimit, i: number, outcome: ExchangeLimits): boolean {
    const { table } = limit;
    const allowed = table.take(outcome.hashLow[i], outcome.hashHigh[i], this.reactor.nowMs);
    outcome.passed[i] = allowed ? 1 : 0;
    outcome.remaining[i] = table.remaining;
    outcome.seconds[i] = table.retrySeconds > 0 ? table.retrySeconds : table.fullSeconds;
    return allowed || limit.dryRun;
  }

  private passed(exchange: Exchange): void {
    const { all } = exchange.policy!.limits!;
    const outcome = exchange.limits!;
    for (let i = 0; i < all.length; i++) all[i].table.counters[outcome.passed[i] === 1 ? ALLOWED : DENIED]++;
  }

  /**
   * The limit at place `refusing` refuses; what others have taken here is given back. `byRedis` says that Redis
   * has decided on the global ones: it takes from all or none.
   */
  private deny(exchange: Exchange, refusing: number, byRedis: boolean): void {
    const { all } = exchange.policy!.limits!;
    const outcome = exchange.limits!;
    exchange.limitState = STATE_DENIED;
    outcome.denied = refusing;
    all[refusing].table.counters[DENIED]++;
    for (let i = 0; i < all.length; i++) {
      // Those that were not looked at have not passed.
      if (i === refusing || outcome.passed[i] === 0 || (byRedis && all[i].global)) continue;
      all[i].table.giveBack(outcome.hashLow[i], outcome.hashHigh[i]);
    }
    exchange.retryAfterSeconds = Math.max(1, outcome.seconds[refusing]);
    exchange.responseLines |= RETRY_AFTER;
  }

  private begin(exchange: Exchange): ExchangeLimits {
    const limits = new ExchangeLimits();
    exchange.limits = limits;
    return limits;
  }

  // -- keys ---------------------------------------------------------------------------

  /** Hashes the key of a limit. */
  private readKey(limit: RateLimit, i: number, outcome: ExchangeLimits, exchange: Exchange, head: RequestHead): void {
    const { key, table } = limit;
    // Not looked at yet: no number of it is known.
    outcome.remaining[i] = -1;
    outcome.passed[i] = 0;
    if (key.length === 0) return;
    const { hash } = this;
    hash.begin(table.seed0, table.seed1);
    for (let part = 0; part < key.length; part++) this.hashPart(key[part], exchange, head);
    hash.end();
    outcome.hashLow[i] = hash.low;
    outcome.hashHigh[i] = hash.high;
  }

  private hashPart(part: LimitKeyPart, exchange: Exchange, head: RequestHead): void {
    const { hash } = this;
    const { memory } = this.reactor;
    switch (part.kind) {
      case PATH:
        hash.part(memory, head.pathOffset, head.pathOnlyLength);
        return;
      case HEADER: {
        const field = findFieldNamed(memory, head.headers, part.nameBytes);
        if (field < 0) hash.part(memory, 0, -1);
        else hash.part(memory, head.headers.valueOffset(field), head.headers.valueLength(field));
        return;
      }
      case CLAIM: {
        const claim = bearerClaim(memory, head, part.name);
        if (claim === null) hash.part(memory, 0, -1);
        else hash.part(claim, 0, claim.length);
        return;
      }
      default: {
        const client = this.clientOf(exchange);
        hash.word(networkFirst(client));
        hash.word(networkSecond(client));
        hash.word(isIpv4(client) ? 4 : 6);
      }
    }
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
    const { keys } = exchange.limits!;
    for (let i = 0; i < all.length; i++) {
      if (!all[i].global) continue;
      keys[i] = limitKeyText(all[i].key, this.reactor.memory, head, this.clientOf(exchange));
    }
  }
}
