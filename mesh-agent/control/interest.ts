// Which resources a proxy is to have: what it asked for by name, and what the workloads of its node need.
//
// Control thread of the control plane. Pure functions of the state and of what a proxy subscribed to.

import { canonicalAddress } from '../../config/networks.ts';
import type { MeshIndex } from '../model/mesh-index.ts';
import type { Service, Workload } from '../model/mesh-state.ts';
import { aliasOf } from './resources.ts';

/** What a proxy's subscriptions come to. */
export interface Interest {
  names: Set<string>;
  /** Names that were asked for and that nothing has. */
  absent: Set<string>;
  /** What is not there either, but would belong to the rest. */
  watched: Set<string>;
}

/**
 * Workloads and services for a proxy of `node` (empty: of none). Its own workloads are always there, with
 * the services that they are endpoints of. A service that is asked for, by key or address, brings its
 * endpoints, and the services that its rules send requests to bring theirs.
 */
export function addressInterest(index: MeshIndex, node: string, asked: Iterable<string>): Interest {
  const interest: Interest = { names: new Set(), absent: new Set(), watched: new Set() };
  const { names, watched } = interest;
  const { workloads, services } = index.state;
  const addWorkload = (workload: Workload): void => {
    names.add(workload.uid);
    for (const key of Object.keys(workload.services)) (services.has(key) ? names : watched).add(key);
  };
  const addEndpoints = (key: string): void => {
    names.add(key);
    for (const uid of index.endpointUids(key)) names.add(uid);
  };
  const addService = (key: string, service: Service): void => {
    addEndpoints(key);
    for (const other of targetsOf(service)) {
      if (services.has(other)) addEndpoints(other);
      else watched.add(other);
    }
  };
  if (node !== '') for (const uid of index.uidsOnNode(node)) addWorkload(workloads.get(uid)!);
  for (const name of asked) {
    const workload = workloads.get(name);
    const service = services.get(name);
    const owner = workload === undefined && service === undefined ? ownerOf(index, name) : undefined;
    if (workload !== undefined) addWorkload(workload);
    else if (service !== undefined) addService(name, service);
    else if (owner?.kind === 'workload') addWorkload(owner.workload);
    else if (owner?.kind === 'service')
      addService(`${owner.service.namespace}/${owner.service.hostname}`, owner.service);
    else interest.absent.add(name);
  }
  return interest;
}

/** Policies for a proxy of `node`: those that apply to a workload there, and those asked for. */
export function policyInterest(index: MeshIndex, node: string, asked: Iterable<string>): Interest {
  const interest: Interest = { names: new Set(index.widePolicies('*')), absent: new Set(), watched: new Set() };
  const namespaces = new Set<string>();
  for (const uid of index.uidsOnNode(node)) {
    const workload = index.state.workloads.get(uid)!;
    namespaces.add(workload.namespace);
    for (const key of index.selectedBy(workload)) if (index.state.policies.has(key)) interest.names.add(key);
  }
  for (const namespace of namespaces) for (const key of index.widePolicies(namespace)) interest.names.add(key);
  for (const name of asked) (index.state.policies.has(name) ? interest.names : interest.absent).add(name);
  return interest;
}

/** `/address` of a name that asks for an address, `network/address`; undefined for other names. */
export function askedAlias(name: string): string | undefined {
  const address = name.slice(name.indexOf('/') + 1);
  return name.includes('/') && /^[0-9a-f.:]+$/i.test(address) ? aliasOf(canonicalAddress(address)) : undefined;
}

function ownerOf(index: MeshIndex, name: string): ReturnType<MeshIndex['byAddress']> {
  const alias = askedAlias(name);
  return alias === undefined ? undefined : index.byAddress(alias.slice(1));
}

/** Keys of the services that the rules of a service name. */
function targetsOf(service: Service): Set<string> {
  const keys = new Set<string>();
  for (const rule of service.rules ?? []) {
    for (const { name } of rule.backendRefs) keys.add(name);
    for (const { backend } of rule.policy?.mirrors ?? []) keys.add(backend);
  }
  return keys;
}
