// The admin port: what the gateway is doing, for people, probes and Prometheus. Read-only.
//
// Runs on the control thread with node:http; nothing here touches the packet path. Every page is
// made anew from AdminState. The port has no authentication: it belongs on loopback or a network
// of operators, and a Host that is a name is refused, so that a web page in an operator's browser
// cannot read it through a rebound DNS name.

import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { type AddressInfo, isIP } from 'node:net';
import { pipeline, Readable } from 'node:stream';
import type { Config } from '../../config/config.ts';
import { ejectionCauseNames } from '../../core/lb/outlier-detection.ts';
import { findRecord, readRecords } from '../../core/telemetry/flight-reader.ts';
import type { HeadFilterSettings } from '../../core/workers/filter-settings.ts';
import { type ExplainAnswer, explainRecord } from '../explain.ts';
import { endpointNow } from '../explain-endpoint.ts';
import { createServer } from '../node-http.ts';
import { recordingLines } from '../replay/recordings.ts';
import { MetricsPage } from './metrics.ts';
import type { AdminState, BackendState, ReloadRecord, WorkerState } from './state.ts';

/** Most records of one /requests answer, and how many there are without `limit`. */
const REQUESTS_MAX = 1000;
const REQUESTS_DEFAULT = 100;

/** A page needs milliseconds: slow clients are not waited for. */
const REQUEST_TIMEOUT_MS = 10_000;
const KEEP_ALIVE_TIMEOUT_MS = 15_000;
const CONNECTIONS_MAX = 128;

const TEXT = 'text/plain; charset=utf-8';
const JSON_TYPE = 'application/json; charset=utf-8';

/** Body of one answer; a long one comes in pieces. */
interface Page {
  status: number;
  type: string;
  body: string | Iterable<string>;
}

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

/** A running admin port. */
export interface AdminServer {
  /** Where it listens; the real port when 0 was asked for. */
  readonly host: string;
  readonly port: number;
  /** Stops listening and closes all connections. */
  close(): Promise<void>;
}

/** Starts the admin port; rejects with the system's error (EADDRINUSE, EACCES ...) when it cannot listen. */
export async function startAdminServer(host: string, port: number, state: AdminState): Promise<AdminServer> {
  const metrics = new MetricsPage(state);
  const server = createServer((request, response) => {
    void answer(request, response, state, metrics);
  });
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.headersTimeout = REQUEST_TIMEOUT_MS;
  server.keepAliveTimeout = KEEP_ALIVE_TIMEOUT_MS;
  server.maxConnections = CONNECTIONS_MAX;
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  const address = server.address() as AddressInfo;
  return { host: address.address, port: address.port, close: () => closeServer(server) };
}

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  state: AdminState,
  metrics: MetricsPage,
): Promise<void> {
  let page: Page;
  try {
    page = await route(request, response, state, metrics);
  } catch (error) {
    page = text(500, `This page could not be made: ${String(error)}\n`);
  }
  if (typeof page.body !== 'string') {
    response.writeHead(page.status, { 'content-type': page.type, 'cache-control': 'no-store' });
    if (request.method === 'HEAD') response.end();
    // A reader that goes away is no failure of this side.
    else pipeline(Readable.from(page.body), response, () => {});
    return;
  }
  const body = Buffer.from(page.body);
  response.writeHead(page.status, {
    'content-type': page.type,
    'content-length': body.length,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  });
  response.end(request.method === 'HEAD' ? undefined : body);
}

async function route(
  request: IncomingMessage,
  response: ServerResponse,
  state: AdminState,
  metrics: MetricsPage,
): Promise<Page> {
  // A request body is nobody's wish here; what is not read ends the connection after the answer.
  if (!isTrustedHost(request.headers.host)) {
    return text(403, 'The Host of a request to the admin port must be an IP address or localhost.\n');
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('allow', 'GET, HEAD');
    return text(405, 'The admin port is read-only: GET and HEAD only.\n');
  }
  const url = parseTarget(request.url ?? '/');
  switch (url?.pathname) {
    case '/':
      return text(200, index);
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
      return requests(state, url.searchParams.get('limit'));
    case '/recorded-requests':
      return recordedRequests(state);
    case '/explain':
      return explain(state, url.searchParams.get('id'));
    default:
      return text(404, `There is no such page.\n\n${index}`);
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
  const causes: string[] = [];
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

function probe(good: string, causes: string[]): Page {
  return causes.length === 0 ? text(200, `${good}\n`) : text(503, `not ${good}: ${causes.join('; ')}\n`);
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
const secretKeys = ['hmacKey', 'password', 'secret'];

/** Something with a text that may hold a token or an API key. */
type Valued = { value: string };

/** The configuration as it may be shown: a copy without what might let its reader in somewhere. */
function withoutSecrets(config: unknown): unknown {
  const copy: Partial<Config> | null = JSON.parse(
    JSON.stringify(config, (key, value) => (secretKeys.includes(key) ? HIDDEN : value)),
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

function requests(state: AdminState, limitText: string | null): Page {
  const limit = limitText === null ? REQUESTS_DEFAULT : Number(limitText);
  if (!Number.isInteger(limit) || limit < 1 || limit > REQUESTS_MAX) {
    return json(400, { error: `limit must be a whole number from 1 to ${REQUESTS_MAX}` });
  }
  return json(200, { requests: readRecords(state.flightRecords, limit) });
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

/** Whether a Host field is an IP literal or localhost, with or without port; absent only from HTTP/1.0. */
function isTrustedHost(host: string | undefined): boolean {
  if (host === undefined) return true;
  const bracketed = /^\[([^\]]*)\](?::\d*)?$/.exec(host);
  if (bracketed !== null) return isIP(bracketed[1]) === 6;
  const name = host.replace(/:\d*$/, '').toLowerCase();
  return name === 'localhost' || isIP(name) === 4;
}

/** Path and query of an origin-form target; undefined for anything else. */
function parseTarget(target: string): URL | undefined {
  if (!target.startsWith('/')) return undefined;
  const base = 'http://admin';
  // Appended rather than resolved: "//x/metrics" is a path here, not another host.
  return URL.canParse(base + target) ? new URL(base + target) : undefined;
}

function isoTime(ms: number): string | null {
  return ms > 0 ? new Date(ms).toISOString() : null;
}

function text(status: number, body: string): Page {
  return { status, type: TEXT, body };
}

function json(status: number, value: unknown): Page {
  return { status, type: JSON_TYPE, body: `${JSON.stringify(value, null, 2)}\n` };
}
