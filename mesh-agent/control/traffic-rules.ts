// HTTP rules and backend settings of services, in the gateway's vocabulary and by the gateway's own schema.
//
// Control threads; runs where a policy is written (the control plane) and where it is used (the node
// proxy), which takes nothing on trust. A rule's backendRefs name services; without any, the service itself.
// Spec: config/schema.ts; Gateway API HTTPRoute with a Service as parent (GAMMA).

import type { BackendConfig, Config, HealthCheckConfig, RuleConfig } from '../../config/config.ts';
import { normalise } from '../../config/normalise.ts';
import { type ConfigInput, configSchema } from '../../config/schema.ts';
import { mapping, maybe, nodeOf, type SchemaNode } from '../../config/schema-builder.ts';
import { checkSemantics } from '../../config/semantics.ts';
import { isMapping, items, type Mapping, mappings, refuse } from '../../config/semantics-walk.ts';
import { pathText, type Violation, validate } from '../../config/validate.ts';
import type { Path } from '../../config/yaml.ts';
import { MeshPort } from '../../core/tcp/mesh-ports.ts';
import type { Service, ServicePort } from '../model/mesh-state.ts';

/** Keys of a gateway's backend that make sense for the endpoints of a service; the mesh decides the rest. */
const BACKEND_KEYS = [
  ...['loadBalancer', 'healthCheck', 'outlierDetection', 'circuitBreaker', 'adaptiveConcurrency', 'retryBudget'],
  ...['http2', 'connectTimeout', 'idleTimeout', 'maxIdleConnections', 'maxRequestsPerConnection'],
];

const gateway = nodeOf(configSchema).properties!;
const gatewayBackend = gateway.backends!.items!;

const backendSchema: SchemaNode = {
  ...gatewayBackend,
  properties: Object.fromEntries(BACKEND_KEYS.map((key) => [key, gatewayBackend.properties![key]!])),
  required: [],
  description: 'How the endpoints of the service are used. Absent: by the defaults.',
};

type Schema = Parameters<typeof nodeOf>[0];

/** Keys `rules` and `backend` of a traffic policy. */
export const trafficProperties = {
  rules: maybe({
    ...gateway.routes!.items!.properties!.rules!,
    description:
      'Rules for requests, as of a route of a gateway; `backendRefs` name services. Absent: all requests go to the endpoints.',
  } as Schema),
  backend: maybe(backendSchema as Schema),
};

const trafficSchema = mapping(trafficProperties);

/** Ports that belong to proxies in the namespaces of workloads: nothing of a workload is there. */
const PROXY_PORTS: readonly unknown[] = Object.values(MeshPort);

/** Why `isBlindCheck` holds, as the end of a sentence. */
export const BLIND_CHECK = 'a TCP check of a port that speaks HTTP would end at the proxy of the workload';

/** What a service's traffic policy comes to. */
export interface Traffic {
  rules: RuleConfig[] | null;
  backend: BackendConfig | null;
  /** Both as written, with services named by their keys: JSON that `readConfiguration` reads. */
  configuration: string;
}

/** What is wrong with a traffic policy; paths start with `rules` or `backend`. */
export interface TrafficProblems {
  violations: Violation[];
  /** Names of services that do not exist. */
  missing: string[];
}

/**
 * Parses `rules` and `backend` of the service with this key. `resolve` gives the key of a service by the
 * name that a rule calls it, or undefined. Leaves `written` as it is.
 */
export function parseTraffic(
  written: unknown,
  service: string,
  resolve: (name: string) => string | undefined,
): Traffic | TrafficProblems {
  const violations = validate(trafficSchema, written);
  const missing: string[] = [];
  if (violations.length > 0) return { violations, missing };
  const traffic = structuredClone(written) as Mapping;
  const services = new Set<string>([service]);
  const report = (violation: Violation): void => void violations.push(violation);
  for (const [holder, path] of namedServices(traffic)) {
    const name = holder.name as string;
    const key = resolve(name);
    if (key === undefined) {
      missing.push(name);
      // What else is wrong shows all the same.
      services.add(name);
      refuse(report, [...path, 'name'], `there is no service ${JSON.stringify(name)}`);
    } else {
      holder.name = key;
      services.add(key);
    }
  }
  for (const [rule] of mappings(traffic.rules, ['rules'])) rule.backendRefs ??= defaultRefs(rule, service);
  for (const [filter, path] of ruleFilters(traffic)) {
    // The file would be one of the node, whose files a policy has no business with.
    const file = isMapping(filter.directResponse) ? filter.directResponse.bodyFile : undefined;
    const at = [...path, 'directResponse', 'bodyFile'];
    if (file !== undefined) refuse(report, at, 'files cannot be used in the mesh', 'the body itself, in `body`');
  }
  checkHealthCheck(traffic.backend, report);
  const configuration = JSON.stringify(traffic);
  const input = gatewayInput(traffic, service, services);
  if (violations.length === missing.length) violations.push(...checkSemantics(input).map(asWritten));
  if (violations.length > 0) return { violations, missing };
  const config = normalise(input as unknown as ConfigInput, '/');
  return {
    rules: traffic.rules === undefined ? null : config.routes[0]!.rules,
    backend: traffic.backend === undefined ? null : { ...config.backends[0]!, endpoints: [] },
    configuration,
  };
}

/** Reads what `parseTraffic` gave as `configuration`. Throws an Error that says what is wrong with it. */
export function readConfiguration(json: string, service: string): Traffic {
  const parsed = parseTraffic(JSON.parse(json), service, (name) => (name.includes('/') ? name : undefined));
  if ('violations' in parsed) throw new Error(parsed.violations.map(({ problem }) => problem).join('; '));
  return parsed;
}

/**
 * Whether a check would say nothing of the workloads behind a port of a service: their proxies take connections for a
 * port with HTTP themselves, and go on to the workload with requests only.
 */
export function isBlindCheck(
  { type, port: other }: Pick<HealthCheckConfig, 'type' | 'port'>,
  { ports }: Pick<Service, 'ports'>,
  port: ServicePort,
): boolean {
  if (type !== 'TCP') return false;
  const checked = other === 0 ? port : ports.find(({ targetPort }) => targetPort === other);
  return checked !== undefined && checked.protocol !== 'tcp' && checked.protocol !== 'auto';
}

/** Reports a health check that can be made by a gateway and not in the mesh. */
function checkHealthCheck(backend: unknown, report: (violation: Violation) => void): void {
  const check = isMapping(backend) ? backend.healthCheck : undefined;
  if (!isMapping(check)) return;
  const at = ['backend', 'healthCheck'];
  if (check.type === 'HTTPS') {
    const problem = '"HTTPS" is not possible in the mesh, where checks go through tunnels that are encrypted already';
    refuse(report, [...at, 'type'], problem, 'HTTP, TCP or GRPC', 'HTTP');
  }
  if (PROXY_PORTS.includes(check.port)) {
    refuse(report, [...at, 'port'], `${check.port} is a port of the proxy of each workload`, 'one of the workload');
  }
}

/**
 * The gateway's configuration that `configuration` of a valid policy stands for, as written with defaults, and as it is
 * used. How many endpoints there are is left open.
 */
export function asGateway(configuration: string, service: string): { input: ConfigInput; config: Config } {
  const traffic = JSON.parse(configuration) as Mapping;
  const services = new Set([service, ...[...namedServices(traffic)].map(([{ name }]) => name as string)]);
  const input = gatewayInput(traffic, service, services, 'workloads.invalid:1') as unknown as ConfigInput;
  return { input, config: normalise(input, '/') };
}

/** A gateway's configuration with one route and one backend that stand for the service. */
function gatewayInput(
  traffic: Mapping,
  service: string,
  services: ReadonlySet<string>,
  endpoint = '127.0.0.1:1',
): Mapping {
  // The endpoints are the service's workloads, which come and go; one stands for them here.
  const endpoints = [endpoint];
  const others = [...services].filter((key) => key !== service).map((name) => ({ name, endpoints }));
  const backend = traffic.backend as Mapping | undefined;
  // The ports say which protocol is spoken; settings of HTTP/2 are for those where it is that.
  const protocol = backend?.http2 === undefined ? {} : { protocol: 'h2c' };
  return structuredClone({
    // Each node proxy puts its own in place of it.
    zone: 'any',
    // Which of them have one is not known here; those that have none count for themselves, and say so.
    redis: { address: '127.0.0.1:6379' },
    listeners: [{ name: 'mesh', address: '127.0.0.1:0' }],
    routes: traffic.rules === undefined ? [] : [{ name: service, rules: traffic.rules }],
    backends: [{ ...protocol, ...backend, name: service, endpoints }, ...others],
  });
}

function* ruleFilters(traffic: Mapping): Generator<[Mapping, Path]> {
  for (const [rule, path] of mappings(traffic.rules, ['rules'])) {
    yield* mappings(rule.filters, [...path, 'filters']);
    for (const [ref, at] of mappings(rule.backendRefs, [...path, 'backendRefs'])) {
      yield* mappings(ref.filters, [...at, 'filters']);
    }
  }
}

/** Every mapping of the rules whose `name` is a service. */
function* namedServices(traffic: Mapping): Generator<[Mapping, Path]> {
  for (const [rule, path] of mappings(traffic.rules, ['rules'])) {
    for (const [ref, at] of items(rule.backendRefs, [...path, 'backendRefs'])) yield [ref as Mapping, at];
  }
  for (const [{ requestMirror: mirror }, path] of ruleFilters(traffic)) {
    if (isMapping(mirror) && isMapping(mirror.backendRef)) {
      yield [mirror.backendRef, [...path, 'requestMirror', 'backendRef']];
    }
  }
}

/** A rule that does not answer by itself is for the service that it belongs to. */
function defaultRefs(rule: Mapping, service: string): unknown {
  const answers = ['RequestRedirect', 'DirectResponse'];
  for (const [{ type }] of mappings(rule.filters, [])) if (answers.includes(type as string)) return undefined;
  return [{ name: service }];
}

/** A violation of the configuration that `gatewayInput` made, in terms of the policy. */
function asWritten(violation: Violation): Violation {
  const { path } = violation;
  const own = pathInPolicy(path) ?? path;
  return { ...violation, path: own, problem: violation.problem.replaceAll(pathText(path), pathText(own)) };
}

/** A path of the configuration that `gatewayInput` made, in the policy, from `rules` or `backend`; null: not there. */
export function pathInPolicy([section, index, ...rest]: Path): Path | null {
  if (section === 'routes') return rest;
  return section === 'backends' && index === 0 ? ['backend', ...rest] : null;
}
