// Clients that are too slow, in every phase of a connection.
// Timeouts are short here; a test asserts what happens, never how long it took.
// Spec: RFC 9110 §15.5.9 (408).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { becomes, ok, request, startLab } from './support.ts';

const lab = await startLab({
  upstreams: 9,
  top: 'timeouts: {requestHead: 2s, idle: 3s, streamIdle: 3s}',
  routes: [
    '{name: pause, hostnames: [pause.test], rules: [{timeouts: {request: 400ms}, backendRefs: [{name: t0.test}]}]}',
  ],
});
// Takes requests and never answers: t0.test.
lab.upstream();

/** Lets 400 ms go by on the gateway's own clock: until a request that nobody answers runs out of time. */
async function pause(): Promise<void> {
  const client = await lab.client();
  await client.send(request('GET /', 'pause.test'));
  assert.equal((await client.response()).status, 504);
  client.close();
}
// Here only the time for a head is short.
const patient = await startLab({ upstreams: 1, top: 'timeouts: {requestHead: 500ms, idle: 60s}' });

// The tests run side by side: they mostly wait.
const together = { concurrency: true };

test('slow clients', together, async (t) => {
  const tests = [
    t.test('a connection that sends nothing is closed without an answer', async () => {
      const client = await lab.client();
      assert.equal(await client.rest(), '');
      assert.equal(client.ending, 'fin');
    }),

    t.test('a kept connection that sends no further request is closed without an answer', async () => {
      const upstream = lab.upstream();
      upstream.serve(() => ok('x'));
      const client = await lab.client();
      await client.send(request('GET /', upstream.host));
      await client.response();
      assert.equal(await client.rest(), '');
      assert.equal(client.ending, 'fin');
    }),

    t.test('a head that stops half way is answered with 408, and nothing reaches an upstream', async () => {
      const upstream = lab.upstream();
      const client = await lab.client();
      await client.send(`GET / HTTP/1.1\r\nHost: ${upstream.host}\r\nX-A`);
      const response = await client.response();
      assert.equal(response.status, 408);
      assert.equal(response.value('x-reason'), 'DT');
      assert.equal(response.value('connection'), 'close');
      assert.equal(await client.ended(), 'fin');
      assert.equal(upstream.accepted, 0);
    }),

    t.test('a head that never ends, one field now and then, is answered with 408 all the same', async () => {
      const upstream = lab.upstream();
      const client = await lab.client();
      await client.send(`GET / HTTP/1.1\r\nHost: ${upstream.host}\r\n`);
      let count = 0;
      await becomes('408', async () => {
        if (client.unread.includes('\r\n\r\n')) return true;
        await client.send(`X-${count++}: 1\r\n`);
        return false;
      });
      assert.equal((await client.response()).status, 408);
      assert.ok(count > 5, 'it kept sending');
      assert.equal(upstream.accepted, 0);
    }),

    t.test('the second head of a connection is timed too, from its first byte', async () => {
      const upstream = patient.upstream();
      upstream.serve(() => ok('x'));
      const client = await patient.client();
      await client.send(`${request('GET /', upstream.host)}GET /half`);
      assert.equal((await client.response()).status, 200);
      assert.equal((await client.response()).status, 408);
      assert.equal(await client.ended(), 'fin');
    }),

    t.test('a body that stops half way is answered with 408, and the upstream sees a reset', async () => {
      const upstream = lab.upstream();
      const client = await lab.client();
      await client.send(`${request('POST /', upstream.host, 'Content-Length: 10')}12345`);
      const wire = await upstream.connection();
      await wire.until('12345');
      const response = await client.response();
      assert.equal(response.status, 408);
      assert.equal(response.value('x-reason'), 'DT');
      assert.equal(response.value('connection'), 'close');
      assert.equal(await wire.ended(), 'reset');
    }),

    t.test('a client that stops reading is cut with a reset, and so is the upstream', async () => {
      const upstream = lab.upstream();
      const client = await lab.client();
      client.socket.pause();
      await client.send(request('GET /', upstream.host));
      const wire = await upstream.connection();
      await wire.request();
      // More than all socket buffers on the way can hold.
      const bytes = 64 * 1024 * 1024;
      void wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n\r\n`);
      void wire.send(Buffer.alloc(bytes));
      assert.equal(await wire.ended(), 'reset');
      client.socket.resume();
      assert.equal(await client.ended(), 'reset');
      assert.ok(client.received < bytes);
    }),

    t.test('an upload that makes progress now and then is not cut', async () => {
      const upstream = lab.upstream();
      const client = await lab.client();
      await client.send(request('POST /', upstream.host, 'Content-Length: 8'));
      const wire = await upstream.connection();
      await wire.head();
      // Together longer than the idle time; each pause is a small part of it.
      for (let i = 0; i < 8; i++) {
        await pause();
        await client.send(String(i));
        assert.equal((await wire.bytes(1)).toString(), String(i));
      }
      await wire.send(ok('whole'));
      assert.equal((await client.response()).body, 'whole');
    }),
  ];
  await Promise.all(tests);
});
