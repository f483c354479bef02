// What clients such as kubectl ask an API server about itself first.

import type { ResourceType } from './resources.ts';

/** The answer to a question about the API, or null for other paths. */
export function discover(path: string, types: Record<string, ResourceType>): object | null {
  if (path === '/version') return { major: '1', minor: '32', gitVersion: 'v1.32.0', platform: 'linux/amd64' };
  if (path === '/api') return { kind: 'APIVersions', versions: ['v1'], serverAddressByClientCIDRs: [] };
  const groups = [...new Set(Object.values(types).map(({ group }) => group))].filter((group) => group !== '');
  if (path === '/apis') {
    const entries = groups.map((name) => {
      const version = { groupVersion: `${name}/v1`, version: 'v1' };
      return { name, versions: [version], preferredVersion: version };
    });
    return { kind: 'APIGroupList', apiVersion: 'v1', groups: entries };
  }
  const group = ['', ...groups].find((name) => path === (name === '' ? '/api/v1' : `/apis/${name}/v1`));
  if (group === undefined) return null;
  const resources = Object.values(types)
    .filter((type) => type.group === group)
    .map(({ plural, kind, namespaced }) => ({
      name: plural,
      singularName: kind.toLowerCase(),
      namespaced,
      kind,
      verbs: ['create', 'delete', 'get', 'list', 'update', 'watch'],
    }));
  const groupVersion = group === '' ? 'v1' : `${group}/v1`;
  return { kind: 'APIResourceList', apiVersion: 'v1', groupVersion, resources };
}
