// Which certificates are in use: reloads, broken replacements, expiry, what ACME supplies.

import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Config } from '../../../../config/config.ts';
import { formatConfigError, loadConfig, loadConfigFile } from '../../../../config/load.ts';
import { ExitError } from '../../../../core/process/exit-codes.ts';
import { Certificates } from '../../../../gateway/certificates/certificates.ts';
import { CertificateStore } from '../../../../gateway/certificates/store.ts';
import { makeCertificate } from '../../core/tls/certificates.ts';
import { certificateFor, keptLog, temporaryDirectory, writePair } from './support.ts';

const DAY_MS = 86_400_000;

function configOf(directory: string, tls: string, more = ''): Config {
  const yaml = `listeners: [{name: http, address: ":80"}, {name: s, address: ":443", tls: {${tls}}}]
routes: []\nbackends: []\n${more}`;
  const result = loadConfig(yaml, join(directory, 'gateway.yaml'), {});
  assert.ok('config' in result, 'errors' in result ? result.errors.map(formatConfigError).join('\n') : '');
  return result.config;
}

const onePair = 'certificates: [{certificate: a.crt, key: a.key}]';

/** A directory with the pair a, and a store in which it is in use. */
function pairInUse(t: Parameters<typeof temporaryDirectory>[0], toDays = 30) {
  const directory = temporaryDirectory(t);
  const first = certificateFor(['a.test'], toDays);
  writePair(directory, 'a', first);
  const kept = keptLog();
  let nowMs = Date.now();
  const store = new CertificateStore(kept.log, () => nowMs);
  const config = configOf(directory, onePair);
  store.prepare(config, []);
  store.adopt(config);
  const chain = (): string => store.material([]).certificate(config.listeners[1]!.tls!.certificates[0]!).chainPem;
  const advance = (days: number): void => {
    nowMs += days * DAY_MS;
  };
  return { directory, first, store, config, chain, advance, ...kept };
}

test('new content is taken and logged with both fingerprints; unchanged content is not news', (t) => {
  const { directory, first, store, chain, lines } = pairInUse(t);
  assert.equal(chain().trim(), first.pem.trim());
  assert.equal(store.reread(), false);
  assert.equal(lines.length, 1);
  const before = store.states()[0]!;
  const second = certificateFor(['a.test', 'b.test']);
  writePair(directory, 'a', second);
  assert.equal(store.reread(), true);
  assert.equal(chain().trim(), second.pem.trim());
  const { fingerprint, notAfterMs } = store.states()[0]!;
  assert.notEqual(fingerprint, before.fingerprint);
  const expires = new Date(notAfterMs).toISOString();
  assert.equal(
    lines[1],
    `info certificate replaced file=${directory}/a.crt names=a.test,b.test expires=${expires} fingerprint=${fingerprint} fingerprintBefore=${before.fingerprint}`,
  );
  assert.equal(store.reread(), false);
});

test('a broken replacement is refused once with the reason, and what was in use stays', (t) => {
  const { directory, first, store, chain, config, matching } = pairInUse(t);
  const second = certificateFor(['a.test']);
  const refusals = (): string[] => matching(/^error .*: the one of before stays in use/);
  // As when certificate and key are not replaced at the same time.
  writeFileSync(join(directory, 'a.crt'), second.pem);
  for (let i = 0; i < 3; i++) assert.equal(store.reread(), false);
  assert.equal(refusals().length, 1);
  assert.ok(refusals()[0]!.startsWith(`error ${directory}/a.key does not belong to the certificate`));
  assert.equal(chain().trim(), first.pem.trim());
  writePair(directory, 'a', certificateFor(['a.test'], -0.5));
  assert.equal(store.reread(), false);
  assert.match(refusals()[1]!, /a\.crt expired on /);
  rmSync(join(directory, 'a.key'));
  assert.equal(store.reread(), false);
  assert.match(refusals()[2]!, /a\.key does not exist/);
  assert.equal(refusals().length, 3);
  store.prepare(config, []);
  assert.equal(chain().trim(), first.pem.trim(), 'a reload of the configuration does not take it away either');
  assert.equal(refusals().length, 3);
  writePair(directory, 'a', second);
  assert.equal(store.reread(), true);
  assert.equal(chain().trim(), second.pem.trim());
});

test('a pair that comes back as it was is said to', (t) => {
  const { directory, first, store, matching } = pairInUse(t);
  writeFileSync(join(directory, 'a.crt'), 'x');
  store.reread();
  writePair(directory, 'a', first);
  assert.equal(store.reread(), false);
  assert.equal(matching(/info file is as before again/).length, 1);
});

test('a configuration that names something new and bad is refused, and the running one keeps its own', (t) => {
  const { directory, store, chain, first } = pairInUse(t);
  const next = configOf(
    directory,
    'certificates: [{certificate: a.crt, key: a.key}, {certificate: b.crt, key: b.key}]',
  );
  assert.throws(
    () => store.prepare(next, []),
    (error: Error) =>
      error instanceof ExitError && error.message.startsWith(`${directory}/b.crt does not exist; expected `),
  );
  assert.equal(chain().trim(), first.pem.trim());
});

test('what the running configuration does not name any more is forgotten', (t) => {
  const { directory, store, config } = pairInUse(t);
  writePair(directory, 'b', certificateFor(['b.test']));
  const next = configOf(directory, 'certificates: [{certificate: b.crt, key: b.key}]');
  store.prepare(next, []);
  assert.deepEqual(store.adopt(next), [join(directory, 'b.crt'), join(directory, 'b.key')]);
  assert.deepEqual(
    store.states().map(({ name }) => name),
    ['b.test'],
  );
  assert.throws(() => store.material([]).certificate(config.listeners[1]!.tls!.certificates[0]!));
});

test('lists of authorities are loaded, replaced and kept like certificates', (t) => {
  const directory = temporaryDirectory(t);
  const { log, lines, matching } = keptLog();
  const store = new CertificateStore(log);
  const root = (name: string): string => makeCertificate({ name, ca: true }).pem;
  writePair(directory, 'a', certificateFor(['a.test']));
  const first = root('one');
  writeFileSync(join(directory, 'ca.pem'), first);
  const config = configOf(directory, `${onePair}, clientValidation: {caCertificates: ca.pem}`);
  store.prepare(config, []);
  const watched = store.adopt(config);
  assert.ok(watched.includes(join(directory, 'ca.pem')));
  const bundle = (): string => store.material([]).authorities(join(directory, 'ca.pem'));
  assert.equal(bundle(), first);
  writeFileSync(join(directory, 'ca.pem'), 'nothing');
  assert.equal(store.reread(), false);
  assert.equal(bundle(), first);
  assert.equal(matching(/^error .*ca\.pem is not in PEM format/).length, 1);
  const second = root('two');
  writeFileSync(join(directory, 'ca.pem'), second);
  assert.equal(store.reread(), true);
  assert.equal(bundle(), second);
  assert.equal(lines.at(-1), `info list of authorities replaced file=${directory}/ca.pem`);
  assert.equal(store.states().length, 1, 'authorities are no certificates of ours');
});

test('the log warns 14 and 3 days before a certificate expires and when it has, once each', (t) => {
  const { store, advance, matching, directory } = pairInUse(t, 30);
  const warnings = (): string[] => matching(/expire[sd]( |:)/).filter((line) => !line.startsWith('info'));
  const at = (days: number): string[] => {
    advance(days);
    store.warnOfExpiry();
    store.warnOfExpiry();
    return warnings();
  };
  assert.equal(at(15).length, 0);
  const expires = new Date(store.states()[0]!.notAfterMs).toISOString();
  assert.deepEqual(at(1.5), [
    `warn certificate expires soon certificate=a.test file=${directory}/a.crt expires=${expires} days=13`,
  ]);
  assert.equal(at(5).length, 1);
  assert.match(at(6)[1]!, /^warn certificate expires soon .* days=2$/);
  assert.match(at(3)[2]!, /^error certificate has expired: clients refuse it /);
  assert.equal(at(10).length, 3);
  writePair(directory, 'a', makeCertificate({ name: 'a', names: ['dns:a.test'], toDays: 60 }));
  assert.equal(store.reread(), true, 'an expired one is replaced like any other');
});

test('a certificate that is loaded late in its life is warned of once, at its nearest threshold', (t) => {
  const { matching } = pairInUse(t, 2);
  assert.deepEqual(
    matching(/^warn/).map((line) => /days=\d+/.exec(line)?.[0]),
    ['days=1'],
  );
});

test('supplied certificates replace those for the same names, and are checked', (t) => {
  const directory = temporaryDirectory(t);
  const kept = keptLog();
  const store = new CertificateStore(kept.log);
  const acme = 'acme: {storage: acme, termsOfServiceAgreed: true}\n';
  const config = configOf(directory, 'acme: {hostnames: [a.test, b.test]}', acme);
  store.prepare(config, []);
  const both = certificateFor(['a.test', 'b.test']);
  const supply = (hostnames: string[], { pem, keyPem } = both, placeholder = false): boolean =>
    store.supply({ hostnames, chainPem: pem, keyPem, placeholder });
  const standIn = certificateFor(['a.test', 'b.test'], 1);
  supply(['a.test', 'b.test'], standIn, true);
  store.adopt(config);
  assert.deepEqual(store.states(), [], 'a placeholder is not counted');
  supply(['a.test', 'B.test']);
  const automatic = (...names: string[]): string[] =>
    store
      .material([])
      .automatic(names)
      .map(({ chainPem }) => chainPem.trim());
  assert.deepEqual(automatic('a.test', 'b.test'), [both.pem.trim()]);
  assert.deepEqual(automatic('a.test'), []);
  const renewed = certificateFor(['a.test', 'b.test']);
  supply(['b.test', 'a.test'], renewed);
  assert.deepEqual(automatic('b.test', 'a.test'), [renewed.pem.trim()]);
  assert.deepEqual(
    kept.lines.map((line) => line.split(' names=')[0]),
    ['info automatic certificate in use', 'info automatic certificate in use'],
  );
  assert.deepEqual(
    store.states().map(({ file }) => file),
    ['acme'],
  );
  assert.throws(() => supply(['a.test', 'c.test']), /the certificate for a\.test, c\.test lacks c\.test/);
  assert.throws(() => supply(['a.test'], { ...both, keyPem: renewed.keyPem }), /the key for a\.test does not belong/);
  assert.deepEqual(automatic('b.test', 'a.test'), [renewed.pem.trim()]);
  supply(['a.test', 'b.test'], certificateFor(['a.test', 'b.test'], -0.5));
  assert.match(kept.lines.at(-1)!, /^error certificate has expired/, 'an expired one is better than none');
  store.adopt(configOf(directory, 'acme: {hostnames: [z.test]}', acme));
  assert.deepEqual(store.states(), []);
});

test('problems of files are errors of the configuration, each at its place', (t) => {
  const directory = temporaryDirectory(t);
  const good = certificateFor(['a.test', 'www.a.test']);
  writePair(directory, 'a', good);
  writePair(directory, 'same', certificateFor(['a.test']));
  writePair(directory, 'nameless', certificateFor([]));
  writePair(directory, 'old', certificateFor(['old.test'], -0.5));
  writePair(directory, 'mixed', { pem: good.pem, keyPem: certificateFor(['b.test']).keyPem });
  writeFileSync(join(directory, 'ca.pem'), 'nothing');
  const file = join(directory, 'gateway.yaml');
  writeFileSync(
    file,
    `listeners:
  - name: s
    address: ":443"
    tls:
      certificates:
        - {certificate: a.crt, key: a.key}
        - {certificate: same.crt, key: same.key}
        - {certificate: same.crt, key: same.key, hostnames: [c.test]}
        - {certificate: nameless.crt, key: nameless.key}
        - {certificate: old.crt, key: old.key}
        - {certificate: mixed.crt, key: mixed.key}
        - {certificate: none.crt, key: a.key}
        - {certificate: a.crt, key: .}
      clientValidation: {caCertificates: ca.pem}
  - {name: p, address: ":444", tls: {mode: Passthrough}}
routes: []
backends:
  - name: b
    endpoints: ["b.test:1"]
    tls: {caCertificates: missing.pem, certificate: a.key, key: a.key}
acme: {storage: ca.pem, termsOfServiceAgreed: true, caCertificates: ca.pem}
`,
  );
  const certificates = new Certificates(() => {});
  const result = loadConfigFile(file, {}, [certificates.check]);
  assert.ok('errors' in result);
  const texts = result.errors.map((error) => formatConfigError(error).replaceAll(`${directory}/`, ''));
  const beginnings = [
    '7:25: listeners[0].tls.certificates[1].certificate: is never used: listeners[0].tls.certificates[0] is for the same names, with a key of the same type (ec), expected one certificate',
    '9:25: listeners[0].tls.certificates[3].certificate: has no DNS names, so that no client would get it, expected a certificate with DNS names',
    '10:25: listeners[0].tls.certificates[4].certificate: old.crt expired on ',
    '11:41: listeners[0].tls.certificates[5].key: mixed.key does not belong to the certificate',
    '12:25: listeners[0].tls.certificates[6].certificate: none.crt does not exist, expected a readable PEM file',
    `13:37: listeners[0].tls.certificates[7].key: ${directory} is a directory, expected a readable PEM file`,
    '14:42: listeners[0].tls.clientValidation.caCertificates: ca.pem is not in PEM format, expected a PEM file with the certificates of the authorities',
    '20:27: backends[0].tls.caCertificates: missing.pem does not exist',
    '20:53: backends[0].tls.certificate: a.key holds a private key and no certificate',
    '21:17: acme.storage: ca.pem is not a directory, expected a directory',
    '21:69: acme.caCertificates: ca.pem is not in PEM format',
  ];
  assert.equal(texts.length, beginnings.length, texts.join('\n'));
  for (const [index, beginning] of beginnings.entries()) {
    assert.ok(texts[index]!.startsWith(`gateway.yaml:${beginning}`), texts[index]);
  }
});

test('a check at a reload leaves alone what is in use and has turned bad, and finds what is new and bad', (t) => {
  const directory = temporaryDirectory(t);
  writePair(directory, 'a', certificateFor(['a.test']));
  const file = join(directory, 'gateway.yaml');
  const certificates = new Certificates(() => {});
  t.after(() => certificates.close());
  const load = (entries: string) => {
    writeFileSync(
      file,
      `listeners: [{name: s, address: ":443", tls: {certificates: [${entries}]}}]\nroutes: []\nbackends: []\n`,
    );
    return loadConfigFile(file, {}, [certificates.check]);
  };
  const one = '{certificate: a.crt, key: a.key}';
  const first = load(one);
  assert.ok('config' in first);
  certificates.prepare(first.config);
  certificates.adopt(first.config);
  writeFileSync(join(directory, 'a.crt'), 'x');
  writeFileSync(join(directory, 'b.crt'), 'x');
  const second = load(one);
  assert.ok('config' in second);
  certificates.prepare(second.config);
  const third = load(`${one}, {certificate: b.crt, key: a.key}`);
  assert.ok('errors' in third);
  assert.deepEqual(
    third.errors.map(({ problem }) => problem.replace(directory, '')),
    ['listeners[0].tls.certificates[1].certificate: /b.crt is not in PEM format'],
  );
});
