// Services of the mesh as the gateway's machinery knows them: for each port a virtual listener with the rules
// of the service, and a backend of the workloads behind it.
//
// Pure. What was made of a service is remembered by the service itself: versions of the mesh are immutable, and of
// thousands of services a change concerns few (what stays the same object costs nothing further on, see
// core/workers/snapshot-delta.ts).
// Names of listeners, routes and backends are `namespace/hostname:port`.
// Rate limits are `namespace/hostname/name`: each service has its own, which all of its ports share. The name is also that
// of their count in Redis, so that nothing of the node may be in it.
// Workloads of a port declared `http` get HTTP/1.1 whatever the client speaks, those of `http2` and `grpc` HTTP/2, and
// where the port says nothing (`auto`) what the client speaks.

import type {
  BackendConfig,
  EndpointConfig,
  ListenerConfig,
  RouteConfig,
  RuleConfig,
  StreamRouteConfig,
} from '../../config/config.ts';
import { formatAddress } from '../../config/names.ts';
import { isEqualData } from '../../core/workers/equal-data.ts';
import { BLIND_CHECK, isBlindCheck } from '../control/traffic-rules.ts';
import type { MeshIndex } from '../model/mesh-index.ts';
import { identityOf, type Service, type ServicePort, serviceKey, type Workload } from '../model/mesh-state.ts';
import { type ConfigParts, type Destination, directRule, streamRoute, virtualListener } from './config-parts.ts';

/** What services are built from. */
export interface ServicesInput {
  index: MeshIndex;
  /** Settings of a backend of which nothing is said. */
  backend: BackendConfig;
  /** Zone of this node; empty: unknown. */
  zone: string;
  /** Whether all is known that belongs to a service. */
  isWhole: (service: Service) => boolean;
  /** Whether this node has a Redis to count global rate limits in. */
  hasRedis: boolean;
}

/** Name of listener, route and backend of a port. */
export function portName(service: string, port: number): string {
  return `${service}:${port}`;
}

/** Adds every service with virtual addresses, the backends that rules name, and the destinations of both. */
export function addServices(parts: ConfigParts, input: ServicesInput): void {
  const backends = new Backends(input, parts);
  for (const [key, service] of input.index.state.services) {
    if (service.vips.length === 0 || !input.isWhole(service)) continue;
    service.ports.forEach((port, index) => {
      const part = madeOf(key, service)[index]!;
      parts.listeners.push(part.listener);
      if (part.stream !== null) {
        backends.of(key, port.servicePort);
        parts.streamRoutes.push(part.stream);
      }
      if (port.protocol !== 'tcp') {
        parts.routes.push(portRoute(part, key, service, port, backends));
        if (!input.hasRedis) reportUncounted(parts, key, service);
      }
      for (const vip of service.vips) {
        // Who was first has an address that two services claim; the control plane sees to it that there are none.
        const at = formatAddress(vip, port.servicePort);
        if (!parts.destinations.has(at)) parts.destinations.set(at, part.destination);
      }
    });
    // A port that a service does not have leads nowhere, least of all around the mesh.
    for (const vip of service.vips) parts.destinations.set(vip, parts.refused());
  }
}

/** What was made of a port of a service. */
interface MadePort {
  listener: ListenerConfig;
  destination: Destination;
  /** Null: all its connections are HTTP. */
  stream: StreamRouteConfig | null;
  /** Null: not made yet. */
  route: { config: RouteConfig; backends: string[] } | null;
  backend: { config: BackendConfig; workloads: readonly Workload[]; defaults: BackendConfig; zone: string } | null;
}

/** What was made of services, in the order of their ports. */
const made = new WeakMap<Service, MadePort[]>();

function madeOf(key: string, service: Service): MadePort[] {
  let parts = made.get(service);
  if (parts === undefined) {
    parts = service.ports.map((port) => {
      const name = portName(key, port.servicePort);
      const hasStream = port.protocol === 'tcp' || port.protocol === 'auto';
      return {
        listener: portListener(name, port),
        destination: { listener: name, identity: null },
        // A port of the service's own leads to that port.
        stream: hasStream ? streamRoute(name, [name], name) : null,
        ...{ route: null, backend: null },
      };
    });
    made.set(service, parts);
  }
  return parts;
}

function portListener(name: string, { servicePort, protocol }: ServicePort): ListenerConfig {
  const protocols: ListenerConfig['protocols'] =
    protocol === 'tcp' ? ['tcp'] : protocol === 'http2' || protocol === 'grpc' ? ['h2c'] : ['http/1.1', 'h2c'];
  return virtualListener(name, protocols, protocol === 'auto', servicePort);
}

function portRoute(
  part: MadePort,
  key: string,
  { rules }: Service,
  { servicePort }: ServicePort,
  backends: Backends,
): RouteConfig {
  // Which backends rules lead to depends on the services that they name, too.
  const names: string[] = [];
  const backendOf = (service: string): string => {
    const name = backends.of(service, servicePort);
    names.push(name);
    return name;
  };
  if (rules === null) backendOf(key);
  else for (const rule of rules) visitServices(rule, backendOf);
  const { route } = part;
  if (route !== null && isEqualData(route.backends, names)) return route.config;
  const { name } = part.listener;
  const of = (service: string): string => backends.of(service, servicePort);
  const made = rules === null ? [directRule(of(key))] : rules.map((rule) => ruleAt(rule, key, of));
  part.route = { config: { name, listeners: [name], hostnames: null, rules: made }, backends: names };
  return part.route.config;
}

/** Calls `visit` with the services that a rule names. */
function visitServices({ backendRefs, policy }: RuleConfig, visit: (service: string) => void): void {
  for (const { name } of backendRefs) visit(name);
  for (const { backend } of policy?.mirrors ?? []) visit(backend);
}

/** A rule of a service with the backends of one port in place of the services that it names. */
function ruleAt(rule: RuleConfig, key: string, backendOf: (service: string) => string): RuleConfig {
  const { backendRefs, policy } = rule;
  return {
    ...rule,
    backendRefs: backendRefs.map((ref) => ({ ...ref, name: backendOf(ref.name) })),
    policy:
      policy === null || policy.mirrors.length + policy.rateLimits.length === 0
        ? policy
        : {
            ...policy,
            mirrors: policy.mirrors.map((mirror) => ({ ...mirror, backend: backendOf(mirror.backend) })),
            // Services that know nothing of each other may call their limits the same.
            rateLimits: policy.rateLimits.map((limit) => ({
              ...limit,
              name: `${key}/${limit.name}`,
              shownAs: limit.name,
            })),
          },
  };
}

/** Names the limits that were meant for the whole mesh and that this node can only count for itself. */
function reportUncounted(parts: ConfigParts, key: string, { rules }: Service): void {
  const names = new Set<string>();
  for (const { policy } of rules ?? []) {
    for (const { global, name } of policy?.rateLimits ?? []) if (global) names.add(name);
  }
  if (names.size === 0) return;
  const list = [...names].join(', ');
  parts.problems.add(`${key}: global rate limits (${list}) are counted on this node alone, which has no redis`);
}

/** Backends of service ports, each made when something first needs it. */
class Backends {
  private readonly input: ServicesInput;
  private readonly parts: ConfigParts;
  private readonly made = new Set<string>();

  constructor(input: ServicesInput, parts: ConfigParts) {
    this.input = input;
    this.parts = parts;
  }

  /** Name of the backend of a service that a request to `wanted` goes to. */
  of(key: string, wanted: number): string {
    const service = this.input.index.state.services.get(key);
    const port = service === undefined ? undefined : portFor(service, wanted);
    const name = portName(key, port?.servicePort ?? wanted);
    if (this.made.has(name)) return name;
    this.made.add(name);
    this.parts.backends.push(this.backend(name, service, port));
    return name;
  }

  private backend(name: string, service: Service | undefined, port: ServicePort | undefined): BackendConfig {
    const { backend: defaults, index, zone } = this.input;
    const workloads = service === undefined ? [] : index.endpointsOf(serviceKey(service));
    // Rules may name what this node does not know (yet): nobody is there.
    if (service === undefined || port === undefined) return { ...defaults, name, endpoints: [] };
    const settings = service.backend ?? defaults;
    const isBlind = settings.healthCheck !== null && isBlindCheck(settings.healthCheck, service, port);
    if (isBlind) this.parts.problems.add(`${name}: not checked, as ${BLIND_CHECK}`);
    const { balancer } = settings.policy;
    const part = madeOf(serviceKey(service), service)[service.ports.indexOf(port)]!;
    const known = part.backend;
    if (
      known !== null &&
      known.defaults === defaults &&
      known.zone === zone &&
      isSameList(known.workloads, workloads)
    ) {
      return known.config;
    }
    const config: BackendConfig = {
      ...settings,
      name,
      protocol: port.protocol === 'http2' || port.protocol === 'grpc' ? 'h2c' : 'http/1.1',
      sameProtocol: port.protocol === 'auto',
      healthCheck: isBlind ? null : settings.healthCheck,
      endpoints: workloads.flatMap((workload) => endpointsOf(workload, service, port)),
      policy:
        balancer === null || balancer.zoneAware === null
          ? settings.policy
          : { ...settings.policy, balancer: { ...balancer, zoneAware: { ...balancer.zoneAware, zone } } },
    };
    part.backend = { config, workloads, defaults, zone };
    return config;
  }
}

function isSameList<T>(a: readonly T[], b: readonly T[]): boolean {
  return a.length === b.length && a.every((item, index) => item === b[index]);
}

/** The port that a rule means by the name of a service: of the same number, else the only one, else none. */
function portFor({ ports }: Service, wanted: number): ServicePort | undefined {
  return ports.find(({ servicePort }) => servicePort === wanted) ?? (ports.length === 1 ? ports[0] : undefined);
}

/** Where a workload takes requests for a port of a service; none while it is unhealthy or has no address. */
function endpointsOf(workload: Workload, service: Service, { servicePort }: ServicePort): EndpointConfig[] {
  const { addresses, hostNetwork, labels, locality, protocol, services, status } = workload;
  const [host] = addresses;
  const mapping = services[serviceKey(service)]?.find((one) => one.servicePort === servicePort);
  if (status === 'unhealthy' || host === undefined || mapping === undefined || mapping.targetPort === 0) return [];
  return [
    {
      address: formatAddress(host, mapping.targetPort),
      host,
      port: mapping.targetPort,
      isIp: true,
      srv: false,
      weight: 1,
      policy: { place: { priority: 0, zone: locality.zone, labels: { ...labels } }, draining: status === 'draining' },
      // In the namespace of its node nobody takes tunnels for it.
      ...(protocol === 'hbone' && !hostNetwork ? { identity: identityOf(workload) } : {}),
    },
  ];
}
