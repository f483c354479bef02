// What workers are told while the gateway runs: ticket keys, challenges, certificates from elsewhere.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadConfig } from '../../../../config/load.ts';
import type { AcmeChallengeSettings } from '../../../../core/workers/protocol.ts';
import { Certificates } from '../../../../gateway/certificates/certificates.ts';
import { ROTATION_INTERVAL_MS, TicketKeyRotation } from '../../../../gateway/certificates/ticket-rotation.ts';
import { certificateFor, keptLog } from './support.ts';

test('ticket keys are renewed every 12 hours, newest first, and the last 3 are kept', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  let rotations = 0;
  const rotation = new TicketKeyRotation(() => rotations++);
  const first = rotation.keys[0]!;
  assert.equal(ROTATION_INTERVAL_MS, 12 * 3_600_000);
  rotation.start();
  rotation.start();
  t.mock.timers.tick(ROTATION_INTERVAL_MS - 1);
  assert.equal(rotations, 0);
  t.mock.timers.tick(1);
  assert.equal(rotations, 1);
  assert.deepEqual([rotation.keys.length, rotation.keys[1]], [2, first]);
  const second = rotation.keys[0]!;
  t.mock.timers.tick(ROTATION_INTERVAL_MS);
  assert.deepEqual(rotation.keys.slice(1), [second, first]);
  t.mock.timers.tick(ROTATION_INTERVAL_MS);
  assert.deepEqual([rotation.keys.length, rotation.keys[2]], [3, second]);
  assert.equal(new Set(rotation.keys.map((key) => Buffer.from(key).toString('hex'))).size, 3);
  for (const key of rotation.keys) assert.equal(key.length, 80);
  rotation.stop();
  t.mock.timers.tick(10 * ROTATION_INTERVAL_MS);
  assert.equal(rotations, 3);
});

test('ticket keys are the same across reloads, and rotate only where a listener ends TLS', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const certificates = new Certificates(() => {});
  t.after(() => certificates.close());
  const told: (readonly Uint8Array[])[] = [];
  certificates.listen({ changed: () => {}, ticketKeys: (keys) => told.push(keys), challenges: () => {} });
  const configWith = (tls: string) => {
    const yaml = `listeners: [{name: http, address: ":80"}, {name: s, address: ":1", ${tls}}]
routes: []\nbackends: []\nacme: {storage: a, termsOfServiceAgreed: true}\n`;
    const result = loadConfig(yaml, '/gateway.yaml', {});
    assert.ok('config' in result);
    return result.config;
  };
  const passthrough = configWith('tls: {mode: Passthrough}');
  const terminate = configWith('tls: {acme: {hostnames: [a.test]}}');
  const before = certificates.prepare(passthrough).ticketKeys;
  certificates.adopt(passthrough);
  t.mock.timers.tick(ROTATION_INTERVAL_MS);
  assert.equal(told.length, 0);
  assert.deepEqual(certificates.prepare(terminate).ticketKeys, before);
  certificates.adopt(terminate);
  t.mock.timers.tick(ROTATION_INTERVAL_MS);
  assert.equal(told.length, 1);
  assert.deepEqual(told[0]!.slice(1), before);
  assert.deepEqual(certificates.material().ticketKeys, told[0]);
});

test('open challenges are published whole at every change, and end when cleared', () => {
  const certificates = new Certificates(() => {});
  const published: AcmeChallengeSettings[] = [];
  certificates.listen({ changed: () => {}, ticketKeys: () => {}, challenges: (all) => published.push(all) });
  const http = { type: 'http-01', token: 't', keyAuthorization: 't.k' } as const;
  const tls = { type: 'tls-alpn-01', hostname: 'A.test', chainPem: 'c', keyPem: 'k' } as const;
  const { challenges } = certificates;
  challenges.set(http);
  challenges.set(tls);
  const httpPart = { token: 't', keyAuthorization: 't.k' };
  const tlsPart = { hostname: 'a.test', chainPem: 'c', keyPem: 'k' };
  assert.deepEqual(published, [
    { http: [httpPart], tls: [] },
    { http: [httpPart], tls: [tlsPart] },
  ]);
  challenges.set({ ...tls, hostname: 'a.test', chainPem: 'new' });
  assert.deepEqual(published.at(-1)!.tls, [{ ...tlsPart, chainPem: 'new' }]);
  challenges.clear(http);
  challenges.clear(http);
  challenges.clear(tls);
  assert.equal(published.length, 5);
  assert.deepEqual(published.at(-1), { http: [], tls: [] });
});

test('a supplied certificate asks for a new snapshot, unless the one under way has it', (t) => {
  const { log } = keptLog();
  const certificates = new Certificates(log);
  t.after(() => certificates.close());
  const yaml = `listeners: [{name: h, address: ":80"}, {name: s, address: ":1", tls: {acme: {hostnames: [a.test]}}}]
routes: []\nbackends: []\nacme: {storage: a, termsOfServiceAgreed: true}\n`;
  const loaded = loadConfig(yaml, '/gateway.yaml', {});
  assert.ok('config' in loaded);
  let changes = 0;
  certificates.listen({ changed: () => changes++, ticketKeys: () => {}, challenges: () => {} });
  assert.equal(certificates.reread(), false);
  const supply = ({ pem, keyPem } = certificateFor(['a.test'])): void =>
    certificates.supply({ hostnames: ['a.test'], chainPem: pem, keyPem });
  supply();
  certificates.prepare(loaded.config);
  certificates.adopt(loaded.config);
  assert.equal(changes, 1);
  assert.equal(certificates.reread(), false, 'the snapshot was made with it');
  certificates.prepare(loaded.config);
  const late = certificateFor(['a.test']);
  supply(late);
  certificates.adopt(loaded.config);
  assert.equal(certificates.reread(), true, 'it came too late for that snapshot');
  certificates.material();
  certificates.adopt(loaded.config);
  assert.equal(certificates.reread(), false);
  supply(late);
  assert.equal(changes, 2, 'the same one is no news');
});
