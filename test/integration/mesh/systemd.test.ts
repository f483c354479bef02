// The systemd units: sound, apart from each other, and able to do what the documentation has them do.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { portcullis, temporaryDirectory } from '../support.ts';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const folder = join(root, 'deploy/systemd');
const noSystemd = spawnSync('systemd-analyze', ['--version']).status === 0 ? false : 'systemd-analyze is not installed';

/** A unit: its text, and its settings by key. */
interface Unit {
  text: string;
  settings: Map<string, string[]>;
}

/** Where the directories that a unit is given are. */
const PLACES = { StateDirectory: '/var/lib', CacheDirectory: '/var/cache', LogsDirectory: '/var/log' } as const;

const units = new Map(readdirSync(folder).map((name) => [name, read(name)]));

function read(name: string): Unit {
  const text = readFileSync(join(folder, name), 'utf8');
  const settings = new Map<string, string[]>();
  for (const [, key, value] of text.matchAll(/^(\w+)=(.*)$/gm)) {
    settings.set(key!, [...(settings.get(key!) ?? []), value!]);
  }
  return { text, settings };
}

/** Directories that systemd makes for the unit and gives to its user, with all that is in them. */
function directoriesOf({ settings }: Unit): string[] {
  return Object.entries(PLACES).flatMap(([key, place]) =>
    (settings.get(key) ?? []).flatMap((value) => value.split(/\s+/).map((name) => `${place}/${name}`)),
  );
}

const isInside = (path: string, directory: string): boolean => path === directory || path.startsWith(`${directory}/`);

/** Absolute paths under /var in a text; a name of a unit's instance stands for all of them. */
const pathsIn = (text: string): string[] =>
  [...text.matchAll(/\/var\/(?:lib|cache|log)\/[\w./%@-]+/g)].map(([path]) => path.replace(/[.,/]+$/, ''));

test('the systemd units are sound', { skip: noSystemd }, (t) => {
  for (const [name, { text }] of units) {
    assert.match(text, /^ExecStart=\/opt\/portcullis\/portcullis /m);
    const file = join(temporaryDirectory(t), name);
    // The program need not be installed here.
    writeFileSync(file, text.replaceAll('/opt/portcullis/portcullis', portcullis));
    const run = spawnSync('systemd-analyze', ['verify', file], { encoding: 'utf8' });
    assert.equal(run.status, 0, run.stderr);
    const about = run.stderr.split('\n').filter((line) => line.includes(name));
    assert.deepEqual(about, []);
  }
});

test('no unit has a directory inside that of another: systemd gives all of it to the user of the unit that starts', () => {
  for (const [name, unit] of units) {
    const own = directoriesOf(unit);
    assert.ok(own.length >= 2, name);
    for (const [otherName, other] of units) {
      if (otherName === name) continue;
      for (const theirs of directoriesOf(other)) {
        for (const path of own) assert.ok(!isInside(path, theirs), `${path} of ${name}, ${theirs} of ${otherName}`);
      }
    }
  }
});

test('paths that a unit speaks of itself are those that it is given', () => {
  for (const [name, unit] of units) {
    const own = directoriesOf(unit).map((path) => path.replace('%i', 'NAME'));
    const paths = pathsIn(unit.text);
    assert.ok(paths.length > 0, name);
    for (const path of paths)
      assert.ok(
        own.some((directory) => isInside(path, directory)),
        `${path} in ${name}`,
      );
  }
});

test('configurations of the documentation for these units write where the unit may, and the files are where it looks', () => {
  const text = readFileSync(join(root, 'docs/mesh/hosts.md'), 'utf8');
  const written = [...text.matchAll(/^cat > (\/etc\/portcullis\/\S+) <<'END'\n(.*?)^END$/gms)];
  const seen = new Set<string>();
  for (const [, file, configuration] of written) {
    for (const [name, unit] of units) {
      const [start = ''] = unit.settings.get('ExecStart') ?? [];
      if (!start.endsWith(` --config ${file}`)) continue;
      seen.add(name);
      const own = directoriesOf(unit);
      const paths = pathsIn(configuration!);
      assert.ok(paths.length > 0, `${file} says where it writes`);
      for (const path of paths)
        assert.ok(
          own.some((one) => isInside(path, one)),
          `${path} in ${file}, for ${name}`,
        );
    }
  }
  assert.deepEqual([...seen].sort(), ['portcullis-control.service', 'portcullis-node.service']);
});

test('every path under /var in the documentation of the mesh belongs to one of the units, or to a pod', () => {
  const own = [...units.values()].flatMap(directoriesOf).map((path) => path.replace('/%i', ''));
  const docs = join(root, 'docs/mesh');
  for (const name of readdirSync(docs).filter((file) => file !== 'kubernetes.md')) {
    for (const path of pathsIn(readFileSync(join(docs, name), 'utf8'))) {
      assert.ok(
        own.some((directory) => isInside(path, directory)),
        `${path} in ${name}`,
      );
    }
  }
});

test('the proxies come back whatever they ended with, however often: workloads have no network without them', () => {
  for (const name of ['portcullis-node.service', 'portcullis-sidecar@.service']) {
    const { settings } = units.get(name)!;
    assert.deepEqual(settings.get('Restart'), ['always']);
    assert.equal(settings.get('RestartPreventExitStatus'), undefined);
    assert.deepEqual(settings.get('StartLimitIntervalSec'), ['0'], 'systemd gives up after five starts otherwise');
  }
});
