// The control plane's admin port: health, metrics, and what the status commands show, as JSON. Read-only.
//
// Control thread of the control plane. Holds nothing secret: certificates of roots are public.

import type { ConfigError } from '../../config/errors.ts';
import { formatAddress } from '../../config/names.ts';
import {
  type AdminServer,
  jsonPage,
  type Page,
  probePage,
  startAdminPages,
  textPage,
} from '../../core/process/admin-pages.ts';
import { cannotListen } from '../../core/process/listen-failure.ts';
import { version } from '../../core/process/version.ts';
import type { FileState } from '../control/directory-source.ts';
import type { Applied } from '../control/discovery.ts';
import {
  type MeshStatus,
  meshStatus,
  type PolicyStatus,
  policyStatus,
  type ServiceStatus,
  serviceStatus,
  type WorkloadStatusRow,
  workloadStatus,
} from '../control/status.ts';
import type { RotationStatus } from '../identity/rotation-keeper.ts';
import { bundleToPem, type TrustBundle } from '../identity/trust-bundle.ts';
import type { ListenAddress } from './control-config.ts';
import type { ControlPlane } from './control-plane.ts';

/** Answer to /status. */
export interface ControlStatus {
  version: string;
  startedAt: string;
  /** Where node proxies connect; null: nowhere yet. */
  address: string | null;
  /** Why node proxies should not come here; none: they should. */
  unready: string[];
  source: { name: string; problems: string[] };
  ca: RotationStatus & { roots: RootStatus[] };
  certificates: { issued: number; refused: Record<string, number> };
  mesh: MeshStatus;
}

/** A root that is trusted. */
export interface RootStatus {
  id: string;
  /** End of its validity, ISO 8601. */
  expires: string;
  /** New certificates lead to it. */
  signs: boolean;
}

/** Answer to /source: the files of the mesh as the control plane has them. */
export interface SourceStatus {
  kind: 'directory' | 'kubernetes';
  /** Null: no part of the mesh is files. */
  directory: { path: string; lastGoodPath: string } | null;
  trustDomain: string;
  clusterDomain: string;
  /** Version of the mesh that has these files in it. */
  version: number;
  files: FileState[];
  /** What is wrong with them. */
  errors: ConfigError[];
}

/** Answers to /services, /workloads and /policies. */
export interface ControlLists {
  services: ServiceStatus[];
  workloads: WorkloadStatusRow[];
  policies: PolicyStatus[];
}

const index = `Portcullis control plane, admin port (read-only)

/healthz    200 while the process answers
/readyz     200 while node proxies are served
/metrics    counters for Prometheus
/status     the control plane, its source and the proxies, as JSON
/services   services, as JSON
/workloads  workloads, as JSON
/policies   policies, as JSON
/roots      certificates of the trusted roots, PEM
/source     files of the mesh as they were read, as JSON
/applied?version=N[&waitMs=MS]   which proxies serve a version of the mesh, as JSON
`;

/** Longest time that a request for /applied is kept waiting. */
const APPLIED_WAIT_MAX_MS = 2_000;

/** Starts the admin port; rejects with an ExitError when it cannot listen. */
export async function startControlAdmin({ host, port }: ListenAddress, plane: ControlPlane): Promise<AdminServer> {
  // The metrics library is needed when somebody asks for metrics.
  let metrics: Promise<{ contentType: string; render(): Promise<string> }> | undefined;
  const metricsPage = async (): Promise<Page> => {
    metrics ??= import('./control-metrics.ts').then(({ controlMetricsPage }) => controlMetricsPage(plane));
    const page = await metrics;
    return { status: 200, type: page.contentType, body: await page.render() };
  };
  try {
    return await startAdminPages(host, port, index, ({ pathname, searchParams }) => {
      if (pathname === '/metrics') return metricsPage();
      return pathname === '/applied' ? appliedPage(searchParams, plane) : pageOf(pathname, plane);
    });
  } catch (error) {
    throw cannotListen('the admin port', formatAddress(host, port), error);
  }
}

function pageOf(path: string, plane: ControlPlane): Page | undefined {
  const { discovery } = plane;
  switch (path) {
    case '/healthz':
      return probePage('healthy', []);
    case '/readyz':
      return probePage('ready', plane.unready);
    case '/status':
      return jsonPage(200, statusOf(plane));
    case '/services':
      return jsonPage(200, { services: serviceStatus(discovery.index) } satisfies Pick<ControlLists, 'services'>);
    case '/workloads':
      return jsonPage(200, { workloads: workloadStatus(discovery.index) } satisfies Pick<ControlLists, 'workloads'>);
    case '/policies':
      return jsonPage(200, { policies: policyStatus(discovery.index) } satisfies Pick<ControlLists, 'policies'>);
    case '/source':
      return jsonPage(200, sourceOf(plane));
    case '/roots':
      return textPage(200, bundleToPem(plane.authority.bundle));
    default:
      return undefined;
  }
}

function statusOf(plane: ControlPlane): ControlStatus {
  const { authority, counts, discovery } = plane;
  return {
    version: version(),
    startedAt: new Date(plane.startedMs).toISOString(),
    address: plane.address ?? null,
    unready: plane.unready,
    source: { name: plane.sourceName, problems: plane.sourceProblems },
    ca: { ...authority.rotationStatus(), roots: rootsOf(authority.bundle) },
    certificates: { issued: counts.issued, refused: { ...counts.refused } },
    mesh: meshStatus(discovery),
  };
}

function sourceOf({ config, directory, discovery }: ControlPlane): SourceStatus {
  const { source, trustDomain, clusterDomain } = config;
  const files = source.kind === 'directory' ? source : source.policies;
  return {
    kind: source.kind,
    directory: files === null ? null : { path: files.directory, lastGoodPath: files.lastGoodDirectory },
    ...{ trustDomain, clusterDomain },
    version: discovery.version,
    files: directory?.fileStates ?? [],
    errors: [...(directory?.errors ?? [])],
  };
}

/** Waits a while for all proxies to serve a version. */
async function appliedPage(query: URLSearchParams, { discovery }: ControlPlane): Promise<Page> {
  const [version, waitMs] = [query.get('version') ?? '', query.get('waitMs') ?? '0'];
  if (!/^\d{1,15}$/.test(version) || !/^\d{1,9}$/.test(waitMs)) {
    return textPage(400, 'Expected /applied?version=N, and waitMs as a number.\n');
  }
  const applied: Applied = await discovery.applied(Number(version), Math.min(Number(waitMs), APPLIED_WAIT_MAX_MS));
  return jsonPage(200, applied);
}

function rootsOf({ roots, issuer }: TrustBundle): RootStatus[] {
  return roots.map(({ id, facts }) => ({
    id,
    expires: new Date(facts.notAfterMs).toISOString(),
    signs: id === issuer,
  }));
}
