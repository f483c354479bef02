// What policies decide, case by case (policies.yaml), and when they decide it.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { parse } from 'yaml';
import { parseAddress } from '../../../../core/authorization/network.ts';
import { authorizationOf, requestOf, type ShortConnection, type ShortPolicy, verdictOf } from './support.ts';

interface Ask extends Omit<ShortConnection, 'identity'> {
  from?: string;
  ask?: string;
  fields?: string[];
  client?: string;
  tcp?: boolean;
  is: string;
  trial?: string;
}

interface Case {
  name: string;
  policies: ShortPolicy[];
  asks: Ask[];
}

const cases: Case[] = parse(readFileSync(new URL('policies.yaml', import.meta.url), 'utf8'));

for (const { name, policies, asks } of cases) {
  test(name, () => {
    const authorization = authorizationOf(policies);
    for (const one of asks) {
      const { from = '', ask, fields = [], client, tcp = false, is, trial = 'in', ...connection } = one;
      assert.notEqual(tcp, ask !== undefined, 'a case is either a request or a connection');
      const verdict = verdictOf(authorization, { ...connection, identity: from });
      const request = requestOf(ask ?? 'GET /', fields, client === undefined ? null : parseAddress(client));
      const refusal = tcp ? verdict.ofConnection : verdict.ofRequest(request);
      assert.equal(refusal?.word ?? 'in', is, JSON.stringify(one));
      if (refusal !== null) continue;
      const tried = tcp ? verdict.trialOfConnection : verdict.trialOfRequest(request);
      assert.equal(tried?.word ?? 'in', trial, `on trial: ${JSON.stringify(one)}`);
    }
  });
}

test('what asks only of connections is settled before there is a request', () => {
  const shop = { identity: 'spiffe://cluster.local/ns/shop/sa/web' };
  const other = { identity: 'spiffe://cluster.local/ns/other/sa/web' };
  const settled = (policies: ShortPolicy[], connection: ShortConnection): boolean =>
    verdictOf(authorizationOf(policies), connection).settled;
  const fromShop = { namespaces: ['shop'] };
  assert.equal(settled([], shop), true);
  assert.equal(settled([{ name: 's/a', rules: [{ from: [fromShop] }] }], shop), true);
  assert.equal(settled([{ name: 's/a', rules: [{ from: [fromShop] }] }], other), true);
  const getFromShop: ShortPolicy = { name: 's/a', rules: [{ from: [fromShop], to: [{ methods: ['GET'] }] }] };
  assert.equal(settled([getFromShop], shop), false);
  assert.equal(settled([getFromShop], other), true, 'no request of anybody else could be allowed');
  const noPost: ShortPolicy = { name: 's/d', action: 'deny', rules: [{ to: [{ methods: ['POST'] }] }] };
  assert.equal(settled([{ name: 's/a', rules: [{}] }, noPost], shop), false);
  assert.equal(settled([{ name: 's/d', action: 'deny', rules: [{}] }, noPost], shop), true);
  assert.equal(settled([{ ...noPost, dryRun: true }], shop), false, 'what is on trial needs requests, too');
  const elsewhere: ShortPolicy = { ...noPost, rules: [{ to: [{ ports: [1], methods: ['POST'] }] }] };
  assert.equal(settled([elsewhere], shop), true);
});

test('a refusal names the counters of the policies that decided', () => {
  const policies: ShortPolicy[] = [
    { name: 'count/a', rules: [{ from: [{ namespaces: ['shop'] }] }] },
    { name: 'count/b', rules: [] },
    { name: 'count/d', action: 'deny', rules: [{ from: [{ namespaces: ['ops'] }] }] },
  ];
  const authorization = authorizationOf(policies);
  const names = (identity: string): string[] | undefined =>
    verdictOf(authorization, { identity }).ofConnection?.policies.map(({ name }) => name);
  assert.deepEqual(names('spiffe://c/ns/ops/sa/x'), ['count/d']);
  assert.deepEqual(names('spiffe://c/ns/x/sa/x'), ['count/a', 'count/b']);
  const slots = verdictOf(authorization).ofConnection!.policies.map(({ slot }) => slot);
  assert.equal(new Set(slots).size, 2);
});

test('a path that is too long to be looked at is denied, and not allowed', () => {
  const path = `/${'a'.repeat(100_000)}`;
  const allow = verdictOf(authorizationOf([{ name: 's/a', rules: [{ to: [{ paths: ['/*'] }] }] }]));
  assert.equal(allow.ofRequest(requestOf('GET /a')), null);
  assert.equal(allow.ofRequest(requestOf(`GET ${path}`))?.word, 'not_allowed_by_s/a');
  const deny = verdictOf(authorizationOf([{ name: 's/d', action: 'deny', rules: [{ to: [{ paths: ['/b'] }] }] }]));
  assert.equal(deny.ofRequest(requestOf('GET /a')), null);
  assert.equal(deny.ofRequest(requestOf(`GET ${path}`))?.word, 'denied_by_s/d rule 1');
});

test('fields that together are too long to be looked at are denied, and not allowed', () => {
  const fields = [`x: ${'a'.repeat(40_000)}`, `x: ${'a'.repeat(40_000)}`];
  const when = [{ key: 'request.headers[x]', values: ['a*'] }];
  const allow = verdictOf(authorizationOf([{ name: 's/a', rules: [{ when }] }]));
  assert.equal(allow.ofRequest(requestOf('GET /a', fields.slice(1))), null);
  assert.equal(allow.ofRequest(requestOf('GET /a', fields))?.word, 'not_allowed_by_s/a');
  const other = [{ key: 'request.headers[x]', values: ['b'] }];
  const deny = verdictOf(authorizationOf([{ name: 's/d', action: 'deny', rules: [{ when: other }] }]));
  assert.equal(deny.ofRequest(requestOf('GET /a', fields.slice(1))), null);
  assert.equal(deny.ofRequest(requestOf('GET /a', fields))?.word, 'denied_by_s/d rule 1');
});
