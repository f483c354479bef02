// What was last good of the files of a mesh directory, kept where it outlives the process.
//
//   SHA-256 of the path, hexadecimal, then:
//   .yaml   the content, whatever the file's own ending is
//   .path   the path, relative to the mesh directory; for those that are asked for without the files
//
// Control thread of the control plane; `mesh check` and `mesh apply` only read.

import { hash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const DIRECTORY_MODE = 0o700;
const FILE_MODE = 0o600;

/** Names of ours: whoever shares the directory loses nothing. */
const OURS = /^([0-9a-f]{64})\.(?:yaml|path)$/;

/** The copies in a directory, which need not be there yet. */
export class LastGood {
  private readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  /** Throws the system's error. */
  keep(path: string, text: string): void {
    mkdirSync(this.directory, { recursive: true, mode: DIRECTORY_MODE });
    const copy = lastGoodPath(this.directory, path);
    // First, so that a copy without its path is only one of an older version.
    if (!existsSync(this.pathFile(path))) replace(this.pathFile(path), path);
    replace(copy, text);
  }

  /** The content that a file had; null: none is known. */
  load(path: string): Uint8Array | null {
    try {
      return readFileSync(lastGoodPath(this.directory, path));
    } catch {
      // There never was one.
      return null;
    }
  }

  forget(path: string): void {
    rmSync(lastGoodPath(this.directory, path), { force: true });
    rmSync(this.pathFile(path), { force: true });
  }

  /** Forgets all files but these: what went while no process was there to see it. */
  forgetOthers(paths: Iterable<string>): void {
    const kept = new Set([...paths].map(nameOf));
    for (const name of this.names()) {
      const ours = OURS.exec(name);
      if (ours !== null && !kept.has(ours[1]!)) rmSync(join(this.directory, name), { force: true });
    }
  }

  /**
   * Everything that is kept, by path, or by the name of the copy where the path is not known. Throws the system's error:
   * nothing at all is not the same as nothing that can be read.
   */
  all(): Map<string, Uint8Array> {
    const copies = this.names().filter((name) => OURS.test(name) && name.endsWith('.yaml'));
    return new Map(copies.map((name) => [this.pathOf(name), readFileSync(join(this.directory, name))]));
  }

  private names(): string[] {
    try {
      return readdirSync(this.directory);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
  }

  private pathOf(copy: string): string {
    const name = copy.slice(0, -'.yaml'.length);
    try {
      const path = readFileSync(join(this.directory, `${name}.path`), 'utf8');
      return nameOf(path) === name ? path : copy;
    } catch {
      // Of an older version.
      return copy;
    }
  }

  private pathFile(path: string): string {
    return join(this.directory, `${nameOf(path)}.path`);
  }
}

/** Where the last good content of a file is kept. */
export function lastGoodPath(lastGoodDirectory: string, file: string): string {
  return join(lastGoodDirectory, `${nameOf(file)}.yaml`);
}

function nameOf(path: string): string {
  return hash('sha256', path);
}

function replace(path: string, text: string): void {
  try {
    writeFileSync(`${path}.new`, text, { mode: FILE_MODE, flush: true });
    renameSync(`${path}.new`, path);
  } catch (error) {
    rmSync(`${path}.new`, { force: true });
    throw error;
  }
}
