import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { readCertificate } from '../../../../mesh-agent/identity/certificate.ts';
import { splitCertificates } from '../../../../mesh-agent/identity/pem.ts';
import {
  abortRotation,
  advance,
  afterRestart,
  forgetGone,
  forgetProxy,
  initialState,
  proxyConfirmed,
  proxyConnected,
  proxyGone,
  proxyRefused,
  type RotationState,
  signerId,
  startRotation,
  trustedIds,
  waitingFor,
} from '../../../../mesh-agent/identity/rotation.ts';
import { RotationKeeper } from '../../../../mesh-agent/identity/rotation-keeper.ts';
import { bundleToPem, makeTrustBundle, verifyChain } from '../../../../mesh-agent/identity/trust-bundle.ts';
import {
  CART,
  ManualClock,
  openAuthority,
  operatorCa,
  refusal,
  requestFor,
  TRUST_DOMAIN,
  temporaryDirectory,
  verifyWithOpenssl,
} from './support.ts';

const WAIT_MS = 1000;

test('the phases follow each other only on the confirmation of every proxy', () => {
  let state = initialState('td', 'old', 5_000_000);
  assert.equal(state.sequence, 5000);
  for (const proxy of ['a', '__proto__', 'c']) state = proxyConnected(state, proxy);
  state = startRotation(state, 'new', 0);
  assert.deepEqual(
    [state.phase, trustedIds(state), signerId(state), state.sequence],
    ['distributing', ['old', 'new'], 'old', 5001],
  );
  for (const proxy of ['a', '__proto__']) state = proxyConfirmed(state, proxy, 5001, ['old']);
  assert.equal(advance(state, 0, WAIT_MS), state);
  assert.deepEqual(
    waitingFor(state, 0, WAIT_MS).map(({ proxy }) => proxy),
    ['c'],
  );
  // The confirmation of an older bundle is none.
  state = proxyConfirmed(state, 'c', 5000, ['old']);
  assert.equal(advance(state, 0, WAIT_MS), state);
  state = advance(proxyConfirmed(state, 'c', 5001, ['old']), 0, WAIT_MS);
  assert.deepEqual(
    [state.phase, trustedIds(state), signerId(state), state.sequence],
    ['renewing', ['old', 'new'], 'new', 5002],
  );
  for (const proxy of ['a', '__proto__', 'c']) state = proxyConfirmed(state, proxy, 5002, ['new']);
  state = proxyConfirmed(state, 'c', 5002, ['new', 'old']);
  assert.match(waitingFor(state, 0, WAIT_MS)[0]!.reason, /certificates of the root old/);
  assert.equal(advance(state, 0, WAIT_MS), state);
  state = advance(proxyConfirmed(state, 'c', 5002, ['new']), 0, WAIT_MS);
  assert.deepEqual(
    [state.phase, trustedIds(state), signerId(state), state.sequence],
    ['removing', ['new'], 'new', 5003],
  );
  for (const proxy of ['a', '__proto__']) state = proxyConfirmed(state, proxy, 5003, ['new']);
  state = proxyRefused(state, 'c', 'bad root');
  assert.match(waitingFor(state, 0, WAIT_MS)[0]!.reason, /refuses.*bad root/);
  state = advance(proxyConfirmed(state, 'c', 5003, ['new']), 0, WAIT_MS);
  assert.deepEqual(
    [state.phase, trustedIds(state), signerId(state), state.activeId, state.nextId],
    ['idle', ['new'], 'new', 'new', null],
  );
});

test('a proxy that comes in the middle holds the phase up until it has confirmed', () => {
  let state = startRotation(proxyConfirmed(proxyConnected(initialState('td', 'old', 0), 'a'), 'a', 0, []), 'new', 0);
  state = proxyConnected(proxyConfirmed(state, 'a', state.sequence, []), 'late');
  assert.equal(advance(state, 0, WAIT_MS), state);
  assert.equal(advance(proxyConfirmed(state, 'late', state.sequence, []), 0, WAIT_MS).phase, 'renewing');
});

test('a proxy that is gone is waited for, but not for ever, and can be forgotten', () => {
  let state = startRotation(proxyConnected(initialState('td', 'old', 0), 'a'), 'new', 0);
  state = proxyGone(state, 'a', 100);
  assert.equal(advance(state, 100 + WAIT_MS - 1, WAIT_MS), state);
  assert.match(waitingFor(state, 100, WAIT_MS)[0]!.reason, /gone since 1970/);
  assert.equal(advance(state, 100 + WAIT_MS, WAIT_MS).phase, 'renewing');
  assert.equal(advance(forgetProxy(state, 'a'), 100, WAIT_MS).phase, 'renewing');
  // Back again, it counts again.
  assert.equal(advance(proxyConnected(state, 'a'), 100 + WAIT_MS, WAIT_MS).phase, 'distributing');
  assert.deepEqual(forgetGone(state, 100 + WAIT_MS, WAIT_MS).proxies, {});
  assert.deepEqual(Object.keys(forgetGone(state, 100, WAIT_MS).proxies), ['a']);
});

test('after a restart, everybody who was connected is waited for', () => {
  const state = afterRestart(startRotation(proxyConnected(initialState('td', 'old', 0), 'a'), 'new', 0), 5000);
  assert.equal(advance(state, 5000 + WAIT_MS - 1, WAIT_MS), state);
  assert.equal(advance(state, 5000 + WAIT_MS, WAIT_MS).phase, 'renewing');
});

test('a rotation is turned back before the new root signs, and while it does, but not later', () => {
  const ready = (state: RotationState, roots: string[]): RotationState =>
    proxyConfirmed(state, 'a', state.sequence, roots);
  const distributing = startRotation(proxyConnected(initialState('td', 'old', 0), 'a'), 'new', 0);
  const back = abortRotation(distributing, 0);
  assert.deepEqual([back.phase, trustedIds(back), back.nextId], ['idle', ['old'], null]);
  assert.ok(back.sequence > distributing.sequence);
  const renewing = advance(ready(distributing, []), 0, WAIT_MS);
  const reverting = abortRotation(ready(renewing, ['new']), 0);
  assert.deepEqual([reverting.phase, trustedIds(reverting), signerId(reverting)], ['reverting', ['old', 'new'], 'old']);
  // The new root stays trusted for as long as anybody uses it.
  assert.equal(advance(ready(reverting, ['new']), 0, WAIT_MS).phase, 'reverting');
  const reverted = advance(ready(reverting, ['old']), 0, WAIT_MS);
  assert.deepEqual([reverted.phase, trustedIds(reverted), signerId(reverted)], ['idle', ['old'], 'old']);
  assert.ok(reverted.sequence > reverting.sequence);
  const removing = advance(ready(renewing, ['new']), 0, WAIT_MS);
  assert.throws(() => abortRotation(removing, 0), refusal('rotation', /too late/));
  assert.throws(() => abortRotation(back, 0), refusal('rotation', /no rotation/));
  assert.throws(() => abortRotation(reverting, 0), refusal('rotation', /already/));
  assert.throws(() => startRotation(renewing, 'x', 0), refusal('rotation', /under way/));
  assert.throws(() => startRotation(back, 'old', 0), refusal('rotation'));
});

test('a step that the disk refuses has no effect, and is taken when the disk is back', async () => {
  let broken = true;
  const entered: string[] = [];
  const failures: string[] = [];
  const keeper = new RotationKeeper(proxyConnected(initialState('td', 'old', 0), 'a'), {
    store: {
      load: async () => null,
      save: async () => {
        if (broken) throw new Error('disk full');
      },
    },
    nowMs: () => 0,
    goneWaitMs: WAIT_MS,
    entered: async ({ phase }) => void entered.push(phase),
    failed: ({ message }) => void failures.push(message),
  });
  await assert.rejects(
    keeper.step((state) => startRotation(state, 'new', 0)),
    /disk full/,
  );
  assert.equal(keeper.state.phase, 'idle');
  broken = false;
  await keeper.step((state) => startRotation(state, 'new', 0));
  broken = true;
  keeper.note((state) => proxyConfirmed(proxyConnected(state, 'a'), 'a', state.sequence, []));
  await keeper.settled();
  assert.deepEqual([entered, failures], [['distributing'], ['disk full']]);
  broken = false;
  await keeper.proceed();
  assert.deepEqual(entered, ['distributing', 'renewing']);
});

test('a proxy that connects while a step is being stored is asked before the step is taken', async () => {
  const entered: string[] = [];
  let connectNow = (): void => {};
  const keeper: RotationKeeper = new RotationKeeper(proxyConnected(initialState('td', 'old', 0), 'a'), {
    store: {
      load: async () => null,
      save: async ({ phase }) => {
        if (phase === 'renewing') connectNow();
      },
    },
    nowMs: () => 0,
    goneWaitMs: WAIT_MS,
    entered: async ({ phase }) => void entered.push(phase),
    failed: () => {},
  });
  await keeper.step((state) => startRotation(state, 'new', 0));
  connectNow = () => {
    connectNow = () => {};
    keeper.note((state) => proxyConnected(state, 'late'));
  };
  keeper.note((state) => proxyConfirmed(proxyConnected(state, 'a'), 'a', state.sequence, []));
  await keeper.settled();
  assert.deepEqual(entered, ['distributing']);
  assert.equal(keeper.state.phase, 'distributing');
  keeper.note((state) => proxyConfirmed(state, 'late', state.sequence, []));
  await keeper.settled();
  assert.deepEqual(entered, ['distributing', 'renewing']);
});

test('the authority rotates its root: certificates verify with every bundle that is about, and the old key is destroyed', async (t) => {
  const directory = temporaryDirectory(t);
  let authority = await openAuthority(t, { directory });
  const bundles = [authority.bundle];
  authority.onBundle((bundle) => bundles.push(bundle));
  const old = authority.bundle;
  authority.proxyConnected('a');
  await authority.startRotation();
  const verify = async (purpose: string, ...roots: string[]): Promise<void> => {
    const { chain } = await authority.issue(await requestFor(CART), CART);
    for (const pem of roots) verifyWithOpenssl(temporaryDirectory(t), chain, pem, purpose);
  };
  const { nextRoot, activeRoot } = authority.rotationStatus();
  assert.deepEqual(
    authority.bundle.roots.map(({ id }) => id),
    [activeRoot, nextRoot],
  );
  await verify('sslserver', bundleToPem(old), bundleToPem(authority.bundle));
  const { sequence } = authority.bundle;
  authority.proxyConfirmed('a', sequence, [activeRoot]);
  await authority.settled();
  assert.equal(authority.rotationStatus().phase, 'renewing');
  assert.equal(authority.bundle.issuer, nextRoot);
  // With the link, even who has only the old root takes the new certificates.
  await verify('sslclient', bundleToPem(old), bundleToPem(authority.bundle));

  // The process is replaced in the middle.
  await authority.close();
  authority = await openAuthority(t, { directory });
  assert.equal(authority.rotationStatus().phase, 'renewing');
  assert.deepEqual(
    authority.rotationStatus().waiting.map(({ proxy }) => proxy),
    ['a'],
  );
  await verify('sslclient', bundleToPem(old), bundleToPem(authority.bundle));
  authority.proxyConnected('a');
  authority.proxyConfirmed('a', authority.bundle.sequence, [nextRoot!]);
  await authority.settled();
  assert.equal(authority.rotationStatus().phase, 'removing');
  assert.deepEqual(
    authority.bundle.roots.map(({ id }) => id),
    [nextRoot],
  );
  assert.equal(readdirSync(directory).filter((name) => name.startsWith('issuer-')).length, 2);
  authority.proxyConfirmed('a', authority.bundle.sequence, [nextRoot!]);
  await authority.settled();
  assert.deepEqual([authority.rotationStatus().phase, authority.rotationStatus().activeRoot], ['idle', nextRoot]);
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.startsWith('issuer-')),
    [`issuer-${nextRoot}`],
  );
  await verify('sslserver', bundleToPem(authority.bundle));
  await assert.rejects(verify('sslserver', bundleToPem(old)));
  // A node that was away all the time still recognises the control plane, and can be given the new bundle.
  const { chainPem } = await authority.issueForServer(`spiffe://${TRUST_DOMAIN}/ns/system/sa/control`, {});
  verifyWithOpenssl(temporaryDirectory(t), splitCertificates(chainPem), bundleToPem(old), 'sslserver');
  const facts = splitCertificates(chainPem).map((pem) => readCertificate(pem));
  assert.equal(verifyChain(old, facts, Date.now()).id, activeRoot);
  const sequences = bundles.map((bundle) => bundle.sequence);
  assert.deepEqual(
    sequences,
    [...new Set(sequences)].sort((a, b) => a - b),
  );
});

test('an aborted rotation leaves the CA as it was, and the new key is destroyed', async (t) => {
  const directory = temporaryDirectory(t);
  const authority = await openAuthority(t, { directory });
  const [before] = readdirSync(directory).filter((name) => name.startsWith('issuer-'));
  authority.proxyConnected('a');
  await authority.startRotation();
  await assert.rejects(authority.startRotation(), refusal('rotation', /under way/));
  const { chain } = await authority.issue(await requestFor(CART), CART);
  await authority.abortRotation();
  assert.equal(authority.bundle.roots.length, 1);
  verifyWithOpenssl(temporaryDirectory(t), chain, bundleToPem(authority.bundle), 'sslserver');
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.startsWith('issuer-')),
    [before],
  );
  await assert.rejects(authority.abortRotation(), refusal('rotation', /no rotation/));
});

test('a rotation moves from a generated root to an operator’s', async (t) => {
  const directory = temporaryDirectory(t);
  const nextFiles = operatorCa(temporaryDirectory(t), 'next');
  const clock = new ManualClock();
  let authority = await openAuthority(t, { directory, nextFiles, clock });
  await authority.startRotation();
  await authority.settled();
  // Without any proxy there is nobody to wait for.
  assert.equal(authority.rotationStatus().phase, 'idle');
  const { chain, bundle } = await authority.issue(await requestFor(CART), CART);
  verifyWithOpenssl(temporaryDirectory(t), chain, bundleToPem(bundle), 'sslserver');
  await authority.close();
  authority = await openAuthority(t, { directory, files: nextFiles, clock });
  assert.equal(bundleToPem(authority.bundle), bundleToPem(bundle));
});

test('bundles with the roots of another trust domain are refused', async (t) => {
  const authority = await openAuthority(t);
  assert.throws(
    () =>
      makeTrustBundle(
        'other',
        1,
        authority.bundle.roots.map(({ pem }) => pem),
      ),
    refusal('bundle-malformed', /is for/),
  );
});
