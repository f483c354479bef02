// What differs between two snapshots.
//
// A change of one endpoint among thousands of services reaches the workers as that: copying a whole snapshot to each
// of them takes longer than all else that a change takes. What has not changed stays the object that it was in the
// worker, so that everything made of it can stay as well (core/exchange/runtime.ts).
// Made by the control thread, put together in the worker. Snapshots are immutable: nothing of one that was sent changes.

import { isEqualData } from './equal-data.ts';
import type { DestinationSettings, MeshSettings, WorkloadSettings } from './mesh-settings.ts';
import type { RefPolicySettings, RulePolicySettings } from './policies.ts';
import type {
  BackendSettings,
  ListenerSettings,
  ServerContextSettings,
  Snapshot,
  StreamRouteSettings,
  TlsSettings,
} from './snapshot.ts';

/** A list in terms of the one before. */
export interface ListDelta<T> {
  /** For each place the one in the list before that has the same, or -1: the next of `items`. Null: the list is the same. */
  places: Int32Array | null;
  items: T[];
}

/** A map in terms of the one before; null: it is the same. */
export type MapDelta<T> = { removed: string[]; set: [string, T][] } | null;

/** A snapshot in terms of the one that the worker has been given before. */
export interface SnapshotDelta
  extends Omit<
    Snapshot,
    'routes' | 'rulePolicies' | 'refPolicies' | 'listeners' | 'tls' | 'streamRoutes' | 'backends' | 'mesh'
  > {
  /** Epoch of the snapshot before. */
  base: number;
  /** Null: the same. */
  routes: SharedArrayBuffer | null;
  rulePolicies: ListDelta<RulePolicySettings>;
  refPolicies: ListDelta<RefPolicySettings>;
  listeners: ListDelta<ListenerSettings>;
  tls: Omit<TlsSettings, 'contexts'> & { contexts: ListDelta<ServerContextSettings> };
  streamRoutes: ListDelta<StreamRouteSettings>;
  backends: ListDelta<BackendSettings>;
  mesh:
    | (Omit<MeshSettings, 'workloads' | 'destinations'> & {
        workloads: ListDelta<WorkloadSettings>;
        destinations: MapDelta<DestinationSettings>;
      })
    | null;
}

/** Deltas to one snapshot; several workers have mostly been given the same one before. */
export class SnapshotDeltas {
  private before: Snapshot | undefined;
  private delta: SnapshotDelta | undefined;

  /** `after` for a worker that has `before`: as a delta, or whole where that is no snapshot of the same kind. */
  between(before: Snapshot | null, after: Snapshot): Snapshot | SnapshotDelta {
    if (before === null || (before.mesh === null) !== (after.mesh === null)) return after;
    if (this.delta === undefined || this.before !== before || this.delta.epoch !== after.epoch) {
      this.delta = snapshotDelta(before, after);
      this.before = before;
    }
    return this.delta;
  }
}

/** What differs. Neither may be a gateway's where the other is a node proxy's. */
export function snapshotDelta(before: Snapshot, after: Snapshot): SnapshotDelta {
  return {
    ...after,
    base: before.epoch,
    routes: after.routes === before.routes ? null : after.routes,
    rulePolicies: listDelta(before.rulePolicies, after.rulePolicies, null),
    refPolicies: listDelta(before.refPolicies, after.refPolicies, null),
    listeners: listDelta(before.listeners, after.listeners, ({ name }) => name),
    tls: { ...after.tls, contexts: listDelta(before.tls.contexts, after.tls.contexts, ({ key }) => key) },
    streamRoutes: listDelta(before.streamRoutes, after.streamRoutes, ({ name }) => name),
    backends: listDelta(before.backends, after.backends, ({ name }) => name),
    mesh:
      after.mesh === null
        ? null
        : {
            ...after.mesh,
            workloads: listDelta(before.mesh!.workloads, after.mesh.workloads, ({ uid }) => uid),
            destinations: mapDelta(before.mesh!.destinations, after.mesh.destinations),
          },
  };
}

/** The snapshot that a delta stands for, with the objects of `before` wherever nothing has changed. */
export function applyDelta(before: Snapshot, delta: SnapshotDelta): Snapshot {
  const { base, ...rest } = delta;
  if (base !== before.epoch) throw new Error(`a change of snapshot ${base} for a worker that has ${before.epoch}`);
  return {
    ...rest,
    routes: delta.routes ?? before.routes,
    rulePolicies: applyList(before.rulePolicies, delta.rulePolicies),
    refPolicies: applyList(before.refPolicies, delta.refPolicies),
    listeners: applyList(before.listeners, delta.listeners),
    tls: { ...delta.tls, contexts: applyList(before.tls.contexts, delta.tls.contexts) },
    streamRoutes: applyList(before.streamRoutes, delta.streamRoutes),
    backends: applyList(before.backends, delta.backends),
    mesh:
      delta.mesh === null
        ? null
        : {
            ...delta.mesh,
            workloads: applyList(before.mesh!.workloads, delta.mesh.workloads),
            destinations: applyMap(before.mesh!.destinations, delta.mesh.destinations),
          },
  };
}

/** `keyOf` says which things of both lists may be the same one; null: those in the same place. */
function listDelta<T>(before: readonly T[], after: readonly T[], keyOf: ((item: T) => string) | null): ListDelta<T> {
  const places = new Int32Array(after.length);
  const items: T[] = [];
  let byKey: Map<string, number> | undefined;
  let isSame = before.length === after.length;
  for (let i = 0; i < after.length; i++) {
    const item = after[i]!;
    let place = i < before.length ? i : -1;
    if (keyOf !== null && item !== before[i]) {
      const key = keyOf(item);
      if (place < 0 || keyOf(before[i]!) !== key) {
        byKey ??= new Map(before.map((one, index) => [keyOf(one), index]));
        place = byKey.get(key) ?? -1;
      }
    }
    if (place >= 0 && !isEqualData(before[place], item)) place = -1;
    if (place < 0) items.push(item);
    if (place !== i) isSame = false;
    places[i] = place;
  }
  return { places: isSame ? null : places, items };
}

function applyList<T>(before: T[], { places, items }: ListDelta<T>): T[] {
  if (places === null) return before;
  let next = 0;
  return Array.from(places, (place) => (place < 0 ? items[next++]! : before[place]!));
}

function mapDelta<T>(before: ReadonlyMap<string, T>, after: ReadonlyMap<string, T>): MapDelta<T> {
  const set: [string, T][] = [];
  let known = 0;
  for (const [key, value] of after) {
    const old = before.get(key);
    if (old !== undefined) known++;
    if (old === undefined || !isEqualData(old, value)) set.push([key, value]);
  }
  const removed = known === before.size ? [] : [...before.keys()].filter((key) => !after.has(key));
  return set.length + removed.length === 0 ? null : { removed, set };
}

function applyMap<T>(before: ReadonlyMap<string, T>, delta: MapDelta<T>): ReadonlyMap<string, T> {
  if (delta === null) return before;
  const after = new Map(before);
  for (const key of delta.removed) after.delete(key);
  for (const [key, value] of delta.set) after.set(key, value);
  return after;
}
