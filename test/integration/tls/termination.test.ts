// TLS at a listener: which certificate, which version, and HTTP/1.1 on top of it.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import tls from 'node:tls';
import { ok, request } from '../http/support.ts';
import { openWire } from '../http/wire.ts';
import {
  authority,
  clientHello,
  filesOf,
  issue,
  openUpstream,
  pairOf,
  run,
  startSite,
  startTls,
  subjectOf,
  tlsOf,
  trickling,
} from './support.ts';

const upstream = await openUpstream();
upstream.serve(({ head, body }) => {
  const text = `${head}${body}`;
  return `HTTP/1.1 200 OK\r\nContent-Length: ${text.length}\r\n\r\n${text}`;
});
const second = await openUpstream();
const http1 = 'protocols: [http/1.1]';
const site = await startSite({
  files: filesOf({
    first: issue('first', ['dns:a.example']),
    'first-rsa': issue('first-rsa', ['dns:a.example'], { keyType: 'rsa' }),
    second: issue('second', ['dns:b.example', 'dns:*.b.example']),
    exact: issue('exact', ['dns:x.b.example']),
  }),
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
timeouts: {tlsHandshake: 60s}
responseReasonHeader: x-reason
listeners:
  - name: main
    address: "127.0.0.1:0"
    ${http1}
    tls: {certificates: [${['first', 'first-rsa', 'second', 'exact'].map((name) => pairOf(name)).join(', ')}]}
  - {name: new, address: "127.0.0.1:0", ${http1}, tls: {minVersion: "1.3", certificates: [${pairOf('first')}]}}
  - {name: old, address: "127.0.0.1:0", ${http1}, tls: {maxVersion: "1.2", certificates: [${pairOf('first')}]}}
routes:
  - {name: all, rules: [{backendRefs: [{name: app}]}]}
  - {name: second, hostnames: [second.example], rules: [{backendRefs: [{name: second}]}]}
backends:
  - {name: app, endpoints: ["127.0.0.1:${upstream.port}"], connectTimeout: 60s}
  - {name: second, endpoints: ["127.0.0.1:${second.port}"]}
`,
});
const failures = (name: string): string => `tls_handshake_failures_total{failure="${name}"}`;

/** Name of the certificate that a client gets who asks for a name. */
async function certificateFor(servername: string | undefined): Promise<string> {
  const wire = await site.secure('main', { servername: servername ?? '', checkServerIdentity: () => undefined });
  const subject = subjectOf(wire);
  wire.close();
  return subject;
}

test('the certificate follows the name in SNI: exact, wildcard, and the first one for all else', async () => {
  assert.equal(await certificateFor('a.example'), 'first');
  assert.equal(await certificateFor('b.example'), 'second');
  assert.equal(await certificateFor('y.b.example'), 'second');
  assert.equal(await certificateFor('x.b.example'), 'exact', 'an exact name comes before a wildcard');
  assert.equal(await certificateFor('X.B.Example'), 'exact', 'without regard to case');
  assert.equal(await certificateFor('y.z.b.example'), 'first', 'a wildcard stands for one label');
  assert.equal(await certificateFor('other.test'), 'first');
  assert.equal(await certificateFor(undefined), 'first', 'no SNI');
});

test('a client gets the certificate of the type of key that it can use', async () => {
  const ecdsa = await site.secure('main', { maxVersion: 'TLSv1.2', ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256' });
  assert.equal(subjectOf(ecdsa), 'first');
  const rsa = await site.secure('main', { maxVersion: 'TLSv1.2', ciphers: 'ECDHE-RSA-AES128-GCM-SHA256' });
  assert.equal(subjectOf(rsa), 'first-rsa');
  const rsa13 = await site.secure('main', { minVersion: 'TLSv1.3', sigalgs: 'rsa_pss_rsae_sha256' });
  assert.equal(subjectOf(rsa13), 'first-rsa');
});

test('versions outside the configured range are refused with an alert, and counted', async () => {
  assert.equal(tlsOf(await site.secure('main')).getProtocol(), 'TLSv1.3');
  assert.equal(tlsOf(await site.secure('main', { maxVersion: 'TLSv1.2' })).getProtocol(), 'TLSv1.2');
  assert.equal(tlsOf(await site.secure('old')).getProtocol(), 'TLSv1.2');
  const before = await site.metric(failures('protocol_version'));
  await assert.rejects(site.secure('new', { maxVersion: 'TLSv1.2' }), { code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' });
  await assert.rejects(site.secure('old', { minVersion: 'TLSv1.3' }), { code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' });
  await site.metricBecomes(failures('protocol_version'), before + 2);
  await site.gateway.log(
    /TLS handshake failed with client 127\.0\.0\.1 on listener new for a\.example: no TLS version/,
  );
});

test('ALPN agrees on http/1.1, may be left out, and refuses strangers', async () => {
  assert.equal(tlsOf(await site.secure('main', { ALPNProtocols: ['h2', 'http/1.1'] })).alpnProtocol, 'http/1.1');
  const without = await site.secure('main');
  assert.equal(tlsOf(without).alpnProtocol, false);
  await without.send(request('GET /plain', 'a.example'));
  assert.equal((await without.response()).status, 200);
  await assert.rejects(site.secure('main', { ALPNProtocols: ['imap'] }), {
    code: 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL',
  });
});

test('requests over TLS say so to the upstream and in the access log', async () => {
  const wire = await site.secure('main', { servername: 'x.b.example' });
  await wire.send(request('GET /logged', 'x.b.example'));
  assert.match((await wire.response()).body, /\r\nx-forwarded-proto: https\r\n/i);
  const line = await site.logged({ path: '/logged' });
  assert.equal(line.tlsVersion, 'TLSv1.3');
  assert.equal(line.serverName, 'x.b.example');
  assert.equal(line.clientSubject, null);
});

test('a connection is kept alive, and pipelined requests are answered in order', async () => {
  const wire = await site.secure('main');
  for (let i = 0; i < 3; i++) {
    await wire.send(request(`GET /kept${i}`, 'a.example'));
    assert.match((await wire.response()).body, new RegExp(`^GET /kept${i} `));
  }
  const paths = Array.from({ length: 50 }, (_, index) => `/pipelined${index}`);
  await wire.send(paths.map((path) => request(`GET ${path}`, 'a.example')).join(''));
  for (const path of paths) assert.match((await wire.response()).body, new RegExp(`^GET ${path} `));
});

test('a client that waits for 100 Continue gets it', async () => {
  const wire = await site.secure('main');
  await wire.send(request('POST /expect', 'second.example', 'Content-Length: 5', 'Expect: 100-continue'));
  const up = await second.connection();
  await up.head();
  await up.send('HTTP/1.1 100 Continue\r\n\r\n');
  assert.match(await wire.until('\r\n\r\n'), /^HTTP\/1\.1 100 /);
  await wire.send('hello');
  assert.equal((await up.bytes(5)).toString(), 'hello');
  await up.send(ok('done'));
  assert.equal((await wire.response()).body, 'done');
});

test('a ClientHello may come byte by byte', async () => {
  const raw = await openWire(await site.gateway.port('main'));
  raw.socket.removeAllListeners('data');
  const wire = site.keep(await startTls(trickling(raw.socket)));
  await wire.send(request('GET /trickled', 'a.example'));
  assert.match((await wire.response()).body, /^GET \/trickled /);
});

test('plain HTTP on a TLS port is answered with a 400 that says what to do', async () => {
  const before = await site.metric(failures('plain_http'));
  const wire = await site.plain('main');
  await wire.send(request('GET /', 'a.example'));
  const response = await wire.response();
  assert.equal(response.status, 400);
  assert.equal(response.value('x-reason'), 'DPE');
  assert.match(response.body, /The client sent plain HTTP to a port that expects TLS; use https\./);
  assert.equal(await wire.ended(), 'fin');
  await site.metricBecomes(failures('plain_http'), before + 1);
  const { output } = await run('curl', ['-s', `http://127.0.0.1:${await site.gateway.port('main')}/`]);
  assert.match(output, /use https/);
});

test('anything else on a TLS port closes the connection, and is counted', () =>
  site.leavingNothing(async () => {
    const before = await site.metric(failures('not_tls'));
    for (const bytes of ['\x00\x00\x00\x00', '\x16\x03', 'SSH-2.0-OpenSSH\r\n', '\x80\x2e\x01\x00\x02']) {
      const wire = await site.plain('main');
      await wire.send(bytes);
      if (bytes === '\x16\x03') await wire.finish();
      await wire.ended();
    }
    await site.metricBecomes(failures('not_tls'), before + 3);
  }));

test('a handshake record that is no ClientHello is refused with a sentence in the log', async () => {
  const wire = await site.plain('main');
  await wire.send(Buffer.from([22, 3, 1, 0, 4, 2, 0, 0, 0]));
  await wire.ended();
  await site.gateway.log(/TLS handshake failed with client \S+ on listener main: .*ClientHello/i);
});

test('a client that leaves in the middle of a handshake is counted, and leaves nothing behind', () =>
  site.leavingNothing(async () => {
    const before = await site.metric(failures('peer_closed'));
    const hello = await clientHello();
    for (const part of [0, 1, 5, 100, hello.length]) {
      const wire = await site.plain('main');
      await wire.send(hello.subarray(0, part));
      if (part === hello.length) await wire.bytes(1);
      await wire.finish();
      await wire.ended();
      wire.close();
    }
    await site.metricBecomes(failures('peer_closed'), before + 5);
  }));

test('a client that resets during a handshake leaves nothing behind', () =>
  site.leavingNothing(async () => {
    const hello = await clientHello();
    for (const part of [0, 5, hello.length]) {
      const wire = await site.plain('main');
      await wire.send(hello.subarray(0, part));
      if (part === hello.length) await wire.bytes(1);
      wire.reset();
    }
  }));

test('a client that does not trust the authority says so with an alert, which is counted', async () => {
  const before = await site.metric(failures('peer_alert'));
  site.write('other.crt', issue('other', []).pem);
  const address = `127.0.0.1:${await site.gateway.port('main')}`;
  const other = `${site.directory}/other.crt`;
  const options = ['-no-CApath', '-CAfile', other, '-verify_return_error'];
  await run('openssl', ['s_client', '-connect', address, '-servername', 'a.example', ...options]);
  await site.metricBecomes(failures('peer_alert'), before + 1);
  await site.gateway.log(/TLS handshake failed with client .* sent alert unknown_ca \(48\)/);
});

test('the end of a response is a close_notify', async () => {
  const port = await site.gateway.port('main');
  const { output } = await run(
    'openssl',
    ['s_client', '-connect', `127.0.0.1:${port}`, '-servername', 'a.example', '-quiet', '-ign_eof', '-msg'],
    request('GET /bye', 'a.example', 'Connection: close'),
  );
  assert.match(output, /GET \/bye HTTP/);
  assert.match(output, /<<< TLS 1\.3, Alert \[length 0002\], warning close_notify/);
  assert.doesNotMatch(output, /unexpected eof/);
});

test('a client that ends with and without close_notify leaves nothing behind', () =>
  site.leavingNothing(async () => {
    for (const orderly of [true, false]) {
      const raw = await openWire(await site.gateway.port('main'));
      const wire = site.keep(await startTls(raw.socket));
      await wire.send(request('GET /end', 'a.example'));
      await wire.response();
      if (orderly) await wire.finish();
      else raw.socket.end();
      await wire.ended();
    }
  }));

test('1,000 clients that arrive at once are all served', () =>
  site.leavingNothing(async () => {
    const before = await site.metric('tls_handshakes_total');
    const port = await site.gateway.port('main');
    const client = { secureContext: tls.createSecureContext({ ca: authority.pem, ecdhCurve: 'X25519' }) };
    // All connect before the first one says hello.
    const sockets = await Promise.all(
      Array.from(
        { length: 1000 },
        () =>
          new Promise<ReturnType<typeof connect>>((resolve, reject) => {
            const socket = connect(port, '127.0.0.1', () => resolve(socket));
            socket.once('error', reject);
          }),
      ),
    );
    await Promise.all(
      sockets.map(async (socket) => {
        const wire = await startTls(socket, client);
        await wire.send(request('GET /many', 'a.example'));
        assert.equal((await wire.response()).status, 200);
        wire.close();
      }),
    );
    await site.metricBecomes('tls_handshakes_total', before + 1000);
  }));

test('curl verifies and is served', async () => {
  site.write('trusted.crt', authority.pem);
  const port = await site.gateway.port('main');
  const { code, output } = await run('curl', [
    '-s',
    '--cacert',
    `${site.directory}/trusted.crt`,
    '--resolve',
    `y.b.example:${port}:127.0.0.1`,
    `https://y.b.example:${port}/curl`,
  ]);
  assert.equal(code, 0, output);
  assert.match(output, /^GET \/curl HTTP\/1\.1\r\n/);
});
