// The state of the mesh as xDS resources: each encoded once for all proxies, and versioned by content.
//
// Control thread of the control plane. Versions are hashes, so that a proxy's versions mean the same after
// a restart of the control plane, and to another replica of it.

import { hash } from 'node:crypto';
import type { Log } from '../../core/workers/log.ts';
import { MeshIndex, selects } from '../model/mesh-index.ts';
import {
  type MeshChanges,
  type MeshState,
  type MeshUpdate,
  proxyOf,
  type Service,
  type Workload,
} from '../model/mesh-state.ts';
import { ADDRESS_TYPE, AUTHORIZATION_TYPE, lengthDelimited, resourceCodec } from './protocol.ts';
import { encodeService, encodeWorkload } from './wire-address.ts';
import { denyInstead, encodePolicy } from './wire-policy.ts';

/** The types that are served, in the order in which a proxy has to get them. */
export type ResourceType = typeof AUTHORIZATION_TYPE | typeof ADDRESS_TYPE;

/** A resource as it goes out. */
export interface EncodedResource {
  name: string;
  version: string;
  /** An item of `resources` of a response, with its tag and length. */
  item: Buffer;
}

/** Names of resources by type. */
export type ResourceNames = Record<ResourceType, Set<string>>;

/** A change in terms of resources. */
export interface ResourceChange {
  /** Resources that may have another content than before, or are new or gone. */
  names: ResourceNames;
  /** What subscriptions and interests may be about because of the change, see `tokensOf`. */
  tokens: Set<string>;
}

/** Most policies of which each is held against each workload of its namespace; beyond, all workloads count. */
const POLICIES_COMPARED_MAX = 200;

/** All resources. */
export class Resources {
  readonly index: MeshIndex;
  private readonly log: Log;
  private readonly encoded: Record<ResourceType, Map<string, EncodedResource>> = {
    [AUTHORIZATION_TYPE]: new Map(),
    [ADDRESS_TYPE]: new Map(),
  };

  constructor(log: Log, state?: MeshState) {
    this.log = log;
    this.index = new MeshIndex(state);
  }

  /** Goes over to a later state. */
  apply(update: MeshUpdate): ResourceChange {
    const before = this.index.state;
    const { state, changes } = update;
    const names: ResourceNames = {
      [AUTHORIZATION_TYPE]: new Set(changes.policies),
      [ADDRESS_TYPE]: new Set([...changes.services, ...changes.workloads]),
    };
    this.index.apply(update);
    for (const uid of reselected(before, state, changes, this.index)) names[ADDRESS_TYPE].add(uid);
    for (const type of [AUTHORIZATION_TYPE, ADDRESS_TYPE] as const) {
      for (const name of names[type]) this.encoded[type].delete(name);
    }
    const tokens = new Set<string>(changes.policies);
    for (const name of names[ADDRESS_TYPE]) {
      for (const one of [before, state]) {
        const [workload, service] = [one.workloads.get(name), one.services.get(name)];
        if (workload !== undefined) for (const token of workloadTokens(workload)) tokens.add(token);
        if (service !== undefined) for (const token of serviceTokens(name, service)) tokens.add(token);
      }
    }
    return { names, tokens };
  }

  /** A resource by its name; undefined when there is none. */
  get(type: ResourceType, name: string): EncodedResource | undefined {
    const known = this.encoded[type].get(name);
    if (known !== undefined) return known;
    const made = type === ADDRESS_TYPE ? this.encodeAddress(name) : this.encodePolicy(name);
    if (made !== undefined) this.encoded[type].set(name, made);
    return made;
  }

  /** Names of all resources of a type. */
  *names(type: ResourceType): Generator<string> {
    const { workloads, services, policies } = this.index.state;
    if (type === AUTHORIZATION_TYPE) {
      yield* policies.keys();
    } else {
      yield* services.keys();
      yield* workloads.keys();
    }
  }

  private encodeAddress(name: string): EncodedResource | undefined {
    const service = this.index.state.services.get(name);
    if (service !== undefined) {
      const value = encodeService(service, contentVersion(Buffer.from(service.configuration ?? '')));
      return resource(ADDRESS_TYPE, name, value, service.vips.map(aliasOf));
    }
    const workload = this.index.state.workloads.get(name);
    if (workload === undefined) return undefined;
    const value = encodeWorkload(workload, this.index.selectedBy(workload));
    return resource(ADDRESS_TYPE, name, value, workload.hostNetwork ? [] : workload.addresses.map(aliasOf));
  }

  private encodePolicy(name: string): EncodedResource | undefined {
    const policy = this.index.state.policies.get(name);
    if (policy === undefined) return undefined;
    try {
      return resource(AUTHORIZATION_TYPE, name, encodePolicy(policy), []);
    } catch (error) {
      // A source that checks its policies does not get here. Without the policy, what it denies was allowed.
      const problem = error instanceof Error ? error.message : String(error);
      this.log('error', 'policy cannot be sent, everything it may be about is denied', { policy: name, problem });
      const instead = { ...denyInstead(name, new Uint8Array()), scope: policy.scope };
      return resource(AUTHORIZATION_TYPE, name, encodePolicy(instead), []);
    }
  }
}

/** `/address`: the name of an IP address in the only network that there is. */
export function aliasOf(address: string): string {
  return `/${address}`;
}

/** What stands for a proxy (see `proxyOf`) in `tokens`; nothing else has a name like it. */
export function nodeToken(node: string): string {
  return `node:${node}`;
}

function* workloadTokens(workload: Workload): Generator<string> {
  yield workload.uid;
  yield nodeToken(proxyOf(workload));
  yield* Object.keys(workload.services);
  if (!workload.hostNetwork) yield* workload.addresses.map(aliasOf);
}

function* serviceTokens(key: string, service: Service): Generator<string> {
  yield key;
  yield* service.vips.map(aliasOf);
}

function resource(typeUrl: ResourceType, name: string, value: Buffer, aliases: string[]): EncodedResource {
  const version = contentVersion(value);
  const bytes = resourceCodec.encode({ name, version, aliases, resource: { type_url: typeUrl, value } });
  return { name, version, item: lengthDelimited(2, bytes) };
}

/** A version that changes exactly when the content does. */
function contentVersion(bytes: Uint8Array): string {
  return hash('sha256', bytes, 'base64url').slice(0, 16);
}

/** Workloads whose list of policies is another one because a selector begins or ends to match them. */
function* reselected(before: MeshState, after: MeshState, changes: MeshChanges, index: MeshIndex): Generator<string> {
  const compare = changes.policies.size <= POLICIES_COMPARED_MAX;
  for (const key of changes.policies) {
    const [old, now] = [before.policies.get(key), after.policies.get(key)];
    const namespace = (now ?? old)?.namespace;
    if (namespace === undefined || (old?.scope !== 'workload' && now?.scope !== 'workload')) continue;
    for (const workload of index.inNamespace(namespace)) {
      const did = old?.scope === 'workload' && selects(old, workload);
      const does = now?.scope === 'workload' && selects(now, workload);
      if (!compare || did !== does) yield workload.uid;
    }
  }
}
