// How HTTP/2 connections end in order: idle, after their last request, on reload and on shutdown.
// Spec: RFC 9113 §6.8 (GOAWAY), §9.1.

import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';
import { ok, startLab } from '../http/support.ts';
import { openWire } from '../http/wire.ts';
import { simpleConfig, startGateway, startUpstream } from '../support.ts';
import { Client, Code, connectHttp2, get, greet, Type } from './frames.ts';

const GOAWAY_NOTICE = 0x7fff_ffff;

test('a connection without requests is told to go after timeouts.idle', async () => {
  const lab = await startLab({ upstreams: 1, top: 'timeouts: {idle: 1s}' });
  const client = await connectHttp2(lab);
  const goaway = await client.goaway();
  assert.deepEqual(goaway, { code: Code.NO_ERROR, lastStream: 0, text: '' });
  assert.equal(await client.wire.ended(), 'fin');
});

test('a client that sends half a frame is told to go after timeouts.requestHead', async () => {
  const lab = await startLab({ upstreams: 1, top: 'timeouts: {requestHead: 1s}' });
  const client = await connectHttp2(lab);
  await client.send(Buffer.from([0, 0, 10, Type.HEADERS]));
  await client.send(Buffer.from([4, 0, 0, 0, 1, 0x82]));
  const goaway = await client.goaway();
  assert.equal(goaway.code, Code.ENHANCE_YOUR_CALM);
  assert.match(goaway.text, /has not come in time/);
});

test('limits.maxRequestsPerConnection ends a connection after its last request', async () => {
  const lab = await startLab({ upstreams: 1, top: 'limits: {maxRequestsPerConnection: 2}' });
  const upstream = lab.upstream();
  upstream.serve(() => ok('fine'));
  const client = await connectHttp2(lab);
  await client.headers(1, get(upstream.host));
  assert.equal((await client.answer(1)).body, 'fine');
  await client.headers(3, get(upstream.host));
  assert.equal((await client.goaway()).lastStream, 3);
  assert.equal((await client.answer(3)).body, 'fine');
  assert.equal(await client.wire.ended(), 'fin');
});

test('on shutdown idle connections go at once; a request in progress is finished, and one begun after the notice too', async (t) => {
  const held: ServerResponse[] = [];
  const begun = new EventEmitter();
  const upstream = await startUpstream(t, (_, response) => {
    held.push(response);
    begun.emit('request');
  });
  const gateway = startGateway(t, simpleConfig(upstream, 'drainTimeout: 10s').replace('workers: 2', 'workers: 1'));
  const port = await gateway.port();
  await gateway.serving();
  const idle = await greet(new Client(await openWire(port)));
  const busy = await greet(new Client(await openWire(port)));
  let request = once(begun, 'request');
  await busy.headers(1, get('a.test'));
  await request;
  gateway.kill('SIGTERM');
  assert.equal((await idle.goaway()).lastStream, 0);
  assert.equal(await idle.wire.ended(), 'fin');
  assert.equal((await busy.goaway()).lastStream, GOAWAY_NOTICE);
  request = once(begun, 'request');
  await busy.headers(3, get('a.test'));
  await request;
  held[0].end('one');
  assert.equal((await busy.answer(1)).body, 'one');
  held[1].end('two');
  assert.equal((await busy.answer(3)).body, 'two');
  assert.equal((await busy.goaway()).lastStream, 3);
  assert.equal(await busy.wire.ended(), 'fin');
  busy.wire.close();
  idle.wire.close();
  assert.equal((await gateway.finished).code, 0);
});
