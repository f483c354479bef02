import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { chmodSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  type Attestor,
  authenticate,
  authorise,
  type Caller,
  CertificateAttestor,
  type Evidence,
  identityOfPeer,
  ServiceAccountAttestor,
  type ServiceAccountReview,
} from '../../../../mesh-agent/identity/attestation.ts';
import { IdentityError } from '../../../../mesh-agent/identity/errors.ts';
import { JoinTokens } from '../../../../mesh-agent/identity/join-tokens.ts';
import { CART, openAuthority, openssl, refusal, requestFor, TRUST_DOMAIN, temporaryDirectory } from './support.ts';

const NODE = `spiffe://${TRUST_DOMAIN}/node/n1`;
const never = (): boolean => false;

function bearer(token: string): Evidence {
  return { header: (name) => (name === 'authorization' ? `Bearer ${token}` : undefined) };
}

test('a join token is for what it was made for, until it expires or is revoked', async (t) => {
  let nowMs = 1000;
  const directory = join(temporaryDirectory(t), 'tokens');
  const tokens = new JoinTokens(directory, TRUST_DOMAIN, () => nowMs);
  const grant = {
    node: 'n1',
    namespaces: ['jobs'],
    serviceAccounts: [{ namespace: 'shop', name: 'cart' }],
    expiresMs: 5000,
    uses: null,
  };
  const token = await tokens.create(grant);
  const caller = await tokens.authenticate(bearer(token));
  assert.deepEqual(caller, { name: caller!.name, identities: [NODE, CART], namespaces: ['jobs'], node: 'n1' });
  assert.ok(!caller!.name.includes(token.slice(-43)));
  const [info] = await tokens.list();
  assert.deepEqual(info, { id: info!.id, ...grant, used: 0 });
  nowMs = 5000;
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('unauthenticated', /expired/));
  nowMs = 1000;
  assert.equal(await tokens.revoke(info!.id), true);
  assert.equal(await tokens.revoke(info!.id), false);
  assert.equal(await tokens.revoke('../../etc'), false);
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('unauthenticated', /not known/));
});

test('the secret of a token is not on disk, and nothing but the whole token will do', async (t) => {
  const directory = join(temporaryDirectory(t), 'tokens');
  const tokens = new JoinTokens(directory, TRUST_DOMAIN);
  const token = await tokens.create({ node: 'n1', expiresMs: Number.MAX_SAFE_INTEGER, uses: 1 });
  const other = await tokens.create({ node: 'n2', expiresMs: Number.MAX_SAFE_INTEGER, uses: 1 });
  const secret = token.slice(-43);
  for (const name of readdirSync(directory)) {
    assert.ok(!readFileSync(join(directory, name), 'utf8').includes(secret));
    assert.ok(
      !readFileSync(join(directory, name), 'latin1').includes(Buffer.from(secret, 'base64url').toString('hex')),
    );
  }
  for (const wrong of [
    token.slice(0, -1),
    `${token}x`,
    token.slice(0, 13) + other.slice(13),
    `pj1_00000000_${secret}`,
    `pj1_../../aa_${secret}`,
    'pj1_',
    `${token.slice(0, -1)}${token.endsWith('A') ? 'B' : 'A'}`,
  ]) {
    await assert.rejects(tokens.authenticate(bearer(wrong)), refusal('unauthenticated', /not known/), wrong);
  }
  // Evidence of other kinds is for others to judge.
  assert.equal(await tokens.authenticate(bearer('a.b.c')), null);
  assert.equal(await tokens.authenticate({ header: () => undefined }), null);
  assert.equal(await tokens.authenticate({ header: () => `Basic ${token}` }), null);
});

test('uses are counted once each, however many come at the same time, and given back', async (t) => {
  const directory = join(temporaryDirectory(t), 'tokens');
  const tokens = new JoinTokens(directory, TRUST_DOMAIN);
  const token = await tokens.create({ node: 'n1', expiresMs: Number.MAX_SAFE_INTEGER, uses: 2 });
  const callers = await Promise.all(Array.from({ length: 5 }, () => tokens.authenticate(bearer(token))));
  const claims = await Promise.allSettled(callers.map((caller) => caller!.claim!()));
  const granted = claims.filter((claim) => claim.status === 'fulfilled');
  assert.equal(granted.length, 2);
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('unauthenticated', /used up/));
  await granted[0]!.value();
  // Another process sees the same count.
  const caller = await new JoinTokens(directory, TRUST_DOMAIN).authenticate(bearer(token));
  await caller!.claim!();
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('unauthenticated', /used up/));
  // A count that cannot be read is not a fresh one.
  const [uses] = readdirSync(directory).filter((name) => name.endsWith('.uses'));
  writeFileSync(join(directory, uses!), 'x');
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('unauthenticated', /used up/));
});

test('tokens for nothing, or for names that are none, are not made; damaged and readable ones are refused', async (t) => {
  const directory = join(temporaryDirectory(t), 'tokens');
  const tokens = new JoinTokens(directory, TRUST_DOMAIN);
  const more = { expiresMs: Number.MAX_SAFE_INTEGER, uses: null };
  for (const grant of [
    more,
    { ...more, node: 'a/b' },
    { ...more, node: '' },
    { ...more, namespaces: ['A'] },
    { ...more, serviceAccounts: [{ namespace: 'shop', name: 'a/b' }] },
    { ...more, node: 'n1', expiresMs: Number.NaN },
    { ...more, node: 'n1', uses: 0 },
  ]) {
    await assert.rejects(tokens.create(grant), refusal('spiffe-id', /not made/), JSON.stringify(grant));
  }
  const token = await tokens.create({ ...more, node: 'n1' });
  const [name] = readdirSync(directory);
  chmodSync(join(directory, name!), 0o644);
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('unsafe-permissions'));
  chmodSync(join(directory, name!), 0o600);
  writeFileSync(join(directory, name!), '{}');
  await assert.rejects(tokens.authenticate(bearer(token)), refusal('storage', /damaged/));
});

test('a caller gets its own identities, its namespaces, and as a node those of its workloads; nothing else', async () => {
  const caller: Caller = { name: 'c', identities: [CART], namespaces: ['jobs'], node: 'n1' };
  const runsOnNode = async (node: string, identity: string): Promise<boolean> =>
    node === 'n1' && identity === `spiffe://${TRUST_DOMAIN}/ns/shop/sa/web`;
  const allowed = (identity: string, who = caller): Promise<void> => authorise(who, identity, TRUST_DOMAIN, runsOnNode);
  for (const identity of [
    CART,
    `spiffe://${TRUST_DOMAIN}/ns/jobs/sa/any`,
    `spiffe://${TRUST_DOMAIN}/ns/shop/sa/web`,
    NODE,
  ]) {
    await allowed(identity);
  }
  for (const identity of [
    `spiffe://${TRUST_DOMAIN}/ns/shop/sa/other`,
    `spiffe://${TRUST_DOMAIN}/node/n2`,
    'spiffe://elsewhere/ns/shop/sa/cart',
    'spiffe://elsewhere/node/n1',
  ]) {
    await assert.rejects(allowed(identity), refusal('identity-not-allowed'), identity);
  }
  const noNode = { ...caller, node: null };
  await assert.rejects(allowed(`spiffe://${TRUST_DOMAIN}/ns/shop/sa/web`, noNode), refusal('identity-not-allowed'));
  await assert.rejects(allowed(NODE, noNode), refusal('identity-not-allowed'));
  for (const odd of ['', `spiffe://${TRUST_DOMAIN}`, `spiffe://${TRUST_DOMAIN}/admin`, 'x']) {
    await assert.rejects(allowed(odd), refusal('spiffe-id'), odd);
  }
});

test('an identity that is blocked is nobody’s, whoever asks and by whatever right', async () => {
  const blocked = new Set([CART]);
  const caller: Caller = { name: 'c', identities: [CART], namespaces: ['shop'], node: 'n1' };
  const ask = (identity: string, who: Partial<Caller>): Promise<void> =>
    authorise(
      { ...caller, ...who },
      identity,
      TRUST_DOMAIN,
      () => true,
      (one) => blocked.has(one),
    );
  const nothing = { identities: [], namespaces: [], node: null };
  for (const who of [{ identities: [CART] }, { namespaces: ['shop'] }, { node: 'n1' }]) {
    const reason = refusal('identity-not-allowed', /shop\/sa\/cart is blocked \(attestation\.blockedIdentities\)/);
    await assert.rejects(ask(CART, { ...nothing, ...who }), reason);
  }
  await ask(`spiffe://${TRUST_DOMAIN}/ns/shop/sa/web`, {});
  blocked.clear();
  await ask(CART, {});
});

test('only service accounts of node proxies speak for a node, and only for the one that their token names', async () => {
  const reviews: string[] = [];
  const attestor = new ServiceAccountAttestor(
    TRUST_DOMAIN,
    {
      review: async (token) => {
        reviews.push(token);
        if (token === 'bad.t.t') throw new IdentityError('unauthenticated', 'the API server does not know the token');
        const node = token === 'unbound.t.t' ? '' : 'n1';
        return { namespace: 'system', serviceAccount: token === 'cart.t.t' ? 'cart' : 'proxy', pod: 'p', node };
      },
    },
    ['system/proxy'],
  );
  const own = `spiffe://${TRUST_DOMAIN}/ns/system/sa/proxy`;
  const proxy = await attestor.authenticate(bearer('proxy.t.t'));
  assert.deepEqual([proxy!.identities, proxy!.node], [[own, NODE], 'n1']);
  const cart = await attestor.authenticate(bearer('cart.t.t'));
  assert.deepEqual([cart!.identities, cart!.node], [[`spiffe://${TRUST_DOMAIN}/ns/system/sa/cart`], null]);
  assert.equal((await attestor.authenticate(bearer('unbound.t.t')))!.node, null);
  await assert.rejects(attestor.authenticate(bearer('bad.t.t')), refusal('unauthenticated'));
  assert.equal(await attestor.authenticate(bearer('pj1_x')), null);
  assert.equal(reviews.length, 4);
});

test('a service account that is blocked, or is that of a blocked node, is not let in by its token', async () => {
  const account = `spiffe://${TRUST_DOMAIN}/ns/system/sa/proxy`;
  const review = async (): Promise<ServiceAccountReview> => {
    return { namespace: 'system', serviceAccount: 'proxy', pod: 'p', node: 'n1' };
  };
  const ask = (nodeAccounts: string[], blocked: string): Promise<Caller | null> =>
    new ServiceAccountAttestor(TRUST_DOMAIN, { review }, nodeAccounts, (identity) => identity === blocked).authenticate(
      bearer('a.b.c'),
    );
  await assert.rejects(ask([], account), refusal('unauthenticated', /sa\/proxy is blocked/));
  await assert.rejects(ask(['system/proxy'], NODE), refusal('unauthenticated', /node\/n1 is blocked/));
  assert.deepEqual((await ask([], NODE))!.identities, [account], 'it does not speak for the node');
});

test('a certificate of the mesh stands for its own identity until it expires; a CA certificate, or one of several ids, never', async (t) => {
  const authority = await openAuthority(t);
  const { chain, notAfterMs } = await authority.issue(await requestFor(NODE), NODE);
  let nowMs = Date.now();
  const blocked: string[] = [];
  const attestor = new CertificateAttestor(
    TRUST_DOMAIN,
    (identity) => blocked.includes(identity),
    () => nowMs,
  );
  const peer = (pem: string, token?: string): Evidence => ({
    header: (name) => (name === 'authorization' && token !== undefined ? `Bearer ${token}` : undefined),
    peerCertificate: new X509Certificate(pem),
  });
  assert.deepEqual(await attestor.authenticate(peer(chain[0]!)), {
    name: NODE,
    identities: [NODE],
    namespaces: [],
    node: 'n1',
  });
  assert.equal(await attestor.authenticate(peer(chain[0]!, 'pj1_x')), null);
  assert.equal(await attestor.authenticate({ header: () => undefined }), null);
  assert.equal(await attestor.authenticate(peer(chain[1]!)), null);
  assert.equal(await new CertificateAttestor('other').authenticate(peer(chain[0]!)), null);
  for (const san of [
    `URI:${NODE},URI:${CART}`,
    'DNS:a.example',
    'URI:https://a.example',
    `DNS:a.example\\, URI:${NODE}`,
  ]) {
    const pem = openssl([
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-keyout',
      '/dev/null',
      '-subj',
      '/CN=x',
      '-addext',
      `subjectAltName=${san}`,
      '-addext',
      'basicConstraints=critical,CA:false',
    ]);
    const expected = san.startsWith('DNS:a.example\\') ? [null, NODE] : [null];
    assert.ok(expected.includes(identityOfPeer(new X509Certificate(pem))), san);
  }
  blocked.push(NODE);
  await assert.rejects(attestor.authenticate(peer(chain[0]!)), refusal('unauthenticated', /blocked/));
  nowMs = notAfterMs + 1;
  await assert.rejects(attestor.authenticate(peer(chain[0]!)), refusal('unauthenticated', /expired/));
});

test('the first attestor that knows the evidence decides, and nobody at all is refused', async () => {
  const asked: string[] = [];
  const attestor = (name: string, caller: Caller | null): Attestor => ({
    authenticate: async () => {
      asked.push(name);
      return caller;
    },
  });
  const one = attestor('one', null);
  const two = attestor('two', { name: 'b', identities: [], namespaces: [], node: null });
  const three = attestor('three', null);
  assert.equal((await authenticate([one, two, three], bearer('x'))).name, 'b');
  assert.deepEqual(asked, ['one', 'two']);
  await assert.rejects(authenticate([one, three], bearer('x')), refusal('unauthenticated'));
  await assert.rejects(
    authorise({ name: 'x', identities: [], namespaces: [], node: null }, CART, TRUST_DOMAIN, never),
    refusal('identity-not-allowed'),
  );
});
