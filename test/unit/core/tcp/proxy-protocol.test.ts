import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import tls from 'node:tls';
import { encodeSockaddr, Family } from '../../../../core/ffi/sockaddr.ts';
import type { PeerAddress } from '../../../../core/io/connection.ts';
import { ProxyError, proxyErrorSentence } from '../../../../core/tcp/proxy-errors.ts';
import {
  type ByteRange,
  ProxyCommand,
  ProxyFamily,
  ProxyHeader,
  ProxyTlvs,
  ProxyTransport,
  SslClient,
} from '../../../../core/tcp/proxy-header.ts';
import { parseProxyHeader } from '../../../../core/tcp/proxy-protocol.ts';
import { PROXY_V1_BYTES_MAX, writeProxyV1 } from '../../../../core/tcp/proxy-v1.ts';
import { PROXY_V2_BYTES_MAX, proxyV2BytesMax, writeProxyV2, writeProxyV2Local } from '../../../../core/tcp/proxy-v2.ts';
import { nameOf } from '../../../support/name-of.ts';

/** The address that sockaddr.ts makes of a text, in words. */
function address(host: string, port = 0): PeerAddress {
  const bytes = encodeSockaddr(host, port)!;
  const view = new DataView(bytes.buffer);
  if (bytes.length < 24) {
    return { peerFamily: Family.INET, peerPort: port, peer0: view.getInt32(4), peer1: 0, peer2: 0, peer3: 0 };
  }
  const [peer0, peer1, peer2, peer3] = [8, 12, 16, 20].map((at) => view.getInt32(at));
  return { peerFamily: Family.INET6, peerPort: port, peer0: peer0!, peer1: peer1!, peer2: peer2!, peer3: peer3! };
}

const nobody: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };

/** Parsed bytes: what was found, or the name of the error, or 'more'. */
interface Reading {
  outcome: string;
  consumed: number;
  header: ProxyHeader;
  text(range: ByteRange): string | undefined;
}

function read(input: Uint8Array | string, length?: number): Reading {
  const bytes = typeof input === 'string' ? Buffer.from(input, 'latin1') : input;
  const memory = new Uint8Array(bytes.length + 32).fill(0xee);
  memory.set(bytes, 16);
  const header = new ProxyHeader();
  const consumed = parseProxyHeader(memory, 16, length ?? bytes.length, header);
  return {
    outcome: consumed > 0 ? 'header' : consumed === 0 ? 'more' : nameOf(ProxyError, -consumed),
    consumed,
    header,
    text: (range) =>
      range.offset < 0
        ? undefined
        : Buffer.from(memory.subarray(range.offset, range.offset + range.length)).toString('latin1'),
  };
}

/** Shorter inputs ask for more until the outcome is known, and then it stays. */
function growsTo(input: Uint8Array | string, outcome: string): void {
  const bytes = typeof input === 'string' ? Buffer.from(input, 'latin1') : input;
  let known = false;
  for (let length = 0; length <= bytes.length; length++) {
    const part = read(bytes, length);
    if (part.outcome === 'more') {
      assert.ok(!known, 'an answer stays');
      assert.ok(part.header.bytesNeeded > length);
      if (outcome === 'header') assert.ok(part.header.bytesNeeded <= bytes.length, `${part.header.bytesNeeded}`);
    } else {
      assert.equal(part.outcome, outcome, `at ${length} bytes`);
      known = true;
    }
  }
  assert.ok(known || outcome === 'more');
}

// -- version 1 ---------------------------------------------------------------------------

const lines: [line: string, source: PeerAddress, destination: PeerAddress][] = [
  ['PROXY TCP4 192.168.0.1 192.168.0.11 56324 443', address('192.168.0.1', 56324), address('192.168.0.11', 443)],
  ['PROXY TCP4 255.255.255.255 0.0.0.0 65535 0', address('255.255.255.255', 65535), address('0.0.0.0', 0)],
  ['PROXY TCP6 2001:db8::1 ::1 1 2', address('2001:db8::1', 1), address('::1', 2)],
  ['PROXY TCP6 :: 1:: 1 2', address('::', 1), address('1::', 2)],
  ['PROXY TCP6 1:2:3:4:5:6:7:8 1:2:3:4:5:6:7:: 1 2', address('1:2:3:4:5:6:7:8', 1), address('1:2:3:4:5:6:7:0', 2)],
  ['PROXY TCP6 ::2:3:4:5:6:7:8 FE80::ABCD:ef 1 2', address('0:2:3:4:5:6:7:8', 1), address('fe80::abcd:ef', 2)],
  ['PROXY TCP6 ::ffff:1.2.3.4 64:ff9b::8.8.8.8 1 2', address('::ffff:1.2.3.4', 1), address('64:ff9b::8.8.8.8', 2)],
  [
    'PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535',
    address('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 65535),
    address('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 65535),
  ],
];

for (const [line, source, destination] of lines) {
  test(`"${line}" gives both addresses`, () => {
    const found = read(`${line}\r\nGET / HTTP/1.1\r\n`);
    assert.equal(found.outcome, 'header');
    assert.equal(found.consumed, line.length + 2);
    assert.equal(found.header.version, 1);
    assert.equal(found.header.command, ProxyCommand.PROXY);
    assert.equal(found.header.family, source.peerFamily);
    assert.equal(found.header.transport, ProxyTransport.STREAM);
    assert.deepEqual(found.header.source, source);
    assert.deepEqual(found.header.destination, destination);
    growsTo(`${line}\r\n`, 'header');
  });
}

test('UNKNOWN is accepted with anything behind it, and gives no address', () => {
  for (const rest of ['', ' ffff::1 ::1 65535 65535', ' what ever', ' ']) {
    const found = read(`PROXY UNKNOWN${rest}\r\n`);
    assert.equal(found.consumed, 15 + rest.length);
    assert.equal(found.header.family, ProxyFamily.NONE);
    assert.deepEqual(found.header.source, nobody);
    growsTo(`PROXY UNKNOWN${rest}\r\n`, 'header');
  }
});

test('a line may have 107 bytes and no more', () => {
  const line = (size: number): string => `PROXY UNKNOWN ${'x'.repeat(size - 16)}\r\n`;
  assert.equal(read(line(PROXY_V1_BYTES_MAX)).consumed, 107);
  growsTo(line(PROXY_V1_BYTES_MAX), 'header');
  growsTo(line(PROXY_V1_BYTES_MAX + 1), 'LINE_TOO_LONG');
  growsTo(`PROXY ${'x'.repeat(200)}`, 'LINE_TOO_LONG');
});

const wrongLines: [string, string][] = [
  ['GET / HTTP/1.1\r\n', 'NOT_PROXY'],
  ['proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n', 'NOT_PROXY'],
  ['PROXY\r\n', 'NOT_PROXY'],
  ['\x16\x03\x01\x02\x00\x01', 'NOT_PROXY'],
  ['\r\n\r\nGET /', 'NOT_PROXY'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n', 'LINE_END_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rX', 'LINE_END_INVALID'],
  ['PROXY UNKNOWN\rX\r\n', 'LINE_END_INVALID'],
  ['PROXY \r\n', 'PROTOCOL_UNKNOWN'],
  ['PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n', 'PROTOCOL_UNKNOWN'],
  ['PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n', 'PROTOCOL_UNKNOWN'],
  ['PROXY TCP4\r\n', 'PROTOCOL_UNKNOWN'],
  ['PROXY UNKNOWNS\r\n', 'PROTOCOL_UNKNOWN'],
  ['PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n', 'PROTOCOL_UNKNOWN'],
  ['PROXY TCP4 1.2.3.4\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 1.2.3.4.5 1.2.3.4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2..4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 ::1 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::1 1:2:3:4:5:6:7 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::1 1:2:3:4:5:6:7:8:9 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::1 1:2:3:4:5:6:7:8:: 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::1 1:2:3:4::5:6:7:8 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 1::2::3 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 1:::2 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::: ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 : ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 :1::2 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 1::2: ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 12345:: ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 g:: ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 [::1] ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 1:2:3:4:5:6:7:1.2.3.4 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::1.2.3 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP6 ::1.2.3.4:5 ::1 1 2\r\n', 'ADDRESS_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 123456 2\r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n', 'PORT_INVALID'],
  ['PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n', 'PORT_INVALID'],
];

for (const [line, expected] of wrongLines) {
  test(`${JSON.stringify(line)}: ${expected}`, () => {
    assert.equal(read(line).outcome, expected);
    growsTo(line, expected);
  });
}

// -- version 2 ---------------------------------------------------------------------------

const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');
const IPV4 = Buffer.from('c0a80001c0a8000bdc0401bb', 'hex');
const IPV6 = Buffer.from(`20010db8${'00'.repeat(11)}01${'00'.repeat(15)}0100010002`, 'hex');

function binary(versionCommand: number, family: number, ...content: Uint8Array[]): Buffer {
  const block = Buffer.concat(content);
  return Buffer.concat([SIGNATURE, Buffer.of(versionCommand, family, block.length >> 8, block.length & 255), block]);
}

function tlv(type: number, value: Uint8Array | string): Buffer {
  const bytes = Buffer.from(value as string);
  return Buffer.concat([Buffer.of(type, bytes.length >> 8, bytes.length & 255), bytes]);
}

test('binary IPv4 and IPv6 addresses are read, for streams and datagrams', () => {
  for (const transport of [ProxyTransport.STREAM, ProxyTransport.DGRAM]) {
    const four = read(Buffer.concat([binary(0x21, 0x10 | transport, IPV4), Buffer.from('GET')]));
    assert.equal(four.consumed, 28);
    assert.deepEqual(
      [four.header.version, four.header.command, four.header.family, four.header.transport],
      [2, ProxyCommand.PROXY, Family.INET, transport],
    );
    assert.deepEqual(four.header.source, address('192.168.0.1', 56324));
    assert.deepEqual(four.header.destination, address('192.168.0.11', 443));
    const six = read(binary(0x21, 0x20 | transport, IPV6));
    assert.equal(six.consumed, 52);
    assert.equal(six.header.family, Family.INET6);
    assert.deepEqual(six.header.source, address('2001:db8::1', 1));
    assert.deepEqual(six.header.destination, address('::1', 2));
  }
  growsTo(binary(0x21, 0x11, IPV4), 'header');
  growsTo(binary(0x21, 0x21, IPV6), 'header');
});

test('a header without usable addresses is skipped as a whole', () => {
  for (const [name, bytes, command] of [
    ['LOCAL', binary(0x20, 0), ProxyCommand.LOCAL],
    ['LOCAL with addresses', binary(0x20, 0x11, IPV4), ProxyCommand.LOCAL],
    ['LOCAL of an undefined family', binary(0x20, 0xff, Buffer.from('x')), ProxyCommand.LOCAL],
    ['PROXY of no family', binary(0x21, 0x00, Buffer.from('anything')), ProxyCommand.PROXY],
    ['PROXY of no transport', binary(0x21, 0x10, Buffer.of(1)), ProxyCommand.PROXY],
    ['PROXY of no family, but a transport', binary(0x21, 0x01), ProxyCommand.PROXY],
  ] as const) {
    const found = read(bytes);
    assert.equal(found.consumed, bytes.length, name);
    assert.equal(found.header.command, command, name);
    assert.equal(found.header.family, ProxyFamily.NONE, name);
    assert.deepEqual(found.header.source, nobody, name);
    growsTo(bytes, 'header');
  }
});

test('unix sockets have no IP address, but their TLVs are read', () => {
  const found = read(binary(0x21, 0x31, Buffer.alloc(216, 65), tlv(2, 'a.example')));
  assert.equal(found.header.family, ProxyFamily.UNIX);
  assert.deepEqual(found.header.source, nobody);
  assert.equal(found.text(found.header.tlvs.authority), 'a.example');
});

test('TLVs are found, and those of others and NOOP are skipped', () => {
  const ssl = Buffer.concat([
    Buffer.of(SslClient.SSL | SslClient.CERT_CONN, 0xff, 0xff, 0xff, 0xfe),
    tlv(0x21, 'TLSv1.3'),
    tlv(0x22, 'alice'),
    tlv(0x23, 'AES'),
    tlv(0x24, 'RSA-SHA256'),
    tlv(0x25, 'RSA2048'),
    tlv(0x2f, 'later'),
  ]);
  const bytes = binary(
    0x21,
    0x11,
    IPV4,
    tlv(4, ''),
    tlv(1, 'h2'),
    tlv(4, 'xxxx'),
    tlv(2, 'Shop.Example'),
    tlv(5, 'a-1'),
    tlv(0x30, 'blue'),
    tlv(0xea, 'vpce-1'),
    tlv(0xea, 'vpce-2'),
    tlv(0x20, ssl),
  );
  const { header, text, outcome } = read(bytes);
  assert.equal(outcome, 'header');
  const { tlvs } = header;
  assert.equal(text(tlvs.alpn), 'h2');
  assert.equal(text(tlvs.authority), 'Shop.Example');
  assert.equal(text(tlvs.uniqueId), 'a-1');
  assert.equal(text(tlvs.netns), 'blue');
  assert.ok(tlvs.ssl);
  assert.equal(tlvs.sslClient, 3);
  assert.equal(tlvs.sslVerify, -2);
  assert.equal(text(tlvs.sslVersion), 'TLSv1.3');
  assert.equal(text(tlvs.sslCommonName), 'alice');
  assert.equal(text(tlvs.sslCipher), 'AES');
  assert.equal(text(tlvs.sslSignature), 'RSA-SHA256');
  assert.equal(text(tlvs.sslKey), 'RSA2048');
  assert.equal(tlvs.checksum, false);
  growsTo(bytes, 'header');
});

test('nothing of one header is left in the result of the next', () => {
  const memory = new Uint8Array(512);
  const full = binary(0x21, 0x21, IPV6, tlv(1, 'h2'), tlv(0x20, Buffer.of(1, 0, 0, 0, 1)));
  const header = new ProxyHeader();
  memory.set(full);
  assert.equal(parseProxyHeader(memory, 0, full.length, header), full.length);
  const local = binary(0x20, 0);
  memory.set(local);
  assert.equal(parseProxyHeader(memory, 0, local.length, header), local.length);
  const fresh = new ProxyHeader();
  parseProxyHeader(memory, 0, local.length, fresh);
  assert.deepEqual(header, fresh);
});

const ssl = (...content: Uint8Array[]): Buffer => tlv(0x20, Buffer.concat([Buffer.of(1, 0, 0, 0, 0), ...content]));
const wrongHeaders: [string, Uint8Array, string][] = [
  ['version 1', binary(0x11, 0x11, IPV4), 'VERSION_UNKNOWN'],
  ['version 3', binary(0x31, 0x11, IPV4), 'VERSION_UNKNOWN'],
  ['command 2', binary(0x22, 0x11, IPV4), 'COMMAND_UNKNOWN'],
  ['address family 4', binary(0x21, 0x41, IPV4), 'FAMILY_UNKNOWN'],
  ['transport 3', binary(0x21, 0x13, IPV4), 'FAMILY_UNKNOWN'],
  ['IPv4 addresses cut short', binary(0x21, 0x11, IPV4.subarray(1)), 'ADDRESSES_TRUNCATED'],
  ['IPv6 addresses cut short', binary(0x21, 0x21, IPV4), 'ADDRESSES_TRUNCATED'],
  ['unix addresses cut short', binary(0x21, 0x31, Buffer.alloc(215)), 'ADDRESSES_TRUNCATED'],
  ['a TLV without a length', binary(0x21, 0x11, IPV4, Buffer.of(4, 0)), 'TLV_MALFORMED'],
  ['a TLV that is too long', binary(0x21, 0x11, IPV4, Buffer.of(4, 0, 1)), 'TLV_MALFORMED'],
  ['an identifier of 129 bytes', binary(0x21, 0x11, IPV4, tlv(5, Buffer.alloc(129))), 'TLV_MALFORMED'],
  ['an SSL TLV that is too short', binary(0x21, 0x11, IPV4, tlv(0x20, 'abcd')), 'TLV_MALFORMED'],
  ['an SSL field without a length', binary(0x21, 0x11, IPV4, ssl(Buffer.of(0x21, 0))), 'TLV_MALFORMED'],
  ['an SSL field beyond its TLV', binary(0x21, 0x11, IPV4, ssl(Buffer.of(0x21, 0, 3)), tlv(4, '')), 'TLV_MALFORMED'],
  ['a checksum of 3 bytes', binary(0x21, 0x11, IPV4, tlv(3, 'abc')), 'TLV_MALFORMED'],
  ['two authorities', binary(0x21, 0x11, IPV4, tlv(2, 'a'), tlv(2, 'b')), 'TLV_DUPLICATE'],
  ['two ALPN protocols', binary(0x21, 0x11, IPV4, tlv(1, ''), tlv(1, 'h2')), 'TLV_DUPLICATE'],
  ['two SSL TLVs', binary(0x21, 0x11, IPV4, ssl(), ssl()), 'TLV_DUPLICATE'],
  ['two common names', binary(0x21, 0x11, IPV4, ssl(tlv(0x22, 'a'), tlv(0x22, 'b'))), 'TLV_DUPLICATE'],
  ['two checksums', binary(0x21, 0x11, IPV4, tlv(3, 'abcd'), tlv(3, 'abcd')), 'TLV_DUPLICATE'],
  ['a wrong checksum', binary(0x21, 0x11, IPV4, tlv(3, 'abcd')), 'CHECKSUM_WRONG'],
  ['more than the limit', binary(0x21, 0x11, Buffer.alloc(PROXY_V2_BYTES_MAX - 15)), 'TOO_LARGE'],
];

for (const [what, bytes, expected] of wrongHeaders) {
  test(`a binary header with ${what}: ${expected}`, () => {
    assert.equal(read(bytes).outcome, expected);
    growsTo(bytes, expected);
  });
}

test('a binary header may be as large as the limit', () => {
  const bytes = binary(0x21, 0x11, IPV4, tlv(4, Buffer.alloc(PROXY_V2_BYTES_MAX - 31)));
  assert.equal(bytes.length, PROXY_V2_BYTES_MAX);
  assert.equal(read(bytes).consumed, PROXY_V2_BYTES_MAX);
});

test('a checksum is verified over the whole header, with its own place as zeros', () => {
  // RFC 3720 §B.4 and others give CRC32C("123456789") = e3069283; the rest follows from an implementation by bits.
  const crc = (bytes: Uint8Array): number => {
    let value = 0xffff_ffff;
    for (const byte of bytes) {
      value ^= byte;
      for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f6_3b78 : value >>> 1;
    }
    return ~value >>> 0;
  };
  assert.equal(crc(Buffer.from('123456789')), 0xe306_9283);
  const bytes = binary(0x21, 0x11, IPV4, tlv(2, 'before'), tlv(3, Buffer.alloc(4)), tlv(1, 'after'));
  const at = bytes.length - 'after'.length - 3 - 4;
  bytes.writeUInt32BE(crc(bytes), at);
  const found = read(Buffer.concat([bytes, Buffer.from('not part of it')]));
  assert.equal(found.outcome, 'header');
  assert.ok(found.header.tlvs.checksum);
  for (let i = 16; i < bytes.length; i++) {
    // Without its type there is no checksum.
    if (i === at - 3) continue;
    const damaged = Buffer.from(bytes);
    damaged[i]! ^= 0x10;
    assert.notEqual(read(damaged).outcome, 'header', `byte ${i}`);
  }
});

test('each error has a sentence', () => {
  const sentences = Object.values(ProxyError).map(proxyErrorSentence);
  assert.equal(new Set(sentences).size, sentences.length);
  for (const sentence of sentences) assert.match(sentence, /^The .*\.$/);
  assert.equal(proxyErrorSentence(99), 'Unknown PROXY protocol error.');
});

// -- writing -----------------------------------------------------------------------------

/** Bytes that `write` puts into memory behind some that must stay; `values` lie at offset 1000. */
function written(write: (memory: Uint8Array, at: number) => number, values = ''): Buffer {
  const memory = new Uint8Array(2048).fill(0xee);
  memory.set(Buffer.from(values), 1000);
  const end = write(memory, 3);
  assert.ok(memory.subarray(0, 3).every((byte) => byte === 0xee));
  assert.ok(memory.subarray(end, 1000).every((byte) => byte === 0xee));
  return Buffer.from(memory.subarray(3, end));
}

const four = address('192.168.0.1', 56324);
const fourServer = address('10.0.0.255', 443);
const six = address('2001:db8::a:1', 1);
const mapped = address('::ffff:192.168.0.1', 56324);

test('lines of version 1 are written as the specification shows them', () => {
  const line = (source: PeerAddress, destination: PeerAddress): string =>
    written((memory, at) => writeProxyV1(memory, at, source, destination)).toString();
  assert.equal(line(four, fourServer), 'PROXY TCP4 192.168.0.1 10.0.0.255 56324 443\r\n');
  assert.equal(line(mapped, fourServer), 'PROXY TCP4 192.168.0.1 10.0.0.255 56324 443\r\n');
  assert.equal(line(six, address('::', 0)), 'PROXY TCP6 2001:db8:0:0:0:0:a:1 0:0:0:0:0:0:0:0 1 0\r\n');
  assert.equal(line(four, six), 'PROXY TCP6 0:0:0:0:0:ffff:c0a8:1 2001:db8:0:0:0:0:a:1 56324 1\r\n');
  assert.equal(line(nobody, four), 'PROXY UNKNOWN\r\n');
  assert.equal(line(four, nobody), 'PROXY UNKNOWN\r\n');
  const longest = address('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 65535);
  assert.equal(line(longest, longest).length, 104);
});

test('what is written in version 1 and 2 is read back', () => {
  for (const [source, destination] of [
    [four, fourServer],
    [six, address('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 65535)],
    [address('255.10.100.9', 10), address('0.0.0.0', 9999)],
  ] as const) {
    for (const write of [writeProxyV1, writeProxyV2]) {
      const bytes = written((memory, at) => write(memory, at, source, destination, null));
      const found = read(bytes);
      assert.equal(found.consumed, bytes.length);
      assert.deepEqual(found.header.source, source);
      assert.deepEqual(found.header.destination, destination);
    }
  }
  const mixed = read(written((memory, at) => writeProxyV2(memory, at, four, six, null)));
  assert.deepEqual(mixed.header.source, mapped);
  assert.deepEqual(mixed.header.destination, six);
  const known = read(written((memory, at) => writeProxyV2(memory, at, mapped, fourServer, null)));
  assert.deepEqual(known.header.source, four);
});

test('version 2 is written byte for byte as the specification draws it', () => {
  assert.equal(
    written((memory, at) => writeProxyV2(memory, at, four, fourServer, null)).toString('hex'),
    `${SIGNATURE.toString('hex')}2111000cc0a800010a0000ffdc0401bb`,
  );
  assert.equal(
    written((memory, at) => writeProxyV2(memory, at, nobody, fourServer, null)).toString('hex'),
    `${SIGNATURE.toString('hex')}20000000`,
  );
  assert.equal(written(writeProxyV2Local).toString('hex'), `${SIGNATURE.toString('hex')}20000000`);
});

test('TLVs and the checksum are written so that they are read back, within the announced bound', () => {
  const values = 'h2a.exampleid-1blueTLSv1.3aliceAESSHAKEY';
  const tlvs = new ProxyTlvs();
  let at = 1000;
  const take = (range: ByteRange, text: string): void => {
    assert.ok(values.slice(at - 1000).startsWith(text));
    range.set(at, text.length);
    at += text.length;
  };
  take(tlvs.alpn, 'h2');
  take(tlvs.authority, 'a.example');
  take(tlvs.uniqueId, 'id-1');
  take(tlvs.netns, 'blue');
  tlvs.ssl = true;
  tlvs.sslClient = SslClient.SSL;
  tlvs.sslVerify = 1;
  take(tlvs.sslVersion, 'TLSv1.3');
  take(tlvs.sslCommonName, 'alice');
  take(tlvs.sslCipher, 'AES');
  take(tlvs.sslSignature, 'SHA');
  take(tlvs.sslKey, 'KEY');
  tlvs.checksum = true;
  const bytes = written((memory, to) => writeProxyV2(memory, to, six, six, tlvs), values);
  assert.equal(bytes.length, proxyV2BytesMax(tlvs));
  const { header, text, consumed } = read(bytes);
  assert.equal(consumed, bytes.length);
  const found = header.tlvs;
  assert.deepEqual([found.alpn, found.authority, found.uniqueId, found.netns].map(text), [
    'h2',
    'a.example',
    'id-1',
    'blue',
  ]);
  assert.deepEqual([found.ssl, found.sslClient, found.sslVerify, found.checksum], [true, 1, 1, true]);
  assert.deepEqual(
    [found.sslVersion, found.sslCommonName, found.sslCipher, found.sslSignature, found.sslKey].map(text),
    ['TLSv1.3', 'alice', 'AES', 'SHA', 'KEY'],
  );
  tlvs.reset();
  assert.equal(written((memory, to) => writeProxyV2(memory, to, six, six, tlvs)).length, proxyV2BytesMax(null));
});

// -- against HAProxy ---------------------------------------------------------------------

const skip = ['haproxy', 'openssl'].some((tool) => spawnSync(tool, ['-v']).error !== undefined)
  ? 'haproxy or openssl is not installed'
  : false;

interface Proxy {
  /** Its answer to a request on `accept`: what it takes the connection's addresses to be. */
  asked(header: Uint8Array): Promise<string>;
  /** What it sends to the server behind it for a connection to `front` that starts with `header`. */
  relayed(front: string, header: Uint8Array, useTls?: boolean): Promise<Buffer>;
}

/** A HAProxy that listens on, and connects to, unix sockets only: there are no ports to collide. */
async function startHaproxy(t: TestContext): Promise<Proxy> {
  const folder = mkdtempSync(join(tmpdir(), 'proxy-protocol-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const pem = join(folder, 'site.pem');
  const made = spawn('openssl', [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'],
    ...['-subj', '/CN=site.example', '-keyout', `${pem}.key`, '-out', pem],
  ]);
  const [code] = await once(made, 'close');
  assert.equal(code, 0);

  let waiting = Promise.withResolvers<Buffer>();
  const backend = net.createServer((socket) => {
    socket.on('error', () => {});
    let bytes = Buffer.alloc(0);
    socket.on('data', (piece: Buffer) => {
      bytes = Buffer.concat([bytes, piece]);
      if (bytes.includes('END')) {
        waiting.resolve(bytes);
        socket.destroy();
      }
    });
  });
  backend.listen(join(folder, 'backend'));
  await once(backend, 'listening');
  t.after(() => backend.close());

  const v2 = 'send-proxy-v2 proxy-v2-options crc32c,unique-id,authority,ssl,ssl-cipher,cert-sig,cert-key,cert-cn';
  const config = join(folder, 'haproxy.cfg');
  writeFileSync(
    config,
    `global
  maxconn 100
defaults
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend accept
  mode http
  bind unix@${folder}/accept accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"
listen line
  mode tcp
  bind unix@${folder}/line accept-proxy
  server s unix@${folder}/backend send-proxy
listen binary
  mode tcp
  unique-id-format id-%ci
  bind unix@${folder}/binary accept-proxy
  bind unix@${folder}/tls accept-proxy ssl crt ${pem} alpn h2,http/1.1
  server s unix@${folder}/backend ${v2}
`,
  );
  const child = spawn('haproxy', ['-db', '-f', config], { stdio: ['ignore', 'ignore', 'pipe'] });
  let output = '';
  child.stderr.on('data', (text) => {
    output += text;
  });
  t.after(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'close');
  });

  /** Connects as soon as it listens. */
  const connect = async (front: string): Promise<net.Socket> => {
    for (;;) {
      assert.equal(child.exitCode, null, output);
      const socket = net.connect(join(folder, front));
      t.after(() => socket.destroy());
      const outcome = Promise.withResolvers<boolean>();
      socket.once('connect', () => outcome.resolve(true));
      socket.once('error', () => outcome.resolve(false));
      if (await outcome.promise) {
        socket.on('error', () => {});
        return socket;
      }
      await setTimeout(10);
    }
  };
  return {
    async asked(header) {
      const socket = await connect('accept');
      socket.write(Buffer.concat([header, Buffer.from('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')]));
      let text = '';
      socket.on('data', (piece) => {
        text += piece;
      });
      const closed = Promise.withResolvers<void>();
      socket.once('close', () => closed.resolve());
      await closed.promise;
      return text === '' ? 'refused' : text.slice(text.indexOf('\r\n\r\n') + 4);
    },
    async relayed(front, header, useTls = false) {
      waiting = Promise.withResolvers<Buffer>();
      const socket = await connect(front);
      socket.write(header);
      if (useTls) {
        const secure = tls.connect({
          socket,
          servername: 'site.example',
          ALPNProtocols: ['http/1.1'],
          rejectUnauthorized: false,
        });
        secure.on('error', () => {});
        secure.once('secureConnect', () => secure.write('END'));
      } else {
        socket.write('END');
      }
      return waiting.promise;
    },
  };
}

test('HAProxy understands what is written, and is understood', { timeout: 60_000, skip }, async (t) => {
  const proxy = await startHaproxy(t);

  await t.test('headers of both versions say the same to it', async () => {
    for (const [source, destination, expected] of [
      [four, fourServer, '192.168.0.1 56324 10.0.0.255 443'],
      [mapped, fourServer, '192.168.0.1 56324 10.0.0.255 443'],
      [six, address('::1', 65535), '2001:db8::a:1 1 ::1 65535'],
      [four, six, '::ffff:192.168.0.1 56324 2001:db8::a:1 1'],
    ] as const) {
      for (const write of [writeProxyV1, writeProxyV2]) {
        const header = written((memory, at) => write(memory, at, source, destination, null));
        assert.equal((await proxy.asked(header)).trim(), expected);
      }
    }
  });

  await t.test('it verifies and takes TLVs and checksum', async () => {
    const tlvs = new ProxyTlvs();
    tlvs.authority.set(1000, 9);
    tlvs.uniqueId.set(1009, 4);
    tlvs.checksum = true;
    const header = written((memory, at) => writeProxyV2(memory, at, four, fourServer, tlvs), 'a.exampleid-1');
    assert.equal(await proxy.asked(header), '192.168.0.1 56324 10.0.0.255 443 a.example id-1');
    // The same with one bit of the address changed is refused, so the checksum is looked at.
    header[16]! ^= 1;
    assert.equal(await proxy.asked(header), 'refused');
  });

  await t.test('headers without an address are no obstacle', async () => {
    for (const write of [
      writeProxyV2Local,
      (memory: Uint8Array, at: number) => writeProxyV2(memory, at, nobody, four, null),
      (memory: Uint8Array, at: number) => writeProxyV1(memory, at, nobody, four),
    ]) {
      // The connection's own addresses: a unix socket has none to show.
      assert.equal((await proxy.asked(written(write))).trim(), '');
    }
  });

  await t.test('its lines are read', async () => {
    for (const [source, destination] of [
      [four, fourServer],
      [six, address('64:ff9b::1', 2)],
      [address('::ffff:1.2.3.4', 5), six],
    ] as const) {
      const header = written((memory, at) => writeProxyV2(memory, at, source, destination, null));
      const bytes = await proxy.relayed('line', header);
      const found = read(bytes);
      assert.equal(bytes.subarray(found.consumed).toString(), 'END');
      assert.deepEqual(found.header.source, source);
      assert.deepEqual(found.header.destination, destination);
    }
    const unknown = await proxy.relayed('line', written(writeProxyV2Local));
    const found = read(unknown);
    assert.equal(unknown.subarray(found.consumed).toString(), 'END');
    assert.equal(found.header.family, ProxyFamily.NONE);
  });

  await t.test('its binary headers are read', async () => {
    const header = written((memory, at) => writeProxyV1(memory, at, six, address('::1', 9)));
    const bytes = await proxy.relayed('binary', header);
    const found = read(bytes);
    assert.equal(bytes.subarray(found.consumed).toString(), 'END');
    assert.deepEqual(found.header.source, six);
    assert.deepEqual(found.header.destination, address('::1', 9));
    assert.ok(found.header.tlvs.checksum);
    assert.equal(found.text(found.header.tlvs.uniqueId), 'id-2001:db8::a:1');
    assert.equal(found.header.tlvs.sslClient & SslClient.SSL, 0);
  });

  await t.test('what it says about TLS is read', async () => {
    const header = written((memory, at) => writeProxyV2(memory, at, four, fourServer, null));
    const bytes = await proxy.relayed('tls', header, true);
    const { header: found, text, consumed } = read(bytes);
    assert.equal(bytes.subarray(consumed).toString(), 'END');
    assert.deepEqual(found.source, four);
    assert.ok(found.tlvs.checksum);
    assert.equal(text(found.tlvs.alpn), 'http/1.1');
    assert.equal(text(found.tlvs.authority), 'site.example');
    assert.ok(found.tlvs.ssl);
    assert.equal(found.tlvs.sslClient, SslClient.SSL);
    assert.equal(text(found.tlvs.sslVersion), 'TLSv1.3');
    assert.match(text(found.tlvs.sslCipher)!, /^TLS_/);
    assert.match(text(found.tlvs.sslSignature)!, /SHA256/i);
    assert.match(text(found.tlvs.sslKey)!, /EC256/);
    assert.equal(text(found.tlvs.sslCommonName), undefined);
  });
});
