// Whose proxy this is: of all workloads of a node, or of one as its sidecar.
//
// Control thread of the proxy. Pure.

import { parseAddress } from '../../config/names.ts';
import { formatNodeIdentity, formatWorkloadIdentity } from '../identity/spiffe.ts';
import type { MeshIndex } from '../model/mesh-index.ts';
import type { Workload } from '../model/mesh-state.ts';
import type { NodeConfig } from './node-config.ts';

/** The identity of the proxy itself: of the node, or of the workload whose sidecar it is. */
export function proxyIdentity({ node, sidecar, trustDomain }: NodeConfig): string {
  if (sidecar === null) return formatNodeIdentity(trustDomain, node);
  const { namespace, serviceAccount } = sidecar;
  return formatWorkloadIdentity({ trustDomain, namespace, serviceAccount });
}

/** By what the mesh knows which workloads the proxy serves (see `proxyOf`). */
export function servedAs(config: NodeConfig): string {
  return config.sidecar === null ? config.node : proxyIdentity(config);
}

/**
 * The workloads that the proxy is to serve, by uid: of its node those without a sidecar; as a sidecar the one that it
 * was made for, if the mesh says that this one has a sidecar and the very identity.
 */
export function servedWorkloads(config: NodeConfig, index: MeshIndex): Workload[] {
  const { sidecar } = config;
  return index
    .onNode(servedAs(config))
    .filter(({ protocol, hostNetwork, addresses }) => protocol === 'hbone' && !hostNetwork && addresses.length > 0)
    .filter(
      ({ name, addresses }) =>
        sidecar === null ||
        ((sidecar.name === null || name === sidecar.name) &&
          (sidecar.address === null || addresses.includes(sidecar.address))),
    );
}

/** Name or IP address by which the control plane is known unless another is given. */
export function hostOfControlPlane({ controlPlane }: NodeConfig): string {
  return (parseAddress(controlPlane.address) as { host: string }).host;
}
