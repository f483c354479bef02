import assert from 'node:assert/strict';
import { createHook } from 'node:async_hooks';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { chmodSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { MeshAuthority } from '../../../../mesh-agent/identity/authority.ts';
import type { CertificateSource } from '../../../../mesh-agent/identity/certificate-client.ts';
import { IdentityError } from '../../../../mesh-agent/identity/errors.ts';
import {
  bundleFromJson,
  bundleToJson,
  bundleToPem,
  makeTrustBundle,
} from '../../../../mesh-agent/identity/trust-bundle.ts';
import { TrustStore } from '../../../../mesh-agent/identity/trust-store.ts';
import {
  type WorkloadCertificate,
  WorkloadCertificates,
} from '../../../../mesh-agent/identity/workload-certificates.ts';
import {
  CART,
  ManualClock,
  openAuthority,
  recordingLog,
  refusal,
  seeded,
  TRUST_DOMAIN,
  temporaryDirectory,
  turns,
  until,
} from './support.ts';

/** Keys are made on another thread, which the event loop does not wait for: those that are under way. */
const keysInTheMaking = new Set<number>();
createHook({
  init: (id, type) => void (type === 'KEYPAIRGENREQUEST' && keysInTheMaking.add(id)),
  after: (id) => void keysInTheMaking.delete(id),
}).enable();

const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;

interface Node {
  authority: MeshAuthority;
  clock: ManualClock;
  trust: TrustStore;
  store: WorkloadCertificates;
  /** What the CA was asked, and how many requests are not answered yet. */
  asked: string[];
  lines: ReturnType<typeof recordingLog>['lines'];
  changes: [string, WorkloadCertificate | null][];
  ca: { answer: ((chain: string[]) => string[]) | Error };
  /** Lets time pass, with the CA's answers. */
  pass(durationMs: number): Promise<void>;
}

/** A node whose CA is asked without a network. */
async function startNode(t: TestContext, directory?: string, before?: Node, lifetimeMs = 24 * HOUR_MS): Promise<Node> {
  const clock = before?.clock ?? new ManualClock(Date.now(), seeded(7));
  const authority = before?.authority ?? (await openAuthority(t, { clock }));
  const { log, lines } = recordingLog();
  const trust = before?.trust ?? (await TrustStore.open(TRUST_DOMAIN, bundleToPem(authority.bundle), null, log));
  const ca: Node['ca'] = { answer: (chain) => chain };
  const asked: string[] = [];
  let open = 0;
  const source: CertificateSource = {
    request: async (csr, identity, lifetimeMs) => {
      asked.push(identity);
      open++;
      try {
        if (ca.answer instanceof Error) throw ca.answer;
        return ca.answer((await authority.issue(csr, identity, lifetimeMs)).chain);
      } finally {
        open--;
      }
    },
  };
  const store = new WorkloadCertificates({
    source,
    trust,
    log,
    clock,
    lifetimeMs,
    ...(directory === undefined ? {} : { directory }),
  });
  t.after(() => store.close());
  const changes: Node['changes'] = [];
  store.onChange((identity, certificate) => changes.push([identity, certificate]));
  const settle = async (): Promise<void> => {
    for (let quiet = 0; quiet < 3; quiet++) {
      await turns(3);
      if (open === 0 && keysInTheMaking.size === 0) continue;
      await until(() => open === 0 && keysInTheMaking.size === 0);
      quiet = -1;
    }
  };
  return {
    authority,
    clock,
    trust,
    store,
    asked,
    lines,
    changes,
    ca,
    pass: (durationMs) => clock.advance(durationMs, settle),
  };
}

test('a held identity gets a certificate with a key that was made here, and everybody who waits is told', async (t) => {
  const { store, changes, asked } = await startNode(t);
  assert.equal(store.get(CART), null);
  store.hold(CART);
  store.hold(CART);
  const certificate = await store.wait(CART, AbortSignal.timeout(60_000));
  const leaf = new X509Certificate(certificate.chainPem);
  assert.ok(leaf.checkPrivateKey(createPrivateKey(certificate.keyPem)));
  assert.equal(leaf.subjectAltName, `URI:${CART}`);
  assert.equal(store.get(CART), certificate);
  assert.deepEqual(changes, [[CART, certificate]]);
  assert.deepEqual(asked, [CART]);
  store.release(CART);
  assert.equal(store.get(CART), certificate);
  store.release(CART);
  assert.equal(store.get(CART), null);
  assert.throws(() => store.hold('not an id'), refusal('spiffe-id'));
  await assert.rejects(store.wait(CART, AbortSignal.timeout(60_000)), refusal('internal'));
});

test('certificates are renewed around half of their life, not all at once, with a new key', async (t) => {
  const { store, pass, asked, clock } = await startNode(t, undefined, undefined, HOUR_MS);
  const identities = Array.from({ length: 12 }, (_, i) => `spiffe://${TRUST_DOMAIN}/ns/shop/sa/w${i}`);
  for (const identity of identities) store.hold(identity);
  const first = await Promise.all(identities.map((identity) => store.wait(identity, AbortSignal.timeout(60_000))));
  asked.length = 0;
  await pass(26.5 * MINUTE_MS);
  assert.deepEqual(asked, []);
  const renewedAtMs = new Set<number>();
  store.onChange(() => renewedAtMs.add(clock.nowMs()));
  await pass(7 * MINUTE_MS);
  await until(() => renewedAtMs.size >= 11);
  assert.deepEqual([...asked].sort(), [...identities].sort());
  for (const [i, identity] of identities.entries()) {
    assert.notEqual(store.get(identity)!.keyPem, first[i]!.keyPem);
    assert.ok(store.get(identity)!.notAfterMs > first[i]!.notAfterMs);
  }
});

test('while the CA is away, the old certificate is in use until it expires, and asked for ever more slowly', async (t) => {
  const { store, pass, ca, asked, changes, lines } = await startNode(t, undefined, undefined, HOUR_MS);
  store.hold(CART);
  const first = await store.wait(CART, AbortSignal.timeout(60_000));
  ca.answer = new IdentityError('ca-unreachable', 'nobody there');
  asked.length = 0;
  await pass(36 * MINUTE_MS);
  assert.equal(store.get(CART), first);
  assert.equal(store.errorOf(CART)?.code, 'ca-unreachable');
  const perMinute = asked.length;
  await pass(10 * MINUTE_MS);
  const attempts = asked.length - perMinute;
  assert.ok(attempts >= 18 && attempts <= 45, `${attempts} attempts in ten minutes`);
  // One line, however often it fails.
  assert.equal(lines.filter(({ message }) => message.includes('cannot be had')).length, 1);
  await pass(20 * MINUTE_MS);
  assert.equal(store.get(CART), null);
  assert.deepEqual(changes.at(-1), [CART, null]);
  assert.deepEqual(store.rootsInUse(), []);
  // Back again within the longest wait.
  ca.answer = (chain) => chain;
  await pass(31_000);
  await until(() => store.get(CART) !== null);
  assert.equal(store.errorOf(CART), null);
});

test('a CA that refuses is asked less often', async (t) => {
  const { store, pass, ca, asked } = await startNode(t);
  ca.answer = new IdentityError('identity-not-allowed', 'no');
  store.hold(CART);
  await pass(HOUR_MS);
  assert.ok(asked.length >= 12 && asked.length <= 40, `${asked.length} attempts in an hour`);
});

test('an answer that is not what was asked for is not used', async (t) => {
  const node = await startNode(t);
  const { store, pass, ca, authority } = node;
  const elsewhere = await openAuthority(t, { clock: node.clock });
  const { requestFor } = await import('./support.ts');
  const other = (
    await authority.issue(await requestFor(`spiffe://${TRUST_DOMAIN}/ns/a/sa/b`), `spiffe://${TRUST_DOMAIN}/ns/a/sa/b`)
  ).chain;
  const foreign = (await elsewhere.issue(await requestFor(CART), CART)).chain;
  const sameName = (await authority.issue(await requestFor(CART), CART)).chain;
  for (const [answer, cause] of [
    [() => other, /not spiffe/],
    [() => sameName, /another key/],
    [() => foreign, /another key/],
    [(chain: string[]) => chain.slice(0, 1), /does not lead to a root/],
    [(chain: string[]) => [chain[0]!, foreign[1]!], /does not lead to a root/],
    [(chain: string[]) => chain.slice(1), /is for/],
    [() => [], /nobody/],
    [() => ['junk'], /cannot be parsed/],
  ] as const) {
    ca.answer = answer;
    store.hold(CART);
    await pass(1);
    await until(() => store.errorOf(CART) !== null);
    assert.match(store.errorOf(CART)!.message, cause);
    assert.equal(store.get(CART), null);
    store.release(CART);
  }
});

test('when another root signs, certificates of the old one are renewed soon, and the node can say so', async (t) => {
  const node = await startNode(t);
  const { store, pass, authority, trust } = node;
  store.hold(CART);
  await store.wait(CART, AbortSignal.timeout(60_000));
  const follow = async (): Promise<void> => {
    await trust.apply(bundleToJson(authority.bundle));
    await pass(30_000);
    await until(() => store.rootsInUse().join() === authority.bundle.issuer);
    authority.proxyConfirmed('n1', trust.current.sequence, store.rootsInUse());
    await authority.settled();
  };
  authority.proxyConnected('n1');
  await authority.startRotation();
  const { activeRoot, nextRoot } = authority.rotationStatus();
  assert.deepEqual(store.rootsInUse(), [activeRoot]);
  const phases: string[] = [];
  while (authority.rotationStatus().phase !== 'idle') {
    phases.push(authority.rotationStatus().phase);
    await follow();
  }
  assert.deepEqual(phases, ['distributing', 'renewing', 'removing']);
  assert.deepEqual(store.rootsInUse(), [nextRoot]);
});

test('certificates and keys outlive a restart in private files, and are gone with the last holder', async (t) => {
  const directory = join(temporaryDirectory(t), 'certificates');
  const before = await startNode(t, directory);
  before.store.hold(CART);
  const first = await before.store.wait(CART, AbortSignal.timeout(60_000));
  await until(() => readdirSync(directory).some((name) => name.endsWith('.pem')));
  before.store.close();
  const [name] = readdirSync(directory);
  assert.equal(statSync(join(directory, name!)).mode & 0o777, 0o600);

  const after = await startNode(t, directory, before);
  after.ca.answer = new IdentityError('ca-unreachable', 'away');
  after.store.hold(CART);
  const again = await after.store.wait(CART, AbortSignal.timeout(60_000));
  assert.deepEqual([again.chainPem, again.keyPem], [first.chainPem, first.keyPem]);
  assert.deepEqual(after.asked, []);
  after.store.release(CART);
  await until(() => readdirSync(directory).length === 0);

  // One that others could have read is not used, nor one that is damaged.
  for (const [text, mode, cause] of [
    [first.keyPem + first.chainPem, 0o644, /mode 0644/],
    ['junk', 0o600, /./],
    [first.keyPem + first.chainPem.slice(0, 300), 0o600, /./],
  ] as const) {
    const other = temporaryDirectory(t);
    writeFileSync(join(other, name!), text);
    chmodSync(join(other, name!), mode);
    const node = await startNode(t, other, before);
    node.store.hold(CART);
    const fresh = await node.store.wait(CART, AbortSignal.timeout(60_000));
    assert.notEqual(fresh.keyPem, first.keyPem);
    const line = node.lines.find(({ message }) => message.includes('not used'));
    assert.match(String(line?.fields.cause), cause);
    await until(() => readFileSync(join(other, name!), 'utf8').includes(fresh.keyPem));
  }
});

test('trust bundles only move forward, come as SPIFFE has them, and outlive a restart', async (t) => {
  const directory = temporaryDirectory(t);
  chmodSync(directory, 0o700);
  const path = join(directory, 'bundle.json');
  const authority = await openAuthority(t);
  const { log, lines } = recordingLog();
  const roots = bundleToPem(authority.bundle);
  const trust = await TrustStore.open(TRUST_DOMAIN, roots, path, log);
  assert.equal(trust.current.sequence, 0);
  const seen: number[] = [];
  trust.onChange(({ sequence }) => seen.push(sequence));
  const json = bundleToJson(authority.bundle);
  const parsed = JSON.parse(json);
  assert.equal(parsed.keys[0].use, 'x509-svid');
  assert.equal(parsed.keys[0].kty, 'EC');
  assert.equal(parsed.keys[0].kid, undefined);
  assert.equal(parsed.spiffe_sequence, authority.bundle.sequence);
  assert.equal(await trust.apply(json), true);
  assert.equal(await trust.apply(json), false);
  const pems = authority.bundle.roots.map(({ pem }) => pem);
  const older = bundleToJson(makeTrustBundle(TRUST_DOMAIN, authority.bundle.sequence - 1, pems));
  await assert.rejects(trust.apply(older), refusal('bundle-stale', /older/));
  const second = await openAuthority(t);
  const changed = bundleToJson(
    makeTrustBundle(
      TRUST_DOMAIN,
      authority.bundle.sequence,
      second.bundle.roots.map(({ pem }) => pem),
    ),
  );
  await assert.rejects(trust.apply(changed), refusal('bundle-stale', /other roots/));
  assert.deepEqual(seen, [authority.bundle.sequence]);

  const again = await TrustStore.open(TRUST_DOMAIN, bundleToPem(second.bundle), path, log);
  assert.equal(again.current.sequence, authority.bundle.sequence);
  assert.equal(bundleToPem(again.current), roots);
  writeFileSync(path, '{');
  const fallback = await TrustStore.open(TRUST_DOMAIN, bundleToPem(second.bundle), path, log);
  assert.equal(bundleToPem(fallback.current), bundleToPem(second.bundle));
  assert.ok(lines.some(({ message }) => message.includes('damaged')));
});

test('malformed trust bundles are refused, and strange keys in good ones passed over', async (t) => {
  const { bundle } = await openAuthority(t);
  const good = JSON.parse(bundleToJson(bundle));
  for (const wrong of [
    '',
    '[]',
    'null',
    '{}',
    JSON.stringify({ ...good, keys: [] }),
    JSON.stringify({ ...good, keys: [null, { use: 'jwt-svid' }] }),
    JSON.stringify({ ...good, keys: [{ use: 'x509-svid', x5c: ['AAAA'] }] }),
    JSON.stringify({ ...good, spiffe_sequence: undefined }),
    JSON.stringify({ ...good, spiffe_sequence: -1 }),
    JSON.stringify({ ...good, spiffe_sequence: 1.5 }),
    JSON.stringify({ ...good, portcullis_issuer: 1 }),
    JSON.stringify({ ...good, keys: Array.from({ length: 17 }, () => good.keys[0]) }),
    ' '.repeat(300_000),
  ]) {
    assert.throws(() => bundleFromJson(TRUST_DOMAIN, wrong), refusal('bundle-malformed'), wrong.slice(0, 80));
  }
  const mixed = { ...good, keys: [{ use: 'jwt-svid', kty: 'EC' }, { use: 'x509-svid' }, null, ...good.keys] };
  assert.equal(bundleToPem(bundleFromJson(TRUST_DOMAIN, JSON.stringify(mixed))), bundleToPem(bundle));
});
