// Reads the files of certificates, keys and authorities: small, regular, with a clear word when it fails.
// Control thread.

import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { errnoSentence } from '../../core/ffi/errno.ts';

/** The largest bundle of authorities in use is a tenth of this. */
const FILE_BYTES_MAX = 4 * 1024 * 1024;

/** A file as it is now: its text, or why there is none, as the end of a sentence that starts with the file. */
export type FileText = { text: string } | { problem: string };

/** Reads a file. */
export function readText(path: string): FileText {
  let fd: number;
  try {
    // Without O_NONBLOCK a FIFO without a writer would hold up the control thread for good.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    return { problem: openProblem(error as NodeJS.ErrnoException) };
  }
  try {
    const stat = fstatSync(fd);
    if (stat.isDirectory()) return { problem: 'is a directory' };
    if (!stat.isFile()) return { problem: 'is not a regular file' };
    if (stat.size > FILE_BYTES_MAX) return { problem: `is larger than ${FILE_BYTES_MAX / 1024 / 1024} MiB` };
    return { text: readFileSync(fd, 'latin1') };
  } catch (error) {
    return { problem: openProblem(error as NodeJS.ErrnoException) };
  } finally {
    closeSync(fd);
  }
}

/** Equal for equal states of files: texts and problems. */
export function hashOf(files: readonly FileText[]): string {
  const hash = createHash('sha256');
  for (const file of files) hash.update(JSON.stringify(file));
  return hash.digest('hex');
}

function openProblem(error: NodeJS.ErrnoException): string {
  switch (error.code) {
    case 'ENOENT':
      return 'does not exist';
    case 'EACCES':
    case 'EPERM':
      return 'may not be read by this user';
    default:
      return `cannot be read: ${errnoSentence(error.errno ?? 0)}`;
  }
}
