// Upstreams that cannot be reached or do not answer in time.
// Spec: RFC 9110 §15.6.4 (503), §15.6.5 (504).

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { after, test } from 'node:test';
import { CLOSED_PORTS, get } from '../support.ts';
import { becomes, ok, request, startLab } from './support.ts';
import type { Message } from './wire.ts';

/** A port whose accept queue is full: the system drops further attempts to connect. */
async function fullPort(): Promise<number> {
  const program =
    "const s = require('net').createServer(); s.listen({port: 0, host: '127.0.0.1', backlog: 1}, () => console.log(s.address().port))";
  const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  after(() => child.kill('SIGKILL'));
  const [chunk] = await once(child.stdout!, 'data');
  const port = Number(chunk);
  child.kill('SIGSTOP');
  await becomes('stopped listener', async () => / T /.test(readFileSync(`/proc/${child.pid}/stat`, 'latin1')));
  // Connections in the queue are established; one more than the backlog fit in.
  let established = 0;
  for (let i = 0; i < 6; i++) {
    const socket = connect(port, '127.0.0.1', () => established++);
    socket.on('error', () => {});
    after(() => socket.destroy());
  }
  await becomes('full accept queue', async () => established >= 2);
  return port;
}

const lab = await startLab({
  kinds: {
    t: { upstreams: 8, rule: 'timeouts: {backendRequest: 700ms}' },
    // Those that have to answer in time.
    prompt: { upstreams: 4, rule: 'timeouts: {backendRequest: 3s}' },
  },
  routes: [
    '{name: refused, hostnames: [refused.test], rules: [{backendRefs: [{name: refused}]}]}',
    '{name: full, hostnames: [full.test], rules: [{backendRefs: [{name: full}]}]}',
    '{name: unresolved, hostnames: [unresolved.test], rules: [{backendRefs: [{name: unresolved}]}]}',
    '{name: whole, hostnames: [whole.test], rules: [{timeouts: {request: 700ms}, backendRefs: [{name: t0.test}]}]}',
  ],
  backends: [
    `{name: refused, endpoints: ["127.0.0.1:${CLOSED_PORTS[0]}"]}`,
    `{name: full, endpoints: ["127.0.0.1:${await fullPort()}"], connectTimeout: 400ms}`,
    '{name: unresolved, endpoints: ["no-such-host.invalid:80"]}',
  ],
});
const first = lab.upstream();

/** Asserts that `explain` names a setting as the cause. */
async function explained(response: Message, setting: RegExp): Promise<void> {
  const { body } = await get(lab.adminPort, `/explain?id=${response.value('x-request-id')}`);
  assert.match(body, setting);
}

/** Status and reason of a request to a host, on a connection that must be kept. */
async function refusal(host: string): Promise<[status: number, reason: string | undefined]> {
  const client = await lab.client();
  await client.send(request('GET /', host));
  const response = await client.response();
  assert.equal(response.value('connection'), undefined);
  await client.send(request('GET /', 'no-route.test'));
  assert.equal((await client.response()).status, 404, 'the connection still serves');
  client.close();
  return [response.status, response.value('x-reason')];
}

test('a port on which nobody listens gives 503 UF at once', async () => {
  assert.deepEqual(await refusal('refused.test'), [503, 'UF']);
});

test('a backend whose name has no address gives 503 UH', async () => {
  assert.deepEqual(await refusal('unresolved.test'), [503, 'UH']);
});

test('a connection that is not established within connectTimeout gives 504 UF', async () => {
  assert.deepEqual(await refusal('full.test'), [504, 'UF']);
});

test('an upstream that does not answer within timeouts.backendRequest gives 504 UT, and sees a reset', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  const response = await client.response();
  assert.equal(response.status, 504);
  assert.equal(response.value('x-reason'), 'UT');
  await explained(response, /timeouts\.backendRequest ran out/);
  assert.equal(await wire.ended(), 'reset');
  assert.equal(client.ending, undefined);
});

test('an upstream that does not answer within timeouts.request gives 504 UT', async () => {
  const client = await lab.client();
  await client.send(request('GET /', 'whole.test'));
  const wire = await first.connection();
  await wire.request();
  const response = await client.response();
  assert.equal(response.status, 504);
  assert.equal(response.value('x-reason'), 'UT');
  await explained(response, /timeouts\.request ran out/);
  assert.equal(await wire.ended(), 'reset');
});

test('a response that is not complete in time is cut, so that it does not look complete', async () => {
  const upstream = lab.upstream('prompt');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n');
  await client.until('some\r\n');
  assert.equal(await client.rest(), '');
  assert.equal(await wire.ended(), 'reset');
});

test('a timeout of one request does not outlive it', async () => {
  const upstream = lab.upstream('prompt');
  upstream.serve(() => ok('x'));
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  await client.response();
  // A request that begins now and runs out of its time shows that the time of the first one is over too;
  // the connection and its upstream must still be there.
  const witness = await lab.client();
  await witness.send(request('GET /', lab.upstream('prompt').host));
  assert.equal((await witness.response()).status, 504);
  await client.send(request('GET /', upstream.host));
  assert.equal((await client.response()).body, 'x');
  assert.equal(upstream.accepted, 1);
});
