// What the files of a mesh directory may hold: documents of five kinds, close to those of Kubernetes and Istio.
//
// Control thread of the control plane. One schema for validation and for what it is that was expected.
// Spec: our own; metadata and Service after Kubernetes, AuthorizationPolicy after Istio, rules after the
// gateway's configuration.

import { isIP } from 'node:net';
import type { Static } from 'typebox';
import { boolean, integer, NOTE, type Note, name, oneOf, text } from '../../config/kinds.ts';
import { serverNameProblem } from '../../config/names.ts';
import { parseNetwork } from '../../config/networks.ts';
import {
  dictionary,
  list,
  mapping,
  maybe,
  text as plainText,
  union,
  wholeNumber,
} from '../../config/schema-builder.ts';
import { trafficProperties } from './traffic-rules.ts';

/** Kinds of documents. */
export const KINDS = ['Workload', 'Service', 'AuthorizationPolicy', 'TrafficPolicy', 'Namespace'] as const;

/** One of them. */
export type Kind = (typeof KINDS)[number];

const LABELS_MAX = 256;
const LABEL_PATTERN = '^[A-Za-z0-9]([A-Za-z0-9._/-]{0,315}[A-Za-z0-9])?$';

function anyText(description: string) {
  return text({ description }, 'text', 'text', (value) => (value.length > 1024 ? 'is too long' : undefined));
}

/** A DNS label or subdomain, as names of Kubernetes are: they become parts of identities and host names. */
function meshName(description: string, fallback?: string) {
  const options = fallback === undefined ? { description } : { description, default: fallback };
  return text(options, 'name', 'a name of lower-case letters, digits, "-" and "."', (value) =>
    /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(value) ? undefined : 'is not a name',
  );
}

function ipAddress(description: string) {
  return text({ description }, 'IP address', 'an IP address', (value) =>
    isIP(value) > 0 && !value.includes('%') ? undefined : 'is not an IP address',
  );
}

function network(description: string) {
  return text({ description }, 'network', 'an IP address, or a network such as 10.0.0.0/8', (value) => {
    const parsed = parseNetwork(value);
    return 'problem' in parsed ? parsed.problem : undefined;
  });
}

/** `*` stands for any text that is there, at the begin or the end for any further characters. */
function pattern(description: string) {
  return text({ description }, 'pattern', 'text, with "*" only at its begin or its end', (value) => {
    if (value === '') return 'is empty';
    return value !== '*' && /\*/.test(value.replace(/^\*|\*$/, ''))
      ? 'has a "*" that is not its begin or end'
      : undefined;
  });
}

function port(description: string) {
  return integer({ min: 1, max: 65535, description });
}

const CONDITION_KEYS =
  'source.ip, remote.ip, source.namespace, source.principal, destination.ip, destination.port, connection.sni or request.headers[name]';

function conditionKeyProblem(value: string): string | undefined {
  if (/^request\.headers\[[!#$%&'*+.^_`|~0-9A-Za-z-]+\]$/.test(value)) return undefined;
  return CONDITION_KEYS.split(/, | or /).includes(value) ? undefined : 'is not something that a condition can look at';
}

/** Istio writes ports of policies as text. */
function policyPort(description: string) {
  const note: Note = {
    type: 'port',
    expected: 'a port (1 to 65535)',
    problem: (value) => (/^[1-9]\d{0,4}$/.test(value) && Number(value) <= 65535 ? undefined : 'is not a port'),
  };
  return union([wholeNumber({}), plainText({})] as const, { description, [NOTE]: note });
}

const labelsSchema = (description: string) =>
  dictionary(
    text({ description: 'Value of the label.' }, 'text', 'text of up to 256 characters', (value) =>
      value.length > 256 ? 'is too long' : undefined,
    ),
    LABEL_PATTERN,
    LABELS_MAX,
    { description, [NOTE]: { type: 'labels', expected: 'labels such as {app: cart}' } satisfies Note },
  );

const metadataSchema = mapping(
  {
    name: meshName('Name, unique in its kind and namespace.'),
    namespace: maybe(meshName('Namespace; not for a Namespace itself.', 'default')),
    labels: maybe(labelsSchema('Labels, which selectors look for. Absent: none.')),
  },
  { description: 'What it is called.' },
);

function document<const K extends Kind, const S extends Parameters<typeof maybe>[0]>(kind: K, spec: S) {
  return mapping({
    apiVersion: maybe(oneOf(['portcullis.dev/v1'], { description: 'Version of the vocabulary. Absent: this one.' })),
    kind: oneOf([kind], { description: 'What the document is.' }),
    metadata: metadataSchema,
    spec,
  });
}

const modeSchema = (fallback: string) =>
  oneOf(['strict', 'permissive'], {
    description: `Connections that do not come through a tunnel: refused, or let in as from nobody. ${fallback}`,
  });

const workloadSchema = document(
  'Workload',
  mapping(
    {
      addresses: list(ipAddress('IP address.'), { maxItems: 16, description: 'IP addresses of the workload.' }),
      serviceAccount: maybe(meshName('Account that its identity is made of.', 'default')),
      node: maybe(meshName('Node that it runs on. Absent: none that has a proxy.')),
      protocol: maybe(
        oneOf(['hbone', 'none'], {
          default: 'hbone',
          description: '`hbone`: reached by encrypted tunnel; `none`: as it is.',
        }),
      ),
      status: maybe(
        oneOf(['healthy', 'unhealthy', 'draining'], { default: 'healthy', description: 'Whether it takes traffic.' }),
      ),
      hostNetwork: maybe(boolean({ default: false, description: 'It shares the network of its node.' })),
      networkNamespace: maybe(
        anyText('Path or name of its network namespace, on plain hosts. Absent: it is found by the address.'),
      ),
      sidecar: maybe(
        boolean({ default: false, description: 'A proxy of its own serves it (sidecar), not that of its node.' }),
      ),
      mode: maybe(modeSchema('Default: that of its namespace, or else what its proxy is configured to.')),
      locality: maybe(
        mapping(
          {
            region: maybe(anyText('Region. Absent: not known.')),
            zone: maybe(anyText('Zone, which balancing by zone compares. Absent: not known.')),
            subzone: maybe(anyText('Part of the zone. Absent: not known.')),
          },
          { description: 'Where it is. Absent: not known.' },
        ),
      ),
    },
    { description: 'A process with addresses of its own, and who it is.' },
  ),
);

const serviceSchema = document(
  'Service',
  mapping(
    {
      hostname: maybe(
        text(
          { description: 'Name in DNS. Default: name.namespace.svc.domain.' },
          'hostname',
          'a name in DNS',
          serverNameProblem,
        ),
      ),
      addresses: maybe(
        list(ipAddress('Virtual IP address.'), {
          maxItems: 16,
          description: 'Virtual IP addresses. Absent: it has none.',
        }),
      ),
      selector: maybe(
        labelsSchema('Labels of the workloads, of the same namespace, that are its endpoints. Absent: it has none.'),
      ),
      ports: list(
        mapping({
          name: maybe(name('Name of the port. Absent: it has none.')),
          port: port('Port of the service.'),
          targetPort: maybe(port('Port of the workloads. Default: `port`.')),
          protocol: maybe(
            oneOf(['http', 'http2', 'grpc', 'tcp', 'auto'], {
              default: 'auto',
              description: 'What is spoken there; `auto`: found out from the first bytes of each connection.',
            }),
          ),
        }),
        { minItems: 1, maxItems: 256, description: 'Ports, each once.' },
      ),
    },
    { description: 'A name and addresses for the workloads that its selector matches.' },
  ),
);

const patterns = (what: string) => maybe(list(pattern(what), { minItems: 1, maxItems: 1024, description: what }));
const networks = (what: string) => maybe(list(network(what), { minItems: 1, maxItems: 1024, description: what }));
const ports = (what: string) => maybe(list(policyPort(what), { minItems: 1, maxItems: 256, description: what }));
const RULES_MAX = 1024;

const policySchema = document(
  'AuthorizationPolicy',
  mapping(
    {
      scope: maybe(
        oneOf(['namespace', 'global'], {
          default: 'namespace',
          description: 'All workloads of the namespace, or of the mesh.',
        }),
      ),
      selector: maybe(
        mapping(
          { matchLabels: labelsSchema('Labels that a workload must have, all of them. None: the whole namespace.') },
          { description: 'Some workloads of the namespace only. Absent: see `scope`.' },
        ),
      ),
      action: maybe(oneOf(['ALLOW', 'DENY'], { default: 'ALLOW', description: 'What happens to what matches.' })),
      dryRun: maybe(boolean({ default: false, description: 'Decide and record, but do not enforce.' })),
      rules: maybe(
        list(
          mapping({
            from: maybe(
              list(
                mapping({
                  source: mapping(
                    {
                      principals: patterns('Identities, such as cluster.local/ns/shop/sa/cart. Absent: anybody.'),
                      notPrincipals: patterns('Identities that are not meant. Absent: none.'),
                      namespaces: patterns('Namespaces of identities. Absent: any, and those without identity.'),
                      notNamespaces: patterns('Namespaces that are not meant. Absent: none.'),
                      ipBlocks: networks('Networks of the other end. Absent: any.'),
                      notIpBlocks: networks('Networks that are not meant. Absent: none.'),
                    },
                    { description: 'Who it has to be: all lists that are given, any value of each.' },
                  ),
                }),
                { minItems: 1, maxItems: RULES_MAX, description: 'Who asks: any of these. Absent: anybody.' },
              ),
            ),
            to: maybe(
              list(
                mapping({
                  operation: mapping(
                    {
                      ports: ports('Ports of the workload. Absent: any.'),
                      notPorts: ports('Ports that are not meant. Absent: none.'),
                      hosts: patterns('Hosts of requests. Absent: any.'),
                      notHosts: patterns('Hosts that are not meant. Absent: none.'),
                      paths: patterns('Paths of requests, without query. Absent: any.'),
                      notPaths: patterns('Paths that are not meant. Absent: none.'),
                      methods: patterns('Methods of requests. Absent: any.'),
                      notMethods: patterns('Methods that are not meant. Absent: none.'),
                    },
                    { description: 'What it has to be: all lists that are given, any value of each.' },
                  ),
                }),
                { minItems: 1, maxItems: RULES_MAX, description: 'What is asked for: any of these. Absent: anything.' },
              ),
            ),
            when: maybe(
              list(
                mapping({
                  key: text(
                    { description: `What is looked at: ${CONDITION_KEYS}.` },
                    'key',
                    CONDITION_KEYS,
                    conditionKeyProblem,
                  ),
                  values: patterns('Any of these it has to be. Absent: see `notValues`.'),
                  notValues: patterns('None of these may it be. Absent: see `values`.'),
                }),
                { minItems: 1, maxItems: RULES_MAX, description: 'Further conditions: all of these. Absent: none.' },
              ),
            ),
          }),
          {
            maxItems: RULES_MAX,
            description: 'Any of them has to match. Absent: nothing matches, as with an empty list.',
          },
        ),
      ),
    },
    { description: 'Who may reach workloads, and with what.' },
  ),
);

const trafficSchema = document(
  'TrafficPolicy',
  mapping(
    {
      service: text(
        { description: 'Service: name, name.namespace or hostname.' },
        'name',
        'the name of a service',
        (value) => (value === '' ? 'is empty' : undefined),
      ),
      ...trafficProperties,
    },
    { description: 'How requests to a service are routed, and how its endpoints are used.' },
  ),
);

const namespaceSchema = document(
  'Namespace',
  mapping(
    {
      mode: maybe(modeSchema('For workloads that say nothing. Default: what their proxies are configured to.')),
    },
    { description: 'What holds for all workloads of a namespace.' },
  ),
);

/** Schema of each kind. */
export const documentSchemas = {
  Workload: workloadSchema,
  Service: serviceSchema,
  AuthorizationPolicy: policySchema,
  TrafficPolicy: trafficSchema,
  Namespace: namespaceSchema,
};

/** A valid document of a kind, as written. */
export type DocumentOf<K extends Kind> = Static<(typeof documentSchemas)[K]>;
