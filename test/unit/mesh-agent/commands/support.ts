// Directories and files for tests of the mesh's commands.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** A directory that goes away with the test. */
export function temporaryDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-control-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A configuration file, and directories beside it; returns the file's path. */
export function writeConfig(
  t: TestContext,
  text: string,
  directories: readonly string[] = [],
  base = temporaryDirectory(t),
): string {
  for (const name of directories) mkdirSync(join(base, name), { recursive: true });
  const file = join(base, 'control.yaml');
  writeFileSync(file, text);
  return file;
}
