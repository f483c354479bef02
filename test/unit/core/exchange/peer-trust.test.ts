// Tunnels of a node proxy whose other ends are not trusted any more, in both directions: real TLS, with the packet core
// in this process and node:http2 at the other end.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttp, type ServerResponse } from 'node:http';
import * as http2 from 'node:http2';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { compileSnapshot } from '../../../../config/compile.ts';
import type { Config } from '../../../../config/config.ts';
import { loadConfig } from '../../../../config/load.ts';
import { GRACE_MS } from '../../../../core/exchange/peer-trust.ts';
import type { Kernel } from '../../../../core/ffi/kernel.ts';
import { createLinuxKernel } from '../../../../core/ffi/linux.ts';
import { localPort, openListeningSocket } from '../../../../core/ffi/listen.ts';
import { mapMemory } from '../../../../core/ffi/memory.ts';
import { Lookup } from '../../../../core/ffi/original-destination.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';
import { kernelMemoryBytes } from '../../../../core/io/arena.ts';
import { createByteRing } from '../../../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../../../core/telemetry/flight-layout.ts';
import { readRecords } from '../../../../core/telemetry/flight-reader.ts';
import { createMetricsBuffer } from '../../../../core/telemetry/metrics.ts';
import { detailName, reasonFlag } from '../../../../core/telemetry/outcome-names.ts';
import { TlsSessions } from '../../../../core/tls/session.ts';
import { PacketWorker } from '../../../../core/workers/packet-worker.ts';
import { type Certificate, makeCertificate } from '../tls/certificates.ts';
import { inTime, pair, until } from '../tls/support.ts';

const GET = 'GET / HTTP/1.1\r\nHost: cart\r\n\r\n';
const VIP = '10.96.0.1';
const CART = 'spiffe://cluster.local/ns/shop/sa/cart';
const WEB = 'spiffe://cluster.local/ns/shop/sa/web';

const oldRoot = makeCertificate({ name: 'old root', ca: true });
const newRoot = makeCertificate({ name: 'new root', ca: true });
const identityUnder = (issuer: Certificate, identity: string, more: { toDays?: number } = {}): Certificate =>
  makeCertificate({ name: 'workload', issuer, names: [`uri:${identity}`], ...more });

/** A node proxy with one workload, which is at `127.0.0.1`. */
class Node {
  /** Where a workload at the other end of our tunnels is. */
  readonly peerHost = `127.${[1, 2, 3].map(() => 1 + Math.floor(Math.random() * 250)).join('.')}`;
  readonly outboundFd = openListeningSocket('127.0.0.1', 0);
  readonly tunnelsFd = openListeningSocket('127.0.0.1', 0);
  private readonly worker: PacketWorker;
  private readonly kernel: Kernel;
  private readonly flight = createFlightBuffer();
  private readonly tcpPort: number;
  private epoch = 0;
  private aheadMs = 0;

  constructor(t: TestContext, tcpPort: number) {
    this.tcpPort = tcpPort;
    const memory = mapMemory(kernelMemoryBytes(2 * 1024 * 1024));
    this.kernel = createLinuxKernel(memory, null);
    const nowMs = this.kernel.nowMs.bind(this.kernel);
    this.kernel.nowMs = () => nowMs() + this.aheadMs;
    this.kernel.originalDestination = () => {
      this.kernel.memory.set(encodeSockaddr(VIP, 9000)!, this.kernel.addressOffset);
      return Lookup.FOUND;
    };
    const start = {
      ...{ index: 0, wakeFd: this.kernel.eventfd(), connectionsMax: 64, metrics: createMetricsBuffer() },
      ...{ accessLog: createByteRing(65_536), flightRecords: this.flight, descriptors: new SharedArrayBuffer(512) },
    };
    this.worker = new PacketWorker(this.kernel, start, () => {}, new TlsSessions(memory));
    let running = true;
    const turn = (): void => {
      if (!running) return;
      this.worker.runBatch(0);
      setImmediate(turn);
    };
    turn();
    t.after(() => {
      running = false;
      this.worker.handle({ type: 'stop' });
      for (const fd of [this.outboundFd, this.tunnelsFd]) this.kernel.close(fd);
    });
  }

  /** Sets the clock on the wall forward. */
  setClock(ms: number): void {
    const wallMs = this.kernel.wallMs.bind(this.kernel);
    this.kernel.wallMs = () => wallMs() + ms;
  }

  /** Lets time pass. */
  wait(ms: number): void {
    this.aheadMs += ms;
  }

  /** From now on the workload has a certificate of `issuer`, and trusts `roots`. */
  use(issuer: Certificate, ...roots: Certificate[]): void {
    const { chainPem, keyPem } = pair(identityUnder(issuer, CART));
    const caPem = roots.map(({ pem }) => pem).join('');
    const config = this.configOf({ key: `${++this.epoch}`, chainPem, keyPem, caPem });
    const snapshot = compileSnapshot(config, this.epoch, new Map());
    this.worker.handle({ type: 'snapshot', snapshot, listenerFds: [this.outboundFd, this.tunnelsFd, -2, -3, -4] });
  }

  private configOf(certificate: NonNullable<NonNullable<Config['mesh']>['workloads'][number]['certificate']>): Config {
    const names = ['outbound', 'tunnels', 'service', 'in-tcp', 'in-http'];
    const loaded = loadConfig(
      `listeners: [${names.map((name, at) => `{name: ${name}, address: "127.0.0.1:${at + 1}", protocols: [${name === 'in-http' ? 'http/1.1' : 'tcp'}]}`)}]
routes: [{name: http, listeners: [in-http], rules: [{backendRefs: [{name: inbound}]}]},
 {name: tcp, kind: TCP, listeners: [service], rules: [{backendRefs: [{name: peer}]}]},
 {name: in, kind: TCP, listeners: [in-tcp], rules: [{backendRefs: [{name: inbound}]}]}]
backends: [{name: peer, endpoints: ["${this.peerHost}:9000"], connectTimeout: 60s}, {name: inbound, endpoints: ["127.0.0.1:1"]}]`,
      'test.yaml',
      {},
    );
    if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
    const { config } = loaded;
    const roles = ['outbound', 'tunnels', 'virtual', 'virtual', 'virtual'] as const;
    return {
      ...config,
      listeners: config.listeners.map((listener, at) => ({
        ...listener,
        protocols: listener.name === 'tunnels' ? ['h2'] : listener.protocols,
        mesh: { role: roles[at]!, workload: at < 2 ? 0 : -1, detect: false },
      })),
      backends: config.backends.map((backend) =>
        backend.name === 'peer'
          ? { ...backend, endpoints: backend.endpoints.map((one) => ({ ...one, identity: WEB })) }
          : { ...backend, endpoints: [], originalDestination: 'own' as const },
      ),
      mesh: {
        workloads: [
          {
            ...{ uid: 'w', name: 'shop/cart-0', identity: CART, addresses: ['127.0.0.1'], namespaceFd: -1, mark: 0 },
            ...{ certificate, strict: true, slot: -1, connectionsMax: 0, connectionsPerSecondMax: 0 },
            ...{ bufferPercentMax: 0, authorization: null },
          },
        ],
        destinations: new Map([[`${VIP}:9000`, { listener: 'service', identity: null }]]),
        discovery: null,
        otherListener: null,
        inbound: { auto: 'in-http', http: 'in-http', tcp: 'in-tcp' },
        inboundProtocols: new Map([[`127.0.0.1:${this.tcpPort}`, 'tcp']]),
      },
    };
  }

  /** Why exchanges have failed, oldest first. */
  get failures(): string[] {
    return readRecords([this.flight])
      .map(({ reason, detail }) => `${reasonFlag(reason)} ${detailName(detail)}`)
      .reverse();
  }
}

/** An application that sends back what it gets; its port. */
function startEcho(t: TestContext): Promise<number> {
  const server = createServer((socket) => socket.on('error', () => {}).pipe(socket));
  return listening(t, server);
}

async function listening(t: TestContext, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

/** A client of tunnels: what it has been told, and whether its connection has ended. */
class Client {
  goaways = 0;
  closed = false;
  readonly session: http2.ClientHttp2Session;

  constructor(t: TestContext, node: Node, certificate: Certificate) {
    const { chainPem: cert, keyPem: key } = pair(certificate);
    const port = localPort(node.tunnelsFd);
    this.session = http2.connect(`https://127.0.0.1:${port}`, { cert, key, rejectUnauthorized: false });
    this.session.on('error', () => {});
    this.session.on('goaway', () => this.goaways++);
    this.session.on('close', () => (this.closed = true));
    t.after(() => this.session.destroy());
  }

  /** A connection through a tunnel to a port of the workload. */
  async open(port: number): Promise<http2.ClientHttp2Stream> {
    const stream = this.session.request({ ':method': 'CONNECT', ':authority': `127.0.0.1:${port}` });
    stream.on('error', () => {});
    const [headers] = (await inTime('an answer', once(stream, 'response'))) as [http2.IncomingHttpHeaders];
    assert.equal(headers[':status'], 200);
    return stream;
  }
}

/** Waits until it is closed, in whatever way. */
function closed(one: http2.ClientHttp2Stream | http2.ClientHttp2Session | Socket): Promise<void> {
  return inTime('a close', new Promise((resolve) => one.once('close', () => resolve())));
}

/** What comes back when something is sent. */
async function echo(stream: http2.ClientHttp2Stream | Socket, text: string): Promise<string> {
  stream.write(text);
  const [data] = await inTime('an answer', once(stream, 'data'));
  return String(data);
}

test('when a root goes, tunnels of clients under it take nothing new at once, and end after a while', async (t) => {
  const port = await startEcho(t);
  const node = new Node(t, port);
  node.use(oldRoot, oldRoot);
  const old = new Client(t, node, identityUnder(oldRoot, WEB));
  const kept = await old.open(port);
  assert.equal(await echo(kept, 'one'), 'one');
  // An HTTP connection that is used no more would hold up the end of its carrier.
  const idle = await old.open(1);
  const responses: ServerResponse[] = [];
  const slow = createHttp((_incoming, response) => {
    responses.push(response);
    response.writeHead(200, { 'content-length': 2 }).write('o');
  });
  const busy = await old.open(await listening(t, slow));
  let answers = '';
  busy.on('data', (bytes) => (answers += bytes));
  const answered = (pattern: RegExp): Promise<true> =>
    until(`${pattern}`, () => (pattern.test(answers) ? true : undefined));
  busy.write(GET);
  await answered(/\r\n\r\no$/);
  node.use(newRoot, oldRoot, newRoot);
  const fresh = new Client(t, node, identityUnder(newRoot, WEB));
  const renewed = await fresh.open(port);
  assert.equal(await echo(kept, 'two'), 'two');
  assert.equal(old.goaways, 0, 'both roots are trusted');

  const gone = closed(idle);
  const over = closed(kept);
  node.use(newRoot, newRoot);
  await until('a GOAWAY', () => (old.goaways > 0 ? true : undefined));
  await gone;
  responses[0]!.end('k');
  // What is in progress on a connection may end, and nothing more is begun on it.
  await answered(/\r\n\r\nok$/);
  busy.write(GET);
  await answered(/okHTTP\/1\.1 403 /);
  assert.equal(await echo(kept, 'three'), 'three', 'what is open has some time');
  node.wait(GRACE_MS);
  await over;
  await until('the end of the connection', () => (old.closed ? true : undefined));
  assert.deepEqual(node.failures, ['RBAC tunnel_untrusted', 'RBAC tunnel_untrusted']);
  assert.equal(await echo(renewed, 'here'), 'here');
  assert.equal(fresh.goaways, 0);
});

test('when the certificate of a client runs out, its tunnels take nothing new, and those open go on', async (t) => {
  const port = await startEcho(t);
  const node = new Node(t, port);
  node.use(oldRoot, oldRoot);
  const client = new Client(t, node, identityUnder(oldRoot, WEB, { toDays: 30 / 86_400 }));
  const stream = await client.open(port);
  assert.equal(await echo(stream, 'here'), 'here');
  assert.equal(client.goaways, 0);
  node.wait(30_000);
  await until('a GOAWAY', () => (client.goaways > 0 ? true : undefined));
  assert.equal(await echo(stream, 'still here'), 'still here');
  const ended = closed(client.session);
  stream.end();
  stream.resume();
  await ended;
  assert.deepEqual(node.failures, []);
});

/** The other end of our tunnels: sends back what it gets. `hold` keeps connections back before their handshake. */
class Peer {
  readonly sessions: http2.ServerHttp2Session[] = [];
  private readonly server = http2.createSecureServer({ requestCert: true, rejectUnauthorized: false });
  private readonly held: Socket[] = [];
  private holding = false;

  static async start(t: TestContext, node: Node, issuer: Certificate): Promise<Peer> {
    const peer = new Peer();
    const { server, sessions, held } = peer;
    peer.show(issuer);
    server.on('session', (session) => sessions.push(session));
    server.on('stream', (stream: http2.ServerHttp2Stream) => {
      stream.on('error', () => {});
      stream.respond({ ':status': 200 });
      stream.pipe(stream);
    });
    const listener = createServer((socket) => {
      held.push(socket.on('error', () => {}));
      if (!peer.holding) peer.release();
    });
    listener.listen(15_008, node.peerHost);
    await once(listener, 'listening');
    t.after(() => {
      for (const session of sessions) session.destroy();
      for (const socket of held) socket.destroy();
      listener.close();
    });
    return peer;
  }

  /** From now on its certificate is one of `issuer`. */
  show(issuer: Certificate): void {
    const { pem, keyPem } = identityUnder(issuer, WEB);
    this.server.setSecureContext({ cert: pem, key: keyPem });
  }

  hold(): void {
    this.holding = true;
  }

  /** Connections that are kept back. */
  get waiting(): number {
    return this.held.length;
  }

  release(): void {
    this.holding = false;
    for (const socket of this.held.splice(0)) this.server.emit('connection', socket);
  }
}

/** A connection of the workload to a service whose workload is behind a tunnel. */
function dial(t: TestContext, node: Node): Socket {
  const socket = connect(localPort(node.outboundFd), '127.0.0.1');
  socket.on('error', () => {});
  t.after(() => socket.destroy());
  return socket;
}

test('a clock that is set past the end of a certificate counts as well', async (t) => {
  const port = await startEcho(t);
  const node = new Node(t, port);
  node.use(oldRoot, oldRoot);
  const client = new Client(t, node, identityUnder(oldRoot, WEB));
  const stream = await client.open(port);
  node.setClock(10 * 365 * 86_400_000);
  node.wait(1000);
  const refused = client.session.request({ ':method': 'CONNECT', ':authority': `127.0.0.1:${port}` });
  refused.on('error', () => {});
  const [headers] = (await inTime('an answer', once(refused, 'response'))) as [http2.IncomingHttpHeaders];
  assert.equal(headers[':status'], 403);
  await until('a GOAWAY', () => (client.goaways > 0 ? true : undefined));
  assert.equal(await echo(stream, 'still here'), 'still here');
  assert.deepEqual(node.failures, ['RBAC tunnel_identity']);
});

test('our own tunnels to servers under a root that goes end in the same way', async (t) => {
  const node = new Node(t, 1);
  const peer = await Peer.start(t, node, oldRoot);
  node.use(oldRoot, oldRoot);
  const old = dial(t, node);
  assert.equal(await echo(old, 'one'), 'one');
  peer.show(newRoot);
  node.use(newRoot, oldRoot, newRoot);
  const renewed = dial(t, node);
  assert.equal(await echo(renewed, 'one'), 'one');
  assert.equal(await echo(old, 'two'), 'two');
  const over = closed(old);
  node.use(newRoot, newRoot);
  assert.equal(await echo(old, 'three'), 'three');
  assert.equal(await echo(dial(t, node), 'four'), 'four');
  node.wait(GRACE_MS);
  await over;
  assert.deepEqual(node.failures, ['UC tunnel_untrusted']);
  const [first] = peer.sessions;
  await until('the end of the carrier', () => (first!.closed ? true : undefined));
  assert.equal(await echo(renewed, 'five'), 'five');
});

test('a root that goes in the middle of a handshake is not trusted after it', async (t) => {
  const node = new Node(t, 1);
  const peer = await Peer.start(t, node, oldRoot);
  node.use(oldRoot, oldRoot, newRoot);
  peer.hold();
  const client = dial(t, node);
  await until('a connection', () => (peer.waiting > 0 ? true : undefined));
  node.use(newRoot, newRoot);
  const over = closed(client);
  peer.release();
  await over;
  assert.deepEqual(node.failures, ['UF tunnel_untrusted']);
});

test('a carrier that nobody wants any more when it is there does not stay', async (t) => {
  const node = new Node(t, 1);
  const peer = await Peer.start(t, node, newRoot);
  node.use(newRoot, newRoot);
  peer.hold();
  const client = dial(t, node);
  await until('a connection', () => (peer.waiting > 0 ? true : undefined));
  client.resetAndDestroy();
  // Another certificate of the workload: nothing of the one before is used again.
  await until('the client has left', () => (node.failures[0]?.startsWith('DC ') ? true : undefined));
  node.use(newRoot, newRoot);
  peer.release();
  await until('the carrier', () => (peer.sessions.length > 0 ? true : undefined));
  await until('its end', () => (peer.sessions[0]!.closed ? true : undefined));
});
