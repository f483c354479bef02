// What a node proxy has been told: resources in every detail, and the state of the mesh that they make.
//
// Control thread of the node proxy. A resource that cannot be used is refused by name with the reason, and
// its last good version stays. A policy that cannot be used and has no good version is one that denies
// everything it may be about: what it was to deny is not known.

import { compareTexts, MeshIndex } from '../model/mesh-index.ts';
import {
  type AuthorizationPolicy,
  type MeshState,
  type MeshUpdate,
  policyKey,
  type Service,
  serviceKey,
  type Workload,
} from '../model/mesh-state.ts';
import {
  ADDRESS_TYPE,
  AUTHORIZATION_TYPE,
  codec,
  type DeltaResponse,
  type ResourceMessage,
  TRUST_TYPE,
} from './protocol.ts';
import { decodeAddress } from './wire-address.ts';
import { decodePolicy, denyInstead } from './wire-policy.ts';

/** A resource that was refused. */
export interface RefusedResource {
  name: string;
  reason: string;
}

/** What a response came to. */
export interface AppliedResponse {
  update: MeshUpdate;
  refused: RefusedResource[];
}

/** A name that nothing has, as the control plane has said. */
export interface SavedAbsence {
  name: string;
  /** Until when the control plane would have told otherwise, in seconds since 1970. */
  confirmedS: number;
}

/** What is kept beside the resources. */
export interface SavedNames {
  /** Names that were asked for, and that something has. */
  subscriptions: string[];
  absences: SavedAbsence[];
}

interface SavedMessage {
  format: number;
  trustDomain: string;
  types: (SavedNames & { typeUrl: string; resources: ResourceMessage[] })[];
}

const savedCodec = codec<SavedMessage>('portcullis.mesh.v1.SavedState');

/** Format of the saved state; another one is not read. */
const FORMAT = 1;

const TYPES = [AUTHORIZATION_TYPE, ADDRESS_TYPE] as const;

/** Resources that a proxy has, and their meaning. */
export class ProxyState {
  readonly index: MeshIndex;
  /** Good resources by type and name. */
  private readonly resources = new Map<string, Map<string, ResourceMessage>>(TYPES.map((type) => [type, new Map()]));
  /** Policies of which there is only `denyInstead`. */
  private readonly denied = new Set<string>();

  constructor(trustDomain: string) {
    this.index = new MeshIndex({ workloads: new Map(), services: new Map(), policies: new Map(), trustDomain });
  }

  /** The state now. */
  get state(): MeshState {
    return this.index.state;
  }

  /** Versions by name of what there is of a type, for `initial_resource_versions`. */
  versions(type: string): Record<string, string> {
    const versions: Record<string, string> = {};
    for (const [name, { version }] of this.resources.get(type) ?? []) versions[name] = version;
    return versions;
  }

  /** Takes a response in. Types that are not known are refused as a whole. */
  apply(response: Pick<DeltaResponse, 'typeUrl' | 'resources' | 'removedResources'>): AppliedResponse {
    const { typeUrl, resources, removedResources } = response;
    const known = this.resources.get(typeUrl);
    const before = this.state;
    const changes = { workloads: new Set<string>(), services: new Set<string>(), policies: new Set<string>() };
    if (known === undefined) {
      const refused = resources.map(({ name }) => ({ name, reason: `type ${typeUrl} was not asked for` }));
      return { update: { state: before, changes }, refused };
    }
    const state = {
      workloads: new Map(before.workloads),
      services: new Map(before.services),
      policies: new Map(before.policies),
      trustDomain: before.trustDomain,
    };
    const refused: RefusedResource[] = [];
    for (const name of removedResources) {
      known.delete(name);
      this.denied.delete(name);
      if (typeUrl === AUTHORIZATION_TYPE && state.policies.delete(name)) changes.policies.add(name);
      if (typeUrl === ADDRESS_TYPE && state.workloads.delete(name)) changes.workloads.add(name);
      if (typeUrl === ADDRESS_TYPE && state.services.delete(name)) changes.services.add(name);
    }
    for (const resource of resources) {
      const { name } = resource;
      try {
        const object = read(resource, typeUrl);
        if ('workload' in object) {
          state.workloads.set(name, object.workload);
          changes.workloads.add(name);
        } else if ('service' in object) {
          state.services.set(name, object.service);
          changes.services.add(name);
        } else {
          state.policies.set(name, object.policy);
          changes.policies.add(name);
          this.denied.delete(name);
        }
        known.set(name, resource);
      } catch (error) {
        refused.push({ name, reason: error instanceof Error ? error.message : String(error) });
        if (typeUrl !== AUTHORIZATION_TYPE || known.has(name)) continue;
        state.policies.set(name, denyInstead(name, resource.resource?.value ?? new Uint8Array()));
        changes.policies.add(name);
        this.denied.add(name);
      }
    }
    const update = { state, changes };
    this.index.apply(update);
    return { update, refused };
  }

  /** Names of the policies that could not be read and that deny everything instead. */
  get deniedPolicies(): string[] {
    return [...this.denied].sort(compareTexts);
  }

  /** Everything, for `load` of a later process; `trust` is the trust bundle, which is kept with the rest. */
  save({ subscriptions, absences }: SavedNames, trust: ResourceMessage | null = null): Buffer {
    const types = TYPES.map((typeUrl) => ({
      typeUrl: typeUrl as string,
      subscriptions: typeUrl === ADDRESS_TYPE ? subscriptions : [],
      absences: typeUrl === ADDRESS_TYPE ? absences : [],
      resources: [...this.resources.get(typeUrl)!.values()],
    }));
    if (trust !== null) types.push({ typeUrl: TRUST_TYPE, subscriptions: [], absences: [], resources: [trust] });
    return savedCodec.encode({ format: FORMAT, trustDomain: this.state.trustDomain, types });
  }

  /**
   * Takes in what `save` gave, into a state that is empty. Returns the names that were asked for, what
   * the state is, and the trust bundle if it was kept there. Throws an Error when the bytes are no saved state of this trust domain.
   */
  load(bytes: Uint8Array): SavedNames & { update: MeshUpdate; trust: ResourceMessage | null } {
    const saved = savedCodec.decode(bytes);
    if (saved.format !== FORMAT) throw new Error(`its format is ${saved.format}, not ${FORMAT}`);
    if (saved.trustDomain !== this.state.trustDomain) throw new Error(`it is of trust domain ${saved.trustDomain}`);
    const subscriptions: string[] = [];
    const absences: SavedAbsence[] = [];
    let trust: ResourceMessage | null = null;
    for (const { typeUrl, subscriptions: names, absences: absent, resources } of saved.types) {
      if (typeUrl === TRUST_TYPE) {
        trust = resources[0] ?? null;
        continue;
      }
      this.apply({ typeUrl, resources, removedResources: [] });
      subscriptions.push(...names);
      absences.push(...absent);
    }
    const { workloads, services, policies } = this.state;
    const changes = {
      workloads: new Set(workloads.keys()),
      services: new Set(services.keys()),
      policies: new Set(policies.keys()),
    };
    return { subscriptions, absences, update: { state: this.state, changes }, trust };
  }
}

type Read = { workload: Workload } | { service: Service } | { policy: AuthorizationPolicy };

/** Throws an Error for a resource that cannot be used, or whose name is not its own. */
function read({ name, resource }: ResourceMessage, type: string): Read {
  if (resource === null) throw new Error('it has no content');
  if (resource.type_url !== type) throw new Error(`it is of type ${resource.type_url}`);
  const object = type === ADDRESS_TYPE ? decodeAddress(resource.value) : { policy: decodePolicy(resource.value) };
  if (nameOf(object) !== name) throw new Error(`it says that its name is ${nameOf(object)}`);
  return object;
}

function nameOf(object: Read): string {
  if ('workload' in object) return object.workload.uid;
  return 'service' in object ? serviceKey(object.service) : policyKey(object.policy);
}
