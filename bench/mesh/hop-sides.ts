// What is compared: the same client, server and wires with no mesh, with two node proxies, and with two Envoys.
//
//   node one                                   node two
//   client namespace -- bridge -- node -- fabric -- node -- bridge -- server namespace
//
// Each side but one has a client and a server namespace of its own, all alike. A node proxy has its sockets inside those of
// its workloads, so both kinds of proxies are reached inside the client's namespace, cross the wires once, and deliver
// inside the server's. Two C forwarders that read no more than where a message ends show what two more processes cost here at the very least: client,
// forwarders and server are in one namespace, nothing crosses a wire, and nothing is encrypted.

import { mkdirSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { join } from 'node:path';
import type { TestMesh } from '../../test/support/mesh/mesh.ts';
import type { Lifetime } from '../../test/support/mesh/sockets.ts';
import type { TestNamespace } from '../../test/support/netns/network.ts';
import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import { buildCProgram, cProgramsDir } from '../lib/c-programs.ts';
import { LOAD_CORE, PROXY_CORE } from '../lib/context.ts';
import { GRPC_BODY_BYTES, GRPC_PATH, grpcMessage } from '../lib/grpc.ts';
import { BenchProcess, findExecutable, pause, temporaryDir } from '../lib/processes.ts';
import { startBenchMesh } from './bench-mesh.ts';
import { envoyPort, writeEnvoyFiles } from './envoy-pair.ts';
import { GRPC_PORT, HTTP_PORT, LARGE_BODY_BYTES, startHopBackend, TCP_PORT } from './hop-backend.ts';

/** What is sent over a hop. */
export type Kind = 'http' | 'grpc' | 'tcp';

/** Path and length of the answer of each kind. */
export const ANSWERS: Readonly<Record<Kind, { path: string; bytes: number }>> = {
  http: { path: '/', bytes: SMALL_BODY_BYTES },
  grpc: { path: GRPC_PATH, bytes: GRPC_BODY_BYTES },
  tcp: { path: `/b/${LARGE_BODY_BYTES}`, bytes: LARGE_BODY_BYTES },
};

/** One of those that are compared. */
export interface Side {
  name: string;
  kind: Kind;
  /** Where load comes from. */
  client: TestNamespace;
  /** Where it goes. */
  host: string;
  port: number;
  /** Process ids of both proxies; none without a mesh. */
  proxies: readonly number[];
  server: BenchProcess;
  /** Why it cannot be measured any more; empty: it can. */
  broken(): string;
}

/** Names of the sides in tables; Envoys differ by what is between them. */
export const NO_MESH = 'no mesh';
export const PORTCULLIS = 'Portcullis';
export const FORWARDERS = 'two C forwarders, loopback';
export const ENVOY_H2 = 'Envoy, HTTP/2 between';
export const ENVOY_H1 = 'Envoy, HTTP/1.1 between';
export const ENVOY_TLS = 'Envoy, TLS between';
export const ENVOY_CONNECT = 'Envoy, CONNECT between';

const ANSWER_WITHIN_MS = 10_000;

/** Starts all sides, and has each of them answer each kind as it should. Envoys only where Envoy is in PATH. */
export async function startSides(lifetime: Lifetime): Promise<Side[]> {
  const mesh = await startBenchMesh(
    lifetime,
    {
      nodes: {
        one: { 'client-0': {}, 'plain-client-0': { member: false }, 'envoy-client-0': { member: false } },
        two: {
          'server-0': {},
          'plain-server-0': { member: false },
          'limit-server-0': { member: false },
          'envoy-server-0': { member: false },
        },
      },
      services: {
        server: [
          { port: 80, targetPort: HTTP_PORT, protocol: 'http' },
          { port: 9000, targetPort: TCP_PORT, protocol: 'tcp' },
          { port: 50_051, targetPort: GRPC_PORT, protocol: 'grpc' },
        ],
      },
    },
    PROXY_CORE,
  );
  const sides = [...plainSides(mesh), ...(await forwarderSides(mesh)), ...meshSides(mesh), ...(await envoySides(mesh))];
  for (const side of sides) await checkSide(mesh, side);
  return sides;
}

function plainSides(mesh: TestMesh): Side[] {
  const at = mesh.at('plain-server-0');
  const server = startHopBackend(at, LOAD_CORE);
  const common = { name: NO_MESH, client: mesh.at('plain-client-0'), host: at.address, proxies: [], server };
  const broken = (): string => (server.exited ? `nginx ended: ${server.ending}` : '');
  return [
    { ...common, kind: 'http', port: HTTP_PORT, broken },
    { ...common, kind: 'grpc', port: GRPC_PORT, broken },
    { ...common, kind: 'tcp', port: TCP_PORT, broken },
  ];
}

/** HTTP only; none where the C program is not to be had. */
async function forwarderSides(mesh: TestMesh): Promise<Side[]> {
  if (cProgramsDir() === null) return [];
  const client = mesh.at('limit-server-0');
  const server = startHopBackend(client, LOAD_CORE);
  const command = await buildCProgram('limit');
  const forwarders = [1, 2].map((number) => {
    const args = [`${HTTP_PORT + 10 * number}`, `${number === 1 ? HTTP_PORT + 20 : HTTP_PORT}`];
    const label = `forwarder-${number}`;
    return new BenchProcess({ label, command, args, dir: temporaryDir(), core: PROXY_CORE, namespace: client.path });
  });
  const broken = (): string => {
    const dead = [...forwarders, server].find(({ exited }) => exited);
    return dead === undefined ? '' : `${dead.label} ended (${dead.ending}): ${dead.stderrTail()}`;
  };
  const proxies = forwarders.map(({ pid }) => pid);
  return [{ name: FORWARDERS, kind: 'http', client, host: '127.0.0.1', port: HTTP_PORT + 10, proxies, server, broken }];
}

function meshSides(mesh: TestMesh): Side[] {
  const server = startHopBackend(mesh.at('server-0'), LOAD_CORE);
  const running = [...mesh.nodes.values()].map(({ proxy }) => proxy!);
  const proxies = running.map(({ pid }) => pid);
  const common = { name: PORTCULLIS, client: mesh.at('client-0'), host: mesh.vip('server'), proxies, server };
  const broken = (): string => {
    const dead = running.find(({ child }) => child.exitCode !== null || child.signalCode !== null);
    if (dead !== undefined) return `a node proxy ended: ${dead.stderr.slice(-400)}`;
    return server.exited ? `nginx ended: ${server.ending}` : '';
  };
  return [
    { ...common, kind: 'http', port: 80, broken },
    { ...common, kind: 'grpc', port: 50_051, broken },
    { ...common, kind: 'tcp', port: 9000, broken },
  ];
}

async function envoySides(mesh: TestMesh): Promise<Side[]> {
  const envoy = findExecutable('envoy');
  if (envoy === null) return [];
  const directory = join(temporaryDir(), 'envoy');
  mkdirSync(directory);
  const [client, at] = [mesh.at('envoy-client-0'), mesh.at('envoy-server-0')];
  const server = startHopBackend(at, LOAD_CORE);
  const places = { client: client.address, server: at.address, http: HTTP_PORT, grpc: GRPC_PORT, tcp: TCP_PORT };
  const files = await writeEnvoyFiles(directory, places);
  const envoys = files.map(
    (file, index) =>
      new BenchProcess({
        label: `envoy-${index + 1}`,
        command: envoy,
        args: ['-c', file, '--concurrency', '1', '--disable-hot-restart', '--log-level', 'error'],
        dir: directory,
        core: PROXY_CORE,
        namespace: [client, at][index]!.path,
      }),
  );
  const broken = (): string => {
    const dead = [...envoys, server].find(({ exited }) => exited);
    return dead === undefined ? '' : `${dead.label} ended (${dead.ending}): ${dead.stderrTail()}`;
  };
  const common = { client, host: client.address, proxies: envoys.map(({ pid }) => pid), server, broken };
  return [
    { ...common, name: ENVOY_H2, kind: 'http', port: envoyPort('h2') },
    { ...common, name: ENVOY_H1, kind: 'http', port: envoyPort('h1') },
    { ...common, name: ENVOY_H2, kind: 'grpc', port: envoyPort('grpc') },
    { ...common, name: ENVOY_TLS, kind: 'tcp', port: envoyPort('tls') },
    { ...common, name: ENVOY_CONNECT, kind: 'tcp', port: envoyPort('connect') },
  ];
}

/** Waits until a side answers as it should; throws with the last wrong answer when it never does. */
async function checkSide(mesh: TestMesh, side: Side): Promise<void> {
  const endMs = performance.now() + ANSWER_WITHIN_MS;
  const { path, bytes } = ANSWERS[side.kind];
  for (;;) {
    let wrong = '';
    try {
      if (side.kind === 'grpc') wrong = await callOnce(mesh, side);
      else {
        const { status, body } = await mesh.clients.request(side.client, side.host, side.port, { path });
        if (status !== 200 || body.length !== bytes) wrong = `status ${status} with ${body.length} bytes`;
      }
    } catch (error) {
      wrong = error instanceof Error ? error.message : String(error);
    }
    if (wrong === '') return;
    const broken = side.broken();
    if (broken !== '' || performance.now() > endMs) {
      throw new Error(`${side.name} answers ${side.kind} wrongly: ${broken || wrong}`);
    }
    await pause(20);
  }
}

/** A unary call: what was wrong with the answer; empty: nothing. */
async function callOnce(mesh: TestMesh, { client, host, port }: Side): Promise<string> {
  const socket = await mesh.clients.connect(client, host, port);
  const session = connectHttp2(`http://${host}:${port}`, { createConnection: () => socket });
  try {
    return await new Promise<string>((resolve, reject) => {
      session.once('error', reject);
      session.once('close', () => reject(new Error('the connection was closed')));
      const headers = { ':method': 'POST', ':path': GRPC_PATH, 'content-type': 'application/grpc', te: 'trailers' };
      const stream = session.request(headers);
      let bytes = 0;
      let status: unknown = 'none';
      stream.once('error', reject);
      stream.on('data', (chunk: Buffer) => (bytes += chunk.length));
      stream.once('trailers', (trailers) => (status = trailers['grpc-status']));
      stream.once('end', () =>
        resolve(status === '0' && bytes === GRPC_BODY_BYTES ? '' : `gRPC status ${status} with ${bytes} bytes`),
      );
      stream.end(grpcMessage());
    });
  } finally {
    session.destroy();
  }
}
