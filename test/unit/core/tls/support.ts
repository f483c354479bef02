// What the TLS tests share: real sockets on the loopback, our sessions on one side, and on the other
// ours, node:tls or the openssl command line. Everything is non-blocking and retried per turn of the
// event loop, so that peers of the same process make progress.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import tls from 'node:tls';
import koffi from 'koffi';
import { Errno } from '../../../../core/ffi/errno.ts';
import type { Kernel } from '../../../../core/ffi/kernel.ts';
import { createLinuxKernel } from '../../../../core/ffi/linux.ts';
import { localPort, openListeningSocket } from '../../../../core/ffi/listen.ts';
import { mapMemory } from '../../../../core/ffi/memory.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';
import {
  type ClientContextOptions,
  createClientContext,
  createServerContext,
  freeContext,
  type ServerContextOptions,
  type TlsContext,
} from '../../../../core/tls/context.ts';
import {
  HANDSHAKE_DONE,
  HANDSHAKE_WANT_READ,
  HANDSHAKE_WANT_WRITE,
  TlsSessions,
} from '../../../../core/tls/session.ts';
import { type Certificate, makeCertificate } from './certificates.ts';

/** How long anything may take before the test fails instead of hanging. */
const DEADLINE_MS = 20_000;

const MEMORY_BYTES = 4 * 1024 * 1024;
export const IN = 1024 * 1024;
export const OUT = 2 * 1024 * 1024;

export const kernelMemory = mapMemory(MEMORY_BYTES);
export const kernel: Kernel = createLinuxKernel(kernelMemory, null);
export const sessions = new TlsSessions(kernelMemory);

const openSslOfNode = koffi.load(null);
const SSL_get_current_cipher = openSslOfNode.func('uint64 SSL_get_current_cipher(uint64 ssl)');
const SSL_CIPHER_get_name = openSslOfNode.func('str SSL_CIPHER_get_name(uint64 cipher)');
const SSL_get0_group_name = openSslOfNode.func('str SSL_get0_group_name(uint64 ssl)');
const SSL_get_servername = openSslOfNode.func('str SSL_get_servername(uint64 ssl, int type)');

/** OpenSSL's name of the cipher that a handshake agreed on, such as `TLS_AES_128_GCM_SHA256`. */
export function sessionCipher(ssl: number): string {
  return SSL_CIPHER_get_name(SSL_get_current_cipher(ssl));
}

/** Name of its key exchange group, such as `X25519MLKEM768`. */
export function sessionGroup(ssl: number): string {
  return SSL_get0_group_name(ssl);
}

/** The server name (SNI) that the client sent, as it wrote it. */
export function sessionServerName(ssl: number): string {
  return SSL_get_servername(ssl, 0);
}

/** One turn of the event loop. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Retries once per turn until there is a result. */
export async function until<T>(what: string, attempt: () => T | undefined): Promise<T> {
  const end = performance.now() + DEADLINE_MS;
  for (;;) {
    const result = attempt();
    if (result !== undefined) return result;
    if (performance.now() > end) throw new Error(`${what}: no result in ${DEADLINE_MS} ms`);
    await turn();
  }
}

/** Waits for a promise, but not for ever. */
export async function inTime<T>(what: string, promise: Promise<T>): Promise<T> {
  let done = false;
  const mark = () => (done = true);
  promise.then(mark, mark);
  await until(what, () => (done ? true : undefined));
  return promise;
}

const authority = makeCertificate({ name: 'test authority', ca: true });
const server = makeCertificate({ name: 'server', issuer: authority, names: ['dns:a.example', 'ip:127.0.0.1'] });
const rsaServer = makeCertificate({ name: 'rsa', issuer: authority, keyType: 'rsa', names: ['dns:a.example'] });

/** An authority, and good server certificates of it for a.example. */
export const good = { authority, server, rsaServer };

/** A certificate as the contexts take it. */
export function pair(certificate: Certificate, ...issuers: Certificate[]): { chainPem: string; keyPem: string } {
  return { chainPem: [certificate, ...issuers].map(({ pem }) => pem).join(''), keyPem: certificate.keyPem };
}

/** Ticket key of 80 bytes that differ from those of another seed. */
export function ticketKey(seed: number): Uint8Array {
  return Uint8Array.from({ length: 80 }, (_, index) => (seed * 31 + index) & 255);
}

/** A server context for a.example that is freed with the test. */
export function serverContext(t: TestContext, options: Partial<ServerContextOptions> = {}): TlsContext {
  const context = createServerContext({ certificates: [pair(server)], alpn: [], ticketKeys: null, ...options });
  t.after(() => freeContext(context));
  return context;
}

/** A client context that trusts the test authority, freed with the test. */
export function clientContext(t: TestContext, options: Partial<ClientContextOptions> = {}): TlsContext {
  const context = createClientContext({ caPem: authority.pem, alpn: [], verify: true, ...options });
  t.after(() => freeContext(context));
  return context;
}

/** A listening socket of the kernel's own kind. */
export class Listener {
  readonly fd: number;
  readonly port: number;

  constructor(t: TestContext) {
    this.fd = openListeningSocket('127.0.0.1', 0);
    this.port = localPort(this.fd);
    t.after(() => kernel.close(this.fd));
  }

  /** The next connection; the caller closes it. */
  accept(): Promise<number> {
    return until('a connection', () => {
      const fd = kernel.accept(this.fd);
      return fd >= 0 ? fd : undefined;
    });
  }
}

/** Starts connecting; the caller closes the socket. */
export function connectTo(port: number): number {
  return kernel.connect(encodeSockaddr('127.0.0.1', port)!);
}

/** Runs a handshake to its end: HANDSHAKE_DONE or HANDSHAKE_FAILED. */
export function handshake(ssl: number): Promise<number> {
  return until('the handshake', () => step(ssl));
}

function step(ssl: number): number | undefined {
  const status = sessions.handshake(ssl);
  return status === HANDSHAKE_WANT_READ || status === HANDSHAKE_WANT_WRITE ? undefined : status;
}

/** What one end of a pair has come to. */
export interface End {
  fd: number;
  ssl: number;
  status: number;
  failure: number;
  alert: number;
  text: string;
}

function endOf(fd: number, ssl: number): End {
  return { fd, ssl, status: HANDSHAKE_WANT_READ, failure: 0, alert: -1, text: '' };
}

/** Connects two of our own sessions; both handshakes run until they are done or have failed. */
export async function connectPair(
  t: TestContext,
  serverSide: TlsContext,
  clientSide: TlsContext,
  { name = 'a.example', names = null as readonly string[] | null, resumption = 0 } = {},
): Promise<{ server: End; client: End; close: () => void }> {
  const listener = openListeningSocket('127.0.0.1', 0);
  const clientFd = connectTo(localPort(listener));
  const serverFd = await until('a connection', () => {
    const fd = kernel.accept(listener);
    return fd >= 0 ? fd : undefined;
  });
  kernel.close(listener);
  const server = endOf(serverFd, sessions.accept(serverSide, serverFd));
  const client = endOf(clientFd, sessions.connect(clientSide, clientFd, name, names, resumption));
  const ends = [client, server];
  await until('both handshakes', () => {
    for (const end of ends) {
      if (end.status !== HANDSHAKE_WANT_READ) continue;
      const status = step(end.ssl);
      if (status === undefined) continue;
      const { failure, alert, failureText } = sessions;
      Object.assign(end, { status }, status === HANDSHAKE_DONE ? {} : { failure, alert, text: failureText });
      if (status !== HANDSHAKE_DONE) kernel.shutdown(end.fd, 1);
    }
    return ends.every(({ status }) => status !== HANDSHAKE_WANT_READ) ? true : undefined;
  });
  let open = true;
  const close = () => {
    if (!open) return;
    open = false;
    for (const { fd, ssl } of ends) {
      sessions.free(ssl);
      kernel.close(fd);
    }
  };
  t.after(close);
  return { server, client, close };
}

/** Receives until `bytes` have come, or the session ends; `end` is the result that ended it. */
export async function receive(ssl: number, bytes = Infinity): Promise<{ data: Buffer; end: number }> {
  const parts: Buffer[] = [];
  let total = 0;
  while (total < bytes) {
    const count = await until('bytes', () => {
      const result = sessions.recv(ssl, IN, 65536);
      return result === -Errno.EAGAIN ? undefined : result;
    });
    if (count <= 0) return { data: Buffer.concat(parts), end: count };
    parts.push(Buffer.from(kernel.memory.subarray(IN, IN + count)));
    total += count;
  }
  return { data: Buffer.concat(parts), end: 1 };
}

/** Sends everything. */
export async function sendAll(ssl: number, data: Uint8Array | string): Promise<void> {
  const bytes = Buffer.from(data as Uint8Array);
  for (let at = 0; at < bytes.length; ) {
    const size = Math.min(bytes.length - at, 65536);
    kernel.memory.set(bytes.subarray(at, at + size), OUT);
    at += await until('room to send', () => {
      const count = sessions.send(ssl, OUT, size);
      if (count === -Errno.EAGAIN) return undefined;
      if (count < 0) throw new Error(`send: ${count} ${sessions.failureText}`);
      return count;
    });
  }
}

/** A node:tls client whose outcome is awaited: connected, or failed with an error code. */
export function nodeClient(
  t: TestContext,
  port: number,
  options: tls.ConnectionOptions = {},
): { socket: tls.TLSSocket; outcome: Promise<string> } {
  const socket = tls.connect({ host: '127.0.0.1', port, ca: authority.pem, servername: 'a.example', ...options });
  t.after(() => socket.destroy());
  const outcome = new Promise<string>((resolve) => {
    socket.once('secureConnect', () => resolve('connected'));
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
  });
  socket.on('error', () => {});
  return { socket, outcome };
}

/** A node:tls server on a free port. */
export async function nodeServer(
  t: TestContext,
  options: tls.TlsOptions,
  onConnection: (socket: tls.TLSSocket) => void = () => {},
): Promise<{ port: number; errors: string[] }> {
  const errors: string[] = [];
  const sockets = new Set<{ destroy: () => void }>();
  const listener = tls.createServer({ cert: server.pem, key: server.keyPem, ...options }, (socket) => {
    socket.on('error', () => {});
    onConnection(socket);
  });
  listener.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
  });
  listener.on('tlsClientError', (error: NodeJS.ErrnoException) => errors.push(error.code ?? error.message));
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    listener.close();
  });
  return { port: (listener.address() as { port: number }).port, errors };
}

/** A directory with files of these names, removed with the test. */
export function files(t: TestContext, contents: Record<string, string>): string {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-tls-'));
  t.after(() => rmSync(directory, { recursive: true }));
  for (const [name, text] of Object.entries(contents)) writeFileSync(join(directory, name), text);
  return directory;
}

/** A running openssl command; its output grows in `output`. Killed with the test. */
export interface OpenSslCommand {
  child: ChildProcess;
  output: () => string;
  closed: Promise<unknown>;
}

/** Starts an openssl command. */
export function openssl(t: TestContext, ...args: string[]): OpenSslCommand {
  const child = spawn('openssl', args, { stdio: ['pipe', 'pipe', 'pipe'] });
  let output = '';
  child.stdout!.on('data', (chunk) => (output += chunk));
  child.stderr!.on('data', (chunk) => (output += chunk));
  child.stdin!.on('error', () => {});
  const closed = once(child, 'close');
  t.after(async () => {
    child.kill();
    await closed;
  });
  return { child, output: () => output, closed };
}

/** Waits for a text in the output of an openssl command. */
export function outputOf(command: OpenSslCommand, pattern: RegExp): Promise<string> {
  return until(`output ${pattern}`, () => (pattern.test(command.output()) ? command.output() : undefined));
}
