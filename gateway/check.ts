// `portcullis check`: validates a configuration and says what it contains. Opens nothing.

import type { Config } from '../config/config.ts';
import { formatConfigError } from '../config/errors.ts';
import { loadConfigFile } from '../config/load.ts';
import type { CommandIo } from './cli.ts';
import { ExitCode } from './exit-codes.ts';

/** Writes every error, or one line on success; returns the exit code. */
export function checkConfig(file: string, io: CommandIo): number {
  const loaded = loadConfigFile(file, process.env);
  if ('errors' in loaded) {
    for (const error of loaded.errors) io.err(`${formatConfigError(error)}\n`);
    io.err(`${count(loaded.errors.length, 'error')} in ${file}\n`);
    return ExitCode.CONFIG_INVALID;
  }
  io.out(`${file} is valid: ${summary(loaded.config)}\n`);
  return ExitCode.OK;
}

/** What a configuration contains, such as `1 listener, 2 routes with 3 rules, 1 backend with 2 endpoints`. */
export function summary({ listeners, routes, backends }: Config): string {
  const rules = routes.reduce((sum, route) => sum + route.rules.length, 0);
  const endpoints = backends.reduce((sum, backend) => sum + backend.endpoints.length, 0);
  return [
    count(listeners.length, 'listener'),
    `${count(routes.length, 'route')} with ${count(rules, 'rule')}`,
    `${count(backends.length, 'backend')} with ${count(endpoints, 'endpoint')}`,
  ].join(', ');
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}
