// A mesh directory as the control plane would take it, and what in it is valid and probably not meant.
//
// Pure but for reading files. Used by `portcullis mesh check` and before `portcullis mesh apply` writes anything.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Environment } from '../../config/env.ts';
import type { ConfigError } from '../../config/errors.ts';
import { MeshIndex, selects } from '../model/mesh-index.ts';
import { identityOf, type MeshState, serviceKey } from '../model/mesh-state.ts';
import { type AssemblySettings, assemble, type Candidate } from './directory-assembly.ts';
import { errorIn, type MeshDocument, type MeshFile, readMeshFile, unreadable } from './directory-file.ts';
import { lastGoodPath } from './directory-last-good.ts';
import { listMeshFiles } from './directory-list.ts';
import { hostnameOf, policyOf } from './directory-model.ts';
import type { DocumentOf } from './directory-schema.ts';
import { policyWarnings } from './policy-warnings.ts';
import { judgeTraffic, trafficWarnings } from './traffic-warnings.ts';

/** Names of warnings, and what they mean; stable, for editors and CI. */
export const meshWarnings = {
  'service-without-workloads': 'no workload can take requests to the service',
  'unused-policy': 'the policy applies to no workload',
  'unknown-principal': 'no workload has an identity that a policy names',
  ...policyWarnings,
  ...trafficWarnings,
} as const;

/** One of them. */
export type MeshWarningName = keyof typeof meshWarnings;

/** A warning and its place. */
export interface MeshWarning extends ConfigError {
  name: MeshWarningName;
}

/** A file as it was read. */
export interface ReadFile extends Candidate {
  errors: ConfigError[];
}

/** What a directory comes to. */
export interface MeshCheck {
  errors: ConfigError[];
  warnings: MeshWarning[];
  state: MeshState;
  files: number;
}

/**
 * Reads all files of a directory. `inUse`: those that are valid count as accepted, so that a clash is the fault of what
 * comes in addition; for those that are not, what was last good of them stands in. Throws the system's error.
 */
export function readMeshDirectory(
  directory: string,
  env: Environment,
  inUse: { lastGoodDirectory: string } | null = null,
): Map<string, ReadFile> {
  const files = new Map<string, ReadFile>();
  for (const path of [...listMeshFiles(directory).files].sort()) {
    const read = readPath(join(directory, path), path, env);
    if (inUse !== null) read.good = read.now ?? lastGoodOf(inUse.lastGoodDirectory, path, env);
    files.set(path, read);
  }
  return files;
}

/** The same of a file that may not be readable, or gone by now: that is a problem of this file, as in the control plane. */
function readPath(file: string, path: string, env: Environment): ReadFile {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(file);
  } catch (error) {
    return { now: null, good: null, errors: [{ file: path, line: 0, column: 0, problem: unreadable(error) }] };
  }
  return readOne(bytes, path, env);
}

/** Reads one file, which nobody has accepted yet. */
export function readOne(bytes: Uint8Array, path: string, env: Environment): ReadFile {
  const read = readMeshFile(bytes, path, env);
  return 'errors' in read ? { now: null, good: null, errors: read.errors } : { now: read, good: null, errors: [] };
}

/** Judges files together. */
export function checkMesh(files: ReadonlyMap<string, ReadFile>, settings: AssemblySettings): MeshCheck {
  const { state, used, errors, warnings, traffic } = assemble(files, settings);
  const ofTraffic = traffic.flatMap(({ file, document, service, traffic: { configuration } }) =>
    judgeTraffic(configuration, service).map(({ name, path, part, problem }): MeshWarning => {
      return { ...errorIn(file, document, ['spec', ...path], { problem }, part), name };
    }),
  );
  const found = settings.services === undefined ? new Judge(state, settings).warnings(used) : [];
  return {
    errors: [...[...files.values()].flatMap((file) => file.errors), ...errors],
    warnings: [...warnings, ...ofTraffic, ...found].sort(byPlace),
    state,
    files: files.size,
  };
}

/** Looks at each document with all workloads in view. */
class Judge {
  private readonly state: MeshState;
  private readonly settings: AssemblySettings;
  private readonly index: MeshIndex;
  private readonly identities: ReadonlySet<string>;
  private readonly found: MeshWarning[] = [];

  constructor(state: MeshState, settings: AssemblySettings) {
    this.state = state;
    this.settings = settings;
    this.index = new MeshIndex(state);
    const workloads = [...state.workloads.values()];
    // Proxies of nodes have one, too: they make health checks.
    const nodes = workloads.map(({ node }) => `spiffe://${state.trustDomain}/node/${node}`);
    this.identities = new Set([...workloads.map(identityOf), ...nodes]);
  }

  warnings(used: ReadonlyMap<string, MeshFile | null>): MeshWarning[] {
    for (const file of used.values()) {
      for (const document of file?.documents ?? []) {
        if (document.kind === 'Service') this.judgeService(file!, document, document.value);
        else if (document.kind === 'AuthorizationPolicy') this.judgePolicy(file!, document, document.value);
      }
    }
    return this.found;
  }

  private judgeService(file: MeshFile, document: MeshDocument, value: DocumentOf<'Service'>): void {
    const hostname = hostnameOf(value, this.settings.domain);
    if (this.index.endpointUids(serviceKey({ namespace: document.namespace, hostname })).size > 0) return;
    const has = value.spec.selector !== undefined;
    const cause = has ? `no workload of namespace ${document.namespace} has the labels` : 'there is no selector';
    const problem = `${document.name}: ${cause}, so that every request to it fails`;
    this.warn('service-without-workloads', file, document, has ? ['spec', 'selector'] : ['metadata', 'name'], problem);
  }

  private judgePolicy(file: MeshFile, document: MeshDocument, value: DocumentOf<'AuthorizationPolicy'>): void {
    const policy = policyOf(value);
    if (![...this.state.workloads.values()].some((workload) => selects(policy, workload))) {
      const where = policy.scope === 'global' ? 'the mesh' : `namespace ${document.namespace}`;
      const which = policy.scope === 'workload' ? 'that the selector matches' : 'at all';
      const path = policy.scope === 'workload' ? ['spec', 'selector'] : ['metadata', 'name'];
      this.warn('unused-policy', file, document, path, `${document.name}: ${where} has no workload ${which}`);
    }
    value.spec.rules?.forEach((rule, i) => {
      rule.from?.forEach(({ source }, j) => {
        source.principals?.forEach((principal, k) => {
          const id = principal.replace(/^(spiffe:\/\/)?/, 'spiffe://');
          const ours = id.startsWith(`spiffe://${this.settings.trustDomain}/`);
          if (!ours || id.includes('*') || this.identities.has(id)) return;
          const path = ['spec', 'rules', i, 'from', j, 'source', 'principals', k];
          const problem = `${document.name}: no workload has the identity ${id}`;
          this.warn('unknown-principal', file, document, path, problem);
        });
      });
    });
  }

  private warn(
    name: MeshWarningName,
    file: MeshFile,
    document: MeshDocument,
    path: (string | number)[],
    problem: string,
  ): void {
    this.found.push({ ...errorIn(file, document, path, { problem }), name });
  }
}

function lastGoodOf(lastGoodDirectory: string, path: string, env: Environment): MeshFile | null {
  try {
    return readOne(readFileSync(lastGoodPath(lastGoodDirectory, path)), path, env).now;
  } catch {
    // There never was one, or it is for another user's eyes.
    return null;
  }
}

function byPlace(a: ConfigError, b: ConfigError): number {
  return a.file < b.file ? -1 : a.file > b.file ? 1 : a.line - b.line || a.column - b.column;
}
