// Policies at the connections and requests of a worker: what is refused reaches no workload, is told to the client
// where it can be, and is counted, recorded and named.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileSnapshot } from '../../../../config/compile.ts';
import type { Config } from '../../../../config/config.ts';
import { loadConfig } from '../../../../config/load.ts';
import { policySlot } from '../../../../core/authorization/policy-numbers.ts';
import { accessOf } from '../../../../core/exchange/admission.ts';
import { ClientCertificate } from '../../../../core/exchange/client-certificate.ts';
import { WorkloadRuntime } from '../../../../core/exchange/mesh-runtime.ts';
import { Lookup } from '../../../../core/ffi/original-destination.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';
import { kernelMemoryBytes } from '../../../../core/io/arena.ts';
import { createByteRing, RingConsumer } from '../../../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../../../core/telemetry/flight-layout.ts';
import { readRecords } from '../../../../core/telemetry/flight-reader.ts';
import { createMetricsBuffer, MetricSection } from '../../../../core/telemetry/metrics.ts';
import { detailName } from '../../../../core/telemetry/outcome-names.ts';
import type { WorkloadSettings } from '../../../../core/workers/mesh-settings.ts';
import { PacketWorker } from '../../../../core/workers/packet-worker.ts';
import type { WorkerMessage } from '../../../../core/workers/protocol.ts';
import { explainRecord } from '../../../../gateway/explain.ts';
import {
  encodeFrame,
  encodeSettings,
  Flags,
  FrameReader,
  HeaderDecoder,
  HeaderEncoder,
  preface,
  Type,
} from '../../../sim/http2-codec.ts';
import { SimKernel } from '../../../sim/kernel.ts';
import { Random } from '../../../sim/random.ts';
import { Scheduler } from '../../../sim/scheduler.ts';
import { plainLink, type SimSocket } from '../../../sim/tcp.ts';
import { type ShortPolicy, settingsOf } from '../authorization/support.ts';
import { clientFrom } from './support.ts';

const HOST = '10.1.0.5';
const PORTS = { http: 8080, tcp: 9000, auto: 7000 };
const inboundAddress = { host: '0.0.0.0', port: 15_006 };

/** A configuration with one workload, and what a node proxy has for connections that come to it. */
function configOf(policies: ShortPolicy[] | null, format = '%{detail}'): Config {
  const loaded = loadConfig(
    `listeners:
- {name: socket, address: "0.0.0.0:15006", protocols: [tcp]}
- {name: http, address: "0.0.0.0:1", protocols: [http/1.1, h2c]}
- {name: tcp, address: "0.0.0.0:2", protocols: [tcp]}
- {name: auto, address: "0.0.0.0:3", protocols: [http/1.1, h2c]}
routes:
- {name: in, listeners: [http, auto], rules: [{backendRefs: [{name: in}]}]}
- {name: in-tcp, kind: TCP, listeners: [tcp, socket], rules: [{backendRefs: [{name: in}]}]}
backends: [{name: in, endpoints: ["127.0.0.1:1"]}]
accessLog: {path: "-", format: "${format}"}`,
    'test.yaml',
    {},
  );
  if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
  const { config } = loaded;
  const workload: WorkloadSettings = {
    uid: 'w',
    name: 'shop/cart-0',
    identity: 'spiffe://cluster.local/ns/shop/sa/cart',
    addresses: [HOST],
    namespaceFd: -1,
    mark: 0,
    certificate: null,
    strict: false,
    slot: -1,
    connectionsMax: 0,
    connectionsPerSecondMax: 0,
    bufferPercentMax: 0,
    authorization: policies === null ? null : settingsOf(policies),
  };
  const [route] = config.streamRoutes;
  return {
    ...config,
    listeners: config.listeners.map((listener) => {
      const virtual = listener.name !== 'socket';
      const mesh = virtual
        ? { role: 'virtual' as const, workload: -1, detect: listener.name === 'auto' }
        : { role: 'inbound' as const, workload: 0, detect: false };
      return { ...listener, ...(virtual ? { address: '' } : {}), mesh };
    }),
    streamRoutes: [{ ...route!, listeners: ['tcp', 'auto'] }],
    backends: config.backends.map((backend) => ({ ...backend, endpoints: [], originalDestination: 'own' as const })),
    mesh: {
      workloads: [workload],
      destinations: new Map(),
      discovery: null,
      otherListener: null,
      inbound: { auto: 'auto', http: 'http', tcp: 'tcp' },
      inboundProtocols: new Map([
        [`${HOST}:${PORTS.http}`, 'http'],
        [`${HOST}:${PORTS.tcp}`, 'tcp'],
      ]),
    },
  };
}

/** A worker with one workload behind it. */
class Bench {
  readonly posted: WorkerMessage[] = [];
  /** The workload's ends of the connections that reached it. */
  readonly reached: SimSocket[] = [];
  private readonly scheduler = new Scheduler();
  private readonly kernel: SimKernel;
  private readonly worker: PacketWorker;
  private readonly listenerFd: number;
  private readonly metrics = createMetricsBuffer();
  private readonly flight = createFlightBuffer();
  private readonly ring = createByteRing(65536);
  private readonly format: string;
  private port = 0;
  private clientPort = 5000;
  private epoch = 0;

  constructor(policies: ShortPolicy[] | null, format = '%{detail}') {
    this.format = format;
    const bufferBytes = 1024 * 1024;
    this.kernel = new SimKernel({
      random: new Random(1),
      scheduler: this.scheduler,
      memoryBytes: kernelMemoryBytes(bufferBytes),
      links: () => ({ out: plainLink, in: plainLink }),
    });
    this.kernel.originalDestination = () => {
      this.kernel.memory.set(encodeSockaddr(HOST, this.port)!, this.kernel.addressOffset);
      return Lookup.FOUND;
    };
    const connectionsMax = 32;
    const start = {
      index: 0,
      wakeFd: this.kernel.eventfd(),
      bufferBytes,
      connectionsMax,
      metrics: this.metrics,
      accessLog: this.ring,
      flightRecords: this.flight,
      descriptors: new SharedArrayBuffer(connectionsMax * 4),
    };
    this.worker = new PacketWorker(
      this.kernel,
      start,
      (message) => this.posted.push(message),
      null,
      (words) => words.fill(7),
    );
    this.listenerFd = this.kernel.createListener(inboundAddress);
    for (const port of Object.values(PORTS)) {
      this.kernel.setEndpoint(
        { host: HOST, port },
        { dial: () => ({ type: 'accept', delayMs: 0 }), connected: (socket) => this.reached.push(socket) },
      );
    }
    this.use(policies);
  }

  /** Puts policies in force. */
  use(policies: ShortPolicy[] | null): void {
    const snapshot = compileSnapshot(configOf(policies, this.format), ++this.epoch, new Map());
    this.worker.handle({ type: 'snapshot', snapshot, listenerFds: [this.listenerFd, -2, -3, -4] });
  }

  /** A connection to a port of the workload. */
  dial(port: number, host = '10.9.0.1'): SimSocket {
    this.port = port;
    const client = this.kernel.dialIn(inboundAddress, { host, port: this.clientPort++ });
    this.run(2);
    return client;
  }

  run(ms: number): void {
    const endMs = this.scheduler.nowMs + ms;
    while (this.scheduler.nowMs < endMs) this.worker.runBatch(Math.ceil(endMs - this.scheduler.nowMs));
  }

  /** Sends a request that no workload is needed for, and returns what comes back. */
  ask(client: SimSocket, text: string): string {
    client.send(bytes(text));
    this.run(5);
    return textOf(client);
  }

  /** The last connection that reached the workload. */
  get workload(): SimSocket {
    return this.reached.at(-1)!;
  }

  count(section: number, policy: string): number {
    return new Float64Array(this.metrics)[section + policySlot(policy)]!;
  }

  /** Details of what was recorded, oldest first. */
  details(): string[] {
    return readRecords([this.flight])
      .map(({ detail }) => detailName(detail))
      .reverse();
  }

  /** Records, the last first. */
  records(): ReturnType<typeof readRecords> {
    return readRecords([this.flight]);
  }

  /** What the records of refusals say, the last first. */
  explanations(): string[] {
    return readRecords([this.flight]).map((record) => explainRecord(record).join('\n'));
  }

  /** Takes what has been written to the access log. */
  accessLog(): string {
    const consumer = new RingConsumer(this.ring);
    const line = Uint8Array.from({ length: consumer.used() }, (_, skip) => consumer.data[consumer.index(skip)]!);
    consumer.free(line.length);
    return Buffer.from(line).toString();
  }

  logLines(): string[] {
    return this.posted.flatMap((message) => (message.type === 'log' ? [message.message] : []));
  }
}

function bytes(text: string): Uint8Array {
  return Buffer.from(text, 'latin1');
}

function textOf(socket: SimSocket): string {
  const chunk = new Uint8Array(100_000);
  const count = socket.recv(chunk);
  return count > 0 ? Buffer.from(chunk.subarray(0, count)).toString('latin1') : '';
}

const GET = 'GET /x HTTP/1.1\r\nHost: cart\r\n\r\n';
const DELETE = 'DELETE /x HTTP/1.1\r\nHost: cart\r\n\r\n';
const noDelete: ShortPolicy = { name: 'shop/no-delete', action: 'deny', rules: [{ to: [{ methods: ['DELETE'] }] }] };
const fromNine: ShortPolicy = { name: 'shop/nine', rules: [{ from: [{ ipBlocks: ['10.9.0.0/16'] }] }] };

test('a request that a policy denies is answered with 403, and the workload does not hear of it', () => {
  const bench = new Bench([noDelete]);
  const client = bench.dial(PORTS.http);
  const refused = bench.ask(client, DELETE);
  assert.match(refused, /^HTTP\/1\.1 403 Forbidden\r\n/);
  assert.match(refused, /\nRBAC: |RBAC: /);
  assert.doesNotMatch(refused, /no-delete/, 'clients are not told of policies');
  assert.equal(bench.reached.length, 0);
  // The connection serves its next request.
  client.send(bytes(GET));
  bench.run(5);
  assert.match(textOf(bench.workload), /^GET \/x HTTP\/1\.1\r\n/);
  bench.workload.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'));
  bench.run(5);
  assert.match(textOf(client), /^HTTP\/1\.1 200 /);
  assert.equal(bench.count(MetricSection.POLICY_DENIALS, 'shop/no-delete'), 1);
  assert.deepEqual(bench.details(), ['denied_by_shop/no-delete rule 1']);
  assert.match(bench.explanations()[0]!, /Reason RBAC: .*\nThe policy is "shop\/no-delete rule 1"\.\nHint: /);
});

test('what no policy allows is refused in the name of those that allow', () => {
  const bench = new Bench([fromNine, { name: 'shop/get', rules: [{ to: [{ methods: ['GET'] }] }] }]);
  assert.match(bench.ask(bench.dial(PORTS.http, '10.8.0.1'), DELETE), /^HTTP\/1\.1 403 /);
  assert.deepEqual(bench.details(), ['not_allowed_by_shop/nine, shop/get']);
  for (const name of ['shop/nine', 'shop/get']) assert.equal(bench.count(MetricSection.POLICY_DENIALS, name), 1);
  bench.dial(PORTS.http, '10.8.0.1').send(bytes(GET));
  bench.run(5);
  assert.match(textOf(bench.workload), /^GET /);
});

test('the log names workload, side and the policy that decided, whichever way; records do, too', () => {
  const format = '%{status} %{workload} %{side} %{peer} %{service} %{policy}';
  const get: ShortPolicy = { name: 'shop/get', rules: [{ to: [{ methods: ['GET'] }] }] };
  const bench = new Bench([noDelete, fromNine, get], format);
  const ask = (host: string, request: string): void => {
    const { length } = bench.reached;
    const client = bench.dial(PORTS.http, host);
    client.send(bytes(request));
    bench.run(5);
    if (bench.reached.length === length) return;
    bench.workload.send(bytes('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok'));
    bench.run(5);
  };
  ask('10.9.0.1', GET.replace('GET', 'PUT'));
  ask('10.8.0.1', GET);
  ask('10.9.0.1', DELETE);
  ask('10.8.0.1', GET.replace('GET', 'PUT'));
  assert.deepEqual(bench.accessLog().trim().split('\n'), [
    '200 shop/cart-0 inbound - - shop/nine',
    '200 shop/cart-0 inbound - - shop/get',
    '403 shop/cart-0 inbound - - shop/no-delete',
    '403 shop/cart-0 inbound - - shop/nine, shop/get',
  ]);
  assert.deepEqual(
    bench.records().map(({ workload, side, peer, service, policy }) => [workload, side, peer, service, policy]),
    [
      ['shop/cart-0', 'inbound', '', '', 'shop/nine, shop/get'],
      ['shop/cart-0', 'inbound', '', '', 'shop/no-delete'],
    ],
  );
  assert.match(
    bench.explanations()[0]!,
    /^It came to workload shop\/cart-0; it came in plain text, as from nobody\.$/m,
  );
  // Bytes that are passed on unread: only a policy that asks nothing of requests can have let them in.
  bench.dial(PORTS.tcp).closed();
  bench.run(5);
  bench.workload.closed();
  bench.run(5);
  bench.use([fromNine]);
  bench.dial(PORTS.tcp).closed();
  bench.run(5);
  bench.workload.closed();
  bench.run(5);
  assert.deepEqual(bench.accessLog().trim().split('\n'), [
    '0 shop/cart-0 inbound - - shop/no-delete',
    '200 shop/cart-0 inbound - - shop/nine',
  ]);
  bench.use(null);
  ask('10.9.0.1', GET);
  assert.equal(bench.accessLog(), '200 shop/cart-0 inbound - - -\n');
});

test('a refused body is not waited for', () => {
  const bench = new Bench([{ name: 'shop/none' }]);
  const client = bench.dial(PORTS.http);
  const answer = bench.ask(client, 'POST /x HTTP/1.1\r\nHost: cart\r\nContent-Length: 1000\r\n\r\npart');
  assert.match(answer, /^HTTP\/1\.1 403 /);
  assert.match(answer, /connection: close/i);
});

test('streams of HTTP/2 are decided one by one, and RPCs hear of it in their own way', () => {
  const bench = new Bench([noDelete]);
  const client = bench.dial(PORTS.http);
  const encoder = new HeaderEncoder(new Random(1));
  const headers = (id: number, method: string, more: [string, string][] = []): Uint8Array =>
    encodeFrame(
      Type.HEADERS,
      Flags.END_HEADERS | Flags.END_STREAM,
      id,
      encoder.encode([[':method', method], [':scheme', 'http'], [':authority', 'cart'], [':path', '/x'], ...more]),
    );
  client.send(Buffer.concat([preface, encodeSettings([]), encodeFrame(Type.SETTINGS, Flags.ACK, 0, bytes(''))]));
  client.send(
    Buffer.concat([
      headers(1, 'DELETE'),
      headers(3, 'GET'),
      headers(5, 'DELETE', [['content-type', 'application/grpc']]),
    ]),
  );
  bench.run(5);
  bench.workload.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'));
  bench.run(5);
  const decoder = new HeaderDecoder();
  const answers = new Map<number, Map<string, string>>();
  new FrameReader().feed(Buffer.from(textOf(client), 'latin1'), (frame) => {
    if (frame.type === Type.HEADERS) answers.set(frame.streamId, new Map(decoder.decode(frame.payload)));
  });
  assert.equal(answers.get(1)?.get(':status'), '403');
  assert.equal(answers.get(3)?.get(':status'), '200');
  assert.equal(answers.get(5)?.get('grpc-status'), '7', 'PERMISSION_DENIED');
  assert.equal(bench.reached.length, 1);
});

test('a TCP connection that is refused is closed with a record, before the workload hears of it', () => {
  const bench = new Bench([fromNine]);
  const refused = bench.dial(PORTS.tcp, '10.8.0.1');
  bench.run(5);
  assert.ok(refused.ended, 'it is over');
  assert.equal(bench.reached.length, 0);
  assert.deepEqual(bench.details(), ['not_allowed_by_shop/nine']);
  assert.match(bench.explanations()[0]!, /Reason RBAC/);
  const client = bench.dial(PORTS.tcp, '10.9.0.1');
  client.send(bytes('hello'));
  bench.run(5);
  assert.equal(textOf(bench.workload), 'hello');
});

test('where the protocol is found out, nobody is connected to before it is known to be allowed', () => {
  const bench = new Bench([{ name: 'shop/get', rules: [{ to: [{ methods: ['GET'] }] }] }]);
  const silent = bench.dial(PORTS.auto);
  bench.run(20);
  assert.equal(bench.reached.length, 0, 'the client has said nothing yet');
  silent.send(bytes(GET));
  bench.run(5);
  assert.match(textOf(bench.workload), /^GET /);
  const other = bench.dial(PORTS.auto);
  assert.match(bench.ask(other, DELETE), /^HTTP\/1\.1 403 /);
  const binary = bench.dial(PORTS.auto);
  binary.send(Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16));
  bench.run(5);
  assert.ok(binary.ended, 'what is not HTTP is over');
  assert.equal(bench.reached.length, 1);
});

test('new policies hold for connections that are there already', () => {
  const bench = new Bench(null);
  const http = bench.dial(PORTS.http);
  http.send(bytes(GET));
  bench.run(5);
  bench.workload.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'));
  bench.run(5);
  assert.match(textOf(http), /^HTTP\/1\.1 200 /);
  const kept = bench.dial(PORTS.tcp, '10.9.0.1');
  const ended = bench.dial(PORTS.tcp, '10.8.0.1');
  const silent = bench.dial(PORTS.auto, '10.8.0.1');
  bench.run(5);
  assert.equal(bench.reached.length, 4);
  const [, keptAt, endedAt, silentAt] = bench.reached;
  const rules = [{ to: [{ methods: ['DELETE'], ports: [PORTS.http] }] }];
  bench.use([fromNine, { ...noDelete, rules }]);
  bench.run(5);
  assert.match(bench.ask(http, DELETE), /^HTTP\/1\.1 403 /);
  assert.ok(ended.ended, 'a connection that may not be there any more is over');
  assert.ok(endedAt!.ended);
  assert.ok(silentAt!.ended, 'nor may this, unless it turns out to be HTTP');
  assert.equal(silent.ended, false);
  kept.send(bytes('still here'));
  bench.run(5);
  assert.equal(textOf(keptAt!), 'still here');
  assert.match(bench.ask(silent, GET), /^HTTP\/1\.1 403 /);
  assert.equal(bench.reached.length, 4);
  bench.use(null);
  silent.send(bytes(GET));
  bench.run(5);
  assert.match(textOf(bench.workload), /^GET /, 'and policies that are gone hold for nobody');
  assert.deepEqual(bench.details().slice(0, 1), ['not_allowed_by_shop/nine']);
});

test('a policy on trial lets pass, counts, and is logged once a second', () => {
  const bench = new Bench([{ ...noDelete, name: 'shop/trial', dryRun: true }]);
  const client = bench.dial(PORTS.http);
  const once = (): void => {
    client.send(bytes(DELETE));
    bench.run(5);
    assert.match(textOf(bench.workload), /^DELETE /);
    bench.workload.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'));
    bench.run(5);
    assert.match(textOf(client), /^HTTP\/1\.1 200 /);
  };
  for (let i = 0; i < 3; i++) once();
  assert.equal(bench.count(MetricSection.POLICY_TRIALS, 'shop/trial'), 3);
  assert.equal(bench.count(MetricSection.POLICY_DENIALS, 'shop/trial'), 0);
  const lines = (): string[] => bench.logLines().filter((line) => line.startsWith('dry run'));
  const line =
    'dry run: DELETE /x of 10.9.0.1 to shop/cart-0 at 10.1.0.5:8080 would be refused: denied_by_shop/trial rule 1';
  assert.deepEqual(lines(), [line]);
  bench.run(1000);
  once();
  assert.deepEqual(lines(), [line, `${line}; 2 more since the last such line`]);
});

test('the access log names the policy, however long its name', () => {
  const name = `${'n'.repeat(300)}/${'p'.repeat(300)}`;
  const bench = new Bench([{ ...noDelete, name }]);
  const client = bench.dial(PORTS.http);
  // More than the ring of the log holds: lines at its end are whole, too.
  for (let i = 0; i < 200; i++) {
    bench.ask(client, DELETE);
    assert.equal(bench.accessLog(), `denied_by_${name} rule 1\n`, `line ${i}`);
  }
});

test('who a connection comes from is its verified identity, and what is inside a tunnel has no known SNI', () => {
  const workload = new WorkloadRuntime(configOf(null).mesh!.workloads[0]!);
  const connection = clientFrom('10.9.0.1');
  connection.destination = `${HOST}:8080`;
  const names = { dns: [], uri: ['spiffe://c/ns/shop/sa/web'], ip: [], email: [] };
  const times = { notBeforeMs: 0, notAfterMs: 0 };
  const texts = { pem: '', subject: '', issuer: '', serial: '', sha256: '', spiffeId: 'spiffe://c/ns/shop/sa/web' };
  const certificate = { der: new Uint8Array(0), ...times, ...texts, names, verified: true };
  const sourceOf = () => accessOf(connection, workload, 0).facts.source;
  assert.equal(sourceOf().identity, '');
  assert.equal(sourceOf().serverName, null);
  connection.clientCertificate = new ClientCertificate(certificate);
  assert.equal(sourceOf().identity, 'spiffe://c/ns/shop/sa/web');
  connection.clientCertificate = new ClientCertificate({ ...certificate, verified: false });
  assert.equal(sourceOf().identity, '', 'nobody has verified it');
  assert.equal(sourceOf().port, 8080);
  connection.tlsVersion = new TextEncoder().encode('TLSv1.3');
  assert.equal(sourceOf().serverName, '');
  connection.serverName = 'a.example';
  assert.equal(sourceOf().serverName, 'a.example');
  connection.http2Stream = {} as NonNullable<typeof connection.http2Stream>;
  assert.equal(sourceOf().serverName, null);
  connection.destination = '[fd00::1]:81';
  assert.equal(sourceOf().port, 81);
  assert.ok(sourceOf().destination !== null);
});
