// From TLS of a configuration to contexts, names and keys of a snapshot.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileSnapshot } from '../../../config/compile.ts';
import type { LoadedCertificate, TlsMaterial } from '../../../config/compile-tls.ts';
import type { Config } from '../../../config/config.ts';
import { formatConfigError, loadConfig } from '../../../config/load.ts';
import type { ListenerSettings, Snapshot } from '../../../core/workers/snapshot.ts';

function load(yaml: string): Config {
  const result = loadConfig(`${yaml}\n`, '/gateway.yaml', {});
  assert.ok('config' in result, 'errors' in result ? result.errors.map(formatConfigError).join('\n') : '');
  return result.config;
}

/** Files by path; what a certificate is for stands before its key type: `a.test,b.test rsa`. */
function material(files: Record<string, string>, automatic: string[] = []): TlsMaterial {
  const loaded = (text: string, name: string): LoadedCertificate => {
    const [names, keyType] = text.split(' ') as [string, string];
    return {
      chainPem: `chain of ${name}`,
      keyPem: `key of ${name}`,
      names: names === '-' ? [] : names.split(','),
      keyType,
    };
  };
  return {
    certificate: ({ certificateFile, keyFile }) => {
      assert.equal(keyFile, certificateFile.replace('.crt', '.key'));
      return loaded(files[certificateFile]!, certificateFile);
    },
    authorities: (file) => files[file]!,
    automatic: (hostnames) =>
      automatic
        .map((text) => loaded(text, 'acme'))
        .filter(({ names }) => hostnames.some((name) => names.includes(name))),
    ticketKeys: [new Uint8Array(80)],
  };
}

function compile(yaml: string, files: TlsMaterial): Snapshot {
  return compileSnapshot(load(yaml), 1, new Map(), undefined, files);
}

/** A configuration with one listener that has these keys in its `tls`. */
function withTls(tls: string, more = ''): string {
  return `listeners: [{name: s, address: ":443", tls: {${tls}}${more}}]\nroutes: []\nbackends: []`;
}

function certificates(...entries: string[]): string {
  return `certificates: [${entries.map((entry) => `{certificate: ${entry}.crt, key: ${entry.split('.')[0]}.key}`).join(', ')}]`;
}

/** For each name (`*` stands for the default) the chains of its context. */
function chainsByName(snapshot: Snapshot, index = 0): Record<string, string[]> {
  const { names, defaultContext } = (snapshot.listeners[index] as ListenerSettings).tls!;
  const chains = (context: number): string[] =>
    snapshot.tls.contexts[context]?.certificates.map(({ chainPem }) => chainPem.slice('chain of /'.length)) ?? [];
  const entries = names.map(({ hostname, context }) => [hostname, chains(context)]);
  return Object.fromEntries([...entries, ['any', chains(defaultContext)]]);
}

test('certificates of the same names and different keys are put side by side, names decide otherwise', () => {
  const files = material({
    '/a.crt': 'a.test,www.a.test rsa',
    '/b.crt': '*.b.test ec',
    '/c.crt': 'www.a.test,a.test ec',
    '/d.crt': 'a.test,d.test rsa',
  });
  const snapshot = compile(withTls(certificates('a', 'b', 'c', 'd')), files);
  assert.deepEqual(chainsByName(snapshot), {
    'a.test': ['a.crt', 'c.crt'],
    'www.a.test': ['a.crt', 'c.crt'],
    '*.b.test': ['b.crt'],
    'd.test': ['d.crt'],
    any: ['a.crt', 'c.crt'],
  });
  assert.equal(snapshot.tls.contexts.length, 3, 'equal contexts are one');
  assert.equal(snapshot.tls.contexts[0]!.certificates[1]!.keyPem, 'key of /c.crt');
  assert.equal(snapshot.tls.ticketKeys.length, 1);
});

test('hostnames beside a certificate replace its own names', () => {
  const yaml = withTls(
    'certificates: [{certificate: a.crt, key: a.key}, {certificate: b.crt, key: b.key, hostnames: [X.test, "*.y.test"]}]',
  );
  const snapshot = compile(yaml, material({ '/a.crt': 'a.test ec', '/b.crt': 'b.test ec' }));
  assert.deepEqual(chainsByName(snapshot), {
    'a.test': ['a.crt'],
    'x.test': ['b.crt'],
    '*.y.test': ['b.crt'],
    any: ['a.crt'],
  });
});

test('a first certificate without names is for unknown names, with others of that sort', () => {
  const files = material({ '/a.crt': '- ec', '/b.crt': 'b.test ec', '/c.crt': '- rsa' });
  const snapshot = compile(withTls(certificates('a', 'b', 'c')), files);
  assert.deepEqual(chainsByName(snapshot), { 'b.test': ['b.crt'], any: ['a.crt', 'c.crt'] });
});

test('a context says all that a worker needs, and its key changes with any of it', () => {
  const keys = new Set<string>();
  const contextOf = (tls: string, more = '', files = {}): Snapshot['tls']['contexts'][0] => {
    const all = material({ '/a.crt': 'a.test ec', '/b.crt': 'a.test ec', '/ca.pem': 'roots', ...files });
    const context = compile(withTls(`${certificates('a')}${tls}`, more), all).tls.contexts[0]!;
    keys.add(context.key);
    return context;
  };
  const { key, ...plain } = contextOf('');
  assert.deepEqual(plain, {
    certificates: [{ chainPem: 'chain of /a.crt', keyPem: 'key of /a.crt' }],
    minVersion: '1.2',
    maxVersion: '1.3',
    cipherSuites: '',
    ciphers: '',
    alpn: ['h2', 'http/1.1'],
    clientValidation: null,
    sessionTickets: true,
  });
  assert.equal(contextOf('').key, key);
  assert.equal(contextOf(', minVersion: 1.3').minVersion, '1.3');
  assert.equal(contextOf(', maxVersion: 1.2').maxVersion, '1.2');
  const suites = ', cipherSuites: [TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256]';
  assert.equal(contextOf(suites).cipherSuites, 'TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256');
  assert.equal(contextOf(', ciphers: [ECDHE-RSA-AES128-GCM-SHA256]').ciphers, 'ECDHE-RSA-AES128-GCM-SHA256');
  assert.equal(contextOf(', sessionTickets: false').sessionTickets, false);
  assert.deepEqual(contextOf('', ', protocols: [http/1.1]').alpn, ['http/1.1']);
  assert.deepEqual(contextOf('', ', protocols: [tcp]').alpn, []);
  const validation = ', clientValidation: {caCertificates: ca.pem}';
  assert.deepEqual(contextOf(validation).clientValidation, { caPem: 'roots', mode: 'required' });
  assert.equal(contextOf(validation, '', { '/ca.pem': 'other roots' }).clientValidation!.caPem, 'other roots');
  assert.equal(keys.size, 10);
});

test('listeners say which protocols they speak, and passed-through TLS has no contexts', () => {
  const snapshot = compile(
    `listeners:
  - {name: a, address: ":1", protocols: [h2c], proxyProtocol: required, redirectToHttps: true}
  - {name: b, address: ":2", protocols: [tcp]}
  - {name: c, address: ":3", tls: {mode: Passthrough}}
  - {name: d, address: ":4", protocols: [tcp], tls: {${certificates('a')}}}
  - {name: e, address: ":5", protocols: [http/1.1], tls: {${certificates('a')}}}
timeouts: {tlsHandshake: 3s}
routes: []
backends: []`,
    material({ '/a.crt': 'a.test ec' }),
  );
  const flags = snapshot.listeners.map(({ scheme, http1, http2, tcp, proxyProtocol }) => [
    ...[scheme, http1, http2, tcp, proxyProtocol],
  ]);
  assert.deepEqual(flags, [
    ['http', false, true, false, true],
    ['http', false, false, true, false],
    ['https', false, false, true, false],
    ['https', false, false, true, false],
    ['https', true, false, false, false],
  ]);
  assert.deepEqual(snapshot.listeners[0]!.redirectToHttps, { port: 443, status: 301 });
  const passthrough = { passthrough: true, names: [], defaultContext: -1, handshakeTimeoutMs: 3000 };
  assert.deepEqual(snapshot.listeners[2]!.tls, passthrough);
  assert.equal(snapshot.listeners[3]!.tls!.passthrough, false);
  assert.equal(snapshot.tls.contexts.length, 2);
});

test('automatic certificates serve the names of their listener only; without one handshakes are refused', () => {
  const yaml = `acme: {storage: acme, termsOfServiceAgreed: true}
listeners:
  - {name: http, address: ":80"}
  - {name: a, address: ":1", tls: {acme: {hostnames: [a.test, www.a.test]}}}
  - {name: b, address: ":2", tls: {${certificates('b')}, acme: {hostnames: [c.test]}}}
routes: []
backends: []`;
  const files = { '/b.crt': 'b.test ec' };
  const before = compile(yaml, material(files));
  assert.deepEqual(chainsByName(before, 1), { any: [] });
  assert.equal(before.listeners[1]!.tls!.defaultContext, -1);
  const snapshot = compile(yaml, material(files, ['a.test,c.test ec']));
  assert.deepEqual(chainsByName(snapshot, 1), { 'a.test': ['cme'], any: ['cme'] });
  assert.deepEqual(chainsByName(snapshot, 2), { 'b.test': ['b.crt'], 'c.test': ['cme'], any: ['b.crt'] });
});

test('stream routes refer to listeners and backends by index', () => {
  const snapshot = compile(
    `listeners:
  - {name: http, address: ":1"}
  - {name: sni, address: ":2", tls: {mode: Passthrough}}
  - {name: tcp, address: ":3", protocols: [tcp]}
routes:
  - {name: t, kind: TCP, rules: [{backendRefs: [{name: b, weight: 2}, {name: a, weight: 0}]}]}
  - {name: h, rules: [{backendRefs: [{name: a}]}]}
  - {name: s, kind: TLS, hostnames: [A.test], rules: [{backendRefs: [{name: a}]}]}
backends: [{name: a, endpoints: ["10.0.0.1:1"]}, {name: b, endpoints: ["10.0.0.1:2"]}]`,
    material({}),
  );
  assert.deepEqual(snapshot.streamRoutes, [
    {
      name: 't',
      listeners: [2],
      hostnames: [],
      backendRefs: [
        { backend: 1, weight: 2 },
        { backend: 0, weight: 0 },
      ],
    },
    { name: 's', listeners: [1], hostnames: ['a.test'], backendRefs: [{ backend: 0, weight: 1 }] },
  ]);
});

test('TLS of backends carries the texts of its files; what a context is made of decides its key', () => {
  const files = { '/c.crt': 'client ec', '/ca.pem': 'roots' };
  const backend = (tls: string, more = '', changed = {}): Snapshot['backends'][0] =>
    compile(
      `listeners: [{name: a, address: ":1"}]\nroutes: []
backends: [{name: b, endpoints: ["b.test:1"], tls: {${tls}}${more}}]`,
      material({ ...files, ...changed }),
    ).backends[0]!;
  const { key, ...plain } = backend('').tls!;
  assert.deepEqual(plain, {
    serverName: 'b.test',
    verifyNames: null,
    caPem: null,
    certificate: null,
    verify: true,
    minVersion: '1.2',
    maxVersion: '1.3',
  });
  const full = backend(
    'caCertificates: ca.pem, certificate: c.crt, key: c.key, subjectAltNames: [x.test]',
    ', protocol: h2',
  );
  assert.equal(full.protocol, 'h2');
  assert.equal(full.tls!.caPem, 'roots');
  assert.deepEqual(full.tls!.certificate, { chainPem: 'chain of /c.crt', keyPem: 'key of /c.crt' });
  assert.deepEqual(full.tls!.verifyNames, ['x.test']);
  assert.equal(backend('serverName: y.test').tls!.key, key, 'names belong to connections');
  const others = [
    backend('caCertificates: ca.pem'),
    backend('caCertificates: ca.pem', '', { '/ca.pem': 'new roots' }),
    backend('certificate: c.crt, key: c.key'),
    backend('insecureSkipVerify: true'),
    backend('minVersion: 1.3'),
    backend('', ', protocol: h2'),
  ].map(({ tls }) => tls!.key);
  assert.equal(new Set([key, ...others]).size, 7);
});

test('backends carry their protocol, PROXY header and HTTP/2 settings', () => {
  const snapshot = compile(
    `listeners: [{name: a, address: ":1"}]
routes: []
backends:
  - {name: a, endpoints: ["10.0.0.1:1"], protocol: h2c, http2: {maxConcurrentStreams: 7, pingInterval: 0}}
  - {name: b, endpoints: ["10.0.0.1:1"], proxyProtocol: v1}
  - {name: c, endpoints: ["10.0.0.1:1"], proxyProtocol: v2}`,
    material({}),
  );
  assert.deepEqual(
    snapshot.backends.map(({ protocol, proxyProtocol }) => [protocol, proxyProtocol]),
    [
      ['h2', 0],
      ['http/1.1', 1],
      ['http/1.1', 2],
    ],
  );
  const expected = { streamsPerConnectionMax: 7, connectionsMax: 4, pingIntervalMs: 0, pingTimeoutMs: 10_000 };
  assert.deepEqual(snapshot.backends[0]!.http2, expected);
});
