// Which issuers the mesh runs on, when the CA is opened: what its state says, found among the operator's
// files and those stored in its directory.
//
// Where the two contradict each other, nothing is guessed: a wrong root would cut the mesh off. Control thread.

import type { Log } from '../../core/workers/log.ts';
import { IdentityError } from './errors.ts';
import {
  generateIssuer,
  type Issuer,
  type IssuerFiles,
  loadIssuerFiles,
  loadStoredIssuer,
  removeStoredIssuers,
  storedIssuerIds,
  storeIssuer,
} from './issuer.ts';
import { initialState, type RotationState } from './rotation.ts';
import type { RotationStore } from './rotation-store.ts';

/** Where to look. */
export interface OpeningOptions {
  /** Private directory, which exists. */
  directory: string;
  trustDomain: string;
  store: RotationStore;
  nowMs: number;
  log: Log;
  /** The operator's CA. */
  files?: IssuerFiles;
  /** The operator's next CA. */
  nextFiles?: IssuerFiles;
}

/**
 * The stored state, and the issuers that it names by their ids; both made where there is nothing yet. Rejects with an
 * IdentityError: `rotation` where state and files contradict each other, `ca-material`, `unsafe-permissions`, `storage`.
 */
export async function openIssuers(
  options: OpeningOptions,
): Promise<{ state: RotationState; issuers: Map<string, Issuer> }> {
  const { directory, trustDomain, store, nowMs, log } = options;
  const first = options.files === undefined ? null : await loadIssuerFiles(options.files);
  const second = options.nextFiles === undefined ? null : await loadIssuerFiles(options.nextFiles);
  const given = [first, second].filter((issuer) => issuer !== null);
  const issuers = new Map(given.map((issuer) => [issuer.id, issuer]));
  let state = await store.load();
  if (state === null) {
    const issuer = await firstIssuer(options, first);
    issuers.set(issuer.id, issuer);
    state = initialState(trustDomain, issuer.id, nowMs);
    await store.save(state);
  }
  if (state.trustDomain !== trustDomain) {
    throw new IdentityError(
      'rotation',
      `the CA in ${directory} is that of the trust domain ${state.trustDomain}, not ${trustDomain}`,
    );
  }
  for (const id of [state.activeId, state.nextId]) {
    if (id === null || issuers.has(id)) continue;
    const issuer = await loadStoredIssuer(directory, id);
    if (issuer === null) {
      throw new IdentityError(
        'rotation',
        `the mesh runs on the root ${id}, whose CA is neither in ${directory} nor given as files`,
        'give the CA files of that root again, and a new root as the next one, then rotate',
      );
    }
    issuers.set(id, issuer);
  }
  // What crashes and finished rotations left; none of them signs, or ever will.
  const removed = await removeStoredIssuers(directory, [state.activeId, state.nextId]);
  for (const root of removed) log('info', 'a root that is not in use any more was removed', { root });
  return { state, issuers };
}

/** The issuer of a CA without state: the operator's, or that of a first start which was cut short, or a new one. */
async function firstIssuer(
  { directory, trustDomain, nowMs, log }: OpeningOptions,
  files: Issuer | null,
): Promise<Issuer> {
  const stored: Issuer[] = [];
  for (const id of await storedIssuerIds(directory)) {
    const issuer = await loadStoredIssuer(directory, id);
    if (issuer !== null) stored.push(issuer);
  }
  if (stored.length > 1 || (files !== null && stored.length > 0)) {
    const ids = [...(files === null ? [] : [files]), ...stored].map(({ id }) => id).join(' and ');
    throw new IdentityError(
      'rotation',
      `the mesh in ${directory} may run on the root ${ids}: there is no state.json that says which`,
      'restore state.json from a backup, or remove the issuers that no proxy trusts',
    );
  }
  if (files !== null) return files;
  if (stored.length === 1) return stored[0]!;
  const issuer = await generateIssuer(trustDomain, nowMs);
  await storeIssuer(directory, issuer);
  log('info', 'a root certificate of the mesh was made', { trustDomain, root: issuer.id, directory });
  return issuer;
}
