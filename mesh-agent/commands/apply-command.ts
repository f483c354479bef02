// `portcullis mesh apply` and `mesh wait`: files into the mesh as one change, and until every node proxy serves it.
//
// A short process of its own. Nothing is written before everything is valid together with what is there; then all
// files are replaced at once (control/directory-list.ts). The control plane tells what it has read by hashes.

import { hash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { formatConfigErrors } from '../../config/errors.ts';
import { formatAddress } from '../../config/names.ts';
import { parseDurationMs } from '../../config/units.ts';
import { type AdminAddress, adminOption } from '../../core/process/admin-client.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments } from '../../core/process/options.ts';
import { checkMesh, readMeshDirectory, readOne } from '../control/directory-check.ts';
import { changeDirectory, isMeshFile, listMeshFiles } from '../control/directory-list.ts';
import type { Applied } from '../control/discovery.ts';
import { controlConfigOf } from './ca-access.ts';
import type { ControlStatus, SourceStatus } from './control-admin.ts';
import { askControl, parseAnswer } from './control-client.ts';
import type { ControlConfig } from './control-config.ts';
import { CONTROL_ADMIN_DEFAULT } from './control-schema.ts';
import { APPLY_HELP, WAIT_HELP } from './help.ts';
import type { MeshIo } from './io.ts';
import { printable } from './table.ts';

const TIMEOUT_DEFAULT = '30s';
const POLL_MS = 50;
/** How long one question about a version may wait for its answer at the control plane. */
const ASK_WAIT_MS = 1_000;
const SHOWN_ERRORS_MAX = 100;
const FILE_MODE = 0o644;

/** Where files go. */
type Target = Pick<SourceStatus, 'kind' | 'trustDomain' | 'clusterDomain'> & {
  directory: { path: string; lastGoodPath: string };
};

/** Content by path in the directory of the mesh. */
type Files = Map<string, Uint8Array>;

/** Runs `portcullis mesh apply` with the arguments after these words. Throws an ExitError. */
export async function applyCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(APPLY_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(
    args,
    { '--config': 'value', '--admin': 'value', '--wait': 'flag', '--timeout': 'value' },
    'mesh apply',
  );
  if (positional.length === 0) throw usage('mesh apply needs a file or a directory.');
  const timeoutMs = timeoutOf(options.get('--timeout'));
  const file = options.get('--config');
  const config = file === undefined ? null : controlConfigOf(file, io);
  const wait = options.has('--wait');
  const admin = config === null || wait ? adminOf(options.get('--admin'), config) : null;
  const target = config === null ? await askTarget(admin!) : targetOf(config);
  // Who cannot be asked later is known of before anything is written.
  if (config !== null && wait) await askControl(admin!, '/source');
  const files = collect(positional);
  validate(files, target, io);
  const written = await put(files, target.directory.path);
  const what = `${count(files.size, 'file')}, ${written === 0 ? 'unchanged' : `${written} written to ${target.directory.path}`}`;
  if (!wait) {
    io.out(`${what}\n`);
    return ExitCode.OK;
  }
  const endMs = performance.now() + timeoutMs;
  const version = await versionWith(files, admin!, endMs, timeoutMs, io);
  if (version === null) return ExitCode.CONFIG_INVALID;
  io.out(`${what}\n`);
  return served(version, admin!, endMs, timeoutMs, io);
}

/** Runs `portcullis mesh wait` with the arguments after these words. Throws an ExitError. */
export async function waitCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(WAIT_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(args, { '--admin': 'value', '--timeout': 'value' }, 'mesh wait');
  if (positional.length > 0) throw usage(`mesh wait takes no argument ${positional[0]}.`);
  const timeoutMs = timeoutOf(options.get('--timeout'));
  const admin = adminOf(options.get('--admin'), null);
  const { mesh } = parseAnswer(await askControl(admin, '/status'), admin) as ControlStatus;
  return served(mesh.version, admin, performance.now() + timeoutMs, timeoutMs, io);
}

async function askTarget(admin: AdminAddress): Promise<Target> {
  const { directory, ...source } = parseAnswer(await askControl(admin, '/source'), admin) as SourceStatus;
  if (directory === null) throw onlyKubernetes();
  // Files there would say that a mesh whose directory was lost is meant to be gone but for them.
  const lost = source.errors.find(({ file }) => file === directory.path);
  if (lost !== undefined) {
    throw new ExitError(ExitCode.CONFIG_INVALID, `nothing was written to ${directory.path}: ${lost.problem}.`);
  }
  return { ...source, directory };
}

function targetOf({ source, trustDomain, clusterDomain }: ControlConfig): Target {
  const files = source.kind === 'directory' ? source : source.policies;
  if (files === null) throw onlyKubernetes();
  const directory = { path: files.directory, lastGoodPath: files.lastGoodDirectory };
  return { kind: source.kind, trustDomain, clusterDomain, directory };
}

function onlyKubernetes(): ExitError {
  return new ExitError(
    ExitCode.CONFIG_INVALID,
    'this mesh comes from Kubernetes and has no directory: use kubectl, then `portcullis mesh wait`.',
  );
}

/** The files that are named; of directories, all that is part of a mesh, by its path there. */
function collect(paths: readonly string[]): Files {
  const files: Files = new Map();
  const add = (name: string, path: string): void => {
    if (files.has(name)) throw usage(`two of the files would be ${name} in the mesh.`);
    files.set(name, readFileSync(path));
  };
  for (const path of paths) {
    try {
      if (statSync(path).isDirectory()) for (const name of listMeshFiles(path).files) add(name, join(path, name));
      else if (isMeshFile(basename(path))) add(basename(path), path);
      else throw usage(`${path} would be passed over: files of a mesh end with .yaml, .yml or .json.`);
    } catch (error) {
      throw systemFailure(`cannot read ${path}`, error);
    }
  }
  if (files.size === 0) throw new ExitError(ExitCode.CONFIG_INVALID, `there are no files of a mesh in ${paths[0]}.`);
  return files;
}

/** Throws an ExitError, after what is wrong was said, when the files cannot be used beside those that are there. */
function validate(files: Files, target: Target, io: MeshIo): void {
  const { path, lastGoodPath } = target.directory;
  let all: ReturnType<typeof readMeshDirectory>;
  try {
    all = readMeshDirectory(path, process.env, { lastGoodDirectory: lastGoodPath });
  } catch (error) {
    const where = `the mesh is in ${path}, which cannot be read here`;
    throw systemFailure(`${where} (run this on the control plane's machine)`, error);
  }
  for (const [name, bytes] of files) {
    const read = readOne(bytes, name, process.env);
    // What is the same as before is in use, and takes the blame for nothing.
    const same = read.now !== null && all.get(name)?.now?.text === read.now.text;
    if (!same) all.set(name, { ...read, good: null });
  }
  const { errors } = checkMesh(all, {
    ...{ trustDomain: target.trustDomain, domain: target.clusterDomain },
    ...(target.kind === 'kubernetes' ? { services: 'unknown' } : {}),
  });
  const own = errors.filter(({ file }) => files.has(file));
  if (own.length === 0) return;
  for (const line of formatConfigErrors(own, SHOWN_ERRORS_MAX)) io.err(`${line}\n`);
  throw new ExitError(ExitCode.CONFIG_INVALID, `${count(own.length, 'error')}, and nothing was written.`);
}

/** Replaces what differs, as one change; returns how many files that were. Throws an ExitError. */
async function put(files: Files, directory: string): Promise<number> {
  const different = [...files].filter(([name, bytes]) => !isSame(join(directory, name), bytes));
  if (different.length === 0) return 0;
  const pairs = different.map(([name, bytes]) => {
    const path = join(directory, name);
    return { path, bytes, temporary: join(dirname(path), `.${basename(path)}.${process.pid}.new`) };
  });
  // The control plane is another user perhaps, and has to read what is written.
  const umask = process.umask(0o022);
  try {
    for (const { path, bytes, temporary } of pairs) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(temporary, bytes, { mode: FILE_MODE, flush: true });
    }
    await changeDirectory(directory, () => {
      for (const { path, temporary } of pairs) renameSync(temporary, path);
    });
  } catch (error) {
    for (const { temporary } of pairs) rmSync(temporary, { force: true });
    throw systemFailure(`cannot write to ${directory}`, error);
  } finally {
    process.umask(umask);
  }
  return pairs.length;
}

function isSame(path: string, bytes: Uint8Array): boolean {
  try {
    return readFileSync(path).equals(bytes);
  } catch {
    return false;
  }
}

/** The version of the mesh that has the files in it; null: the control plane refuses some, which was said. */
async function versionWith(
  files: Files,
  admin: AdminAddress,
  endMs: number,
  timeoutMs: number,
  io: MeshIo,
): Promise<number | null> {
  const digests = [...files].map(([name, bytes]) => [name, hash('sha256', bytes)] as const);
  for (;;) {
    const source = parseAnswer(await askControl(admin, '/source'), admin) as SourceStatus;
    const states = new Map(source.files.map((one) => [one.file, one]));
    if (digests.every(([name, digest]) => states.get(name)?.digest === digest)) {
      const refused = digests.filter(([name]) => !states.get(name)!.inUse);
      if (refused.length === 0) return source.version;
      const errors = source.errors.filter(({ file }) => refused.some(([name]) => name === file));
      for (const line of formatConfigErrors(errors, SHOWN_ERRORS_MAX)) io.err(`${printable(line)}\n`);
      io.err(`the control plane refuses ${count(refused.length, 'file')}, and uses what was last good of it\n`);
      return null;
    }
    if (performance.now() >= endMs) {
      const where = source.directory?.path ?? 'no directory';
      throw new ExitError(
        ExitCode.NOT_SERVED,
        `the control plane at ${admin.text} has not read the files within ${timeoutMs / 1000} s; it reads ${where}.`,
      );
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

/** Waits until every connected proxy serves a version; says who was slowest, or who does not. */
async function served(
  version: number,
  admin: AdminAddress,
  endMs: number,
  timeoutMs: number,
  io: MeshIo,
): Promise<number> {
  for (;;) {
    const leftMs = Math.max(0, Math.ceil(endMs - performance.now()));
    const path = `/applied?version=${version}&waitMs=${Math.min(leftMs, ASK_WAIT_MS)}`;
    const applied = parseAnswer(await askControl(admin, path), admin) as Applied;
    if (applied.waiting.length > 0 && leftMs > 0) continue;
    for (const line of describe(applied, timeoutMs)) (applied.complete ? io.out : io.err)(`${printable(line)}\n`);
    return applied.complete ? ExitCode.OK : ExitCode.NOT_SERVED;
  }
}

/** What became of a version, one line each. */
export function describe(
  { complete, proxies, refused, slowest, version, waiting }: Applied,
  timeoutMs: number,
): string[] {
  const last = slowest === null ? '' : `, the slowest ${slowest.proxy} after ${(slowest.ms / 1000).toFixed(2)} s`;
  if (complete && proxies === 0) return [`version ${version} is in force; no node proxy is connected`];
  if (complete && proxies === 1)
    return [
      `version ${version} is served by 1 node proxy, ${slowest!.proxy} after ${(slowest!.ms / 1000).toFixed(2)} s`,
    ];
  if (complete) return [`version ${version} is served by all ${proxies} node proxies${last}`];
  return [
    ...refused.map(({ proxy, reason, resources }) => `${proxy} refuses ${resources.join(', ')}: ${reason}`),
    ...waiting.map((proxy) => `${proxy} does not serve it after ${timeoutMs / 1000} s`),
    `version ${version} is not served by ${refused.length + waiting.length} of ${proxies} node proxies${last}`,
  ];
}

function adminOf(given: string | undefined, config: ControlConfig | null): AdminAddress {
  if (given !== undefined || config === null) return adminOption(given ?? CONTROL_ADMIN_DEFAULT);
  if (config.admin === null) throw usage('the control plane has no admin port (admin: off), so --wait cannot ask it.');
  const { host, port } = config.admin;
  const anyHost = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return adminOption(formatAddress(anyHost, port));
}

function timeoutOf(text = TIMEOUT_DEFAULT): number {
  const ms = parseDurationMs(text) ?? 0;
  if (ms <= 0) throw usage(`--timeout: ${text} is not a duration such as 30s or 5m.`);
  return ms;
}

function systemFailure(what: string, error: unknown): unknown {
  if (error instanceof ExitError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const causes: Record<string, string> = {
    ENOENT: 'it does not exist',
    EACCES: 'this user may not',
    EROFS: 'its file system is read-only',
    ENOSPC: 'the disk is full',
  };
  return new ExitError(ExitCode.CONFIG_INVALID, `${what}: ${causes[code ?? ''] ?? message}.`);
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

function usage(sentence: string): ExitError {
  return new ExitError(ExitCode.USAGE, sentence);
}
