// The memory of an API server for tests: objects, and every version of them since the last compaction.
//
// One counter for all writes, as etcd has it; a version is a revision, and nobody outside may do arithmetic with it.
// Spec: Kubernetes API concepts, "Resource versions".

import { randomUUID } from 'node:crypto';

/** An object as it is sent. */
export interface StoredObject {
  apiVersion?: string;
  kind?: string;
  metadata: {
    name: string;
    namespace?: string;
    uid?: string;
    resourceVersion?: string;
    creationTimestamp?: string;
    deletionTimestamp?: string;
    labels?: Record<string, string>;
    [key: string]: unknown;
  };
  [key: string]: unknown;
}

/** One write. */
export interface Write {
  revision: number;
  type: 'ADDED' | 'MODIFIED' | 'DELETED';
  plural: string;
  key: string;
  /** What it is now; of a deletion, what it was, with the revision of the deletion. */
  object: StoredObject;
  before: StoredObject | undefined;
}

/** All objects, by the plural of their resource and their key. */
export class Store {
  /** Revision of the last write. */
  revision = 1000;
  /** What happened up to here is forgotten. */
  compacted = 1000;
  private readonly collections = new Map<string, Map<string, StoredObject>>();
  private history: Write[] = [];
  private readonly listeners = new Set<(write: Write) => void>();

  /** Creates or replaces an object; returns it as stored. */
  put(plural: string, object: StoredObject): StoredObject {
    const collection = this.collection(plural);
    const key = keyOf(object);
    const before = collection.get(key);
    const revision = ++this.revision;
    const stored = structuredClone(object);
    stored.metadata.uid = object.metadata.uid ?? before?.metadata.uid ?? randomUUID();
    stored.metadata.creationTimestamp =
      object.metadata.creationTimestamp ?? before?.metadata.creationTimestamp ?? '2026-01-01T00:00:00Z';
    stored.metadata.resourceVersion = String(revision);
    collection.set(key, stored);
    this.wrote({ revision, type: before === undefined ? 'ADDED' : 'MODIFIED', plural, key, object: stored, before });
    return stored;
  }

  /** Deletes an object; returns what it was, or undefined. */
  delete(plural: string, key: string): StoredObject | undefined {
    const before = this.collection(plural).get(key);
    if (before === undefined) return undefined;
    const revision = ++this.revision;
    this.collection(plural).delete(key);
    const object = structuredClone(before);
    object.metadata.resourceVersion = String(revision);
    this.wrote({ revision, type: 'DELETED', plural, key, object, before });
    return before;
  }

  /** An object as it is now. */
  get(plural: string, key: string): StoredObject | undefined {
    return this.collection(plural).get(key);
  }

  /** Forgets the versions before now. */
  compact(): void {
    this.history = [];
    this.compacted = this.revision;
  }

  /** Objects at a revision that is not forgotten, in the order of their keys. */
  at(plural: string, revision: number): [string, StoredObject][] {
    const objects = new Map(this.collection(plural));
    for (let index = this.history.length - 1; index >= 0 && this.history[index]!.revision > revision; index--) {
      const write = this.history[index]!;
      if (write.plural !== plural) continue;
      if (write.before === undefined) objects.delete(write.key);
      else objects.set(write.key, write.before);
    }
    return [...objects].sort(([a], [b]) => (a < b ? -1 : 1));
  }

  /** Writes of a collection after a revision that is not forgotten. */
  since(plural: string, revision: number): Write[] {
    return this.history.filter((write) => write.plural === plural && write.revision > revision);
  }

  /** Calls back for every write from now on; returns how to end that. */
  follow(listener: (write: Write) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  private collection(plural: string): Map<string, StoredObject> {
    const known = this.collections.get(plural);
    if (known !== undefined) return known;
    const fresh = new Map<string, StoredObject>();
    this.collections.set(plural, fresh);
    return fresh;
  }

  private wrote(write: Write): void {
    this.history.push(write);
    for (const listener of [...this.listeners]) listener(write);
  }
}

/** `namespace/name`, or `name`. */
export function keyOf({ metadata }: StoredObject): string {
  return metadata.namespace === undefined ? metadata.name : `${metadata.namespace}/${metadata.name}`;
}
