// Lines about failed connections: who, where, why, and not too many.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConnectionLog } from '../../../../core/exchange/connection-log.ts';
import type { WorkloadRuntime } from '../../../../core/exchange/mesh-runtime.ts';
import { Connection } from '../../../../core/io/connection.ts';
import { Endpoint } from '../../../../core/lb/endpoint.ts';
import { clientFrom, memoryReactor } from './support.ts';

/** A log, what it has written, and its clock. */
function logOf(): { log: ConnectionLog; lines: string[]; at: (ms: number) => void } {
  const reactor = memoryReactor();
  const lines: string[] = [];
  const log = new ConnectionLog(reactor);
  log.log = (level, message) => lines.push(`${level} ${message}`);
  return { log, lines, at: (ms) => (reactor.nowMs = ms) };
}

function upstream(): Connection {
  const connection = new Connection(0);
  connection.endpoint = new Endpoint({ address: '10.0.0.1:1', host: '10.0.0.1', port: 1 }, 'key');
  return connection;
}

test('a client is named with its address, its listener and the name that it asked for', () => {
  const { log, lines } = logOf();
  const client = clientFrom('192.0.2.1', 'https');
  log.tell(client, 'TLS handshake failed', 'because');
  client.serverName = 'a.test';
  log.tell(client, 'TLS handshake failed', 'because');
  log.tell(clientFrom('2001:db8::1', 'https'), 'TLS handshake failed', 'because');
  assert.deepEqual(lines, [
    'info TLS handshake failed with client 192.0.2.1 on listener l: because',
    'info TLS handshake failed with client 192.0.2.1 on listener l for a.test: because',
    'info TLS handshake failed with client 2001:db8::1 on listener l: because',
  ]);
});

test('an upstream is named with its address', () => {
  const { log, lines } = logOf();
  log.tell(upstream(), 'TLS handshake failed', 'because');
  assert.deepEqual(lines, ['info TLS handshake failed with upstream 10.0.0.1:1: because']);
});

test('of a node proxy’s connections the workload is named, unless the listener is already', () => {
  const { log, lines } = logOf();
  const workload = { settings: { name: 'shop/web-0' } } as WorkloadRuntime;
  const out = upstream();
  out.endpoint!.workload = workload;
  const client = clientFrom('192.0.2.1');
  client.workload = workload;
  const own = clientFrom('192.0.2.1');
  own.workload = { settings: { name: own.listener!.settings.name } } as WorkloadRuntime;
  for (const connection of [out, client, own]) log.tell(connection, 'TLS handshake failed', 'because');
  assert.deepEqual(lines, [
    'info TLS handshake failed with upstream 10.0.0.1:1, workload shop/web-0: because',
    'info TLS handshake failed with client 192.0.2.1 on listener l, workload shop/web-0: because',
    'info TLS handshake failed with client 192.0.2.1 on listener l: because',
  ]);
});

test('of many failures alike in one second five are written, and then how many were not', () => {
  const { log, lines, at } = logOf();
  const client = clientFrom('192.0.2.1');
  at(5000);
  for (let i = 0; i < 25; i++) log.tell(client, 'failed', 'cause');
  assert.equal(lines.length, 5);
  log.tell(client, 'failed', 'another cause');
  log.tell(upstream(), 'failed', 'cause');
  assert.equal(lines.length, 7, 'another cause and another place are not hidden');
  at(5999);
  log.tell(client, 'failed', 'cause');
  assert.equal(lines.length, 7);
  at(6000);
  log.tell(client, 'failed', 'cause');
  assert.deepEqual(lines.slice(7), [
    'info 21 more failures of connections were not logged',
    'info failed with client 192.0.2.1 on listener l: cause',
  ]);
  at(7000);
  log.tell(client, 'failed', 'cause');
  assert.equal(lines.length, 10, 'nothing was missed in between');
});

test('however many kinds of failure there are, fifty lines are written in one second', () => {
  const { log, lines, at } = logOf();
  const client = clientFrom('192.0.2.1');
  at(5000);
  for (let i = 0; i < 60; i++) log.tell(client, 'failed', `cause ${i}`);
  assert.equal(lines.length, 50);
  at(6000);
  log.tell(client, 'failed', 'cause');
  assert.equal(lines[50], 'info 10 more failures of connections were not logged');
});
