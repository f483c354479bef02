// Files of endpoints: read when a configuration is loaded, and again when they change.
//
// A file that is broken or gone while it is in use is logged, once per content, and its endpoints of
// before stay. At a start or a reload it is an error of the configuration that names it.
// Owned by the control thread.

import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Config, EndpointConfig } from '../../config/config.ts';
import { readEndpoints } from '../../config/endpoint-file.ts';
import { formatConfigErrors } from '../../config/errors.ts';
import { isMapping, mappings, refuse } from '../../config/semantics-walk.ts';
import type { Violation } from '../../config/validate.ts';
import type { Log } from '../../core/workers/log.ts';
import { ExitCode, ExitError } from '../exit-codes.ts';

/** Most errors of a file that one log line tells. */
const ERRORS_SHOWN = 3;

/** What a file last held. */
interface Known {
  /** Of the last reading, good or bad; null: it could not be read. */
  text: string | null;
  /** Of the last good reading. */
  endpoints: EndpointConfig[];
  /** The last reading was a bad one. */
  failing: boolean;
}

/** Endpoints by absolute path. */
export class EndpointFiles {
  private readonly log: Log;
  private known = new Map<string, Known>();

  constructor(log: Log) {
    this.log = log;
  }

  /**
   * Reads the files that a configuration names. Throws an ExitError with one sentence when one cannot be used;
   * one that is in use and has turned bad stays as it was, and is logged.
   */
  prepare(config: Config): void {
    for (const file of filesOf(config)) {
      const known = this.known.get(file);
      if (known !== undefined) {
        this.reread(file, known);
        continue;
      }
      const read = readEndpointsFile(file);
      if ('problem' in read) throw new ExitError(ExitCode.CONFIG_INVALID, `endpoints file ${read.problem}.`);
      this.known.set(file, { text: read.text, endpoints: read.endpoints, failing: false });
    }
  }

  /** Forgets files that a configuration does not name; gives those that it does. */
  adopt(config: Config): string[] {
    const files = filesOf(config);
    for (const file of this.known.keys()) if (!files.includes(file)) this.known.delete(file);
    return files;
  }

  /** Reads all files in use again; whether any has other endpoints. */
  rereadAll(): boolean {
    let changed = false;
    for (const [file, known] of this.known) changed = this.reread(file, known) || changed;
    return changed;
  }

  /** The configuration with the endpoints of its files added to those of its backends. */
  complete(config: Config): Config {
    if (config.backends.every(({ endpointsFile }) => endpointsFile === null)) return config;
    return {
      ...config,
      backends: config.backends.map((backend) => {
        if (backend.endpointsFile === null) return backend;
        const more = this.known.get(backend.endpointsFile)?.endpoints ?? [];
        return { ...backend, endpoints: [...backend.endpoints, ...more] };
      }),
    };
  }

  private reread(file: string, known: Known): boolean {
    const read = readEndpointsFile(file, known.text);
    if (read === 'unchanged') return false;
    known.text = read.text;
    if ('problem' in read) {
      known.failing = true;
      this.log('error', 'endpoints file refused', {
        problem: read.problem,
        consequence: 'its endpoints of before stay in use',
      });
      return false;
    }
    const changed = JSON.stringify(read.endpoints) !== JSON.stringify(known.endpoints);
    known.endpoints = read.endpoints;
    if (known.failing && !changed) this.log('info', 'endpoints file is good again', { file });
    known.failing = false;
    return changed;
  }
}

/** For `loadConfigFile`: what is wrong with the endpoints files that a configuration names. */
export function checkEndpointsFiles(root: unknown, configFile: string): Violation[] {
  const violations: Violation[] = [];
  if (!isMapping(root)) return violations;
  for (const [backend, path] of mappings(root.backends, ['backends'])) {
    const { endpointsFile } = backend;
    if (typeof endpointsFile !== 'string' || endpointsFile === '') continue;
    const read = readEndpointsFile(resolve(dirname(resolve(configFile)), endpointsFile));
    if (!('problem' in read)) continue;
    const report = (violation: Violation): void => void violations.push(violation);
    refuse(report, [...path, 'endpointsFile'], read.problem, read.expected);
  }
  return violations;
}

type ReadResult =
  | { text: string; endpoints: EndpointConfig[] }
  | { text: string | null; problem: string; expected?: string };

/** Reads a file; `before` is what it held at the last reading, good or bad. */
function readEndpointsFile(file: string): ReadResult;
function readEndpointsFile(file: string, before: string | null): ReadResult | 'unchanged';
function readEndpointsFile(file: string, before?: string | null): ReadResult | 'unchanged' {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(file);
  } catch (error) {
    if (before === null) return 'unchanged';
    const { code, message } = error as NodeJS.ErrnoException;
    const problem = code === 'ENOENT' ? `${file} does not exist` : `${file} cannot be read (${code ?? message})`;
    return { text: null, problem, expected: 'a YAML or JSON file with a list of endpoints' };
  }
  const text = new TextDecoder().decode(bytes);
  if (text === before) return 'unchanged';
  const read = readEndpoints(bytes, file);
  if ('endpoints' in read) return { text, endpoints: read.endpoints };
  return { text, problem: formatConfigErrors(read.errors, ERRORS_SHOWN).join('; ') };
}

function filesOf(config: Config): string[] {
  const files = config.backends.map(({ endpointsFile }) => endpointsFile).filter((file) => file !== null);
  return [...new Set(files)];
}
