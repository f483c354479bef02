// Files of endpoints: read when a configuration is loaded, and again when they change.
//
// A file that is broken or gone while it is in use is logged, once per content, and its endpoints of
// before stay. At a start or a reload it is an error of the configuration that names it.
// What a configuration finds that is to run counts once it runs: one that is refused leaves no trace.
// Owned by the control thread.

import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Config, EndpointConfig } from '../../config/config.ts';
import { readEndpoints } from '../../config/endpoint-file.ts';
import { formatConfigErrors } from '../../config/errors.ts';
import { isMapping, mappings, refuse } from '../../config/semantics-walk.ts';
import type { Violation } from '../../config/validate.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import type { Log } from '../../core/workers/log.ts';

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

/** What files hold, by absolute path. */
export type FileContents = ReadonlyMap<string, Readonly<Known>>;

/** Endpoints by absolute path. */
export class EndpointFiles {
  private readonly log: Log;
  private known = new Map<string, Known>();

  constructor(log: Log) {
    this.log = log;
  }

  /**
   * Reads the files that a configuration names; what they hold is for `complete`, and for `adopt` once it runs.
   * Throws an ExitError with one sentence when one cannot be used; one that is in use and has turned bad stays
   * as it was, and is logged.
   */
  prepare(config: Config): FileContents {
    const contents = new Map<string, Known>();
    for (const file of filesOf(config)) {
      const known = this.known.get(file);
      if (known !== undefined) {
        contents.set(file, this.reread(file, known));
        continue;
      }
      const read = readEndpointsFile(file);
      if ('problem' in read) throw new ExitError(ExitCode.CONFIG_INVALID, `endpoints file ${read.problem}.`);
      contents.set(file, { text: read.text, endpoints: read.endpoints, failing: false });
    }
    return contents;
  }

  /** A configuration runs, with the `contents` that were prepared for it or with those of before; gives its files. */
  adopt(config: Config, contents: FileContents = this.known): string[] {
    const files = filesOf(config);
    this.known = new Map([...contents].filter(([file]) => files.includes(file)));
    return files;
  }

  /** Reads all files in use again; whether any has other endpoints. */
  rereadAll(): boolean {
    let changed = false;
    for (const [file, known] of this.known) {
      const next = this.reread(file, known);
      if (next === known) continue;
      this.known.set(file, next);
      changed = true;
    }
    return changed;
  }

  /** The configuration with the endpoints of its files added to those of its backends. */
  complete(config: Config, contents: FileContents = this.known): Config {
    if (config.backends.every(({ endpointsFile }) => endpointsFile === null)) return config;
    return {
      ...config,
      backends: config.backends.map((backend) => {
        if (backend.endpointsFile === null) return backend;
        const more = contents.get(backend.endpointsFile)?.endpoints ?? [];
        return { ...backend, endpoints: [...backend.endpoints, ...more] };
      }),
    };
  }

  /** What the file is known to hold now: `known` itself, unless it has other endpoints. */
  private reread(file: string, known: Known): Known {
    const read = readEndpointsFile(file, known.text);
    if (read === 'unchanged') return known;
    if ('problem' in read) {
      known.text = read.text;
      known.failing = true;
      this.log('error', 'endpoints file refused', {
        problem: read.problem,
        consequence: 'its endpoints of before stay in use',
      });
      return known;
    }
    if (JSON.stringify(read.endpoints) !== JSON.stringify(known.endpoints)) {
      return { text: read.text, endpoints: read.endpoints, failing: false };
    }
    if (known.failing) this.log('info', 'endpoints file is good again', { file });
    known.text = read.text;
    known.failing = false;
    return known;
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
