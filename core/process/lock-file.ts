// One at a time: a file that says which process uses a directory, and whether that process still lives.
//
// The file is created exclusively; its holder rewrites it every few seconds. Another takes it over when the holder
// is a dead process of the same machine, or when the file has not changed for a while by the other's own
// clock (clocks of two machines may differ). What to do while somebody has it is the caller's business.
// Control threads only.

import { randomUUID } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { link, rename } from 'node:fs/promises';
import { hostname } from 'node:os';
import type { Clock } from './clock.ts';
import { readText, removeFile, replaceFile, writeNew } from './files.ts';

/** How often a holder shows that it lives. */
export const LOCK_REFRESH_MS = 10_000;

/** Who has a lock file. */
export interface LockHolder {
  /** For people: host and process; `unknown` for a file that cannot be read. */
  owner: string;
  /** When it was taken, ISO 8601; empty: unknown. */
  since: string;
  /** It lives for certain; otherwise it is on another machine, or in another PID namespace, and may be gone. */
  certain: boolean;
  /** Changes whenever the holder shows that it lives. */
  sign: string;
}

/** What a lock file says. */
interface LockContent {
  /** Unique for each time that it is taken. */
  token: string;
  owner: string;
  pid: number;
  /** Names the space in which `pid` means something: boot and PID namespace. */
  pidSpace: string;
  /** When the process started, in clock ticks since the boot: a PID may be used again. */
  startTicks: string;
  since: string;
  /** Grows with each refresh. */
  refreshed: number;
}

/** Tokens held by this process: several parts of it may want the same lock. */
const heldHere = new Set<string>();

const pidSpace = `${readSystem('/proc/sys/kernel/random/boot_id')} ${readPidNamespace()}`;

/** Attempts to take one lock file. Remembers since when a holder that may be gone has not shown itself. */
export class LockAttempts {
  private readonly path: string;
  private readonly clock: Clock;
  private readonly staleMs: number;
  private seen = '';
  private seenMs = 0;

  /** `staleMs`: a lock that has not changed for so long is of a holder that is gone, or cannot write. */
  constructor(path: string, clock: Clock, staleMs: number) {
    this.path = path;
    this.clock = clock;
    this.staleMs = staleMs;
  }

  /**
   * Takes the lock, or says who has it. Rejects with the system's error when the file cannot be read or written.
   * `lost` is called when the lock was taken away while held, because this process stood still for too long.
   */
  async take(lost: () => void): Promise<LockFile | LockHolder> {
    const { path, clock } = this;
    for (;;) {
      const content = newContent(clock.nowMs());
      heldHere.add(content.token);
      try {
        await writeNew(path, JSON.stringify(content));
        return new LockFile(path, clock, content, lost);
      } catch (error) {
        heldHere.delete(content.token);
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const text = await readText(path);
      if (text === null) continue;
      if (text !== this.seen) {
        this.seen = text;
        this.seenMs = clock.nowMs();
      }
      if (!isDead(text) && clock.nowMs() - this.seenMs < this.staleMs) return holderOf(text);
      await takeAway(path, text);
    }
  }
}

/** A lock file that this process holds. */
export class LockFile {
  private readonly path: string;
  private readonly clock: Clock;
  private readonly content: LockContent;
  private readonly lost: () => void;
  private timer: unknown;
  private refreshing: Promise<void> = Promise.resolve();

  /** See LockAttempts. */
  constructor(path: string, clock: Clock, content: LockContent, lost: () => void) {
    this.path = path;
    this.clock = clock;
    this.content = content;
    this.lost = lost;
    this.scheduleRefresh();
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
    }, LOCK_REFRESH_MS);
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

/**
 * Who has a lock file, without taking it; null: nobody, or a process that is certainly gone. Rejects with the
 * system's error when it cannot be read.
 */
export async function lockHolder(path: string): Promise<LockHolder | null> {
  const text = await readText(path);
  return text === null || isDead(text) ? null : holderOf(text);
}

function holderOf(text: string): LockHolder {
  const { owner = 'unknown', since = '', pidSpace: space } = parse(text) ?? {};
  return { owner, since, certain: space === pidSpace, sign: text };
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

/** Whether a lock's holder certainly is no more. A file that is not a lock is nobody's: it only becomes stale. */
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
