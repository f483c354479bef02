// `portcullis check`: validates a configuration, judges what it means, and says what it contains; with
// a recording, what would become of the requests in it. Listens on nothing.

import type { Config } from '../config/config.ts';
import {
  type ConfigError,
  type ConfigWarning,
  describeConfigError,
  formatConfigErrors,
  formatConfigWarning,
} from '../config/errors.ts';
import { type Loaded, loadConfigFile } from '../config/load.ts';
import { ExitCode } from '../core/process/exit-codes.ts';
import type { Log } from '../core/workers/log.ts';
import { Certificates } from './certificates/certificates.ts';
import type { CommandIo } from './cli.ts';
import { checkEndpointsFiles } from './discovery/files.ts';

/** Most errors, and most warnings, that a start or a reload writes to the log; `check` shows the others. */
const LOGGED_FINDINGS_MAX = 20;

/** Most errors that `check` writes: a file with more has one mistake over and over, or is no configuration. */
const SHOWN_FINDINGS_MAX = 1000;

/** What `check` is asked to do. */
export interface CheckOptions {
  format: 'text' | 'json';
  /** Warnings, and requests of the recording that would fare otherwise, count as errors. */
  warningsAsErrors: boolean;
  /** Recording to route through the configuration; undefined: none. */
  replayFile: string | undefined;
}

/** One error or warning, as `--format json` gives it. */
export interface CheckFinding {
  file: string;
  /** Counts from 1, as the column; 0: the file as a whole. */
  line: number;
  column: number;
  severity: 'error' | 'warning';
  /** `invalid` for errors. */
  name: string;
  message: string;
}

/** Lines for the log: the first errors of a file, and where to see the others. */
export function errorsForLog(errors: readonly ConfigError[]): string[] {
  return formatConfigErrors(errors, LOGGED_FINDINGS_MAX, '; `portcullis check` shows them');
}

/** Logs the first warnings about a configuration that has taken effect, and where to see the others. */
export async function logWarnings(loaded: Loaded, log: Log): Promise<void> {
  try {
    const warnings = await loaded.warnings(true);
    for (const warning of warnings.slice(0, LOGGED_FINDINGS_MAX)) log('warn', formatConfigWarning(warning));
    const left = warnings.length - LOGGED_FINDINGS_MAX;
    if (left > 0) log('warn', `and ${count(left, 'more warning')}; \`portcullis check\` shows them`);
  } catch (error) {
    // A defect here is no reason to stop serving.
    log('error', 'the configuration could not be judged', { cause: error instanceof Error ? error.stack : `${error}` });
  }
}

/** Writes all findings, and what the file contains or what becomes of a recording; returns the exit code. */
export async function checkConfig(file: string, options: CheckOptions, io: CommandIo): Promise<number> {
  const certificates = new Certificates(() => {});
  const loaded = loadConfigFile(file, process.env, [certificates.check, checkEndpointsFiles]);
  if ('errors' in loaded) {
    if (options.format === 'json') {
      writeJson(io, findingsOf(loaded.errors, []), options.replayFile === undefined ? undefined : null);
    } else {
      for (const line of formatConfigErrors(loaded.errors, SHOWN_FINDINGS_MAX)) io.err(`${line}\n`);
      io.err(`${count(loaded.errors.length, 'error')} in ${file}\n`);
    }
    return ExitCode.CONFIG_INVALID;
  }
  const warnings = await loaded.warnings();
  const failed = options.warningsAsErrors && warnings.length > 0;
  if (options.format === 'text') {
    for (const warning of warnings.slice(0, SHOWN_FINDINGS_MAX)) io.err(`${formatConfigWarning(warning)}\n`);
    const left = warnings.length - SHOWN_FINDINGS_MAX;
    if (left > 0) io.err(`and ${count(left, 'more warning')}\n`);
    const judged = warnings.length === 0 ? '' : `, with ${count(warnings.length, 'warning')}`;
    io.out(`${file} is valid${judged}: ${summary(loaded.config)}\n`);
    if (failed) io.err(`${count(warnings.length, 'warning')} in ${file}, treated as errors\n`);
  }
  if (options.replayFile === undefined) {
    if (options.format === 'json') writeJson(io, findingsOf([], warnings), undefined);
    return failed ? ExitCode.CONFIG_INVALID : ExitCode.OK;
  }
  const { replayFile } = await import('./replay/replay.ts');
  const { formatReplay } = await import('./replay/format.ts');
  const result = await replayFile(options.replayFile, loaded.config);
  if (options.format === 'json') writeJson(io, findingsOf([], warnings), result);
  else io.out(formatReplay(result));
  const changed = options.warningsAsErrors && result.changed > 0;
  return failed || changed ? ExitCode.CONFIG_INVALID : ExitCode.OK;
}

/** What a configuration contains, such as `1 listener, 2 routes with 3 rules, 1 backend with 2 endpoints`. */
export function summary({ listeners, routes, streamRoutes, backends }: Config): string {
  const rules = routes.reduce((sum, route) => sum + route.rules.length, streamRoutes.length);
  const endpoints = backends.reduce((sum, backend) => sum + backend.endpoints.length, 0);
  return [
    count(listeners.length, 'listener'),
    `${count(routes.length + streamRoutes.length, 'route')} with ${count(rules, 'rule')}`,
    `${count(backends.length, 'backend')} with ${count(endpoints, 'endpoint')}`,
  ].join(', ');
}

function findingsOf(errors: readonly ConfigError[], warnings: readonly ConfigWarning[]): CheckFinding[] {
  return [
    ...errors.map((error): CheckFinding => {
      const { file, line, column } = error;
      return { file, line, column, severity: 'error', name: 'invalid', message: describeConfigError(error) };
    }),
    ...warnings.map(({ file, line, column, name, message }): CheckFinding => {
      return { file, line, column, severity: 'warning', name, message };
    }),
  ];
}

/** A list of findings; with a recording (null: it was not read) a mapping of both. */
function writeJson(io: CommandIo, findings: CheckFinding[], replay: object | null | undefined): void {
  io.out(`${JSON.stringify(replay === undefined ? findings : { findings, replay }, null, 2)}\n`);
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}
