// Socket addresses: the kernel's bytes for an address, and the address of the kernel's bytes.

import assert from 'node:assert/strict';
import { isIPv6 } from 'node:net';
import { test } from 'node:test';
import {
  decodeSockaddr,
  encodeSockaddr,
  Family,
  SOCKADDR_IN_BYTES,
  SOCKADDR_IN6_BYTES,
} from '../../../../core/ffi/sockaddr.ts';
import { seededRandom } from '../io/seed.ts';

/** The 16 address bytes of an IPv6 text. */
function addressBytes(host: string): string {
  return Buffer.from(encodeSockaddr(host, 0)!.subarray(8, 24)).toString('hex');
}

test('an IPv4 address lies in a sockaddr_in, port and address in network order', () => {
  const bytes = encodeSockaddr('192.0.2.255', 0x1f90)!;
  assert.deepEqual([...bytes], [2, 0, 0x1f, 0x90, 192, 0, 2, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
  assert.equal(bytes.length, SOCKADDR_IN_BYTES);
});

test('an IPv6 address lies in a sockaddr_in6 without flow and scope', () => {
  const bytes = encodeSockaddr('2001:db8::ff00:42', 65535)!;
  assert.equal(bytes.length, SOCKADDR_IN6_BYTES);
  assert.deepEqual([...bytes.subarray(0, 8)], [Family.INET6, 0, 255, 255, 0, 0, 0, 0]);
  assert.equal(addressBytes('2001:db8::ff00:42'), '20010db80000000000000000ff000042');
  assert.deepEqual([...bytes.subarray(24)], [0, 0, 0, 0]);
});

test('every way of writing an IPv6 address gives its bytes', () => {
  const cases: Record<string, string> = {
    '::': '0'.repeat(32),
    '::1': '1'.padStart(32, '0'),
    '1::': '0001'.padEnd(32, '0'),
    '1:2:3:4:5:6:7:8': '00010002000300040005000600070008',
    '1:2:3:4:5:6:7::': '00010002000300040005000600070000',
    '::2:3:4:5:6:7:8': '00000002000300040005000600070008',
    '1::8': '00010000000000000000000000000008',
    'FE80::AbCd': 'fe80000000000000000000000000abcd',
    '::ffff:192.0.2.1': '00000000000000000000ffffc0000201',
    '64:ff9b::1.2.3.4': '0064ff9b000000000000000001020304',
    '1:2:3:4:5:6:255.255.255.255': '000100020003000400050006ffffffff',
    'fe80::1%eth0': 'fe800000000000000000000000000001',
  };
  for (const [host, hex] of Object.entries(cases)) assert.equal(addressBytes(host), hex, host);
});

test('what is not an IP address has no bytes', () => {
  for (const host of [
    '',
    'localhost',
    '1.2.3',
    '1.2.3.4.5',
    '256.1.1.1',
    '01.2.3.4',
    '[::1]',
    ':::',
    '1::2::3',
    'g::',
    ' ::1',
  ]) {
    assert.equal(encodeSockaddr(host, 80), undefined, host);
  }
});

test('an address of another family is not decoded', () => {
  assert.equal(decodeSockaddr(new Uint8Array(28), 0), undefined);
  assert.equal(decodeSockaddr(Uint8Array.of(1, 0, 47, 0), 0), undefined);
});

test('random addresses and ports come back as they were, at any offset', (t) => {
  const { random, label } = seededRandom(t);
  for (let i = 0; i < 5000; i++) {
    const groups = Array.from({ length: 8 }, () => random.pick([0, 0, random.int(0, 0xffff), random.int(0, 15)]));
    const v4 = random.chance(0.3);
    const host = v4
      ? Array.from({ length: 4 }, () => random.int(0, 255)).join('.')
      : groups.map((group) => group.toString(16)).join(':');
    const port = random.int(0, 65535);
    const encoded = encodeSockaddr(host, port)!;
    const offset = random.int(0, 20);
    const memory = new Uint8Array(64).fill(0xa5);
    memory.set(encoded, offset);
    const decoded = decodeSockaddr(memory, offset)!;
    assert.equal(decoded.port, port, label);
    if (v4) {
      assert.equal(decoded.host, host, label);
      continue;
    }
    assert.equal(
      Buffer.from(encoded.subarray(8, 24)).toString('hex'),
      groups.map((g) => g.toString(16).padStart(4, '0')).join(''),
    );
    // An IPv4 address inside IPv6 comes back as the IPv4 address that it is.
    if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) continue;
    assert.ok(isIPv6(decoded.host), `${label}: ${decoded.host}`);
    assert.equal(`[${decoded.host}]`, new URL(`http://[${host}]/`).hostname, label);
  }
});

test('an IPv4 address mapped into IPv6 reads as IPv4', () => {
  assert.deepEqual(decodeSockaddr(encodeSockaddr('::ffff:198.51.100.7', 53)!, 0), { host: '198.51.100.7', port: 53 });
});
