// The client's address behind trusted proxies: the right entry of the list, and never one that the
// client could have written.

import assert from 'node:assert/strict';
import { isIP } from 'node:net';
import { test } from 'node:test';
import { readClientOfHead, readForwardedClient } from '../../../../core/exchange/forwarded-client.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { putPeer } from '../../../../core/io/bytes.ts';
import type { PeerAddress } from '../../../../core/io/connection.ts';
import { seededRandom } from '../io/seed.ts';
import { clientFrom } from './support.ts';

const peer = clientFrom('203.0.113.9');
const text = new Uint8Array(128);
const textView = new DataView(text.buffer);

function shown(address: PeerAddress): string {
  return Buffer.from(text.subarray(0, putPeer(textView, 0, address))).toString('latin1');
}

/** The client that a list stands for; bytes around the list look like more entries. */
function clientOf(list: string, hops: number): string {
  const memory = Buffer.from(`1.1.1.1, ${list}, 2.2.2.2`, 'latin1');
  return shown(readForwardedClient(memory, 9, list.length, hops, peer));
}

test('takes the entry that the outermost trusted proxy added', () => {
  const list = '6.6.6.6, 198.51.100.1, 198.51.100.2, 203.0.113.9';
  assert.equal(clientOf(list, 1), '198.51.100.2');
  assert.equal(clientOf(list, 2), '198.51.100.1');
  assert.equal(clientOf(list, 3), '6.6.6.6');
});

test('white space and empty entries count as they stand', () => {
  assert.equal(clientOf('192.0.2.1,203.0.113.9', 1), '192.0.2.1');
  assert.equal(clientOf(' \t192.0.2.1\t , 203.0.113.9', 1), '192.0.2.1');
  assert.equal(clientOf('192.0.2.1,,203.0.113.9', 1), '203.0.113.9', 'an empty entry is not an address');
  assert.equal(clientOf('192.0.2.1,,203.0.113.9', 2), '192.0.2.1');
});

test('falls back to the peer when the list is too short or the entry is not an address', () => {
  for (const [list, hops] of [
    ['203.0.113.9', 1],
    ['192.0.2.1, 203.0.113.9', 2],
    ['', 1],
    ['unknown, 203.0.113.9', 1],
    ['_hidden, 203.0.113.9', 1],
    ['192.0.2.256, 203.0.113.9', 1],
    ['192.0.2, 203.0.113.9', 1],
    ['192.0.2.1.5, 203.0.113.9', 1],
    ['192.0.2., 203.0.113.9', 1],
    ['.192.0.2, 203.0.113.9', 1],
    ['[], 203.0.113.9', 1],
    ['[192.0.2.1], 203.0.113.9', 1],
    [`${'1'.repeat(500)}, 203.0.113.9`, 1],
    ['2001:db8::g, 203.0.113.9', 1],
  ] as const) {
    assert.equal(clientOf(list, hops), '203.0.113.9', list);
  }
});

test('an address with leading zeros is none: others may read it as octal', () => {
  assert.equal(clientOf('010.0.0.1, 203.0.113.9', 1), '203.0.113.9');
  assert.equal(clientOf('10.0.0.01, 203.0.113.9', 1), '203.0.113.9');
  assert.equal(clientOf('0.0.0.0, 203.0.113.9', 1), '0.0.0.0');
});

test('IPv6 entries, with and without brackets, and IPv4 in IPv6', () => {
  assert.equal(clientOf('2001:DB8::1, 203.0.113.9', 1), '2001:db8::1');
  assert.equal(clientOf('[2001:db8::1], 203.0.113.9', 1), '2001:db8::1');
  assert.equal(clientOf('::ffff:192.0.2.7, 203.0.113.9', 1), '192.0.2.7');
  assert.equal(clientOf('ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255, 203.0.113.9', 1), `${'ffff:'.repeat(7)}ffff`);
});

test('any text is an address here exactly if it is one for node:net', (t) => {
  const { random, label } = seededRandom(t);
  for (let i = 0; i < 20_000; i++) {
    const parts = Array.from({ length: random.int(3, 5) }, () =>
      random.pick([String(random.int(0, 300)), String(random.int(0, 255)), String(random.int(0, 9)), '0', '00', '']),
    );
    const entry = random.chance(0.9) ? parts.join('.') : parts.join(random.pick([':', '::']));
    const address = isIP(entry) === 0 ? undefined : encodeSockaddr(entry, 0);
    const found = clientOf(`${entry}, 203.0.113.9`, 1);
    assert.equal(found, address === undefined ? '203.0.113.9' : shown(clientFrom(entry)), `${label}: "${entry}"`);
  }
});

test('from a head that has no entry for our peer yet it reads the same client, whatever lines the list comes in', () => {
  const entries = ['6.6.6.6', '2001:db8::1', '198.51.100.1', 'unknown', '198.51.100.2'];
  // Every way to spread the entries over lines.
  for (let cuts = 0; cuts < 16; cuts++) {
    const lines = [entries[0]];
    for (let i = 1; i < entries.length; i++) {
      if ((cuts & (1 << (i - 1))) !== 0) lines.push(entries[i]);
      else lines[lines.length - 1] += `, ${entries[i]}`;
    }
    const head = new RequestHead();
    const fields = lines.map((line) => `x-other: 9.9.9.9\r\nx-forwarded-for: ${line}\r\nx-forwarded-for:\r\n`).join('');
    const memory = Buffer.alloc(2048);
    const length = memory.write(`GET / HTTP/1.1\r\nhost: h\r\n${fields}\r\n`, 'latin1');
    const limits = { headBytesMax: 2048, headerCountMax: 64, uriBytesMax: 100 };
    assert.ok(parseRequestHead(memory, 0, length, limits, head) > 0);
    for (let hops = 1; hops <= 7; hops++) {
      const expected = clientOf([...entries, '203.0.113.9'].join(', '), hops);
      assert.equal(shown(readClientOfHead(memory, head.headers, hops, peer)), expected, `${hops} hops, cuts ${cuts}`);
    }
  }
});
