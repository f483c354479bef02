// The records of a cluster with the indexes between them: which services a pod belongs to, which pods an address,
// a node or a namespace has. Says for every change which pods and services have to be looked at again.
//
// Owned by one control thread.

import type { MeshMode } from '../model/mesh-state.ts';
import type { NamespaceRecord, NodeRecord, PodRecord, ServiceRecord, SliceRecord } from './records.ts';

/** A map of sets, without empty ones. */
class MultiMap {
  private readonly sets = new Map<string, Set<string>>();

  add(key: string, value: string): void {
    const set = this.sets.get(key);
    if (set === undefined) this.sets.set(key, new Set([value]));
    else set.add(value);
  }

  delete(key: string, value: string): void {
    const set = this.sets.get(key);
    if (set?.delete(value) && set.size === 0) this.sets.delete(key);
  }

  get(key: string): ReadonlySet<string> {
    return this.sets.get(key) ?? NONE;
  }
}

const NONE: ReadonlySet<string> = new Set();

/** Everything that is known, by key (`namespace/name`). */
export class Cluster {
  readonly pods = new Map<string, PodRecord>();
  readonly services = new Map<string, ServiceRecord>();
  readonly slices = new Map<string, SliceRecord>();
  private readonly namespaces = new Map<string, NamespaceRecord>();
  private readonly nodes = new Map<string, NodeRecord>();
  private readonly podsOfNamespace = new MultiMap();
  private readonly podsOfNode = new MultiMap();
  private readonly podsOfAddress = new MultiMap();
  /** Services by namespace and one entry of their selector, so that a pod is compared with few of them. */
  private readonly servicesOfLabel = new MultiMap();
  private readonly slicesOfService = new MultiMap();
  /** Slices that name a pod. */
  private readonly slicesOfPod = new MultiMap();
  private readonly slicesOfNode = new MultiMap();
  /** Slices with an address that they do not name a pod for. */
  private readonly slicesOfAddress = new MultiMap();

  /** Pods and slices to look at again; the owner empties them. */
  readonly dirtyPods = new Set<string>();
  readonly dirtySlices = new Set<string>();
  readonly dirtyServices = new Set<string>();

  /** A pod is new, different or gone. */
  setPod(key: string, pod: PodRecord | undefined, before: PodRecord | undefined): void {
    if (before !== undefined) {
      this.podsOfNamespace.delete(before.namespace, key);
      this.podsOfNode.delete(before.node, key);
      if (!before.hostNetwork) {
        for (const address of before.addresses) {
          this.podsOfAddress.delete(address, key);
          this.dirtyAddress(address);
        }
      }
    }
    if (pod === undefined) this.pods.delete(key);
    else {
      this.pods.set(key, pod);
      this.podsOfNamespace.add(pod.namespace, key);
      this.podsOfNode.add(pod.node, key);
      if (!pod.hostNetwork) {
        for (const address of pod.addresses) {
          this.dirtyAddress(address);
          this.podsOfAddress.add(address, key);
        }
      }
    }
    this.dirtyPods.add(key);
  }

  /** A service is new, different or gone. */
  setService(key: string, service: ServiceRecord | undefined, before: ServiceRecord | undefined): void {
    if (before !== undefined) {
      this.servicesOfLabel.delete(indexOf(before), key);
      this.dirtyMembers(key, before);
    }
    if (service === undefined) this.services.delete(key);
    else {
      this.services.set(key, service);
      this.servicesOfLabel.add(indexOf(service), key);
      this.dirtyMembers(key, service);
    }
    this.dirtyServices.add(key);
  }

  /** A slice is new, different or gone. */
  setSlice(key: string, slice: SliceRecord | undefined, before: SliceRecord | undefined): void {
    if (before !== undefined) this.indexSlice(key, before, 'delete');
    if (slice === undefined) this.slices.delete(key);
    else {
      this.slices.set(key, slice);
      this.indexSlice(key, slice, 'add');
    }
    this.dirtySlices.add(key);
  }

  /** A namespace is new, different or gone. */
  setNamespace(name: string, record: NamespaceRecord | undefined): void {
    if (record === undefined) this.namespaces.delete(name);
    else this.namespaces.set(name, record);
    this.dirty(this.podsOfNamespace.get(name));
  }

  /** A node is new, different or gone. */
  setNode(name: string, record: NodeRecord | undefined): void {
    if (record === undefined) this.nodes.delete(name);
    else this.nodes.set(name, record);
    this.dirty(this.podsOfNode.get(name));
    for (const slice of this.slicesOfNode.get(name)) this.dirtySlices.add(slice);
  }

  /** What the label of a namespace says; null: nothing, or there is no such namespace (yet). */
  meshOfNamespace(name: string): boolean | null {
    return this.namespaces.get(name)?.mesh ?? null;
  }

  /** What the label of a namespace says of connections in plain text; null: nothing. */
  modeOfNamespace(name: string): MeshMode | null {
    return this.namespaces.get(name)?.mode ?? null;
  }

  /** Where a node is; undefined: unknown. */
  node(name: string): NodeRecord | undefined {
    return this.nodes.get(name);
  }

  /** Pods that run on a node. */
  podsOn(node: string): ReadonlySet<string> {
    return this.podsOfNode.get(node);
  }

  /** Services whose selector a pod matches, and those whose slices name it, by its name or by an address of its. */
  *servicesOf(key: string, pod: PodRecord): Generator<{ service: ServiceRecord; slice: SliceRecord | null }> {
    for (const [name, value] of Object.entries(pod.labels)) {
      for (const serviceKey of this.servicesOfLabel.get(labelIndex(pod.namespace, name, value))) {
        const service = this.services.get(serviceKey)!;
        if (matches(service.selector!, pod.labels)) yield { service, slice: null };
      }
    }
    const sliceKeys = new Set(this.slicesOfPod.get(key));
    if (!pod.hostNetwork) {
      for (const address of pod.addresses) {
        if (!this.hasAddress(key, pod, address)) continue;
        for (const slice of this.slicesOfAddress.get(address)) sliceKeys.add(slice);
      }
    }
    for (const sliceKey of sliceKeys) {
      const slice = this.slices.get(sliceKey)!;
      const service = this.services.get(`${slice.namespace}/${slice.service}`);
      if (service !== undefined && service.selector === null) yield { service, slice };
    }
  }

  /**
   * Whether an address is this pod's. An old pod may still be listed with an address that a new one has been given:
   * it is the newer one's then, and one that is ending has to stand back.
   */
  hasAddress(key: string, pod: PodRecord, address: string): boolean {
    for (const otherKey of this.podsOfAddress.get(address)) {
      if (otherKey !== key && goesBefore(this.pods.get(otherKey)!, otherKey, pod, key)) return false;
    }
    return true;
  }

  /** Whether an address is a pod's: then that is what is there, whatever a slice says. */
  isPodAddress(address: string): boolean {
    return this.podsOfAddress.get(address).size > 0;
  }

  /** Whoever was passed over for an address may have it now, or the other way round. */
  private dirtyAddress(address: string): void {
    this.dirty(this.podsOfAddress.get(address));
    for (const slice of this.slicesOfAddress.get(address)) this.dirtySlices.add(slice);
  }

  private dirty(pods: ReadonlySet<string>): void {
    for (const pod of pods) this.dirtyPods.add(pod);
  }

  private dirtyMembers(key: string, service: ServiceRecord): void {
    for (const slice of this.slicesOfService.get(key)) {
      this.dirtySlices.add(slice);
      this.dirtyPodsOf(this.slices.get(slice)!);
    }
    if (service.selector === null) return;
    for (const pod of this.podsOfNamespace.get(service.namespace)) {
      if (matches(service.selector, this.pods.get(pod)!.labels)) this.dirtyPods.add(pod);
    }
  }

  private indexSlice(key: string, slice: SliceRecord, how: 'add' | 'delete'): void {
    this.slicesOfService[how](`${slice.namespace}/${slice.service}`, key);
    this.dirtyPodsOf(slice);
    for (const { pod, node, addresses } of slice.endpoints) {
      if (pod !== '') this.slicesOfPod[how](`${slice.namespace}/${pod}`, key);
      else {
        if (node !== '') this.slicesOfNode[how](node, key);
        for (const address of addresses) this.slicesOfAddress[how](address, key);
      }
    }
  }

  private dirtyPodsOf(slice: SliceRecord): void {
    for (const { pod, addresses } of slice.endpoints) {
      if (pod !== '') this.dirtyPods.add(`${slice.namespace}/${pod}`);
      else for (const address of addresses) this.dirty(this.podsOfAddress.get(address));
    }
  }
}

/** Whether `pod` loses an address to `other`. Total, so that exactly one of several has it. */
function goesBefore(other: PodRecord, otherKey: string, pod: PodRecord, key: string): boolean {
  if (other.terminating !== pod.terminating) return pod.terminating;
  if (other.created !== pod.created) return other.created > pod.created;
  return otherKey > key;
}

function matches(selector: Record<string, string>, labels: Record<string, string>): boolean {
  for (const name in selector) if (labels[name] !== selector[name]) return false;
  return true;
}

function indexOf({ namespace, selector }: ServiceRecord): string {
  if (selector === null) return '';
  const [name, value] = Object.entries(selector)[0]!;
  return labelIndex(namespace, name, value);
}

/** No part can contain a line feed. */
function labelIndex(namespace: string, name: string, value: string): string {
  return `${namespace}\n${name}\n${value}`;
}
