// The log's output file: a pipe that is full must say "not now", and never block or fail.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LogFile } from '../../../../core/telemetry/access-log-file.ts';

test('a full pipe takes nothing, and takes bytes again once its reader has read', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-pipe-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const path = join(directory, 'pipe');
  execFileSync('mkfifo', [path]);
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  t.after(() => closeSync(reader));

  const file = new LogFile(path);
  file.open();
  t.after(() => file.close());
  const bytes = new Uint8Array(64 * 1024).fill(0x61);
  let taken = 0;
  for (let written = -1; written !== 0; taken += written) written = file.write(bytes, 0, bytes.length);
  assert.ok(taken > 0);
  readSync(reader, new Uint8Array(taken), 0, taken, null);
  assert.ok(file.write(bytes, 0, bytes.length) > 0);
});

test('a pipe without a reader is an error, not a wait', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-pipe-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const path = join(directory, 'pipe');
  execFileSync('mkfifo', [path]);
  assert.throws(() => new LogFile(path).open(), { code: 'ENXIO' });
});
