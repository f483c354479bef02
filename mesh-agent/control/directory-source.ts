// The mesh from a directory of YAML files: the embedded source, watched while it is in use.
//
// Control thread of the control plane. A broken file is refused by name, and what it last held stays; all
// others serve. What was last good is also kept in a directory of its own, if one is given, so that a file
// broken before a restart does not take its policies out of the mesh, nor a mount that fails at the start all of it.
// Events only tell that it is worth looking; what has changed shows in the content. A slow poll finds what
// sends no events (network mounts).
// A directory that cannot be read, or that has lost all of its files at once, is one that something has happened to:
// what it held stays, since a mesh that is gone has every node carry its traffic in plain text. What comes back there
// is left alone until it is complete: all that was lost, or files that have been the same for a while.

import { hash } from 'node:crypto';
import { type FSWatcher, readdirSync, readFileSync, type Stats, statSync, watch } from 'node:fs';
import { join } from 'node:path';
import type { Environment } from '../../config/env.ts';
import { type ConfigError, formatConfigError, formatConfigErrors } from '../../config/errors.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import type { Log, LogLevel } from '../../core/workers/log.ts';
import {
  changesBetween,
  emptyMeshState,
  type MeshChanges,
  type MeshSource,
  type MeshState,
  type MeshUpdate,
  type Service,
} from '../model/mesh-state.ts';
import { assemble, type Candidate, type PolicyWarning } from './directory-assembly.ts';
import { type MeshFile, readMeshFile, unreadable } from './directory-file.ts';
import { LastGood } from './directory-last-good.ts';
import { changeMark, listMeshFiles } from './directory-list.ts';
import type { PolicyWarningName } from './policy-warnings.ts';

/** Settings of a directory source. */
export interface DirectoryOptions {
  /** Absolute path. */
  directory: string;
  trustDomain: string;
  /** Ends the names of services in DNS. Default: `cluster.local`. */
  domain?: string;
  /** Absolute path of a directory for the last good content of files; null: it is not kept. */
  lastGoodDirectory: string | null;
  /** Where `${VAR}` in files is looked up. */
  env: Environment;
  log: Log;
  times?: DirectoryTimes;
  /**
   * Services of another source, which policies here are about; files then hold policies only, and the state has no more
   * than those of the services that have a traffic policy. Absent: services and workloads come from the files.
   */
  services?: () => ReadonlyMap<string, Service>;
}

/** Times of the watcher, in milliseconds. */
export interface DirectoryTimes {
  /** Time without another event before the directory is read. */
  quietMs: number;
  /** Longest time that events can put that off. */
  delayMaxMs: number;
  pollMs: number;
}

const TIMES: DirectoryTimes = { quietMs: 100, delayMaxMs: 1000, pollMs: 5000 };

/** How long a change of several files that is under way is left alone before the next look. */
const CHANGE_WAIT_MS = 20;

/** For how many polls files that come back have to be the same before they are read: a copy may pause. */
const STEADY_POLLS = 3;

const FILE_BYTES_MAX = 64 * 1024 * 1024;

/** Most errors of a file that one log line tells. */
const ERRORS_SHOWN = 5;

/** What the log says of policies that are hardly meant. */
const POLICY_LINES: Record<PolicyWarningName, string> = {
  contradiction: 'policies contradict each other',
  'deny-everything': 'policy denies everything',
  'deny-closes-tcp': 'policy closes every connection of TCP',
};

/** What there is to do about a directory that has lost all of its files. */
const EMPTIED_ADVICE =
  'bring the files back, or, if the mesh is to be empty, put a file there (empty.yaml without content will do)';

/** A file as it was last looked at. */
interface Known extends Candidate {
  /** Size, time and inode; the same: it has not changed. null: it has not been seen, only what was last good of it. */
  signature: string | null;
  /** Hash of the content; empty: it could not be read. */
  digest: string;
  errors: ConfigError[];
}

/** A file as the source has it. */
export interface FileState {
  /** Relative to the directory. */
  file: string;
  /** SHA-256 of its content, hexadecimal; empty: it cannot be read. */
  digest: string;
  /** That content is in use, not an older one, or none. */
  inUse: boolean;
}

/** Why it is not known what the directory should hold now. */
interface Outage {
  /** It cannot be listed; all files that were in use are gone from it; or, after either, some are there again. */
  kind: 'unreadable' | 'emptied' | 'returning';
  problem: string;
  /** Since when it has not been known, by performance.now(). */
  sinceMs: number;
}

/** A directory of YAML files. */
export class DirectorySource implements MeshSource {
  readonly name: string;
  private readonly options: DirectoryOptions;
  private readonly times: DirectoryTimes;
  private readonly files = new Map<string, Known>();
  private readonly watchers = new Map<string, FSWatcher>();
  private onUpdate: ((update: MeshUpdate) => void) | undefined;
  private state: MeshState;
  private problems: ConfigError[] = [];
  private readonly reported = new Set<string>();
  private quietTimer: NodeJS.Timeout | undefined;
  private pollTimer: NodeJS.Timeout | undefined;
  private firstEventMs = 0;
  private outage: Outage | null = null;
  /** Files that came back to the directory, as they were at a poll of that number and are since. */
  private returning: { signatures: string; sincePoll: number } | null = null;
  private polls = 0;
  private readonly lastGood: LastGood | null;
  /** Nothing is kept any more of files that went before this process began. */
  private isTidy = false;
  /** Copies that could not be brought up to date, and why; tried again with each poll. */
  private readonly unkept = new Map<string, ConfigError>();
  /** Something was read that has not been put together yet. */
  private unfinished = false;
  private used: ReadonlyMap<string, MeshFile | null> = new Map();

  constructor(options: DirectoryOptions) {
    this.options = options;
    this.name = `directory ${options.directory}`;
    this.lastGood = options.lastGoodDirectory === null ? null : new LastGood(options.lastGoodDirectory);
    this.state = emptyMeshState(options.trustDomain);
    this.times = options.times ?? TIMES;
  }

  /**
   * What is wrong with files now, or with the directory as a whole, then by its own name; what was there before is in
   * use, or nothing of them.
   */
  get errors(): readonly ConfigError[] {
    const found = [...this.problems, ...this.unkept.values()];
    if (this.outage === null) return found;
    return [{ file: this.options.directory, line: 0, column: 0, problem: this.outage.problem }, ...found];
  }

  /** See MeshSource. */
  get behindMs(): number {
    return this.outage === null ? 0 : performance.now() - this.outage.sinceMs;
  }

  /** The files as they were last looked at; none while they are being read. */
  get fileStates(): FileState[] {
    if (this.unfinished) return [];
    return [...this.files].map(([file, { digest, now }]) => {
      const inUse = now !== null && this.used.get(file) === now;
      return { file, digest, inUse };
    });
  }

  /**
   * See MeshSource. Rejects when the directory cannot be read, and when nothing is there and nothing can be used of what
   * was last good.
   */
  async start(onUpdate: (update: MeshUpdate) => void): Promise<void> {
    readdirSync(this.options.directory);
    this.onUpdate = onUpdate;
    while (this.onUpdate !== undefined && !this.look(true)) {
      await new Promise((resolve) => setTimeout(resolve, CHANGE_WAIT_MS));
    }
    if (this.onUpdate === undefined) return;
    this.pollTimer = setInterval(() => {
      this.polls++;
      for (const path of [...this.unkept.keys()]) this.keepGood(path);
      this.look(false);
    }, this.times.pollMs).unref();
  }

  /** See MeshSource. */
  async close(): Promise<void> {
    this.onUpdate = undefined;
    clearTimeout(this.quietTimer);
    clearInterval(this.pollTimer);
    for (const watcher of this.watchers.values()) watcher.close();
    this.watchers.clear();
  }

  /** The services of the other source have changed: tells of it before it returns, if that makes a difference here. */
  servicesChanged(): void {
    if (this.onUpdate !== undefined && !this.unfinished) this.assemble(false, 'debug');
  }

  /**
   * Reads what has changed, and tells of it; `first`: even if there is nothing. Returns whether that could be done:
   * the directory can be read, and no change of several files is under way; of those, either all are seen or none.
   */
  private look(first: boolean): boolean {
    clearTimeout(this.quietTimer);
    this.quietTimer = undefined;
    const { directory } = this.options;
    const mark = changeMark(directory);
    const found = mark === null ? null : this.list();
    if (found !== null) {
      if (first && found.size === 0 && this.files.size === 0) this.recall();
      const isLost = this.isLost(found);
      if (!isLost) this.readFiles(found);
      if (changeMark(directory) === mark) {
        if (this.unfinished || first) this.assemble(first);
        if (!isLost && !this.isTidy) this.tidy();
        return true;
      }
    }
    if (!first && (mark === null || found !== null)) {
      this.quietTimer = setTimeout(() => this.look(false), CHANGE_WAIT_MS).unref();
    }
    return false;
  }

  /** Paths of the files, relative to the directory; null when they cannot be listed now. */
  private list(): Set<string> | null {
    let listed: ReturnType<typeof listMeshFiles>;
    try {
      listed = listMeshFiles(this.options.directory);
    } catch (error) {
      const problem = (error as Error).message;
      if (this.outage?.kind !== 'unreadable') {
        this.options.log('error', 'mesh directory cannot be read, what it held stays in use', { problem });
      }
      this.begin('unreadable', `the directory cannot be read (${problem}), and what it held stays in use`);
      return null;
    }
    this.watch(listed.directories);
    return listed.files;
  }

  /** Takes what was last good for the files of a directory that is empty at the start, as after a mount that failed. */
  private recall(): void {
    const { directory, lastGoodDirectory, env } = this.options;
    const fail = (problem: string): ExitError =>
      new ExitError(
        ExitCode.CONFIG_INVALID,
        `source.directory: ${directory} is empty, and ${problem}; ${EMPTIED_ADVICE}.`,
      );
    let copies: Map<string, Uint8Array>;
    try {
      copies = this.lastGood?.all() ?? new Map();
    } catch (error) {
      throw fail(`what was there last cannot be read (${(error as Error).message})`);
    }
    const used = new Map<string, MeshFile | null>();
    for (const [path, bytes] of copies) {
      const read = readMeshFile(bytes, path, env);
      const good = 'errors' in read ? null : read;
      if (good?.documents.length === 0) continue;
      this.files.set(path, {
        signature: null,
        digest: '',
        now: null,
        good,
        errors: 'errors' in read ? read.errors : [],
      });
      used.set(path, good);
    }
    if (used.size > 0 && [...used.values()].every((file) => file === null)) {
      const [error] = [...this.files.values()].flatMap(({ errors }) => errors);
      throw fail(
        `nothing in ${lastGoodDirectory}, where its last content is, can be used (${formatConfigError(error!)})`,
      );
    }
    this.used = used;
  }

  /**
   * Whether a directory that can be listed has lost what was in use of it; says so when that begins and ends. More likely
   * than a mesh that is to end is a mount that was lost: files there say that it is meant, when no more of them come. A
   * copy that begins with removing is only covered when a look finds nothing at all in between.
   */
  private isLost(found: ReadonlySet<string>): boolean {
    const { log, directory } = this.options;
    const before = this.outage;
    if (before?.kind === 'unreadable') log('info', 'mesh directory can be read again', { directory });
    const wanted = [...this.files].filter(([path, file]) => file.signature === null || isInUse(this.used.get(path)));
    const missing = wanted.filter(([path]) => !found.has(path)).length;
    if (missing === 0 || (found.size > 0 && (before === null || this.isSteady(found)))) {
      if (before !== null && before.kind !== 'unreadable') {
        log('info', 'mesh directory has files again', { directory, files: found.size });
      }
      this.outage = null;
      this.returning = null;
      return false;
    }
    if (found.size > 0) {
      const seconds = Math.ceil((STEADY_POLLS * this.times.pollMs) / 1000);
      const until = `all that were in use are there (${missing} missing), or none has changed for ${seconds} s`;
      if (before?.kind !== 'returning') log('info', 'files of the mesh directory come back', { directory, missing });
      this.begin('returning', `files come back, and what the directory held stays in use until ${until}`);
      return true;
    }
    this.returning = null;
    const what =
      missing === 1 ? 'the only file that was in use is gone' : `all ${missing} files that were in use are gone`;
    const problem = `${what}, and what the directory held stays in use; ${EMPTIED_ADVICE}`;
    if (before?.kind !== 'emptied') {
      log('error', 'mesh directory has lost all of its files, what they held stays in use', { directory, problem });
    }
    this.begin('emptied', problem);
    return true;
  }

  /** Whether the files that have come back have been the same for some polls. */
  private isSteady(found: ReadonlySet<string>): boolean {
    const signatures = [...found]
      .sort()
      .map((path) => `${path} ${this.signatureOf(path)}`)
      .join('\n');
    if (this.returning?.signatures !== signatures) this.returning = { signatures, sincePoll: this.polls };
    return this.polls - this.returning.sincePoll >= STEADY_POLLS;
  }

  private signatureOf(path: string): string {
    try {
      return signature(statSync(join(this.options.directory, path)));
    } catch {
      return 'unreadable';
    }
  }

  private begin(kind: Outage['kind'], problem: string): void {
    // Nobody knows for how long, nor whether all was kept, where it was so when this process began.
    const beginMs = this.isTidy ? performance.now() : Number.NEGATIVE_INFINITY;
    this.outage = { kind, problem, sinceMs: this.outage?.sinceMs ?? beginMs };
  }

  /** Reads what has changed of the files that are there, and forgets those that are not. */
  private readFiles(found: ReadonlySet<string>): void {
    for (const path of [...this.files.keys()]) {
      if (found.has(path)) continue;
      this.files.delete(path);
      this.keepGood(path);
      this.unfinished = true;
    }
    for (const path of found) if (this.readFile(path)) this.unfinished = true;
  }

  /** Reads a file if it has changed; whether it has. */
  private readFile(path: string): boolean {
    const { directory, env } = this.options;
    const known = this.files.get(path);
    const broken = (problem: string, signature: string): boolean => {
      const error: ConfigError = { file: path, line: 0, column: 0, problem };
      if (known?.signature === signature) return false;
      this.files.set(path, {
        signature,
        digest: '',
        now: null,
        good: known?.good ?? this.loadGood(path),
        errors: [error],
      });
      return true;
    };
    let bytes: Uint8Array;
    let seen: string;
    try {
      const status = statSync(join(directory, path));
      seen = signature(status);
      if (seen === known?.signature) return false;
      if (status.size > FILE_BYTES_MAX) return broken(`the file has more than ${FILE_BYTES_MAX} bytes`, seen);
      bytes = readFileSync(join(directory, path));
    } catch (error) {
      return broken(unreadable(error), `unreadable ${(error as NodeJS.ErrnoException).code}`);
    }
    const digest = hash('sha256', bytes);
    if (known !== undefined && known.digest === digest) {
      known.signature = seen;
      return false;
    }
    const read = readMeshFile(bytes, path, env);
    const now = 'errors' in read ? null : read;
    const good = known === undefined ? (now === null ? this.loadGood(path) : null) : known.good;
    this.files.set(path, { signature: seen, digest, now, good, errors: 'errors' in read ? read.errors : [] });
    return true;
  }

  private assemble(first: boolean, level: LogLevel = 'info'): void {
    const { trustDomain, domain = 'cluster.local', services, log } = this.options;
    this.unfinished = false;
    const { state, used, errors, warnings, waiting } = assemble(this.files, {
      trustDomain,
      domain,
      ...(services === undefined ? {} : { services: services() }),
    });
    this.used = used;
    for (const [path, known] of this.files) {
      if (known.now === null || used.get(path) !== known.now || known.good === known.now) continue;
      known.good = known.now;
      this.keepGood(path);
    }
    this.problems = [...[...this.files.values()].flatMap((known) => known.errors), ...errors];
    this.report(used, warnings, waiting);
    const changes = changesBetween(this.state, state);
    if (!first && changes.workloads.size + changes.services.size + changes.policies.size === 0) return;
    this.state = sharing(this.state, state, changes);
    log(level, 'mesh directory read', {
      files: this.files.size,
      workloads: state.workloads.size,
      services: state.services.size,
      policies: state.policies.size,
    });
    this.onUpdate?.({ state: this.state, changes });
  }

  /** Logs what is wrong, each problem once for as long as it is there. */
  private report(
    used: ReadonlyMap<string, MeshFile | null>,
    warnings: readonly PolicyWarning[],
    waiting: readonly ConfigError[],
  ): void {
    const { log } = this.options;
    const byFile = Map.groupBy(this.problems, ({ file }) => file);
    const lines = new Set<string>();
    for (const [file, errors] of byFile) {
      const problem = formatConfigErrors(errors, ERRORS_SHOWN).join('; ');
      lines.add(problem);
      if (this.reported.has(problem)) continue;
      const consequence = used.get(file) == null ? 'nothing of it is in use' : 'its last good content stays in use';
      log('error', 'file of the mesh directory refused', { file, problem, consequence });
    }
    const warn = (message: string, found: readonly ConfigError[]): void => {
      for (const problem of found.map(formatConfigError)) {
        lines.add(problem);
        if (!this.reported.has(problem)) log('warn', message, { problem });
      }
    };
    for (const warning of warnings) warn(POLICY_LINES[warning.name], [warning]);
    warn('traffic policy waits for a service', waiting);
    this.reported.clear();
    for (const line of lines) this.reported.add(line);
  }

  /** Has the copy of a file hold what is good of it now, or be gone with it. A disk that refuses is a problem, no end. */
  private keepGood(path: string): void {
    const good = this.files.get(path)?.good ?? null;
    try {
      if (good === null) this.lastGood?.forget(path);
      else this.lastGood?.keep(path, good.text);
      this.unkept.delete(path);
    } catch (error) {
      const problem = `what a restart would need of it cannot be kept (${(error as Error).message})`;
      if (!this.unkept.has(path)) this.options.log('warn', 'last good content cannot be kept', { file: path, problem });
      this.unkept.set(path, { file: path, line: 0, column: 0, problem });
    }
  }

  private loadGood(path: string): MeshFile | null {
    // A copy that could not be removed is one of something that was.
    if (this.unkept.has(path)) return null;
    const bytes = this.lastGood?.load(path) ?? null;
    if (bytes === null) return null;
    const read = readMeshFile(bytes, path, this.options.env);
    return 'errors' in read ? null : read;
  }

  /** What went while no process was there to see it is not to come back. */
  private tidy(): void {
    this.isTidy = true;
    try {
      this.lastGood?.forgetOthers(this.files.keys());
    } catch (error) {
      this.options.log('warn', 'last good content cannot be removed', { problem: (error as Error).message });
    }
  }

  /** Watches exactly these directories. */
  private watch(directories: ReadonlySet<string>): void {
    for (const [directory, watcher] of this.watchers) {
      if (directories.has(directory)) continue;
      watcher.close();
      this.watchers.delete(directory);
    }
    for (const directory of directories) {
      if (this.watchers.has(directory)) continue;
      try {
        const watcher = watch(directory, { persistent: false }, () => this.noteEvent());
        watcher.on('error', () => {
          watcher.close();
          this.watchers.delete(directory);
        });
        this.watchers.set(directory, watcher);
      } catch {
        // Out of watches, or gone already: the poll is left.
      }
    }
  }

  private noteEvent(): void {
    const { quietMs, delayMaxMs } = this.times;
    const nowMs = performance.now();
    if (this.quietTimer === undefined) this.firstEventMs = nowMs;
    clearTimeout(this.quietTimer);
    const leftMs = Math.max(0, this.firstEventMs + delayMaxMs - nowMs);
    this.quietTimer = setTimeout(() => this.look(false), Math.min(quietMs, leftMs)).unref();
  }
}

function isInUse(file: MeshFile | null | undefined): boolean {
  return file != null && file.documents.length > 0;
}

function signature({ size, mtimeMs, ino, ctimeMs }: Stats): string {
  return `${size} ${mtimeMs} ${ino} ${ctimeMs}`;
}

/** The new state, with the objects of the old one where nothing has changed. */
function sharing(before: MeshState, after: MeshState, changes: MeshChanges): MeshState {
  const share = <T>(old: ReadonlyMap<string, T>, now: ReadonlyMap<string, T>, changed: ReadonlySet<string>) =>
    new Map([...now].map(([key, value]) => [key, changed.has(key) ? value : old.get(key)!]));
  return {
    ...after,
    workloads: share(before.workloads, after.workloads, changes.workloads),
    services: share(before.services, after.services, changes.services),
    policies: share(before.policies, after.policies, changes.policies),
  };
}
