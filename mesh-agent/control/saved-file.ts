// The file in which a node proxy keeps what it was last told: written whole, checked when it is read.
//
// Control thread of the node proxy. Changes within a short time are written once; a write that fails is
// logged once and tried again at the next change, since serving does not depend on it.
// Layout: 8 bytes of magic, 32 bytes SHA-256 of the rest, the rest.

import { createHash } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Log } from '../../core/workers/log.ts';

const MAGIC = Buffer.from('PCMESH1\n');
const DIGEST_BYTES = 32;
const OTHERS_WRITE = 0o022;

/** Time that changes are gathered before the file is written. */
const QUIET_MS = 200;

/** A file with one content. */
export class SavedFile {
  private readonly path: string;
  private readonly log: Log;
  private content: (() => Uint8Array) | undefined;
  private timer: NodeJS.Timeout | undefined;
  private writing: Promise<void> = Promise.resolve();
  private failing = false;

  constructor(path: string, log: Log) {
    this.path = path;
    this.log = log;
  }

  /** The content; undefined when there is no file, or none that is whole and this user's, which is logged. */
  async read(): Promise<Uint8Array | undefined> {
    try {
      if (((await stat(this.path)).mode & OTHERS_WRITE) !== 0) {
        // It says whom to trust.
        this.log('warn', 'saved state of the mesh can be changed by others and is not used', { file: this.path });
        return undefined;
      }
      const bytes = await readFile(this.path);
      const content = bytes.subarray(MAGIC.length + DIGEST_BYTES);
      const digest = bytes.subarray(MAGIC.length, MAGIC.length + DIGEST_BYTES);
      if (bytes.subarray(0, MAGIC.length).equals(MAGIC) && digestOf(content).equals(digest)) return content;
      this.log('warn', 'saved state of the mesh is damaged and not used', { file: this.path });
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT') this.log('warn', 'saved state of the mesh cannot be read', { problem: message });
    }
    return undefined;
  }

  /** Writes soon; `content` is asked for then, and only the last one given. */
  write(content: () => Uint8Array): void {
    this.content = content;
    this.timer ??= setTimeout(() => this.flush(), QUIET_MS).unref();
  }

  /** Writes what is still to be written. */
  async close(): Promise<void> {
    clearTimeout(this.timer);
    this.flush();
    await this.writing;
  }

  private flush(): void {
    this.timer = undefined;
    this.writing = this.writing.then(() => this.writeNow());
  }

  private async writeNow(): Promise<void> {
    const { content } = this;
    if (content === undefined) return;
    this.content = undefined;
    const temporary = `${this.path}.${process.pid}.new`;
    try {
      const bytes = content();
      await mkdir(dirname(this.path), { recursive: true, mode: 0o700 });
      const file = await open(temporary, 'w', 0o600);
      try {
        await file.writeFile(Buffer.concat([MAGIC, digestOf(bytes), bytes]));
        // Without this a crash of the machine could leave the name with nothing behind it.
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, this.path);
      this.failing = false;
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => undefined);
      if (!this.failing) {
        const consequence = 'a restart without the control plane would begin with the state saved before';
        this.log('error', 'state of the mesh cannot be saved', { problem: (error as Error).message, consequence });
      }
      this.failing = true;
    }
  }
}

function digestOf(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}
