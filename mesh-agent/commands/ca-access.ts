// What commands need that work on the private directories of the control plane: its configuration, and its user.

import { statSync } from 'node:fs';
import { formatConfigErrors } from '../../config/errors.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { IdentityError } from '../identity/errors.ts';
import { type ControlConfig, loadControl } from './control-config.ts';
import type { MeshIo } from './io.ts';

/** Most errors of a configuration that are shown. */
const SHOWN_ERRORS_MAX = 100;

/** The control plane's configuration. Throws an ExitError that says what is wrong with it. */
export function controlConfigOf(file: string, io: MeshIo): ControlConfig {
  const loaded = loadControl(file, process.env);
  if ('config' in loaded) return loaded.config;
  for (const line of formatConfigErrors(loaded.errors, SHOWN_ERRORS_MAX)) io.err(`${line}\n`);
  throw new ExitError(ExitCode.CONFIG_INVALID, 'the configuration is not valid.');
}

/**
 * Throws an ExitError when this is not the user of the control plane, by the owner of the first of the directories that
 * there is: files of another user would be there, and the control plane could not read them.
 */
export function requireControlUser(...directories: readonly string[]): void {
  for (const directory of directories) {
    const owner = statSync(directory, { throwIfNoEntry: false })?.uid;
    if (owner === undefined) continue;
    const own = process.geteuid!();
    if (owner === own) return;
    throw new ExitError(
      ExitCode.CONFIG_INVALID,
      `${directory} is for user ${owner}, and this runs as user ${own}: run it as the control plane's user.`,
    );
  }
}

/** A refusal as the end of a command; other errors stay what they are. */
export function asExitError(error: unknown): unknown {
  if (!(error instanceof IdentityError) || error.code === 'internal') return error;
  const advice = error.advice === '' ? '' : `; ${error.advice}`;
  const code = error.code === 'spiffe-id' ? ExitCode.USAGE : ExitCode.CONFIG_INVALID;
  return new ExitError(code, `${error.message}${advice}.`);
}
