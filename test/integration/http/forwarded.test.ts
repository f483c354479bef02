// Who the client is: X-Forwarded-*, Forwarded and X-Request-Id with 0, 1 and 2 trusted proxies in
// front, towards the upstream and in the access log.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, suite, test } from 'node:test';
import { becomes, ok, request, startLab } from './support.ts';
import type { Message } from './wire.ts';

const settings = 'accessLog: {path: access.log, format: "%{path} %{clientAddress} %{requestId}"}';
const lab = await startLab({ upstreams: 1, top: settings });
const upstream = lab.upstream();
const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
let requests = 0;

/** What the upstream got, and what the access log says. */
interface Seen {
  request: Message;
  response: Message;
  client: string;
  id: string;
}

async function seen(...fields: string[]): Promise<Seen> {
  const path = `/${requests++}`;
  const client = await lab.client();
  await client.send(request(`GET ${path}`, upstream.host, ...fields));
  const wire = upstream.wires[0] ?? (await upstream.connection());
  const received = await wire.request();
  await wire.send(ok('x'));
  const response = await client.response();
  client.close();
  let line: string[] | undefined;
  await becomes(`log line of ${path}`, async () => {
    const lines = readFileSync(join(lab.directory, 'access.log'), 'utf8').split('\n').slice(0, -1);
    line = lines.map((text) => text.split(' ')).find(([first]) => first === path);
    return line !== undefined;
  });
  return { request: received, response, client: line![1], id: line![2] };
}

/** Reloads with other settings; `epoch` is the one that must come of it. */
async function reload(top: string, epoch: number): Promise<void> {
  lab.gateway.configure(lab.config(`${settings}\n${top}`));
  lab.gateway.kill('SIGHUP');
  await lab.gateway.log(new RegExp(`configuration reloaded epoch=${epoch}`));
}

const spoofed = [
  'X-Forwarded-For: 6.6.6.6',
  'X-Forwarded-Proto: https',
  'X-Forwarded-Host: bank.test',
  'Forwarded: for=6.6.6.6;host=bank.test',
  'X-Request-Id: chosen-by-client',
];

suite('with no trusted proxy', () => {
  test('what a client says of itself is replaced by what the gateway sees', async () => {
    const { request: received, client, id } = await seen(...spoofed);
    assert.equal(received.value('x-forwarded-for'), '127.0.0.1');
    assert.equal(received.value('x-forwarded-proto'), 'http');
    assert.equal(received.value('x-forwarded-host'), upstream.host);
    assert.equal(received.value('forwarded'), undefined);
    assert.match(received.value('x-request-id')!, uuid);
    assert.equal(client, '127.0.0.1');
    assert.equal(id, received.value('x-request-id'));
  });

  test('every request gets an id of its own', async () => {
    const ids = new Set<string>();
    for (let i = 0; i < 5; i++) ids.add((await seen()).id);
    assert.equal(ids.size, 5);
  });
});

suite('with one trusted proxy', () => {
  before(() => reload('trustedHops: 1', 2));

  test('its fields are kept, and its peer is the client', async () => {
    const { request: received, client, id } = await seen(...spoofed);
    assert.equal(received.value('x-forwarded-for'), '6.6.6.6, 127.0.0.1');
    assert.equal(received.value('x-forwarded-proto'), 'https');
    assert.equal(received.value('x-forwarded-host'), 'bank.test');
    assert.equal(received.value('forwarded'), 'for=6.6.6.6;host=bank.test');
    assert.equal(received.value('x-request-id'), 'chosen-by-client');
    assert.equal(client, '6.6.6.6');
    assert.equal(id, 'chosen-by-client');
  });

  test('entries that the client wrote before those of the proxy do not count', async () => {
    const { request: received, client } = await seen('X-Forwarded-For: 6.6.6.6, 7.7.7.7', 'X-Forwarded-For: 10.1.2.3');
    assert.equal(received.value('x-forwarded-for'), '6.6.6.6, 7.7.7.7, 10.1.2.3, 127.0.0.1');
    assert.equal(client, '10.1.2.3');
  });

  test('an IPv6 client is understood, and nonsense falls back to the peer', async () => {
    assert.equal((await seen('X-Forwarded-For: 2001:db8::7')).client, '2001:db8::7');
    assert.equal((await seen('X-Forwarded-For: [2001:db8::8]')).client, '2001:db8::8');
    for (const value of ['unknown', '1.2.3', '1.2.3.4.5', '300.1.1.1', '"1.2.3.4"', '1.2.3.4, ']) {
      assert.equal((await seen(`X-Forwarded-For: ${value}`)).client, '127.0.0.1', value);
    }
    assert.equal((await seen()).client, '127.0.0.1');
  });

  test('an id that is empty or far too long is replaced', async () => {
    assert.match((await seen('X-Request-Id:')).id, uuid);
    assert.match((await seen(`X-Request-Id: ${'x'.repeat(200)}`)).id, uuid);
  });

  test('only the first of two ids is kept, so that log and upstream agree', async () => {
    const { request: received, id } = await seen('X-Request-Id: one', 'X-Request-Id: two');
    assert.equal(received.value('x-request-id'), 'one');
    assert.equal(id, 'one');
  });
});

suite('with two trusted proxies', () => {
  before(() => reload('trustedHops: 2', 3));

  test('the client is the second entry from the right', async () => {
    const { request: received, client } = await seen('X-Forwarded-For: 6.6.6.6, 9.9.9.9, 10.0.0.1');
    assert.equal(received.value('x-forwarded-for'), '6.6.6.6, 9.9.9.9, 10.0.0.1, 127.0.0.1');
    assert.equal(client, '9.9.9.9');
  });

  test('too few entries fall back to the peer', async () => {
    assert.equal((await seen('X-Forwarded-For: 10.0.0.1')).client, '127.0.0.1');
  });
});

suite('with these fields switched off', () => {
  before(() => reload('headers: {forwarded: false, requestId: false}', 4));

  test('they pass as the client sent them, and the gateway adds none', async () => {
    const { request: received, id } = await seen(...spoofed);
    assert.equal(received.value('x-forwarded-for'), '6.6.6.6');
    assert.equal(received.value('x-forwarded-host'), 'bank.test');
    assert.equal(received.value('x-request-id'), 'chosen-by-client');
    assert.equal(id, 'chosen-by-client');
    const bare = await seen();
    assert.equal(bare.request.value('x-forwarded-for'), undefined);
    assert.equal(bare.request.value('x-request-id'), undefined);
    assert.match(bare.id, uuid);
  });
});
