// Services of the mesh as the gateway's machinery knows them: for each port a virtual listener with the rules
// of the service, and a backend of the workloads behind it.
//
// Pure. Names of listeners, routes and backends are `namespace/hostname:port`.
// Workloads of a port declared `http` get HTTP/1.1 whatever the client speaks, those of `http2` and `grpc` HTTP/2, and
// where the port says nothing (`auto`) what the client speaks.

import type { BackendConfig, EndpointConfig, ListenerConfig, RouteConfig, RuleConfig } from '../../config/config.ts';
import { formatAddress } from '../../config/names.ts';
import type { MeshIndex } from '../model/mesh-index.ts';
import { identityOf, type Service, type ServicePort, serviceKey, type Workload } from '../model/mesh-state.ts';
import { type ConfigParts, directRule, streamRoute, virtualListener } from './config-parts.ts';

/** What services are built from. */
export interface ServicesInput {
  index: MeshIndex;
  /** Settings of a backend of which nothing is said. */
  backend: BackendConfig;
  /** Zone of this node; empty: unknown. */
  zone: string;
}

/** Name of listener, route and backend of a port. */
export function portName(service: string, port: number): string {
  return `${service}:${port}`;
}

/** Adds every service with virtual addresses, the backends that rules name, and the destinations of both. */
export function addServices(parts: ConfigParts, input: ServicesInput): void {
  const backends = new Backends(input, parts);
  for (const [key, service] of input.index.state.services) {
    if (service.vips.length === 0) continue;
    for (const port of service.ports) {
      const name = portName(key, port.servicePort);
      parts.listeners.push(portListener(name, port));
      if (port.protocol === 'tcp' || port.protocol === 'auto') {
        parts.streamRoutes.push(streamRoute(name, [name], backends.of(key, port.servicePort)));
      }
      if (port.protocol !== 'tcp') parts.routes.push(portRoute(name, key, service, port, backends));
      for (const vip of service.vips) {
        // Who was first has an address that two services claim; the control plane sees to it that there are none.
        const at = formatAddress(vip, port.servicePort);
        if (!parts.destinations.has(at)) parts.destinations.set(at, { listener: name, identity: null });
      }
    }
    // A port that a service does not have leads nowhere, least of all around the mesh.
    for (const vip of service.vips) parts.destinations.set(vip, { listener: parts.refused(), identity: null });
  }
}

function portListener(name: string, { servicePort, protocol }: ServicePort): ListenerConfig {
  const protocols: ListenerConfig['protocols'] =
    protocol === 'tcp' ? ['tcp'] : protocol === 'http2' || protocol === 'grpc' ? ['h2c'] : ['http/1.1', 'h2c'];
  return virtualListener(name, protocols, protocol === 'auto', servicePort);
}

function portRoute(
  name: string,
  key: string,
  service: Service,
  { servicePort }: ServicePort,
  backends: Backends,
): RouteConfig {
  const rules =
    service.rules === null
      ? [directRule(backends.of(key, servicePort))]
      : service.rules.map((rule) => ruleAt(rule, servicePort, backends));
  return { name, listeners: [name], hostnames: null, rules };
}

/** A rule with the backends of one port in place of the services that it names. */
function ruleAt(rule: RuleConfig, servicePort: number, backends: Backends): RuleConfig {
  const { backendRefs, policy } = rule;
  return {
    ...rule,
    backendRefs: backendRefs.map((ref) => ({ ...ref, name: backends.of(ref.name, servicePort) })),
    policy:
      policy === null || policy.mirrors.length === 0
        ? policy
        : {
            ...policy,
            mirrors: policy.mirrors.map((mirror) => ({ ...mirror, backend: backends.of(mirror.backend, servicePort) })),
          },
  };
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
    // Rules may name what this node does not know (yet): nobody is there.
    if (service === undefined || port === undefined) return { ...defaults, name, endpoints: [] };
    const settings = service.backend ?? defaults;
    if (settings.healthCheck !== null) {
      this.parts.problems.add(`${serviceKey(service)}: healthCheck is not used in the mesh, outlierDetection is`);
    }
    const { balancer } = settings.policy;
    return {
      ...settings,
      name,
      protocol: port.protocol === 'http2' || port.protocol === 'grpc' ? 'h2c' : 'http/1.1',
      sameProtocol: port.protocol === 'auto',
      healthCheck: null,
      endpoints: index.endpointsOf(serviceKey(service)).flatMap((workload) => endpointsOf(workload, service, port)),
      policy:
        balancer === null || balancer.zoneAware === null
          ? settings.policy
          : { ...settings.policy, balancer: { ...balancer, zoneAware: { ...balancer.zoneAware, zone } } },
    };
  }
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
