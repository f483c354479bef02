// What the configuration names on this machine's file system: whether it can be what it is named for.
//
// Control thread. Looks, and opens and makes nothing, so that `check` may do it as any user; what only
// an attempt can show (permissions) is found when the file is opened.

import { accessSync, constants, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { errnoSentence } from '../core/ffi/errno.ts';
import { DIRECT_BODY_BYTES_MAX } from '../core/workers/filter-settings.ts';
import { isMapping, mappings } from './semantics-walk.ts';
import { about, type Violation } from './validate.ts';

/**
 * Violations of a configuration that was read from `file`; skips what is wrong already. Certificates and
 * keys are checked by gateway/certificates, which reads them.
 */
export function checkFiles(root: unknown, file: string): Violation[] {
  const violations: Violation[] = [];
  const check = (section: string, key: string, problemOf: (path: string) => string | undefined, expected: string) => {
    const path = (root as Record<string, Record<string, unknown> | null> | null)?.[section]?.[key];
    if (typeof path !== 'string' || path === '-' || path === '') return;
    const problem = problemOf(resolve(dirname(resolve(file)), path));
    const at = [section, key];
    if (problem !== undefined)
      violations.push({ path: at, part: 'value', problem: `${about(at)}${problem}`, expected });
  };
  check('accessLog', 'path', logFileProblem, 'a file in a directory that exists, or "-" for standard output');
  check('acme', 'storage', directoryProblem, 'a directory, or a name for one in a directory that exists');
  checkBodyFiles(root, file, violations);
  return violations;
}

/** Bodies of direct responses are read with the configuration. */
function checkBodyFiles(root: unknown, file: string, violations: Violation[]): void {
  if (!isMapping(root)) return;
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    for (const [rule, rulePath] of mappings(route.rules, [...path, 'rules'])) {
      for (const [{ directResponse }, filterPath] of mappings(rule.filters, [...rulePath, 'filters'])) {
        if (!isMapping(directResponse) || typeof directResponse.bodyFile !== 'string') continue;
        const problem = bodyFileProblem(resolve(dirname(resolve(file)), directResponse.bodyFile));
        if (problem === undefined) continue;
        const at = [...filterPath, 'directResponse', 'bodyFile'];
        const expected = 'a file of at most 64 KiB that can be read';
        violations.push({ path: at, part: 'value', problem: `${about(at)}${problem}`, expected });
      }
    }
  }
}

/** Why a file cannot be the body of a direct response. */
function bodyFileProblem(path: string): string | undefined {
  try {
    const status = statSync(path);
    if (!status.isFile()) return `${path} is not a file`;
    if (status.size > DIRECT_BODY_BYTES_MAX) return `${path} has ${status.size} bytes`;
    accessSync(path, constants.R_OK);
    return undefined;
  } catch (error) {
    return `${path} cannot be read (${errnoSentence((error as NodeJS.ErrnoException).errno ?? 0)})`;
  }
}

/** Why an absolute name cannot be that of a directory, existing or to be made. */
function directoryProblem(path: string): string | undefined {
  switch (kindOf(path)) {
    case 'other':
      return `${path} is not a directory`;
    case 'missing':
      return logFileProblem(path);
    default:
      return undefined;
  }
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
