// The rotation's state on disk: DIRECTORY/state.json, written whole and flushed before a step is taken.
//
// A damaged file is an error and not a fresh start: to forget a rotation half-way is to cut proxies off.
// Control thread.

import { join } from 'node:path';
import { IdentityError } from './errors.ts';
import { readPrivateFile, writePrivateFile } from './private-files.ts';
import { type ProxyRecord, ROTATION_PHASES, type RotationState } from './rotation.ts';

const FORMAT = 1;

/** Where the state of a rotation outlives the process. */
export interface RotationStore {
  /** The stored state; null: none yet. Rejects with an IdentityError for one that cannot be read. */
  load(): Promise<RotationState | null>;
  /** Stores a state for good before it resolves. */
  save(state: RotationState): Promise<void>;
}

/** A store in a private directory. */
export class RotationFile implements RotationStore {
  private readonly path: string;

  /** The directory must exist. */
  constructor(directory: string) {
    this.path = join(directory, 'state.json');
  }

  /** See RotationStore. */
  async load(): Promise<RotationState | null> {
    const text = await readPrivateFile(this.path);
    return text === null ? null : parseState(text, this.path);
  }

  /** See RotationStore. */
  async save(state: RotationState): Promise<void> {
    await writePrivateFile(this.path, `${JSON.stringify({ format: FORMAT, ...state }, null, 1)}\n`);
  }
}

function parseState(text: string, path: string): RotationState {
  let json: (Partial<RotationState> & { format?: unknown }) | null;
  try {
    json = JSON.parse(text);
  } catch {
    throw damaged(path, 'it is not JSON');
  }
  if (typeof json !== 'object' || json === null) throw damaged(path, 'it is not an object');
  const { format, trustDomain, phase, sequence, activeId, nextId, phaseSinceMs, proxies } = json;
  if (format !== FORMAT) throw damaged(path, `its format is ${format}, not ${FORMAT}`);
  if (typeof trustDomain !== 'string' || typeof activeId !== 'string') throw damaged(path, 'it lacks a name');
  if (phase === undefined || !ROTATION_PHASES.includes(phase)) throw damaged(path, `its phase is ${phase}`);
  if (!Number.isSafeInteger(sequence) || !Number.isFinite(phaseSinceMs)) throw damaged(path, 'it lacks a number');
  const rotating = phase !== 'idle';
  if (rotating ? typeof nextId !== 'string' : nextId !== null)
    throw damaged(path, 'its next root is not that of its phase');
  if (typeof proxies !== 'object' || proxies === null) throw damaged(path, 'it lacks the proxies');
  for (const record of Object.values(proxies as Record<string, Partial<ProxyRecord> | null>)) {
    const { sequence, issuers, goneSinceMs, refusal } = record ?? {};
    const gone = goneSinceMs === null || Number.isFinite(goneSinceMs);
    if (!Number.isSafeInteger(sequence) || !Array.isArray(issuers) || !gone || typeof refusal !== 'string') {
      throw damaged(path, 'a proxy in it is not whole');
    }
  }
  return {
    trustDomain,
    phase,
    sequence: sequence!,
    activeId,
    nextId: nextId ?? null,
    phaseSinceMs: phaseSinceMs!,
    proxies,
  };
}

function damaged(path: string, cause: string): IdentityError {
  return new IdentityError(
    'rotation',
    `the state of the mesh CA in ${path} is damaged: ${cause}`,
    'restore the file from a backup of the same directory; without one, and only when no rotation is under way, remove it',
  );
}
