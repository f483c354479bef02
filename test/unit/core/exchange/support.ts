// What the tests of head rewriting share: a reactor that is only memory, runtimes with chosen
// settings, and memory that shows every byte written where none should be.

import assert from 'node:assert/strict';
import { compileRouteTable } from '../../../../config/compile-routes.ts';
import { ListenerRuntime, Runtime } from '../../../../core/exchange/runtime.ts';
import { encodeSockaddr, Family } from '../../../../core/ffi/sockaddr.ts';
import type { HeaderTable } from '../../../../core/http1/header-table.ts';
import type { ParserLimits } from '../../../../core/http1/message.ts';
import { Connection } from '../../../../core/io/connection.ts';
import { Reactor } from '../../../../core/io/reactor.ts';
import type { Endpoint } from '../../../../core/lb/endpoint.ts';
import { createNodeState, NodeState } from '../../../../core/lb/node-state.ts';
import { TlsContexts } from '../../../../core/tls/contexts.ts';
import { noBackendPolicy, noEndpointPolicy } from '../../../../core/workers/policies.ts';
import type {
  BackendSettings,
  EndpointSettings,
  HttpSettings,
  ListenerSettings,
  Snapshot,
} from '../../../../core/workers/snapshot.ts';
import { FakeKernel } from '../io/fake-kernel.ts';

/** Byte that fills memory which a writer must leave alone. */
export const GUARD = 0xa5;

const guards = Buffer.alloc(128 * 1024, GUARD);

/** Limits that no test head reaches. */
export const wideLimits: ParserLimits = { headBytesMax: 65_536, headerCountMax: 256, uriBytesMax: 32_768 };

/** Settings that add nothing to a message. */
export const plainHttp: HttpSettings = {
  requestHeadBytesMax: 65_536,
  responseHeadBytesMax: 65_536,
  headerCountMax: 256,
  uriBytesMax: 32_768,
  requestBodyBytesMax: 0,
  requestsPerConnectionMax: 0,
  requestHeadTimeoutMs: 1000,
  idleTimeoutMs: 1000,
  streamIdleTimeoutMs: 1000,
  tunnelIdleTimeoutMs: 0,
  trustedHops: 0,
  forwardedHeaders: false,
  requestIdHeader: false,
  via: '',
  server: '',
  reasonHeader: '',
  upgradeProtocols: ['websocket'],
  http2: {
    concurrentStreamsMax: 128,
    streamWindowBytes: 262_144,
    connectionWindowBytes: 1_048_576,
    resetsPerSecondMax: 100,
    controlFramesPerSecondMax: 1000,
  },
};

/** A listener of HTTP/1.1 without TLS. */
export const plainListener: ListenerSettings = {
  name: 'l',
  address: '127.0.0.1:80',
  port: 80,
  allowConnect: false,
  scheme: 'http',
  http1: true,
  http2: false,
  tcp: false,
  tls: null,
  proxyProtocol: false,
  tunnels: null,
  redirectToHttps: null,
  mesh: null,
};

/** A backend without endpoints that speaks HTTP/1.1 without TLS. */
export const plainBackend: BackendSettings = {
  name: 'b',
  endpoints: [],
  slot: 0,
  policy: noBackendPolicy,
  connectTimeoutMs: 1,
  idleTimeoutMs: 1,
  idleConnectionsMax: 1,
  requestsPerConnectionMax: 0,
  protocol: 'http/1.1',
  tls: null,
  proxyProtocol: 0,
  tunnel: null,
  originalDestination: null,
  sameProtocol: false,
  http2: { streamsPerConnectionMax: 100, connectionsMax: 4, pingIntervalMs: 0, pingTimeoutMs: 1000 },
};

/** A snapshot without routes. */
export function snapshotOf(http: Partial<HttpSettings>, backends: BackendSettings[] = [], epoch = 1): Snapshot {
  return {
    epoch,
    routes: compileRouteTable({ listeners: ['l'], backends: backends.map(({ name }) => name), routes: [] }),
    rulePolicies: [],
    rateLimits: { tables: [], redis: null },
    latencySamples: null,
    refPolicies: [],
    nodeState: createNodeState(1, 64, 16),
    http: { ...plainHttp, ...http },
    listeners: [],
    tls: { contexts: [], ticketKeys: [] },
    streamRoutes: [],
    backends,
    accessLog: { enabled: false, format: 'json' },
    flightRecords: { slowThresholdMs: 1000 },
    recorder: null,
    mesh: null,
  };
}

/** A runtime without routes. */
export function runtimeOf(http: Partial<HttpSettings> = {}): Runtime {
  return openRuntime(snapshotOf(http));
}

/** A snapshot as a worker would use it. */
export function openRuntime(
  snapshot: Snapshot,
  endpoints: Map<string, Endpoint> = new Map(),
  seed: () => number = () => 0,
): Runtime {
  return new Runtime(snapshot, new NodeState(snapshot.nodeState, 0), endpoints, new TlsContexts(() => {}), {
    random: { next: () => Math.floor(seed() * 2 ** 32) | 0 },
    clock: { nowMs: 0 },
    log: () => {},
  });
}

/** Settings of an endpoint by its address (IPv4). */
export function endpointSettings(address: string, weight = 1): EndpointSettings {
  const colon = address.lastIndexOf(':');
  const port = Number(address.slice(colon + 1));
  return { address, host: address.slice(0, colon), port, weight, slot: 0, policy: noEndpointPolicy, identity: null };
}

/** A reactor over memory in which nothing happens. */
export function memoryReactor(): Reactor {
  const reactor = new Reactor(new FakeKernel(), 4, new Int32Array(6));
  reactor.runBatch(0);
  return reactor;
}

/** A client's connection from `host`, accepted by a listener of the given scheme. */
export function clientFrom(host: string, scheme: 'http' | 'https' = 'http'): Connection {
  const connection = new Connection(0);
  const sockaddr = encodeSockaddr(host, 0)!;
  const view = new DataView(sockaddr.buffer);
  const v4 = sockaddr.length === 16;
  connection.peerFamily = v4 ? Family.INET : Family.INET6;
  connection.peer0 = view.getInt32(v4 ? 4 : 8);
  if (!v4) {
    connection.peer1 = view.getInt32(12);
    connection.peer2 = view.getInt32(16);
    connection.peer3 = view.getInt32(20);
  }
  connection.listener = new ListenerRuntime({ ...plainListener, scheme }, 0, 9);
  return connection;
}

/** Bytes as latin1, one character each. */
export function textOf(memory: Uint8Array, offset: number, length: number): string {
  return Buffer.from(memory.subarray(offset, offset + length)).toString('latin1');
}

/** "name: value" of every field, in order. */
export function fieldsOf(memory: Uint8Array, headers: HeaderTable): string[] {
  return Array.from({ length: headers.count }, (_, field) => {
    const name = textOf(memory, headers.nameOffset(field), headers.nameLength(field));
    return `${name}: ${textOf(memory, headers.valueOffset(field), headers.valueLength(field))}`;
  });
}

/** Fails if any byte of [start, end) is not GUARD. */
export function assertUntouched(memory: Uint8Array, start: number, end: number, what: string): void {
  const range = memory.subarray(start, end);
  if (Buffer.compare(range, guards.subarray(0, range.length)) === 0) return;
  const at = range.findIndex((byte) => byte !== GUARD);
  assert.ok(at < 0, `${what}: byte ${at} of ${end - start} was written`);
}
