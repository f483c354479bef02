// The admin port: what the gateway is doing, for people, probes and Prometheus. Read-only.
//
// Runs on the control thread; nothing here touches the packet path. Every page is made anew from
// AdminState.

import type { Config } from '../../config/config.ts';
import { ejectionCauseNames } from '../../core/lb/outlier-detection.ts';
import {
  type AdminServer,
  jsonPage as json,
  type Page,
  probePage as probe,
  startAdminPages,
  textPage as text,
} from '../../core/process/admin-pages.ts';
import { type FlightRecord, findRecord, readRecords, recordedWorkload } from '../../core/telemetry/flight-reader.ts';
import type { HeadFilterSettings } from '../../core/workers/filter-settings.ts';
import { type ExplainAnswer, explainRecord } from '../explain.ts';
import { endpointNow } from '../explain-endpoint.ts';
import { recordingLines } from '../replay/recordings.ts';
import { MetricsPage } from './metrics.ts';
import type { AdminState, BackendState, ReloadRecord, WorkerState } from './state.ts';
import { graphEdges } from './workload-metrics.ts';

/** Most records of one /requests answer, and how many there are without `limit`. */
const REQUESTS_MAX = 1000;
const REQUESTS_DEFAULT = 100;

const index = `Portcullis admin port (read-only)

/metrics            counters for Prometheus
/healthz            200 while every worker answers
/readyz             200 while the gateway takes traffic on its newest configuration
/config             the configuration that runs, as JSON
/backends           endpoints of every backend and their health
/reloads            the last loads of the configuration and what became of connections
/breakers           circuit breakers: state of each limit, and what is in use of it
/requests?limit=N   the last failed and slow requests, newest first
/explain?id=ID      what happened to one of them
/recorded-requests  heads of the last requests, for \`portcullis check --replay\`
`;

/** The pages that only a node proxy has. */
const meshIndex = `/requests?workload=NAMESPACE/NAME  those of one workload only
/mesh               workloads of this node, their certificates, and what is wrong, as JSON
/mesh/graph         who talks to whom, as JSON
`;

/** Starts the admin port; rejects with the system's error (EADDRINUSE, EACCES ...) when it cannot listen. */
export async function startAdminServer(host: string, port: number, state: AdminState): Promise<AdminServer> {
  const metrics = new MetricsPage(state);
  return startAdminPages(
    host,
    port,
    () => (state.mesh === undefined ? index : index + meshIndex),
    (url) => pageOf(url, state, metrics),
  );
}

async function pageOf(url: URL, state: AdminState, metrics: MetricsPage): Promise<Page | undefined> {
  switch (url.pathname) {
    case '/metrics':
      return { status: 200, type: metrics.contentType, body: await metrics.render() };
    case '/healthz':
      return probe('healthy', unhealthy(state));
    case '/readyz':
      return probe('ready', unready(state));
    case '/config':
      return json(200, configOf(state));
    case '/breakers':
      return json(200, { circuitBreakers: state.circuitBreakers });
    case '/backends':
      return json(200, { backends: state.backends.map(backendOf) });
    case '/reloads':
      return json(200, { reloads: state.reloads.map(reloadOf) });
    case '/requests':
      return requests(state, url.searchParams);
    case '/recorded-requests':
      return recordedRequests(state);
    case '/mesh':
      return state.mesh === undefined ? undefined : json(200, state.mesh.page());
    case '/mesh/graph':
      return state.workloads === undefined ? undefined : json(200, graphEdges(state.workloads));
    case '/explain':
      return explain(state, url.searchParams.get('id'));
    default:
      return undefined;
  }
}

// -- pages -------------------------------------------------------------------------

/** Why the process is not healthy: one line per worker that does not answer. */
function unhealthy(state: AdminState): string[] {
  return state.workers
    .filter((worker) => !worker.healthy)
    .map((worker) => `worker ${worker.index} ${worker.up ? 'does not answer' : 'is not running'}`);
}

/** Why the gateway should get no traffic. */
function unready(state: AdminState): string[] {
  const causes = state.mesh?.unready() ?? [];
  if (state.draining) causes.push('shutting down');
  if (state.epoch === 0) causes.push('no configuration has been applied yet');
  if (state.workers.length === 0) causes.push('no worker has been started yet');
  for (const worker of state.workers) {
    if (!worker.up) causes.push(`worker ${worker.index} is not running`);
    else if (worker.epochApplied < state.epoch) {
      causes.push(`worker ${worker.index} runs on configuration ${worker.epochApplied}, not yet on ${state.epoch}`);
    }
  }
  return causes;
}

function configOf(state: AdminState): object {
  return {
    epoch: state.epoch,
    loadedAt: isoTime(state.loadedAtMs),
    file: state.configFile ?? null,
    version: state.version,
    startedAt: isoTime(state.startedAtMs),
    workers: state.workers.map(workerOf),
    config: withoutSecrets(state.config ?? null),
  };
}

/** What stands for a value that is not to be shown. */
const HIDDEN = '(hidden)';

/** Keys of the configuration whose values are not to be shown, wherever they are. */
const secretKeys = ['hmacKey', 'keyPem', 'password', 'secret'];

/** Something with a text that may hold a token or an API key. */
type Valued = { value: string };

/** The configuration as it may be shown: a copy without what might let its reader in somewhere. */
function withoutSecrets(config: unknown): unknown {
  const copy: Partial<Config> | null = JSON.parse(
    JSON.stringify(config, (key, value) => {
      if (secretKeys.includes(key)) return HIDDEN;
      return value instanceof Map ? Object.fromEntries(value) : value;
    }),
  );
  for (const { healthCheck } of copy?.backends ?? []) hideValues(healthCheck?.headers);
  for (const { rules } of copy?.routes ?? []) {
    for (const { matches, policy, backendRefs } of rules) {
      for (const { conditions } of matches) hideValues(conditions?.headers.filter(({ type }) => type === 'Exact'));
      hideAddedFields(policy?.filters);
      hideValues(policy?.filters?.fault?.headers);
      for (const ref of backendRefs) hideAddedFields(ref.policy?.filters);
    }
  }
  return copy;
}

function hideAddedFields(filters: HeadFilterSettings | null | undefined): void {
  hideValues(filters?.requestHeaders?.lines);
  hideValues(filters?.responseHeaders?.lines);
}

function hideValues(texts: readonly Valued[] | undefined): void {
  for (const text of texts ?? []) text.value = HIDDEN;
}

function workerOf({ lastPongMs, ...rest }: WorkerState): object {
  return { ...rest, lastAnswerAt: isoTime(lastPongMs) };
}

function reloadOf(record: ReloadRecord): object {
  const { atMs, report, ...rest } = record;
  return { at: isoTime(atMs), ...rest, report: report ?? null };
}

function backendOf({ ejections, ...rest }: BackendState): object {
  if (ejections === null) return { ...rest, ejections };
  return {
    ...rest,
    ejections: Object.fromEntries(ejections.map((count, cause) => [ejectionCauseNames[cause]!, count])),
  };
}

function requests(state: AdminState, query: URLSearchParams): Page {
  const limitText = query.get('limit');
  const limit = limitText === null ? REQUESTS_DEFAULT : Number(limitText);
  if (!Number.isInteger(limit) || limit < 1 || limit > REQUESTS_MAX) {
    return json(400, { error: `limit must be a whole number from 1 to ${REQUESTS_MAX}` });
  }
  const workload = query.get('workload');
  // Longer names than fit are cut in records.
  const recorded = workload === null ? null : recordedWorkload(workload);
  const wanted = recorded === null ? undefined : (record: FlightRecord) => record.workload === recorded;
  return json(200, { requests: readRecords(state.flightRecords, limit, wanted) });
}

function recordedRequests({ recorder }: AdminState): Page {
  if (recorder === null) {
    return text(404, 'Requests are not recorded: the configuration has no `recorder`.\n');
  }
  return { status: 200, type: 'application/jsonl; charset=utf-8', body: recordingLines(recorder, Date.now()) };
}

function explain(state: AdminState, id: string | null): Page {
  if (id === null || id === '') return json(400, { error: 'which request? add ?id= and its X-Request-Id' });
  const record = findRecord(state.flightRecords, id);
  if (record === undefined) {
    const error = `no record of request ${id}: only failed and slow requests are recorded, and the oldest are overwritten`;
    return json(404, { error });
  }
  return json(200, {
    record,
    explanation: [...explainRecord(record), ...endpointNow(record, state.backends)],
  } satisfies ExplainAnswer);
}

// -- helpers -------------------------------------------------------------------------

function isoTime(ms: number): string | null {
  return ms > 0 ? new Date(ms).toISOString() : null;
}
