// What a match can ask of a request, and in which order matches with one path are tried.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MatchConfig } from '../../../../config/config.ts';
import { loadConfig } from '../../../../config/load.ts';
import { encodeSockaddr, Family } from '../../../../core/ffi/sockaddr.ts';
import type { PeerAddress } from '../../../../core/io/connection.ts';
import {
  buildTable,
  lookupRequest,
  type MatchSketch,
  type RequestSketch,
  routeRequest,
  sketchMatch,
} from './table-fixture.ts';

/** The match of a rule that is written in YAML's flow style. */
function written(match: string): MatchConfig {
  const text = `listeners: [{name: h, address: ":80"}]
routes: [{name: r, rules: [{matches: [${match}], backendRefs: [{name: b}]}]}]
backends: [{name: b, endpoints: ["a:1"]}]`;
  const result = loadConfig(text, '/match.yaml', {});
  assert.ok('config' in result, `${match}: ${JSON.stringify(result)}`);
  return result.config.routes[0]!.rules[0]!.matches[0]!;
}

/** Asserts which requests a match takes. */
function assertTakes(match: string, yes: RequestSketch[], no: RequestSketch[]): void {
  const table = buildTable([{ rules: [[written(match)]] }]);
  for (const request of yes)
    assert.equal(lookupRequest(table, request), 0, `${match} takes ${JSON.stringify(request)}`);
  for (const request of no) {
    assert.equal(lookupRequest(table, request), -1, `${match} does not take ${JSON.stringify(request)}`);
  }
}

const target = (text: string): RequestSketch => ({ target: text });
const headers = (...lines: string[]): RequestSketch => ({ headers: lines });

function address(host: string): PeerAddress {
  const sockaddr = encodeSockaddr(host, 0)!;
  const view = new DataView(sockaddr.buffer);
  const v6 = host.includes(':');
  const word = (index: number): number => (v6 ? view.getInt32(8 + index * 4) : index === 0 ? view.getInt32(4) : 0);
  return {
    peerFamily: v6 ? Family.INET6 : Family.INET,
    peerPort: 0,
    peer0: word(0),
    peer1: word(1),
    peer2: word(2),
    peer3: word(3),
  };
}

const from = (host: string): RequestSketch => ({ client: address(host) });

test('a regular expression takes the whole path, without the query', () => {
  assertTakes(
    '{path: {type: RegularExpression, value: "/v[0-9]+/.*"}}',
    [target('/v1/'), target('/v22/a/b?x=/v'), target('http://h/v3/x')],
    [target('/v1'), target('/x/v1/'), target('/V1/'), target('/?/v1/')],
  );
  assertTakes('{path: {type: RegularExpression, value: "/"}}', [target('/'), target('/?a'), target('http://h?a')], []);
});

test('a method is compared as it is written', () => {
  assertTakes('{method: GET}', [{ method: 'GET' }], [{ method: 'HEAD' }, { method: 'get' }, { method: 'GETS' }]);
  assertTakes('{method: M-SEARCH}', [{ method: 'M-SEARCH' }], [{ method: 'M-SEARC' }, { method: 'GET' }]);
});

test('a field is found by its name in any case, its value is compared as it is', () => {
  assertTakes(
    '{headers: [{name: X-Canary, value: "yes"}]}',
    [headers('x-canary: yes'), headers('a: b', 'X-CANARY:yes  '), headers('x-canaryx: no', 'x-canary: yes')],
    [headers(), headers('x-canary: Yes'), headers('x-canary: yes!'), headers('x-canary:'), headers('x-canar: yes')],
  );
  // Known fields are found by their number.
  assertTakes('{headers: [{name: User-Agent, value: x}]}', [headers('user-agent: x')], [headers('user-agenu: x')]);
});

test('all fields must hold, and one that is absent never does', () => {
  const match = '{headers: [{name: a, value: "1"}, {name: b, type: RegularExpression, value: ".*"}]}';
  assertTakes(
    match,
    [headers('a: 1', 'b:'), headers('b: x', 'a: 1')],
    [headers('a: 1'), headers('b: x'), headers('a: 2', 'b: x')],
  );
});

test('several fields of a name count as one, joined with a comma', () => {
  assertTakes(
    '{headers: [{name: a, value: "1,2,3"}]}',
    [headers('a: 1', 'b: x', 'A: 2', 'a: 3'), headers('a: 1,2', 'a: 3'), headers('a: 1,2,3')],
    [headers('a: 1', 'a: 2'), headers('a: 1,2,3', 'a:'), headers('a: 12', 'a: 3'), headers('a: 2', 'a: 1', 'a: 3')],
  );
  assertTakes('{headers: [{name: a, value: "1;2"}]}', [headers('a: 1;2')], [headers('a: 1', 'a: 2')]);
  assertTakes('{headers: [{name: cookie, value: "a=1,b"}]}', [], [headers('cookie: a=1', 'cookie: b')]);
  assertTakes('{headers: [{name: cookie, value: "a=1;,b"}]}', [], [headers('cookie: a=1', 'cookie: b')]);
  assertTakes(
    '{headers: [{name: a, value: "1"}]}',
    [headers('a: 1')],
    [headers('a: 1', 'a: 1'), headers('a:', 'a: 1')],
  );
  assertTakes(
    '{headers: [{name: a, type: RegularExpression, value: "(x|y)(,(x|y))*"}]}',
    [headers('a: x', 'a: y', 'a: x'), headers('a: y')],
    [headers('a: x', 'a: z'), headers('a: x', 'a:')],
  );
});

test('several Cookie fields count as one, joined with a semicolon', () => {
  assertTakes(
    '{headers: [{name: cookie, value: "a=1; b=2"}]}',
    [headers('cookie: a=1', 'cookie: b=2')],
    [headers('cookie: a=1')],
  );
  assertTakes(
    '{headers: [{name: Cookie, type: RegularExpression, value: "(.*; )?b=2(;.*)?"}]}',
    [headers('cookie: a=1', 'cookie: b=2'), headers('cookie: b=2; c'), headers('cookie: b=2')],
    [headers('cookie: a=1', 'cookie: b=3')],
  );
});

test('a query parameter is decoded, its first occurrence counts', () => {
  assertTakes(
    '{queryParams: [{name: a b, value: "x/ü"}]}',
    [target('/?a%20b=x/%C3%BC'), target('/p?c=1&%61%20b=%78%2f%c3%bc&d'), target('/?&&a%20b=x%2F%C3%BC&a%20b=2')],
    [target('/'), target('/?a+b=x/%C3%BC'), target('/?A%20b=x/%C3%BC'), target('/?a%20b=2&a%20b=x/%C3%BC')],
  );
  assertTakes(
    '{queryParams: [{name: v, value: "1+1"}]}',
    [target('/?v=1+1'), target('/?x=v=2&v=1%2B1')],
    [target('/?v=1%201'), target('/?v=1+11'), target('/?v=1+'), target('/?vv=1+1'), target('/?v'), target('/v=1+1')],
  );
  // A malformed escape is what it is.
  assertTakes('{queryParams: [{name: "%", value: "%4"}]}', [target('/?%=%4'), target('/?%25=%254')], [target('/?%=4')]);
  assertTakes(
    '{queryParams: [{name: v, type: RegularExpression, value: "[0-9 ]*"}]}',
    [target('/?v=12'), target('/?v='), target('/?v'), target('/?v=1%202&v=x'), target('/?v&v=x')],
    [target('/?v=x'), target('/?v=1x&v=1'), target('/'), target('/?w=1')],
  );
});

test('calls of gRPC are told by method, content type and path', () => {
  const call = (path: string, type = 'application/grpc', method = 'POST'): RequestSketch => ({
    method,
    target: path,
    headers: ['content-length: 0', `content-type: ${type}`],
  });
  const types = ['application/grpc+proto', 'Application/GRPC;x=y', 'application/grpc-web-text+proto'];
  const exact = '{grpc: {service: shop.v1.Cart, method: Add}}';
  assertTakes(
    exact,
    [call('/shop.v1.Cart/Add'), ...types.map((type) => call('/shop.v1.Cart/Add', type))],
    [
      call('/shop.v1.Cart/Adds'),
      call('/shop.v1.Cart/Add/'),
      call('/shop.v1.Cart/Add', 'application/grpcx'),
      call('/shop.v1.Cart/Add', 'application/json'),
      call('/shop.v1.Cart/Add', 'application/grpc', 'GET'),
      { method: 'POST', target: '/shop.v1.Cart/Add' },
    ],
  );
  assertTakes(
    '{grpc: {service: shop.v1.Cart}}',
    [call('/shop.v1.Cart/Add'), call('/shop.v1.Cart/x')],
    [call('/shop.v1.Cart'), call('/shop.v1.Cart/'), call('/shop.v1.Cart/a/b'), call('/shopxv1.Cart/Add')],
  );
  assertTakes(
    '{grpc: {method: Add}}',
    [call('/a.B/Add'), call('/C/Add')],
    [call('/a.B/Adds'), call('/a/b/Add'), call('/Add')],
  );
  assertTakes('{grpc: {}}', [call('/a.B/Add')], [call('/a'), call('/a/b/c'), { target: '/a/b' }]);
  assertTakes(
    '{grpc: {type: RegularExpression, service: "shop[.].*", method: "Get|List"}}',
    [call('/shop.v1/Get'), call('/shop.x/List')],
    [call('/shop/Get'), call('/shop.v1/GetList'), call('/shop.v1/Get/List/x')],
  );
  assertTakes(
    '{grpc: {type: RegularExpression, method: "(?i)get"}}',
    [call('/a/GET')],
    [call('/a/b/GET'), call('/a/GE')],
  );
});

test('a client certificate counts only when it is verified', () => {
  const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
  const shown = (names: string[], verified = true): RequestSketch => ({
    certificate: { verified, subjectAltNames: names.map(encode), sha256Bytes: encode('ab'.repeat(32)) },
  });
  const spiffe = 'spiffe://c.local/ns/shop/sa/cart';
  assertTakes('{clientCertificate: {}}', [shown([])], [{}, shown([spiffe], false)]);
  assertTakes(
    `{clientCertificate: {subjectAltNames: [{value: "${spiffe}"}, {type: Prefix, value: "10.0."}]}}`,
    [shown(['x', spiffe]), shown(['10.0.0.1'])],
    [{}, shown([]), shown([spiffe], false), shown([`${spiffe}s`]), shown(['10.1.0.0', '10.0'])],
  );
  assertTakes(
    '{clientCertificate: {subjectAltNames: [{type: RegularExpression, value: "spiffe://c[.]local/ns/[^/]+/.*"}]}}',
    [shown([spiffe])],
    [shown(['spiffe://c.local/ns//sa'])],
  );
  assertTakes('{clientCertificate: {subjectAltNames: [{value: Shop.Example.com}]}}', [shown(['shop.example.com'])], []);
  assertTakes('{clientCertificate: {subjectAltNames: [{value: "2001:DB8:0::1"}]}}', [shown(['2001:db8::1'])], []);
  const hash = `${'AB:'.repeat(31)}ab`;
  assertTakes(`{clientCertificate: {sha256: ["${'00'.repeat(32)}", "${hash}"]}}`, [shown([])], [{}, shown([], false)]);
  assertTakes(`{clientCertificate: {sha256: ["${'00'.repeat(32)}"]}}`, [], [shown([])]);
  assertTakes(
    `{clientCertificate: {subjectAltNames: [{value: a}], sha256: ["${hash}"]}}`,
    [shown(['a'])],
    [shown(['b'])],
  );
});

test('a network has the addresses that begin like it, in whatever notation', () => {
  assertTakes(
    '{sourceAddresses: [10.0.0.0/8, 192.168.4.0/22, 1.2.3.4]}',
    [from('10.255.0.1'), from('192.168.7.255'), from('1.2.3.4'), from('::ffff:10.0.0.1')],
    [{}, from('11.0.0.0'), from('192.168.8.0'), from('1.2.3.5'), from('a00::')],
  );
  assertTakes('{sourceAddresses: [0.0.0.0/0]}', [from('255.1.2.3')], [from('::1')]);
  assertTakes('{sourceAddresses: ["::/0"]}', [from('::1'), from('ff::')], [from('1.2.3.4'), from('::ffff:1.2.3.4')]);
  assertTakes(
    '{sourceAddresses: ["2001:db8::/33", "fe80::1:0:0/96", "::ffff:10.1.0.0/112", "fd00::8000:0:0:0/65"]}',
    [from('2001:db8:7fff::1'), from('fe80::1:ffff:1'), from('10.1.2.3'), from('fd00::ffff:0:0:1')],
    [
      from('2001:db8:8000::'),
      from('fe80::2:0:0'),
      from('fe80:0:0:1::1:0:0'),
      from('10.2.0.0'),
      from('fd00::7fff:0:0:1'),
    ],
  );
  assertTakes('{sourceAddresses: ["::1"]}', [from('::1')], [from('::2'), from('1::1')]);
});

test('only tables that look at addresses ask for the client', () => {
  assert.ok(!buildTable([{ rules: [[written('{method: GET}')]] }]).needsClient);
  assert.ok(buildTable([{ rules: [['/'], [written('{sourceAddresses: [10.0.0.0/8]}')]] }]).needsClient);
});

/** Asserts that of rules with one match each, `order` says which wins, from the first to the last. */
function assertOrder(matches: MatchSketch[], request: RequestSketch, order: number[]): void {
  const left = new Set(matches.keys());
  for (const winner of order) {
    // Rules that have won already are out of the way under another host.
    const table = buildTable(
      [...matches.keys()].map((i) => ({ hostnames: [left.has(i) ? 'h' : 'other'], rules: [[matches[i]!]] })),
    );
    assert.equal(lookupRequest(table, request), winner, `after ${[...matches.keys()].filter((i) => !left.has(i))}`);
    left.delete(winner);
  }
}

test('Exact, regular expression, longest prefix, method, number of fields, number of parameters, place in the file', () => {
  const field = (name: string) => ({ name, type: 'Exact' as const, value: '1' });
  const all: RequestSketch = { target: '/a/b?p=1&q=1', headers: ['x: 1', 'y: 1', 'z: 1'] };
  assertOrder(
    [
      '/a',
      sketchMatch('/a', { headers: [field('x'), field('y'), field('z')] }),
      '/a/b',
      sketchMatch('/a/b', { queryParams: [field('p'), field('q')] }),
      sketchMatch('/a/b', { headers: [field('x')] }),
      sketchMatch('/a/b', { headers: [field('x')], queryParams: [field('p')] }),
      sketchMatch('/a/b', { headers: [field('x'), field('y')] }),
      sketchMatch('/a/b', { method: 'GET' }),
      '~/a.*',
      sketchMatch('~/a/b', { headers: [field('x')] }),
      '/a/b',
      '=/a/b',
      sketchMatch('=/a/b', { method: 'GET', headers: [field('x')] }),
    ],
    all,
    [12, 11, 9, 8, 7, 6, 5, 4, 3, 2, 10, 1, 0],
  );
});

test('for gRPC: the service, then the method, then the number of fields', () => {
  const call: RequestSketch = {
    method: 'POST',
    target: '/s.S/Method',
    headers: ['content-length: 0', 'content-type: application/grpc', 'x: 1'],
  };
  const field = { name: 'x', type: 'Exact' as const, value: '1' };
  const withField = (match: string): MatchConfig => {
    const config = written(match);
    return { ...config, conditions: { ...config.conditions!, headers: [field] } };
  };
  assertOrder(
    [
      withField('{grpc: {}}'),
      written('{grpc: {method: Method}}'),
      withField('{grpc: {method: Method}}'),
      withField('{grpc: {service: s.S}}'),
      written('{grpc: {service: s.S, method: Method}}'),
      written('{path: {value: /}, method: POST}'),
    ],
    call,
    [4, 3, 2, 1, 0, 5],
  );
});

test('a match that does not hold gives way to the next path, and then to the next host', () => {
  const no = { method: 'PUT' };
  const table = buildTable([
    { hostnames: ['h.a.com'], rules: [[sketchMatch('=/p', no)], [sketchMatch('~/p', no)], [sketchMatch('/p', no)]] },
    { hostnames: ['*.a.com'], rules: [[sketchMatch('/', no)], [sketchMatch('/', { method: 'GET' })]] },
    { rules: [['=/p']] },
  ]);
  assert.equal(lookupRequest(table, { host: 'h.a.com', target: '/p' }), 4);
  assert.equal(lookupRequest(table, { host: 'h.a.com', target: '/p', method: 'PUT' }), 0);
  assert.equal(lookupRequest(table, { host: 'h.a.com', target: '/p', method: 'POST' }), 5);
});

test('a rule says how much of the path its prefix took', () => {
  const table = buildTable([{ rules: [['/a/b/'], ['/'], ['=/e'], ['~/r.*'], ['/a']] }]);
  for (const [path, length] of [
    ['/a/b/c', 4],
    ['/a/b', 4],
    ['/a/', 2],
    ['/x', 0],
    ['/e', -1],
    ['/rx', -1],
  ] as const) {
    const request = routeRequest({ target: path });
    // That of the request before.
    request.prefixLength = 99;
    assert.ok(table.lookup(request) >= 0);
    assert.equal(request.prefixLength, length, path);
  }
});
