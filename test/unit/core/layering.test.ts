// The shape of the source: who may import whom, and what hot modules keep out of their functions.
// A rule that has to give way is changed here, with its reason, and not by an exception elsewhere.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';

const root = join(import.meta.dirname, '../../..');
const TOP_FOLDERS = ['core', 'config', 'gateway', 'mesh-agent'];

interface Import {
  /** Path from the repository's root, or the package as written. */
  target: string;
  /** Only types: gone at run time. */
  typeOnly: boolean;
  /** Imported when it is needed. */
  lazy: boolean;
}

interface Module {
  path: string;
  text: string;
  imports: Import[];
}

function importsOf(path: string, text: string): Import[] {
  const found: Import[] = [];
  const statements = text.matchAll(/^(?:import|export)\s+(type\s+)?(?:([^'";]*?)\s+from\s+)?'([^']+)'/gm);
  for (const [, type, names, specifier] of statements) {
    const target = specifier.startsWith('.') ? relative(root, join(root, dirname(path), specifier)) : specifier;
    const braced = /^\{([^}]*)\}$/.exec((names ?? '').trim());
    const list = braced === null ? [] : braced[1].split(',').filter((name) => name.trim() !== '');
    const allTypes = list.length > 0 && list.every((name) => name.trim().startsWith('type '));
    found.push({ target, typeOnly: type !== undefined || allTypes, lazy: false });
  }
  for (const [, specifier] of text.matchAll(/\bimport\(\s*'(\.[^']+)'\s*\)/g)) {
    found.push({ target: relative(root, join(root, dirname(path), specifier)), typeOnly: false, lazy: true });
  }
  return found;
}

const modules: Module[] = TOP_FOLDERS.filter((folder) => existsSync(join(root, folder)))
  .flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map((file) => join(folder, file)),
  )
  .filter((path) => path.endsWith('.ts'))
  .map((path) => {
    const text = readFileSync(join(root, path), 'utf8');
    return { path, text, imports: importsOf(path, text) };
  });

/** `core/io` of `core/io/arena.ts`. */
function folderOf(path: string): string {
  return path.split('/').slice(0, 2).join('/');
}

test('the modules are found', () => {
  assert.ok(modules.length > 80, `${modules.length} modules`);
  for (const { path, imports } of modules) {
    for (const { target } of imports) {
      if (target.endsWith('.ts')) assert.ok(existsSync(join(root, target)), `${path} imports ${target}`);
    }
  }
});

test('imports point downwards: gateway and mesh-agent to config to core', () => {
  const mayImport: Record<string, string[]> = {
    core: ['core'],
    config: ['config', 'core'],
    gateway: ['gateway', 'config', 'core'],
    'mesh-agent': ['mesh-agent', 'config', 'core'],
  };
  // The one way across: the command line, which starts every part of the product, hands over to the mesh's commands,
  // and imports them when they are used, so that the gateway does not pay for them.
  const isEntry = (path: string, { target, lazy }: Import): boolean =>
    path === 'gateway/cli.ts' && target.startsWith('mesh-agent/commands/') && lazy;
  // The node proxy is a gateway whose configuration comes from the mesh: its workers, reloads, admin port and end are
  // the gateway's own, and its health checks, for which it opens the connections. Nothing else of the mesh has packet
  // workers.
  const standsOnGateway = (path: string, { target }: Import): boolean =>
    path.startsWith('mesh-agent/node/') &&
    [...['gateway/app.ts', 'gateway/life.ts', 'gateway/admin/state.ts'], 'gateway/health/probe-connection.ts'].includes(
      target,
    );
  const wrong = modules.flatMap(({ path, imports }) =>
    imports
      .filter((one) => one.target.endsWith('.ts') && !isEntry(path, one) && !standsOnGateway(path, one))
      .filter(({ target }) => !mayImport[path.split('/')[0]].includes(target.split('/')[0]))
      .map(({ target }) => `${path} imports ${target}`),
  );
  assert.deepEqual(wrong, []);
});

test('folders of the core import only those below them', () => {
  // Types may point anywhere: a connection names the exchange that it belongs to.
  const mayImport: Record<string, string[]> = {
    'core/ffi': [],
    'core/http1': [],
    'core/authorization': ['core/ffi', 'core/http1'],
    'core/limits': [],
    // What every command needs, whichever part of the product it belongs to.
    'core/process': ['core/ffi'],
    'core/routing': ['core/http1'],
    'core/tcp': ['core/ffi'],
    'core/tls': ['core/ffi'],
    'core/io': ['core/ffi'],
    'core/lb': ['core/ffi', 'core/io'],
    // The vocabulary of failure belongs to the exchange, and is all that telemetry takes from there.
    'core/telemetry': [
      ...[
        'core/ffi',
        'core/http1',
        'core/exchange/reasons.ts',
        'core/exchange/retry-outcome.ts',
        'core/limits/limit-names.ts',
        'core/authorization/policy-numbers.ts',
        'core/tls/errors.ts',
      ],
    ],
    'core/http2': ['core/ffi', 'core/http1', 'core/io', 'core/telemetry'],
    'core/exchange': [
      ...['core/ffi', 'core/http1', 'core/http2', 'core/io', 'core/lb', 'core/limits', 'core/routing'],
      ...['core/tcp', 'core/telemetry', 'core/tls', 'core/authorization'],
    ],
    'core/workers': [
      ...['core/ffi', 'core/io', 'core/lb', 'core/limits', 'core/telemetry', 'core/exchange', 'core/tls'],
    ],
  };
  const wrong: string[] = [];
  for (const { path, imports } of modules.filter((module) => module.path.startsWith('core/'))) {
    const allowed = mayImport[folderOf(path)];
    assert.ok(allowed !== undefined, `${folderOf(path)} has no place in the order of folders yet`);
    for (const { target, typeOnly } of imports) {
      if (typeOnly || !target.endsWith('.ts') || folderOf(target) === folderOf(path)) continue;
      if (!allowed.includes(folderOf(target)) && !allowed.includes(target)) wrong.push(`${path} imports ${target}`);
    }
  }
  assert.deepEqual(wrong, []);
});

test('no module imports itself by way of others, types aside', () => {
  const byPath = new Map(modules.map((module) => [module.path, module]));
  const done = new Set<string>();
  const trail: string[] = [];
  const visit = (path: string): void => {
    if (trail.includes(path)) assert.fail(`import cycle: ${[...trail.slice(trail.indexOf(path)), path].join(' -> ')}`);
    if (done.has(path)) return;
    trail.push(path);
    for (const { target, typeOnly } of byPath.get(path)?.imports ?? [])
      if (!typeOnly && byPath.has(target)) visit(target);
    trail.pop();
    done.add(path);
  };
  for (const { path } of modules) visit(path);
});

test('only core/ffi knows addresses: nothing else imports koffi', () => {
  const users = modules
    .filter(({ imports }) => imports.some(({ target }) => target === 'koffi'))
    .map(({ path }) => path);
  assert.ok(users.length > 0);
  assert.deepEqual(
    users.filter((path) => folderOf(path) !== 'core/ffi'),
    [],
  );
});

test('every module opens with a comment that says what it is', () => {
  const silent = modules.filter(({ text }) => !/^(#!.*\n)?\/\/ .{10}/.test(text)).map(({ path }) => path);
  assert.deepEqual(silent, []);
});

/** What costs an allocation, a promise or an exception each time that it is passed. */
const COSTLY = [
  /\basync\b|\bawait\b|\bPromise\b/,
  /\bthrow\b|\btry \{/,
  /\bconsole\./,
  /\bnew [A-Z]/,
  /=>/,
  /`/,
  /\.(map|filter|slice|subarray|split|concat|toString|padStart|entries|keys|values)\(/,
  /\bString\.fromCharCode\b|\bJSON\./,
  /[=(,:] ?\[[^\]]*\](?!\s*=)|[=(,] ?\{ /,
];

/** Functions of hot modules that may be costly, because they seldom run: file, function, reason. */
const SELDOM: [path: string, name: string, why: string][] = [
  ['core/exchange/body.ts', 'startRequestChunks', 'a pooled exchange makes its decoder at its first chunked body'],
  ['core/exchange/body.ts', 'startResponseChunks', 'a pooled exchange makes its decoder at its first chunked body'],
  ['core/lb/ring-hash.ts', 'sortPoints', 'when a ring is built'],
  ['core/authorization/authorization.ts', 'rest', 'once per connection and rule'],
  ['core/authorization/authorization.ts', 'compile', 'once per snapshot'],
  ['core/authorization/authorization.ts', 'openOf', 'once per connection'],
  ['core/authorization/connection-access.ts', 'decide', 'once per connection and policies'],
  ['core/authorization/network.ts', 'parse', 'once per snapshot'],
  ['core/authorization/network.ts', 'parseAddress', 'once per connection'],
  ['core/authorization/path-list.ts', 'bytesOf', 'once per snapshot'],
  ['core/authorization/text-match.ts', 'of', 'once per snapshot'],
  ['core/authorization/text-match.ts', 'withBytes', 'once per snapshot'],
  ['core/authorization/text-match.ts', 'template', 'once per snapshot'],
  ['core/authorization/operation.ts', 'hostMatch', 'once per snapshot'],
  ['core/exchange/authorizer.ts', 'admit', 'once per worker'],
  ['core/lb/ring-hash.ts', 'sortByDigit', 'when a ring is built'],
  ['core/exchange/http2-connections.ts', 'failWaiting', 'once per failed connection'],
  ['core/exchange/compression.ts', 'addBody', 'once per slot of a compressor'],
  ['core/exchange/compression.ts', 'use', 'once per compressor thread'],
  ['core/exchange/hedge-policy.ts', 'of', 'once per snapshot and rule with a quantile'],
  ['core/exchange/context.ts', 'beginExchange', 'the pool grows to the most exchanges at one time'],
  [
    'core/exchange/response-writer.ts',
    'putGenerated',
    'a response beyond its room is a broken invariant, which stops the worker',
  ],
  ['core/lb/node-state.ts', 'createNodeState', 'once, at the start'],
  ['core/lb/node-state.ts', 'isViewOf', 'once per snapshot'],
  ['core/lb/latency-samples.ts', 'createLatencySamples', 'once, for the first backend that needs them'],
  ['core/exchange/rate-limits.ts', 'begin', 'once per pooled exchange'],
  ['core/limits/limit-table.ts', 'createLimitTable', 'once per limit, at load'],
  ['core/limits/limit-table.ts', 'limitCounter', 'at scrapes'],
  ['core/lb/balancer.ts', 'refresh', 'when the health of an endpoint has changed'],
  ['core/lb/balancer.ts', 'viewOf', 'once per subset'],
  ['core/exchange/hash-key.ts', 'hashKeysOf', 'once per backend and snapshot'],
  ['core/exchange/session-persistence.ts', 'hashesOf', 'once per list of endpoints'],
  ['core/exchange/downstream.ts', 'answerLocally', 'only a broken invariant throws'],
  ['core/exchange/generated.ts', 'parseSentence', 'once per kind of error'],
  ['core/exchange/grpc.ts', 'parseSentence', 'once per kind of error'],
  ['core/exchange/grpc.ts', 'percentEncoded', 'at load, and once per kind of error'],
  ['core/exchange/grpc-exchange.ts', 'beginGrpc', 'once per pooled exchange'],
  ['core/exchange/http2-connections.ts', 'place', 'once per endpoint'],
  ['core/exchange/response-head.ts', 'at', 'once a second'],
  ['core/exchange/circuit-breaker.ts', 'wait', 'once per backend whose requests wait'],
  ['core/exchange/request-buffer.ts', 'want', 'the pool grows to the most bodies kept at one time'],
  ['core/exchange/retries.ts', 'untilDate', 'a Retry-After that is a date'],
  ['core/exchange/upstream-http2.ts', 'writeUpgraded', 'once per WebSocket'],
  ['core/http1/chars.ts', 'byteClass', 'at load'],
  ['core/http1/framing.ts', 'idTable', 'at load'],
  ['core/http1/header-hash.ts', 'slotsFor', 'at load'],
  ['core/http1/header-hash.ts', 'searchFactors', 'at load'],
  ['core/http1/word-view.ts', 'wordView', 'once per thread'],
  ['core/http1/word-view.ts', 'lowerLiteral', 'at load'],
  ['core/io/reactor.ts', 'takeSlot', 'once per slot'],
  ['core/io/reactor.ts', 'shareFairly', 'once per worker of a node proxy'],
  ['core/io/arena.ts', 'keepOwners', 'once per worker of a node proxy'],
  ['core/lb/http2-pool.ts', 'add', 'once per connection'],
  ['core/routing/route-table.ts', 'routeName', 'for labels, which are made once'],
  ['core/routing/route-table.ts', 'ruleLabel', 'for labels, which are made once'],
];

interface Line {
  /** Name of the function that it belongs to. */
  name: string;
  text: string;
}

/** Lines of the functions of a module, without constructors, comments and what runs at load. */
function functionLines(text: string): Line[] {
  const lines: Line[] = [];
  let name = '';
  let end: string | undefined;
  for (const line of text.split('\n')) {
    if (end === undefined) {
      const start = /^( {2})?(?:export |private |static |get )*(function )?(\w+)\((?:.*\{)?$/.exec(line);
      if (start === null || (start[1] === undefined && start[2] === undefined)) continue;
      name = start[3];
      end = `${start[1] ?? ''}}`;
    } else if (line === end) {
      end = undefined;
    } else if (name !== 'constructor' && !/^\s*(\/\/|\/?\*)/.test(line)) {
      lines.push({ name, text: line.trim().replace(/ \/\/ .*$/, '') });
    }
  }
  return lines;
}

test('hot modules do nothing costly in their functions, except where it is rare and said here', () => {
  const folders = [
    'core/io',
    'core/http1',
    'core/routing',
    'core/limits',
    'core/exchange',
    'core/lb',
    'core/authorization',
  ];
  const hot = modules.filter(
    ({ path, text }) => folders.includes(folderOf(path)) && /^(\/\/.*\n)*\/\/.*\bHot module/.test(text),
  );
  assert.ok(hot.length > 18, `${hot.length} hot modules`);
  const used = new Set<unknown>();
  const costly: string[] = [];
  let seen = 0;
  for (const { path, text } of hot) {
    for (const line of functionLines(text)) {
      seen++;
      if (!COSTLY.some((pattern) => pattern.test(line.text))) continue;
      const entry = SELDOM.find(([file, name]) => file === path && name === line.name);
      if (entry === undefined) costly.push(`${path}, ${line.name}: ${line.text}`);
      else used.add(entry);
    }
  }
  assert.ok(seen > 1500, `${seen} lines`);
  assert.deepEqual(costly, []);
  const unused = SELDOM.filter((entry) => !used.has(entry));
  assert.deepEqual(unused, [], 'nothing costly is there any more: take these off the list');
});
