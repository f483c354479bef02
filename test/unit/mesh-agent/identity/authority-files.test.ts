import assert from 'node:assert/strict';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { loadIssuerFiles } from '../../../../mesh-agent/identity/issuer.ts';
import { bundleToPem } from '../../../../mesh-agent/identity/trust-bundle.ts';
import {
  CART,
  openAuthority,
  openssl,
  operatorCa,
  refusal,
  requestFor,
  temporaryDirectory,
  verifyWithOpenssl,
} from './support.ts';

test('the CA is kept in files that only its user can use, and is the same after a restart', async (t) => {
  const directory = join(temporaryDirectory(t), 'deep', 'ca');
  const first = await openAuthority(t, { directory });
  const paths = [
    directory,
    ...readdirSync(directory, { recursive: true, encoding: 'utf8' }).map((name) => join(directory, name)),
  ];
  assert.ok(paths.length >= 5, paths.join());
  for (const path of paths) {
    const stats = statSync(path);
    assert.equal((stats.mode & 0o777).toString(8), stats.isDirectory() ? '700' : '600', path);
  }
  const second = await openAuthority(t, { directory });
  assert.equal(bundleToPem(second.bundle), bundleToPem(first.bundle));
  assert.equal(second.bundle.sequence, first.bundle.sequence);
  const { chain } = await second.issue(await requestFor(CART), CART);
  verifyWithOpenssl(temporaryDirectory(t), chain, bundleToPem(first.bundle), 'sslserver');
});

test('files and directories that others may use are refused by name', async (t) => {
  const directory = temporaryDirectory(t);
  await (await openAuthority(t, { directory })).close();
  const [issuer] = readdirSync(directory).filter((name) => name.startsWith('issuer-'));
  for (const [path, mode, safe] of [
    [directory, 0o755, 0o700],
    [join(directory, 'state.json'), 0o644, 0o600],
    [join(directory, issuer!), 0o750, 0o700],
    [join(directory, issuer!, 'root.pem'), 0o640, 0o600],
    [join(directory, issuer!, 'intermediate.pem'), 0o602, 0o600],
  ] as const) {
    chmodSync(path, mode);
    await assert.rejects(openAuthority(t, { directory }), (error: Error) => {
      assert.ok(error.message.includes(path), error.message);
      return refusal('unsafe-permissions')(error);
    });
    chmodSync(path, safe);
  }
  await (await openAuthority(t, { directory })).close();
});

test('damaged state is an error and not a fresh start', async (t) => {
  const directory = temporaryDirectory(t);
  await (await openAuthority(t, { directory })).close();
  const path = join(directory, 'state.json');
  const good = JSON.parse(readFileSync(path, 'utf8'));
  for (const text of [
    '',
    '{',
    'null',
    '{}',
    JSON.stringify({ ...good, format: 2 }),
    JSON.stringify({ ...good, phase: 'resting' }),
    JSON.stringify({ ...good, phase: 'renewing' }),
    JSON.stringify({ ...good, sequence: 'x' }),
    JSON.stringify({ ...good, proxies: { a: {} } }),
  ]) {
    writeFileSync(path, text);
    await assert.rejects(openAuthority(t, { directory }), refusal('rotation', /damaged/), text);
  }
  writeFileSync(path, JSON.stringify({ ...good, activeId: '0123456789abcdef' }));
  await assert.rejects(openAuthority(t, { directory }), refusal('rotation', /0123456789abcdef/));
  writeFileSync(path, JSON.stringify(good));
  await assert.rejects(openAuthority(t, { directory, trustDomain: 'other' }), refusal('rotation', /trust domain/));
  const [issuer] = readdirSync(directory).filter((name) => name.startsWith('issuer-'));
  writeFileSync(join(directory, issuer!, 'root.pem'), 'junk');
  await assert.rejects(openAuthority(t, { directory }), refusal('ca-material'));
});

test('a CA without its state goes on with its one root, and does not guess between two', async (t) => {
  const directory = temporaryDirectory(t);
  const first = await openAuthority(t, { directory });
  await first.close();
  rmSync(join(directory, 'state.json'));
  // What a crash at the first start leaves.
  mkdirSync(join(directory, 'issuer-0123456789abcdef'), { mode: 0o700 });
  const second = await openAuthority(t, { directory });
  assert.equal(bundleToPem(second.bundle), bundleToPem(first.bundle));
  second.proxyConnected('a');
  await second.startRotation();
  await second.close();
  rmSync(join(directory, 'state.json'));
  await assert.rejects(openAuthority(t, { directory }), refusal('rotation', /no state\.json/));
  assert.equal(readdirSync(directory).length, 2);
});

test('an operator’s CA with other kinds of keys and names signs leaves that openssl verifies', async (t) => {
  const files = operatorCa(temporaryDirectory(t), 'ours');
  const authority = await openAuthority(t, { files });
  const { chain, bundle } = await authority.issue(await requestFor(CART), CART);
  assert.equal(bundleToPem(bundle).trim(), readFileSync(files.rootCertificate, 'utf8').trim());
  for (const purpose of ['sslserver', 'sslclient']) {
    verifyWithOpenssl(temporaryDirectory(t), chain, bundleToPem(bundle), purpose);
  }
  assert.match(openssl(['x509', '-noout', '-text'], chain[0]), /Signature Algorithm: ecdsa-with-SHA384/);
});

test('an operator’s CA is rotated to the next one that is given, and never to one that nobody gave', async (t) => {
  const [directory, made] = [temporaryDirectory(t), temporaryDirectory(t)];
  const [files, nextFiles] = [operatorCa(made, 'ours'), operatorCa(made, 'next')];
  const alone = await openAuthority(t, { directory, files });
  await assert.rejects(alone.startRotation(), refusal('rotation', /there are none of the next one/));
  assert.equal(alone.rotationStatus().phase, 'idle');
  await alone.close();
  const authority = await openAuthority(t, { directory, files, nextFiles });
  await authority.startRotation();
  const next = readFileSync(nextFiles.rootCertificate, 'utf8').trim();
  assert.equal(bundleToPem(authority.bundle).trim(), next);
  await authority.close();
  // From now on it is the first.
  assert.equal(bundleToPem((await openAuthority(t, { directory, files: nextFiles })).bundle).trim(), next);
});

test('an operator’s CA that cannot work is refused with what is wrong', async (t) => {
  const directory = temporaryDirectory(t);
  const files = operatorCa(directory, 'a');
  const others = operatorCa(directory, 'b');
  await assert.rejects(
    loadIssuerFiles({ ...files, key: others.key }),
    refusal('ca-material', /not that of its certificate/),
  );
  await assert.rejects(
    loadIssuerFiles({ ...files, rootCertificate: others.rootCertificate }),
    refusal('ca-material', /not signed by/),
  );
  await assert.rejects(
    loadIssuerFiles({ ...files, rootCertificate: files.certificate }),
    refusal('ca-material', /self-signed/),
  );
  await assert.rejects(loadIssuerFiles({ ...files, key: files.certificate }), refusal('unsafe-permissions'));
  await assert.rejects(
    loadIssuerFiles({ ...files, key: join(directory, 'none') }),
    refusal('storage', /does not exist/),
  );
  await assert.rejects(loadIssuerFiles({ ...files, certificate: files.key }), refusal('ca-material', /no certificate/));
  const leaf = (await (await openAuthority(t, { files })).issue(await requestFor(CART), CART)).chain;
  const asCa = join(directory, 'leaf.pem');
  writeFileSync(asCa, leaf.join(''));
  await assert.rejects(loadIssuerFiles({ ...files, certificate: asCa }), refusal('ca-material', /not a CA/));
  chmodSync(files.key, 0o644);
  await assert.rejects(loadIssuerFiles(files), refusal('unsafe-permissions', /a-ca\.key/));
});

test('files with another root than the mesh runs on do not replace it by a restart', async (t) => {
  const directory = temporaryDirectory(t);
  const a = operatorCa(directory, 'a');
  const b = operatorCa(directory, 'b');
  const ca = join(directory, 'ca');
  mkdirSync(ca, { mode: 0o700 });
  await (await openAuthority(t, { directory: ca, files: a })).close();
  await assert.rejects(openAuthority(t, { directory: ca, files: b }), refusal('rotation', /neither/));
  copyFileSync(a.key, join(directory, 'copy.key'));
  chmodSync(join(directory, 'copy.key'), 0o600);
  const again = await openAuthority(t, {
    directory: ca,
    files: { ...a, key: join(directory, 'copy.key') },
    nextFiles: b,
  });
  assert.equal(again.bundle.roots.length, 1);
});
