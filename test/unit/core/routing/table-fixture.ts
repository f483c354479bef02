// Builds route tables for tests from short descriptions, and looks requests up in them.

import { compileRouteTable } from '../../../../config/compile-routes.ts';
import type { RouteConfig } from '../../../../config/config.ts';
import { RouteTable } from '../../../../core/routing/route-table.ts';

/** A route with one rule for each list of matches; `=/a` is Exact, `/a` PathPrefix. */
export interface RouteSketch {
  listeners?: string[];
  hostnames?: string[];
  rules: string[][];
}

/** Routes named r0, r1, ... whose rules all refer to one backend. */
export function sketchRoutes(sketches: RouteSketch[]): RouteConfig[] {
  return sketches.map(({ listeners, hostnames, rules }, index) => ({
    name: `r${index}`,
    listeners: listeners ?? null,
    hostnames: hostnames ?? null,
    rules: rules.map((matches) => ({
      matches: matches.map((match) =>
        match.startsWith('=')
          ? { path: { type: 'Exact', value: match.slice(1) } }
          : { path: { type: 'PathPrefix', value: match } },
      ),
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
  const hostOffset = memory.indexOf('Host: a.', path.length, 'latin1') + 8;
  return table.lookup(memory, listener, hostOffset, host.length, 4, path.length);
}
