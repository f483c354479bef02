// Comments and pages name files, and nothing else notices when one of those has moved.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const root = join(import.meta.dirname, '../..');
const FOLDERS = ['core', 'config', 'gateway', 'mesh-agent', 'test', 'bench', 'demo', 'docs'];

const files = FOLDERS.flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map((file) => `${folder}/${file}`),
).concat('README.md', 'CONTRIBUTING.md');

/** What is prose in a file: all of a page, and the comments of a module. */
function proseOf(file: string): string {
  const text = readFileSync(join(root, file), 'utf8');
  return file.endsWith('.md') ? text : (text.match(/^\s*(\/\/|\/?\*).*|(?<=[\s;])\/\/ .*/gm) ?? []).join('\n');
}

test('every module that a comment or a page names is there, by its path or the end of it', () => {
  const known = new Set(
    files.flatMap((file) => file.split('/').map((_, index, parts) => parts.slice(index).join('/'))),
  );
  const named = files
    .filter((file) => /\.(ts|md)$/.test(file))
    .flatMap((file) =>
      [...proseOf(file).matchAll(/(?<![\w.@*<>{}-])(?:\.{1,2}\/)*((?:[\w-]+\/)*[\w-]+(?:\.test)?\.ts)(?!\w)/g)].map(
        ([, name]) => ({ file, name: name! }),
      ),
    );
  assert.ok(named.length > 100, `${named.length} names found`);
  const stale = named.filter(({ name }) => !known.has(name)).map(({ file, name }) => `${file} names ${name}`);
  assert.deepEqual(stale, []);
});
