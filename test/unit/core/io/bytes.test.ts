// Writing texts, numbers and addresses: exactly the right bytes, and no spill beyond SPILL_BYTES.

import assert from 'node:assert/strict';
import { isIP } from 'node:net';
import { test } from 'node:test';
import { decodeSockaddr, encodeSockaddr, Family } from '../../../../core/ffi/sockaddr.ts';
import {
  PEER_TEXT_BYTES_MAX,
  putBytes,
  putDecimal,
  putHex16,
  putLineEnd,
  putPeer,
  putRange,
  putText,
  SPILL_BYTES,
  Text,
} from '../../../../core/io/bytes.ts';
import type { PeerAddress } from '../../../../core/io/connection.ts';
import type { Random } from '../../../sim/random.ts';
import { seededRandom } from './seed.ts';

const GUARD = 0xa5;
const AT = 16;
const memory = new Uint8Array(1024);
const view = new DataView(memory.buffer);

/** What a writer wrote; checks that it kept to its range and at most `spillBytes` after it. */
function written(write: (at: number) => number, spillBytes: number): string {
  memory.fill(GUARD);
  const end = write(AT);
  assert.ok(end >= AT && end <= memory.length - SPILL_BYTES);
  for (let i = 0; i < AT; i++) assert.equal(memory[i], GUARD, 'wrote before its start');
  for (let i = end + spillBytes; i < memory.length; i++)
    assert.equal(memory[i], GUARD, `wrote ${i - end} after its end`);
  return Buffer.from(memory.subarray(AT, end)).toString('latin1');
}

function peerOf(host: string): PeerAddress {
  const sockaddr = encodeSockaddr(host, 0)!;
  const words = new DataView(sockaddr.buffer);
  const v4 = sockaddr.length === 16;
  return {
    peerFamily: v4 ? Family.INET : Family.INET6,
    peerPort: 0,
    peer0: words.getInt32(v4 ? 4 : 8),
    peer1: v4 ? 0 : words.getInt32(12),
    peer2: v4 ? 0 : words.getInt32(16),
    peer3: v4 ? 0 : words.getInt32(20),
  };
}

function peerText(peer: PeerAddress): string {
  const text = written((at) => putPeer(view, at, peer), SPILL_BYTES);
  assert.ok(text.length <= PEER_TEXT_BYTES_MAX);
  return text;
}

/** Eight groups, many of them zero, as text without any abbreviation. */
function randomIpv6(random: Random): string {
  const groups = Array.from({ length: 8 }, () =>
    random.pick([0, 0, 0, random.int(0, 15), random.int(0, 255), random.int(0, 0xffff), 0xffff]),
  );
  return groups.map((group) => group.toString(16)).join(':');
}

test('texts of every length are written whole', () => {
  for (let length = 0; length <= 70; length++) {
    const text = 'abcdefghijklmnopqrstuvwxyz'.repeat(3).slice(0, length);
    assert.equal(
      written((at) => putText(view, at, new Text(text)), SPILL_BYTES),
      text,
    );
  }
});

test('a text beyond ASCII is refused when it is prepared', () => {
  assert.throws(() => new Text('caf\u00e9'), /not ASCII/);
  assert.throws(() => new Text('\x7f'), /not ASCII/);
});

test('bytes and line ends touch nothing else', () => {
  assert.equal(
    written((at) => putLineEnd(view, at), 0),
    '\r\n',
  );
  for (let length = 0; length <= 40; length++) {
    const bytes = Uint8Array.from({ length }, (_, i) => 200 + i);
    assert.equal(
      written((at) => putBytes(memory, at, bytes), 0),
      Buffer.from(bytes).toString('latin1'),
    );
  }
});

test('ranges are copied exactly, also to the left over themselves', () => {
  for (let length = 0; length <= 60; length++) {
    for (const distance of [1, 3, 24, 25, 400]) {
      memory.fill(GUARD);
      const source = AT + distance;
      for (let i = 0; i < length; i++) memory[source + i] = i + 1;
      assert.equal(putRange(memory, AT, source, length), AT + length);
      const copied = memory.subarray(AT, AT + length);
      assert.deepEqual(
        [...copied],
        [...Array(length).keys()].map((i) => i + 1),
        `${length} by ${distance}`,
      );
      assert.equal(memory[AT - 1], GUARD);
    }
  }
});

test('decimal numbers of every size', () => {
  const numbers = [0, 9, 10, 11, 99, 100, 101, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER];
  for (let power = 1; power < Number.MAX_SAFE_INTEGER; power *= 10) numbers.push(power, power - 1, power + 1);
  for (const number of numbers) {
    assert.equal(
      written((at) => putDecimal(memory, at, number), 0),
      String(number),
    );
  }
});

test('hexadecimal words', () => {
  for (const word of [0, 1, 0xf, 0xab, 0xabcd, 0xffff, 0x12345678, -1, -0x80000000]) {
    const expected = (word & 0xffff).toString(16).padStart(4, '0');
    assert.equal(
      written((at) => putHex16(view, at, word), 0),
      expected,
    );
  }
});

test('IPv4 addresses, every octet in every place', () => {
  for (let octet = 0; octet < 256; octet++) {
    for (const host of [`${octet}.1.2.3`, `1.${octet}.22.3`, `1.22.${octet}.255`, `255.1.22.${octet}`]) {
      assert.equal(peerText(peerOf(host)), host);
    }
  }
});

test('IPv6 addresses in the form of RFC 5952', () => {
  const cases: Record<string, string> = {
    '0:0:0:0:0:0:0:0': '::',
    '0:0:0:0:0:0:0:1': '::1',
    '1:0:0:0:0:0:0:0': '1::',
    '2001:0DB8:0:0:1:0:0:1': '2001:db8::1:0:0:1',
    '2001:db8:0:1:1:1:1:1': '2001:db8:0:1:1:1:1:1',
    '2001:0:0:1:0:0:0:1': '2001:0:0:1::1',
    '0:1:2:3:4:5:6:7': '0:1:2:3:4:5:6:7',
    '1:2:3:4:5:6:0:0': '1:2:3:4:5:6::',
    'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff': 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    '::ffff:192.0.2.1': '192.0.2.1',
    '::fffe:192.0.2.1': '::fffe:c000:201',
    '64:ff9b::192.0.2.33': '64:ff9b::c000:221',
  };
  for (const [host, text] of Object.entries(cases)) assert.equal(peerText(peerOf(host)), text, host);
});

test('random IPv6 addresses are written as the URL standard writes them', (t) => {
  const { random, label } = seededRandom(t);
  for (let i = 0; i < 3000; i++) {
    const host = randomIpv6(random);
    const peer = peerOf(host);
    const text = peerText(peer);
    if (peer.peer0 === 0 && peer.peer1 === 0 && peer.peer2 === 0xffff) continue;
    assert.equal(isIP(text), 6, `${label}: ${text}`);
    assert.equal(`[${text}]`, new URL(`http://[${host}]/`).hostname, label);
    assert.equal(text, decodeSockaddr(encodeSockaddr(host, 1)!, 0)!.host, label);
  }
});

test('an address of no known family is "unknown"', () => {
  assert.equal(peerText({ peerFamily: 0, peerPort: 0, peer0: 1, peer1: 2, peer2: 3, peer3: 4 }), 'unknown');
});
