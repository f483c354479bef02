// `portcullis check`: validates a configuration and says what it contains. Listens on nothing.

import type { Config } from '../config/config.ts';
import { type ConfigError, formatConfigErrors } from '../config/errors.ts';
import { loadConfigFile } from '../config/load.ts';
import { Certificates } from './certificates/certificates.ts';
import type { CommandIo } from './cli.ts';
import { ExitCode } from './exit-codes.ts';

/** Most errors that a start or a reload writes to the log; `check` shows the others. */
const LOGGED_ERRORS_MAX = 20;

/** Most errors that `check` writes: a file with more has one mistake over and over, or is no configuration. */
const SHOWN_ERRORS_MAX = 1000;

/** Lines for the log: the first errors of a file, and where to see the others. */
export function errorsForLog(errors: readonly ConfigError[]): string[] {
  return formatConfigErrors(errors, LOGGED_ERRORS_MAX, '; `portcullis check` shows them');
}

/** Writes every error, or one line on success; returns the exit code. */
export function checkConfig(file: string, io: CommandIo): number {
  const certificates = new Certificates(() => {});
  const loaded = loadConfigFile(file, process.env, [certificates.check]);
  if ('errors' in loaded) {
    for (const line of formatConfigErrors(loaded.errors, SHOWN_ERRORS_MAX)) io.err(`${line}\n`);
    io.err(`${count(loaded.errors.length, 'error')} in ${file}\n`);
    return ExitCode.CONFIG_INVALID;
  }
  io.out(`${file} is valid: ${summary(loaded.config)}\n`);
  return ExitCode.OK;
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

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}
