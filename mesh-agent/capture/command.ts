// `portcullis mesh capture`: captures of plain hosts from the command line.

import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments, unknown } from '../../core/process/options.ts';
import type { CaptureFailure } from './backend.ts';
import { Captures, OWN_NAMESPACE } from './capture.ts';
import { listNamespaces, namespacePath } from './discovery.ts';
import { captureTable, installCommands } from './rules.ts';
import { type CaptureInput, type CaptureScope, type CaptureSpec, parseCapture } from './spec.ts';

/** Where the command writes. */
export interface CaptureIo {
  out: (text: string) => void;
  err: (text: string) => void;
}

/** Help of the command. */
const CAPTURE_HELP = `Redirects the TCP connections of a workload to the node proxy, or stops doing so.

Usage:
  portcullis mesh capture install WORKLOAD [OPTIONS]
  portcullis mesh capture remove  WORKLOAD
  portcullis mesh capture status  WORKLOAD [OPTIONS] [--json]   exit code 1 unless exactly this is installed
  portcullis mesh capture print   WORKLOAD [OPTIONS]            the rules, without installing them
  portcullis mesh capture list [--json]                         network namespaces of this host

WORKLOAD is one of
  --netns NAME|PATH        a network namespace: a name under /run/netns, or a path
  --pid PID                the network namespace of a process
  --own-namespace          the one that this command runs in (in a pod; not on a host)
  --uid UID[,UID] --name NAME       processes of these users, in the namespace of the host
  --cgroup PATH --name NAME         processes of a cgroup (version 2), such as system.slice/shop.service

Options:
  --outbound-port PORT     where connections of the workload go (15001)
  --inbound-port PORT      where connections to the workload go (15006)
  --ports LIST             of users and cgroups: the ports that the workload serves (none)
  --exclude-outbound LIST          destinations that stay direct: addresses, prefixes
  --exclude-outbound-ports LIST    destination ports that stay direct: ports, ranges
  --exclude-inbound LIST           clients that stay direct: addresses, prefixes
  --exclude-inbound-ports LIST     ports of the workload that stay direct: ports, ranges
  --fail-open              while no proxy holds the capture, traffic goes past it; the command
                           stays in the foreground, and the capture ends with it
`;

const WORKLOAD = {
  '--netns': 'value',
  '--pid': 'value',
  '--own-namespace': 'flag',
  '--uid': 'value',
  '--cgroup': 'value',
  '--name': 'value',
} as const;

const OPTIONS = {
  ...WORKLOAD,
  '--outbound-port': 'value',
  '--inbound-port': 'value',
  '--ports': 'value',
  '--exclude-outbound': 'value',
  '--exclude-outbound-ports': 'value',
  '--exclude-inbound': 'value',
  '--exclude-inbound-ports': 'value',
  '--fail-open': 'flag',
} as const;

const SHAPES = {
  install: OPTIONS,
  remove: WORKLOAD,
  status: { ...OPTIONS, '--json': 'flag' },
  print: OPTIONS,
  list: { '--json': 'flag' },
} as const;

type Action = keyof typeof SHAPES;

interface Workload {
  target: string | number;
  scope: CaptureScope;
  own: boolean;
}

/**
 * Runs `portcullis mesh capture` with the arguments after these words and returns the exit code. `stopped` resolves
 * when a `--fail-open` capture is to end; without it that is SIGTERM or SIGINT. Throws an ExitError for wrong usage.
 */
export async function captureCommand(args: string[], io: CaptureIo, stopped = stopSignal): Promise<number> {
  const [action, ...rest] = args;
  if (action === undefined || action === '--help' || action === 'help' || rest.includes('--help')) {
    io.out(CAPTURE_HELP);
    return action === undefined ? ExitCode.USAGE : ExitCode.OK;
  }
  if (!Object.hasOwn(SHAPES, action)) throw unknown('command', action, Object.keys(SHAPES), 'mesh capture');
  const { options, positional } = parseArguments(rest, SHAPES[action as Action], 'mesh capture');
  if (positional.length > 0) throw usage(`mesh capture ${action} takes no argument ${positional[0]}.`);
  if (action === 'list') return list(options.has('--json'), io);
  const workload = readWorkload(options);
  const spec = readSpec(options, workload);
  if (action === 'print') {
    io.out(`${installCommands(captureTable(spec)).join('\n')}\n`);
    return ExitCode.OK;
  }
  let lost = () => {};
  const released = new Promise<void>((resolve) => {
    lost = resolve;
  });
  const captures = new Captures({ onReleased: () => lost() });
  try {
    const json = options.has('--json');
    if (action === 'status') return await status(captures, workload, spec, json, io);
    if (action === 'remove') return await remove(captures, workload, spec, io);
    return await install(captures, workload, spec, io, stopped, released);
  } finally {
    await captures.close();
  }
}

async function install(
  captures: Captures,
  workload: Workload,
  spec: CaptureSpec,
  io: CaptureIo,
  stopped: () => Promise<void>,
  released: Promise<void>,
): Promise<number> {
  const result = await captures.install(workload.target, spec, workload.own);
  if (!result.ok) return refuse(result, io);
  if (captures.backend !== 'nftables') io.err('portcullis: nft is not installed; iptables is used.\n');
  io.out(`${result.changed ? 'installed' : 'already installed'}: table inet ${spec.table}\n`);
  if (!spec.failOpen) return ExitCode.OK;
  const wasLost = await Promise.race([stopped().then(() => false), released.then(() => true)]);
  if (!wasLost) return ExitCode.OK;
  io.err(`portcullis: the program that held table inet ${spec.table} has ended; traffic goes past the proxy.\n`);
  return ExitCode.CONFIG_INVALID;
}

async function remove(captures: Captures, workload: Workload, spec: CaptureSpec, io: CaptureIo): Promise<number> {
  const result = await captures.remove(workload.target, spec.table);
  if (!result.ok) return refuse(result, io);
  io.out(`${result.changed ? 'removed' : 'not installed'}: table inet ${spec.table}\n`);
  return ExitCode.OK;
}

async function status(
  captures: Captures,
  workload: Workload,
  spec: CaptureSpec,
  json: boolean,
  io: CaptureIo,
): Promise<number> {
  const result = await captures.status(workload.target, spec);
  if (!result.ok) return refuse(result, io);
  const { state, differences } = result;
  if (json) io.out(`${JSON.stringify({ table: spec.table, state, differences })}\n`);
  else io.out(`${[`${state}: table inet ${spec.table}`, ...differences].join('\n  ')}\n`);
  return state === 'installed' ? ExitCode.OK : ExitCode.CONFIG_INVALID;
}

function list(json: boolean, io: CaptureIo): number {
  const namespaces = listNamespaces();
  if (json) {
    io.out(`${JSON.stringify(namespaces)}\n`);
    return ExitCode.OK;
  }
  for (const { path, names, pids, own } of namespaces) {
    const processes = pids.length === 0 ? 'no processes' : `processes ${pids.slice(0, 5).join(', ')}`;
    const more = pids.length > 5 ? ` and ${pids.length - 5} more` : '';
    io.out(`${names.join(', ') || path}: ${processes}${more}${own ? ' (own)' : ''}\n`);
  }
  return ExitCode.OK;
}

function refuse(failure: CaptureFailure, io: CaptureIo): number {
  io.err(`portcullis: ${failure.message} (${failure.code})\n`);
  const isMachine = ['NO_PACKET_FILTER', 'FAIL_OPEN_UNSUPPORTED'].includes(failure.code);
  return isMachine ? ExitCode.UNSUPPORTED : ExitCode.CONFIG_INVALID;
}

function readWorkload(options: Map<string, string>): Workload {
  const given = ['--netns', '--pid', '--own-namespace', '--uid', '--cgroup'].filter((name) => options.has(name));
  if (given.length !== 1) {
    throw usage('exactly one of --netns, --pid, --own-namespace, --uid and --cgroup says which workload.');
  }
  const value = options.get(given[0]!)!;
  switch (given[0]) {
    case '--netns': {
      const path = namespacePath(value);
      if (path === undefined) throw usage(`--netns ${value} is neither a name nor an absolute path.`);
      return { target: path, scope: { kind: 'namespace' }, own: false };
    }
    case '--pid':
      if (!/^[1-9]\d{0,9}$/.test(value)) throw usage(`--pid ${value} is not a process id.`);
      return { target: Number(value), scope: { kind: 'namespace' }, own: false };
    case '--own-namespace':
      return { target: OWN_NAMESPACE, scope: { kind: 'namespace' }, own: true };
    case '--uid':
      return { target: OWN_NAMESPACE, scope: { kind: 'uid', uids: split(value).map(toNumber) }, own: true };
    default:
      return { target: OWN_NAMESPACE, scope: { kind: 'cgroup', path: value.replace(/^\/+|\/+$/g, '') }, own: true };
  }
}

function readSpec(options: Map<string, string>, workload: Workload): CaptureSpec {
  const lists: [string, keyof CaptureInput][] = [
    ['--ports', 'inboundPorts'],
    ['--exclude-outbound', 'excludeOutbound'],
    ['--exclude-outbound-ports', 'excludeOutboundPorts'],
    ['--exclude-inbound', 'excludeInbound'],
    ['--exclude-inbound-ports', 'excludeInboundPorts'],
  ];
  const numbers: [string, keyof CaptureInput][] = [
    ['--outbound-port', 'outboundPort'],
    ['--inbound-port', 'inboundPort'],
  ];
  const input: Record<string, unknown> = { scope: workload.scope, failOpen: options.has('--fail-open') };
  for (const [option, key] of lists) if (options.has(option)) input[key] = split(options.get(option)!);
  for (const [option, key] of numbers) if (options.has(option)) input[key] = toNumber(options.get(option)!);
  if (options.has('--name')) input.name = options.get('--name');
  const parsed = parseCapture(input as CaptureInput);
  if ('faults' in parsed) throw usage(`${parsed.faults.join('; ')}.`);
  return parsed.spec;
}

function split(text: string): string[] {
  return text.split(',').filter((part) => part !== '');
}

/** NaN, which the spec refuses by name, for anything but digits. */
function toNumber(text: string): number {
  return /^\d+$/.test(text) ? Number(text) : Number.NaN;
}

function usage(sentence: string): ExitError {
  return new ExitError(ExitCode.USAGE, sentence);
}

function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    process.once('SIGTERM', () => resolve());
    process.once('SIGINT', () => resolve());
  });
}
