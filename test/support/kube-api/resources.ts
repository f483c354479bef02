// The resources that the API server for tests serves, and selectors over them.
// Spec: Kubernetes "Labels and selectors", "Field selectors".

import type { StoredObject } from './store.ts';

/** A resource of the API. */
export interface ResourceType {
  group: string;
  version: string;
  plural: string;
  kind: string;
  namespaced: boolean;
  /** Fields, apart from name and namespace, that can be selected by. */
  fields: Record<string, (object: StoredObject) => string>;
}

const field =
  (...path: string[]) =>
  (object: StoredObject): string => {
    let value: unknown = object;
    for (const step of path) value = (value as Record<string, unknown> | undefined)?.[step];
    return typeof value === 'string' ? value : '';
  };

const type = (
  group: string,
  plural: string,
  kind: string,
  namespaced: boolean,
  fields: ResourceType['fields'] = {},
): ResourceType => ({ group, version: 'v1', plural, kind, namespaced, fields });

/** Everything that is served, by plural. */
export const resourceTypes: Record<string, ResourceType> = Object.fromEntries(
  [
    type('', 'pods', 'Pod', true, {
      'spec.nodeName': field('spec', 'nodeName'),
      'spec.serviceAccountName': field('spec', 'serviceAccountName'),
      'status.phase': field('status', 'phase'),
      'status.podIP': field('status', 'podIP'),
    }),
    type('', 'services', 'Service', true, {
      'spec.clusterIP': field('spec', 'clusterIP'),
      'spec.type': field('spec', 'type'),
    }),
    type('', 'namespaces', 'Namespace', false, { 'status.phase': field('status', 'phase') }),
    type('', 'nodes', 'Node', false),
    type('', 'serviceaccounts', 'ServiceAccount', true),
    type('discovery.k8s.io', 'endpointslices', 'EndpointSlice', true),
  ].map((entry) => [entry.plural, entry]),
);

/** A test of an object; throws RangeError for a selector that the server would refuse. */
export type Predicate = (object: StoredObject) => boolean;

/** `a=b,c!=d,e in (f,g),h notin (i),j,!k` */
export function labelPredicate(text: string): Predicate {
  const tests = split(text).map((term): Predicate => {
    const set = /^([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)$/.exec(term);
    if (set !== null) {
      const values = set[3]!.split(',').map((value) => value.trim());
      const wanted = set[2] === 'in';
      // Without the label: not in any set.
      return ({ metadata }) => {
        const value = metadata.labels?.[set[1]!];
        return value === undefined ? !wanted : values.includes(value) === wanted;
      };
    }
    const pair = /^([\w./-]+)\s*(!=|==?)\s*([\w.-]*)$/.exec(term);
    if (pair !== null) {
      const [, name, operator, value] = pair;
      if (operator === '!=') return ({ metadata }) => metadata.labels?.[name!] !== value;
      return ({ metadata }) => metadata.labels?.[name!] === value;
    }
    const exists = /^(!?)([\w./-]+)$/.exec(term);
    if (exists === null) throw new RangeError(`unable to parse requirement: ${term}`);
    return ({ metadata }) => (metadata.labels?.[exists[2]!] !== undefined) === (exists[1] === '');
  });
  return (object) => tests.every((test) => test(object));
}

/** `metadata.name=x,status.phase!=y`; only fields of the type. */
export function fieldPredicate(text: string, { fields }: ResourceType): Predicate {
  const tests = split(text).map((term): Predicate => {
    const pair = /^([\w.]+)\s*(!=|==?)\s*(.*)$/.exec(term);
    const getters: ResourceType['fields'] = {
      'metadata.name': field('metadata', 'name'),
      'metadata.namespace': field('metadata', 'namespace'),
      ...fields,
    };
    const get = pair === null ? undefined : getters[pair[1]!];
    if (pair === null || get === undefined) throw new RangeError(`field label not supported: ${term}`);
    return (object) => (get(object) === pair[3]) === (pair[2] !== '!=');
  });
  return (object) => tests.every((test) => test(object));
}

/** Commas between terms, not those between brackets. */
function split(text: string): string[] {
  return text
    .split(/,(?![^(]*\))/)
    .map((term) => term.trim())
    .filter((term) => term !== '');
}
