// Bounded runs of the fuzzers for ClientHello, PROXY header and HTTP/2 frames. The seed is printed;
// repeat a run with FUZZ_SEED=<seed> node --test test/fuzz/wire-formats.test.ts

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, isIP } from 'node:net';
import { type TestContext, test } from 'node:test';
import { createServer } from 'node:tls';
import { encodeSockaddr } from '../../core/ffi/sockaddr.ts';
import { errorCodeName, errorCodeOf, FrameError, SCOPE_STREAM } from '../../core/http2/errors.ts';
import {
  checkFrame,
  Flag,
  FrameContent,
  FrameType,
  matchPreface,
  PREFACE,
  readDataContent,
  readHeadersContent,
  readWindowIncrement,
} from '../../core/http2/frames.ts';
import { applySettings, PeerSettings } from '../../core/http2/settings.ts';
import type { PeerAddress } from '../../core/io/connection.ts';
import { ProxyError } from '../../core/tcp/proxy-errors.ts';
import { type ByteRange, ProxyHeader, ProxyTlvs } from '../../core/tcp/proxy-header.ts';
import { parseProxyHeader } from '../../core/tcp/proxy-protocol.ts';
import { writeProxyV1 } from '../../core/tcp/proxy-v1.ts';
import { proxyV2BytesMax, writeProxyV2 } from '../../core/tcp/proxy-v2.ts';
import {
  CLIENT_HELLO_SCRATCH_BYTES,
  ClientHello,
  ClientHelloError,
  looksLikeHttp,
  parseClientHello,
} from '../../core/tls/client-hello.ts';
import { Random } from '../sim/random.ts';
import { nameOf } from '../support/name-of.ts';
import { record, records } from '../unit/core/tls/hello-fixture.ts';
import {
  damage,
  generateHello,
  generateHelloStream,
  generateIpv6,
  generateProxyStream,
  randomBytes,
} from './wire-formats-generate.ts';

const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32));

/** A generator for one test, and the words to repeat it with. */
function seeded(t: TestContext): { random: Random; label: string } {
  t.diagnostic(`FUZZ_SEED=${seed}`);
  return { random: new Random(seed), label: `FUZZ_SEED=${seed}` };
}

/** Where the input lies, with as much around it that nothing may look at. */
const MARGIN = 64;
const SCRATCH = 0;
const INPUT = CLIENT_HELLO_SCRATCH_BYTES + MARGIN;

/** What a parser says about some bytes, as plain data. */
type Parser = (memory: Uint8Array, offset: number, length: number) => { answer: number; findings: string };

/** The same input is parsed between three different surroundings; what lies in the scratch room differs as well. */
const CANARIES = [0x00, 0x41, 0xff];
const INPUT_BYTES_MAX = 8192;
const memories = CANARIES.map((canary) => Buffer.alloc(INPUT + INPUT_BYTES_MAX + MARGIN, canary));
const margins = CANARIES.map((canary) => Buffer.alloc(MARGIN, canary));

/**
 * Runs `parse` on the first `length` bytes of `input`, whose rest is not to be seen: the findings must
 * be the same in all surroundings, and input and surroundings as they were.
 */
function guarded(parse: Parser, input: Uint8Array, length: number, label: string): ReturnType<Parser> {
  assert.ok(length <= INPUT_BYTES_MAX);
  let first: ReturnType<Parser> | undefined;
  memories.forEach((memory, index) => {
    const margin = margins[index]!;
    const end = INPUT + length;
    memory.set(margin, INPUT - MARGIN);
    memory.set(input.subarray(0, length), INPUT);
    memory.set(margin, end);
    const result = parse(memory, INPUT, length);
    const kept =
      margin.equals(memory.subarray(INPUT - MARGIN, INPUT)) &&
      margin.equals(memory.subarray(end, end + MARGIN)) &&
      memory.compare(input, 0, length, INPUT, end) === 0;
    if (!kept) assert.fail(`${label}: the input or what is around it was written to`);
    first ??= result;
    if (result.answer !== first.answer || result.findings !== first.findings) {
      assert.fail(`${label}: depends on bytes outside the range: ${first.findings} or ${result.findings}`);
    }
  });
  return first!;
}

/** Some prefixes of `input`, in growing order, must each give 0 or what the whole gives. */
function checkGrowth(parse: Parser, random: Random, input: Uint8Array, label: string): number {
  const whole = guarded(parse, input, input.length, label);
  assert.ok(whole.answer <= input.length, `${label}: more consumed than there is`);
  const cuts = Array.from({ length: 8 }, () => random.int(0, input.length)).sort((a, b) => a - b);
  let known = false;
  for (const cut of cuts) {
    const part = guarded(parse, input, cut, label);
    if (part.answer === 0) {
      assert.ok(!known, `${label}: an answer was taken back at ${cut}`);
      continue;
    }
    known = true;
    assert.equal(part.answer, whole.answer, `${label}: another answer after ${cut} of ${input.length} bytes`);
    // Positive answers come with findings.
    if (part.answer > 0) assert.equal(part.findings, whole.findings, label);
  }
  return whole.answer;
}

function hex(input: Uint8Array): string {
  return Buffer.from(input).toString('hex');
}

function text(memory: Uint8Array, offset: number, length: number): string {
  return Buffer.from(memory.subarray(offset, offset + length)).toString('latin1');
}

const foundHello = new ClientHello();

const readHello: Parser = (memory, offset, length) => {
  const answer = parseClientHello(memory, offset, length, SCRATCH, foundHello);
  const { bytesNeeded, serverNameOffset, serverNameLength, alpnOffset, alpnLength } = foundHello;
  if (answer === 0) assert.ok(bytesNeeded > length, `${bytesNeeded} needed after ${length}`);
  const findings =
    answer <= 0
      ? String(bytesNeeded)
      : JSON.stringify([
          text(memory, serverNameOffset, serverNameLength),
          text(memory, alpnOffset, alpnLength),
          text(memory, foundHello.cipherOffset, foundHello.cipherCount * 2),
          foundHello.versionMax,
          foundHello.serverNameInvalid,
        ]);
  return { answer, findings };
};

const foundProxy = new ProxyHeader();

const readProxy: Parser = (memory, offset, length) => {
  const answer = parseProxyHeader(memory, offset, length, foundProxy);
  if (answer === 0) assert.ok(foundProxy.bytesNeeded > length);
  return { answer, findings: JSON.stringify(foundProxy) };
};

test('a ClientHello is read within its bytes, and the same however it arrives', (t) => {
  const { random, label } = seeded(t);
  const outcomes = new Set<string>();
  for (let i = 0; i < 3000; i++) {
    const input = generateHelloStream(random);
    const answer = checkGrowth(readHello, random, input, `${label} case ${i} ${hex(input)}`);
    outcomes.add(answer > 0 ? 'hello' : answer === 0 ? 'more' : nameOf(ClientHelloError, -answer));
  }
  for (const expected of ['hello', 'more', 'MALFORMED', 'SERVER_NAME_MALFORMED', 'ALPN_MALFORMED', 'RECORD_INVALID']) {
    assert.ok(outcomes.has(expected), `no case of ${expected} among ${[...outcomes]}`);
  }
});

test('a ClientHello in several records means the same as in one', (t) => {
  const { random, label } = seeded(t);
  for (let i = 0; i < 1000; i++) {
    const message = random.chance(0.5) ? generateHello(random) : damage(random, generateHello(random));
    // Damaged lengths would make the two end differently.
    if (message.length < 4 || message[0] !== 1 || message.readUIntBE(1, 3) !== message.length - 4) continue;
    const one = record(message);
    const several = records(message, [random.int(1, 5), random.int(1, 40), random.int(1, 400)]);
    const whole = guarded(readHello, one, one.length, label);
    const cut = guarded(readHello, several, several.length, label);
    const where = `${label} ${hex(message)}`;
    if (whole.answer > 0) assert.equal(cut.answer, several.length, where);
    else assert.equal(cut.answer, whole.answer, where);
    assert.equal(cut.findings, whole.findings, where);
  }
});

/** A TLS server that says which server name OpenSSL finds in a hello; undefined if it does not come to asking. */
async function startOpenssl(t: TestContext): Promise<(input: Buffer) => Promise<string | undefined>> {
  let asked: (name: string | undefined) => void = () => {};
  const server = createServer({
    SNICallback: (name, answer) => {
      asked(name);
      answer(null);
    },
  });
  server.on('tlsClientError', () => {});
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const { port } = server.address() as AddressInfo;
  return async (input) => {
    const socket = connect(port, '127.0.0.1');
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    const name = await new Promise<string | undefined>((resolve) => {
      asked = resolve;
      socket.on('error', () => {});
      socket.once('close', () => resolve(undefined));
      socket.resume();
      socket.end(input);
    });
    socket.destroy();
    await closed;
    return name;
  };
}

test('no server name is read where OpenSSL reads another', { timeout: 120_000 }, async (t) => {
  const { random, label } = seeded(t);
  const nameOfOpenssl = await startOpenssl(t);
  let agreed = 0;
  for (let i = 0; i < 600; i++) {
    const message = random.chance(0.5) ? generateHello(random) : damage(random, generateHello(random));
    if (message.length < 4) continue;
    const input = random.chance(0.5) ? record(message) : records(message, [random.int(1, 90), random.int(20, 200)]);
    const ours = new ClientHello();
    const memory = new Uint8Array(INPUT + input.length);
    memory.set(input, INPUT);
    const answer = parseClientHello(memory, INPUT, input.length, SCRATCH, ours);
    const name = await nameOfOpenssl(input);
    // Names beyond ASCII come decoded as UTF-8, and are no hostnames.
    if (name === undefined || name === '') continue;
    const where = `${label} case ${i}: OpenSSL has ${JSON.stringify(name)} in ${hex(input)}`;
    assert.ok(answer > 0, `${where}, and we ${nameOf(ClientHelloError, -answer)}`);
    if (ours.serverNameInvalid) continue;
    const expected = name.toLowerCase().replace(/\.$/, '');
    assert.equal(text(memory, ours.serverNameOffset, ours.serverNameLength), expected, where);
    agreed++;
  }
  assert.ok(agreed > 8, `only ${agreed} names were compared`);
});

test('a PROXY header is read within its bytes, and the same however it arrives', (t) => {
  const { random, label } = seeded(t);
  const outcomes = new Set<string>();
  for (let i = 0; i < 6000; i++) {
    const input = generateProxyStream(random);
    const answer = checkGrowth(readProxy, random, input, `${label} case ${i} ${hex(input)}`);
    outcomes.add(answer > 0 ? 'header' : answer === 0 ? 'more' : nameOf(ProxyError, -answer));
  }
  for (const expected of ['header', 'more', 'ADDRESS_INVALID', 'TLV_MALFORMED', 'CHECKSUM_WRONG', 'FAMILY_UNKNOWN']) {
    assert.ok(outcomes.has(expected), `no case of ${expected} among ${[...outcomes]}`);
  }
});

test('a PROXY line takes exactly the IPv6 addresses that the system takes', (t) => {
  const { random, label } = seeded(t);
  let valid = 0;
  const cases = 5000;
  for (let i = 0; i < cases; i++) {
    const host = generateIpv6(random);
    const line = Buffer.from(`PROXY TCP6 ${host} ::1 1 2\r\n`);
    if (line.length > 107) continue;
    const header = new ProxyHeader();
    const answer = parseProxyHeader(line, 0, line.length, header);
    const where = `${label} ${host}`;
    if (isIP(host) !== 6) {
      assert.ok(answer < 0, `${where} was accepted`);
      continue;
    }
    valid++;
    assert.ok(answer > 0, `${where} was refused`);
    const view = new DataView(encodeSockaddr(host, 0)!.buffer);
    const { peer0, peer1, peer2, peer3 } = header.source;
    assert.deepEqual(
      [peer0, peer1, peer2, peer3],
      [8, 12, 16, 20].map((at) => view.getInt32(at)),
      where,
    );
  }
  assert.ok(valid > cases / 10 && valid < cases, `${valid} of ${cases} addresses were valid`);
});

test('a written PROXY header is read back as it was meant', (t) => {
  const { random, label } = seeded(t);
  const memory = new Uint8Array(4096);
  const tlvs = new ProxyTlvs();
  const header = new ProxyHeader();
  const word = (): number => random.pick([0, 1, 0xffff, random.next()]) | 0;
  for (let i = 0; i < 3000; i++) {
    memory.set(randomBytes(random, 300), 3000);
    const four = random.chance(0.5);
    const peer = (): PeerAddress => ({
      peerFamily: four ? 2 : 10,
      peerPort: random.int(0, 0xffff),
      peer0: four ? word() : word() | 1,
      peer1: four ? 0 : word(),
      peer2: four ? 0 : word(),
      peer3: four ? 0 : word(),
    });
    const [source, destination] = [peer(), peer()];
    tlvs.reset();
    const fill = (range: ByteRange): void => {
      if (random.chance(0.5)) range.set(random.int(3000, 3100), random.int(0, 60));
    };
    for (const range of [tlvs.alpn, tlvs.authority, tlvs.uniqueId, tlvs.netns]) fill(range);
    tlvs.ssl = random.chance(0.5);
    if (tlvs.ssl) {
      tlvs.sslClient = random.int(0, 255);
      tlvs.sslVerify = word();
      for (const range of [tlvs.sslVersion, tlvs.sslCommonName, tlvs.sslCipher, tlvs.sslSignature, tlvs.sslKey]) {
        fill(range);
      }
    }
    tlvs.checksum = random.chance(0.5);
    const binary = random.chance(0.7);
    const end = binary
      ? writeProxyV2(memory, 5, source, destination, tlvs)
      : writeProxyV1(memory, 5, source, destination);
    const where = `${label} case ${i} ${hex(memory.subarray(5, end))}`;
    assert.equal(parseProxyHeader(memory, 5, end - 5, header), end - 5, where);
    assert.deepEqual([header.source, header.destination], [source, destination], where);
    if (!binary) continue;
    assert.ok(end - 5 <= proxyV2BytesMax(tlvs), where);
    const content = (from: ProxyTlvs): string[] =>
      Object.entries(from).map(([name, value]) =>
        typeof value === 'object'
          ? `${name} ${value.offset < 0 ? '-' : text(memory, value.offset, value.length)}`
          : `${name} ${value}`,
      );
    assert.deepEqual(content(header.tlvs), content(tlvs), where);
  }
});

test('plain HTTP is told from anything else by the same bytes, however they arrive', (t) => {
  const { random, label } = seeded(t);
  const read: Parser = (memory, offset, length) => ({
    answer: looksLikeHttp(memory, offset, length),
    findings: '',
  });
  let yes = 0;
  for (let i = 0; i < 2000; i++) {
    const line = Buffer.from(
      random.pick(['GET / HTTP/1.1\r\n', 'CONNECT a:1 HTTP/1.1', 'EHLO h', 'PRI * HTTP/2.0', 'GET http://a']),
    );
    const input = random.chance(0.3) ? line : damage(random, line);
    if (checkGrowth(read, random, input, `${label} ${hex(input)}`) > 0) yes++;
  }
  assert.ok(yes > 200);
});

test('content of a frame that passes the checks lies within the frame', (t) => {
  const { random, label } = seeded(t);
  let errors = 0;
  let passed = 0;
  for (let i = 0; i < 20_000; i++) {
    const input = randomBytes(random, random.int(0, 14));
    if (input.length > 0 && random.chance(0.7)) input[0] = random.int(0, 16);
    const flags = random.pick([0, Flag.PADDED, Flag.PRIORITY, Flag.PADDED | Flag.PRIORITY]);
    const streamId = random.chance(0.9) ? 1 : 0;
    const where = `${label} ${hex(input)} flags ${flags}`;
    for (const type of [FrameType.DATA, FrameType.HEADERS]) {
      const refused = checkFrame(input.length, type, flags, streamId, 16_384);
      if (refused !== 0) continue;
      const read: Parser = (memory, offset, length) => {
        const content = new FrameContent();
        const error =
          type === FrameType.DATA
            ? readDataContent(memory, offset, length, flags, content)
            : readHeadersContent(memory, offset, length, flags, streamId, content);
        if (error === 0) {
          assert.ok(content.offset >= offset && content.length >= 0, where);
          assert.ok(content.offset + content.length <= offset + length, where);
        }
        return { answer: error, findings: `${content.offset} ${content.length}` };
      };
      const { answer } = guarded(read, input, input.length, where);
      if (answer !== 0) errors++;
      else passed++;
    }
  }
  assert.ok(errors > 500 && passed > 500, `${errors} errors, ${passed} passed`);
});

test('whatever a SETTINGS frame holds, the settings stay within what may be used', (t) => {
  const { random, label } = seeded(t);
  const outcomes = new Set<string>();
  for (let i = 0; i < 5000; i++) {
    const input = randomBytes(random, 6 * random.int(0, 6));
    for (let at = 0; at < input.length; at += 6) {
      input.writeUInt16BE(random.int(0, 10), at);
      if (random.chance(0.7)) input.writeUInt32BE(random.pick([0, 1, 2, 16_384, 0x7fff_ffff, 0x8000_0000]), at + 2);
    }
    const fromServer = random.chance(0.5);
    const read: Parser = (memory, offset, length) => {
      const settings = new PeerSettings();
      const answer = applySettings(memory, offset, length, settings, fromServer);
      for (const value of Object.values(settings)) {
        if (typeof value === 'number') assert.ok(value >= 0 && value <= 0x7fff_ffff, `${label} ${hex(input)}`);
      }
      assert.ok(settings.frameBytesMax >= 16_384 && settings.frameBytesMax < 2 ** 24);
      if (answer === 0) assert.ok(settings.headerTableBytesLeast <= settings.headerTableBytes);
      return { answer, findings: JSON.stringify(settings) };
    };
    const { answer } = guarded(read, input, input.length, label);
    outcomes.add(errorCodeName(errorCodeOf(answer)));
  }
  assert.deepEqual([...outcomes].sort(), ['FLOW_CONTROL_ERROR', 'NO_ERROR', 'PROTOCOL_ERROR']);
});

test('no header of a frame is too strange to be judged', (t) => {
  const { random, label } = seeded(t);
  for (let i = 0; i < 20_000; i++) {
    const length = random.pick([0, 1, 4, 5, 6, 8, 9, 16_384, 16_385, random.int(0, 2 ** 24 - 1)]);
    const type = random.chance(0.8) ? random.int(0, 10) : random.int(0, 255);
    const streamId = random.pick([0, 1, 0x7fff_ffff]);
    const error = checkFrame(length, type, random.int(0, 255), streamId, 16_384);
    const where = `${label} length ${length} type ${type} stream ${streamId}: ${error}`;
    assert.ok(Number.isInteger(error) && error >= 0, where);
    const name = nameOf(FrameError, error & ~SCOPE_STREAM);
    if (length > 16_384) assert.equal(name, 'FRAME_TOO_LARGE', where);
    if (error !== 0) assert.notEqual(name, 'UNKNOWN', where);
    // Only frames of a stream can be an error of that stream alone.
    if (streamId === 0 && error !== 0) assert.equal(error & 0x100, 0, where);
    const increment = readWindowIncrement(randomBytes(random, 4), 0, streamId);
    assert.ok(increment > 0 && increment <= 0x7fff_ffff);
  }
});

test('the preface and nothing else is the preface', (t) => {
  const { random, label } = seeded(t);
  for (let i = 0; i < 2000; i++) {
    const input = random.chance(0.2) ? Buffer.from(PREFACE) : damage(random, Buffer.from(PREFACE));
    const found = matchPreface(input, 0, input.length);
    const isPrefix = Buffer.from(PREFACE).subarray(0, input.length).equals(input.subarray(0, PREFACE.length));
    assert.equal(found, isPrefix ? Math.min(input.length, PREFACE.length) : -1, `${label} ${hex(input)}`);
  }
});
