// Session resumption: across workers, reloads and key rotations. Rotation and ACME challenges are set off
// by the control thread, so those tests run the application inside this process.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { ConnectionOptions } from 'node:tls';
import { loadConfigFile } from '../../../config/load.ts';
import { Logger } from '../../../core/process/log.ts';
import { App } from '../../../gateway/app.ts';
import { type CertificateEvents, Certificates } from '../../../gateway/certificates/certificates.ts';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { becomes, request } from '../http/support.ts';
import { openWire, type Wire } from '../http/wire.ts';
import { filesOf, issue, named, openSecure, openUpstream, pairOf, startSite, subjectOf, tlsOf } from './support.ts';

const upstream = await openUpstream();
upstream.serve(named('ok'));
const files = filesOf({ site: issue('site', ['dns:a.example']) });
const config = (more = ''): string => `
workers: 2
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
listeners:
  - {name: https, address: "127.0.0.1:0", protocols: [http/1.1], tls: {certificates: [${pairOf('site')}]}}
  - name: without
    address: "127.0.0.1:0"
    protocols: [http/1.1]
    tls: {certificates: [${pairOf('site')}], sessionTickets: false}
  - {name: http, address: "127.0.0.1:0", redirectToHttps: true}
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream.port}"]${more}}]
`;
const versions = ['TLSv1.2', 'TLSv1.3'] as const;

/** One request on a new connection: whether it resumed, and a session for the next one. */
async function visit(
  open: (options: ConnectionOptions) => Promise<Wire>,
  version: (typeof versions)[number],
  session?: Buffer,
  path = '/',
): Promise<{ resumed: boolean; session: Buffer | undefined }> {
  const wire = await open({ minVersion: version, maxVersion: version, ...(session === undefined ? {} : { session }) });
  let latest: Buffer | undefined;
  tlsOf(wire).on('session', (one) => (latest = one));
  await wire.send(request(`GET ${path}`, 'a.example'));
  assert.equal((await wire.response()).status, 200);
  latest ??= version === 'TLSv1.2' ? tlsOf(wire).getSession() : undefined;
  const resumed = tlsOf(wire).isSessionReused();
  wire.close();
  return { resumed, session: latest };
}

const site = await startSite({ config: config(), files, workers: 2 });
const open = (options: ConnectionOptions): Promise<Wire> => site.secure('https', options);

for (const version of versions) {
  test(`${version}: what one worker began, every worker resumes`, async () => {
    let { session } = await visit(open, version);
    const workers = new Set<unknown>();
    const before = await site.metric('tls_resumed_handshakes_total');
    let visits = 0;
    // Which worker gets a connection is the kernel's choice: both come within a few.
    while (workers.size < 2 && visits < 100) {
      const path = `/${version}/${visits++}`;
      const next = await visit(open, version, session, path);
      assert.ok(next.resumed, `visit ${visits}`);
      session = next.session ?? session;
      workers.add((await site.logged({ path })).worker);
    }
    assert.equal(workers.size, 2);
    await site.metricBecomes('tls_resumed_handshakes_total', before + visits);
  });

  test(`${version}: sessions outlive a reload that changes something else`, async () => {
    const { session } = await visit(open, version);
    await site.reload(config(', connectTimeout: 3s'));
    assert.ok((await visit(open, version, session)).resumed);
    await site.reload(config());
  });

  test(`${version}: without tickets nothing is resumed`, async () => {
    const without = (options: ConnectionOptions): Promise<Wire> => site.secure('without', options);
    const { session } = await visit(without, version);
    if (session !== undefined) assert.equal((await visit(without, version, session)).resumed, false);
  });
}

/** Certificates whose events can be set off by a test. */
class Rotating extends Certificates {
  private heard: CertificateEvents | undefined;

  override listen(events: CertificateEvents): void {
    this.heard = events;
    super.listen(events);
  }

  /** A new key in front, and only so many of those before. */
  rotate(kept: number): void {
    this.keys = [new Uint8Array(randomBytes(80)), ...(this.keys ?? this.material().ticketKeys)].slice(0, kept + 1);
    this.heard!.ticketKeys(this.keys);
  }

  private keys: readonly Uint8Array[] | undefined;
}

/** The application in this process, ended with the test. */
async function startApp(t: TestContext): Promise<{ certificates: Rotating; ports: Record<string, number> }> {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-app-'));
  t.after(() => rmSync(directory, { recursive: true }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
  const file = join(directory, 'gateway.yaml');
  writeFileSync(file, config());
  const logger = new Logger(() => {});
  const certificates = new Rotating(logger.log);
  const load = () => loadConfigFile(file, process.env, [certificates.check]);
  const loaded = load();
  assert.ok('config' in loaded, JSON.stringify(loaded));
  const app = await App.start(loaded.config, load, logger, certificates);
  t.after(() => app.stop());
  const ports = Object.fromEntries(
    app.addresses().map(({ name, address }) => [name, Number(address.split(':').at(-1))]),
  );
  return { certificates, ports };
}

test('after a rotation old sessions resume once more, and after the key is gone they do not', async (t) => {
  const { certificates, ports } = await startApp(t);
  const visitApp = (session?: Buffer) => visit((options) => openSecure(ports.https, options), 'TLSv1.2', session);
  const { session } = await visitApp();
  certificates.rotate(1);
  // Both workers have the new keys when both give tickets that an old key alone would not open.
  const renewed = await visitApp(session);
  assert.ok(renewed.resumed);
  certificates.rotate(0);
  // Workers hear of it between two batches, each for itself.
  let refused = 0;
  await becomes('a full handshake on both workers', async () => {
    refused = (await visitApp(session)).resumed ? 0 : refused + 1;
    return refused >= 12;
  });
});

test('an HTTP-01 challenge is answered before the redirect, for as long as it is open', async (t) => {
  const { certificates, ports } = await startApp(t);
  const challenge = { type: 'http-01', token: 'the-token', keyAuthorization: 'the-token.thumbprint' } as const;
  const ask = async (path: string) => {
    const wire = await openWire(ports.http);
    await wire.send(request(`GET ${path}`, 'a.example'));
    const response = await wire.response();
    wire.close();
    return response;
  };
  const path = '/.well-known/acme-challenge/the-token';
  assert.equal((await ask(path)).status, 301);
  certificates.challenges.set(challenge);
  await becomes('answer', async () => (await ask(path)).body === 'the-token.thumbprint');
  assert.equal((await ask('/.well-known/acme-challenge/other')).status, 301);
  assert.equal((await ask('/')).status, 301);
  certificates.challenges.clear(challenge);
  let redirected = 0;
  await becomes('redirect by both workers', async () => {
    redirected = (await ask(path)).status === 301 ? redirected + 1 : 0;
    return redirected >= 12;
  });
});

test('a TLS-ALPN-01 challenge gets its own certificate, others the usual one', async (t) => {
  const { certificates, ports } = await startApp(t);
  const proof = makeCertificate({ name: 'proof', names: ['dns:new.example'] });
  const challenge = {
    type: 'tls-alpn-01',
    hostname: 'new.example',
    chainPem: proof.pem,
    keyPem: proof.keyPem,
  } as const;
  certificates.challenges.set(challenge);
  const ask = async (options: ConnectionOptions): Promise<string> => {
    const wire = await openSecure(ports.https, { rejectUnauthorized: false, servername: 'new.example', ...options });
    const subject = subjectOf(wire);
    wire.close();
    return subject;
  };
  const acme = { ALPNProtocols: ['acme-tls/1'] };
  await becomes('certificate of the challenge', () =>
    ask(acme).then(
      (subject) => subject === 'proof',
      () => false,
    ),
  );
  assert.equal(await ask({}), 'site');
  assert.equal(await ask({ ALPNProtocols: ['http/1.1'] }), 'site');
  await assert.rejects(ask({ ...acme, servername: 'a.example' }), {
    code: 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL',
  });
});
