// One at a time: the lock file that keeps gateways with one storage directory from ordering at once.
//
// The file is created exclusively and says who holds it; the holder rewrites it every few seconds.
// Another takes it over when its holder is a dead process of the same machine, or when the file has
// not changed for STALE_MS by the waiter's own clock (clocks of two machines may differ).
// Control thread only.

import { randomUUID } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { link, rename } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type Clock, sleep } from '../../core/process/clock.ts';
import { storageError } from './errors.ts';
import { readText, removeFile, replaceFile, writeNew } from './files.ts';

/** How often a holder shows that it lives. */
const REFRESH_MS = 10_000;
/** A lock that has not been refreshed for so long is of a holder that is gone, or cannot write. */
const STALE_MS = 60_000;
/** How often a waiter looks; spread, so that many waiters do not look at once. */
const POLL_MS = 1_000;

/** What a lock file says. */
interface LockContent {
  /** Unique for each time that it is taken. */
  token: string;
  /** For people: host and process. */
  owner: string;
  pid: number;
  /** Names the space in which `pid` means something: boot and PID namespace. */
  pidSpace: string;
  /** When the process started, in clock ticks since the boot: a PID may be used again. */
  startTicks: string;
  /** When it was taken, ISO 8601; for people. */
  since: string;
  /** Grows with each refresh. */
  refreshed: number;
}

/** Tokens held by this process: several managers may share a storage in one process. */
const heldHere = new Set<string>();

const pidSpace = `${readSystem('/proc/sys/kernel/random/boot_id')} ${readPidNamespace()}`;

/** A lock file that this process holds. */
export class StorageLock {
  private readonly path: string;
  private readonly clock: Clock;
  private readonly content: LockContent;
  private readonly lost: () => void;
  private timer: unknown;
  private refreshing: Promise<void> = Promise.resolve();

  private constructor(path: string, clock: Clock, content: LockContent, lost: () => void) {
    this.path = path;
    this.clock = clock;
    this.content = content;
    this.lost = lost;
    this.scheduleRefresh();
  }

  /**
   * Takes the lock of a directory, waiting for others. Throws an AcmeError of kind `storage` when the
   * directory cannot be written, or the signal's reason. `waits(owner)` is called once if somebody else
   * has it; `lost()` when it was taken away while held, because this process stood still for too long.
   */
  static async acquire(
    directory: string,
    clock: Clock,
    signal: AbortSignal,
    waits: (owner: string) => void,
    lost: () => void,
  ): Promise<StorageLock> {
    const path = join(directory, 'lock');
    let seen = '';
    let seenMs = 0;
    let said = false;
    for (;;) {
      signal.throwIfAborted();
      const content = newContent(clock.nowMs());
      heldHere.add(content.token);
      try {
        await writeNew(path, JSON.stringify(content));
        return new StorageLock(path, clock, content, lost);
      } catch (error) {
        heldHere.delete(content.token);
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw lockError(directory, error);
      }
      const text = await readText(path).catch((error) => {
        throw lockError(directory, error);
      });
      if (text === null) continue;
      if (text !== seen) {
        seen = text;
        seenMs = clock.nowMs();
      }
      if (isDead(text) || clock.nowMs() - seenMs >= STALE_MS) {
        await takeAway(path, text).catch((error) => {
          throw lockError(directory, error);
        });
        continue;
      }
      if (!said) {
        said = true;
        waits(parse(text)?.owner ?? 'unknown');
      }
      await sleep(clock, POLL_MS * (0.5 + clock.random()), signal);
    }
  }

  /** Gives the lock back. Never rejects: a file that stays is found stale by the next. */
  async release(): Promise<void> {
    this.clock.clearTimer(this.timer);
    this.timer = undefined;
    await this.refreshing;
    this.clock.clearTimer(this.timer);
    const text = await readText(this.path).catch(() => null);
    if (text !== null && parse(text)?.token === this.content.token) await removeFile(this.path).catch(() => {});
    heldHere.delete(this.content.token);
  }

  private scheduleRefresh(): void {
    this.timer = this.clock.setTimer(() => {
      this.refreshing = this.refresh();
    }, REFRESH_MS);
  }

  private async refresh(): Promise<void> {
    try {
      const text = await readText(this.path);
      if (text === null || parse(text)?.token !== this.content.token) {
        heldHere.delete(this.content.token);
        this.lost();
        return;
      }
      this.content.refreshed++;
      await replaceFile(this.path, JSON.stringify(this.content));
    } catch {
      // A full disk for a moment; others take over if it lasts, and the next refresh notices.
    }
    this.scheduleRefresh();
  }
}

function newContent(nowMs: number): LockContent {
  return {
    token: randomUUID(),
    owner: `${hostname()}, process ${process.pid}`,
    pid: process.pid,
    pidSpace,
    startTicks: startTicksOf(process.pid),
    since: new Date(nowMs).toISOString(),
    refreshed: 0,
  };
}

/** Whether a lock's holder certainly is no more. A file that is not a lock is nobody's: see `STALE_MS`. */
function isDead(text: string): boolean {
  const content = parse(text);
  if (content === undefined || content.pidSpace !== pidSpace) return false;
  if (content.pid === process.pid) return !heldHere.has(content.token);
  const ticks = startTicksOf(content.pid);
  return ticks === '' ? !isProcess(content.pid) : ticks !== content.startTicks;
}

/** Whether there is such a process; /proc may hide those of other users. */
function isProcess(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

/** Removes the lock file that reads `text`, and no other: it may have changed hands meanwhile. */
async function takeAway(path: string, text: string): Promise<void> {
  const aside = `${path}.tmp-${randomUUID()}`;
  try {
    await rename(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  // It was somebody's fresh lock: put it back, unless a third has taken the place already; then the
  // owner finds its lock lost at the next refresh.
  if ((await readText(aside)) !== text) await link(aside, path).catch(() => {});
  await removeFile(aside);
}

function parse(text: string): LockContent | undefined {
  try {
    const content = JSON.parse(text) as LockContent | null;
    return typeof content?.token === 'string' ? content : undefined;
  } catch {
    return undefined;
  }
}

function lockError(directory: string, error: unknown): Error {
  return storageError('the lock file cannot be written', directory, error as NodeJS.ErrnoException);
}

/** Start time of a process (field 22 of its stat file; the second field may hold spaces); empty for none. */
function startTicksOf(pid: number): string {
  const text = readSystem(`/proc/${pid}/stat`);
  return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? '';
}

function readSystem(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

function readPidNamespace(): string {
  try {
    return readlinkSync('/proc/self/ns/pid');
  } catch {
    return '';
  }
}
