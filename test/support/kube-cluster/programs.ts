// Where the programs of a real API server are, and whether they are.

import { accessSync, constants } from 'node:fs';

/** Why there is no real API server here, as a reason to skip; false: there is. */
export const noCluster: string | false = ((): string | false => {
  for (const name of ['ETCD', 'KUBE_APISERVER']) {
    const path = process.env[name];
    if (path === undefined || path === '') return `$${name} is not set (test/support/kube-cluster/build.sh)`;
    try {
      accessSync(path, constants.X_OK);
    } catch {
      return `$${name} is ${path}, which cannot be executed`;
    }
  }
  return false;
})();
