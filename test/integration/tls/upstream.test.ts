// TLS towards backends: who is trusted, what is shown, and how each failure is named.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import tls from 'node:tls';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { becomes, request, withLimit } from '../http/support.ts';
import { Wire } from '../http/wire.ts';
import { CLOSED_PORTS } from '../support.ts';
import { authority, filesOf, issue, startSite } from './support.ts';

const stranger = makeCertificate({ name: 'stranger', ca: true });
const gatewayCertificate = issue('gateway', ['uri:spiffe://test/gateway'], { usage: 'client' });
const good = issue('good', ['dns:up.example', 'ip:127.0.0.1', 'uri:spiffe://test/ns/shop/sa/cart']);

const opened: Secure[] = [];

/** An upstream over TLS, with what it has seen. */
class Secure {
  readonly port: number;
  connections = 0;
  readonly names: (string | false | null)[] = [];
  readonly clients: (string | undefined)[] = [];
  readonly resumed: boolean[] = [];
  readonly sockets: tls.TLSSocket[] = [];
  private readonly server: tls.Server;
  private readonly takers: ((wire: Wire) => void)[] = [];
  private readonly waiting: Wire[] = [];
  private serving = true;

  private constructor(server: tls.Server) {
    this.server = server;
    this.port = (server.address() as AddressInfo).port;
    server.on('tlsClientError', () => {});
    server.on('secureConnection', (socket) => {
      this.connections++;
      this.sockets.push(socket);
      this.names.push(socket.servername as string | false | null);
      this.clients.push(socket.getPeerCertificate()?.subject?.CN as string | undefined);
      this.resumed.push(socket.isSessionReused());
      const wire = new Wire(socket);
      if (this.serving) this.answer(wire).catch(() => wire.close());
      else if (this.takers.length > 0) this.takers.shift()!(wire);
      else this.waiting.push(wire);
    });
  }

  static async open(options: tls.TlsOptions = {}): Promise<Secure> {
    const server = tls.createServer({
      cert: good.pem,
      key: good.keyPem,
      allowHalfOpen: true,
      ...options,
    } as tls.TlsOptions);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const secure = new Secure(server);
    opened.push(secure);
    after(() => secure.close());
    return secure;
  }

  /** Connections wait until the test takes them. */
  scripted(): this {
    this.serving = false;
    return this;
  }

  connection(): Promise<Wire> {
    const wire = this.waiting.shift();
    if (wire !== undefined) return Promise.resolve(wire);
    return withLimit('connection', new Promise((resolve) => this.takers.push(resolve)));
  }

  close(): void {
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
  }

  private async answer(wire: Wire): Promise<void> {
    for (;;) {
      const { body } = await wire.request();
      await wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length + 2}\r\n\r\n${body}ok`);
    }
  }
}

/** A plain server, for peers that do not do TLS as they should. */
async function rawServer(onConnection: (socket: Socket) => void): Promise<number> {
  const server: Server = createServer(onConnection);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const sockets: Socket[] = [];
  server.on('connection', (socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
  });
  after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return (server.address() as AddressInfo).port;
}

const pairOptions = (certificate: { pem: string; keyPem: string }): tls.TlsOptions => ({
  cert: certificate.pem,
  key: certificate.keyPem,
});
const secure = await Secure.open();
const mutual = await Secure.open({ requestCert: true, rejectUnauthorized: true, ca: authority.pem });
const truncating = (await Secure.open()).scripted();
const expired = await Secure.open(pairOptions(issue('expired', ['dns:up.example'], { fromDays: -9, toDays: -1 })));
const early = await Secure.open(pairOptions(issue('early', ['dns:up.example'], { fromDays: 5 })));
const foreign = await Secure.open(
  pairOptions(makeCertificate({ name: 'up', issuer: stranger, names: ['dns:up.example'] })),
);
const selfSigned = await Secure.open(pairOptions(makeCertificate({ name: 'self', names: ['dns:up.example'] })));
const clientOnly = await Secure.open(pairOptions(issue('client', ['dns:up.example'], { usage: 'client' })));
const old = await Secure.open({ maxVersion: 'TLSv1.2' });
// Backends are told apart by the port, too, except where the test is about that.
const [byAddress, byUri, byOtherName, notThisUri, notThisName, fresh13] = await Promise.all(
  Array.from({ length: 6 }, () => Secure.open()),
);
const shared = await Secure.open();
const plainPort = await rawServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'));
const closingPort = await rawServer((socket) => socket.once('data', () => socket.end()));
const silentPort = await rawServer(() => {});
const silent: Wire[] = [];
const leavingPort = await rawServer((socket) => silent.push(new Wire(socket)));

const cases: [name: string, port: number, tls: string, more?: string][] = [
  ['good', secure.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['system', secure.port, 'serverName: up.example'],
  ['address', byAddress.port, 'subjectAltNames: [127.0.0.1], caCertificates: ca.crt'],
  ['spiffe', byUri.port, 'subjectAltNames: ["spiffe://test/ns/shop/sa/cart"], caCertificates: ca.crt'],
  ['other-spiffe', notThisUri.port, 'subjectAltNames: ["spiffe://test/ns/shop/sa/other"], caCertificates: ca.crt'],
  ['alternative', byOtherName.port, 'serverName: sni.example, subjectAltNames: [up.example], caCertificates: ca.crt'],
  ['wrong-host', notThisName.port, 'serverName: other.example, caCertificates: ca.crt'],
  ['skip', selfSigned.port, 'serverName: any.example, insecureSkipVerify: true'],
  ['mutual', mutual.port, 'serverName: up.example, caCertificates: ca.crt, certificate: gateway.crt, key: gateway.key'],
  ['no-certificate', mutual.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['fresh', old.port, 'serverName: up.example, caCertificates: ca.crt', 'maxIdleConnections: 0'],
  ['fresh13', fresh13.port, 'serverName: up.example, caCertificates: ca.crt', 'maxIdleConnections: 0'],
  ['truncating', truncating.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['expired', expired.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['early', early.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['foreign', foreign.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['self-signed', selfSigned.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['client-only', clientOnly.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['too-old', old.port, 'serverName: up.example, caCertificates: ca.crt, minVersion: "1.3"'],
  ['shared', shared.port, 'serverName: up.example, caCertificates: ca.crt'],
  ['shared-wrong', shared.port, 'serverName: other.example, caCertificates: ca.crt'],
  ['shared-uri', shared.port, 'subjectAltNames: ["spiffe://test/ns/shop/sa/other"], caCertificates: ca.crt'],
  ['plain', plainPort, 'serverName: up.example, caCertificates: ca.crt'],
  ['closing', closingPort, 'serverName: up.example, caCertificates: ca.crt'],
  ['silent', silentPort, 'serverName: up.example, caCertificates: ca.crt', 'connectTimeout: 100ms'],
  ['leaving', leavingPort, 'serverName: up.example, caCertificates: ca.crt'],
  ['refused', CLOSED_PORTS[0], 'serverName: up.example, caCertificates: ca.crt'],
];
const systemDirectory = mkdtempSync(join(tmpdir(), 'portcullis-system-'));
after(() => rmSync(systemDirectory, { recursive: true }));
const systemFile = join(systemDirectory, 'roots.crt');
writeFileSync(systemFile, authority.pem);
const site = await startSite({
  files: filesOf({ gateway: gatewayCertificate }),
  env: { SSL_CERT_FILE: systemFile },
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
responseReasonHeader: x-reason
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
${cases.map(([name]) => `  - {name: ${name}, hostnames: [${name}.test], rules: [{backendRefs: [{name: ${name}}]}]}`).join('\n')}
backends:
${cases
  .map(([name, port, settings, more]) => {
    const extra = more === undefined ? '' : `, ${more}`;
    return `  - {name: ${name}, endpoints: ["127.0.0.1:${port}"], tls: {${settings}}${extra}}`;
  })
  .join('\n')}
`,
});
site.beforeClose(() => {
  for (const upstream of opened) upstream.close();
});

/** Sends one request to a backend on a connection of its own. */
async function ask(name: string): Promise<{ status: number; reason: string | undefined }> {
  const wire = await site.plain('http');
  await wire.send(request('GET /', `${name}.test`));
  const response = await wire.response();
  wire.close();
  return { status: response.status, reason: response.value('x-reason') };
}

/** Asserts that a request fails with this detail in the access log. */
async function failsWith(name: string, detail: string): Promise<void> {
  const { status, reason } = await ask(name);
  const line = await site.logged({ host: `${name}.test` });
  assert.deepEqual({ detail: line.detail, reason: line.reason }, { detail, reason: 'UF' });
  assert.ok(status === 503 || status === 504, String(status));
  assert.equal(reason, 'UF');
}

test('an upstream with a good certificate is used, with its name in SNI', async () => {
  assert.equal((await ask('good')).status, 200);
  assert.equal(secure.names[0], 'up.example');
});

test('without caCertificates the authorities of the system are trusted', async () => {
  assert.equal((await ask('system')).status, 200);
});

test('the certificate may be checked for an address, a URI, or another name than the one in SNI', async () => {
  for (const name of ['address', 'spiffe', 'alternative']) assert.equal((await ask(name)).status, 200, name);
  const names = [byAddress, byUri, byOtherName].map((upstream) => upstream.names.map((name) => name || ''));
  assert.deepEqual(names, [[''], [''], ['sni.example']]);
});

test('a connection that was verified for one name serves no backend that wants another', async () => {
  assert.equal((await ask('shared')).status, 200);
  await failsWith('shared-wrong', 'tls_wrong_host');
  await failsWith('shared-uri', 'tls_wrong_host');
});

test('without verification any certificate is taken', async () => {
  assert.equal((await ask('skip')).status, 200);
});

test('a certificate is shown to an upstream that asks for it', async () => {
  assert.equal((await ask('mutual')).status, 200);
  assert.deepEqual(mutual.clients, ['gateway']);
});

for (const [name, detail] of [
  ['wrong-host', 'tls_wrong_host'],
  ['other-spiffe', 'tls_wrong_host'],
  ['expired', 'tls_certificate_expired'],
  ['early', 'tls_certificate_not_yet_valid'],
  ['foreign', 'tls_unknown_ca'],
  ['self-signed', 'tls_self_signed'],
  ['client-only', 'tls_certificate_purpose'],
  ['too-old', 'tls_protocol_version'],
  ['plain', 'tls_not_tls'],
  ['closing', 'tls_peer_closed'],
  ['silent', 'tls_timeout'],
]) {
  test(`an upstream that is ${name} fails the request with ${detail}, counted and logged`, async () => {
    const series = `upstream_tls_handshake_failures_total{failure="${detail.slice(4)}"}`;
    const before = await site.metric(series);
    await failsWith(name, detail);
    await site.metricBecomes(series, before + 1);
    if (name !== 'silent') await site.gateway.log(/TLS handshake failed with upstream 127\.0\.0\.1:\d+/);
  });
}

test('an alert of the upstream is named in the log', async () => {
  await site.gateway.log(/with upstream \S+: the peer sent alert protocol_version \(70\)/);
});

test('an upstream that wants a certificate and gets none refuses: the request fails', async () => {
  // TLS 1.3: the client's handshake is over before the server has looked.
  const { status } = await ask('no-certificate');
  assert.equal(status, 502);
  const line = await site.logged({ host: 'no-certificate.test' });
  assert.equal(line.reason, 'UC');
});

test('a refused connection is no matter of TLS', async () => {
  await failsWith('refused', 'connect_errno');
});

test('sessions are resumed, in TLS 1.2 and 1.3', async () => {
  for (const [name, upstream] of [
    ['fresh', old],
    ['fresh13', fresh13],
  ] as const) {
    const resumed = await site.metric('upstream_tls_resumed_handshakes_total');
    const handshakes = await site.metric('upstream_tls_handshakes_total');
    const from = upstream.resumed.length;
    for (let i = 0; i < 4; i++) assert.equal((await ask(name)).status, 200);
    assert.deepEqual(upstream.resumed.slice(from).slice(1), [true, true, true], name);
    assert.ok((await site.metric('upstream_tls_resumed_handshakes_total')) >= resumed + 3);
    assert.equal(await site.metric('upstream_tls_handshakes_total'), handshakes + 4);
  }
});

test('a kept connection serves the next request without another handshake', async () => {
  await ask('good');
  const before = secure.connections;
  for (let i = 0; i < 3; i++) assert.equal((await ask('good')).status, 200);
  assert.equal(secure.connections, before);
});

test('a body that ends without close_notify is passed on as cut off', async () => {
  const client = await site.plain('http');
  await client.send(request('GET /cut', 'truncating.test'));
  const wire = await truncating.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\n\r\nhalf of it');
  await client.until('half of it');
  // Destroyed, not ended: a FIN without an alert.
  wire.close();
  await client.ended();
  const line = await site.logged({ path: '/cut' });
  assert.equal(line.reason, 'UC');
  assert.doesNotMatch(client.unread, /0\r\n\r\n$/, 'the last chunk would say that the body is whole');
});

test('a body that ends with close_notify is whole', async () => {
  const client = await site.plain('http');
  await client.send(request('GET /whole', 'truncating.test'));
  const wire = await truncating.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\n\r\nall of it');
  await wire.finish();
  assert.equal((await client.response()).body, 'all of it');
});

test('a client that leaves while the upstream shakes hands takes the connection with it', async () => {
  const client = await site.plain('http');
  await client.send(request('GET /leaving', 'leaving.test'));
  await becomes('hello at the upstream', async () => silent.length === 1 && silent[0].received > 100);
  client.reset();
  await silent[0].ended();
  const line = await site.logged({ path: '/leaving' });
  assert.equal(line.reason, 'DC');
});

test('a thousand clients that leave while the upstream shakes hands leave no memory behind', async () => {
  const leave = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i += 50) {
      const from = silent.length;
      const clients = await Promise.all(Array.from({ length: 50 }, () => site.plain('http')));
      for (const client of clients) void client.send(request('GET /leaving', 'leaving.test'));
      await becomes(
        'hellos',
        async () => silent.length === from + 50 && silent.every(({ received }) => received > 100),
      );
      for (const client of clients) client.reset();
      await Promise.all(silent.slice(from).map((wire) => wire.ended()));
    }
  };
  await leave(200);
  const before = site.residentBytes();
  await leave(1000);
  const growth = site.residentBytes() - before;
  // A session in the middle of a handshake takes about 40 KiB.
  assert.ok(growth < 16 * 1024 * 1024, `grew by ${growth} bytes`);
});

test('an upstream that dies during an upload ends the request', async () => {
  const client = await site.plain('http');
  await client.send(request('POST /upload', 'truncating.test', `Content-Length: ${1 << 24}`));
  const wire = await truncating.connection();
  await wire.head();
  void client.send(Buffer.alloc(1 << 22));
  await wire.bytes(1 << 20);
  wire.close();
  const response = await client.head();
  assert.equal(response.status, 502);
  const line = await site.logged({ path: '/upload' });
  assert.equal(line.reason, 'UC');
  client.close();
});
