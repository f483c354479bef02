// /metrics of the control plane. One table defines every metric; docs/mesh/control-configuration.md lists them.
//
// Control thread of the control plane, at scrape time.

import { type MetricDefinition, registryOf, type Sample } from '../../core/process/exposition.ts';
import { processMetrics } from '../../core/process/process-metrics.ts';
import { meshStatus } from '../control/status.ts';
import { ROTATION_PHASES } from '../identity/rotation.ts';
import type { ControlPlane } from './control-plane.ts';

/** Every metric of the control plane, in the order of the exposition. */
export const controlMetrics: readonly MetricDefinition<ControlPlane>[] = [
  gauge(
    'mesh_version',
    'Version of the mesh, counted from 1 since the start; 0: the source has given none yet.',
    (plane) => [one(plane.discovery.version)],
  ),
  gauge(
    'mesh_objects',
    'Objects of the mesh.',
    ({ discovery }) => {
      const { workloads, services, policies } = discovery.state;
      return Object.entries({ workload: workloads, service: services, policy: policies }).map(([kind, { size }]) =>
        one(size, { kind }),
      );
    },
    ['kind'],
  ),
  gauge(
    'mesh_proxies',
    'Node proxies that are connected: serving the newest version, waiting for it, or having refused some of it.',
    ({ discovery }) => {
      const { proxies } = meshStatus(discovery);
      return (['serving', 'waiting', 'refused'] as const).map((state) =>
        one(proxies.filter((proxy) => proxy.state === state).length, { state }),
      );
    },
    ['state'],
  ),
  gauge(
    'mesh_absent_proxies',
    'Nodes, and sidecars, whose proxy is not connected to this control plane: without it their workloads cannot be reached.',
    ({ discovery }) => [one(meshStatus(discovery).absent.length)],
  ),
  gauge(
    'mesh_oldest_version',
    'Oldest version that a connected proxy serves; the newest if there is none.',
    (plane) => [one(Math.min(plane.discovery.version, ...plane.discovery.proxies.map(({ served }) => served)))],
  ),
  gauge('mesh_refused_resources', 'Resources that connected proxies refuse (xDS NACK) at the moment.', (plane) => [
    one(
      plane.discovery.proxies
        .flatMap(({ refusals }) => refusals)
        .reduce((sum, { names }) => sum + Math.max(1, names.length), 0),
    ),
  ]),
  gauge(
    'mesh_source_errors',
    'What is wrong with the source at the moment: mistakes in files, a directory that cannot be read or has lost all of them, collections that cannot be followed.',
    (plane) => [one(plane.sourceProblems.length)],
  ),
  gauge(
    'mesh_rotation_phase',
    'Phase of the rotation of the root: 1 for the present one; idle: there is none.',
    ({ authority }) => {
      const { phase } = authority.rotationStatus();
      return ROTATION_PHASES.map((one) => ({ labels: { phase: one }, value: one === phase ? 1 : 0 }));
    },
    ['phase'],
  ),
  gauge('mesh_rotation_waiting_proxies', 'Nodes that hold the rotation up, those that are gone included.', (plane) => [
    one(plane.authority.rotationStatus().waiting.length),
  ]),
  counter('mesh_certificates_issued_total', 'Certificates that were signed.', ({ counts }) => [one(counts.issued)]),
  counter(
    'mesh_certificates_refused_total',
    'Requests for certificates that were refused, by code; only codes that have occurred.',
    ({ counts }) => Object.entries(counts.refused).map(([code, count]) => one(count, { code })),
    ['code'],
  ),
  ...processMetrics,
];

/** The /metrics page of one control plane. */
export function controlMetricsPage(plane: ControlPlane): { contentType: string; render(): Promise<string> } {
  const registry = registryOf(controlMetrics, plane);
  return { contentType: registry.contentType, render: () => registry.metrics() };
}

type Collect = (plane: ControlPlane) => Sample[];

function gauge(name: string, help: string, collect: Collect, labels: string[] = []): MetricDefinition<ControlPlane> {
  return { name: `portcullis_${name}`, type: 'gauge', help, labels, collect };
}

function counter(name: string, help: string, collect: Collect, labels: string[] = []): MetricDefinition<ControlPlane> {
  return { name: `portcullis_${name}`, type: 'counter', help, labels, collect };
}

function one(value: number, labels: Record<string, string> = {}): Sample {
  return { labels, value };
}
