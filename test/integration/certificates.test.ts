// Certificates of a real gateway: new ones without a restart and without losing a connection, broken
// ones refused, tickets that outlive a reload.

import assert from 'node:assert/strict';
import { mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { connect, type DetailedPeerCertificate, type TLSSocket } from 'node:tls';
import { type Certificate, makeCertificate } from '../unit/core/tls/certificates.ts';
import { type Gateway, get, namedUpstream, runToEnd, startGateway, temporaryDirectory } from './support.ts';

/** A self-signed certificate for a name. */
function certificateFor(name: string, toDays = 30): Certificate {
  return makeCertificate({ name, names: [`dns:${name}`], toDays });
}

/** Puts a pair into a volume as Kubernetes does: a new directory, then a renamed link to it. */
function publish(volume: string, version: string, { pem, keyPem }: Pick<Certificate, 'pem' | 'keyPem'>): void {
  mkdirSync(join(volume, `..${version}`));
  writeFileSync(join(volume, `..${version}`, 'tls.crt'), pem);
  writeFileSync(join(volume, `..${version}`, 'tls.key'), keyPem);
  symlinkSync(`..${version}`, join(volume, '..data_tmp'));
  renameSync(join(volume, '..data_tmp'), join(volume, '..data'));
}

/** A volume with a first pair, and a gateway whose certificate it holds. */
async function gatewayWithVolume(
  t: TestContext,
  first: Certificate,
): Promise<{ gateway: Gateway; port: number; volume: string; config: string }> {
  const volume = temporaryDirectory(t);
  publish(volume, 'v1', first);
  for (const file of ['tls.crt', 'tls.key']) symlinkSync(`..data/${file}`, join(volume, file));
  const config = `
workers: 2
admin: {address: "127.0.0.1:0"}
listeners:
  - name: https
    address: "127.0.0.1:0"
    protocols: [http/1.1]
    tls: {certificates: [{certificate: ${volume}/tls.crt, key: ${volume}/tls.key}]}
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${await namedUpstream(t, 'app')}"]}]
`;
  const gateway = startGateway(t, config);
  return { gateway, port: await gateway.port('https'), volume, config };
}

/** One TLS connection, established. */
async function secureConnection(t: TestContext, port: number, session?: Buffer): Promise<TLSSocket> {
  const socket = connect({ port, host: '127.0.0.1', servername: 'a.test', rejectUnauthorized: false, session });
  t.after(() => socket.destroy());
  await new Promise((resolve, reject) => {
    socket.once('secureConnect', resolve);
    socket.once('error', reject);
  });
  return socket;
}

/** The certificate that a new client is shown, PEM without line ends. */
async function shown(t: TestContext, port: number): Promise<string> {
  const socket = await secureConnection(t, port);
  const { raw } = socket.getPeerCertificate(true) as DetailedPeerCertificate;
  socket.destroy();
  return raw.toString('base64');
}

function plain({ pem }: Certificate): string {
  return pem.replace(/-----[^-]+-----|\s/g, '');
}

/** One request on a kept-alive connection; the local port tells connections apart. */
function ask(port: number, agent: Agent): Promise<{ body: string; localPort: number }> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ port, host: '127.0.0.1', agent, servername: 'a.test' }, (incoming) => {
      const { localPort } = incoming.socket;
      let body = '';
      incoming.on('data', (chunk) => (body += chunk));
      incoming.on('end', () => resolve({ body, localPort: localPort! }));
      incoming.on('error', reject);
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

function metric(page: string, name: string): number {
  return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(page)?.[1]);
}

test('a volume of Kubernetes is followed: new clients see the new certificate, connections stay', async (t) => {
  const [first, second, third] = ['a.test', 'a.test', 'a.test'].map((name) => certificateFor(name));
  const { gateway, port, volume } = await gatewayWithVolume(t, first!);
  assert.equal(await shown(t, port), plain(first!));
  const agent = new Agent({ keepAlive: true, maxSockets: 1, rejectUnauthorized: false });
  t.after(() => agent.destroy());
  const { localPort } = await ask(port, agent);
  publish(volume, 'v2', second!);
  await gateway.log(
    /info certificate replaced file=\S+ names=a\.test expires=\S+ fingerprint=\w+ fingerprintBefore=\w+$/,
  );
  await gateway.log(/info certificates reloaded epoch=2 /);
  assert.equal(await shown(t, port), plain(second!));
  assert.deepEqual(await ask(port, agent), { body: 'app', localPort });
  publish(volume, 'v3', third!);
  await gateway.log(/info certificates reloaded epoch=3 /);
  assert.equal(await shown(t, port), plain(third!));
  assert.deepEqual(await ask(port, agent), { body: 'app', localPort }, 'the connection is the first one still');
});

test('a broken pair is refused with the reason, the old one stays, and SIGHUP does not change that', async (t) => {
  const first = certificateFor('a.test');
  const { gateway, port, volume, config } = await gatewayWithVolume(t, first);
  publish(volume, 'v2', { pem: certificateFor('a.test').pem, keyPem: first.keyPem });
  await gateway.log(/error \S*tls\.key does not belong to the certificate.*: the one of before stays in use/);
  assert.equal(await shown(t, port), plain(first));
  gateway.configure(config.replace('/tls.crt,', '/tls.crt , '));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded epoch=2 /);
  assert.equal(await shown(t, port), plain(first), 'the rest of a configuration is reloaded all the same');
  publish(volume, 'v3', certificateFor('a.test', -0.5));
  await gateway.log(/error \S*tls\.crt expired on .*: the one of before stays in use/);
  gateway.configure(config.replace(/certificates: \[/, `certificates: [{certificate: ${volume}/none, key: x}, `));
  gateway.kill('SIGHUP');
  await gateway.log(
    /error \S*gateway\.yaml:8:\d+: listeners\[0\]\.tls\.certificates\[0\]\.certificate: \S+none does not exist/,
  );
  await gateway.log(/error reload refused: the configuration of before goes on epoch=2$/);
  assert.equal(await shown(t, port), plain(first));
  const good = certificateFor('a.test');
  publish(volume, 'v4', good);
  await gateway.log(/info certificates reloaded epoch=3 /);
  assert.equal(await shown(t, port), plain(good));
});

test('a client resumes its session after a reload, with any worker', async (t) => {
  const { gateway, port, config } = await gatewayWithVolume(t, certificateFor('a.test'));
  const first = await secureConnection(t, port);
  const tickets: Buffer[] = [];
  const ticket = new Promise<void>((resolve) => {
    first.on('session', (session) => {
      tickets.push(session);
      resolve();
    });
  });
  first.write('GET / HTTP/1.1\r\nhost: a.test\r\n\r\n');
  await ticket;
  assert.equal(first.isSessionReused(), false);
  gateway.configure(`${config}trustedHops: 1\n`);
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded epoch=2 /);
  for (let i = 0; i < 6; i++) {
    const again = await secureConnection(t, port, tickets[0]);
    assert.equal(again.isSessionReused(), true);
    again.destroy();
  }
});

test('the days that are left of a certificate are a metric', async (t) => {
  const { gateway, volume } = await gatewayWithVolume(t, certificateFor('a.test', 10));
  const page = await get(await gateway.adminPort(), '/metrics');
  const name = `portcullis_certificate_days_until_expiry{certificate="a.test",file="${volume}/tls.crt"}`;
  const days = metric(page.body, name.replaceAll(/[{}.]/g, '\\$&'));
  assert.ok(days > 9.9 && days <= 10, `${days}`);
  await gateway.log(/warn certificate expires soon certificate=a\.test file=\S+ expires=\S+ days=9$/);
});

test('check reads the files, and nothing starts with a bad one', async (t) => {
  const directory = temporaryDirectory(t);
  const file = join(directory, 'gateway.yaml');
  const { pem, keyPem } = certificateFor('a.test');
  writeFileSync(join(directory, 'a.crt'), pem);
  writeFileSync(join(directory, 'a.key'), keyPem);
  const configure = (key: string): void =>
    writeFileSync(
      file,
      `listeners: [{name: s, address: "127.0.0.1:0", tls: {certificates: [{certificate: a.crt, key: ${key}}]}}]
routes: []\nbackends: []\n`,
    );
  configure('a.key');
  assert.match((await runToEnd(t, 'check', '--config', file)).stdout, /is valid, with 1 warning: 1 listener/);
  configure('b.key');
  for (const command of ['check', 'run']) {
    const { code, stderr } = await runToEnd(t, command, '--config', file);
    assert.equal(code, 1);
    assert.ok(
      stderr.startsWith(
        `${file}:1:94: listeners[0].tls.certificates[0].key: ${directory}/b.key does not exist, expected a readable PEM file\n`,
      ),
      stderr,
    );
  }
});
