// Runs wrk and reads its figures.
//
// The Lua script written here makes wrk send the request head of a browser (about 350 bytes) and
// print its counters as one JSON line, so that its human-readable output is never parsed.
// Without a `request` function wrk sends one prepared request over and over, its cheapest way.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { runCommand, temporaryDir } from './processes.ts';
import { hostName, ROUTE_HOSTS, ROUTE_PREFIXES, routePrefix } from './routes.ts';

/** What wrk sends. */
export type RequestKind =
  /** GET of one path. */
  | 'get'
  /** POST of one path with `uploadBytes` of body. */
  | 'upload'
  /** GETs that visit every host and prefix of the many-routes configuration in a scattered order. */
  | 'routes';

/** One wrk run. */
export interface WrkOptions {
  port: number;
  path: string;
  kind: RequestKind;
  /** Size of the request body of an upload. */
  uploadBytes: number;
  connections: number;
  /** wrk itself knows whole seconds only; other lengths are ended by SIGINT, after which it reports as usual. */
  durationSeconds: number;
  /** Core for wrk; null: not pinned. */
  core: number | null;
}

/** Errors that wrk counted, by kind. Any of them makes a round suspect. */
export interface WrkErrors {
  connect: number;
  read: number;
  write: number;
  timeout: number;
  /** Responses with a status of 400 and above. */
  status: number;
}

/** Figures of one wrk run. */
export interface WrkResult {
  requests: number;
  durationUs: number;
  /** Bytes received, heads included. */
  bytes: number;
  latencyP50Us: number;
  latencyP99Us: number;
  errors: WrkErrors;
}

const MARK = 'BENCH-RESULT ';

/** The request headers of a browser; with request line and Host the head is about 350 bytes. */
const BROWSER_HEADERS: Record<string, string> = {
  'User-Agent': 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
  Accept: 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8',
  'Accept-Language': 'en-US,en;q=0.5',
  'Accept-Encoding': 'gzip, deflate, br',
  Cookie: 'session=4f1c0a9be27d4d08; theme=dark; cart=18',
};

/** Runs wrk with one thread. Rejects when it cannot be run or reports nothing. */
export async function runWrk(options: WrkOptions): Promise<WrkResult> {
  const script = join(temporaryDir(), `wrk-${options.kind}-${options.uploadBytes}.lua`);
  writeFileSync(script, luaScript(options));
  const args = ['-t1', `-c${options.connections}`, `-d${Math.ceil(options.durationSeconds)}s`];
  args.push('--latency', '-s', script, `http://127.0.0.1:${options.port}${options.path}`);
  const whole = Number.isInteger(options.durationSeconds);
  const interrupt = whole ? {} : { interruptAfterMs: options.durationSeconds * 1000 };
  const { stdout, stderr } = await runCommand('wrk', args, { core: options.core, ...interrupt });
  const result = parseWrk(stdout);
  if (result === null) throw new Error(`wrk reported no result: ${(stderr || stdout).trim().slice(0, 500)}`);
  return result;
}

/** Figures from wrk's output; null when the JSON line is missing or malformed. */
export function parseWrk(stdout: string): WrkResult | null {
  const line = stdout.split('\n').find((text) => text.startsWith(MARK));
  if (line === undefined) return null;
  try {
    return JSON.parse(line.slice(MARK.length)) as WrkResult;
  } catch {
    return null;
  }
}

/** Sum of all errors of a run. */
export function errorCount(errors: WrkErrors): number {
  return errors.connect + errors.read + errors.write + errors.timeout + errors.status;
}

/** The errors that happened, for people: `2 read, 1 status`; empty when there were none. */
export function describeErrors(errors: WrkErrors): string {
  return Object.entries(errors)
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${count} ${kind}`)
    .join(', ');
}

/** Script for one kind of request. */
function luaScript(options: WrkOptions): string {
  const headers = Object.entries(BROWSER_HEADERS)
    .map(([name, value]) => `wrk.headers[${JSON.stringify(name)}] = ${JSON.stringify(value)}`)
    .join('\n');
  return `${headers}\n${requestLua(options)}\n${DONE_LUA}`;
}

function requestLua(options: WrkOptions): string {
  if (options.kind === 'upload') {
    return `wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.body = string.rep("x", ${options.uploadBytes})`;
  }
  if (options.kind === 'get') return '';
  // All requests are prepared before the run; a stride that shares no factor with their number
  // visits each of them, far from the one before.
  const hosts = JSON.stringify(hostName(0)).replace('0', '" .. h .. "');
  const prefix = JSON.stringify(routePrefix(0)).replace('0', '" .. p .. "');
  return `local requests, count, at = {}, 0, 0
function init()
  for h = 0, ${ROUTE_HOSTS - 1} do
    for p = 0, ${ROUTE_PREFIXES - 1} do
      wrk.headers["Host"] = ${hosts}
      requests[count] = wrk.format("GET", ${prefix} .. "/item")
      count = count + 1
    end
  end
end
function request()
  at = (at + 7919) % count
  return requests[at]
end`;
}

const DONE_LUA = `function done(summary, latency)
  local e = summary.errors
  io.write(string.format('${MARK}{"requests":%d,"durationUs":%d,"bytes":%.0f,' ..
    '"latencyP50Us":%.0f,"latencyP99Us":%.0f,' ..
    '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
`;
