// Which files of a directory are the mesh, and changes of several of them as one.
//
//   .portcullis-apply        `{"id": ..., "open": true}` while files are being replaced; the id is new for every change
//   .portcullis-apply.lock   who replaces them: one at a time
//
// Whoever reads all files looks at the mark before and after: the same and not open means that no such change came
// in between. A change whose process died is not waited for for ever. Control threads; the command line.

import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { systemClock } from '../../core/process/clock.ts';
import { replaceFile } from '../../core/process/files.ts';
import { LockAttempts, LockFile } from '../../core/process/lock-file.ts';

const MARK = '.portcullis-apply';
const MARK_MODE = 0o644;

/** A change takes milliseconds; one that is open for longer was cut short. */
const CHANGE_MAX_MS = 5_000;
/** How long a lock of another machine is respected without a sign of life. */
const LOCK_STALE_MS = 35_000;

const FILES_MAX = 100_000;

/** Paths of the files of a mesh, relative to the directory, and all directories there. Throws the system's error. */
export function listMeshFiles(directory: string): { files: Set<string>; directories: Set<string> } {
  const files = new Set<string>();
  const directories = new Set<string>();
  const visit = (relative: string): void => {
    directories.add(join(directory, relative));
    for (const entry of readdirSync(join(directory, relative), { withFileTypes: true })) {
      // Names with a dot are those of editors, and of the directories behind mounted volumes.
      if (entry.name.startsWith('.') || files.size >= FILES_MAX) continue;
      const path = relative === '' ? entry.name : `${relative}/${entry.name}`;
      if (entry.isDirectory()) visit(path);
      else if (isMeshFile(entry.name)) files.add(path);
    }
  };
  visit('');
  return { files, directories };
}

/** Whether a file of this name is part of a mesh. */
export function isMeshFile(name: string): boolean {
  return !name.startsWith('.') && /\.(ya?ml|json)$/.test(name);
}

/** Stands for the last change of a directory; null: one is under way. The empty text: there was none. */
export function changeMark(directory: string): string | null {
  const path = join(directory, MARK);
  try {
    const text = readFileSync(path, 'utf8');
    const open = text.includes('"open":true') && Date.now() - statSync(path).mtimeMs < CHANGE_MAX_MS;
    return open ? null : text;
  } catch {
    return '';
  }
}

/**
 * Runs `change`, which replaces files of the directory, as one change. Rejects with an Error when another change is
 * under way, and with the system's error when the directory cannot be written.
 */
export async function changeDirectory(directory: string, change: () => void): Promise<void> {
  const path = join(directory, MARK);
  const lock = await new LockAttempts(`${path}.lock`, systemClock, LOCK_STALE_MS).take(() => {});
  if (!(lock instanceof LockFile)) throw new Error(`files there are being replaced by ${lock.owner}`);
  try {
    const id = randomUUID();
    await replaceFile(path, JSON.stringify({ id, open: true }), MARK_MODE);
    try {
      change();
    } finally {
      await replaceFile(path, JSON.stringify({ id, open: false }), MARK_MODE);
    }
  } finally {
    await lock.release();
  }
}
