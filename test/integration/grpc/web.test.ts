// gRPC-Web through real packet workers to a real gRPC server, over HTTP/1.1 and HTTP/2, binary and text.
//
// The workers are started here and not by the launcher: the rule's filter is set on the checked
// configuration, wherever a file would say it.

import assert from 'node:assert/strict';
import { request } from 'node:http';
import { connect } from 'node:http2';
import { after, type TestContext, test } from 'node:test';
import {
  status as Code,
  Metadata,
  type ServerReadableStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from '@grpc/grpc-js';
import { compileSnapshot } from '../../../config/compile.ts';
import { loadConfig } from '../../../config/load.ts';
import { createByteRing } from '../../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../../core/telemetry/flight-layout.ts';
import { createMetricsBuffer } from '../../../core/telemetry/metrics.ts';
import { ListeningSockets } from '../../../core/workers/listening-sockets.ts';
import { Supervisor } from '../../../core/workers/supervisor.ts';
import { type Handlers, limited, service, settled, startEndlessServer, startServer } from './support.ts';

type Unary = ServerUnaryCall<Buffer, Buffer>;
type Collect = ServerReadableStream<Buffer, Buffer>;
type Expand = ServerWritableStream<Buffer, Buffer>;
type Reply = sendUnaryData<Buffer>;

/** Starts one packet worker whose only rule translates gRPC-Web, and returns its port. */
async function startWorker(t: TestContext, serverPort: number, rule = ''): Promise<number> {
  const loaded = loadConfig(
    `
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{filters: [{type: GrpcWeb}], backendRefs: [{name: echo}]${rule}}]}]
backends: [{name: echo, protocol: h2c, endpoints: ["127.0.0.1:${serverPort}"]}]
`,
    'test.yaml',
    {},
  );
  if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
  const { config } = loaded;
  const sockets = new ListeningSockets(1);
  const plan = sockets.plan([{ name: 'http', host: '127.0.0.1', port: 0 }]);
  if ('failure' in plan) throw new Error(`no port (error ${plan.failure.errno})`);
  const supervisor = new Supervisor({
    workerCount: 1,
    workerFile: new URL('../../../core/workers/worker.ts', import.meta.url),
    bufferBytes: 8 * 1024 * 1024,
    connectionsMax: 64,
    ioUring: false,
    shared: () => ({
      metrics: createMetricsBuffer(),
      accessLog: createByteRing(65_536),
      flightRecords: createFlightBuffer(),
    }),
    sockets,
    log: (level, message) => t.diagnostic(`${level} ${message}`),
  });
  t.after(() => supervisor.stop());
  const report = await supervisor.apply(compileSnapshot(config, 1, new Map()), plan);
  assert.equal(report.late, 0);
  return plan.listeners[0]!.port;
}

/** Whatever starts for the whole file ends with it. */
const wholeFile = { after, diagnostic: () => {} } as Pick<TestContext, 'after' | 'diagnostic'> as TestContext;

/** What the server that most tests share does at the moment. */
let handlers: Handlers = {};
const shared = await startServer(
  wholeFile,
  Object.fromEntries(
    Object.keys(service).map((method) => [
      method,
      (call: unknown, reply: unknown) => {
        const handler = handlers[method] as ((call: unknown, reply: unknown) => void) | undefined;
        assert.ok(handler !== undefined, `the test has no method ${method}`);
        handler(call, reply);
      },
    ]),
  ),
);
const sharedPort = await startWorker(wholeFile, shared.port);

/** Port of the shared worker, behind which there are these methods. */
function setUp(methods: Handlers): number {
  handlers = methods;
  return sharedPort;
}

// -- a client of gRPC-Web -------------------------------------------------------------------

/** How an RPC goes over the wire. */
interface Form {
  http: 1 | 2;
  text: boolean;
}

const forms: Form[] = [
  { http: 1, text: false },
  { http: 1, text: true },
  { http: 2, text: false },
  { http: 2, text: true },
];

/** The response of an RPC. */
interface WebReply {
  httpStatus: number;
  fields: Record<string, unknown>;
  /** Body without base64. */
  body: Buffer;
  messages: Buffer[];
  /** Trailers in the body; undefined if there are none. */
  trailers: Map<string, string> | undefined;
  /** The body has ended as it should. */
  complete: boolean;
}

interface Exchange {
  write(piece: Buffer): void;
  end(): void;
  /** Waits until the body, without base64, has so many bytes. */
  received(length: number): Promise<void>;
  reply: Promise<WebReply>;
}

function frame(payload: Buffer, flags = 0): Buffer {
  const header = Buffer.alloc(5);
  header[0] = flags;
  header.writeUInt32BE(payload.length, 1);
  return Buffer.concat([header, payload]);
}

/** Base64 that may be padded in the middle, up to its last whole group. */
function fromBase64(text: string): Buffer {
  const groups = text.slice(0, text.length - (text.length % 4)).match(/.{4}/gs) ?? [];
  return Buffer.concat(groups.map((group) => Buffer.from(group, 'base64')));
}

function parsed(httpStatus: number, fields: Record<string, unknown>, body: Buffer, complete: boolean): WebReply {
  const reply: WebReply = { httpStatus, fields, body, messages: [], trailers: undefined, complete };
  for (let at = 0; at + 5 <= body.length; ) {
    const end = at + 5 + body.readUInt32BE(at + 1);
    const payload = body.subarray(at + 5, end);
    if ((body[at]! & 0x80) !== 0) {
      assert.equal(end, body.length, 'the trailers come last');
      const lines = payload.toString('latin1').split('\r\n').slice(0, -1);
      reply.trailers = new Map(
        lines.map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)]),
      );
    } else if (end <= body.length) {
      reply.messages.push(payload);
    }
    at = end;
  }
  return reply;
}

/** Begins an RPC. */
function begin(t: TestContext, port: number, form: Form, path: string, extra: Record<string, string> = {}): Exchange {
  const type = form.text ? 'application/grpc-web-text' : 'application/grpc-web+proto';
  const headers = { 'content-type': type, accept: type, 'x-grpc-web': '1', ...extra };
  const chunks: Buffer[] = [];
  const waiters = new Set<() => void>();
  const content = (): Buffer => {
    const bytes = Buffer.concat(chunks);
    return form.text ? fromBase64(bytes.toString('latin1')) : bytes;
  };
  const take = (chunk: Buffer): void => {
    chunks.push(chunk);
    for (const waiter of waiters) waiter();
  };
  const received = (length: number): Promise<void> =>
    limited(
      new Promise((resolve) => {
        const check = (): void => {
          if (content().length < length) return;
          waiters.delete(check);
          resolve();
        };
        waiters.add(check);
        check();
      }),
    );
  const encode = (piece: Buffer): Buffer => (form.text ? Buffer.from(piece.toString('base64')) : piece);
  const { promise: reply, resolve } = settled<WebReply>();
  if (form.http === 1) {
    const outgoing = request({ host: '127.0.0.1', port, path, method: 'POST', headers, agent: false });
    outgoing.on('error', () => {});
    outgoing.on('response', (incoming) => {
      incoming.on('data', take);
      incoming.on('error', () => {});
      incoming.on('close', () => {
        outgoing.destroy();
        resolve(parsed(incoming.statusCode!, incoming.headers, content(), incoming.complete));
      });
    });
    outgoing.flushHeaders();
    t.after(() => outgoing.destroy());
    return { write: (piece) => outgoing.write(encode(piece)), end: () => outgoing.end(), received, reply };
  }
  const session = connect(`http://127.0.0.1:${port}`);
  session.on('error', () => {});
  t.after(() => session.destroy());
  const stream = session.request({ ':method': 'POST', ':path': path, ...headers });
  let fields: Record<string, unknown> = {};
  stream.on('response', (head) => {
    fields = head;
  });
  stream.on('data', take);
  stream.on('error', () => {});
  stream.on('close', () => {
    session.destroy();
    resolve(parsed(Number(fields[':status']), fields, content(), stream.rstCode === 0));
  });
  return { write: (piece) => stream.write(encode(piece)), end: () => stream.end(), received, reply };
}

/** One message there; the reply. */
function call(
  t: TestContext,
  port: number,
  form: Form,
  path: string,
  message: Buffer,
  extra: Record<string, string> = {},
): Promise<WebReply> {
  const exchange = begin(t, port, form, path, extra);
  exchange.write(frame(message));
  exchange.end();
  return exchange.reply;
}

const name = ({ http, text }: Form): string => `HTTP/${http}${text ? ', text' : ''}`;

// -- tests ----------------------------------------------------------------------------------

test('unary: message and trailers come in the body, in the form that the client asked for', async (t) => {
  const seen: Metadata[] = [];
  const port = setUp({
    unary: (call: Unary, reply: Reply) => {
      seen.push(call.metadata);
      const trailers = new Metadata();
      trailers.set('x-tail', 'text');
      trailers.set('x-tail-bin', Buffer.from([0, 255]));
      reply(null, call.request, trailers);
    },
  });
  for (const form of forms) {
    for (const length of [0, 1, 2, 3, 1000, 200_000]) {
      const message = Buffer.alloc(length, 0x5a);
      const reply = await call(t, port, form, service.unary.path, message, { 'x-ask': 'yes' });
      const about = `${name(form)}, ${length} bytes`;
      assert.deepEqual([reply.httpStatus, reply.complete], [200, true], about);
      assert.equal(
        reply.fields['content-type'],
        form.text ? 'application/grpc-web-text+proto' : 'application/grpc-web+proto',
      );
      assert.equal(reply.messages.length, 1, about);
      assert.ok(reply.messages[0]!.equals(message), about);
      assert.equal(reply.trailers?.get('grpc-status'), '0', about);
      assert.equal(reply.trailers?.get('x-tail'), 'text');
      assert.equal(reply.trailers?.get('x-tail-bin'), 'AP8=');
      assert.deepEqual(seen.at(-1)?.get('x-ask'), ['yes']);
    }
  }
});

test('a body with a length, in base64, is decoded too', async (t) => {
  const port = setUp({ unary: (call: Unary, reply: Reply) => reply(null, call.request) });
  const message = Buffer.from('twenty bytes or so..');
  const bytes = Buffer.byteLength(frame(message).toString('base64'));
  for (const http of [1, 2] as const) {
    const reply = await call(t, port, { http, text: true }, service.unary.path, message, {
      'content-length': String(bytes),
    });
    assert.deepEqual([reply.messages, reply.trailers?.get('grpc-status')], [[message], '0']);
  }
});

test('an error without a message comes in the head or in the body, and names its reason', async (t) => {
  const port = setUp({
    unary: (_call: Unary, reply: Reply) => reply({ code: Code.NOT_FOUND, details: 'nothing here' }),
  });
  for (const form of forms) {
    const { fields, trailers, messages } = await call(t, port, form, service.unary.path, Buffer.from('m'));
    assert.equal(messages.length, 0);
    assert.equal(trailers?.get('grpc-status') ?? fields['grpc-status'], '5', name(form));
    assert.equal(decodeURIComponent(String(trailers?.get('grpc-message') ?? fields['grpc-message'])), 'nothing here');
  }
});

test('server streaming: each message can be read when it is sent', async (t) => {
  let next = settled();
  const port = setUp({
    expand: async (call: Expand) => {
      for (const text of ['a', 'bb', 'ccc']) {
        call.write(Buffer.from(text));
        await next.promise;
        next = settled();
      }
      call.end();
    },
  });
  for (const form of forms) {
    const exchange = begin(t, port, form, service.expand.path);
    exchange.write(frame(Buffer.from('m')));
    exchange.end();
    let length = 0;
    for (const text of ['a', 'bb', 'ccc']) {
      length += frame(Buffer.from(text)).length;
      await exchange.received(length);
      next.resolve();
    }
    const reply = await exchange.reply;
    assert.deepEqual(reply.messages.map(String), ['a', 'bb', 'ccc'], name(form));
    assert.equal(reply.trailers?.get('grpc-status'), '0');
  }
});

test('many messages of a request, split anywhere, arrive whole', async (t) => {
  const port = setUp({
    collect: (call: Collect, reply: Reply) => {
      const parts: Buffer[] = [];
      call.on('data', (message: Buffer) => parts.push(message));
      call.on('end', () => reply(null, Buffer.concat(parts)));
    },
  });
  const payloads = Array.from({ length: 60 }, (_, index) => Buffer.alloc(index * 97, index));
  const stream = Buffer.concat(payloads.map((payload) => frame(payload)));
  for (const form of forms) {
    const exchange = begin(t, port, form, service.collect.path);
    // Each piece is base64 of its own, padded at its end.
    for (let at = 0, size = 1; at < stream.length; at += size, size = (size * 5 + 3) % 4001) {
      exchange.write(stream.subarray(at, at + size));
    }
    exchange.end();
    const reply = await exchange.reply;
    assert.equal(reply.trailers?.get('grpc-status'), '0', name(form));
    assert.ok(reply.messages[0]?.equals(Buffer.concat(payloads)), name(form));
  }
});

test('base64 that is none ends the RPC with a status that says so', async (t) => {
  const port = setUp({ unary: (call: Unary, reply: Reply) => reply(null, call.request) });
  for (const http of [1, 2] as const) {
    const exchange = begin(t, port, { http, text: false }, service.unary.path, {
      'content-type': 'application/grpc-web-text',
      accept: 'application/grpc-web-text',
    });
    exchange.write(Buffer.from('AAAAAA!!'));
    exchange.end();
    const { httpStatus, fields } = await exchange.reply;
    assert.deepEqual([httpStatus, fields['grpc-status']], [200, '13']);
    assert.match(String(fields['grpc-message']), /^DPE: .*base64/);
    assert.equal(fields['content-type'], 'application/grpc-web-text+proto');
  }
});

test('answers of the gateway itself are gRPC-Web', async (t) => {
  const { server, port: serverPort } = await startServer(t, {});
  const port = await startWorker(t, serverPort);
  server.forceShutdown();
  for (const form of forms) {
    const { httpStatus, fields } = await call(t, port, form, service.unary.path, Buffer.from('m'));
    assert.deepEqual([httpStatus, fields['grpc-status']], [200, '14'], name(form));
    assert.match(String(fields['content-type']), /^application\/grpc-web/);
  }
});

test('a time limit that ends a stream which has begun is told in its trailers', async (t) => {
  const serverPort = await startEndlessServer(t, () => {});
  const port = await startWorker(t, serverPort, ', timeouts: {request: 300ms}');
  for (const form of forms) {
    let reply = await call(t, port, form, service.expand.path, Buffer.from('m'));
    // On a busy machine the time may be over before the stream has begun; that is another case.
    for (let tries = 0; reply.messages.length === 0 && tries < 20; tries++) {
      reply = await call(t, port, form, service.expand.path, Buffer.from('m'));
    }
    assert.deepEqual(reply.messages.map(String), ['m']);
    assert.equal(reply.trailers?.get('grpc-status'), '4', name(form));
    assert.match(reply.trailers?.get('grpc-message') ?? '', /^UT: /);
    assert.equal(reply.complete, true);
  }
});

test('a client that goes away cancels the RPC at the server', async () => {
  const cancelled = settled();
  const port = setUp({
    expand: (call: Expand) => {
      call.write(call.request);
      call.on('cancelled', () => cancelled.resolve());
    },
  });
  const outgoing = request({
    host: '127.0.0.1',
    port,
    path: service.expand.path,
    method: 'POST',
    headers: { 'content-type': 'application/grpc-web' },
    agent: false,
  });
  outgoing.on('error', () => {});
  outgoing.on('response', (incoming) => {
    incoming.on('error', () => {});
    incoming.once('data', () => outgoing.destroy());
  });
  outgoing.end(frame(Buffer.from('m')));
  await cancelled.promise;
});

test('requests that are not gRPC-Web pass such a rule as they are', async (t) => {
  const port = setUp({ unary: (call: Unary, reply: Reply) => reply(null, call.request) });
  const session = connect(`http://127.0.0.1:${port}`);
  session.on('error', () => {});
  t.after(() => session.destroy());
  const stream = session.request({
    ':method': 'POST',
    ':path': service.unary.path,
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  const body: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => body.push(chunk));
  stream.end(frame(Buffer.from('m')));
  const trailers = await limited(
    new Promise<Record<string, unknown>>((resolve) => stream.on('trailers', (fields) => resolve(fields))),
  );
  assert.equal(trailers['grpc-status'], '0');
  assert.deepEqual(Buffer.concat(body), frame(Buffer.from('m')));
});
