// With a real API server, where $ETCD and $KUBE_APISERVER say that there is one. What is tested is imported then only.

import { test } from 'node:test';
import { noCluster } from '../../support/kube-cluster/programs.ts';

const TIMEOUT_MS = 180_000;

test('a real API server', { skip: noCluster, timeout: TIMEOUT_MS }, async (t) => {
  await (await import('./kubernetes-api.ts')).testApi(t);
});

test('a mesh on a real API server', { skip: noCluster, timeout: TIMEOUT_MS }, async (t) => {
  await (await import('./kubernetes-nodes.ts')).testNodes(t);
});
