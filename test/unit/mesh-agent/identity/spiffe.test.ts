import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  formatNodeIdentity,
  formatWorkloadIdentity,
  nodeOfIdentity,
  parseSpiffeId,
  parseTrustDomain,
  parseWorkloadIdentity,
} from '../../../../mesh-agent/identity/spiffe.ts';
import { refusal } from './support.ts';

test('valid SPIFFE ids are taken apart', () => {
  for (const [text, trustDomain, segments] of [
    ['spiffe://example.org', 'example.org', []],
    ['spiffe://example.org/a', 'example.org', ['a']],
    ['spiffe://my_domain-1/Upper/lower.9/...', 'my_domain-1', ['Upper', 'lower.9', '...']],
    ['spiffe://cluster.local/ns/shop/sa/cart', 'cluster.local', ['ns', 'shop', 'sa', 'cart']],
    [`spiffe://${'t'.repeat(255)}/x`, 't'.repeat(255), ['x']],
    [`spiffe://td/${'p'.repeat(2048 - 12)}`, 'td', ['p'.repeat(2048 - 12)]],
  ] as const) {
    assert.deepEqual(parseSpiffeId(text), { trustDomain, segments });
  }
});

test('everything that is not a SPIFFE id in its one normal form is refused', () => {
  for (const [text, cause] of [
    ['', /begin with/],
    ['https://example.org/a', /begin with/],
    ['SPIFFE://example.org/a', /begin with/],
    ['spiffe:/example.org', /begin with/],
    ['spiffe://', /trust domain is empty/],
    ['spiffe:///a', /trust domain is empty/],
    ['spiffe://Example.org/a', /a-z/],
    ['spiffe://user@example.org/a', /a-z/],
    ['spiffe://example.org:443/a', /a-z/],
    ['spiffe://exämple.org/a', /a-z/],
    [`spiffe://${'t'.repeat(256)}/x`, /longer than 255/],
    ['spiffe://example.org/', /empty segment/],
    ['spiffe://example.org/a/', /empty segment/],
    ['spiffe://example.org//a', /empty segment/],
    ['spiffe://example.org/./a', /"\."/],
    ['spiffe://example.org/a/..', /"\.\."/],
    ['spiffe://example.org/a%2fb', /character/],
    ['spiffe://example.org/a?b', /character/],
    ['spiffe://example.org/a#b', /character/],
    ['spiffe://example.org/a b', /character/],
    ['spiffe://example.org/a\n', /character/],
    ['spiffe://example.org\n', /a-z/],
    ['spiffe://example.org/ä', /character/],
    [`spiffe://td/${'p'.repeat(2048 - 11)}`, /longer than 2048/],
  ] as const) {
    assert.throws(() => parseSpiffeId(text), refusal('spiffe-id', cause), text);
  }
});

test('a trust domain cannot smuggle in a path', () => {
  assert.throws(() => parseTrustDomain('td/ns'), refusal('spiffe-id'));
  assert.equal(parseTrustDomain('cluster.local'), 'cluster.local');
});

test('the identity of a workload has namespace and service account as Kubernetes names them', () => {
  const identity = { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'cart.v2' };
  assert.equal(formatWorkloadIdentity(identity), 'spiffe://cluster.local/ns/shop/sa/cart.v2');
  assert.deepEqual(parseWorkloadIdentity('spiffe://cluster.local/ns/shop/sa/cart.v2'), identity);
  for (const wrong of [
    'spiffe://cluster.local',
    'spiffe://cluster.local/ns/shop/sa',
    'spiffe://cluster.local/ns/shop/sa/cart/x',
    'spiffe://cluster.local/sa/cart/ns/shop',
    'spiffe://cluster.local/ns/Shop/sa/cart',
    'spiffe://cluster.local/ns/a.b/sa/cart',
    'spiffe://cluster.local/ns/-shop/sa/cart',
    'spiffe://cluster.local/ns/shop/sa/cart-',
    'spiffe://cluster.local/ns/shop/sa/a..b',
    `spiffe://cluster.local/ns/${'n'.repeat(64)}/sa/cart`,
  ]) {
    assert.throws(() => parseWorkloadIdentity(wrong), refusal('spiffe-id'), wrong);
  }
  assert.throws(() => formatWorkloadIdentity({ ...identity, namespace: 'a/sa/b' }), refusal('spiffe-id'));
});

test('a node has an identity of its own, which no workload can have', () => {
  const id = formatNodeIdentity('td', 'node-1.example');
  assert.equal(id, 'spiffe://td/node/node-1.example');
  assert.equal(nodeOfIdentity(id), 'node-1.example');
  assert.equal(nodeOfIdentity('spiffe://td/ns/a/sa/b'), null);
  assert.equal(nodeOfIdentity('spiffe://td/node/a/b'), null);
  assert.throws(() => formatNodeIdentity('td', 'a/b'), refusal('spiffe-id'));
  assert.throws(() => parseWorkloadIdentity(id), refusal('spiffe-id'));
});
