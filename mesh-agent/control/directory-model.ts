// From valid documents of a mesh directory to the model. Control thread of the control plane; pure functions.

import { canonicalAddress } from '../../config/networks.ts';
import type { AuthorizationPolicy, MeshMode, PolicyRule, PortMapping, Service, Workload } from '../model/mesh-state.ts';
import type { DocumentOf } from './directory-schema.ts';
import type { Traffic } from './traffic-rules.ts';

/** A workload, with the services that it is an endpoint of, and what is decided for its namespace. */
export function workloadOf(
  { metadata, spec }: DocumentOf<'Workload'>,
  trustDomain: string,
  services: Workload['services'],
  namespaceMode?: MeshMode,
): Workload {
  const { name, namespace = 'default', labels = {} } = metadata;
  const mode = spec.mode ?? namespaceMode;
  return {
    uid: `directory//Workload/${namespace}/${name}`,
    ...{ name, namespace, trustDomain, labels, services },
    serviceAccount: spec.serviceAccount ?? 'default',
    node: spec.node ?? '',
    addresses: [...new Set(spec.addresses.map(canonicalAddress))],
    hostNetwork: spec.hostNetwork ?? false,
    protocol: spec.protocol ?? 'hbone',
    status: spec.status ?? 'healthy',
    locality: {
      region: spec.locality?.region ?? '',
      zone: spec.locality?.zone ?? '',
      subzone: spec.locality?.subzone ?? '',
    },
    canonicalName: labels.app ?? name,
    ...(spec.networkNamespace === undefined ? {} : { networkNamespace: spec.networkNamespace }),
    ...(spec.sidecar === true ? { sidecar: true as const } : {}),
    ...(mode === undefined ? {} : { mode }),
  };
}

/** A service with its traffic policy, if there is one. */
export function serviceOf(document: DocumentOf<'Service'>, domain: string, traffic: Traffic | undefined): Service {
  const { metadata, spec } = document;
  return {
    namespace: metadata.namespace ?? 'default',
    name: metadata.name,
    hostname: hostnameOf(document, domain),
    vips: [...new Set((spec.addresses ?? []).map(canonicalAddress))],
    ports: portsOf(document).map((mapping, index) => ({
      ...mapping,
      protocol: spec.ports[index]!.protocol ?? 'auto',
    })),
    rules: traffic?.rules ?? null,
    backend: traffic?.backend ?? null,
    configuration: traffic?.configuration ?? null,
  };
}

/** Name of a service in DNS. */
export function hostnameOf({ metadata, spec }: DocumentOf<'Service'>, domain: string): string {
  const written = spec.hostname?.toLowerCase().replace(/\.$/, '');
  return written ?? `${metadata.name}.${metadata.namespace ?? 'default'}.svc.${domain}`;
}

/** Ports of a service, and where its workloads listen for them. */
export function portsOf({ spec }: DocumentOf<'Service'>): PortMapping[] {
  return spec.ports.map(({ port, targetPort }) => ({ servicePort: port, targetPort: targetPort ?? port }));
}

/** A policy. A selector without labels is for the whole namespace, as in Istio. */
export function policyOf({ metadata, spec }: DocumentOf<'AuthorizationPolicy'>): AuthorizationPolicy {
  const selector = spec.selector?.matchLabels ?? {};
  return {
    namespace: metadata.namespace ?? 'default',
    name: metadata.name,
    scope: Object.keys(selector).length > 0 ? 'workload' : (spec.scope ?? 'namespace'),
    selector,
    action: spec.action === 'DENY' ? 'deny' : 'allow',
    dryRun: spec.dryRun ?? false,
    rules: (spec.rules ?? []).map(ruleOf),
  };
}

type RuleInput = NonNullable<DocumentOf<'AuthorizationPolicy'>['spec']['rules']>[number];

function ruleOf({ from = [], to = [], when = [] }: RuleInput): PolicyRule {
  return {
    from: from.map(({ source }) => ({
      identities: source.principals ?? [],
      notIdentities: source.notPrincipals ?? [],
      namespaces: source.namespaces ?? [],
      notNamespaces: source.notNamespaces ?? [],
      ipBlocks: source.ipBlocks ?? [],
      notIpBlocks: source.notIpBlocks ?? [],
    })),
    to: to.map(({ operation }) => ({
      ports: (operation.ports ?? []).map(Number),
      notPorts: (operation.notPorts ?? []).map(Number),
      hosts: operation.hosts ?? [],
      notHosts: operation.notHosts ?? [],
      paths: operation.paths ?? [],
      notPaths: operation.notPaths ?? [],
      methods: operation.methods ?? [],
      notMethods: operation.notMethods ?? [],
    })),
    when: when.map(({ key, values = [], notValues = [] }) => ({ key, values, notValues })),
  };
}
