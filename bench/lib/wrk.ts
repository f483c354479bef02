// Runs wrk and reads its figures.
//
// The Lua script written here makes wrk send the request head of a browser (about 350 bytes) and
// print its counters as one JSON line, so that its human-readable output is never parsed.
// Without a `request` function wrk sends one prepared request over and over, its cheapest way.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { TLS_HOST } from './certificate.ts';
import { BROWSER_HEADERS, type LoadFigures } from './figures.ts';
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
  /** IPv4 address; default 127.0.0.1. With TLS it is always that. */
  host?: string;
  port: number;
  /** Speaks TLS; the name in SNI is TLS_HOST. */
  tls: boolean;
  path: string;
  kind: RequestKind;
  /** Size of the request body of an upload. */
  uploadBytes: number;
  connections: number;
  /** Request fields beside or in place of a browser's. */
  headers?: Readonly<Record<string, string>>;
  /**
   * Mean pause of a connection between an answer and its next request, drawn anew from half to one and a half
   * of it; wrk counts in whole milliseconds. 0, the default: none. Latencies are from sending a request on.
   */
  pauseMs?: number;
  /** wrk itself knows whole seconds only; other lengths are ended by SIGINT, after which it reports as usual. */
  durationSeconds: number;
  /** Core for wrk; null: not pinned. */
  core: number | null;
  /** Path of the network namespace that it runs in; default: ours. */
  namespace?: string;
}

const MARK = 'BENCH-RESULT ';

/** Runs wrk with one thread. Rejects when it cannot be run or reports nothing. */
export async function runWrk(options: WrkOptions): Promise<LoadFigures> {
  const script = join(temporaryDir(), `wrk-${options.kind}-${options.uploadBytes}.lua`);
  writeFileSync(script, luaScript(options));
  const args = ['-t1', `-c${options.connections}`, `-d${Math.ceil(options.durationSeconds)}s`];
  const origin = options.tls ? `https://${TLS_HOST}` : `http://${options.host ?? '127.0.0.1'}`;
  args.push('--latency', '-s', script, `${origin}:${options.port}${options.path}`);
  const whole = Number.isInteger(options.durationSeconds);
  const interrupt = whole ? {} : { interruptAfterMs: options.durationSeconds * 1000 };
  const { stdout, stderr } = await runCommand('wrk', args, {
    core: options.core,
    namespace: options.namespace,
    ...interrupt,
  });
  const result = parseWrk(stdout);
  if (result === null) throw new Error(`wrk reported no result: ${(stderr || stdout).trim().slice(0, 500)}`);
  return result;
}

/** Figures from wrk's output; null when the JSON line is missing or malformed. */
export function parseWrk(stdout: string): LoadFigures | null {
  const line = stdout.split('\n').find((text) => text.startsWith(MARK));
  if (line === undefined) return null;
  try {
    return JSON.parse(line.slice(MARK.length)) as LoadFigures;
  } catch {
    return null;
  }
}

/** Script for one kind of request. */
function luaScript(options: WrkOptions): string {
  const headers = Object.entries({ ...BROWSER_HEADERS, ...options.headers })
    .map(([name, value]) => `wrk.headers[${JSON.stringify(name)}] = ${JSON.stringify(value)}`)
    .join('\n');
  return `${headers}\n${requestLua(options)}\n${pauseLua(options.pauseMs ?? 0)}\n${DONE_LUA}`;
}

function pauseLua(pauseMs: number): string {
  if (pauseMs === 0) return '';
  const leastMs = Math.floor(pauseMs / 2);
  return `function delay() return math.random(${leastMs}, ${Math.round(2 * pauseMs) - leastMs}) end`;
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
