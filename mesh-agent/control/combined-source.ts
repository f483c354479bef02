// Workloads and services from one source, policies about them from a directory of files.
//
// Control thread of the control plane. Nothing is told before both have given their first state: services without
// their policies would let in what is to be denied. What both learn in one turn is told as one change.

import {
  changesBetween,
  emptyMeshState,
  type MeshChanges,
  type MeshSource,
  type MeshState,
  type MeshUpdate,
  type Service,
} from '../model/mesh-state.ts';
import type { DirectorySource } from './directory-source.ts';

/** Two sources as one. */
export class CombinedSource implements MeshSource {
  readonly name: string;
  private readonly base: MeshSource;
  private readonly policies: DirectorySource;
  private baseState: MeshState;
  private policyState: MeshState;
  /** What was told last, or an empty state. */
  private state: MeshState;
  private onUpdate: ((update: MeshUpdate) => void) | null = null;
  /** Collects what the directory says while it is being asked. */
  private collecting: MeshChanges[] | null = null;

  /** `policiesFor` makes the directory for services that this keeps; neither source has been started. */
  constructor(
    trustDomain: string,
    base: MeshSource,
    policiesFor: (services: () => ReadonlyMap<string, Service>) => DirectorySource,
  ) {
    this.base = base;
    this.policies = policiesFor(() => this.baseState.services);
    this.name = `${base.name}, policies of ${this.policies.name}`;
    this.state = emptyMeshState(trustDomain);
    this.baseState = this.state;
    this.policyState = this.state;
  }

  /** See MeshSource. Rejects as either of the two does. */
  async start(onUpdate: (update: MeshUpdate) => void): Promise<void> {
    await this.base.start((update) => this.baseChanged(update));
    await this.policies.start((update) => this.policiesChanged(update));
    this.onUpdate = onUpdate;
    const { state } = this;
    this.tell([changesBetween(state, this.merged())]);
  }

  /** See MeshSource. Of the base only: policies make no addresses. */
  get behindMs(): number {
    return this.base.behindMs;
  }

  /** See MeshSource. */
  async close(): Promise<void> {
    this.onUpdate = null;
    await this.policies.close();
    await this.base.close();
  }

  private baseChanged({ state, changes }: MeshUpdate): void {
    this.baseState = state;
    this.collecting = [changes];
    // Before the start of the directory this does nothing.
    if (changes.services.size > 0) this.policies.servicesChanged();
    const collected = this.collecting;
    this.collecting = null;
    this.tell(collected);
  }

  private policiesChanged({ state, changes }: MeshUpdate): void {
    this.policyState = state;
    if (this.collecting === null) this.tell([changes]);
    else this.collecting.push(changes);
  }

  private tell(changes: readonly MeshChanges[]): void {
    if (this.onUpdate === null) return;
    this.state = this.merged();
    this.onUpdate({
      state: this.state,
      changes: {
        workloads: new Set(changes.flatMap(({ workloads }) => [...workloads])),
        services: new Set(changes.flatMap(({ services }) => [...services])),
        policies: new Set(changes.flatMap(({ policies }) => [...policies])),
      },
    });
  }

  private merged(): MeshState {
    const { baseState, policyState } = this;
    // The directory may be a moment behind.
    const withPolicy = [...policyState.services].filter(([key]) => baseState.services.has(key));
    return {
      ...baseState,
      services: over(baseState.services, withPolicy),
      policies: over(baseState.policies, [...policyState.policies]),
    };
  }
}

function over<T>(below: ReadonlyMap<string, T>, above: readonly [string, T][]): ReadonlyMap<string, T> {
  return above.length === 0 ? below : new Map([...below, ...above]);
}
