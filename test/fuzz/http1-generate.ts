// Makes HTTP/1 byte streams for the differential fuzzer: a grammar of usual and of known awkward
// parts, then random damage. Everything is drawn from one seeded generator.

import type { Random } from '../sim/random.ts';

/** `usual` most of the time, else one of `odd`. */
function mostly(random: Random, usual: readonly string[], odd: readonly string[], oddShare: number): string {
  return random.pick(random.chance(oddShare) ? odd : usual);
}

const lineEnds = ['\n', '\r', '\r\r\n', '\n\r', ' \r\n', '\0\r\n'];

function lineEnd(random: Random): string {
  return mostly(random, ['\r\n'], lineEnds, 0.006);
}

const methods = ['GET', 'GET', 'POST', 'PUT', 'HEAD', 'DELETE', 'OPTIONS', 'PATCH', 'TRACE', 'PROPFIND'];
const oddMethods = [
  'CONNECT',
  'get',
  'GETX',
  'G',
  'FOO',
  'QUERY',
  'M-SEARCH',
  'PRI',
  '',
  'GE T',
  'X'.repeat(40),
  'SOURCE',
];
const targets = [
  '/',
  '/a/b?c=d',
  '/index.html',
  '/x?y?z',
  '*',
  'http://example.com/p?q',
  'http://[::1]:8080/',
  '/a%20b',
];
const oddTargets = [
  'example.com:443',
  '[::1]:443',
  'HTTP://EXAMPLE.COM',
  'http://example.com?q',
  'https://h:1/',
  'ftp://h/',
  'http://u@h/',
  'http:///x',
  'http://h:99999/',
  '/#f',
  '/é',
  '/"<>\\^`{|}',
  '//h/',
  '?q',
  'a',
  '',
  ':80',
  'http://h\\x/',
];
const versions = ['HTTP/1.1'];
const oddVersions = [
  'HTTP/1.0',
  'HTTP/1.0',
  'HTTP/1.2',
  'HTTP/2.0',
  'HTTP/0.9',
  'http/1.1',
  'HTTP/1.10',
  'HTTP/1',
  'HTTP/11',
  '',
];

const names = [
  'Accept',
  'User-Agent',
  'Cookie',
  'X-A',
  'x_b',
  'Via',
  'Referer',
  'Cache-Control',
  'TE',
  'Date',
  'Content-Type',
];
const values = [
  '',
  'a',
  'text/html, */*;q=0.8',
  'x=1; y="2"',
  '\ttabbed\tvalue ',
  'caf\xe9',
  '1',
  'a:b',
  ',',
  '"',
  'trailers',
];
const oddNames = [
  '',
  'A B',
  'A ',
  ' A',
  '\tA',
  'A\0',
  'A\x7f',
  '\xe9',
  'A(',
  'Content-Length ',
  'Transfer-Encoding\t',
  '\rA',
];
const oddValues = ['a\0', 'a\x01b', 'a\x7f', 'a\rb', 'a\nb', 'a\r\n b', '\x0b', 'a\r\n\tfolded', 'x'.repeat(300)];

const framings = [
  'Content-Length: 5',
  'Content-Length: 0',
  'content-length:3',
  'Transfer-Encoding: chunked',
  'transfer-encoding:\tCHUNKED ',
  'Connection: close',
  'Connection: keep-alive',
  'Connection: Keep-Alive, X-A',
  'Connection: TE, close',
];
const oddFramings = [
  'Content-Length: 05',
  'Content-Length: +5',
  'Content-Length: -1',
  'Content-Length: 5, 5',
  'Content-Length: 5 5',
  'Content-Length: 0x5',
  'Content-Length: ',
  'Content-Length: 9007199254740993',
  'Content-Length: 99999999999999999999',
  'Content-Length: 5\r\nContent-Length: 5',
  'Content-Length: 5\r\nContent-Length: 6',
  'Content-Length: 5\r\nTransfer-Encoding: chunked',
  'Transfer-Encoding: chunked\r\nContent-Length: 5',
  'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked',
  'Transfer-Encoding: identity',
  'Transfer-Encoding: gzip, chunked',
  'Transfer-Encoding: chunked, gzip',
  'Transfer-Encoding: chunked, chunked',
  'Transfer-Encoding: xchunked',
  'Transfer-Encoding: chunked;a=b',
  'Transfer-Encoding: "chunked"',
  'Transfer-Encoding: ,chunked',
  'Transfer-Encoding:\x0bchunked',
  'Transfer-Encoding:\r\n chunked',
  'Transfer-Encoding : chunked',
  'Connection: close, content-length',
  'Connection: Host',
  'Connection: keep alive',
  'Connection: ,close,',
  'Connection: upgrade\r\nUpgrade: websocket',
  'Upgrade: h2c',
  'Connection: upgrade',
  'Expect: 100-continue',
  'Expect: else',
  'Host: other',
];
const hosts = ['Host: example.com', 'host:a', 'Host: a:80', 'Host: [::1]:80'];
const oddHosts = [
  '',
  'Host:',
  'Host: a b',
  'Host: a\r\nHost: b',
  'Host: a/b',
  'Host: a:x',
  'Host: u@a',
  'Host: [::1',
  'Host: é',
];

/** Fields of a head, each with its line end. */
function fieldLines(random: Random, first: readonly string[]): string {
  const lines = first.filter((line) => line !== '');
  for (let count = random.int(0, 4); count > 0; count--) {
    const name = mostly(random, names, oddNames, 0.02);
    const value = mostly(random, values, oddValues, 0.03);
    lines.push(`${name}:${random.pick(['', ' ', ' ', '\t', '  '])}${value}`);
  }
  for (let count = random.int(0, 2); count > 0; count--) lines.push(mostly(random, framings, oddFramings, 0.25));
  // Framing fields must not only ever stand at the end.
  for (let i = lines.length - 1; i > 0; i--) {
    const other = random.int(0, i);
    [lines[i], lines[other]] = [lines[other], lines[i]];
  }
  return lines.map((line) => line + lineEnd(random)).join('');
}

const extensions = ['', '', '', '', ';a', ';a=b', ';a="b c"', ';a="\\""'];
const oddExtensions = [
  ' ',
  '\t',
  ' ;a',
  '; a',
  ';',
  ';a=',
  ';a="',
  ';=b',
  ';a\nb',
  ';a\rb',
  ';a b',
  ';\0',
  ';é',
  ';a="\n"',
];
const trailers = ['', '', '', 'X-T: 1\r\n', 'X-T: 1\r\nY: \r\n'];
const oddTrailers = [
  'Content-Length: 5\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Host: a\r\n',
  ' x\r\n',
  'X\r\n',
  'X: a\n',
  'X : a\r\n',
];

function chunkedBody(random: Random): string {
  let body = '';
  for (let count = random.int(0, 3); count > 0; count--) {
    const payload = random.pick(['a', 'hello', '0\r\n\r\n', '\r\n', 'x'.repeat(random.int(1, 70))]);
    const hex = payload.length.toString(16);
    const size = mostly(
      random,
      [hex, hex.toUpperCase(), `0${hex}`],
      [` ${hex}`, `0x${hex}`, `+${hex}`, '', 'g', 'ffffffffffffffff', `00000000000000000${hex}`, `${hex}_`],
      0.02,
    );
    body += size + mostly(random, extensions, oddExtensions, 0.03) + lineEnd(random) + payload + lineEnd(random);
  }
  const last = mostly(random, ['0', '00', '0;z'], ['', '0 ', '-0'], 0.02);
  return body + last + lineEnd(random) + mostly(random, trailers, oddTrailers, 0.05) + lineEnd(random);
}

/** A body that usually, but not always, fits what the head says. */
function body(random: Random, head: string): string {
  if (random.chance(0.05)) return random.pick(['', 'hello', '0\r\n\r\n', 'GET / HTTP/1.1\r\n\r\n']);
  if (/chunked/i.test(head)) return chunkedBody(random);
  const length = /content-length:\s*(\d{1,3})\b/i.exec(head);
  return length === null ? '' : 'b'.repeat(Number(length[1]));
}

function request(random: Random): string {
  const method = mostly(random, methods, oddMethods, 0.07);
  const space = mostly(random, [' '], ['  ', '\t', ''], 0.004);
  const target =
    method === 'CONNECT' && random.chance(0.7)
      ? random.pick(['example.com:443', '[::1]:443', 'a:0'])
      : mostly(random, targets, oddTargets, 0.1);
  const version = mostly(random, versions, oddVersions, 0.08);
  const start = mostly(random, [''], ['\r\n', '\r\n\r\n', '\r\n\r\n\r\n', '\n', ' '], 0.03);
  const host = mostly(random, hosts, oddHosts, 0.06);
  const head = `${start}${method}${space}${target} ${version}${lineEnd(random)}${fieldLines(random, [host])}${lineEnd(random)}`;
  return head + body(random, head);
}

function response(random: Random): string {
  const version = mostly(random, versions, oddVersions, 0.06);
  const status = mostly(
    random,
    ['200', '404', '204', '304', '100', '500'],
    ['101', '99', '600', '2000', '20', 'abc', ''],
    0.06,
  );
  const reason = mostly(random, [' OK', ' Not Found', ' ', ''], [' \0', ' caf\xe9', '\tx', ' a\rb', '  two'], 0.06);
  const head = `${version} ${status}${reason}${lineEnd(random)}${fieldLines(random, [])}${lineEnd(random)}`;
  return head + body(random, head);
}

const damageBytes = [
  '\r',
  '\n',
  '\r\n',
  ' ',
  '\t',
  '\0',
  ':',
  ',',
  ';',
  '\x0b',
  '\x7f',
  '\x80',
  '\xff',
  '0',
  'a',
  '-',
  '#',
  '/',
];

function damage(random: Random, text: string): string {
  const at = random.int(0, text.length);
  switch (random.int(0, 5)) {
    case 0:
      return text.slice(0, at) + random.pick(damageBytes) + text.slice(at);
    case 1:
      return text.slice(0, at) + random.pick(damageBytes) + text.slice(at + 1);
    case 2:
      return text.slice(0, at) + text.slice(at + random.int(1, 4));
    case 3: {
      const from = random.int(0, text.length);
      return text.slice(0, at) + text.slice(from, from + random.int(1, 30)) + text.slice(at);
    }
    case 4:
      return text.slice(0, at);
    default:
      return text.slice(0, at) + String.fromCharCode(random.int(0, 255)) + text.slice(at + 1);
  }
}

/** One stream of one to three messages, damaged in about a third of all cases. */
export function generateStream(random: Random, kind: 'request' | 'response'): Buffer {
  let text = '';
  for (let count = random.int(1, 3); count > 0; count--)
    text += kind === 'request' ? request(random) : response(random);
  if (random.chance(0.35)) for (let count = random.int(1, 3); count > 0; count--) text = damage(random, text);
  return Buffer.from(text, 'latin1');
}

/** Lengths that add up to `length`: where a stream is cut into arrivals. */
export function generatePieces(random: Random, length: number): number[] {
  const pieces: number[] = [];
  const longest = random.pick([1, 3, 20, 200]);
  for (let left = length; left > 0; left -= pieces[pieces.length - 1])
    pieces.push(Math.min(left, random.int(1, longest)));
  return pieces;
}
