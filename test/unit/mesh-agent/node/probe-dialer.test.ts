// Health checks through tunnels, against proxies that are real enough to be right or wrong in every way.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttp } from 'node:http';
import {
  constants,
  createServer as createHttp2,
  createSecureServer,
  type Http2Session,
  type IncomingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import { connect, createServer as createTcp, type Server, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import type { TLSSocket } from 'node:tls';
import type { HealthCheckConfig } from '../../../../config/config.ts';
import { Errno } from '../../../../core/ffi/errno.ts';
import { type NamespaceFailure, NamespaceSockets } from '../../../../core/ffi/netns.ts';
import { failure } from '../../../../core/ffi/netns-open.ts';
import { probeThrough } from '../../../../gateway/health/probes.ts';
import { makeTrustBundle } from '../../../../mesh-agent/identity/trust-bundle.ts';
import type { WorkloadCertificate } from '../../../../mesh-agent/identity/workload-certificates.ts';
import { connectMarked, ProbeDialer, type ProbeDialerOptions } from '../../../../mesh-agent/node/probe-dialer.ts';
import { Forger, type Papers } from '../../../support/mesh/peers.ts';
import { portOf } from '../../../support/port-of.ts';

const NODE = 'spiffe://cluster.local/node/node-a';
const CART = 'spiffe://cluster.local/ns/shop/sa/cart';
const THIEF = 'spiffe://cluster.local/ns/shop/sa/thief';

const forger = await Forger.stranger();
const nodePapers = await forger.issue(NODE);
const cartPapers = await forger.issue(CART);
const bundle = makeTrustBundle('cluster.local', 1, [forger.rootPem]);

/** Nothing that works takes this long; what never comes is waited for only where that is the point. */
const TIMEOUT_MS = 10_000;

const httpCheck: HealthCheckConfig = {
  ...{ type: 'HTTP', path: '/healthz', host: '', method: 'GET', headers: [], expectedStatuses: [[200, 299]] },
  ...{ grpcService: '', port: 0, intervalMs: 1000, timeoutMs: TIMEOUT_MS, jitterPercent: 0 },
  ...{ unhealthyThreshold: 3, healthyThreshold: 2 },
};

const success = { outcome: 'success', cause: '' };

function certificateOf(identity: string, { chainPem, keyPem }: Papers): WorkloadCertificate {
  return { identity, chainPem, keyPem, notBeforeMs: 0, notAfterMs: Number.MAX_SAFE_INTEGER, rootId: '' };
}

const nodeCertificate = certificateOf(NODE, nodePapers);

/** Until the test is over, TLS clients of this process verify only where they say so. */
function withoutVerification(t: TestContext): void {
  const { NODE_TLS_REJECT_UNAUTHORIZED: before } = process.env;
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
  t.after(() => {
    if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
  });
}

/** What a proxy has seen of a tunnel. */
interface Asked {
  authority: string;
  /** Names of the client's certificate. */
  client: string;
}

type OnConnect = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void;

/** Passes the bytes of a tunnel on to where it leads, as a proxy of the mesh does. */
const passOn: OnConnect = (stream, headers) => {
  stream.respond({ ':status': 200 });
  const { hostname, port } = new URL(`tcp://${headers[':authority']}`);
  const socket = connect({ port: Number(port), host: hostname, allowHalfOpen: true });
  // Nothing else resets a stream without ending it first.
  socket.on('error', (error) => stream.destroy(error));
  stream.on('close', () => socket.destroy());
  socket.pipe(stream).pipe(socket);
};

/** The proxy of a workload, with these papers. */
async function startProxy(t: TestContext, papers: Papers, onConnect = passOn) {
  const asked: Asked[] = [];
  const server = createSecureServer({
    ...{ cert: papers.chainPem, key: papers.keyPem, ca: forger.rootPem },
    ...{ requestCert: true, rejectUnauthorized: true },
  });
  const sessions = new Set<Http2Session>();
  server.on('session', (session) => {
    sessions.add(session.on('error', () => {}).on('close', () => sessions.delete(session)));
  });
  server.on('tlsClientError', () => {});
  server.on('stream', (stream: ServerHttp2Stream, headers) => {
    stream.on('error', () => {});
    const socket = stream.session!.socket as unknown as TLSSocket;
    asked.push({ authority: headers[':authority']!, client: socket.getPeerCertificate().subjectaltname ?? '' });
    onConnect(stream, headers);
  });
  const port = await portOf(t, server as unknown as Server);
  /** Resolves when no client is connected any more. */
  const idle = async (): Promise<void> => {
    for (const session of sessions) await once(session, 'close');
  };
  return { port, asked, idle };
}

/** Checks a port of this machine through a tunnel that begins at `tunnelPort`. */
function checkThrough(
  tunnelPort: number,
  port: number,
  more: Partial<HealthCheckConfig> = {},
  options: Partial<ProbeDialerOptions> & { http2?: boolean; identity?: string | null; signal?: AbortSignal } = {},
) {
  const { http2 = false, identity = CART, signal = new AbortController().signal, ...rest } = options;
  const dialer = new ProbeDialer({ certificate: () => nodeCertificate, bundle: () => bundle, tunnelPort, ...rest });
  const place = { host: '127.0.0.1', port, proxyProtocol: 0 as const, tls: null, identity };
  return probeThrough(dialer.dial)({ ...place, http2, check: { ...httpCheck, ...more } }, signal);
}

test('a check by HTTP goes through a tunnel with the identity of the node', async (t) => {
  const paths: string[] = [];
  let status = 200;
  const app = await portOf(
    t,
    createHttp((incoming, response) => {
      paths.push(`${incoming.headers.host}${incoming.url}`);
      response.statusCode = status;
      response.end('as it is');
    }),
  );
  const proxy = await startProxy(t, cartPapers);
  assert.deepEqual(await checkThrough(proxy.port, app), success);
  assert.deepEqual(proxy.asked, [{ authority: `127.0.0.1:${app}`, client: `URI:${NODE}` }]);
  assert.deepEqual(paths, [`127.0.0.1:${app}/healthz`]);
  status = 503;
  assert.deepEqual(await checkThrough(proxy.port, app), { outcome: 'refusal', cause: 'it answered with status 503' });
  // Nothing of a check is left behind.
  await proxy.idle();
});

test('so do checks by HTTP/2 and gRPC', async (t) => {
  const seen: string[] = [];
  const server = createHttp2().on('stream', (stream: ServerHttp2Stream, headers) => {
    seen.push(headers[':path']!);
    stream.on('error', () => {});
    if (headers['content-type'] !== 'application/grpc') {
      stream.respond({ ':status': 204 }, { endStream: true });
      return;
    }
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
    stream.end(Buffer.of(0, 0, 0, 0, 2, 8, 1));
  });
  const app = await portOf(t, server as unknown as Server);
  const proxy = await startProxy(t, cartPapers);
  assert.deepEqual(await checkThrough(proxy.port, app, {}, { http2: true }), success);
  assert.deepEqual(await checkThrough(proxy.port, app, { type: 'GRPC' }, { http2: true }), success);
  assert.deepEqual(seen, ['/healthz', '/grpc.health.v1.Health/Check']);
  assert.equal(proxy.asked.length, 2);
});

test('a TCP check sees behind the tunnel, which may be there before the connection', async (t) => {
  const proxy = await startProxy(t, cartPapers);
  const ending = await portOf(
    t,
    createTcp((socket) => socket.resume()),
  );
  assert.deepEqual(await checkThrough(proxy.port, ending, { type: 'TCP' }), success);
  const greeting = await portOf(
    t,
    createTcp({ allowHalfOpen: true }, (socket) => socket.write('220 here\r\n')),
  );
  assert.deepEqual(await checkThrough(proxy.port, greeting, { type: 'TCP' }), success);
  const silent = await portOf(
    t,
    createTcp({ allowHalfOpen: true }, (socket) => socket.resume()),
  );
  assert.deepEqual(await checkThrough(proxy.port, silent, { type: 'TCP', timeoutMs: 200 }), success);
  const gone = createTcp();
  const gonePort = await portOf(t, gone);
  await new Promise((resolve) => gone.close(resolve));
  assert.deepEqual(await checkThrough(proxy.port, gonePort, { type: 'TCP' }), {
    outcome: 'failure',
    cause: `connection reset behind the tunnel: nothing listens there, or policies refuse ${NODE}`,
  });
});

test('the other end has to be the very workload that is meant', async (t) => {
  const proxy = await startProxy(t, await forger.issue(THIEF));
  assert.deepEqual(await checkThrough(proxy.port, 1), {
    outcome: 'failure',
    cause: `the other end of the tunnel is ${THIEF}, not ${CART}`,
  });
  assert.deepEqual(proxy.asked, [], 'it is asked for nothing');
});

test('the other end has to have its certificate under a root of the mesh', async (t) => {
  const stranger = await Forger.stranger();
  const proxy = await startProxy(t, await stranger.issue(CART));
  const { outcome, cause } = await checkThrough(proxy.port, 1);
  assert.equal(outcome, 'failure');
  assert.match(cause, /self-signed certificate|unable to (get|verify)|signature/i);
  assert.deepEqual(proxy.asked, []);
  const expired = await startProxy(t, await forger.issue(CART, true));
  assert.deepEqual(await checkThrough(expired.port, 1), { outcome: 'failure', cause: 'certificate has expired' });
});

test('a tunnel that is refused is a failure that says to whom', async (t) => {
  const proxy = await startProxy(t, cartPapers, (stream) => stream.respond({ ':status': 403 }, { endStream: true }));
  assert.deepEqual(await checkThrough(proxy.port, 1), {
    outcome: 'failure',
    cause: `the tunnel was refused with status 403 to ${NODE}`,
  });
  const resetting = await startProxy(t, cartPapers, (stream) => stream.close(constants.NGHTTP2_REFUSED_STREAM));
  const { outcome, cause } = await checkThrough(resetting.port, 1);
  assert.equal(outcome, 'failure');
  assert.match(cause, /REFUSED_STREAM/);
});

test('a request that policies refuse says whom they do not allow', async (t) => {
  let body = '403 Forbidden\nRBAC: The authorization policies of the workload do not allow this.\n';
  const app = await portOf(
    t,
    createHttp((_incoming, response) => {
      response.statusCode = 403;
      response.end(body);
    }),
  );
  const proxy = await startProxy(t, cartPapers);
  assert.deepEqual(await checkThrough(proxy.port, app), {
    outcome: 'refusal',
    cause: `its authorization policies do not allow ${NODE}`,
  });
  body = 'members only';
  assert.deepEqual(await checkThrough(proxy.port, app), {
    outcome: 'refusal',
    cause: `it answered with status 403 to ${NODE}`,
  });
  // Who is asked without a tunnel is nobody that policies know.
  assert.equal((await checkThrough(proxy.port, app, {}, { identity: null })).cause, 'it answered with status 403');
});

test('an end that says nothing runs out of time, and the connection is closed', async (t) => {
  const timeout = { outcome: 'timeout', cause: `no answer within ${TIMEOUT_MS} ms` };
  const controller = new AbortController();
  const mute = createTcp();
  const accepted = once(mute, 'connection') as Promise<[Socket]>;
  const mutePort = await portOf(t, mute);
  const result = checkThrough(mutePort, 1, {}, { signal: controller.signal });
  const [socket] = await accepted;
  const closed = once(socket.resume(), 'close');
  controller.abort();
  assert.deepEqual(await result, timeout);
  await closed;

  // The same after the handshake, and with a signal that comes before anything.
  const late = new AbortController();
  const proxy = await startProxy(t, cartPapers, () => late.abort());
  assert.deepEqual(await checkThrough(proxy.port, 1, {}, { signal: late.signal }), timeout);
  await proxy.idle();
  assert.deepEqual(await checkThrough(proxy.port, 1, {}, { signal: late.signal }), timeout);
  assert.equal(proxy.asked.length, 1);
});

test('an end that closes is a failure at once, wherever it does', async (t) => {
  const gone = createTcp();
  const gonePort = await portOf(t, gone);
  await new Promise((resolve) => gone.close(resolve));
  assert.deepEqual(await checkThrough(gonePort, 1), { outcome: 'failure', cause: 'connection refused' });

  const closing = await portOf(
    t,
    createTcp((socket) => socket.destroy()),
  );
  assert.equal((await checkThrough(closing, 1)).outcome, 'failure');

  const atConnect = await startProxy(t, cartPapers, (stream) => stream.session!.destroy());
  assert.equal((await checkThrough(atConnect.port, 1)).outcome, 'failure');

  const inTunnel = await startProxy(t, cartPapers, (stream) => {
    stream.respond({ ':status': 200 });
    stream.once('data', () => stream.session!.destroy());
  });
  assert.equal((await checkThrough(inTunnel.port, 1)).outcome, 'failure');
  assert.equal((await checkThrough(inTunnel.port, 1, {}, { http2: true })).outcome, 'failure');
});

test('an end that does not let the node in is a failure', async (t) => {
  const stranger = await Forger.stranger();
  const papers = certificateOf(NODE, await stranger.issue(NODE));
  const proxy = await startProxy(t, cartPapers);
  assert.equal((await checkThrough(proxy.port, 1, {}, { certificate: () => papers })).outcome, 'failure');
  assert.deepEqual(proxy.asked, []);
});

test('without a certificate there is no check, which says nothing of the endpoint', async (t) => {
  const proxy = await startProxy(t, cartPapers);
  assert.deepEqual(await checkThrough(proxy.port, 1, {}, { certificate: () => null }), {
    outcome: null,
    cause: 'not checked: this proxy has no valid certificate for tunnels',
  });
  assert.deepEqual(proxy.asked, []);
});

test('each tunnel has the certificate and the roots of its time', async (t) => {
  const app = await portOf(
    t,
    createHttp((_incoming, response) => response.end()),
  );
  const proxy = await startProxy(t, cartPapers);
  let certificate = nodeCertificate;
  let roots = bundle;
  const dialer = new ProbeDialer({
    ...{ certificate: () => certificate, bundle: () => roots, tunnelPort: proxy.port },
  });
  const place = { host: '127.0.0.1', port: app, proxyProtocol: 0 as const, tls: null, identity: CART };
  const check = () =>
    probeThrough(dialer.dial)({ ...place, http2: false, check: httpCheck }, new AbortController().signal);
  assert.deepEqual(await check(), success);
  const other = 'spiffe://cluster.local/node/node-b';
  certificate = certificateOf(other, await forger.issue(other));
  assert.deepEqual(await check(), success);
  assert.deepEqual(
    proxy.asked.map(({ client }) => client),
    [`URI:${NODE}`, `URI:${other}`],
  );
  roots = makeTrustBundle('cluster.local', 2, [(await Forger.stranger()).rootPem]);
  assert.equal((await check()).outcome, 'failure');
  assert.equal(proxy.asked.length, 2);
});

test('endpoints without tunnels are checked in plain text', async (t) => {
  const proxy = await startProxy(t, cartPapers);
  const app = await portOf(
    t,
    createHttp((_incoming, response) => response.end()),
  );
  const silent = await portOf(t, createTcp());
  const plain = { identity: null, certificate: () => null };
  assert.deepEqual(await checkThrough(proxy.port, app, {}, plain), success);
  assert.deepEqual(await checkThrough(proxy.port, silent, { type: 'TCP' }, plain), success);
  const gone = createTcp();
  const gonePort = await portOf(t, gone);
  await new Promise((resolve) => gone.close(resolve));
  const refused = { outcome: 'failure', cause: 'connection refused' };
  assert.deepEqual(await checkThrough(proxy.port, gonePort, { type: 'TCP' }, plain), refused);
  assert.deepEqual(proxy.asked, []);
});

test('a sidecar connects with sockets that are marked', {
  skip: process.getuid!() !== 0 && 'needs root',
}, async (t) => {
  const sockets = new NamespaceSockets();
  t.after(() => sockets.close());
  const marks: unknown[] = [];
  const noting: Pick<NamespaceSockets, 'open'> = {
    open: (target, request, count) => {
      marks.push(request.mark);
      return sockets.open(target, request, count);
    },
  };
  const options = { connect: connectMarked(noting) };
  const app = await portOf(
    t,
    createHttp((_incoming, response) => response.end()),
  );
  const proxy = await startProxy(t, cartPapers);
  assert.deepEqual(await checkThrough(proxy.port, app, {}, options), success);
  const tcp = { ...options, identity: null };
  assert.deepEqual(await checkThrough(proxy.port, app, { type: 'TCP' }, tcp), success);
  const gone = createTcp();
  const gonePort = await portOf(t, gone);
  await new Promise((resolve) => gone.close(resolve));
  assert.deepEqual(await checkThrough(proxy.port, gonePort, { type: 'TCP' }, tcp), {
    outcome: 'failure',
    cause: 'connection refused',
  });
  assert.deepEqual(marks, [0x539, 0x539, 0x539]);
  await sockets.close();
  const { outcome, cause } = await checkThrough(proxy.port, app, {}, options);
  assert.deepEqual([outcome, cause], [null, 'not checked: the namespace thread has been closed']);
});

test("of what a marked socket fails by, only what the network says is the endpoint's", async () => {
  const resultOf = (failed: NamespaceFailure) =>
    checkThrough(1, 1, {}, { connect: connectMarked({ open: () => Promise.resolve(failed) }) });
  for (const [errno, cause] of [
    [Errno.ECONNREFUSED, 'connection refused'],
    [Errno.ECONNRESET, 'connection reset'],
    [Errno.EHOSTUNREACH, 'no route to the address'],
    [Errno.ENETUNREACH, 'no route to the address'],
    [Errno.ETIMEDOUT, 'connect failed: connection timed out (ETIMEDOUT)'],
  ] as const) {
    assert.deepEqual(await resultOf(failure('SOCKET_FAILED', errno, 'connect failed')), { outcome: 'failure', cause });
  }
  for (const local of [
    failure('SOCKET_FAILED', Errno.EMFILE, 'socket failed'),
    failure('SOCKET_FAILED', Errno.ENFILE, 'socket failed'),
    failure('SOCKET_FAILED', Errno.ENOBUFS, 'socket failed'),
    failure('SOCKET_FAILED', Errno.EADDRNOTAVAIL, 'connect failed'),
    failure('SOCKET_FAILED', Errno.EPERM, 'SO_MARK failed'),
    failure('NAMESPACE_UNREADABLE', Errno.EMFILE, '/proc/self/ns/net cannot be opened'),
    failure('NAMESPACE_NOT_FOUND', Errno.ENOENT, 'there is no network namespace'),
    failure('NAMESPACE_FORBIDDEN', Errno.EPERM, 'it cannot be entered'),
    failure('THREAD_LOST', 0, 'the namespace thread failed'),
    failure('CLOSED', 0, 'the namespace thread has been closed'),
  ]) {
    assert.deepEqual(await resultOf(local), { outcome: null, cause: `not checked: ${local.message}` });
  }
});

test('a connection that fails at once is a failure of the check, and ends nothing else', async () => {
  const dialer = new ProbeDialer({ certificate: () => null, bundle: () => bundle });
  // The kernel refuses it in the call itself. As from a timer, its error comes before anything that is awaited.
  const place = { host: '224.0.0.1', port: 1, proxyProtocol: 0 as const, tls: null, identity: null };
  const result = await new Promise((resolve) => {
    const target = { ...place, http2: false, check: { ...httpCheck, type: 'TCP' as const } };
    setImmediate(() => resolve(probeThrough(dialer.dial)(target, new AbortController().signal)));
  });
  assert.deepEqual(result, { outcome: 'failure', cause: 'no route to the address' });
});

test('a check ends in time while its socket is still being opened, and closes one that comes late', async (t) => {
  const server = createTcp();
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const port = await portOf(t, server);
  for (const identity of [CART, null]) {
    const controller = new AbortController();
    const opening = Promise.withResolvers<Socket>();
    const asked = Promise.withResolvers<void>();
    const hang = (): Promise<Socket> => {
      asked.resolve();
      return opening.promise;
    };
    const result = checkThrough(port, port, {}, { connect: hang, identity, signal: controller.signal });
    await asked.promise;
    controller.abort();
    // Nobody but this machine has been asked for anything.
    const cause = 'not checked: no socket could be opened in time';
    assert.deepEqual(await result, { outcome: null, cause });
    if (identity === null) {
      // One that fails late is nobody's business.
      opening.reject(new Error('too late'));
      continue;
    }
    const late = connect(port, '127.0.0.1');
    const [far] = await accepted;
    const closed = [once(late, 'close'), once(far.resume(), 'close')];
    opening.resolve(late);
    await Promise.all(closed);
  }
});

test('the environment cannot turn the verification of tunnels off', async (t) => {
  const proxy = await startProxy(t, await forger.issue(THIEF));
  const stranger = await startProxy(t, await (await Forger.stranger()).issue(CART));
  withoutVerification(t);
  assert.deepEqual(await checkThrough(proxy.port, 1), {
    outcome: 'failure',
    cause: `the other end of the tunnel is ${THIEF}, not ${CART}`,
  });
  assert.equal((await checkThrough(stranger.port, 1)).outcome, 'failure');
  assert.deepEqual([proxy.asked, stranger.asked], [[], []]);
});
