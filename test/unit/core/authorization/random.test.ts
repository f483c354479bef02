// Matching against naive implementations, with random cases.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Network, parseAddress } from '../../../../core/authorization/network.ts';
import { hasForms, PATH_FORMS, PathForms } from '../../../../core/authorization/path-forms.ts';
import { PathList } from '../../../../core/authorization/path-list.ts';
import { TextMatch } from '../../../../core/authorization/text-match.ts';
import { Family } from '../../../../core/ffi/sockaddr.ts';

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
let state = seed;

/** Random whole number below `max`. */
function below(max: number): number {
  state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
  return Math.floor((state / 0x80000000) * max);
}

function oneOf<T>(values: readonly T[]): T {
  return values[below(values.length)]!;
}

function textOf(alphabet: string, lengthMax: number): string {
  return Array.from({ length: below(lengthMax + 1) }, () => oneOf([...alphabet])).join('');
}

const memory = new Uint8Array(4096);

function put(text: string): [Uint8Array, number, number] {
  const bytes = Buffer.from(text);
  memory.fill(0x61);
  memory.set(bytes, 100);
  return [memory, 100, bytes.length];
}

test('texts match as strings do', () => {
  for (let i = 0; i < 6_000; i++) {
    const value = `${below(4) === 0 ? '*' : ''}${textOf('aAb', 3)}${below(4) === 0 ? '*' : ''}`;
    const text = textOf('aAb', 5);
    const foldCase = below(2) === 0;
    const match = TextMatch.of(value, foldCase);
    const [wanted, given] = foldCase ? [value.toLowerCase(), text.toLowerCase()] : [value, text];
    if (wanted.length > 1 && wanted.startsWith('*') && wanted.endsWith('*')) {
      assert.equal(match, null, value);
      continue;
    }
    let expected = given === wanted;
    if (wanted === '*') expected = true;
    else if (wanted.startsWith('*')) expected = given.endsWith(wanted.slice(1));
    else if (wanted.endsWith('*')) expected = given.startsWith(wanted.slice(0, -1));
    assert.equal(match!.holds(...put(text)), expected, `${value} and ${text}, seed ${seed}`);
  }
});

test('templates match as expressions do', () => {
  const segment = (): string => oneOf(['a', 'b', 'ab', '{*}']);
  for (let i = 0; i < 6_000; i++) {
    const segments = Array.from({ length: 1 + below(3) }, segment);
    if (below(3) === 0) segments.push('{**}');
    const value = `/${segments.join('/')}`;
    const path = textOf('/ab', 6);
    const source = segments.map((one) => (one === '{*}' ? '/[^/]+' : one === '{**}' ? '(/.*)?' : `/${one}`)).join('');
    const match = TextMatch.template(value)!;
    assert.equal(match.holds(...put(path)), new RegExp(`^${source}$`).test(path), `${value} and ${path}, seed ${seed}`);
  }
});

/** An address as a number, and whether it is of IPv4; with `mapped` also if it is written in IPv6. */
function numberOf(text: string, mapped = true): { v4: boolean; value: bigint } {
  const v4 = (dotted: string): bigint => dotted.split('.').reduce((sum, octet) => sum * 256n + BigInt(octet), 0n);
  if (!text.includes(':')) return { v4: true, value: v4(text) };
  const [left = '', right] = text.split('::');
  const groups = (part: string): string[] => (part === '' ? [] : part.split(':'));
  const tail = groups(right ?? '');
  const head = groups(left);
  const zeros = right === undefined ? 0 : 8 - head.length - tail.length;
  const all = [...head, ...new Array<string>(zeros).fill('0'), ...tail];
  const value = all.reduce((sum, group) => sum * 65536n + BigInt(`0x${group}`), 0n);
  return mapped && value >> 32n === 0xffffn ? { v4: true, value: value & 0xffffffffn } : { v4: false, value };
}

function randomAddress(): string {
  const octet = (): number => oneOf([0, 1, 10, 127, 128, 192, 255]);
  if (below(2) === 0) return [octet(), octet(), octet(), octet()].join('.');
  const group = (): string => oneOf(['0', '1', 'ffff', '8000', 'db8', '7fff']);
  if (below(4) === 0) return `::ffff:${group()}:${group()}`;
  return below(2) === 0 ? `${group()}::${group()}` : Array.from({ length: 8 }, group).join(':');
}

test('networks hold the addresses whose first bits they have', () => {
  let held = 0;
  for (let i = 0; i < 12_000; i++) {
    const network = randomAddress();
    const bits = below(network.includes(':') ? 129 : 33);
    const address = below(3) === 0 ? network : randomAddress();
    // An IPv4 address written in IPv6 has a prefix in IPv6; one with a shorter prefix is a network of IPv6.
    const inIpv6 = network.includes(':') && bits < 96;
    const of = numberOf(network, !inIpv6);
    const asked = numberOf(address);
    const shift = BigInt((network.includes(':') ? 128 : 32) - bits);
    const expected = of.v4 === asked.v4 && of.value >> shift === asked.value >> shift;
    if (expected) held++;
    const what = `${address} in ${network}/${bits}, seed ${seed}`;
    assert.equal(Network.parse(`${network}/${bits}`)!.contains(parseAddress(address)!), expected, what);
  }
  assert.ok(held > 200, `${held} were in their networks`);
});

test('a peer of IPv4 on a socket of IPv6 is one of IPv4', () => {
  const words = { peer0: 0, peer1: 0, peer2: 0xffff, peer3: 0x0a010203 };
  const peer = { peerFamily: Family.INET6, peerPort: 0, ...words };
  assert.equal(Network.parse('10.1.0.0/16')!.contains(peer), true);
  assert.equal(Network.parse('10.2.0.0/16')!.contains(peer), false);
  assert.equal(Network.parse('::/0')!.contains(peer), false);
  assert.equal(Network.parse('::/0')!.contains({ ...peer, peer2: 0 }), true);
});

test('what is no network is none', () => {
  for (const text of [
    '',
    '10.0.0.0/33',
    '10.0.0/8',
    '::1/129',
    '10.0.0.0/08',
    '10.0.0.0/8/8',
    'fe80::1%eth0',
    'a',
    '10.0.0.0/',
  ]) {
    assert.equal(Network.parse(text), null, text);
  }
});

/** A path without dot segments, merging first if asked for; the reference is the stack of RFC 3986 §5.2.4. */
function withoutDots(path: string): string {
  const out: string[] = [];
  const segments = path.split('/').slice(1);
  segments.forEach((segment, index) => {
    const last = index === segments.length - 1;
    if (segment === '..') out.pop();
    if (segment === '.' || segment === '..') {
      if (last) out.push('');
    } else {
      out.push(segment);
    }
  });
  return `/${out.join('/')}`;
}

function decoded(path: string, all: boolean): string {
  return path
    .replace(/%([0-9a-fA-F]{2})/g, (written, hex: string) => {
      const character = String.fromCharCode(Number.parseInt(hex, 16));
      return all || /[A-Za-z0-9._~-]/.test(character) ? character : written;
    })
    .replaceAll('\\', '/');
}

function merged(path: string): string {
  return path.replace(/\/+/g, '/');
}

test('the forms of a path are those that its readers make of it', () => {
  const forms = new PathForms();
  const pieces = ['/', '/', '.', '..', 'a', 'b', ';x', '%2f', '%2E', '%61', '%5c', '\\', '%', '%2', '%20', '%3b'];
  let plain = 0;
  for (let i = 0; i < 12_000; i++) {
    const path = `/${Array.from({ length: below(9) }, () => oneOf(pieces)).join('')}`;
    const [bytes, offset, length] = put(path);
    forms.load(bytes, offset, length);
    const expected = [
      path,
      withoutDots(decoded(path, false)),
      merged(withoutDots(decoded(path, false))),
      withoutDots(merged(decoded(path, true))),
      withoutDots(merged(decoded(path.replace(/;[^/]*/g, ''), true))),
    ];
    if (!hasForms(bytes, offset, length)) {
      plain++;
      assert.equal(forms.count, 1);
      assert.deepEqual(new Set(expected), new Set([path]), `${path} has other forms, seed ${seed}`);
      continue;
    }
    assert.equal(forms.count, PATH_FORMS);
    for (let form = 0; form < PATH_FORMS; form++) {
      const start = forms.offset(form);
      const got = Buffer.from(forms.memoryOf(form).subarray(start, start + forms.length(form))).toString('latin1');
      assert.equal(got, expected[form], `form ${form} of ${path}, seed ${seed}`);
    }
  }
  assert.ok(plain > 200, `${plain} were plain`);
});

test('what a list surely has it may have, and what it may have is what some reading of the path is', () => {
  const forms = new PathForms();
  const pieces = ['/', '/', '..', 'a', 'b', ';x', '%2f', '%61'];
  const pathOf = (): string => `/${Array.from({ length: below(5) }, () => oneOf(pieces)).join('')}`;
  for (let i = 0; i < 6_000; i++) {
    const value = `${pathOf()}${below(3) === 0 ? '*' : ''}`;
    const path = below(3) === 0 ? value.replace('*', '') : pathOf();
    const list = new PathList([value]);
    forms.load(...put(path));
    const sure = list.has(forms, false);
    if (sure) assert.equal(list.has(forms, true), true, `${value} and ${path}, seed ${seed}`);
    // The value itself, written exactly so, is always in the list.
    if (path === value) assert.equal(sure, true, `${value} and itself, seed ${seed}`);
  }
});
