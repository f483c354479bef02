// The pool of HTTP/2 connections to one endpoint: which carries the next stream, when one more is wanted, who waits.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import type { Http2Session } from '../../../../core/http2/session.ts';
import { Connection } from '../../../../core/io/connection.ts';
import { Endpoint } from '../../../../core/lb/endpoint.ts';
import { type Http2Member, Http2Pool, WAITING_MAX } from '../../../../core/lb/http2-pool.ts';
import type { BackendHttp2Settings } from '../../../../core/workers/snapshot.ts';

const settings: BackendHttp2Settings = {
  streamsPerConnectionMax: 10,
  connectionsMax: 3,
  pingIntervalMs: 0,
  pingTimeoutMs: 0,
};

interface FakeSession {
  peer: { maxConcurrentStreams: number };
  settingsReceived: boolean;
  streamCount: number;
  nextStreamId: number;
  closing: boolean;
  isDraining: boolean;
}

function poolOf(): Http2Pool {
  return new Http2Pool(new Endpoint({ address: '127.0.0.1:1', host: '127.0.0.1', port: 1 }));
}

/** Adds an established connection with so many streams. */
function addTo(pool: Http2Pool, streamCount: number, more: Partial<FakeSession> = {}): Http2Member {
  const member = pool.add(new Connection(pool.members.length));
  const session: FakeSession = {
    peer: { maxConcurrentStreams: 1000 },
    settingsReceived: true,
    streamCount,
    nextStreamId: 1,
    closing: false,
    isDraining: false,
    ...more,
  };
  member.session = session as unknown as Http2Session;
  return member;
}

test('the connection with the fewest streams carries the next one', () => {
  const pool = poolOf();
  addTo(pool, 3);
  const best = addTo(pool, 1);
  addTo(pool, 2);
  assert.equal(pool.pick(settings), best);
});

test('a connection that cannot take a stream is passed over', () => {
  const useless: [string, Partial<FakeSession>][] = [
    ['has as many streams as its peer allows', { streamCount: 2, peer: { maxConcurrentStreams: 2 } }],
    ['has as many streams as configured', { streamCount: 10 }],
    ['waits for the settings of its peer', { settingsReceived: false }],
    ['is closing', { closing: true }],
    ['has been told to go away', { isDraining: true }],
    ['has used up its stream numbers', { nextStreamId: 0x7fff_ffff }],
  ];
  for (const [what, session] of useless) {
    const pool = poolOf();
    addTo(pool, 0, session);
    assert.equal(pool.pick(settings), null, `one that ${what}`);
    const good = addTo(pool, 9);
    assert.equal(pool.pick(settings), good, `one that ${what}`);
  }
  const pool = poolOf();
  addTo(pool, 0).retired = true;
  pool.add(new Connection(9));
  assert.equal(pool.pick(settings), null);
});

test('a connection that has refused a stream is taken only when there is and will be no other', () => {
  const pool = poolOf();
  const refusing = addTo(pool, 0);
  refusing.refuses = true;
  assert.equal(pool.pick(settings), null);
  assert.equal(pool.pick({ ...settings, connectionsMax: 1 }), refusing);
  const opening = pool.add(new Connection(1));
  assert.equal(pool.pick({ ...settings, connectionsMax: 2 }), null);
  pool.remove(opening);
  const other = addTo(pool, 9);
  assert.equal(pool.pick(settings), other);
  pool.remove(other);
  pool.forgiveRefusals();
  assert.equal(pool.pick(settings), refusing);
});

test('one more connection is wanted from four fifths of the streams on, up to the limit', () => {
  const pool = poolOf();
  assert.equal(pool.wantsConnection(settings), false);
  const first = addTo(pool, 7);
  assert.equal(pool.wantsConnection(settings), false);
  first.session = { ...first.session, streamCount: 8 } as unknown as Http2Session;
  assert.equal(pool.wantsConnection(settings), true);
  const opening = pool.add(new Connection(1));
  assert.equal(pool.wantsConnection(settings), false, 'one is being opened');
  pool.remove(opening);
  addTo(pool, 1);
  assert.equal(pool.wantsConnection(settings), false, 'another has room');
  pool.members[1].session = { ...first.session } as unknown as Http2Session;
  addTo(pool, 10);
  assert.equal(pool.wantsConnection(settings), false, 'there are as many as allowed');
  pool.members[0].retired = true;
  assert.equal(pool.wantsConnection(settings), true, 'one that takes no more streams does not count');
});

test('connections are opened for those who wait, as many as they need by what is known of the upstream', () => {
  const pool = poolOf();
  const opened = (): number => {
    let count = 0;
    for (; pool.wantsConnection(settings); count++) pool.add(new Connection(count));
    return count;
  };
  pool.enqueue(new Exchange());
  assert.equal(opened(), 1);
  for (let i = 0; i < 8; i++) pool.enqueue(new Exchange());
  assert.equal(opened(), 1);
  pool.members.length = 0;
  pool.streamsKnown = 2;
  assert.equal(opened(), 3);
});

test('the queue is first-in-first-out, bounded, and can be left from any place', () => {
  const pool = poolOf();
  const exchanges = Array.from({ length: 4 }, () => new Exchange());
  for (const exchange of exchanges) assert.equal(pool.enqueue(exchange), true);
  const order = (): number[] => {
    const found: number[] = [];
    for (let at = pool.first; at !== null; at = at.waitingNext) found.push(exchanges.indexOf(at));
    return found;
  };
  assert.deepEqual(order(), [0, 1, 2, 3]);
  pool.dequeue(exchanges[1]);
  assert.deepEqual(order(), [0, 2, 3]);
  assert.equal(exchanges[1].waiting, false);
  pool.dequeue(exchanges[3]);
  pool.enqueue(exchanges[1]);
  assert.deepEqual(order(), [0, 2, 1]);
  pool.dequeue(exchanges[0]);
  pool.dequeue(exchanges[2]);
  pool.dequeue(exchanges[1]);
  assert.equal(pool.first, null);
  assert.equal(pool.waiting, 0);
  for (let i = 0; i < WAITING_MAX; i++) assert.equal(pool.enqueue(new Exchange()), true);
  assert.equal(pool.enqueue(exchanges[0]), false);
  assert.equal(exchanges[0].waiting, false);
});
