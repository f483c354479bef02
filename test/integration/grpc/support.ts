// Real gRPC clients and servers (grpc-js) around one gateway. Messages are bytes: what is inside
// them is nobody's business between a client and its server.

import assert from 'node:assert/strict';
import { createServer as createHttp2Server, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import {
  Client,
  type ClientDuplexStream,
  type ClientOptions,
  type ClientReadableStream,
  type ClientWritableStream,
  status as Code,
  credentials,
  Metadata,
  type MethodDefinition,
  Server,
  ServerCredentials,
  type ServerOptions,
  type ServiceDefinition,
  type ServiceError,
  type StatusObject,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { type Gateway, startGateway } from '../support.ts';

/** A safety net only: no test waits this long for anything that works. */
const WAIT_LIMIT_MS = 60_000;

const identity = (bytes: Buffer): Buffer => bytes;

function method(path: string, requestStream: boolean, responseStream: boolean): MethodDefinition<Buffer, Buffer> {
  return {
    path,
    requestStream,
    responseStream,
    requestSerialize: identity,
    requestDeserialize: identity,
    responseSerialize: identity,
    responseDeserialize: identity,
  };
}

/** One method of each kind. */
export const service = {
  unary: method('/test.Echo/Unary', false, false),
  collect: method('/test.Echo/Collect', true, false),
  expand: method('/test.Echo/Expand', false, true),
  chat: method('/test.Echo/Chat', true, true),
} satisfies ServiceDefinition;

/** What a test's server does; methods that are left out are unimplemented there. */
export type Handlers = UntypedServiceImplementation;

/** A running server. */
export interface TestServer {
  server: Server;
  port: number;
}

/** Starts a server on a free port, or on the port of one that was ended before. */
export async function startServer(
  t: TestContext,
  handlers: Handlers,
  options: ServerOptions = {},
  port = 0,
): Promise<TestServer> {
  const server = new Server({ 'grpc.max_receive_message_length': -1, ...options });
  server.addService(service, handlers);
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(`127.0.0.1:${port}`, ServerCredentials.createInsecure(), (error, free) => {
      if (error === null) resolve(free);
      else reject(error);
    });
  });
  t.after(() => server.forceShutdown());
  return { server, port: bound };
}

/**
 * Starts a server that answers every RPC with one message and never ends it, and does not watch
 * deadlines, as servers of gRPC libraries do. Returns its port; `cancelled` is called for each stream
 * that is reset.
 */
export async function startEndlessServer(t: TestContext, cancelled: () => void): Promise<number> {
  const server = createHttp2Server();
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('error', () => {});
  });
  server.on('stream', (stream: ServerHttp2Stream) => {
    stream.on('error', () => {});
    stream.on('aborted', cancelled);
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
    stream.write(Buffer.from([0, 0, 0, 0, 1, 109]));
    stream.resume();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    for (const session of sessions) session.destroy();
  });
  return (server.address() as AddressInfo).port;
}

/** Settings of a test's gateway, in YAML flow style, each ending without a comma. */
export interface GatewayOptions {
  rule?: string;
  top?: string;
  backend?: string;
}

/** Starts a gateway whose paths below /test.Echo lead to servers on these ports; there is no other route. */
export async function grpcGateway(
  t: TestContext,
  ports: number[],
  { rule, top = '', backend }: GatewayOptions = {},
): Promise<{ gateway: Gateway; port: number }> {
  const more = (text: string | undefined): string => (text === undefined ? '' : `, ${text}`);
  const endpoints = ports.map((port) => `"127.0.0.1:${port}"`).join(', ');
  const gateway = startGateway(
    t,
    `
workers: 1
admin: {address: "127.0.0.1:0"}
responseReasonHeader: x-reason
${top}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: echo
    rules:
      - {matches: [{path: {type: PathPrefix, value: /test.Echo}}], backendRefs: [{name: echo}]${more(rule)}}
backends: [{name: echo, protocol: h2c, endpoints: [${endpoints}]${more(backend)}}]
`,
  );
  await gateway.serving();
  return { gateway, port: await gateway.port() };
}

/** What an RPC with one response came to. */
export interface Reply {
  message: Buffer | undefined;
  status: StatusObject;
  headers: Metadata;
}

/** How an RPC is made. */
export interface CallOptions {
  metadata?: Record<string, string | Buffer>;
  deadlineMs?: number;
}

/** A gRPC client of the gateway. */
export class EchoClient {
  readonly client: Client;
  /** Port of the gateway. */
  readonly port: number;

  constructor(t: TestContext, port: number, options: ClientOptions = {}) {
    this.port = port;
    this.client = new Client(`127.0.0.1:${port}`, credentials.createInsecure(), {
      // What a server says must be seen as it is, and not only after it has been tried again.
      'grpc.enable_retries': 0,
      'grpc.max_receive_message_length': -1,
      'grpc.use_local_subchannel_pool': 1,
      ...options,
    });
    t.after(() => this.client.close());
  }

  /** One message there, one back; never rejects. */
  unary(message: Buffer, options: CallOptions = {}, path = service.unary.path): Promise<Reply> {
    return limited(
      new Promise((resolve) => {
        const reply: Reply = { message: undefined, status: noStatus, headers: new Metadata() };
        const call = this.client.makeUnaryRequest(
          path,
          identity,
          identity,
          message,
          metadataOf(options),
          deadlineOf(options),
          (_error: ServiceError | null, response?: Buffer) => {
            reply.message = response;
          },
        );
        call.on('metadata', (headers) => (reply.headers = headers));
        call.on('status', (status) => {
          reply.status = status;
          // The callback, which brings the message, may come after this event.
          setImmediate(() => resolve(reply));
        });
      }),
    );
  }

  collect(options: CallOptions = {}): { call: ClientWritableStream<Buffer>; reply: Promise<Reply> } {
    const reply: Reply = { message: undefined, status: noStatus, headers: new Metadata() };
    const call = this.client.makeClientStreamRequest(
      service.collect.path,
      identity,
      identity,
      metadataOf(options),
      deadlineOf(options),
      (_error: ServiceError | null, response?: Buffer) => {
        reply.message = response;
      },
    );
    call.on('metadata', (headers) => (reply.headers = headers));
    call.on('error', () => {});
    return {
      call,
      reply: limited(
        new Promise((resolve) =>
          call.on('status', (status) => {
            reply.status = status;
            setImmediate(() => resolve(reply));
          }),
        ),
      ),
    };
  }

  expand(message: Buffer, options: CallOptions = {}): ClientReadableStream<Buffer> {
    const { path } = service.expand;
    const call = this.client.makeServerStreamRequest(
      path,
      identity,
      identity,
      message,
      metadataOf(options),
      deadlineOf(options),
    );
    call.on('error', () => {});
    return call;
  }

  chat(options: CallOptions = {}): ClientDuplexStream<Buffer, Buffer> {
    const { path } = service.chat;
    const call = this.client.makeBidiStreamRequest(path, identity, identity, metadataOf(options), deadlineOf(options));
    call.on('error', () => {});
    return call;
  }
}

const noStatus: StatusObject = { code: Code.UNKNOWN, details: 'no status', metadata: new Metadata() };

function metadataOf({ metadata = {} }: CallOptions): Metadata {
  const result = new Metadata();
  for (const [name, value] of Object.entries(metadata)) result.set(name, value);
  return result;
}

function deadlineOf({ deadlineMs }: CallOptions): { deadline?: number } {
  return deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
}

/** Status of a streaming RPC when it is over; messages must be consumed elsewhere. */
export function statusOf(call: ClientReadableStream<Buffer>): Promise<StatusObject> {
  return limited(new Promise((resolve) => call.on('status', resolve)));
}

/** The next `count` messages of a streaming RPC. Rejects if it ends before. */
export function messages(call: ClientReadableStream<Buffer>, count: number): Promise<Buffer[]> {
  return limited(
    new Promise((resolve, reject) => {
      const received: Buffer[] = [];
      const onData = (message: Buffer): void => {
        received.push(message);
        if (received.length < count) return;
        call.off('data', onData);
        call.pause();
        resolve(received);
      };
      call.on('data', onData);
      call.resume();
      call.once('end', () => reject(new Error(`ended after ${received.length} of ${count} messages`)));
    }),
  );
}

/** All messages of a streaming RPC, and its status. */
export async function drained(
  call: ClientReadableStream<Buffer>,
): Promise<{ received: Buffer[]; status: StatusObject }> {
  const received: Buffer[] = [];
  call.on('data', (message: Buffer) => received.push(message));
  call.resume();
  return { received, status: await statusOf(call) };
}

/** A promise and what settles it. */
export function settled<T = void>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((done) => {
    resolve = done;
  });
  const inTime = limited(promise);
  // Whoever waits for it sees the failure; if nobody does, nothing has failed.
  inTime.catch(() => {});
  return { promise: inTime, resolve };
}

/** Rejects when something that must happen does not. */
export function limited<T>(promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('nothing happened in time')), WAIT_LIMIT_MS);
    timer.unref();
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** Asserts the status of an RPC and the reason flag that its message begins with. */
export function assertGenerated(status: StatusObject, code: number, flag: string): void {
  assert.deepEqual([status.code, status.details.slice(0, flag.length + 2)], [code, `${flag}: `], status.details);
}
