// Automatic certificates against Pebble, the test CA of Let's Encrypt: real validation over the network,
// by servers of the test. Skipped where Go is missing or the module proxy cannot be reached.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createPublicKey } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage } from 'node:http';
import { get } from 'node:https';
import { type AddressInfo, connect as connectTcp, createServer as createTcpServer, type Server } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { connect, createSecureContext, createServer as createTlsServer } from 'node:tls';
import type { ChallengeAnswer } from '../../gateway/acme/issue.ts';
import type { DeliveredCertificate } from '../../gateway/acme/manager.ts';
import { buildCertificate, generateKey, keyToPem, toPem } from '../../gateway/acme/x509.ts';
import { pebblePrograms } from '../support/go-programs.ts';
import { DAY_MS, leafOf, makeManager, temporaryDirectory } from '../unit/gateway/acme-support.ts';
import { freePort, OWN_HOST, startGateway } from './support.ts';

/** Folder with the programs, kept from run to run; or why there is none. */
const programs = pebblePrograms();
const skip = 'missing' in programs ? programs.missing : false;

/** A running Pebble, with servers of ours behind the ports that it validates. */
interface Pebble {
  directoryUrl: string;
  /** Authority of Pebble's own servers. */
  caPem: string;
  /** Authority of the certificates that it issues. */
  rootPem: string;
  /** What the servers answer. */
  answers: Set<ChallengeAnswer>;
}

async function startPebble(t: TestContext, extra: object = {}): Promise<Pebble> {
  const answers = new Set<ChallengeAnswer>();
  const { path } = programs as { path: string };
  const directory = temporaryDirectory(t);
  const caPem = writeServerCertificate(directory);
  const httpPort = await listen(t, httpResponder(answers));
  const tlsPort = await listen(t, tlsAlpnResponder(answers));
  const base = {
    certificate: join(directory, 'cert.pem'),
    privateKey: join(directory, 'key.pem'),
    httpPort,
    tlsPort,
    domainBlocklist: ['blocked.example'],
    retryAfter: { authz: 1, order: 1 },
    keyAlgorithm: 'ecdsa',
    profiles: { default: { description: 'default', validityPeriod: (90 * DAY_MS) / 1000 } },
    ...extra,
  };
  const { apiPort, managementPort } = await startPrograms(t, path, directory, base);
  const directoryUrl = `https://localhost:${apiPort}/dir`;
  const rootPem = await fetchText(`https://localhost:${managementPort}/roots/0`, caPem);
  return { directoryUrl, caPem, rootPem, answers };
}

/** Starts Pebble and its DNS server, and waits until both listen. */
async function startPrograms(
  t: TestContext,
  path: string,
  directory: string,
  base: object,
  triesLeft = 3,
): Promise<{ apiPort: number; managementPort: number }> {
  // Both take their ports by number only: free ones are asked for and given back just before, and
  // somebody else may be faster.
  const [apiPort, managementPort, dnsPort, dnsManagementPort] = (await freePorts(4)) as [
    number,
    number,
    number,
    number,
  ];
  const config = {
    listenAddress: `127.0.0.1:${apiPort}`,
    managementListenAddress: `127.0.0.1:${managementPort}`,
    ...base,
  };
  writeFileSync(join(directory, 'config.json'), JSON.stringify({ pebble: config }));
  const dns = spawn(
    join(path, 'pebble-challtestsrv'),
    [
      ['-defaultIPv4', OWN_HOST],
      ['-defaultIPv6', ''],
      ['-dnsserver', `127.0.0.1:${dnsPort}`],
      ['-management', `127.0.0.1:${dnsManagementPort}`],
      ['-http01', ''],
      ['-https01', ''],
      ['-tlsalpn01', ''],
      ['-doh', ''],
    ].flat(),
  );
  const pebble = spawn(
    join(path, 'pebble'),
    ['-strict', '-config', join(directory, 'config.json'), '-dnsserver', `127.0.0.1:${dnsPort}`],
    { env: { ...process.env, PEBBLE_VA_NOSLEEP: '1', PEBBLE_CHAIN_LENGTH: '2', PEBBLE_WFE_NONCEREJECT: '20' } },
  );
  const stop = async (child: ChildProcess): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
  try {
    // The ports are tried, since both say that they listen before they do.
    await Promise.all([listens(dns, [dnsPort, dnsManagementPort]), listens(pebble, [apiPort, managementPort])]);
  } catch (error) {
    await Promise.all([dns, pebble].map(stop));
    if (triesLeft <= 1) throw error;
    return startPrograms(t, path, directory, base, triesLeft - 1);
  }
  for (const child of [dns, pebble]) t.after(() => stop(child));
  return { apiPort, managementPort };
}

/** Certificate of Pebble's servers for `localhost`; returns its authority. */
function writeServerCertificate(directory: string): string {
  const authorityKey = generateKey();
  const key = generateKey();
  const issuer = { commonName: 'test authority', privateKey: authorityKey };
  const span = { notBeforeMs: Date.now() - DAY_MS, notAfterMs: Date.now() + DAY_MS, issuer };
  const server = { commonName: 'localhost', hostnames: ['localhost'], publicKey: createPublicKey(key), ...span };
  const authority = { commonName: 'test authority', hostnames: [], publicKey: createPublicKey(authorityKey), ...span };
  writeFileSync(join(directory, 'cert.pem'), toPem('CERTIFICATE', buildCertificate(server)));
  writeFileSync(join(directory, 'key.pem'), keyToPem(key));
  return toPem('CERTIFICATE', buildCertificate({ ...authority, authority: true }));
}

function httpResponder(answers: Set<ChallengeAnswer>): Server {
  return createServer((request, response) => {
    const hostname = request.headers.host?.replace(/:\d+$/, '');
    for (const answer of answers) {
      if (answer.type !== 'http-01' || answer.hostname !== hostname) continue;
      if (request.url !== `/.well-known/acme-challenge/${answer.token}`) continue;
      response.writeHead(200, { 'content-type': 'application/octet-stream' }).end(answer.keyAuthorization);
      return;
    }
    response.writeHead(404).end('no such challenge');
  });
}

function tlsAlpnResponder(answers: Set<ChallengeAnswer>): Server {
  const server = createTlsServer({
    ALPNProtocols: ['acme-tls/1'],
    SNICallback: (servername, done) => {
      for (const answer of answers) {
        if (answer.type !== 'tls-alpn-01' || answer.hostname !== servername) continue;
        done(null, createSecureContext({ cert: answer.chainPem, key: answer.keyPem }));
        return;
      }
      done(new Error('no such challenge'));
    },
  });
  server.on('secureConnection', (socket) => {
    socket.on('error', () => {});
    socket.end();
  });
  return server;
}

async function listen(t: TestContext, server: Server): Promise<number> {
  server.listen(0, OWN_HOST);
  await once(server, 'listening');
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createTcpServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

/** Resolves once the program accepts connections on the ports; rejects with what it said when it ends before. */
async function listens(child: ChildProcess, ports: number[]): Promise<void> {
  let output = '';
  child.stdout!.on('data', (chunk) => (output += chunk));
  child.stderr!.on('data', (chunk) => (output += chunk));
  let ended: string | undefined;
  child.on('error', (error) => (ended = error.message));
  child.on('exit', (code) => (ended = `ended with ${code}: ${output}`));
  for (const port of ports) {
    while (!(await acceptsConnection(port))) {
      if (ended !== undefined) throw new Error(ended);
      await setTimeout(10);
    }
  }
  if (ended !== undefined) throw new Error(ended);
}

async function acceptsConnection(port: number): Promise<boolean> {
  const socket = connectTcp(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

async function fetchText(url: string, ca: string): Promise<string> {
  const [response] = (await once(get(url, { ca, agent: false }), 'response')) as [IncomingMessage];
  let text = '';
  for await (const chunk of response) text += chunk;
  return text;
}

/** Whether a client that trusts the authority accepts a server with this certificate under that name. */
async function accepted(t: TestContext, pair: DeliveredCertificate, servername: string, ca: string): Promise<boolean> {
  const port = await listen(
    t,
    createTlsServer({ cert: pair.chainPem, key: pair.keyPem }, (socket) => socket.end()),
  );
  const socket = connect({ port, host: OWN_HOST, servername, ca });
  try {
    await once(socket, 'secureConnect');
    return socket.authorized;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

function sinkOf({ answers }: Pebble) {
  return {
    set: (answer: ChallengeAnswer) => void answers.add(answer),
    clear: (answer: ChallengeAnswer) => void answers.delete(answer),
  };
}

for (const challenge of ['http-01', 'tls-alpn-01'] as const) {
  test(`a certificate for two hostnames is obtained by ${challenge}, and renewed`, { skip }, async (t) => {
    const pebble = await startPebble(t);
    const { manager, log, clock, delivered } = makeManager(
      t,
      { ...pebble, storage: temporaryDirectory(t), email: 'ops@a.example' },
      { challenges: sinkOf(pebble) },
    );
    await manager.load([{ hostnames: ['a.example', 'b.example'], challenge }]);
    assert.equal(await accepted(t, delivered[0]!, 'a.example', pebble.rootPem), false, 'the placeholder');
    manager.start();
    await log.wait('certificate obtained');
    assert.equal(log.all('certificate not obtained').length, 0);
    assert.equal(pebble.answers.size, 0);
    assert.equal(await accepted(t, delivered[1]!, 'a.example', pebble.rootPem), true);
    assert.equal(await accepted(t, delivered[1]!, 'b.example', pebble.rootPem), true);
    assert.equal(await accepted(t, delivered[1]!, 'c.example', pebble.rootPem), false);

    clock.advance(61 * DAY_MS);
    await log.wait('certificate obtained', 2);
    assert.equal(log.all('certificate not obtained').length, 0);
    assert.notEqual(leafOf(delivered[2]!).serialNumber, leafOf(delivered[1]!).serialNumber);
    assert.equal(log.all('account registered with the CA').length, 1);
  });

  test(`a hostname that does not lead here fails ${challenge} with an explanation`, { skip }, async (t) => {
    const pebble = await startPebble(t);
    // Nothing answers the challenge.
    const { manager, log } = makeManager(t, { ...pebble, storage: temporaryDirectory(t) });
    await manager.load([{ hostnames: ['a.example'], challenge }]);
    manager.start();
    const { fields } = await log.wait('certificate not obtained');
    assert.match(String(fields.cause), new RegExp(`the ${challenge} challenge for a\\.example failed`));
    assert.match(String(fields.cause), /unauthorized/);
    assert.match(String(fields.advice), /A and AAAA records/);
    assert.equal(manager.statuses()[0]!.failures, 1);
  });
}

test('a hostname that the CA does not issue for is said as such', { skip }, async (t) => {
  const pebble = await startPebble(t);
  const { manager, log } = makeManager(t, { ...pebble, storage: temporaryDirectory(t) });
  await manager.load([{ hostnames: ['blocked.example'], challenge: 'http-01' }]);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /the order was refused: the CA says rejectedIdentifier/);
});

test('the CA suggests when to renew', { skip }, async (t) => {
  const pebble = await startPebble(t);
  const { manager, log, clock } = makeManager(
    t,
    { ...pebble, storage: temporaryDirectory(t) },
    { challenges: sinkOf(pebble) },
  );
  clock.randomValue = 0.1;
  await manager.load([{ hostnames: ['a.example'], challenge: 'http-01' }]);
  manager.start();
  await log.wait('certificate obtained');
  clock.advance(DAY_MS / 24);
  const { fields } = await log.wait('the CA suggests when to renew');
  assert.ok(Date.parse(String(fields.renewal)) < Date.now() + 90 * DAY_MS);
});

test('an external account binding is signed with the key of the CA', { skip }, async (t) => {
  const hmacKey = Buffer.alloc(32, 7).toString('base64url');
  const pebble = await startPebble(t, {
    externalAccountBindingRequired: true,
    externalAccountMACKeys: { customer: hmacKey },
  });
  const order = async (keyId: string, key: string) => {
    const { manager, log } = makeManager(
      t,
      { ...pebble, storage: temporaryDirectory(t), externalAccountBinding: { keyId, hmacKey: key } },
      { challenges: sinkOf(pebble) },
    );
    await manager.load([{ hostnames: ['a.example'], challenge: 'http-01' }]);
    manager.start();
    return log;
  };
  await (await order('customer', hmacKey)).wait('certificate obtained');
  const { fields } = await (await order('customer', 'AAAA')).wait('certificate not obtained');
  assert.match(String(fields.cause), /the account was not registered: the CA says/);
});

for (const challenge of ['http-01', 'tls-alpn-01'] as const) {
  test(`a gateway serves with a certificate that it has obtained by ${challenge}`, { skip }, async (t) => {
    const [httpPort, httpsPort] = [await freePort(), await freePort()];
    const { directoryUrl, caPem, rootPem } = await startPebble(t, { httpPort, tlsPort: httpsPort });
    const directory = temporaryDirectory(t);
    writeFileSync(join(directory, 'ca.pem'), caPem);
    const gateway = startGateway(
      t,
      `workers: 2
admin: off
acme: {directory: "${directoryUrl}", caCertificates: ${directory}/ca.pem, storage: ${directory}/acme, termsOfServiceAgreed: true}
listeners:
  - {name: http, address: "${OWN_HOST}:${httpPort}", redirectToHttps: {port: ${httpsPort}}}
  - name: https
    address: "${OWN_HOST}:${httpsPort}"
    tls: {acme: {hostnames: [gateway.example.com], challenge: ${challenge}}}
routes: []
backends: []
`,
    );
    await gateway.log(/info certificates reloaded /);
    const socket = connect({ port: httpsPort, host: OWN_HOST, servername: 'gateway.example.com', ca: rootPem });
    await once(socket, 'secureConnect');
    assert.equal(socket.authorized, true);
    socket.destroy();
  });
}
