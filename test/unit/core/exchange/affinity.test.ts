// Where a request belongs: the key of a consistent hash, and the session that a cookie or field names.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { HashKeys, putAffinityLine, readHashKey } from '../../../../core/exchange/hash-key.ts';
import { RequestIds } from '../../../../core/exchange/request-id.ts';
import { RulePolicy } from '../../../../core/exchange/rule-policy.ts';
import type { Runtime } from '../../../../core/exchange/runtime.ts';
import { putSessionLine, resumeSession } from '../../../../core/exchange/session-persistence.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { CheckState, EndpointWord, type NodeState } from '../../../../core/lb/node-state.ts';
import type { BalancerSettings, HashKeySettings, SessionPersistenceSettings } from '../../../../core/lb/settings.ts';
import { defaultBalancer } from '../../../../core/lb/settings.ts';
import { KeyedHash } from '../../../../core/telemetry/keyed-hash.ts';
import { noRulePolicy } from '../../../../core/workers/policies.ts';
import type { BackendSettings } from '../../../../core/workers/snapshot.ts';
import { outlierDetection } from '../lb/fixture.ts';
import {
  clientFrom,
  endpointSettings,
  memoryReactor,
  openRuntime,
  plainBackend,
  snapshotOf,
  textOf,
  wideLimits,
} from './support.ts';

const reactor = memoryReactor();
const head = new RequestHead();

/** What these functions use of a worker. */
function contextOf(runtime: Runtime, wallMs = 1_700_000_000_000): ProxyContext {
  const ids = new RequestIds((words) => words.set([1, 2, 3, 4]));
  const clock = { wallMs, arena: reactor.arena };
  return { memory: reactor.memory, reactor: clock, ids, runtime } as unknown as ProxyContext;
}

function parse(lines: string[], target = '/'): void {
  const text = `GET ${target} HTTP/1.1\r\nhost: shop.test\r\n${lines.map((line) => `${line}\r\n`).join('')}\r\n`;
  reactor.memory.set(Buffer.from(text, 'latin1'), reactor.arena.receiveOffset);
  const length = parseRequestHead(reactor.memory, reactor.arena.receiveOffset, text.length, wideLimits, head);
  assert.equal(length, text.length);
}

// -- keys --------------------------------------------------------------------------------

interface KeyCase {
  lines?: string[];
  target?: string;
  from?: string;
  hops?: number;
}

/** Hash of a request's key; undefined when it has none. */
function keyOf(settings: HashKeySettings[], { lines = [], target = '/', from = '192.0.2.1', hops = 0 }: KeyCase) {
  parse(lines, target);
  const exchange = new Exchange();
  exchange.downstream = clientFrom(from);
  const context = contextOf(openRuntime(snapshotOf({ trustedHops: hops })));
  readHashKey(context, exchange, new HashKeys(settings), head);
  return exchange.hashed ? exchange.hash : undefined;
}

const header: HashKeySettings[] = [{ type: 'header', name: 'x-user' }];
const cookie: HashKeySettings[] = [{ type: 'cookie', name: 'id', ttlS: null, path: '' }];
const address: HashKeySettings[] = [{ type: 'sourceAddress' }];
const parameter: HashKeySettings[] = [{ type: 'queryParam', name: 'user' }];

/** Requests of one row have one key, and those of different rows different ones. */
const rows: [what: string, settings: HashKeySettings[], same: KeyCase[], other: KeyCase[]][] = [
  [
    'a header field, whatever the case of its name',
    header,
    [{ lines: ['X-User: anna'] }, { lines: ['a: b', 'x-user:   anna  ', 'c: d'] }],
    [{ lines: ['x-user: Anna'] }, { lines: ['x-user: '] }, { lines: ['x-user: anna', 'x-user: bert'] }],
  ],
  [
    'the host, whether it stands in a field or in the target',
    [{ type: 'header', name: 'host' }],
    [{}, { target: 'http://shop.test/' }],
    [{ target: 'http://other.test/' }],
  ],
  [
    'a cookie among others',
    cookie,
    [
      { lines: ['cookie: id=7'] },
      { lines: ['cookie: a=b; id=7; c=d'] },
      { lines: ['cookie: a=b', 'cookie: id="7"'] },
      { lines: ['cookie: xid=8; id=7; id=9'] },
    ],
    [{ lines: ['cookie: id=8'] }, { lines: ['cookie: id='] }],
  ],
  [
    'the address of the client, in either notation',
    address,
    [{ from: '192.0.2.1' }, { from: '::ffff:192.0.2.1' }, { lines: ['x-forwarded-for: 198.51.100.1'] }],
    [{ from: '192.0.2.2' }, { from: '2001:db8::1' }, { from: '2001:db8::2' }],
  ],
  [
    'the address that trusted proxies have noted',
    address,
    [
      { hops: 1, from: '10.0.0.1', lines: ['x-forwarded-for: 192.0.2.1'] },
      { hops: 1, from: '10.0.0.2', lines: ['x-forwarded-for: 198.51.100.1, 192.0.2.1'] },
      { hops: 2, from: '10.0.0.1', lines: ['x-forwarded-for: 192.0.2.1', 'x-forwarded-for: 10.0.0.9'] },
      { hops: 3, from: '192.0.2.1', lines: ['x-forwarded-for: 198.51.100.7'] },
    ],
    [{ hops: 1, from: '10.0.0.1', lines: ['x-forwarded-for: 192.0.2.1, 198.51.100.1'] }],
  ],
  [
    'a query parameter, the first of its name',
    parameter,
    [{ target: '/a?user=anna' }, { target: '/b?x=1&user=anna&user=bert' }, { target: '/?superuser=x&user=anna&y' }],
    [{ target: '/?user=bert' }, { target: '/?user=' }],
  ],
  [
    'the first key that is there',
    [...header, ...cookie, ...address],
    [{ lines: ['x-user: a', 'cookie: id=1'] }, { lines: ['cookie: id=2', 'x-user: a'], from: '10.9.9.9' }],
    [{ lines: ['cookie: id=1'] }, {}],
  ],
];

for (const [what, settings, same, other] of rows) {
  test(`a key is ${what}`, () => {
    const hashes = same.map((one) => keyOf(settings, one));
    assert.notEqual(hashes[0], undefined);
    assert.equal(new Set(hashes).size, 1, hashes.join(' '));
    const all = [hashes[0], ...other.map((one) => keyOf(settings, one))];
    assert.equal(new Set(all).size, all.length, all.join(' '));
  });
}

test('a request without any of the keys has none', () => {
  assert.equal(
    keyOf([...header, ...cookie, ...parameter], { target: '/?userx=1&x=user', lines: ['cookie: idx=1'] }),
    undefined,
  );
  assert.equal(keyOf(parameter, { target: '/user=1' }), undefined);
});

test('a cookie with a ttl is made for clients without it, and then gives the same key', () => {
  const made: HashKeySettings[] = [{ type: 'cookie', name: 'id', ttlS: 60, path: '/shop' }];
  const balancer: BalancerSettings = { ...defaultBalancer, policy: 'Maglev', hashOn: made };
  const backend = { ...plainBackend, policy: { ...plainBackend.policy, balancer } };
  const runtime = openRuntime(snapshotOf({}, [backend]));
  const context = contextOf(runtime);
  const exchange = new Exchange();
  exchange.runtime = runtime;
  exchange.backend = 0;
  parse([]);
  readHashKey(context, exchange, runtime.backends[0]!.hashKeys!, head);
  assert.equal(exchange.hashed, true);
  const at = reactor.arena.editOffset;
  const line = textOf(reactor.memory, at, putAffinityLine(reactor.memory, at, exchange) - at);
  const [, value] = /^set-cookie: id=([0-9a-f]{16}); Path=\/shop; Max-Age=60; HttpOnly\r\n$/.exec(line)!;
  assert.equal(keyOf(made, { lines: [`cookie: id=${value}`] }), exchange.hash);
});

// -- sessions ------------------------------------------------------------------------------

const plainSession: SessionPersistenceSettings = {
  type: 'Cookie',
  name: 's',
  absoluteTimeoutS: 0,
  idleTimeoutS: 0,
  permanent: false,
  path: '/',
  sameSite: 'Strict',
  secret: 'k',
};

/** A worker with one rule that has sessions, over two backends of which the second has weight 0. */
class Sessions {
  readonly policy: RulePolicy;
  readonly runtime: Runtime;
  readonly backends: BackendSettings[];
  nowS = 1_700_000_000;

  constructor(settings: Partial<SessionPersistenceSettings>, first: string[], second: string[] = []) {
    this.policy = new RulePolicy({ ...noRulePolicy, sessionPersistence: { ...plainSession, ...settings } }, null);
    let slot = 0;
    const backend = (name: string, addresses: string[], index: number): BackendSettings => ({
      ...plainBackend,
      policy: { ...plainBackend.policy, outlierDetection },
      name,
      slot: index,
      endpoints: addresses.map((one) => ({ ...endpointSettings(one), slot: slot++ })),
    });
    this.backends = [backend('one', first, 0), backend('two', second, 1)];
    this.runtime = openRuntime(snapshotOf({}, this.backends));
    // Rule 0 with the backends in their order; nothing else of the route table is asked.
    const routes = { backendRefCount: () => 2, backendRefIndex: (_: number, ref: number) => ref };
    Object.assign(this.runtime, { routes, refPolicyOf: () => null });
  }

  get node(): NodeState {
    return this.runtime.node;
  }

  exchange(https = false): Exchange {
    const exchange = new Exchange();
    exchange.runtime = this.runtime;
    exchange.rule = 0;
    exchange.policy = this.policy;
    exchange.downstream = clientFrom('192.0.2.1', https ? 'https' : 'http');
    return exchange;
  }

  /** What a request with these lines is sent to: `backend/address`, or undefined without a session. */
  resume(lines: string[], exchange = this.exchange()): string | undefined {
    parse(lines);
    if (!resumeSession(this.context, exchange, head, this.policy.session!)) {
      assert.deepEqual([exchange.backend, exchange.endpoint], [-1, -1]);
      return undefined;
    }
    const { name, endpoints } = this.backends[exchange.backend]!;
    return `${name}/${endpoints[exchange.endpoint]!.address}`;
  }

  /** The line of the response when this endpoint has answered; empty for none. */
  line(backend: number, endpoint: number, exchange = this.exchange()): string {
    exchange.backend = backend;
    exchange.endpoint = endpoint;
    const at = reactor.arena.editOffset;
    return textOf(reactor.memory, at, putSessionLine(this.context, exchange, at) - at);
  }

  /** The field that a client sends back. */
  token(backend: number, endpoint: number): string {
    const [, name, value] = /^(set-cookie: s=|x-s: )([0-9a-f-]+)/.exec(this.line(backend, endpoint))!;
    return name === 'x-s: ' ? `x-s: ${value}` : `cookie: a=b; s=${value}`;
  }

  private get context(): ProxyContext {
    return contextOf(this.runtime, this.nowS * 1000 + 123);
  }
}

const addresses = ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80'];

test('a session leads back to its endpoint, and says nothing of its address', () => {
  const sessions = new Sessions({}, addresses);
  const tokens = addresses.map((_, i) => sessions.token(0, i));
  assert.equal(new Set(tokens).size, 3);
  tokens.forEach((token, i) => {
    assert.equal(sessions.resume([token]), `one/${addresses[i]}`);
  });
  assert.equal(sessions.line(0, 1), `set-cookie: ${tokens[1]!.slice(13)}; Path=/; HttpOnly; SameSite=Strict\r\n`);
  assert.match(sessions.line(0, 1, sessions.exchange(true)), /; SameSite=Strict; Secure\r\n$/);
});

test('sessions stay true while endpoints come and go, and differ by backend and secret', () => {
  const before = new Sessions({}, addresses, ['10.0.0.9:80']);
  const token = before.token(0, 1);
  const after = new Sessions({}, ['10.0.0.7:80', '10.0.0.2:80', '10.0.0.8:80', '10.0.0.1:80'], ['10.0.0.9:80']);
  assert.equal(after.resume([token]), 'one/10.0.0.2:80');
  assert.equal(after.resume([before.token(0, 2)]), undefined, 'its endpoint is gone');
  assert.equal(after.resume([before.token(1, 0)]), 'two/10.0.0.9:80', 'the weight of a backend does not matter');
  assert.equal(new Sessions({ secret: 'other' }, addresses).resume([token]), undefined);
  const twins = new Sessions({}, ['10.0.0.2:80'], ['10.0.0.2:80']);
  assert.equal(twins.resume([token]), 'one/10.0.0.2:80');
  assert.notEqual(twins.token(0, 0), twins.token(1, 0));
});

test('sessions stay true however the list of endpoints changes from snapshot to snapshot', () => {
  const all = Array.from({ length: 40 }, (_, i) => `10.1.0.${i}:80`);
  const tokens = new Map(all.map((one, i) => [one, new Sessions({}, all).token(0, i)]));
  let order = all;
  for (let step = 1; step < 20; step++) {
    // Some leave, some come back, and others take their places.
    order = [...order.slice(step), ...order.slice(0, step)].filter((_, i) => (i + step) % 7 !== 0);
    if (step % 5 === 0) order = [...all].reverse();
    const sessions = new Sessions({}, order);
    const other = new Sessions({ secret: 'another rule' }, order);
    for (const one of all) {
      const expected = order.includes(one) ? `one/${one}` : undefined;
      assert.equal(sessions.resume([tokens.get(one)!]), expected, `${one} at step ${step}`);
      assert.equal(other.resume([tokens.get(one)!]), undefined);
    }
    order.forEach((one, i) => {
      assert.equal(sessions.token(0, i), tokens.get(one));
    });
  }
});

test('endpoints of a backend are hashed once, whatever the rules and snapshots', (t) => {
  const hashed = t.mock.method(KeyedHash.prototype, 'hash').mock;
  const list = ['10.9.0.1:80', '10.9.0.2:80', '10.9.0.3:80'];
  new Sessions({}, list).token(0, 0);
  assert.equal(hashed.callCount(), 3);
  new Sessions({}, list).token(0, 1);
  new Sessions({ secret: 'another rule' }, list).token(0, 2);
  assert.equal(hashed.callCount(), 3);
  new Sessions({}, ['10.9.0.4:80', ...list]).token(0, 0);
  assert.equal(hashed.callCount(), 4);
});

test('an endpoint that cannot be used loses its sessions for as long', () => {
  const sessions = new Sessions({}, addresses);
  const token = sessions.token(0, 1);
  const at = sessions.node.endpointAt(1);
  for (const [word, value] of [
    [EndpointWord.CHECK, CheckState.UNHEALTHY],
    [EndpointWord.DRAINING, 1],
    [EndpointWord.WITHHELD_PERMILLE, 1000],
  ] as const) {
    sessions.node.words[at + word] = value;
    assert.equal(sessions.resume([token]), undefined, `${word}`);
    sessions.node.words[at + word] = 0;
    assert.equal(sessions.resume([token]), 'one/10.0.0.2:80');
  }
});

test('the response names the endpoint only when the client does not know it yet', () => {
  const sessions = new Sessions({}, addresses);
  const exchange = sessions.exchange();
  sessions.resume([sessions.token(0, 1)], exchange);
  assert.equal(sessions.line(0, 1, exchange), '');
  assert.notEqual(sessions.line(0, 2, exchange), '', 'another endpoint has answered in the end');
  const refused = sessions.exchange();
  refused.generated = true;
  assert.equal(sessions.line(0, 1, refused), '', 'the gateway itself has answered');
  assert.equal(sessions.line(-1, -1), '');
});

test('anything that is no name is no session', () => {
  const sessions = new Sessions({}, addresses);
  const value = sessions.token(0, 0).slice('cookie: a=b; s='.length);
  const forged = `${value.startsWith('0') ? '1' : '0'}${value.slice(1)}`;
  for (const wrong of [
    '',
    forged,
    value.slice(1),
    `${value}0`,
    value.toUpperCase().replace(/\d/g, 'A'),
    `g${value.slice(1)}`,
  ]) {
    assert.equal(sessions.resume([`cookie: s=${wrong}`]), undefined, wrong);
  }
  assert.equal(sessions.resume([`cookie: t=${value}`]), undefined);
  assert.equal(sessions.resume([]), undefined);
});

test('a header carries the session where the rule says so', () => {
  const sessions = new Sessions({ type: 'Header', name: 'x-s' }, addresses);
  const token = sessions.token(0, 2);
  assert.match(sessions.line(0, 2), /^x-s: [0-9a-f]{16}\r\n$/);
  assert.equal(sessions.resume([token.replace('x-s', 'X-S')]), 'one/10.0.0.3:80');
  assert.equal(sessions.resume([`cookie: x-s=${token.slice(5)}`]), undefined);
});

test('a session ends with its absolute timeout, which a permanent cookie tells the client', () => {
  const sessions = new Sessions({ absoluteTimeoutS: 100, permanent: true }, addresses);
  assert.match(sessions.line(0, 1), /; Max-Age=100; Path=\/; HttpOnly; SameSite=Strict\r\n$/);
  const token = sessions.token(0, 1);
  sessions.nowS += 99;
  const exchange = sessions.exchange();
  assert.equal(sessions.resume([token], exchange), 'one/10.0.0.2:80');
  assert.equal(sessions.line(0, 1, exchange), '', 'its end has been told');
  sessions.nowS += 1;
  assert.equal(sessions.resume([token]), undefined);
});

test('a session ends when it is idle for too long, and every response puts that off', () => {
  const sessions = new Sessions({ idleTimeoutS: 10, absoluteTimeoutS: 25, permanent: true }, addresses);
  let token = sessions.token(0, 1);
  for (let step = 0; step < 3; step++) {
    sessions.nowS += 8;
    const exchange = sessions.exchange();
    assert.equal(sessions.resume([token], exchange), 'one/10.0.0.2:80', `step ${step}`);
    const line = sessions.line(0, 1, exchange);
    assert.match(line, new RegExp(`; Max-Age=${25 - 8 * (step + 1)};`));
    token = `cookie: s=${/s=([0-9a-f-]+)/.exec(line)![1]}`;
  }
  sessions.nowS += 1;
  assert.equal(sessions.resume([token]), undefined, 'the absolute timeout counts from the beginning');
  const idle = new Sessions({ idleTimeoutS: 10 }, addresses);
  token = idle.token(0, 1);
  idle.nowS += 10;
  assert.equal(idle.resume([token]), undefined);
});

test('times from the future are not believed, nor names without the times that count', () => {
  const sessions = new Sessions({ idleTimeoutS: 10 }, addresses);
  const token = sessions.token(0, 1);
  sessions.nowS -= 61;
  assert.equal(sessions.resume([token]), undefined);
  sessions.nowS += 31;
  assert.equal(sessions.resume([token]), 'one/10.0.0.2:80', 'clocks may differ a little');
  const [name] = /s=[0-9a-f]{16}/.exec(token)!;
  assert.equal(sessions.resume([`cookie: ${name}`]), undefined);
  assert.equal(sessions.resume([token.replace(/-/, '.')]), undefined);
});
