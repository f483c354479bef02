// What the node proxy adds to the gateway's admin port: the page /mesh, and when it is ready.
//
// Control thread of the node proxy. Read-only; holds nothing secret.

import type { GraphEdge, MeshState } from '../../gateway/admin/state.ts';
import type { RefusedResource } from '../control/proxy-state.ts';
import { identityOf, type Workload } from '../model/mesh-state.ts';
import type { CaptureState } from './captures.ts';
import type { DemandState } from './demand.ts';
import type { NodeAgent } from './node-agent.ts';

/** One entry of the answer to /mesh/graph, which the gateway's admin port gives. */
export type { GraphEdge };

/** A certificate as it is shown. */
export interface CertificateView {
  /** Null: there is none. */
  validUntil: string | null;
  /** Why there is no newer one; empty: nothing has failed. */
  problem: string;
}

/** A workload of the node as it is shown. */
export interface WorkloadView {
  uid: string;
  workload: string;
  identity: string;
  addresses: readonly string[];
  status: string;
  /** What becomes of connections that do not come through a tunnel. */
  mode: string;
  /** Whether its connections are taken, in both directions. */
  served: boolean;
  /** Null: it is not open. */
  networkNamespace: string | null;
  certificate: CertificateView;
  capture: CaptureState;
  /** What is wrong with it; empty: nothing. */
  problems: string[];
}

/** Answer to /mesh. */
export interface NodeMeshPage {
  /** Of a sidecar its workload. */
  node: string;
  /** It serves one workload, in whose network namespace it is. */
  sidecar: boolean;
  trustDomain: string;
  mode: string;
  egress: string;
  /** Where what is known of the mesh comes from: nothing, a saved state, or the control plane. */
  state: string;
  controlPlane: {
    address: string;
    connected: boolean;
    synced: boolean;
    problem: string;
    refused: RefusedResource[];
  };
  mesh: { workloads: number; services: number; policies: number };
  /** What is known of it on demand; null: all of it is known. */
  discovery: DemandState | null;
  identity: string;
  certificate: CertificateView;
  trust: { sequence: number; roots: string[] };
  workloads: WorkloadView[];
  problems: string[];
}

/** The node proxy's part of the admin port. */
export function meshState(agent: NodeAgent): MeshState {
  return { unready: () => [...agent.unready, ...sidecarUnready(agent)], page: () => pageOf(agent) };
}

/** Why the workload of a sidecar should not be started yet: what it did would go around the mesh. */
function sidecarUnready(agent: NodeAgent): string[] {
  if (agent.config.sidecar === null || agent.unready.length > 0) return [];
  const [workload] = agent.workloads;
  if (workload === undefined) {
    return [`the mesh has no workload ${agent.config.node} with a sidecar and the identity ${agent.identity}`];
  }
  const { served, capture, problems } = workloadOf(agent, workload);
  if (served && (capture === 'installed' || capture === 'off')) return [];
  return problems.length > 0 ? problems : ['the workload is not captured yet'];
}

/** Answer to /mesh. */
function pageOf(agent: NodeAgent): NodeMeshPage {
  const { config, identity, knows, problems, trust, xds } = agent;
  const { workloads, services, policies } = xds.state;
  return {
    node: config.node,
    sidecar: config.sidecar !== null,
    trustDomain: config.trustDomain,
    mode: config.mode,
    egress: config.egress,
    state: knows === 'nothing' ? 'nothing' : knows === 'saved' ? 'saved' : 'control plane',
    controlPlane: { address: config.controlPlane.address, ...xds.status },
    mesh: { workloads: workloads.size, services: services.size, policies: policies.size },
    discovery: agent.demand?.state ?? null,
    identity,
    certificate: certificateOf(agent, identity),
    trust: { sequence: trust.current.sequence, roots: trust.current.roots.map(({ id }) => id) },
    workloads: agent.workloads.map((workload) => workloadOf(agent, workload)),
    problems,
  };
}

function workloadOf(agent: NodeAgent, workload: Workload): WorkloadView {
  const { uid, namespace, name, addresses, status } = workload;
  const identity = identityOf(workload);
  const open = agent.namespaces.get(uid);
  const certificate = certificateOf(agent, identity);
  const { state, problem } = agent.captures?.stateOf(uid) ?? { state: 'off' as const, problem: '' };
  const { missing } = agent.xds.index.policiesOf(workload);
  return {
    ...{ uid, workload: `${namespace}/${name}`, identity, addresses, status },
    mode: workload.mode ?? agent.config.mode,
    served: open !== undefined && certificate.validUntil !== null,
    networkNamespace: open?.path ?? null,
    certificate,
    capture: state,
    problems: [
      agent.namespaces.problemOf(uid) ?? '',
      certificate.validUntil === null ? `no certificate${certificate.problem && `: ${certificate.problem}`}` : '',
      problem,
      ...missing.map((key) => `policy ${key} is not known, so nobody is let in`),
    ].filter((text) => text !== ''),
  };
}

function certificateOf({ certificates }: NodeAgent, identity: string): CertificateView {
  const certificate = certificates.get(identity);
  return {
    validUntil: certificate === null ? null : new Date(certificate.notAfterMs).toISOString(),
    problem: certificates.errorOf(identity)?.message ?? '',
  };
}
