// Checks that look at more than one place of a configuration: names, references, relations.
//
// Control thread. Runs even when the schema has found mistakes, so that all errors show at once;
// therefore it takes nothing for granted about the shape of what it reads, and skips what is wrong
// already. Spec: Gateway API HTTPRouteTimeouts (backendRequest at most request), BackendRef.weight.

import { checkBalancing } from './balancer-semantics.ts';
import { checkCompressionAndMirrors } from './compression-semantics.ts';
import { checkEndpoints } from './endpoint-semantics.ts';
import { describeValue } from './errors.ts';
import { checkFilters } from './filter-semantics.ts';
import { checkHealth } from './health-semantics.ts';
import { checkMatches } from './match-semantics.ts';
import { canonicalHostname, formatAddress, hostnameProblem, listenAddress, listenAddressProblem } from './names.ts';
import { checkAdaptiveConcurrency, checkRateLimits } from './rate-limit-semantics.ts';
import { checkRetries } from './retry-semantics.ts';
import { ADMIN_ADDRESS_DEFAULT, configSchema } from './schema.ts';
import { nodeOf } from './schema-builder.ts';
import {
  checkReference,
  isMapping,
  items,
  type Mapping,
  mappings,
  names,
  type Report,
  unique,
} from './semantics-walk.ts';
import { checkStreams } from './stream-semantics.ts';
import { checkTls } from './tls-semantics.ts';
import { checkTunnels } from './tunnel-schema.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';
import { about, type Violation } from './validate.ts';
import type { Path } from './yaml.ts';

/** All violations of rules that the schema cannot say. */
export function checkSemantics(root: unknown): Violation[] {
  const violations: Violation[] = [];
  const report: Report = (violation) => violations.push(violation);
  if (!isMapping(root)) return violations;
  for (const section of ['listeners', 'routes', 'backends']) checkUniqueNames(root, section, report);
  checkListenAddresses(root, report);
  checkEndpoints(root, report);
  checkRoutes(root, report);
  checkMatches(root, report);
  checkLimits(root, report);
  checkTls(root, report);
  checkRateLimits(root, report);
  checkAdaptiveConcurrency(root, report);
  checkFilters(root, report);
  checkCompressionAndMirrors(root, report);
  checkHealth(root, report);
  checkBalancing(root, report);
  checkStreams(root, report);
  checkRetries(root, report);
  checkTunnels(root, report);
  return violations;
}

function checkUniqueNames(root: Mapping, section: string, report: Report): void {
  const seen = new Map<string, Path>();
  for (const [item, path] of mappings(root[section], [section])) {
    unique(seen, item.name, [...path, 'name'], 'the name', 'each name once', report);
  }
}

/** One address of the file that a socket is to listen on. */
interface ListenPlace {
  host: string;
  port: number;
  path: Path;
}

/**
 * Listeners on overlapping addresses of one port do not clash: their sockets share the port
 * (SO_REUSEPORT), and the kernel gives a connection to the most specific address. IPv6 sockets of
 * listeners take IPv6 only. The admin port shares with nobody, and `[::]` of it takes IPv4 too.
 */
function checkListenAddresses(root: Mapping, report: Report): void {
  const seen = new Map<string, Path>();
  const written = isMapping(root.admin) ? root.admin.address : root.admin;
  const admin = listenPlace(written ?? ADMIN_ADDRESS_DEFAULT, ['admin', 'address']);
  if (admin !== undefined) seen.set(formatAddress(admin.host, admin.port), admin.path);
  for (const [item, path] of mappings(root.listeners, ['listeners'])) {
    const listener = listenPlace(item.address, [...path, 'address']);
    if (listener === undefined) continue;
    const address = formatAddress(listener.host, listener.port);
    if (admin !== undefined && clashesWithAdmin(listener, admin)) {
      const adminAddress = `${formatAddress(admin.host, admin.port)}${written === undefined ? ', the default' : ''}`;
      report({
        path: listener.path,
        part: 'value',
        problem: `${about(listener.path)}the address ${JSON.stringify(address)} clashes with admin.address (${adminAddress}), because ${overlap(listener, admin)}`,
        expected: 'different ports for listeners and the admin port',
      });
    } else {
      unique(seen, address, listener.path, 'the address', 'each address once', report);
    }
  }
}

/** A valid address with a fixed port; port 0 is a different free port every time. */
function listenPlace(address: unknown, path: Path): ListenPlace | undefined {
  if (typeof address !== 'string' || listenAddressProblem(address) !== undefined) return undefined;
  const { host, port } = listenAddress(address);
  return port === 0 ? undefined : { host, port, path };
}

/** Whether one of two addresses is a wildcard that takes the other in; equal ones are `unique`'s. */
function clashesWithAdmin(listener: ListenPlace, admin: ListenPlace): boolean {
  if (listener.port !== admin.port || listener.host === admin.host) return false;
  if (admin.host === '::') return true;
  if (isIpv6(listener.host) !== isIpv6(admin.host)) return false;
  return isWildcard(listener.host) || isWildcard(admin.host);
}

function overlap(listener: ListenPlace, admin: ListenPlace): string {
  if (!isWildcard(admin.host)) {
    return `it takes port ${listener.port} of every ${isIpv6(listener.host) ? 'IPv6' : 'IPv4'} address`;
  }
  return `that takes port ${admin.port} of every ${isIpv6(admin.host) ? 'address, IPv4 included' : 'IPv4 address'}`;
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::';
}

function isIpv6(host: string): boolean {
  return host.includes(':');
}

function checkRoutes(root: Mapping, report: Report): void {
  const listeners = names(root.listeners);
  const backends = names(root.backends);
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    for (const [listener, at] of items(route.listeners, [...path, 'listeners'])) {
      checkReference(listener, at, 'listener', listeners, report);
    }
    const hostnames = new Map<string, Path>();
    for (const [hostname, at] of items(route.hostnames, [...path, 'hostnames'])) {
      if (typeof hostname !== 'string' || hostnameProblem(hostname) !== undefined) continue;
      unique(hostnames, canonicalHostname(hostname), at, 'the hostname', 'each hostname once', report);
    }
    for (const [rule, at] of mappings(route.rules, [...path, 'rules'])) checkRule(rule, at, backends, report);
  }
}

function checkRule(rule: Mapping, path: Path, backends: Set<string> | undefined, report: Report): void {
  let weightTotal = 0;
  let refs = 0;
  for (const [ref, at] of items(rule.backendRefs, [...path, 'backendRefs'])) {
    refs++;
    if (!isMapping(ref)) return;
    checkReference(ref.name, [...at, 'name'], 'backend', backends, report);
    // A weight that is no number has been reported; it must not make the sum zero as well.
    weightTotal += ref.weight === undefined || typeof ref.weight !== 'number' ? 1 : ref.weight;
  }
  if (refs > 0 && weightTotal === 0) {
    const at = [...path, 'backendRefs'];
    const problem = `${about(at)}the weights add up to 0`;
    report({ path: at, part: 'key', problem, expected: 'at least one weight above 0' });
  }
  if (!isMapping(rule.timeouts)) return;
  const requestMs = parseDurationMs(String(rule.timeouts.request ?? '0'));
  const backendRequestMs = parseDurationMs(String(rule.timeouts.backendRequest ?? '0'));
  if (!requestMs || !backendRequestMs || backendRequestMs <= requestMs) return;
  const at = [...path, 'timeouts', 'backendRequest'];
  report({
    path: at,
    part: 'value',
    problem: `${about(at)}${describeValue(rule.timeouts.backendRequest)} is longer than timeouts.request`,
    expected: `at most ${describeValue(rule.timeouts.request)}`,
  });
}

function checkLimits(root: Mapping, report: Report): void {
  const limits = isMapping(root.limits) ? root.limits : {};
  const defaults = nodeOf(configSchema).properties!.limits!.properties!;
  const uri = limits.maxUriLength ?? defaults.maxUriLength!.default;
  const head = limits.maxRequestHeadSize ?? defaults.maxRequestHeadSize!.default;
  const uriBytes = sizeOf(uri);
  const headBytes = sizeOf(head);
  if (uriBytes === undefined || headBytes === undefined || uriBytes <= headBytes) return;
  // Points at the one that was written; both sides have defaults.
  const at: Path = ['limits', limits.maxUriLength === undefined ? 'maxRequestHeadSize' : 'maxUriLength'];
  report({
    path: at,
    part: 'value',
    problem: `limits.maxUriLength (${uri}) is larger than limits.maxRequestHeadSize (${head})`,
    expected: 'a request head that has room for the longest target',
  });
}

function sizeOf(value: unknown): number | undefined {
  return typeof value === 'string' || typeof value === 'number' ? parseSizeBytes(String(value)) : undefined;
}
