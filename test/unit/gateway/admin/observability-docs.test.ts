// docs/observability.md says what the code does.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { accessLogFields } from '../../../../core/telemetry/access-log-format.ts';
import {
  insertTables,
  observabilityPage,
  observabilityTables,
} from '../../../../gateway/admin/observability-tables.ts';
import { fakeState, startAdmin } from './support.ts';

const page = readFileSync(observabilityPage, 'utf8');

test('the tables of the observability page are those that the code gives', () => {
  assert.equal(page, insertTables(page), 'run: node gateway/admin/observability-tables.ts');
});

test('every word of the tables is listed once', () => {
  for (const [name, table] of Object.entries(observabilityTables())) {
    const words = [...table.matchAll(/^\| `([^`]+)`/gm)].map(([, word]) => word);
    assert.ok(words.length > 0, name);
    assert.deepEqual([...new Set(words)], words, name);
  }
});

test('every access log field is described', () => {
  for (const name of accessLogFields) {
    assert.match(observabilityTables().fields, new RegExp(`^\\| \`${name}\` \\| (text|number) \\| \\S`, 'm'));
  }
});

test('the page lists the paths of the admin port', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  const paths = [...(await ask('/')).body.matchAll(/^(\/\w+)/gm)].map(([, path]) => path);
  for (const path of paths) assert.ok(page.includes(`| \`${path}`), path);
});
