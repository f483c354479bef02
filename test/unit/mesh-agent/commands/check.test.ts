// `portcullis mesh check`: what a directory is told, with the places, and the exit codes.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { runCli } from '../../../../gateway/cli.ts';
import { meshWarnings } from '../../../../mesh-agent/control/directory-check.ts';
import { temporaryDirectory, writeConfig } from './support.ts';

const CART = `kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80}]}
---
kind: Workload
metadata: {name: cart-0, namespace: shop, labels: {app: cart}}
spec: {addresses: [10.0.0.1], serviceAccount: cart, node: host-a}
`;

async function check(
  t: TestContext,
  files: Record<string, string>,
  ...options: string[]
): Promise<{ code: number; out: string; err: string }> {
  const directory = join(temporaryDirectory(t), 'mesh');
  mkdirSync(directory);
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), text);
  }
  let [out, err] = ['', ''];
  const io = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) };
  const code = await runCli(['mesh', 'check', directory, ...options], io);
  // The file as it is found from here, with the path before it cut off.
  const short = (text: string): string => text.replaceAll(/[^\s"]*\/mesh\//g, '').replaceAll(directory, 'mesh');
  return { code, out: short(out), err: short(err) };
}

test('a good directory is summed up, with everything that a control plane passes over left out', async (t) => {
  const files = { 'a/cart.yaml': CART, '.hidden.yaml': 'kind: [', 'README.md': 'text' };
  assert.deepEqual(await check(t, files), {
    code: 0,
    out: 'mesh is valid: 1 file, 1 workload, 1 service, 0 authorisation policies\n',
    err: '',
  });
});

test('a file that cannot be read is an error of its own, and the others are judged', async (t) => {
  const [elsewhere, target] = [temporaryDirectory(t), join(temporaryDirectory(t), 'gone.yaml')];
  writeFileSync(join(elsewhere, 'cart.yaml'), `${CART}  more: 1\n`);
  symlinkSync(target, join(elsewhere, 'link.yaml'));
  let err = '';
  assert.equal(await runCli(['mesh', 'check', elsewhere], { out: () => {}, err: (text) => void (err += text) }), 1);
  assert.match(err, /link\.yaml: the file cannot be read \(ENOENT\)/);
  assert.match(err, /cart\.yaml:\d+/);
});

test('global rate limits are valid: which nodes have a redis is not known here', async (t) => {
  const policy = (limit: string): string => `kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec: {service: cart, rules: [{rateLimits: [{name: total, ${limit}}]}]}
`;
  const valid = await check(t, { 'cart.yaml': CART, 'traffic.yaml': policy('requests: 5, global: true') });
  assert.deepEqual([valid.code, valid.err], [0, '']);
  const wrong = await check(t, { 'cart.yaml': CART, 'traffic.yaml': policy('requests: 2000000, global: yes') });
  assert.equal(wrong.code, 1);
  assert.match(wrong.err, /traffic\.yaml:3:\d+: spec\.rules\[0\]\.rateLimits\[0\]\.global: "yes" is not valid/);
});

test('every error of every file is told with its place, also those that only show together', async (t) => {
  const { code, out, err } = await check(t, {
    'cart.yaml': CART,
    'broken.yaml': 'kind: Workload\nmetadata: {nmae: x}\nspec: {addresses: [10.0.0.300]}\n',
    'taken.yaml': CART.replaceAll('cart', 'card'),
    'traffic.yaml': 'kind: TrafficPolicy\nmetadata: {name: t, namespace: shop}\nspec: {service: cat}\n',
  });
  assert.equal(code, 1);
  assert.equal(out, '');
  assert.deepEqual(err.split('\n'), [
    'broken.yaml:2:11: metadata: key "name" is missing, expected a name of lower-case letters, digits, "-" and "."',
    'broken.yaml:2:12: metadata: unknown key "nmae", expected one of name, namespace, labels, did you mean "name"?',
    'broken.yaml:3:20: spec.addresses[0]: "10.0.0.300" is not an IP address, expected an IP address',
    'taken.yaml:7:20: address 10.0.0.1 is taken already by Workload shop/cart-0 at cart.yaml:7:19',
    'traffic.yaml:3:17: spec.service: there is no service "cat", did you mean cart?',
    '5 errors in mesh',
    '',
  ]);
});

test('what is valid and probably not meant is a warning with a name', async (t) => {
  const policies = `kind: AuthorizationPolicy
metadata: {name: typo, namespace: shop}
spec: {selector: {matchLabels: {app: crat}}}
---
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/cart, "*", cluster.local/ns/shop/sa/wbe, other/ns/a/sa/b]}}]
    - from: [{source: {principals: [cluster.local/node/host-a, cluster.local/node/host-z]}}]
---
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: blog}
spec: {action: DENY}
---
kind: Service
metadata: {name: idle, namespace: shop}
spec: {selector: {app: idle}, ports: [{port: 80}]}
`;
  const files = { 'cart.yaml': CART, 'policies.yaml': policies };
  const { code, out, err } = await check(t, files);
  assert.equal(code, 0);
  assert.match(out, /^mesh is valid, with 5 warnings: 2 files, /);
  assert.deepEqual(err.split('\n'), [
    'policies.yaml:3:18: warning[unused-policy]: AuthorizationPolicy shop/typo: namespace shop has no workload that the selector matches',
    'policies.yaml:9:73: warning[unknown-principal]: AuthorizationPolicy shop/nobody: no workload has the identity spiffe://cluster.local/ns/shop/sa/wbe',
    'policies.yaml:10:64: warning[unknown-principal]: AuthorizationPolicy shop/nobody: no workload has the identity spiffe://cluster.local/node/host-z',
    'policies.yaml:13:18: warning[unused-policy]: AuthorizationPolicy blog/elsewhere: namespace blog has no workload at all',
    'policies.yaml:18:18: warning[service-without-workloads]: Service shop/idle: no workload of namespace shop has the labels, so that every request to it fails',
    '',
  ]);
  assert.equal((await check(t, files, '--warnings-as-errors')).code, 1);
  const json = JSON.parse((await check(t, files, '--format', 'json')).out);
  assert.deepEqual(json[0], {
    ...{ file: 'policies.yaml', line: 3, column: 18, severity: 'warning', name: 'unused-policy' },
    message: 'AuthorizationPolicy shop/typo: namespace shop has no workload that the selector matches',
  });
  // Identities are those of the trust domain that is named.
  assert.match((await check(t, files, '--trust-domain', 'other')).err, /other\/ns\/a\/sa\/b$/m);
});

test('policies that deny more than is meant are warnings, each at its place', async (t) => {
  const policies = `kind: AuthorizationPolicy
metadata: {name: open, namespace: shop}
spec:
  rules: [{to: [{operation: {methods: [GET]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: shut, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules: [{to: [{operation: {methods: [GET, POST]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: all, namespace: root}
spec: {scope: global, action: DENY, rules: [{}]}
`;
  const files = { 'cart.yaml': CART.replace('{port: 80}', '{port: 80, protocol: tcp}'), 'p.yaml': policies };
  const { code, err } = await check(t, files);
  assert.equal(code, 0);
  const lines = err.split('\n').map((line) => line.replace(/: AuthorizationPolicy.*/, ''));
  assert.deepEqual(lines, [
    'p.yaml:4:3: warning[contradiction]',
    'p.yaml:11:11: warning[deny-closes-tcp]',
    'p.yaml:15:45: warning[deny-everything]',
    '',
  ]);
  const http = await check(t, { ...files, 'cart.yaml': CART.replace('{port: 80}', '{port: 80, protocol: http}') });
  assert.doesNotMatch(http.err, /deny-closes-tcp/);
  // Beside a cluster nobody knows the workloads from here, and what is written tells enough.
  const config = writeConfig(t, 'trustDomain: cluster.local\nca: {directory: ca}\nsource: {kubernetes: {}}\n');
  const beside = await check(t, { 'p.yaml': policies }, '--config', config);
  assert.deepEqual(beside.err.match(/warning\[[a-z-]+\]/g), ['warning[contradiction]', 'warning[deny-everything]']);
});

const TRAFFIC = `kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec:
  service: cart
`;

for (const [name, spec, place, problem] of [
  ['unsafe-retry', 'rules: [{retry: {attempts: 1, retryUnsafe: true}}]', '5:46', 'rules[0].retry.retryUnsafe: POST'],
  [
    'shadowed-rule',
    'rules: [{backendRefs: [{name: cart}]}, {backendRefs: [{name: cart}]}]',
    '5:42',
    'rules[1]: this rule never takes a request, because rule 1 of this policy takes them all',
  ],
  [
    'shadowed-match',
    'rules: [{matches: [{method: GET}, {method: PUT}, {method: GET}]}]',
    '5:52',
    'rules[0].matches[2]: this match never',
  ],
  [
    'timeout-nesting',
    'rules: [{timeouts: {request: 1s}}]\n  backend: {connectTimeout: 3s}',
    '5:32',
    'rules[0].timeouts.request: connectTimeout of backend "shop/cart.shop.svc.cluster.local" (3000 ms) never runs out',
  ],
  [
    'retry-time',
    'rules: [{timeouts: {request: 2s, backendRequest: 1s}, retry: {attempts: 2}}]',
    '5:75',
    'rules[0].retry.attempts: 3 attempts of backendRequest (1000 ms) take up to 3000 ms',
  ],
  ['zero-weight', 'rules: [{backendRefs: [{name: cart, weight: 0}, {name: web}]}]', '5:47', 'rules[0].backendRefs[0]'],
  [
    'retry-amplification',
    'rules: [{retry: {attempts: 5}}]',
    '5:30',
    'rules[0].retry.attempts: one request can become 6',
  ],
  [
    'timeout-nesting',
    'backend: {healthCheck: {type: HTTP, interval: 1s, timeout: 2s}}',
    '5:62',
    'backend.healthCheck.timeout: a check may take longer',
  ],
  [
    'ineffective-policy',
    'rules: [{hedge: {delay: 1s}, filters: [{type: DirectResponse, directResponse: {statusCode: 200}}]}]',
    '5:12',
    'rules[0].hedge: the proxy itself answers the requests of this rule',
  ],
] as const) {
  test(`a traffic policy is judged as the rules of a gateway are: ${name} (${place})`, async (t) => {
    const web = CART.replaceAll('cart', 'web').replace('10.0.0.1', '10.0.0.2');
    const files = { 'cart.yaml': `${CART}---\n${web}`, 't.yaml': `${TRAFFIC}  ${spec}\n` };
    const { code, err } = await check(t, files);
    assert.equal(code, 0, err);
    const [first, ...others] = err.split('\n');
    assert.deepEqual(others, [''], err);
    assert.ok(first!.startsWith(`t.yaml:${place}: warning[${name}]: spec.${problem}`), first);
  });
}

test('what is good in a traffic policy, or a matter of its workloads, is no warning', async (t) => {
  const spec = `  rules:
    - matches: [{path: {type: PathPrefix, value: /a}}]
      timeouts: {request: 5s, backendRequest: 1s}
      retry: {attempts: 2}
    - {backendRefs: [{name: cart}], sessionPersistence: {}}
  backend:
    loadBalancer: {policy: PeakEWMA}
    circuitBreaker: {maxRetries: 5, highPriority: {maxRequests: 5}}
    outlierDetection: {successRate: {minimumHosts: 10}}
`;
  const { code, err } = await check(t, { 'cart.yaml': CART, 't.yaml': `${TRAFFIC}${spec}` });
  assert.deepEqual([code, err], [0, '']);
});

test('every warning is documented where those of the mesh are', () => {
  const page = readFileSync(new URL('../../../../docs/mesh/control.md', import.meta.url), 'utf8');
  const names = Object.keys(meshWarnings);
  assert.ok(names.length > 15);
  for (const name of names) assert.ok(page.includes(`\`${name}\``), name);
});

test('policies beside a cluster are judged without the services that only the cluster knows', async (t) => {
  const config = writeConfig(t, 'trustDomain: cluster.local\nca: {directory: ca}\nsource: {kubernetes: {}}\n');
  const traffic = 'kind: TrafficPolicy\nmetadata: {name: t, namespace: shop}\nspec: {service: cart, rules: [{}]}\n';
  const good = await check(t, { 'traffic.yaml': traffic }, '--config', config);
  assert.deepEqual([good.code, good.err], [0, '']);
  const wrong = await check(t, { 'w.yaml': CART, 't.yaml': traffic.replace('rules', 'ruels') }, '--config', config);
  assert.equal(wrong.code, 1);
  assert.match(wrong.err, /^t\.yaml:3:23: .*did you mean "rules"\?$/m);
  assert.match(wrong.err, /^w\.yaml:1:7: Services of this mesh come from its other source/m);
});

test('services are named after the domain of the cluster', async (t) => {
  const traffic = (host: string): string => `${TRAFFIC.replace('service: cart', `service: ${host}`)}  rules: [{}]\n`;
  const files = { 'cart.yaml': CART, 't.yaml': traffic('cart.shop.svc.mesh.internal') };
  assert.deepEqual((await check(t, files, '--cluster-domain', 'mesh.internal')).err, '');
  assert.match((await check(t, files)).err, /there is no service "cart\.shop\.svc\.mesh\.internal"/);
  const config = writeConfig(
    t,
    'trustDomain: cluster.local\nclusterDomain: mesh.internal\nca: {directory: ca}\nsource: {directory: .}\n',
  );
  assert.deepEqual((await check(t, files, '--config', config)).err, '');
});

test('wrong use is said', async (t) => {
  for (const [args, text] of [
    [['check'], /needs a directory, or --config FILE/],
    [['check', 'a', 'b'], /takes one directory, not b as well/],
    [['check', 'a', '--format', 'xml'], /--format is text or json, not xml/],
    [['aply'], /unknown command aply: did you mean apply\?/],
    [['apply'], /needs a file or a directory/],
    [['apply', '--timeout', '5', 'x'], /--timeout: 5 is not a duration/],
    [['wait', 'x'], /takes no argument x/],
    [['rotate'], /needs --config FILE/],
    [['rotate', '--config', 'x', '--abort', '--forget', 'y'], /contradict each other/],
  ] as const) {
    let err = '';
    const code = await runCli(['mesh', ...args], { out: () => {}, err: (message) => void (err += message) });
    assert.equal(code, 2, args.join(' '));
    assert.match(err, text);
  }
  let err = '';
  const nowhere = join(temporaryDirectory(t), 'nowhere');
  assert.equal(await runCli(['mesh', 'check', nowhere], { out: () => {}, err: (text) => void (err += text) }), 1);
  assert.match(err, /cannot read \S+nowhere: it does not exist\./);
  for (const command of ['check', 'apply', 'wait', 'rotate']) {
    let out = '';
    assert.equal(await runCli(['mesh', command, '--help'], { out: (text) => void (out += text), err: () => {} }), 0);
    assert.match(out, new RegExp(`portcullis mesh ${command} `));
  }
});
