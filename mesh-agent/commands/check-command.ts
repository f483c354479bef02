// `portcullis mesh check`: a directory of the mesh as the control plane would take it. Changes nothing, asks nobody.

import { join, relative } from 'node:path';
import { type ConfigError, describeConfigError, formatConfigError, formatConfigErrors } from '../../config/errors.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments } from '../../core/process/options.ts';
import type { AssemblySettings } from '../control/directory-assembly.ts';
import { checkMesh, type MeshCheck, type MeshWarning, readMeshDirectory } from '../control/directory-check.ts';
import { controlConfigOf } from './ca-access.ts';
import type { ControlConfig } from './control-config.ts';
import { CHECK_HELP } from './help.ts';
import type { MeshIo } from './io.ts';

/** Most errors that are shown: a file with more has one mistake over and over, or is no mesh. */
const SHOWN_ERRORS_MAX = 1000;

/** Runs `portcullis mesh check` with the arguments after these words. Throws an ExitError. */
export async function checkCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(CHECK_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(
    args,
    {
      '--config': 'value',
      '--trust-domain': 'value',
      '--cluster-domain': 'value',
      '--warnings-as-errors': 'flag',
      '--format': 'value',
    },
    'mesh check',
  );
  const format = options.get('--format') ?? 'text';
  if (format !== 'text' && format !== 'json') throw usage(`--format is text or json, not ${format}.`);
  if (positional.length > 1) throw usage(`mesh check takes one directory, not ${positional[1]} as well.`);
  const file = options.get('--config');
  const config = file === undefined ? null : controlConfigOf(file, io);
  const directory = positional[0] ?? (config === null ? undefined : directoryOf(config));
  if (directory === undefined) throw usage('mesh check needs a directory, or --config FILE that names one.');
  const settings: AssemblySettings = {
    trustDomain: options.get('--trust-domain') ?? config?.trustDomain ?? 'cluster.local',
    domain: options.get('--cluster-domain') ?? config?.clusterDomain ?? 'cluster.local',
    // Services of a cluster cannot be looked up from here.
    ...(config?.source.kind === 'kubernetes' ? { services: 'unknown' } : {}),
  };
  const check = checkOf(directory, settings);
  const failed = check.errors.length > 0 || (options.has('--warnings-as-errors') && check.warnings.length > 0);
  if (format === 'json') io.out(`${JSON.stringify(findingsOf(check), null, 2)}\n`);
  else write(directory, check, failed, io);
  return failed ? ExitCode.CONFIG_INVALID : ExitCode.OK;
}

function checkOf(directory: string, settings: AssemblySettings): MeshCheck {
  let files: ReturnType<typeof readMeshDirectory>;
  try {
    files = readMeshDirectory(directory, process.env);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const causes: Record<string, string> = { ENOENT: 'it does not exist', ENOTDIR: 'it is not a directory' };
    throw new ExitError(ExitCode.CONFIG_INVALID, `cannot read ${directory}: ${causes[code ?? ''] ?? message}.`);
  }
  const check = checkMesh(files, settings);
  // As the reader's editor finds them.
  const placed = <E extends ConfigError>(found: E): E => ({
    ...found,
    file: relative('.', join(directory, found.file)),
  });
  return { ...check, errors: check.errors.map(placed), warnings: check.warnings.map(placed) };
}

function write(directory: string, check: MeshCheck, failed: boolean, io: MeshIo): void {
  const { errors, warnings } = check;
  for (const line of formatConfigErrors(errors, SHOWN_ERRORS_MAX)) io.err(`${line}\n`);
  for (const warning of warnings.slice(0, SHOWN_ERRORS_MAX)) io.err(`${formatWarning(warning)}\n`);
  const left = warnings.length - SHOWN_ERRORS_MAX;
  if (left > 0) io.err(`and ${count(left, 'more warning')}\n`);
  if (errors.length > 0) {
    io.err(`${count(errors.length, 'error')} in ${directory}\n`);
    return;
  }
  const judged = warnings.length === 0 ? '' : `, with ${count(warnings.length, 'warning')}`;
  io.out(`${directory} is valid${judged}: ${summary(check)}\n`);
  if (failed) io.err(`${count(warnings.length, 'warning')} in ${directory}, treated as errors\n`);
}

function summary({ files, state: { workloads, services, policies } }: MeshCheck): string {
  const policiesText = `${policies.size} authorisation ${policies.size === 1 ? 'policy' : 'policies'}`;
  return [count(files, 'file'), count(workloads.size, 'workload'), count(services.size, 'service'), policiesText].join(
    ', ',
  );
}

/** As `portcullis check --format json`. */
function findingsOf({ errors, warnings }: MeshCheck): object[] {
  return [
    ...errors.map((error) => {
      const { file, line, column } = error;
      return { file, line, column, severity: 'error', name: 'invalid', message: describeConfigError(error) };
    }),
    ...warnings.map(({ file, line, column, name, problem }) => {
      return { file, line, column, severity: 'warning', name, message: problem };
    }),
  ];
}

function formatWarning({ name, problem, ...place }: MeshWarning): string {
  return formatConfigError({ ...place, problem: `warning[${name}]: ${problem}` });
}

function directoryOf({ source }: ControlConfig): string | undefined {
  if (source.kind === 'directory') return source.directory;
  return source.policies?.directory;
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

function usage(sentence: string): ExitError {
  return new ExitError(ExitCode.USAGE, sentence);
}
