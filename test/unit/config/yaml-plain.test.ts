// The quick YAML reader against the thorough one: it may give up, but never read something else.
// The seed is printed; CONFIG_YAML_SEED repeats a run.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { stringify } from 'yaml';
import { formatConfigError, loadConfig } from '../../../config/load.ts';
import { readYaml } from '../../../config/yaml.ts';
import { readPlainYaml } from '../../../config/yaml-plain.ts';

const env = { NAME: 'value', N: '7', EMPTY: '', ODD: 'a: [b]' };
const seed = Number(process.env.CONFIG_YAML_SEED ?? Date.now() % 2 ** 31);

/** A reference to an environment variable. */
function variable(name: string): string {
  return `\${${name}}`;
}

/** Compares both readers; returns whether the quick one read the text. */
function compare(text: string, label: string): boolean {
  const quick = readPlainYaml(text, env);
  if (quick === undefined) return false;
  const thorough = readYaml(text, env);
  assert.deepEqual(thorough.findings, [], label);
  assert.deepEqual(quick, thorough.value, label);
  return true;
}

test('texts that it reads', () => {
  const texts = [
    'a: 1\n',
    'a: 1',
    '# c\n\na: 1 # c\n# c\nb: x#y # z\n  # c\n',
    'a:\n- 1\n- 2\nb: 3\n',
    'a:\n  - 1\n  -\n  - x: 1\n    y: 2\n  -   z: 3\n      w: 4\nb:\n',
    'a:\n  - b:\n    - c\n    - d: 1\n  - e\n',
    '- a\n- b: 1\n-\n  c: 1\n',
    'a:   # c\n  b:\n    c: d\n',
    'a: [1, "2", \'3\', [x y, {b: c}], {}, []] # c\n',
    'a: {b: 1:80}\n',
    'a: "x # y"\nb: \'say "hi"\'\nc: ""\n',
    `a: ${variable('NAME')}:80\nb: "${variable('N')}"\nc: ${variable('N')}\nd: ${variable('ODD')}\ne: ${variable('EMPTY')}\n`,
    'a: true\nb: ~\nc: 0x1F\nd: -1.5e3\ne: .5\nf: 0o17\ng: +1\nh: 1_000\ni: yes\nj: .inf\n',
    '{"a": {"b":[1,2]}, "c" : "d"}',
    '{\n  "a": [\n    1,\n    "x"\n  ],\n  b:\n    c,\n  d: e f\n}\n',
    'a: -1\nb: -x\n',
    'a: b:c\nd: e,f [g] {h}\n',
    'a: it\'s "so"\n',
  ];
  for (const text of texts) assert.ok(compare(text, text), text);
});

test('texts at which it gives up, whether or not they are YAML', () => {
  const texts = [
    '',
    '# only a comment\n',
    'a\n',
    ' a: 1\n',
    'a: 1\n b: 2\n',
    'a: 1\na: 2\n',
    'a: {b: 1, b: 2}\n',
    'a: x\n  y\n',
    'a: "x\n  y"\n',
    'a: [1,\n  2]\n',
    'a: |\n  x\n',
    'a: &x 1\nb: *x\n',
    'a: *x\n',
    'a: !!str 1\n',
    'a: "\\n"\n',
    "a: 'it''s'\n",
    'a: b: c\n',
    'a: b:\n',
    'a: - b\n',
    '- - a\n',
    'a:b\n',
    'a:\n  - 1\n  b: 2\n',
    'a:\n    - 1\n  - 2\n',
    'a:\n  b: 1\n c: 2\n',
    '- a\nb: 1\n',
    '? a\n: b\n',
    '"a": 1\n',
    'a: [1, 2\n',
    'a: [1, , 2]\n',
    'a: [1, 2,]]\n',
    'a: {b}\n',
    'a: {b:1}\n',
    'a: "x" y\n',
    'a: "x"# c\n',
    'a: [x]# c\n',
    'a: [x # c\n]\n',
    'a: @x\n',
    'a: `x\n',
    'a: %x\n',
    'a: 1\n---\nb: 2\n',
    'a: 1\n...\n',
    '%YAML 1.1\n---\na: on\n',
    'a:\t1\n',
    'a: 1\r\nb: 2\r\n',
    'a: ü\n',
    '\ufeffa: 1\n',
    `a: ${variable('MISSING')}\n`,
    '{"a": 1} x\n',
    '{"a": 1}\nb: 1\n',
    '{"a": 1\n',
    '<<: {a: 1}\n',
    '__proto__: {a: 1}\n',
    `a: ${'['.repeat(100)}${']'.repeat(100)}\n`,
  ];
  for (const text of texts) assert.equal(readPlainYaml(text, env), undefined, text);
});

test('every case file is read alike or given up', () => {
  const directory = new URL('../../data/config/', import.meta.url);
  let read = 0;
  for (const file of readdirSync(directory).filter((name) => name.endsWith('.yaml'))) {
    if (compare(readFileSync(new URL(file, directory), 'utf8'), file)) read++;
  }
  assert.ok(read > 10);
});

test(`random documents with random damage are read alike or given up (seed ${seed})`, () => {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return Math.floor((state / 0x80000000) * below);
  };
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const scalars = [
    'a',
    'x y',
    '1',
    'true',
    '',
    '*.a.com',
    ':80',
    'a:80',
    '- x',
    '#c',
    'a #b',
    "it's",
    '"q"',
    7,
    true,
    null,
  ];
  const value = (depth: number): unknown => {
    const kind = depth > 3 ? 2 : random(3);
    if (kind === 0) return Array.from({ length: random(4) }, () => value(depth + 1));
    if (kind === 1)
      return Object.fromEntries(
        Array.from({ length: random(4) }, () => [pick(['a', 'b', 'key', 'x1']), value(depth + 1)]),
      );
    return pick(scalars);
  };
  const printers = [
    (document: unknown) => stringify(document),
    (document: unknown) => stringify(document, { indentSeq: false }),
    (document: unknown) => stringify(document, { collectionStyle: 'flow' }),
    (document: unknown) => JSON.stringify(document),
    (document: unknown) => JSON.stringify(document, null, 2),
  ];
  const noise = [' ', '\n', '#', ':', '-', '"', "'", '[', ']', '{', '}', ',', '*', '&', '  ', '- ', ': ', ' #', '|'];
  let read = 0;
  for (let round = 0; round < 3000; round++) {
    let text = pick(printers)({ a: value(0), b: value(0), c: value(0) });
    if (compare(text, `seed ${seed}, round ${round}: ${text}`)) read++;
    const at = random(text.length);
    text = text.slice(0, at) + (random(3) === 0 ? '' : pick(noise)) + text.slice(at + random(2));
    compare(text, `seed ${seed}, round ${round}, damaged: ${text}`);
  }
  assert.ok(read > 300, `only ${read} documents were read`);
});

test('a large file loads as a small one does, and its errors have places', () => {
  const routes = Array.from(
    { length: 2000 },
    (_, i) => `  - {name: r${i}, hostnames: [h${i}.com], rules: [{backendRefs: [{name: b}]}]}\n`,
  );
  const text = `listeners: [{name: http, address: ":80"}]\nbackends: [{name: b, endpoints: ["a:1"]}]\nroutes:\n${routes.join('')}`;
  const result = loadConfig(text, '/large.yaml', {});
  assert.ok('config' in result);
  assert.equal(result.config.routes.length, 2000);
  assert.deepEqual(result.config.routes[1999]!.hostnames, ['h1999.com']);
  const broken = loadConfig(text.replace('h1500.com], rules', 'h1500.com], rule'), 'large.yaml', {});
  assert.ok('errors' in broken);
  assert.match(
    broken.errors.map(formatConfigError).join('\n'),
    /^large\.yaml:1504:5: routes\[1500\]: key "rules" is missing/,
  );
});
