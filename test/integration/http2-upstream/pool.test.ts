// Connections to an HTTP/2 upstream: how many, which stream goes where, who waits, and when they end.
// Spec: RFC 9113 §5.1.2 (stream concurrency), §6.5 (SETTINGS), §6.8 (GOAWAY), §9.1 (connection management).

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { becomes, request, startLab, type Upstream } from '../http/support.ts';
import type { Message, Wire } from '../http/wire.ts';
import { Flag, frame, settings, Type } from '../http2/frames.ts';
import { accept, ask, greetGateway, response, type Server, Setting } from './support.ts';

const lab = await startLab({
  upstreams: 12,
  backend: 'protocol: h2c, http2: {maxConnections: 3, maxConcurrentStreams: 10}',
});
const limited = await startLab({ upstreams: 2, backend: 'protocol: h2c, maxRequestsPerConnection: 2' });
const brief = await startLab({ upstreams: 1, backend: 'protocol: h2c, idleTimeout: 50ms' });

/** Starts so many requests; their answers, in order. */
function askAll(host: string, count: number): Promise<Message>[] {
  return Array.from({ length: count }, (_, index) => ask(lab, request(`GET /${index}`, host)));
}

/** Takes every connection of the gateway, greets it, and answers its requests; notes the most streams at a time. */
function serveAll(upstream: Upstream, maxStreams: number, delayMs = 0): { most: number; served: number[] } {
  const seen = { most: 0, served: [] as number[] };
  const loop = async (server: Server, index: number): Promise<void> => {
    let open = 0;
    for (;;) {
      const { stream, fields } = await server.request();
      open++;
      seen.served[index]++;
      seen.most = Math.max(seen.most, open);
      const path = fields.find((line) => line.startsWith(':path: '))!.slice(7);
      const answer = (): void => {
        open--;
        server.send(...response(stream, path)).catch(() => {});
      };
      if (delayMs > 0) setTimeout(answer, delayMs);
      else setImmediate(answer);
    }
  };
  const take = async (wire: Wire): Promise<void> => {
    const server = await greetGateway(wire, [Setting.MAX_STREAMS, maxStreams]);
    seen.served.push(0);
    await loop(server, seen.served.length - 1);
  };
  upstream.each((wire) => take(wire).catch(() => {}));
  return seen;
}

for (const maxStreams of [1, 10]) {
  test(`an upstream that allows ${maxStreams} streams never gets more, and all requests are served in the end`, async () => {
    const upstream = lab.upstream();
    const seen = serveAll(upstream, maxStreams, 2);
    const answers = await Promise.all(askAll(upstream.host, 100));
    answers.forEach(({ body }, index) => {
      assert.equal(body, `/${index}`);
    });
    assert.ok(seen.most <= maxStreams, `${seen.most} streams`);
    assert.ok(upstream.accepted <= 3, `${upstream.accepted} connections`);
  });
}

test('1,000 requests at a time are served over three connections, with none left out', async () => {
  const upstream = lab.upstream();
  const seen = serveAll(upstream, 100, 1);
  const answers = await Promise.all(askAll(upstream.host, 1000));
  answers.forEach(({ status, body }, index) => {
    assert.equal(status, 200);
    assert.equal(body, `/${index}`);
  });
  // What is configured counts where the upstream would allow more.
  assert.ok(seen.most <= 10, `${seen.most} streams`);
  assert.equal(upstream.accepted, 3);
  for (const count of seen.served) assert.ok(count > 100, `${seen.served}`);
});

test('the next connection is opened before the last stream is taken, and gets the next streams', async () => {
  const upstream = lab.upstream();
  const answers = askAll(upstream.host, 1);
  const first = await accept(upstream);
  const streams = [(await first.request()).stream];
  for (let i = 1; i < 7; i++) {
    answers.push(...askAll(upstream.host, 1));
    streams.push((await first.request()).stream);
  }
  assert.equal(upstream.accepted, 1);
  answers.push(...askAll(upstream.host, 1));
  streams.push((await first.request()).stream);
  const second = await accept(upstream);
  // It is in use as soon as its settings have come.
  await second.next(Type.SETTINGS);
  answers.push(...askAll(upstream.host, 1));
  const { stream } = await second.request();
  await second.respond(stream, 'ok');
  for (const id of streams) await first.respond(id, 'ok');
  for (const { body } of await Promise.all(answers)) assert.equal(body, 'ok');
});

test('a limit that the upstream changes on the way counts from then on', async () => {
  const upstream = lab.upstream();
  const answers = askAll(upstream.host, 4);
  const server = await accept(upstream, [Setting.MAX_STREAMS, 0]);
  for (let i = 1; i < 3; i++) await accept(upstream, [Setting.MAX_STREAMS, 0]);
  // None may be opened: all wait.
  await server.send(frame(Type.SETTINGS, 0, 0, settings([Setting.MAX_STREAMS, 2])));
  const first = await server.request();
  const second = await server.request();
  await server.send(frame(Type.SETTINGS, 0, 0, settings([Setting.MAX_STREAMS, 1])));
  await server.respond(first.stream, 'ok');
  await server.send(frame(Type.PING, 0, 0, 'anything'));
  // The ping is answered and no request comes: one stream is open, and no more are allowed.
  for (;;) {
    const { type, flags } = await server.read();
    assert.notEqual(type, Type.HEADERS);
    if (type === Type.PING && (flags & Flag.ACK) !== 0) break;
  }
  await server.respond(second.stream, 'ok');
  for (let i = 0; i < 2; i++) await server.respond((await server.request()).stream, 'ok');
  for (const { body } of await Promise.all(answers)) assert.equal(body, 'ok');
});

test('requests beyond the queue are answered with 503 and the reason', async () => {
  const upstream = lab.upstream();
  const statuses: number[] = [];
  const reasons = new Set<string | undefined>();
  const answers = askAll(upstream.host, 1030).map((answer) =>
    answer.then((message) => {
      statuses.push(message.status);
      if (message.status === 503) reasons.add(message.value('x-reason'));
    }),
  );
  await becomes('refusals', async () => statuses.length === 6);
  assert.deepEqual([...reasons], ['UO']);
  serveAll(upstream, 100);
  await Promise.all(answers);
  assert.equal(statuses.filter((status) => status === 200).length, 1024);
});

test('a load goes on without a lost request while the upstream says GOAWAY again and again', async () => {
  const upstream = lab.upstream();
  let goaways = 0;
  const loop = async (server: Server): Promise<void> => {
    for (let count = 1; ; count++) {
      const { stream, fields } = await server.request();
      const answer = response(stream, fields.find((line) => line.startsWith(':path: '))!.slice(7));
      await server.send(...answer);
      if (count % 20 === 0) {
        goaways++;
        await server.leave(stream);
        await server.wire.finish();
        return;
      }
    }
  };
  upstream.each((wire) => {
    greetGateway(wire)
      .then(loop)
      .catch(() => {});
  });
  for (let round = 0; round < 10; round++) {
    const answers = await Promise.all(askAll(upstream.host, 30));
    answers.forEach(({ status, body }, index) => {
      assert.equal(status, 200);
      assert.equal(body, `/${index}`);
    });
  }
  assert.ok(goaways >= 10, `${goaways} GOAWAY frames`);
});

test('a connection ends after the requests that it may serve, and another takes over', async () => {
  const upstream = limited.upstream();
  for (let round = 0; round < 2; round++) {
    const one = ask(limited, request('GET /', upstream.host));
    const server = await accept(upstream);
    await server.respond((await server.request()).stream, 'one');
    assert.equal((await one).body, 'one');
    const two = ask(limited, request('GET /', upstream.host));
    await server.respond((await server.request()).stream, 'two');
    assert.equal((await two).body, 'two');
    assert.equal((await server.goaway()).code, 0);
    await server.wire.ended();
  }
});

test('an idle connection ends with GOAWAY after the idle timeout', async () => {
  const upstream = brief.upstream();
  const answer = ask(brief, request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.respond((await server.request()).stream, 'ok');
  await answer;
  assert.equal((await server.goaway()).code, 0);
  await server.wire.ended();
});

test('a reload that takes an endpoint away ends its connection after the last stream', async () => {
  const upstream = lab.upstream();
  const idle = lab.upstream();
  const file = lab.gateway.configFile;
  const text = readFileSync(file, 'utf8');
  const warm = ask(lab, request('GET /', idle.host));
  const unused = await accept(idle);
  await unused.respond((await unused.request()).stream, 'ok');
  await warm;
  const answer = ask(lab, request('GET /', upstream.host));
  const server = await accept(upstream);
  const { stream } = await server.request();
  const other = lab.upstream();
  const without = text
    .replace(`["127.0.0.1:${upstream.port}"]`, `["127.0.0.1:${other.port}"]`)
    .replace(`["127.0.0.1:${idle.port}"]`, `["127.0.0.1:${other.port}"]`);
  assert.notEqual(without, text);
  writeFileSync(file, without);
  lab.gateway.kill('SIGHUP');
  assert.equal((await unused.goaway()).code, 0);
  await unused.wire.ended();
  const moved = ask(lab, request('GET /', upstream.host));
  const fresh = await accept(other);
  await fresh.respond((await fresh.request()).stream, 'moved');
  assert.equal((await moved).body, 'moved');
  await server.respond(stream, 'old');
  assert.equal((await answer).body, 'old');
  assert.equal((await server.goaway()).code, 0);
  await server.wire.ended();
});
