// The control plane's admin port: health, metrics, and what the status commands show, as JSON. Read-only.
//
// Control thread of the control plane. Holds nothing secret: certificates of roots are public.

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
`;

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
    return await startAdminPages(host, port, index, ({ pathname }) =>
      pathname === '/metrics' ? metricsPage() : pageOf(pathname, plane),
    );
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

function rootsOf({ roots, issuer }: TrustBundle): RootStatus[] {
  return roots.map(({ id, facts }) => ({
    id,
    expires: new Date(facts.notAfterMs).toISOString(),
    signs: id === issuer,
  }));
}
