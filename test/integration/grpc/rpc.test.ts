// RPCs of all four kinds through the gateway, between a client and a server that are not ours.

import assert from 'node:assert/strict';
import { after, type TestContext, test } from 'node:test';
import {
  status as Code,
  Metadata,
  type ServerDuplexStream,
  type ServerReadableStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from '@grpc/grpc-js';
import {
  assertGenerated,
  drained,
  EchoClient,
  grpcGateway,
  type Handlers,
  messages,
  service,
  settled,
  startEndlessServer,
  startServer,
  statusOf,
} from './support.ts';

type Unary = ServerUnaryCall<Buffer, Buffer>;
type Collect = ServerReadableStream<Buffer, Buffer>;
type Expand = ServerWritableStream<Buffer, Buffer>;
type Chat = ServerDuplexStream<Buffer, Buffer>;
type Reply = sendUnaryData<Buffer>;

/** Whatever starts for the whole file ends with it. */
const wholeFile = { after } as Pick<TestContext, 'after'> as TestContext;

/** What the server that most tests share does at the moment. */
let handlers: Handlers = {};
const shared = await startServer(
  wholeFile,
  Object.fromEntries(
    Object.keys(service).map((name) => [
      name,
      (call: unknown, reply: unknown) => {
        const handler = handlers[name] as ((call: unknown, reply: unknown) => void) | undefined;
        assert.ok(handler !== undefined, `the test has no method ${name}`);
        handler(call, reply);
      },
    ]),
  ),
);
const { port: sharedPort } = await grpcGateway(wholeFile, [shared.port]);

/** A client of the shared gateway, behind which there are these methods. */
function setUp(t: TestContext, methods: Handlers): EchoClient {
  handlers = methods;
  return new EchoClient(t, sharedPort);
}

test('unary: a message there, one back, and status OK', async (t) => {
  const client = setUp(t, {
    unary: (call: Unary, reply: Reply) => reply(null, Buffer.concat([Buffer.from('re: '), call.request])),
  });
  for (let i = 0; i < 50; i++) {
    const { message, status } = await client.unary(Buffer.from(`message ${i}`));
    assert.deepEqual([status.code, message?.toString()], [Code.OK, `re: message ${i}`]);
  }
});

test('empty messages are messages', async (t) => {
  const client = setUp(t, { unary: (call: Unary, reply: Reply) => reply(null, call.request) });
  const { message, status } = await client.unary(Buffer.alloc(0));
  assert.deepEqual([status.code, message?.length], [Code.OK, 0]);
});

test('many RPCs at once on one connection get their own answers', async (t) => {
  const client = setUp(t, {
    unary: (call: Unary, reply: Reply) => setImmediate(() => reply(null, call.request)),
  });
  const bodies = Array.from({ length: 300 }, (_, index) => Buffer.alloc(1 + index * 7, index));
  const replies = await Promise.all(bodies.map((body) => client.unary(body)));
  for (const [index, { message, status }] of replies.entries()) {
    assert.equal(status.code, Code.OK, status.details);
    assert.ok(message?.equals(bodies[index]!), `RPC ${index}`);
  }
});

test('client streaming: every message arrives before the one answer', async (t) => {
  const client = setUp(t, {
    collect: (call: Collect, reply: Reply) => {
      let bytes = 0;
      let count = 0;
      call.on('data', (message: Buffer) => {
        bytes += message.length;
        count++;
      });
      call.on('end', () => reply(null, Buffer.from(`${count} messages, ${bytes} bytes`)));
    },
  });
  const { call, reply } = client.collect();
  for (let i = 0; i < 500; i++) call.write(Buffer.alloc(i));
  call.end();
  const { message, status } = await reply;
  assert.deepEqual([status.code, message?.toString()], [Code.OK, '500 messages, 124750 bytes']);
});

test('server streaming: every message arrives, in order, before the status', async (t) => {
  const client = setUp(t, {
    expand: (call: Expand) => {
      for (let i = 0; i < 500; i++) call.write(Buffer.from(`${call.request} ${i}`));
      const trailers = new Metadata();
      trailers.set('x-count', '500');
      call.end(trailers);
    },
  });
  const { received, status } = await drained(client.expand(Buffer.from('item')));
  assert.equal(status.code, Code.OK, status.details);
  assert.deepEqual(status.metadata.get('x-count'), ['500']);
  assert.deepEqual(
    received.map(String),
    Array.from({ length: 500 }, (_, index) => `item ${index}`),
  );
});

test('bidirectional streaming: each side speaks when it likes', async (t) => {
  const client = setUp(t, {
    chat: (call: Chat) => {
      call.write(Buffer.from('welcome'));
      call.on('data', (message: Buffer) => call.write(Buffer.from(`re: ${message}`)));
      call.on('end', () => call.end());
    },
  });
  const call = client.chat();
  const over = statusOf(call);
  // The server speaks before it has been told anything, and each answer comes before the next question.
  assert.deepEqual((await messages(call, 1)).map(String), ['welcome']);
  for (const text of ['a', 'bb', 'ccc']) {
    call.write(Buffer.from(text));
    assert.deepEqual((await messages(call, 1)).map(String), [`re: ${text}`]);
  }
  call.end();
  call.resume();
  assert.equal((await over).code, Code.OK);
});

test('metadata passes in both directions: in heads and trailers, repeated, and binary', async (t) => {
  const binary = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
  const seen = settled<Metadata>();
  const client = setUp(t, {
    unary: (call: Unary, reply: Reply) => {
      seen.resolve(call.metadata);
      const headers = new Metadata();
      headers.set('x-head-bin', binary);
      headers.add('x-list', 'one');
      headers.add('x-list', 'two');
      call.sendMetadata(headers);
      const trailers = new Metadata();
      trailers.set('x-tail-bin', binary);
      trailers.set('x-tail', 'text');
      reply(null, call.request, trailers);
    },
  });
  const { status, headers } = await client.unary(Buffer.from('m'), {
    metadata: { 'x-ask-bin': binary, 'x-ask': 'value with spaces' },
  });
  assert.equal(status.code, Code.OK, status.details);
  const asked = await seen.promise;
  assert.deepEqual(asked.get('x-ask-bin'), [binary]);
  assert.deepEqual(asked.get('x-ask'), ['value with spaces']);
  assert.deepEqual(headers.get('x-head-bin'), [binary]);
  assert.equal(headers.get('x-list').join(', '), 'one, two');
  assert.deepEqual(status.metadata.get('x-tail-bin'), [binary]);
  assert.deepEqual(status.metadata.get('x-tail'), ['text']);
});

test('an error of the server passes with its message and details, before and after messages', async (t) => {
  const metadata = new Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from([8, 5, 255]));
  const error = { code: Code.NOT_FOUND, details: 'no such thing: "käse" 100%', metadata };
  const client = setUp(t, {
    unary: (_call: Unary, reply: Reply) => reply(error),
    expand: (call: Expand) => {
      call.write(call.request);
      call.emit('error', error);
    },
  });
  const first = (await client.unary(Buffer.from('m'))).status;
  const { received, status: second } = await drained(client.expand(Buffer.from('m')));
  assert.equal(received.length, 1);
  for (const { code, details, metadata: trailers } of [first, second]) {
    assert.deepEqual([code, details], [error.code, error.details]);
    assert.deepEqual(trailers.get('grpc-status-details-bin'), [Buffer.from([8, 5, 255])]);
  }
});

test('messages of many megabytes pass whole in both directions', async (t) => {
  const client = setUp(t, { unary: (call: Unary, reply: Reply) => reply(null, call.request) });
  const large = Buffer.alloc(24 * 1024 * 1024);
  for (let at = 0; at < large.length; at += 4096) large.writeUInt32LE(at, at);
  const { message, status } = await client.unary(large);
  assert.equal(status.code, Code.OK, status.details);
  assert.ok(message?.equals(large));
});

test('a client that does not read stops the server', async (t) => {
  let written = 0;
  const chunk = Buffer.alloc(64 * 1024);
  const total = 300;
  const client = setUp(t, {
    expand: (call: Expand) => {
      const more = (): void => {
        while (written < total) {
          written++;
          if (call.write(chunk)) continue;
          call.once('drain', more);
          return;
        }
        call.end();
      };
      more();
    },
    unary: (call: Unary, reply: Reply) => reply(null, call.request),
  });
  const call = client.expand(Buffer.from('m'));
  const first = await messages(call, 1);
  assert.equal(first[0]!.length, chunk.length);
  // Other clients go on meanwhile, on the same connection to the server.
  const other = new EchoClient(t, client.port);
  for (let i = 0; i < 200; i++) assert.equal((await other.unary(Buffer.from('m'))).status.code, Code.OK);
  // 19 MB are asked for; what fits into windows and buffers on the way is far less.
  assert.ok(written < total / 2, `${written} chunks were taken without a reader`);
  const { received, status } = await drained(call);
  assert.deepEqual([status.code, received.length], [Code.OK, total - 1]);
});

test('the deadline of the client reaches the server, reduced to what the rule allows', async (t) => {
  const { port: serverPort } = await startServer(t, {
    unary: (call: Unary, reply: Reply) => {
      const deadline = call.getDeadline();
      const leftMs = deadline === Number.POSITIVE_INFINITY ? -1 : Number(deadline) - Date.now();
      reply(null, Buffer.from(String(Math.round(leftMs))));
    },
  });
  const { port } = await grpcGateway(t, [serverPort], { rule: 'timeouts: {request: 20s}' });
  const client = new EchoClient(t, port);
  const left = async (deadlineMs?: number): Promise<number> => {
    const { message, status } = await client.unary(Buffer.from('m'), deadlineMs === undefined ? {} : { deadlineMs });
    assert.equal(status.code, Code.OK, status.details);
    return Number(message);
  };
  const own = await left(15_000);
  assert.ok(own > 0 && own <= 15_000, `${own} ms left of 15 s`);
  for (const limited of [await left(60_000), await left()]) {
    assert.ok(limited > 15_000 && limited <= 20_000, `${limited} ms left of 20 s`);
  }
});

test('an RPC whose deadline passes ends at the server too', async (t) => {
  const cancelled = settled();
  const client = setUp(t, {
    unary: (call: Unary) => call.on('cancelled', () => cancelled.resolve()),
  });
  const { status } = await client.unary(Buffer.from('m'), { deadlineMs: 300 });
  assert.equal(status.code, Code.DEADLINE_EXCEEDED);
  await cancelled.promise;
});

test('the time of the rule ends a stream that has begun, with a status and not with a broken stream', async (t) => {
  const cancelled = settled();
  const serverPort = await startEndlessServer(t, () => cancelled.resolve());
  const { port } = await grpcGateway(t, [serverPort], { rule: 'timeouts: {request: 400ms}' });
  const client = new EchoClient(t, port);
  let reply = await drained(client.expand(Buffer.from('m')));
  // On a busy machine the time may be over before the stream has begun; that is another case.
  for (let tries = 0; reply.received.length === 0 && tries < 20; tries++) {
    assertGenerated(reply.status, Code.DEADLINE_EXCEEDED, 'UT');
    reply = await drained(client.expand(Buffer.from('m')));
  }
  assert.deepEqual(reply.received.map(String), ['m']);
  assertGenerated(reply.status, Code.DEADLINE_EXCEEDED, 'UT');
  await cancelled.promise;
});

test('an RPC that the client cancels is cancelled at the server, whatever has passed', async (t) => {
  const started = settled();
  const cancelled = [settled(), settled()];
  const client = setUp(t, {
    collect: (call: Collect) => {
      call.on('data', () => started.resolve());
      call.on('cancelled', () => cancelled[0]!.resolve());
    },
    chat: (call: Chat) => {
      call.write(Buffer.from('welcome'));
      call.on('data', () => {});
      call.on('cancelled', () => cancelled[1]!.resolve());
    },
  });
  const { call, reply } = client.collect();
  call.write(Buffer.from('m'));
  await started.promise;
  call.cancel();
  assert.equal((await reply).status.code, Code.CANCELLED);
  await cancelled[0]!.promise;

  const chat = client.chat();
  const over = statusOf(chat);
  await messages(chat, 1);
  chat.cancel();
  chat.resume();
  assert.equal((await over).code, Code.CANCELLED);
  await cancelled[1]!.promise;
});

test('a server that has heard enough ends the RPC while the client still sends', async (t) => {
  const client = setUp(t, {
    collect: (call: Collect, reply: Reply) => {
      call.once('data', () => reply({ code: Code.FAILED_PRECONDITION, details: 'enough' }));
    },
    unary: (call: Unary, reply: Reply) => reply(null, call.request),
  });
  const { call, reply } = client.collect();
  const chunk = Buffer.alloc(16 * 1024);
  const more = (): void => {
    call.write(chunk, () => setImmediate(more));
  };
  more();
  const { status } = await reply;
  assert.deepEqual([status.code, status.details], [Code.FAILED_PRECONDITION, 'enough']);
  // The connection goes on.
  assert.equal((await client.unary(Buffer.from('m'))).status.code, Code.OK);
});

test('a server that is killed while RPCs run leaves none of them hanging', async (t) => {
  const running = settled();
  let calls = 0;
  const arrived = (): void => {
    if (++calls === 3) running.resolve();
  };
  const handlers = {
    unary: () => arrived(),
    collect: () => arrived(),
    expand: (call: Expand) => {
      call.write(call.request);
      arrived();
    },
  };
  const { server, port: serverPort } = await startServer(t, handlers);
  const { port } = await grpcGateway(t, [serverPort]);
  const client = new EchoClient(t, port);
  const unary = client.unary(Buffer.from('m'));
  const { call, reply } = client.collect();
  call.write(Buffer.from('m'));
  const stream = client.expand(Buffer.from('m'));
  assert.deepEqual((await messages(stream, 1)).map(String), ['m']);
  await running.promise;
  const begun = drained(stream);
  server.forceShutdown();
  for (const { status } of [await unary, await reply, await begun]) {
    assertGenerated(status, Code.UNAVAILABLE, 'UC');
  }
});
