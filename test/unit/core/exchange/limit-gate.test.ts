// Which requests count against the limits of their rule at all.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACME_PATH, AcmeChallenges } from '../../../../core/exchange/acme-challenges.ts';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { LimitGate } from '../../../../core/exchange/limit-gate.ts';
import { LimitState, ruleLimits } from '../../../../core/exchange/rule-limits.ts';
import { Method, RequestHead } from '../../../../core/http1/message.ts';
import { LimitTables } from '../../../../core/workers/limit-tables.ts';
import { noRulePolicy } from '../../../../core/workers/policies.ts';

const BODY_MAX = 100;

/** A rule whose one limit lets a single request pass. */
class Bench {
  private readonly memory = new Uint8Array(4096);
  private readonly acme = new AcmeChallenges();
  private readonly gate: LimitGate;
  private readonly limits;

  constructor() {
    const settings = [
      {
        name: 'one',
        requests: 1,
        periodMs: 60_000,
        burst: 1,
        key: [],
        keysMax: 64,
        global: false,
        dryRun: false,
        headers: true,
      },
    ];
    const tables = new LimitTables(1).assign([{ ...noRulePolicy, rateLimits: settings }], 1000);
    this.limits = ruleLimits(settings, tables, 0);
    this.acme.use({ http: [{ token: 'a', keyAuthorization: 'a.print' }], tls: [] });
    const reactor = { memory: this.memory, nowMs: 1000 };
    const runtime = { http: { requestBodyBytesMax: BODY_MAX } };
    this.gate = new LimitGate({ reactor, runtime, acme: this.acme } as unknown as ProxyContext);
  }

  /** What the limit says of a request. */
  state(change: Partial<Exchange> = {}, path = '/', allowConnect = false): number {
    const exchange = new Exchange();
    this.memory.set(Buffer.from(path), 100);
    Object.assign(exchange, { pathOffset: 100, pathLength: path.length }, change);
    exchange.policy = { limits: this.limits } as unknown as Exchange['policy'];
    exchange.downstream = { listener: { settings: { allowConnect } } } as unknown as Exchange['downstream'];
    this.gate.apply(exchange, new RequestHead());
    return exchange.limitState;
  }
}

const { DENIED, NONE } = LimitState;

const free: [what: string, change: Partial<Exchange>, path: string][] = [
  ['a body that is too long', { requestRemaining: BODY_MAX + 1 }, '/'],
  ['a CONNECT that the listener does not allow', { method: Method.CONNECT }, '/'],
  ['the answer to an open ACME challenge', {}, `${ACME_PATH}a`],
];

for (const [what, change, path] of free) {
  test(`${what} uses up no limit, and is not subject to one`, () => {
    const bench = new Bench();
    assert.equal(bench.state(change, path), NONE);
    assert.equal(bench.state(), NONE, 'the first that counts');
    assert.equal(bench.state(), DENIED);
    assert.equal(bench.state(change, path), NONE);
  });
}

const counted: [what: string, change: Partial<Exchange>, path: string, allowConnect: boolean][] = [
  ['a body that is just short enough', { requestRemaining: BODY_MAX }, '/', false],
  ['a CONNECT that the listener allows', { method: Method.CONNECT }, '/', true],
  ['a request for a challenge that is not open', {}, `${ACME_PATH}b`, false],
];

for (const [what, change, path, allowConnect] of counted) {
  test(`${what} counts`, () => {
    const bench = new Bench();
    assert.equal(bench.state(change, path, allowConnect), NONE);
    assert.equal(bench.state(change, path, allowConnect), DENIED);
  });
}
