// The command line: commands, their options, help and version.
//
// Commands are imported when they are used, so that `check` and `--help` start fast and load no
// native code. Exit codes are those of exit-codes.ts.

import { ExitCode, ExitError } from '../core/process/exit-codes.ts';
import { parseArguments, unknown } from '../core/process/options.ts';
import { version } from '../core/process/version.ts';

/** Where a command writes. */
export interface CommandIo {
  out: (text: string) => void;
  err: (text: string) => void;
}

const HELP = `Portcullis: an edge gateway and a service mesh.

Usage:
  portcullis run [--config FILE]     serve; without a file, a built-in demo on 127.0.0.1:8080
                                     (the variables PORT and ADMIN_PORT choose other ports)
  portcullis check --config FILE [--replay FILE] [--warnings-as-errors] [--format text|json]
                                     validate a configuration, every error at once, and warn of what is
                                     probably not meant; with --replay, say which of the requests that
                                     \`portcullis recorded\` has written would fare otherwise
  portcullis schema [control|node|mesh]
                                     JSON Schema of the configuration, for editors; of the control plane's, of
                                     the node proxy's, of a document of the mesh's files
  portcullis explain ID [--admin HOST:PORT] [--json]
                                     what happened to the request with this id
  portcullis recorded [--admin HOST:PORT]
                                     write the requests that a gateway with a recorder has seen
  portcullis control --config FILE   the control plane of a mesh
  portcullis mesh node --config FILE the proxy of one of its nodes
  portcullis mesh status|services|workloads|policies|roots [--admin HOST:PORT] [--json]
                                     how the mesh stands, as its control plane knows it
  portcullis mesh graph [--admin HOST:PORT[,...]] [--json]
                                     who talks to whom, as node proxies have counted it
  portcullis mesh check|apply|wait|rotate ...
                                     validate and change what a mesh is made of, wait until every node serves it;
                                     replace its root
  portcullis mesh token|capture ...  join tokens of plain hosts; whose connections a node proxy takes
  portcullis --help | --version      \`control\`, \`mesh\`, \`mesh node\`, \`mesh token\` and \`mesh capture\` have a --help of their own

Signals of a running process:
  SIGHUP   reload the configuration; a broken one is refused and the old one serves on
  SIGTERM  drain: stop accepting, finish what runs, exit; a second one stops at once
  SIGINT   stop at once
  SIGUSR1  reopen the access log

Exit codes: 0 done, 1 configuration invalid (or warnings as errors) or nothing found, 2 usage, 3 cannot listen, 4 unsupported machine or
missing runtime, 5 too few file descriptors, 6 connections were cut, 7 not served by every node,
70 internal error.
`;

type Command = (args: string[], io: CommandIo) => Promise<number>;

const commands: Record<string, Command> = { run, check, schema, explain, recorded, control, mesh };

/** Commands that have help of their own. */
const OWN_HELP = ['explain', 'control', 'mesh'];

/** Runs one command line (without node and script) and returns the exit code. */
export async function runCli(args: string[], io: CommandIo): Promise<number> {
  try {
    const [first, ...rest] = args;
    if (first === undefined) throw new ExitError(ExitCode.USAGE, 'no command is given: see `portcullis --help`.');
    if (first === '--version' || first === '-v') {
      io.out(`portcullis ${version()}\n`);
      return ExitCode.OK;
    }
    if (
      first === '--help' ||
      first === '-h' ||
      first === 'help' ||
      (!OWN_HELP.includes(first) && rest.includes('--help'))
    ) {
      io.out(HELP);
      return ExitCode.OK;
    }
    if (first.startsWith('-')) throw unknown('option', first, ['--help', '--version']);
    if (!Object.hasOwn(commands, first)) throw unknown('command', first, Object.keys(commands));
    return await commands[first]!(rest, io);
  } catch (error) {
    if (!(error instanceof ExitError)) throw error;
    io.err(`portcullis: ${error.message}\n`);
    return error.code;
  }
}

async function run(args: string[], io: CommandIo): Promise<number> {
  const { options, positional } = parseArguments(args, { '--config': 'value' });
  refusePositional('run', positional);
  const { runGateway } = await import('./run.ts');
  return runGateway(options.get('--config'), io);
}

async function check(args: string[], io: CommandIo): Promise<number> {
  const { options, positional } = parseArguments(args, {
    '--config': 'value',
    '--replay': 'value',
    '--warnings-as-errors': 'flag',
    '--format': 'value',
  });
  refusePositional('check', positional);
  const file = options.get('--config');
  if (file === undefined) throw new ExitError(ExitCode.USAGE, 'check needs --config FILE.');
  const format = options.get('--format') ?? 'text';
  if (format !== 'text' && format !== 'json') {
    throw new ExitError(ExitCode.USAGE, `--format is text or json, not ${format}.`);
  }
  const { checkConfig } = await import('./check.ts');
  const warningsAsErrors = options.has('--warnings-as-errors');
  return checkConfig(file, { format, warningsAsErrors, replayFile: options.get('--replay') }, io);
}

async function recorded(args: string[], io: CommandIo): Promise<number> {
  const { options, positional } = parseArguments(args, { '--admin': 'value' });
  refusePositional('recorded', positional);
  const { writeRecorded } = await import('./replay/download.ts');
  return writeRecorded(options.get('--admin'), io);
}

async function schema(args: string[], io: CommandIo): Promise<number> {
  const [what = 'gateway', ...others] = parseArguments(args, {}).positional;
  refusePositional('schema', others);
  const schemas: Record<string, () => Promise<object>> = {
    gateway: async () => (await import('../config/json-schema.ts')).jsonSchema(),
    control: async () => (await import('../mesh-agent/commands/main.ts')).controlJsonSchema(),
    node: async () => (await import('../mesh-agent/commands/main.ts')).nodeJsonSchema(),
    mesh: async () => (await import('../mesh-agent/commands/main.ts')).meshJsonSchema(),
  };
  if (!Object.hasOwn(schemas, what)) throw unknown('configuration', what, Object.keys(schemas));
  io.out(`${JSON.stringify(await schemas[what]!(), null, 2)}\n`);
  return ExitCode.OK;
}

async function control(args: string[], io: CommandIo): Promise<number> {
  const { controlCommand } = await import('../mesh-agent/commands/main.ts');
  return controlCommand(args, io);
}

async function mesh(args: string[], io: CommandIo): Promise<number> {
  const { meshCommand } = await import('../mesh-agent/commands/main.ts');
  return meshCommand(args, io);
}

async function explain(args: string[], io: CommandIo): Promise<number> {
  const { runExplain } = await import('./explain.ts');
  return runExplain(args, { write: io.out }, { write: io.err });
}

function refusePositional(command: string, positional: string[]): void {
  if (positional.length === 0) return;
  const hint = command === 'run' || command === 'check' ? ` (a file is given as --config ${positional[0]})` : '';
  throw new ExitError(ExitCode.USAGE, `${command} takes no argument ${positional[0]}${hint}.`);
}
