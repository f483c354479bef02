// Precedence of the route table (Gateway API HTTPRoute), case by case.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileRouteTable } from '../../../../config/compile-routes.ts';
import { RouteTable } from '../../../../core/routing/route-table.ts';
import { Header, Slot } from '../../../../core/routing/route-table-format.ts';
import { buildTable, lookup, type RouteSketch, sketchRoutes } from './table-fixture.ts';

/** Asserts which rule takes each "host path" request. */
function assertRules(sketches: RouteSketch[], expected: Record<string, number>): void {
  const table = buildTable(sketches);
  for (const [request, rule] of Object.entries(expected)) {
    const [host, path] = request.split(' ');
    assert.equal(lookup(table, host!, path!), rule, request);
  }
}

test('an exact hostname wins over every wildcard, a longer wildcard over a shorter, any host comes last', () => {
  assertRules(
    [
      { rules: [['/']] },
      { hostnames: ['*.com'], rules: [['/']] },
      { hostnames: ['*.example.com'], rules: [['/']] },
      { hostnames: ['*.a.example.com'], rules: [['/']] },
      { hostnames: ['b.a.example.com'], rules: [['/']] },
    ],
    {
      'b.a.example.com /': 4,
      'c.a.example.com /': 3,
      'a.example.com /': 2,
      'x.y.example.com /': 2,
      'example.com /': 1,
      'com /': 0,
      'example.org /': 0,
      ' /': 0,
    },
  );
});

test('a wildcard needs at least one label before its suffix', () => {
  assertRules([{ hostnames: ['*.example.com'], rules: [['/']] }], {
    'a.example.com /': 0,
    'a.b.example.com /': 0,
    'example.com /': -1,
    '.example.com /': -1,
    'aexample.com /': -1,
  });
});

test('hosts are compared without regard to case and without one dot at their end', () => {
  assertRules(
    [
      { hostnames: ['shop.example.com'], rules: [['/']] },
      { hostnames: ['*.net'], rules: [['/']] },
    ],
    {
      'SHOP.Example.COM /': 0,
      'shop.example.com. /': 0,
      'shop.example.com.. /': -1,
      'A.NET. /': 1,
      '. /': -1,
      // Differs from a letter only in the bit that case is about.
      'shop\x0eexample.com /': -1,
      's`op.example.com /': -1,
    },
  );
});

test('an Exact path wins over every prefix, and a longer prefix over a shorter', () => {
  assertRules([{ rules: [['/'], ['/a'], ['/a/b'], ['=/a/b'], ['=/a/b/']] }], {
    'h /': 0,
    'h /x': 0,
    'h /a': 1,
    'h /a/': 1,
    'h /a/x': 1,
    'h /a/b': 3,
    'h /a/b/': 4,
    'h /a/b/c': 2,
    'h /a/b//': 2,
    'h /ab': 0,
    'h /a/bc': 1,
    'h /A': 0,
  });
});

test('a slash at the end of a prefix is ignored', () => {
  assertRules([{ rules: [['/foo/'], ['=/bar/']] }], {
    'h /foo': 0,
    'h /foo/': 0,
    'h /foo/bar': 0,
    'h /foobar': -1,
    'h /fo': -1,
    'h /bar/': 1,
    'h /bar': -1,
  });
});

test('the rule that comes first in the file wins a tie, within a route and between routes', () => {
  assertRules(
    [
      { hostnames: ['a.com'], rules: [['/x', '/y'], ['/x']] },
      { hostnames: ['b.com', 'a.com'], rules: [['/x'], ['/z', '/z/']] },
    ],
    { 'a.com /x': 0, 'a.com /y': 0, 'b.com /x': 2, 'a.com /z': 3 },
  );
});

test('a hostname without a matching path gives way to the next less specific one', () => {
  assertRules(
    [
      { rules: [['/everywhere']] },
      { hostnames: ['*.com'], rules: [['/all']] },
      { hostnames: ['*.a.com'], rules: [['/a']] },
      { hostnames: ['x.a.com'], rules: [['=/x']] },
    ],
    { 'x.a.com /x': 3, 'x.a.com /a': 2, 'x.a.com /all': 1, 'x.a.com /everywhere': 0, 'x.a.com /none': -1 },
  );
});

test('a rule bound to listeners takes no request of another listener, which may go to a later or less specific rule', () => {
  const table = buildTable([
    { listeners: ['l1', 'l33'], hostnames: ['a.com'], rules: [['/p']] },
    { listeners: ['l2'], hostnames: ['a.com'], rules: [['/p']] },
    { listeners: ['l39'], rules: [['/']] },
  ]);
  assert.equal(lookup(table, 'a.com', '/p', 1), 0);
  assert.equal(lookup(table, 'a.com', '/p', 33), 0);
  assert.equal(lookup(table, 'a.com', '/p', 2), 1);
  assert.equal(lookup(table, 'a.com', '/p', 39), 2);
  assert.equal(lookup(table, 'a.com', '/p', 0), -1);
  assert.equal(lookup(table, 'a.com', '/p', 32), -1);
});

test('an empty path means "/", and "*" is taken by the prefix "/"', () => {
  assertRules([{ rules: [['=/'], ['/']] }], { 'h ': 0, 'h /': 0, 'h *': 1 });
  assertRules([{ rules: [['/']] }], { 'h ': 0 });
  assertRules([{ rules: [['=/'], ['/a']] }], { 'h *': -1 });
});

test('paths far longer and deeper than any configured one are matched by their start', () => {
  const deep = '/a'.repeat(3000);
  assertRules([{ rules: [['/a/a'], ['=/a/a/a/a']] }], { [`h ${deep}`]: 0, 'h /a/a/a/a': 1, 'h /a/a/a/ab': 0 });
  const prefix = '/a'.repeat(40);
  assertRules([{ rules: [[prefix], ['/a'.repeat(35)], ['/a']] }], {
    [`h ${deep}`]: 0,
    [`h ${'/a'.repeat(39)}`]: 1,
    [`h ${'/a'.repeat(33)}`]: 2,
  });
});

test('hosts far longer than any configured one are matched by their end', () => {
  const long = `${'a.'.repeat(2000)}example.com`;
  assertRules([{ hostnames: ['*.example.com'], rules: [['/']] }], { [`${long} /`]: 0 });
  assertRules([{ hostnames: ['example.com'], rules: [['/']] }], { [`${long} /`]: -1 });
});

test('a table without routes matches nothing', () => {
  assertRules([], { 'a.com /': -1, ' ': -1 });
});

test('a rule gives back its timeouts, its backends with weights, and its name', () => {
  const routes = sketchRoutes([{ rules: [['/']] }]);
  routes.push({
    name: 'shöp',
    listeners: null,
    hostnames: null,
    rules: [
      routes[0]!.rules[0]!,
      {
        matches: [{ path: { type: 'PathPrefix', value: '/s' } }],
        requestTimeoutMs: 3000,
        backendRequestTimeoutMs: 1000,
        grpcWeb: false,
        policy: null,
        backendRefs: [
          { name: 'c', weight: 1_000_000, policy: null },
          { name: 'b', weight: 0, policy: null },
        ],
      },
    ],
  });
  const table = new RouteTable(compileRouteTable({ listeners: [], backends: ['a', 'b', 'c'], routes }));
  assert.equal(table.ruleCount, 3);
  assert.equal(table.requestTimeoutMs(2), 3000);
  assert.equal(table.backendRequestTimeoutMs(2), 1000);
  assert.equal(table.backendRefCount(2), 2);
  assert.deepEqual([table.backendRefIndex(2, 0), table.backendRefIndex(2, 1)], [2, 1]);
  assert.deepEqual([table.backendRefWeight(2, 0), table.backendRefWeight(2, 1)], [1_000_000, 0]);
  assert.equal(table.backendRefWeightTotal(2), 1_000_000);
  assert.equal(table.routeName(2), 'shöp');
  assert.equal(table.ruleLabel(2), 'shöp rule 2');
  assert.equal(table.ruleLabel(0), 'r0 rule 1');
});

test('a rule says whether gRPC-Web is translated', () => {
  const routes = sketchRoutes([{ rules: [['/a'], ['/b'], ['/c']] }]);
  routes[0]!.rules[1]!.grpcWeb = true;
  routes[0]!.rules[2]!.grpcWeb = false;
  const table = new RouteTable(compileRouteTable({ listeners: [], backends: ['b'], routes }));
  assert.deepEqual(
    [0, 1, 2].map((rule) => table.grpcWeb(rule)),
    [false, true, false],
  );
});

test('keys with equal hashes are told apart by their bytes, their host and their kind', () => {
  // The table keeps each key's hash only to save comparisons. Its entries change places here, as if
  // the hashes of their keys had collided: none may answer for another.
  const digits = [...'0123456789'];
  const cases: [string, RouteSketch[], slots: number, mask: number, requests: string[]][] = [
    [
      'paths of one host',
      [{ rules: [digits.map((i) => `/p${i}`), digits.map((i) => `=/e${i}`)] }],
      Header.PATH_SLOTS,
      Header.PATH_SLOT_MASK,
      digits.flatMap((i) => [`h /p${i}`, `h /e${i}`]),
    ],
    [
      'one path of many hosts',
      digits.map((i) => ({ hostnames: [`h${i}`], rules: [['/p']] })),
      Header.PATH_SLOTS,
      Header.PATH_SLOT_MASK,
      digits.map((i) => `h${i} /p`),
    ],
    ['one path of both kinds', [{ rules: [['/p', '=/p']] }], Header.PATH_SLOTS, Header.PATH_SLOT_MASK, ['h /p']],
    [
      'hosts',
      digits.map((i) => ({ hostnames: [`h${i}`], rules: [['/']] })),
      Header.HOST_SLOTS,
      Header.HOST_SLOT_MASK,
      digits.map((i) => `h${i} /`),
    ],
    [
      'hosts that start alike',
      [
        { hostnames: ['ab'], rules: [['/']] },
        { hostnames: ['abc'], rules: [['/']] },
      ],
      Header.HOST_SLOTS,
      Header.HOST_SLOT_MASK,
      ['ab /', 'abc /'],
    ],
    [
      'paths that start alike',
      [{ rules: [['=/ab', '=/abc']] }],
      Header.PATH_SLOTS,
      Header.PATH_SLOT_MASK,
      ['h /ab', 'h /abc'],
    ],
  ];
  for (const [name, sketches, slots, mask, requests] of cases) {
    const buffer = compileRouteTable({ listeners: [], backends: ['b'], routes: sketchRoutes(sketches) });
    rotateEntries(new Int32Array(buffer), slots, mask);
    const table = new RouteTable(buffer);
    for (const request of requests) {
      const [host, path] = request.split(' ');
      assert.equal(lookup(table, host!, path!), -1, `${name}: ${request}`);
    }
  }
});

/** Moves every entry of a slot table to the slot of the next one; the hashes stay. */
function rotateEntries(words: Int32Array, slotsWord: number, maskWord: number): void {
  const taken: number[] = [];
  for (let slot = 0; slot <= words[maskWord]!; slot++) {
    const at = words[slotsWord]! + slot * Slot.WORDS + Slot.ENTRY;
    if (words[at] !== 0) taken.push(at);
  }
  const entries = taken.map((at) => words[at]!);
  for (const [i, at] of taken.entries()) words[at] = entries[(i + 1) % entries.length]!;
}

test('a buffer that is not a table of this version is refused', () => {
  assert.throws(() => new RouteTable(new SharedArrayBuffer(4096)), /not a compiled route table/);
  assert.throws(() => new RouteTable(new SharedArrayBuffer(8)), /not a compiled route table/);
  const buffer = compileRouteTable({ listeners: [], backends: [], routes: [] });
  new Int32Array(buffer)[Header.VERSION] = 99;
  assert.throws(() => new RouteTable(buffer), /version 99, expected 5/);
});

test('listeners that share no route have rules of their own, with names and without', () => {
  const routes = sketchRoutes([
    { rules: [['/a'], ['/']], listeners: ['l0'] },
    { rules: [['/']], listeners: ['l1'] },
    { hostnames: ['h'], rules: [['/a']], listeners: ['l1'] },
    { rules: [['/b']], listeners: ['l2', 'l3'] },
    { rules: [['/b']], listeners: ['l3'] },
  ]);
  const table = new RouteTable(
    compileRouteTable({ listeners: ['l0', 'l1', 'l2', 'l3', 'l4'], backends: ['b'], routes }),
  );
  const found = (listener: number) =>
    ['h /a', 'x /a', 'h /b'].map((text) => {
      const [host, path] = text.split(' ');
      return lookup(table, host!, path!, listener);
    });
  assert.deepEqual([0, 1, 2, 3, 4].map(found), [
    [0, 0, 1],
    [3, 2, 2],
    [-1, -1, 4],
    [-1, -1, 4],
    [-1, -1, -1],
  ]);
});
