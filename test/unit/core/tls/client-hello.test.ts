import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { type TestContext, test } from 'node:test';
import tls from 'node:tls';
import {
  CLIENT_HELLO_BYTES_MAX,
  CLIENT_HELLO_SCRATCH_BYTES,
  ClientHello,
  ClientHelloError,
  clientHelloErrorSentence,
  looksLikeHttp,
  offersAlpn,
  parseClientHello,
} from '../../../../core/tls/client-hello.ts';
import { nameOf } from '../../../support/name-of.ts';
import {
  alpnContent,
  type HelloParts,
  hello,
  helloMessage,
  prefixed,
  record,
  records,
  serverNameContent,
  versionsContent,
} from './hello-fixture.ts';

interface Reading {
  /** Name of the error, or 'more' or 'hello'. */
  outcome: string;
  consumed: number;
  bytesNeeded: number;
  serverName: string;
  serverNameInvalid: boolean;
  alpn: string[];
  versionMax: number;
  ciphers: number[];
  offers(protocol: string): boolean;
}

/** Parses bytes that end where the memory's readable part ends; the input must not change. */
function read(input: Uint8Array, length = input.length): Reading {
  const offset = CLIENT_HELLO_SCRATCH_BYTES + 64;
  const memory = new Uint8Array(offset + input.length + 64).fill(0xee);
  memory.set(input, offset);
  const found = new ClientHello();
  const consumed = parseClientHello(memory, offset, length, 32, found);
  assert.deepEqual(memory.subarray(offset, offset + input.length), Uint8Array.from(input), 'the input is left alone');
  assert.ok(memory.subarray(0, 32).every((byte) => byte === 0xee));
  assert.ok(memory.subarray(32 + CLIENT_HELLO_SCRATCH_BYTES, offset).every((byte) => byte === 0xee));
  const alpn: string[] = [];
  for (let i = found.alpnOffset; i < found.alpnOffset + found.alpnLength; i += 1 + memory[i]!) {
    alpn.push(Buffer.from(memory.subarray(i + 1, i + 1 + memory[i]!)).toString('latin1'));
  }
  const ciphers: number[] = [];
  for (let i = 0; i < found.cipherCount; i++) {
    ciphers.push((memory[found.cipherOffset + i * 2]! << 8) | memory[found.cipherOffset + i * 2 + 1]!);
  }
  return {
    outcome: consumed > 0 ? 'hello' : consumed === 0 ? 'more' : nameOf(ClientHelloError, -consumed),
    consumed,
    bytesNeeded: found.bytesNeeded,
    serverName: Buffer.from(
      memory.subarray(found.serverNameOffset, found.serverNameOffset + found.serverNameLength),
    ).toString('latin1'),
    serverNameInvalid: found.serverNameInvalid,
    alpn,
    versionMax: found.versionMax,
    ciphers,
    offers: (protocol) => offersAlpn(memory, found, Buffer.from(protocol)),
  };
}

/** Every shorter input asks for more, and of a right hello for no more than there is; the whole gives `outcome`. */
function growsTo(input: Uint8Array, outcome: string): void {
  for (let length = 0; length < input.length; length++) {
    const part = read(input, length);
    if (part.outcome === outcome && outcome !== 'hello') return;
    assert.equal(part.outcome, 'more', `${length} of ${input.length} bytes`);
    assert.ok(part.bytesNeeded > length, `${part.bytesNeeded} needed after ${length}`);
    assert.ok(outcome !== 'hello' || part.bytesNeeded <= input.length, `${part.bytesNeeded} needed of ${input.length}`);
  }
  assert.equal(read(input).outcome, outcome);
}

/** What a client sends first to a listener that never answers. */
async function captured(t: TestContext, connect: (port: number) => void): Promise<Buffer> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  connect((server.address() as net.AddressInfo).port);
  const [socket] = (await once(server, 'connection')) as [net.Socket];
  let bytes = Buffer.alloc(0);
  for await (const piece of socket) {
    bytes = Buffer.concat([bytes, piece as Buffer]);
    const consumed = read(bytes).consumed;
    if (consumed !== 0) break;
  }
  socket.destroy();
  return bytes;
}

/** Why a test with this program is skipped, or false. */
function missing(tool: string): string | false {
  return spawnSync(tool, ['--version']).error === undefined ? false : `${tool} is not installed`;
}

function nodeClient(options: tls.ConnectionOptions): (port: number) => void {
  return (port) => {
    tls.connect({ ...options, port, host: '127.0.0.1' }).on('error', () => {});
  };
}

test('the hello of node:tls with name and protocols is understood', async (t) => {
  const bytes = await captured(t, nodeClient({ servername: 'Shop.Example.COM', ALPNProtocols: ['h2', 'http/1.1'] }));
  const found = read(bytes);
  assert.equal(found.outcome, 'hello');
  assert.equal(found.consumed, bytes.length);
  assert.equal(found.serverName, 'shop.example.com');
  assert.deepEqual(found.alpn, ['h2', 'http/1.1']);
  assert.equal(found.versionMax, 0x0304);
  assert.ok(found.ciphers.includes(0x1301));
  assert.ok(found.offers('h2') && found.offers('http/1.1'));
  assert.ok(!found.offers('http/1.0') && !found.offers('h') && !found.offers('h2c'));
  growsTo(bytes, 'hello');
});

test('the hello of node:tls without name and protocols is understood', async (t) => {
  const bytes = await captured(t, nodeClient({ maxVersion: 'TLSv1.2' }));
  const found = read(bytes);
  assert.equal(found.outcome, 'hello');
  assert.equal(found.serverName, '');
  assert.equal(found.serverNameInvalid, false);
  assert.deepEqual(found.alpn, []);
  assert.equal(found.versionMax, 0x0303);
  growsTo(bytes, 'hello');
});

test('the hello of openssl s_client is understood', { skip: missing('openssl') }, async (t) => {
  const bytes = await captured(t, (port) => {
    const child = spawn(
      'openssl',
      ['s_client', '-connect', `127.0.0.1:${port}`, '-servername', 'a.example', '-alpn', 'acme-tls/1'],
      { stdio: ['pipe', 'ignore', 'ignore'] },
    );
    t.after(() => child.kill());
  });
  const found = read(bytes);
  assert.equal(found.outcome, 'hello');
  assert.equal(found.serverName, 'a.example');
  assert.deepEqual(found.alpn, ['acme-tls/1']);
  assert.equal(found.versionMax, 0x0304);
  growsTo(bytes, 'hello');
});

test('the hello of curl is understood', { skip: missing('curl') }, async (t) => {
  const bytes = await captured(t, (port) => {
    const url = `https://curl.example:${port}/`;
    const child = execFile('curl', ['-sk', '--resolve', `curl.example:${port}:127.0.0.1`, url], () => {});
    t.after(() => child.kill());
  });
  const found = read(bytes);
  assert.equal(found.outcome, 'hello');
  assert.equal(found.serverName, 'curl.example');
  assert.ok(found.offers('http/1.1'));
  growsTo(bytes, 'hello');
});

test('a hello in several records reads like the same in one, however it is cut', async (t) => {
  const whole = await captured(t, nodeClient({ servername: 'Shop.Example.COM', ALPNProtocols: ['h2'] }));
  const message = whole.subarray(5);
  const plain = read(whole);
  for (const sizes of [[1], [2], [3, 1], [4], [5], [4, 3, 90, 1], [message.length - 1], [100]]) {
    const cut = records(message, sizes);
    const found = read(cut);
    assert.equal(found.consumed, cut.length);
    assert.deepEqual(
      [found.serverName, found.alpn, found.versionMax, found.ciphers, found.outcome],
      [plain.serverName, plain.alpn, plain.versionMax, plain.ciphers, plain.outcome],
    );
    if (sizes[0]! > 2) growsTo(cut, 'hello');
  }
});

test('OpenSSL agrees that a hello in several records is one', async (t) => {
  const whole = await captured(t, nodeClient({ servername: 'a.example' }));
  const name = Promise.withResolvers<string>();
  const server = tls.createServer({
    SNICallback: (found, done) => {
      name.resolve(found);
      done(null);
    },
  });
  server.on('tlsClientError', () => {});
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const socket = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  socket.on('error', () => {});
  t.after(() => socket.destroy());
  socket.write(records(whole.subarray(5), [30, 100]));
  assert.equal(await name.promise, 'a.example');
});

test('bytes behind the hello are left for others', () => {
  const bytes = hello({ serverName: 'a.b' });
  const found = read(Buffer.concat([bytes, record(Buffer.from([2, 0, 0, 0]))]));
  assert.equal(found.consumed, bytes.length);
});

// -- server names ------------------------------------------------------------------------

const serverNames: [name: string, expected: string][] = [
  ['example.com', 'example.com'],
  ['EXAMPLE.com', 'example.com'],
  ['localhost', 'localhost'],
  ['example.com.', 'example.com'],
  ['xn--bcher-kva.example', 'xn--bcher-kva.example'],
  ['_dmarc.a_b.example', '_dmarc.a_b.example'],
  ['1.example', '1.example'],
  ['1e', '1e'],
  [`${'a'.repeat(63)}.b`, `${'a'.repeat(63)}.b`],
  [`${'a.'.repeat(126)}b`, `${'a.'.repeat(126)}b`],
];
const noHostnames = [
  '127.0.0.1',
  '::1',
  '[::1]',
  '.',
  '.a',
  'a..b',
  'a.b..',
  '-a.b',
  'a-.b',
  'a.1',
  '*.example.com',
  'exa mple',
  'a/b',
  'a:443',
  'b\u00fccher.example',
  `${'a'.repeat(64)}.b`,
  `${'a.'.repeat(126)}bc`,
  'a\r\nb',
];

for (const [name, expected] of serverNames) {
  test(`server name ${JSON.stringify(name)} is taken`, () => {
    for (const bytes of [hello({ serverName: name }), records(helloMessage({ serverName: name }), [50])]) {
      const found = read(bytes);
      assert.deepEqual([found.outcome, found.serverName, found.serverNameInvalid], ['hello', expected, false]);
    }
  });
}

for (const name of noHostnames) {
  test(`server name ${JSON.stringify(name)} counts as none`, () => {
    for (const bytes of [hello({ serverName: name }), records(helloMessage({ serverName: name }), [50])]) {
      const found = read(bytes);
      assert.deepEqual([found.outcome, found.serverName, found.serverNameInvalid], ['hello', '', true]);
    }
  });
}

// -- versions and GREASE -----------------------------------------------------------------

test('the highest known version counts, and values without meaning do not', () => {
  assert.equal(read(hello({ versions: [0x1a1a, 0x0304, 0x0303] })).versionMax, 0x0304);
  assert.equal(read(hello({ versions: [0x0302, 0x0303, 0x7f1c, 0xfafa] })).versionMax, 0x0303);
  assert.equal(read(hello({ versions: [0x0305, 0xdada] })).versionMax, 0);
  assert.equal(read(hello({ versions: [0x0303], version: 0x0301 })).versionMax, 0x0303);
});

test('without supported_versions a client speaks TLS 1.2 at most', () => {
  assert.equal(read(hello({ version: 0x0303 })).versionMax, 0x0303);
  assert.equal(read(hello({ version: 0x0304 })).versionMax, 0x0303);
  assert.equal(read(hello({ version: 0x0301 })).versionMax, 0x0301);
  assert.equal(read(hello({ version: 0x0300 })).versionMax, 0);
});

test('GREASE extensions and protocols change nothing', () => {
  const found = read(
    hello({
      serverName: 'a.b',
      alpn: ['\x0a\x0a', 'h2'],
      extensions: [
        [0x0a0a, new Uint8Array(0)],
        [0x1a1a, Buffer.of(0)],
        [0x0a0a, Buffer.of(1)],
      ],
    }),
  );
  assert.equal(found.outcome, 'hello');
  assert.equal(found.serverName, 'a.b');
  assert.ok(found.offers('h2'));
  assert.deepEqual(found.ciphers, [0x1301, 0x0a0a]);
});

test('a hello of old may have no extensions at all', () => {
  const found = read(hello({ tail: new Uint8Array(0), sessionId: new Uint8Array(0) }));
  assert.deepEqual([found.outcome, found.serverName, found.alpn], ['hello', '', []]);
});

// -- malformed ---------------------------------------------------------------------------

const name = Buffer.from('a.example');
const wrongHellos: [string, HelloParts, string][] = [
  ['a session identifier of 33 bytes', { sessionId: Buffer.alloc(33) }, 'MALFORMED'],
  ['no cipher suites', { ciphers: new Uint8Array(0) }, 'MALFORMED'],
  ['half a cipher suite', { ciphers: Buffer.of(0x13, 1, 0) }, 'MALFORMED'],
  ['no compression methods', { compression: new Uint8Array(0) }, 'MALFORMED'],
  ['one byte after the compression methods', { tail: Buffer.of(0) }, 'MALFORMED'],
  ['extensions that end too early', { tail: Buffer.concat([prefixed(2, Buffer.alloc(0)), Buffer.of(0)]) }, 'MALFORMED'],
  ['extensions that end too late', { tail: Buffer.of(0, 5, 0x0a, 0x0a, 0, 0) }, 'MALFORMED'],
  ['an extension without a length', { tail: prefixed(2, Buffer.of(0x0a, 0x0a, 0)) }, 'MALFORMED'],
  ['an extension that is too long', { tail: prefixed(2, Buffer.of(0x0a, 0x0a, 0, 1)) }, 'MALFORMED'],
  ['two server_name extensions', { serverName: 'a', extensions: [[0, serverNameContent('b')]] }, 'EXTENSION_DUPLICATE'],
  ['two ALPN extensions', { alpn: ['h2'], extensions: [[16, alpnContent(['h2'])]] }, 'EXTENSION_DUPLICATE'],
  [
    'two supported_versions',
    { versions: [0x304], extensions: [[43, versionsContent([0x303])]] },
    'EXTENSION_DUPLICATE',
  ],
  ['an empty server_name extension', { extensions: [[0, Buffer.alloc(0)]] }, 'SERVER_NAME_MALFORMED'],
  ['an empty list of server names', { extensions: [[0, Buffer.of(0, 0)]] }, 'SERVER_NAME_MALFORMED'],
  ['an empty server name', { serverName: '' }, 'SERVER_NAME_MALFORMED'],
  ['a server name of 256 bytes', { serverName: 'a'.repeat(256) }, 'SERVER_NAME_MALFORMED'],
  ['a NUL in the server name', { serverName: 'a\0.example' }, 'SERVER_NAME_MALFORMED'],
  [
    'a server name of unknown type',
    { extensions: [[0, prefixed(2, Buffer.concat([Buffer.of(1), prefixed(2, name)]))]] },
    'SERVER_NAME_MALFORMED',
  ],
  [
    'two server names',
    {
      extensions: [[0, prefixed(2, Buffer.concat([Buffer.of(0), prefixed(2, name), Buffer.of(0), prefixed(2, name)]))]],
    },
    'SERVER_NAME_MALFORMED',
  ],
  [
    'a list of server names shorter than its extension',
    { extensions: [[0, Buffer.concat([serverNameContent(name), Buffer.of(0)])]] },
    'SERVER_NAME_MALFORMED',
  ],
  ['an empty ALPN extension', { extensions: [[16, Buffer.alloc(0)]] }, 'ALPN_MALFORMED'],
  ['an empty list of protocols', { alpn: [] }, 'ALPN_MALFORMED'],
  ['an empty protocol', { alpn: ['h2', ''] }, 'ALPN_MALFORMED'],
  ['a protocol longer than the list', { extensions: [[16, Buffer.of(0, 3, 3, 104, 50)]] }, 'ALPN_MALFORMED'],
  [
    'a list of protocols shorter than its extension',
    { extensions: [[16, Buffer.of(0, 2, 1, 50, 0)]] },
    'ALPN_MALFORMED',
  ],
  ['no versions', { versions: [] }, 'VERSIONS_MALFORMED'],
  ['half a version', { extensions: [[43, Buffer.of(3, 3, 4, 3)]] }, 'VERSIONS_MALFORMED'],
  ['versions shorter than their extension', { extensions: [[43, Buffer.of(2, 3, 4, 3, 3)]] }, 'VERSIONS_MALFORMED'],
];

for (const [what, parts, expected] of wrongHellos) {
  test(`a hello with ${what}: ${expected}`, () => {
    const bytes = hello(parts);
    assert.equal(read(bytes).outcome, expected);
    assert.equal(read(records(helloMessage(parts), [40])).outcome, expected);
    growsTo(bytes, expected);
  });
}

const wrongStreams: [string, Uint8Array, string][] = [
  ['plain HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n'), 'NOT_TLS'],
  ['SSH', Buffer.from('SSH-2.0-x\r\n'), 'NOT_TLS'],
  ['SSL 2', Buffer.of(0x80, 0x2e, 1, 0, 2), 'NOT_TLS'],
  ['a TLS alert', Buffer.of(21, 3, 1, 0, 2, 2, 40), 'NOT_TLS'],
  ['a record of another major version', Buffer.of(22, 4, 0, 0, 2, 1), 'NOT_TLS'],
  ['a ServerHello', record(Buffer.of(2, 0, 0, 0)), 'NOT_CLIENT_HELLO'],
  ['an empty record', record(Buffer.alloc(0)), 'RECORD_INVALID'],
  ['a record of more than 2^14 bytes', Buffer.of(22, 3, 1, 0x40, 1), 'RECORD_INVALID'],
  ['an alert within the hello', Buffer.concat([record(Buffer.of(1, 0)), Buffer.of(21)]), 'RECORD_INVALID'],
  [
    'an empty record within the hello',
    Buffer.concat([record(Buffer.of(1)), record(Buffer.alloc(0))]),
    'RECORD_INVALID',
  ],
  ['a hello of 16 MiB', record(Buffer.of(1, 0xff, 0xff, 0xff)), 'TOO_LARGE'],
  ['an empty hello', record(Buffer.of(1, 0, 0, 0)), 'MALFORMED'],
  ['a hello without a random', record(Buffer.of(1, 0, 0, 2, 3, 3)), 'MALFORMED'],
];

for (const [what, bytes, expected] of wrongStreams) {
  test(`${what}: ${expected}`, () => {
    assert.equal(read(bytes).outcome, expected);
    growsTo(bytes, expected);
  });
}

test('a hello may be as large as the limit and no larger', () => {
  const sized = (size: number): Buffer => {
    const padding = size - hello({ extensions: [[21, Buffer.alloc(0)]] }).length;
    return hello({ extensions: [[21, Buffer.alloc(padding)]] });
  };
  const most = sized(CLIENT_HELLO_BYTES_MAX);
  assert.equal(most.length, CLIENT_HELLO_BYTES_MAX);
  assert.equal(read(most).outcome, 'hello');
  const over = sized(CLIENT_HELLO_BYTES_MAX + 1);
  assert.equal(read(over).outcome, 'TOO_LARGE');
  assert.equal(read(over, 9).outcome, 'TOO_LARGE');
});

test('no more than the limit is ever asked for: a second record that cannot fit is known from the first', () => {
  const messageOf = (size: number): Buffer => {
    const padding = size - helloMessage({ extensions: [[21, Buffer.alloc(0)]] }).length;
    return helloMessage({ extensions: [[21, Buffer.alloc(padding)]] });
  };
  for (const first of [100, 16_370, 16_373]) {
    const fits = records(messageOf(CLIENT_HELLO_BYTES_MAX - 10), [first, 16_384]);
    assert.equal(fits.length, CLIENT_HELLO_BYTES_MAX);
    assert.equal(read(fits).outcome, 'hello');
    const over = records(messageOf(CLIENT_HELLO_BYTES_MAX - 9), [first, 16_384]);
    assert.equal(read(over, 9).outcome, 'TOO_LARGE');
    assert.equal(read(over).outcome, 'TOO_LARGE');
  }
});

test('record headers count against the limit, so that a hello byte by byte is no way around it', () => {
  const message = helloMessage({ extensions: [[21, Buffer.alloc(8000)]] });
  assert.equal(read(record(message)).outcome, 'hello');
  const cut = records(message, [1]);
  assert.ok(cut.length > CLIENT_HELLO_BYTES_MAX);
  assert.equal(read(cut).outcome, 'TOO_LARGE');
});

test('each error has a sentence', () => {
  const sentences = Object.values(ClientHelloError).map(clientHelloErrorSentence);
  assert.equal(new Set(sentences).size, sentences.length);
  for (const sentence of sentences) assert.match(sentence, /^The .*\.$|^A .*\.$/);
  assert.equal(clientHelloErrorSentence(99), 'Unknown ClientHello error.');
});

// -- plain HTTP --------------------------------------------------------------------------

const plain: [string, number][] = [
  ['GET / HTTP/1.1\r\n', 1],
  ['POST /x', 1],
  ['OPTIONS * HTTP/1.1', 1],
  ['GET http://a/ HTTP/1.1', 1],
  ['GET HTTPS://a/ HTTP/1.1', 1],
  ['CONNECT a:443 HTTP/1.1', 1],
  ['PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 1],
  ['VERSION-CONTROL /', 1],
  ['\x16\x03\x01\x02\x00', -1],
  ['SSH-2.0-OpenSSH_9.2p1 Debian', -1],
  ['EHLO mail.example\r\n', -1],
  ['EHLO host.example\r\n', -1],
  ['USER anonymous\r\n', -1],
  ['get / HTTP/1.1', -1],
  [' GET /', -1],
  ['-GET /', -1],
  ['GO /', -1],
  ['CONNECT \r\n', -1],
  ['CONNECTS a:443', -1],
  ['ABCDEFGHIJKLMNOPQRSTU /', -1],
];

for (const [text, expected] of plain) {
  test(`${JSON.stringify(text)} ${expected > 0 ? 'looks like' : 'is not'} HTTP`, () => {
    const bytes = Buffer.from(`xx${text}`, 'latin1');
    assert.equal(looksLikeHttp(bytes, 2, bytes.length - 2), expected);
    let answer = 0;
    for (let length = 0; length <= bytes.length - 2; length++) {
      const part = looksLikeHttp(bytes.subarray(0, 2 + length), 2, length);
      assert.ok(answer === 0 || part === answer, 'an answer stays');
      assert.ok(part === 0 || part === expected);
      answer = part;
    }
  });
}
