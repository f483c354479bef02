// Files that are either whole or not there, and that nobody else reads.
//
// Written under another name, flushed, renamed; the directory is flushed too, so that a certificate
// which the CA has counted survives a power failure. Control threads only.

import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, rename, stat, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';

const DIRECTORY_MODE = 0o700;
const FILE_MODE = 0o600;

/** Part of the names of files that are being written; one that stays behind is of a crash. */
export const TEMPORARY_MARK = '.tmp-';

/** Makes a directory and its parents for this user only. Returns the mode bits that others have on it. */
export async function makePrivateDirectory(path: string): Promise<number> {
  await mkdir(path, { recursive: true, mode: DIRECTORY_MODE });
  return (await stat(path)).mode & 0o077;
}

/** The text of a file; null when there is none. Other errors are the system's. */
export async function readText(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** Writes or replaces a file at once: other processes see the old text or the new one. `mode`: for this user only. */
export async function replaceFile(path: string, text: string, mode = FILE_MODE): Promise<void> {
  const temporary = `${path}${TEMPORARY_MARK}${randomBytes(6).toString('hex')}`;
  try {
    await writeNew(temporary, text, mode);
    await rename(temporary, path);
  } catch (error) {
    await removeFile(temporary).catch(() => {});
    throw error;
  }
  await flushDirectory(dirname(path));
}

/** Writes a file that must not exist yet; rejects with EEXIST otherwise. */
export async function writeNew(path: string, text: string, mode = FILE_MODE): Promise<void> {
  const file = await open(path, 'wx', mode);
  try {
    await file.writeFile(text);
    await file.sync();
  } catch (error) {
    // Half a file would pass for a whole one.
    await removeFile(path).catch(() => {});
    throw error;
  } finally {
    await file.close();
  }
}

/** Removes a file; whether there was one. */
export async function removeFile(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

async function flushDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
