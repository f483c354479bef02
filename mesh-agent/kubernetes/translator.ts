// Follows the records of a cluster and makes the states of the mesh out of them, in time proportional to what
// changed. States share everything that is the same.
//
// Owned by one control thread.

import { isDeepStrictEqual } from 'node:util';
import {
  emptyMeshState,
  identityOf,
  type MeshState,
  type MeshUpdate,
  type Service,
  type Workload,
} from '../model/mesh-state.ts';
import { Cluster } from './cluster.ts';
import { type ClusterSettings, meshService, nameOf, podUid, podWorkload, sliceWorkloads } from './workloads.ts';

/** The state of the mesh, as one cluster has it. */
export class Translator {
  readonly cluster = new Cluster();
  /** The newest state that `update` has returned. */
  state: MeshState;
  private readonly settings: ClusterSettings;
  /** What each slice has become. */
  private readonly uidsOfSlice = new Map<string, string[]>();
  private begun = false;

  constructor(settings: ClusterSettings) {
    this.settings = settings;
    this.state = emptyMeshState(settings.trustDomain);
  }

  /** Whether something is waiting to be looked at. */
  get isDirty(): boolean {
    const { dirtyPods, dirtyServices, dirtySlices } = this.cluster;
    return dirtyPods.size + dirtyServices.size + dirtySlices.size > 0;
  }

  /** The state after everything that has happened; null: it is the same as before (never the first time). */
  update(): MeshUpdate | null {
    const workloads = new Edit(this.state.workloads);
    const services = new Edit(this.state.services);
    const { cluster, settings } = this;
    for (const key of cluster.dirtyServices) {
      const record = cluster.services.get(key);
      if (record === undefined) services.delete(nameOf(settings, splitKey(key)));
      else services.set(nameOf(settings, record), meshService(settings, record));
    }
    for (const key of cluster.dirtyPods) {
      const pod = cluster.pods.get(key);
      const workload = pod === undefined ? null : podWorkload(cluster, settings, pod);
      if (workload === null) workloads.delete(podUid(settings, splitKey(key)));
      else workloads.set(workload.uid, workload);
    }
    for (const key of cluster.dirtySlices) this.updateSlice(key, workloads);
    cluster.dirtyServices.clear();
    cluster.dirtyPods.clear();
    cluster.dirtySlices.clear();
    if (this.begun && workloads.changed.size === 0 && services.changed.size === 0) return null;
    this.begun = true;
    this.state = { ...this.state, workloads: workloads.result, services: services.result };
    return {
      state: this.state,
      changes: { workloads: workloads.changed, services: services.changed, policies: new Set() },
    };
  }

  /** Whether a pod of this identity runs on the node, and has no proxy of its own: the node's may have a certificate for it. */
  runsOnNode(node: string, identity: string): boolean {
    const { cluster, settings } = this;
    for (const key of cluster.podsOn(node)) {
      const { namespace, serviceAccount, sidecar } = cluster.pods.get(key)!;
      if (sidecar) continue;
      if (identityOf({ trustDomain: settings.trustDomain, namespace, serviceAccount }) === identity) return true;
    }
    return false;
  }

  /** The node of a pod; empty: there is none of this name, or it is not the one with that uid. */
  nodeOfPod(namespace: string, name: string, uid: string): string {
    const pod = this.cluster.pods.get(`${namespace}/${name}`);
    return pod !== undefined && pod.uid === uid ? pod.node : '';
  }

  private updateSlice(key: string, workloads: Edit<Workload>): void {
    const { cluster, settings } = this;
    const slice = cluster.slices.get(key);
    const fresh = slice === undefined ? [] : sliceWorkloads(cluster, settings, slice);
    const uids = fresh.map(({ uid }) => uid);
    for (const uid of this.uidsOfSlice.get(key) ?? []) if (!uids.includes(uid)) workloads.delete(uid);
    for (const workload of fresh) workloads.set(workload.uid, workload);
    if (uids.length === 0) this.uidsOfSlice.delete(key);
    else this.uidsOfSlice.set(key, uids);
  }
}

/** A map that is copied when it is first changed, and knows what changed. */
class Edit<T extends Workload | Service> {
  readonly changed = new Set<string>();
  private readonly before: ReadonlyMap<string, T>;
  private copy: Map<string, T> | null = null;

  constructor(before: ReadonlyMap<string, T>) {
    this.before = before;
  }

  get result(): ReadonlyMap<string, T> {
    return this.copy ?? this.before;
  }

  set(key: string, value: T): void {
    const old = this.result.get(key);
    if (old !== undefined && isDeepStrictEqual(old, value)) return;
    this.copy ??= new Map(this.before);
    this.copy.set(key, value);
    this.changed.add(key);
  }

  delete(key: string): void {
    if (!this.result.has(key)) return;
    this.copy ??= new Map(this.before);
    this.copy.delete(key);
    this.changed.add(key);
  }
}

function splitKey(key: string): { namespace: string; name: string } {
  const slash = key.indexOf('/');
  return { namespace: key.slice(0, slash), name: key.slice(slash + 1) };
}
