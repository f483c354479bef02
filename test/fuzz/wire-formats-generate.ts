// Makes ClientHellos, PROXY headers and HTTP/2 frames for the fuzzer: mostly right ones, with parts
// that are known to be awkward, then random damage. Everything is drawn from one seeded generator.

import type { Random } from '../sim/random.ts';
import { helloMessage, prefixed, record, records } from '../unit/core/tls/hello-fixture.ts';

/** `count` random bytes. */
export function randomBytes(random: Random, count: number): Buffer {
  const bytes = Buffer.alloc(count);
  for (let i = 0; i < count; i++) bytes[i] = random.int(0, 255);
  return bytes;
}

/** Changes, removes, repeats or adds bytes in up to three places. */
export function damage(random: Random, bytes: Buffer): Buffer {
  let out = bytes;
  for (let times = random.int(1, 3); times > 0 && out.length > 0; times--) {
    const at = random.int(0, out.length - 1);
    const before = out.subarray(0, at);
    const size = random.int(1, 4);
    switch (random.int(0, 5)) {
      case 0:
        out = Buffer.from(out);
        out[at] = random.int(0, 255);
        break;
      case 1:
        out = Buffer.from(out);
        out[at] = out[at]! ^ (1 << random.int(0, 7));
        break;
      case 2:
        out = Buffer.from(out);
        out[at] = random.pick([0, 1, out[at]! - 1, out[at]! + 1, 127, 128, 255]) & 255;
        break;
      case 3:
        out = Buffer.concat([before, out.subarray(at + size)]);
        break;
      case 4:
        out = Buffer.concat([before, out.subarray(at, at + size), out.subarray(at)]);
        break;
      default:
        out = Buffer.concat([before, randomBytes(random, size), out.subarray(at)]);
        break;
    }
  }
  return out;
}

const serverNames = ['a.example', 'Shop.Example', 'x', '10.0.0.1', 'a..b', 'a.', '_x.y', 'a\0b', '-a', 'é', ''];

/** The handshake message of a ClientHello. */
export function generateHello(random: Random): Buffer {
  const extensions: [number, Uint8Array][] = [];
  for (let count = random.int(0, 3); count > 0; count--) {
    extensions.push([random.pick([0, 16, 43, 21, 51, 0x0a0a, 0xfafa]), randomBytes(random, random.int(0, 12))]);
  }
  return helloMessage({
    version: random.chance(0.9) ? 0x0303 : random.int(0, 0xffff),
    sessionId: randomBytes(random, random.pick([0, 32, 32, 33])),
    extensions: random.chance(0.3) ? extensions : [],
    ...(random.chance(0.7) ? { serverName: random.pick(serverNames) } : {}),
    ...(random.chance(0.5) ? { alpn: random.chance(0.9) ? ['h2', 'http/1.1'] : ['', 'h2'] } : {}),
    ...(random.chance(0.7) ? { versions: [random.int(0, 0xffff), 0x0304, 0x0303].slice(random.int(0, 3)) } : {}),
  });
}

/** A stream that starts with a ClientHello, perhaps in several records, perhaps damaged. */
export function generateHelloStream(random: Random): Buffer {
  let message = generateHello(random);
  if (random.chance(0.3)) message = damage(random, message);
  let stream = random.chance(0.5)
    ? record(message)
    : records(message, [random.int(1, 8), random.int(1, 60), random.int(1, 200)]);
  if (random.chance(0.3)) stream = damage(random, stream);
  if (random.chance(0.2)) stream = Buffer.concat([stream, randomBytes(random, random.int(1, 20))]);
  return stream;
}

/** Text like an IPv6 address, often a wrong one. */
export function generateIpv6(random: Random): string {
  const groups = (count: number): string =>
    Array.from({ length: count }, () => random.int(0, random.pick([0, 15, 0xffff])).toString(16)).join(':');
  let text = random.chance(0.3) ? groups(8) : `${groups(random.int(0, 5))}::${groups(random.int(0, 4))}`;
  if (random.chance(0.2)) text += `${text.endsWith(':') ? '' : ':'}${generateIpv4(random)}`;
  if (random.chance(0.3)) {
    const at = random.int(0, text.length);
    text =
      text.slice(0, at) + random.pick(['', ':', '::', '.', '0', 'F', 'g', '00000']) + text.slice(at + random.int(0, 1));
  }
  return text;
}

/** Text like an IPv4 address, sometimes a wrong one. */
export function generateIpv4(random: Random): string {
  const octets = Array.from({ length: random.chance(0.95) ? 4 : random.int(1, 6) }, () => random.int(0, 260));
  return octets.map((octet) => (random.chance(0.03) ? `0${octet}` : String(octet))).join('.');
}

/** A stream that starts with a PROXY header of either version, perhaps damaged. */
export function generateProxyStream(random: Random): Buffer {
  let stream: Buffer;
  if (random.chance(0.4)) {
    const four = random.chance(0.5);
    const host = (): string => (four ? generateIpv4(random) : generateIpv6(random));
    const line = random.chance(0.9)
      ? `PROXY TCP${four ? 4 : 6} ${host()} ${host()} ${random.int(0, 66_000)} ${random.int(0, 66_000)}\r\n`
      : 'PROXY UNKNOWN whatever\r\n';
    stream = Buffer.from(line);
  } else {
    const family = random.pick([0x00, 0x11, 0x11, 0x21, 0x21, 0x12, 0x31, 0x41, 0x01]);
    const parts = [randomBytes(random, family === 0x11 ? 12 : family === 0x21 ? 36 : random.pick([0, 12, 36, 216]))];
    for (let count = random.int(0, 4); count > 0; count--) {
      const type = random.pick([1, 2, 3, 4, 5, 0x20, 0x30, 0xea]);
      const sub = (): Buffer =>
        Buffer.concat([Buffer.of(random.int(0x20, 0x26)), prefixed(2, randomBytes(random, random.int(0, 5)))]);
      const value =
        type === 3
          ? randomBytes(random, 4)
          : type === 0x20
            ? Buffer.concat([randomBytes(random, 5), sub(), sub()])
            : randomBytes(random, random.int(0, 20));
      parts.push(Buffer.concat([Buffer.of(type), prefixed(2, value)]));
    }
    stream = Buffer.concat([
      Buffer.from('0d0a0d0a000d0a515549540a', 'hex'),
      Buffer.of(random.chance(0.9) ? 0x21 : 0x20, family),
      prefixed(2, Buffer.concat(parts)),
    ]);
  }
  if (random.chance(0.4)) stream = damage(random, stream);
  if (random.chance(0.3)) stream = Buffer.concat([stream, randomBytes(random, random.int(1, 20))]);
  return stream;
}
