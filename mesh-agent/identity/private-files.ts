// Files with private keys and state: whole or not there, flushed to disk, and for this user only.
//
// A file or directory that others can read or change is refused by name, never mended in silence: who could
// read the key may have it already. Control threads.

import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, rename, stat, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { IdentityError, storageError } from './errors.ts';

const DIRECTORY_MODE = 0o700;
const FILE_MODE = 0o600;
const GROUP_READ = 0o040;
const OTHERS = 0o077;
const ROOT_UID = 0;

/** Part of the names of files that are being written. */
const TEMPORARY_MARK = '.tmp-';

/** Makes a directory with mode 0700, or checks the one that is there. Rejects with an IdentityError. */
export async function makePrivateDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: DIRECTORY_MODE });
    await checkPrivate(path, 'directory', 0o700);
  } catch (error) {
    throw storageError('cannot use the directory', path, error);
  }
}

/**
 * The text of a private file; null when there is none. Rejects with an IdentityError: `unsafe-permissions` when
 * others may read or change it, `storage`. `mounted`: the group may read a file that belongs to another
 * user, as Kubernetes mounts secrets for a pod with fsGroup.
 */
export async function readPrivateFile(path: string, mounted = false): Promise<string | null> {
  try {
    await checkPrivate(path, 'file', 0o600, mounted);
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw storageError('cannot read', path, error);
  }
}

/** Writes or replaces a file at once, mode 0600, and flushes it and its directory. Rejects with an IdentityError. */
export async function writePrivateFile(path: string, text: string): Promise<void> {
  const temporary = `${path}${TEMPORARY_MARK}${randomBytes(6).toString('hex')}`;
  try {
    const file = await open(temporary, 'wx', FILE_MODE);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    const directory = await open(dirname(path), 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw storageError('cannot write', path, error);
  }
}

/** Rejects with `unsafe-permissions` when others may read or change what is at the path. */
async function checkPrivate(path: string, what: string, mode: number, mounted = false): Promise<void> {
  const { mode: bits, uid } = await stat(path);
  const own = process.geteuid?.() ?? ROOT_UID;
  if (uid !== own && uid !== ROOT_UID) {
    throw new IdentityError(
      'unsafe-permissions',
      `the ${what} ${path} belongs to user ${uid}, not to the user ${own} that runs this`,
      `chown ${own} ${path}`,
    );
  }
  const allowed = mounted && uid !== own ? GROUP_READ : 0;
  if ((bits & OTHERS & ~allowed) !== 0) {
    throw new IdentityError(
      'unsafe-permissions',
      `the ${what} ${path} has mode ${(bits & 0o777).toString(8).padStart(4, '0')}, so that others may use it`,
      `chmod ${mode.toString(8)} ${path}; if it held a key that others could read, replace the key`,
    );
  }
}
