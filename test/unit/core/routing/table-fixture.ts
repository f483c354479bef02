// Builds route tables for tests from short descriptions, and looks requests up in them.

import { compileRouteTable } from '../../../../config/compile-routes.ts';
import type { MatchConfig, RouteConfig } from '../../../../config/config.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { RouteRequest } from '../../../../core/routing/route-request.ts';
import { RouteTable } from '../../../../core/routing/route-table.ts';

/** A match: `=/a` is Exact, `~/a.*` a regular expression, `/a` PathPrefix; or written out. */
export type MatchSketch = string | MatchConfig;

/** A route with one rule for each list of matches. */
export interface RouteSketch {
  listeners?: string[];
  hostnames?: string[];
  rules: MatchSketch[][];
}

/** The path of a short description. */
export function sketchPath(text: string): MatchConfig['path'] {
  if (text.startsWith('=')) return { type: 'Exact', value: text.slice(1) };
  return text.startsWith('~')
    ? { type: 'RegularExpression', value: text.slice(1) }
    : { type: 'PathPrefix', value: text };
}

/** A match with conditions; those left out ask for nothing. */
export function sketchMatch(path: string, conditions: Partial<NonNullable<MatchConfig['conditions']>>): MatchConfig {
  return {
    path: sketchPath(path),
    conditions: {
      method: null,
      headers: [],
      queryParams: [],
      grpc: null,
      clientCertificate: null,
      sourceAddresses: null,
      ...conditions,
    },
  };
}

/** Routes named r0, r1, ... whose rules all refer to one backend. */
export function sketchRoutes(sketches: RouteSketch[]): RouteConfig[] {
  return sketches.map(({ listeners, hostnames, rules }, index) => ({
    name: `r${index}`,
    listeners: listeners ?? null,
    hostnames: hostnames ?? null,
    rules: rules.map((matches) => ({
      matches: matches.map((match) => (typeof match === 'string' ? { path: sketchPath(match) } : match)),
      requestTimeoutMs: 0,
      backendRequestTimeoutMs: 0,
      grpcWeb: false,
      policy: null,
      backendRefs: [{ name: 'b', weight: 1, policy: null }],
    })),
  }));
}

/** Compiles sketches; listeners are l0 to l39. */
export function buildTable(sketches: RouteSketch[]): RouteTable {
  const listeners = Array.from({ length: 40 }, (_, index) => `l${index}`);
  return new RouteTable(compileRouteTable({ listeners, backends: ['b'], routes: sketchRoutes(sketches) }));
}

/** Looks up a host and path, as they would lie in a receive buffer with other bytes around them. */
export function lookup(table: RouteTable, host: string, path: string, listener = 0): number {
  const memory = Buffer.from(`GET ${path}/x?y.z HTTP/1.1\r\nHost: a.${host}.com:80\r\n`, 'latin1');
  const request = new RouteRequest(memory, new RequestHead());
  request.listener = listener;
  request.hostOffset = memory.indexOf('Host: a.', path.length, 'latin1') + 8;
  request.hostLength = host.length;
  request.pathOffset = 4;
  request.pathLength = path.length;
  return table.lookup(request);
}

/** A whole request. */
export interface RequestSketch {
  method?: string;
  host?: string;
  /** Path and query. */
  target?: string;
  /** Lines without their ends. */
  headers?: string[];
  listener?: number;
  certificate?: RouteRequest['certificate'];
  client?: RouteRequest['client'];
}

/** The request as the packet path hands it to the table, its head read by the parser. Throws on a head that is none. */
export function routeRequest(sketch: RequestSketch): RouteRequest {
  const { method = 'GET', host = 'h', target = '/', headers = [], listener = 0 } = sketch;
  const lines = [`${method} ${target} HTTP/1.1`, `host: ${host}`, ...headers];
  const text = Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1');
  // The parser may look at bytes behind a head.
  const memory = new Uint8Array(text.length + 64);
  memory.set(text);
  const head = new RequestHead();
  const limits = { headBytesMax: 65536, headerCountMax: 256, uriBytesMax: 65536 };
  const length = parseRequestHead(memory, 0, text.length, limits, head);
  if (length <= 0) throw new Error(`not a request head (${length}): ${lines.join(' | ')}`);
  const request = new RouteRequest(memory, head);
  request.listener = listener;
  request.hostOffset = head.authorityOffset;
  request.hostLength = head.hostLength;
  request.pathOffset = head.pathOffset;
  request.pathLength = head.pathOnlyLength;
  request.certificate = sketch.certificate ?? null;
  request.client = sketch.client ?? null;
  return request;
}

/** Looks up a whole request. */
export function lookupRequest(table: RouteTable, sketch: RequestSketch): number {
  return table.lookup(routeRequest(sketch));
}
