// What the configuration names on this machine's file system: whether it can be what it is named for.
//
// Control thread. Looks, and opens and makes nothing, so that `check` may do it as any user; what only
// an attempt can show (permissions) is found when the file is opened.

import { statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { about, type Violation } from './validate.ts';

/** Violations of a configuration that was read from `file`; skips what is wrong already. */
export function checkFiles(root: unknown, file: string): Violation[] {
  const path = (root as { accessLog?: { path?: unknown } | null } | null)?.accessLog?.path;
  if (typeof path !== 'string' || path === '-' || path === '') return [];
  const problem = logFileProblem(resolve(dirname(resolve(file)), path));
  if (problem === undefined) return [];
  const at = ['accessLog', 'path'];
  const expected = 'a file in a directory that exists, or "-" for standard output';
  return [{ path: at, part: 'value', problem: `${about(at)}${problem}`, expected }];
}

/** Why lines cannot be appended to a file of this absolute name, as far as looking shows. */
function logFileProblem(path: string): string | undefined {
  if (kindOf(path) === 'directory') return `${path} is a directory`;
  const directory = dirname(path);
  switch (kindOf(directory)) {
    case 'missing':
      return `the directory ${directory} does not exist`;
    case 'other':
      return `${directory} is not a directory`;
    default:
      return undefined;
  }
}

function kindOf(path: string): 'directory' | 'other' | 'missing' | 'unknown' {
  try {
    return statSync(path).isDirectory() ? 'directory' : 'other';
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === 'ENOENT' || code === 'ENOTDIR' ? 'missing' : 'unknown';
  }
}
