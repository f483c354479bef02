// Notices that files may have changed: events of their directories, and a slow poll for those that
// send none (network mounts, some container volumes).
//
// Directories are watched, not files, since files are replaced rather than written. Every directory is
// watched in which a name on the way to a file is looked up, symbolic links included: Kubernetes puts
// new content in by renaming the link `..data`, two links away from the name in the configuration.
// Only tells that it is worth looking; what has changed shows in the content.
// Owned by the control thread.

import { type FSWatcher, lstatSync, readlinkSync, watch } from 'node:fs';
import { basename, dirname, join, resolve, sep } from 'node:path';

/** Links that are followed for one name; the kernel follows 40. */
const LINKS_MAX = 40;

/** Times of a watcher, in milliseconds. */
export interface WatchTimes {
  /** Time without another event before `onChange` is called: certificate and key come one after the other. */
  quietMs: number;
  /** Longest time that events can put off the call. */
  delayMaxMs: number;
  /** Time between two polls. */
  pollMs: number;
}

export const WATCH_TIMES: WatchTimes = { quietMs: 250, delayMaxMs: 2000, pollMs: 60_000 };

/** Watches a set of files. */
export class FileWatcher {
  private readonly onChange: () => void;
  private readonly times: WatchTimes;
  private files: readonly string[] = [];
  private readonly watchers = new Map<string, { watcher: FSWatcher; names: Set<string> }>();
  private quietTimer: NodeJS.Timeout | undefined;
  private firstEventMs = 0;
  private pollTimer: NodeJS.Timeout | undefined;

  /** `onChange` is called when something may have changed, and at every poll. */
  constructor(onChange: () => void, times: WatchTimes = WATCH_TIMES) {
    this.onChange = onChange;
    this.times = times;
  }

  /** Watches these files (absolute paths) from now on, and no others. They need not exist. */
  watch(files: readonly string[]): void {
    this.files = files;
    this.arm();
    clearInterval(this.pollTimer);
    this.pollTimer = files.length === 0 ? undefined : setInterval(() => this.look(), this.times.pollMs).unref();
  }

  /** Directories that are watched now; for tests. */
  get directories(): string[] {
    return [...this.watchers.keys()];
  }

  /** Stops. */
  close(): void {
    clearInterval(this.pollTimer);
    clearTimeout(this.quietTimer);
    this.quietTimer = undefined;
    for (const { watcher } of this.watchers.values()) watcher.close();
    this.watchers.clear();
    this.files = [];
  }

  /** Watches exactly the directories on the way to the files as it is now. */
  private arm(): void {
    const wanted = new Map<string, Set<string>>();
    for (const file of this.files) {
      for (const [directory, name] of lookups(file)) {
        wanted.set(directory, (wanted.get(directory) ?? new Set()).add(name));
      }
    }
    for (const [directory, { watcher }] of this.watchers) {
      if (wanted.has(directory)) continue;
      watcher.close();
      this.watchers.delete(directory);
    }
    for (const [directory, names] of wanted) {
      const known = this.watchers.get(directory);
      if (known !== undefined) known.names = names;
      else this.open(directory, names);
    }
  }

  private open(directory: string, names: Set<string>): void {
    let watcher: FSWatcher;
    try {
      watcher = watch(directory, { persistent: false });
    } catch {
      // Missing, not permitted, or out of watches: the poll is left.
      return;
    }
    const entry = { watcher, names };
    this.watchers.set(directory, entry);
    const drop = (): void => {
      watcher.close();
      if (this.watchers.get(directory) === entry) this.watchers.delete(directory);
    };
    watcher.on('error', drop);
    watcher.on('change', (type, name) => {
      // A directory that is gone tells it with its own name.
      if (type === 'rename' && name === basename(directory)) {
        drop();
        this.noteEvent();
      } else if (name === null || entry.names.has(String(name))) {
        this.noteEvent();
      }
    });
  }

  private noteEvent(): void {
    const nowMs = performance.now();
    if (this.quietTimer === undefined) this.firstEventMs = nowMs;
    clearTimeout(this.quietTimer);
    const leftMs = Math.max(0, this.firstEventMs + this.times.delayMaxMs - nowMs);
    this.quietTimer = setTimeout(() => this.look(), Math.min(this.times.quietMs, leftMs)).unref();
  }

  private look(): void {
    clearTimeout(this.quietTimer);
    this.quietTimer = undefined;
    // Links may lead elsewhere now.
    this.arm();
    this.onChange();
  }
}

/** Every pair of directory and name that is looked up on the way to a file and may be replaced. */
export function lookups(file: string): [directory: string, name: string][] {
  const found: [string, string][] = [];
  let path = resolve(file);
  for (let links = 0; links <= LINKS_MAX; links++) {
    const target = firstLink(path);
    if (target === undefined) break;
    found.push([dirname(target.link), basename(target.link)]);
    path = target.path;
  }
  found.push([dirname(path), basename(path)]);
  return found;
}

/** The first symbolic link in a path, and the path with the link followed. */
function firstLink(path: string): { link: string; path: string } | undefined {
  const parts = path.split(sep);
  let prefix: string = sep;
  for (let i = 1; i < parts.length; i++) {
    prefix = join(prefix, parts[i]!);
    try {
      if (!lstatSync(prefix).isSymbolicLink()) continue;
      const target = resolve(dirname(prefix), readlinkSync(prefix));
      return { link: prefix, path: join(target, ...parts.slice(i + 1)) };
    } catch {
      return undefined;
    }
  }
  return undefined;
}
