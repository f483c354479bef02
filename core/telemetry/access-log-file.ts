// The file behind the access log: opening it, and one write at a time.
//
// Owned by the writer thread. Writes never block on a full pipe: descriptors are non-blocking, and a
// write that would block reports 0. Standard output gets a descriptor of its own for that, so that
// the flag does not reach other users of the same pipe or terminal.

import { closeSync, constants, existsSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { errnoSentence } from '../ffi/errno.ts';

/** Path that stands for standard output. */
export const STDOUT_PATH = '-';

/** Client addresses are nobody else's business: owner writes, group reads. */
const FILE_MODE = 0o640;

const OPEN_FLAGS = constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK;

const LINE_FEED = 0x0a;

/** Where log bytes go. `write` and `open` throw the system's error. */
export interface LogOutput {
  /** Opens the output unless it is open. */
  open(): void;
  /** Writes up to `length` bytes: how many were taken; 0 means "not now" (EAGAIN). */
  write(bytes: Uint8Array, offset: number, length: number): number;
  /** Closes the output; the next `open` opens it anew. */
  close(): void;
}

/** A log file, or standard output for the path `-`. */
export class LogFile implements LogOutput {
  private readonly path: string;
  private fd = -1;

  constructor(path: string) {
    this.path = path;
  }

  open(): void {
    if (this.fd >= 0) return;
    this.fd = this.path === STDOUT_PATH ? openStdout() : openFile(this.path);
  }

  write(bytes: Uint8Array, offset: number, length: number): number {
    try {
      return writeSync(this.fd, bytes, offset, length);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'EAGAIN' || code === 'EINTR') return 0;
      throw error;
    }
  }

  close(): void {
    if (this.fd > 2) closeSync(this.fd);
    this.fd = -1;
  }
}

/**
 * Opens and closes a log file as the writer will, creating it when it is not there. Returns why it
 * cannot be had, for `accessLogSentence`. A named pipe that nobody reads yet is no error: the writer
 * waits for its reader.
 */
export function probeLogFile(path: string): NodeJS.ErrnoException | undefined {
  try {
    closeSync(openSync(path, OPEN_FLAGS | constants.O_CREAT, FILE_MODE));
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENXIO' ? undefined : (error as NodeJS.ErrnoException);
  }
}

/** One plain sentence, without a full stop, for a log file that cannot be opened or written. */
export function accessLogSentence(path: string, error: NodeJS.ErrnoException): string {
  const name = path === STDOUT_PATH ? 'to standard output' : path;
  return `cannot write the access log ${name}: ${accessLogCause(path, error)}`;
}

/** The cause alone, as a part of a sentence. */
export function accessLogCause(path: string, error: NodeJS.ErrnoException): string {
  const directory = dirname(path);
  switch (error.code) {
    case 'ENOENT':
      // The name itself is made when it is missing, unless it is a link to nowhere.
      return existsSync(directory)
        ? 'it is a symbolic link into a directory that does not exist'
        : `the directory ${directory} does not exist`;
    case 'EISDIR':
      return 'it is a directory, not a file';
    case 'ENOTDIR':
      return `${directory} is not a directory`;
    case 'EACCES':
    case 'EPERM':
      return existsSync(path)
        ? 'this user may not write to it'
        : `this user may not create files in ${directory}, or may not look into it`;
    case 'EROFS':
      return 'its file system is read-only';
    case 'ENOSPC':
      return 'the disk is full';
    case 'EDQUOT':
      return "this user's disk quota is used up";
    case 'ENXIO':
      return 'nobody reads this named pipe';
    case 'EPIPE':
      return 'its reader has gone away';
    default:
      return error.errno === undefined ? error.message : errnoSentence(error.errno);
  }
}

/** Opens a file for appending, and ends a line that a crash may have left unfinished in it. */
function openFile(path: string): number {
  const fd = openSync(path, OPEN_FLAGS | constants.O_CREAT, FILE_MODE);
  try {
    const stat = fstatSync(fd);
    if (stat.isFile() && stat.size > 0 && !endsLine(path, stat.size)) writeSync(fd, '\n');
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return fd;
}

function endsLine(path: string, size: number): boolean {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY);
  } catch {
    // Writable but not readable: nothing can be known, and a log is better than none.
    return true;
  }
  try {
    const last = new Uint8Array(1);
    return readSync(fd, last, 0, 1, size - 1) !== 1 || last[0] === LINE_FEED;
  } finally {
    closeSync(fd);
  }
}

/** Standard output through a description of its own; sockets have none, they are used as they are. */
function openStdout(): number {
  try {
    return openSync('/proc/self/fd/1', OPEN_FLAGS);
  } catch {
    return 1;
  }
}
