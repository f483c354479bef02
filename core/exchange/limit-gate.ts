// Where requests meet the rate limits of their rule: applied when the head is at hand, refused or let through
// when the request is dispatched. Requests that a global limit counts wait here for the answer of Redis.
//
//   apply --> DENIED                       --passes--> 429
//         --> ASK --passes--> WAITING --answer, or failure policy--> goOn --> DENIED, or on its way
//
// Redis is the control thread's business. Questions of a batch leave in one message at its end; answers
// come in messages, between batches, and are served in the next batch. An exchange that waits has nothing attached
// upstream, its `resumeMs` is the time at which the failure policy decides, and `limitAsk` is the number of its
// question: an answer for one that has ended or decided otherwise finds nobody.
// Owned by one worker. Only requests of rules with limits come here, and only global limits allocate.

import { Method, type RequestHead } from '../http1/message.ts';
import { RedisWord } from '../limits/limit-settings.ts';
import type { LimitAnswer, LimitQuestion } from '../workers/protocol.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { LimitFailure, RateLimits } from './rate-limits.ts';
import { DETAIL_LIMIT, Reason } from './reasons.ts';
import { LimitState } from './rule-limits.ts';

const { ASK, DENIED, WAITING } = LimitState;
const { CONNECT } = Method;

/** Most exchanges of a worker that wait for Redis at a time; the failure policy decides for further ones. */
const LIMIT_WAITING_MAX = 20_000;

const ASK_MAX = 0x3fff_ffff;

export class LimitGate {
  private readonly context: ProxyContext;
  private readonly limits: RateLimits;
  private readonly waiting = new Map<number, Exchange>();
  private lastAsk = 0;
  private questions: LimitQuestion[] = [];
  private answers: LimitAnswer[] = [];
  private redisState: Int32Array = new Int32Array(RedisWord.WORDS);
  private redisBuffer: SharedArrayBuffer | null = null;

  constructor(context: ProxyContext) {
    this.context = context;
    this.limits = new RateLimits(context.reactor);
  }

  /**
   * Applies the limits of an exchange whose rule has some and whose head has been written: sets `limitState`. What is
   * answered by the gateway itself, whatever the limits say, is not counted.
   */
  apply(exchange: Exchange, head: RequestHead): void {
    if (this.isOthersToAnswer(exchange)) return;
    const { anyGlobal } = exchange.policy!.limits!;
    this.limits.apply(exchange, head, anyGlobal && this.redisUp(exchange), anyGlobal ? failureOf(exchange) : 0);
  }

  /** Whether `dispatch` answers an exchange before it asks for its limits. */
  private isOthersToAnswer(exchange: Exchange): boolean {
    const { acme, reactor, runtime } = this.context;
    const { requestBodyBytesMax } = runtime.http;
    if (requestBodyBytesMax > 0 && exchange.requestRemaining > requestBodyBytesMax) return true;
    if (exchange.method === CONNECT && !exchange.downstream!.listener!.settings.allowConnect) return true;
    return acme.answer(reactor.memory, exchange.pathOffset, exchange.pathLength) !== null;
  }

  /** Whether an exchange may go on. If not, it has been refused, or waits for Redis. */
  passes(exchange: Exchange): boolean {
    switch (exchange.limitState) {
      case DENIED: {
        const { all } = exchange.policy!.limits!;
        const { id } = all[exchange.limits!.denied];
        exchange.downstreamSide!.refuse(exchange, 429, Reason.RATE_LIMITED, DETAIL_LIMIT + id);
        return false;
      }
      case ASK:
        if (this.waiting.size < LIMIT_WAITING_MAX) {
          this.ask(exchange);
          return false;
        }
        this.limits.decideWithoutRedis(exchange, failureOf(exchange));
        return this.passes(exchange);
      case WAITING:
        return false;
      default:
        return true;
    }
  }

  /** The time of an exchange that waits for Redis is over. */
  unanswered(exchange: Exchange): void {
    this.waiting.delete(exchange.limitAsk);
    exchange.limitAsk = 0;
    this.limits.decideWithoutRedis(exchange, failureOf(exchange));
    exchange.downstreamSide!.goOn(exchange);
  }

  /** The questions of this batch, or null if there are none. */
  takeQuestions(): LimitQuestion[] | null {
    if (this.questions.length === 0) return null;
    const { questions } = this;
    this.questions = [];
    return questions;
  }

  /** Keeps answers until `serve`. */
  receive(answers: readonly LimitAnswer[]): void {
    this.answers.push(...answers);
  }

  /** Goes on with the exchanges whose answers have come. To be called within a batch. */
  serve(): void {
    if (this.answers.length === 0) return;
    const { answers } = this;
    this.answers = [];
    for (const { ask, results } of answers) {
      const exchange = this.waiting.get(ask);
      this.waiting.delete(ask);
      if (exchange === undefined || exchange.limitAsk !== ask || exchange.limitState !== WAITING) continue;
      if (exchange.responseStarted) continue;
      exchange.limitAsk = 0;
      exchange.resumeMs = 0;
      this.take(exchange, results);
      exchange.downstreamSide!.goOn(exchange);
    }
  }

  private take(exchange: Exchange, results: readonly number[] | null): void {
    if (results === null) {
      this.limits.decideWithoutRedis(exchange, failureOf(exchange));
      return;
    }
    const { all } = exchange.policy!.limits!;
    let next = 0;
    for (let i = 0; i < all.length; i++) {
      if (!all[i].global) continue;
      this.limits.answer(exchange, i, results[next] === 1, results[next + 1]!, results[next + 2]!);
      next += 3;
    }
    this.limits.settled(exchange);
  }

  private ask(exchange: Exchange): void {
    const { redis } = exchange.runtime!.rateLimits;
    this.lastAsk = this.lastAsk === ASK_MAX ? 1 : this.lastAsk + 1;
    exchange.limitState = WAITING;
    exchange.limitAsk = this.lastAsk;
    this.waiting.set(this.lastAsk, exchange);
    const { all } = exchange.policy!.limits!;
    const { each } = exchange.limits!;
    const limits: LimitQuestion['limits'] = [];
    for (let i = 0; i < all.length; i++) {
      if (all[i].global) limits.push({ name: all[i].settings.name, key: each[i].key });
    }
    this.questions.push({ ask: this.lastAsk, limits });
    exchange.resumeMs = this.context.reactor.nowMs + redis!.timeoutMs;
    exchange.downstreamSide!.progress(exchange);
  }

  private redisUp(exchange: Exchange): boolean {
    const { redis } = exchange.runtime!.rateLimits;
    if (redis === null) return false;
    if (redis.state !== this.redisBuffer) {
      this.redisBuffer = redis.state;
      this.redisState = new Int32Array(redis.state);
    }
    return Atomics.load(this.redisState, RedisWord.UP) === 1;
  }
}

function failureOf(exchange: Exchange): number {
  switch (exchange.runtime!.rateLimits.redis?.failure) {
    case 'open':
      return LimitFailure.OPEN;
    case 'closed':
      return LimitFailure.CLOSED;
    default:
      return LimitFailure.LOCAL;
  }
}
