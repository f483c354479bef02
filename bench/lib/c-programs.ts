// The two C programs of the comparison: a forwarder that parses nothing (the limit that a proxy on
// this kernel can be measured against) and its backend. They live outside this repository; where
// they and gcc are found they are built into the temporary directory.

import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { findExecutable, runCommand, temporaryDir } from './processes.ts';

const built = new Map<string, string>();

/** Directory of limit.c and backend.c; null when it, one of them or gcc is missing. */
export function cProgramsDir(): string | null {
  const dir = process.env.PORTCULLIS_LIMIT_DIR ?? resolve(import.meta.dirname, '../../../shared/bench');
  const complete = existsSync(join(dir, 'limit.c')) && existsSync(join(dir, 'backend.c'));
  return complete && findExecutable('gcc') !== null ? dir : null;
}

/** Path of the built program; throws with the compiler's words when it cannot be built. */
export async function buildCProgram(name: 'limit' | 'backend'): Promise<string> {
  const known = built.get(name);
  if (known !== undefined) return known;
  const dir = cProgramsDir();
  if (dir === null) throw new Error(`${name}.c or gcc was not found; set PORTCULLIS_LIMIT_DIR to its directory`);
  const output = join(temporaryDir(), name);
  const { code, stderr } = await runCommand('gcc', ['-O2', '-o', output, join(dir, `${name}.c`)]);
  if (code !== 0) throw new Error(`gcc could not build ${name}.c: ${stderr.trim()}`);
  built.set(name, output);
  return output;
}
