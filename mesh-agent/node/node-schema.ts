// The configuration of `portcullis mesh node` as users write it: one schema for types, validation and documentation.
//
// Control thread of the node proxy. Every key has a description, and a default or what its absence means.

import { statSync } from 'node:fs';
import { isIP } from 'node:net';
import { dirname, resolve } from 'node:path';
import type { Static } from 'typebox';
import { describeValue } from '../../config/errors.ts';
import {
  boolean,
  duration,
  endpointAddress,
  filePath,
  integer,
  listenAddress,
  NOTE,
  type Note,
  oneOf,
  serverName,
  text,
} from '../../config/kinds.ts';
import { parseNetwork } from '../../config/networks.ts';
import { redisSchema } from '../../config/rate-limit-schema.ts';
import { configSchema } from '../../config/schema.ts';
import { list, literal, mapping, maybe, nodeOf, union } from '../../config/schema-builder.ts';
import { isMapping, type Mapping, refuse } from '../../config/semantics-walk.ts';
import { type Violation, validate } from '../../config/validate.ts';
import { BROKEN } from '../../config/yaml.ts';
import { parseCapture } from '../capture/spec.ts';
import { isSubdomain, parseTrustDomain } from '../identity/spiffe.ts';
import { NODE_ADMIN_DEFAULT } from './admin-address.ts';
import { relayProblem } from './control-relay.ts';

const gateway = nodeOf(configSchema).properties!;

type AccessLog = { path: string; format?: string };
type Schema = Parameters<typeof nodeOf>[0];

const trustDomain = text(
  { description: 'Trust domain of the mesh, as in the configuration of its control plane.' },
  'name',
  'a name of lower-case letters, digits, ".", "-" and "_" such as cluster.local',
  (value) => {
    try {
      parseTrustDomain(value);
      return undefined;
    } catch {
      return 'is not a trust domain';
    }
  },
);

const nodeName = text(
  {
    description:
      'Name of this node: workloads whose `node` is this name are served. It is part of an identity, and what join tokens are made for. Default: the name of the host.',
  },
  'name',
  'a name of lower-case letters, digits, "-" and "." such as host-a',
  (value) => (isSubdomain(value) ? undefined : 'is not the name of a node'),
);

const controlPlaneSchema = mapping(
  {
    address: endpointAddress({
      description: 'Where the control plane listens for node proxies, such as `control.internal:15012`.',
    }),
    serverName: maybe(
      serverName({
        description: 'Name or IP address that its certificate must have. Default: the host of `address`.',
      }),
    ),
    roots: filePath(
      'Certificates of the roots that this node trusts at first, PEM: what `portcullis mesh roots` prints. Later ones come over the mesh.',
    ),
  },
  { description: 'The control plane: certificates, and the state of the mesh.' },
);

const adminSchema = union(
  [
    literal('off'),
    mapping({
      address: maybe(
        listenAddress({
          default: NODE_ADMIN_DEFAULT,
          description:
            'Address of the admin port. It has no authentication: give anything but loopback only on a network that you trust.',
        }),
      ),
    }),
  ],
  {
    default: {},
    description:
      "Admin port: that of the gateway, and `/mesh` with the node's workloads, certificates and problems. `admin: off` disables it.",
    [NOTE]: { type: '`off` or mapping', expected: 'off or a mapping with an address', names: ['off'] } satisfies Note,
  },
);

/** Lists of ports (`8080`, `1000-2000`) and addresses or prefixes, which `parseCapture` judges. */
const exclusion = (description: string, what: string) =>
  list(
    text({ description: 'One of them.' }, what, `${what}, as text`, (value) => (value === '' ? 'is empty' : undefined)),
    { default: [], maxItems: 4096, description },
  );

const captureSchema = union(
  [
    literal('off'),
    mapping({
      failClosed: maybe(
        boolean({
          default: true,
          description:
            'While this proxy is down, captured connections are refused. `false`: they go past it, neither encrypted nor authorised.',
        }),
      ),
      excludeOutbound: maybe(exclusion('Destinations that workloads reach directly.', 'network')),
      excludeOutboundPorts: maybe(exclusion('Destination ports that workloads reach directly.', 'port range')),
      excludeInbound: maybe(exclusion('Clients that reach workloads directly, such as a health checker.', 'network')),
      excludeInboundPorts: maybe(exclusion('Ports of workloads that are reached directly.', 'port range')),
    }),
  ],
  {
    default: {},
    description:
      'Capture of the connections of workloads, see [capture](capture.md). `capture: off` installs no rules: somebody else has to (`portcullis mesh capture`).',
    [NOTE]: { type: '`off` or mapping', expected: 'off or a mapping', names: ['off'] } satisfies Note,
  },
);

/** A name of Kubernetes' kind: it becomes part of an identity. */
const workloadName = (what: string, variable: string, otherwise: string) =>
  text(
    { description: `${what} Default: the environment variable \`${variable}\`, ${otherwise}.` },
    'name',
    'a name of lower-case letters, digits, "-" and "."',
    (value) => (isSubdomain(value) ? undefined : 'is not a name'),
  );

const sidecarSchema = mapping(
  {
    namespace: maybe(workloadName('Namespace of the workload.', 'POD_NAMESPACE', 'which has to be there then')),
    name: maybe(workloadName('Name of the workload.', 'POD_NAME', 'or else the one with `address` is meant')),
    address: maybe(
      text(
        {
          description:
            'IP address of the workload. Default: the environment variable `POD_IP`, or else the one with `name` is meant.',
        },
        'IP address',
        'an IP address',
        (value) => (isIP(value) > 0 ? undefined : 'is not an IP address'),
      ),
    ),
    serviceAccount: maybe(
      workloadName('Service account of the workload: its identity.', 'POD_SERVICE_ACCOUNT', 'or else `default`'),
    ),
  },
  {
    description:
      'The proxy serves one workload only, in whose network namespace it runs, see [sidecar](sidecar.md). Absent: it serves a node.',
  },
);

const discoverySchema = mapping(
  {
    scope: maybe(
      oneOf(['used', 'all'], {
        default: 'used',
        description:
          'What this node is told of the mesh: what its workloads use, which is asked for when somebody first connects to it, or `all` of it.',
      }),
    ),
    networks: maybe(
      list(
        text({ description: 'One of them.' }, 'network', 'network, as text', (value) =>
          value === '' ? 'is empty' : undefined,
        ),
        {
          default: [],
          maxItems: 4096,
          description:
            'Networks that workloads and services have their addresses from. Other addresses are taken to be outside of the mesh without asking. Empty: anything may be of the mesh.',
        },
      ),
    ),
    idleTimeout: maybe(
      duration({
        default: '1h',
        zero: 'nothing is given up',
        description: 'Time without use after which something is not kept up to date any more.',
      }),
    ),
  },
  { default: {}, description: 'What this node knows of the mesh, see [on demand](node.md#on-demand).' },
);

/** The schema. */
export const nodeSchema = mapping({
  trustDomain,
  node: maybe(nodeName),
  sidecar: maybe(sidecarSchema),
  controlPlane: controlPlaneSchema,
  joinToken: maybe(
    mapping(
      {
        file: filePath(
          'File with the text of a token (`portcullis mesh token create --node NAME`). Read when it is needed.',
        ),
      },
      {
        description:
          'Proof that this host may join, needed until it has its first certificate. Absent: see `serviceAccountToken`.',
      },
    ),
  ),
  serviceAccountToken: maybe(
    mapping(
      { file: filePath('File with a projected token of the service account, which is replaced from time to time.') },
      { description: 'Proof by a Kubernetes service account. Absent: see `joinToken`.' },
    ),
  ),
  stateDirectory: filePath(
    'Private directory for keys, certificates, trusted roots and the last known state of the mesh; made when it is not there. With it a restart needs no control plane.',
    true,
  ),
  mode: maybe(
    oneOf(['strict', 'permissive'], {
      default: 'strict',
      description:
        'Connections to workloads that do not come through a tunnel: `strict` refuses them, `permissive` lets them in as from nobody, if policies do. For workloads of which the mesh says nothing, see [who gets in](node.md#who-gets-in).',
    }),
  ),
  egress: maybe(
    oneOf(['passthrough', 'refuse'], {
      default: 'passthrough',
      description:
        'Connections of workloads to addresses that are not of the mesh: go there as they are, or are refused.',
    }),
  ),
  discovery: maybe(discoverySchema),
  capture: maybe(captureSchema),
  limits: maybe(
    mapping(
      {
        connections: maybe(
          integer({
            default: 0,
            min: 0,
            max: 1_000_000,
            zero: 'no limit',
            description: 'Most connections of one workload in each direction, per worker.',
          }),
        ),
        connectionsPerSecond: maybe(
          integer({
            default: 0,
            min: 0,
            max: 1_000_000,
            zero: 'no limit',
            description:
              'Most new connections of one workload per second and worker, both directions together. Those beyond wait, see [fair sharing](fairness.md).',
          }),
        ),
        bufferPercent: maybe(
          integer({
            default: 50,
            min: 0,
            max: 100,
            zero: 'no limit',
            description:
              'Percentage of the buffers of a worker that one workload may hold. With more it gets no new connections and requests, see [fair sharing](fairness.md).',
          }),
        ),
      },
      { default: {}, description: 'Limits of each workload.' },
    ),
  ),
  redis: maybe({
    ...redisSchema,
    description:
      'Redis server that counts the rate limits with `global: true`, for the whole mesh together, see [rate limits](node.md#rate-limits). Absent: this node counts them alone.',
  }),
  workers: maybe(gateway.workers as Schema),
  admin: maybe(adminSchema),
  log: maybe(
    mapping(
      {
        level: maybe(
          oneOf(['debug', 'info', 'warn', 'error'], { default: 'info', description: 'Lines below this are dropped.' }),
        ),
      },
      { default: {}, description: 'Log of the node proxy, on standard error.' },
    ),
  ),
  accessLog: maybe(gateway.accessLog as Schema),
  drainTimeout: maybe(
    duration({
      default: '30s',
      zero: 'do not wait',
      description: 'Time that open connections have to end, after SIGTERM and when a workload leaves the mesh.',
    }),
  ),
});

/** The configuration as written, valid. */
export type NodeInput = Omit<Static<typeof nodeSchema>, 'workers' | 'accessLog'> & {
  workers?: number | 'auto';
  accessLog?: AccessLog;
};

/** Everything that is wrong with a configuration that was read from `file`. */
export function checkNode(root: unknown, file: string): Violation[] {
  const violations = validate(nodeSchema, root);
  if (!isMapping(root)) return violations;
  const report = (violation: Violation): void => void violations.push(violation);
  const { joinToken, serviceAccountToken, controlPlane } = root;
  if (joinToken !== undefined && serviceAccountToken !== undefined) {
    refuse(report, ['serviceAccountToken'], 'contradicts joinToken', 'either of them', undefined, 'key');
  } else if (joinToken === undefined && serviceAccountToken === undefined) {
    refuse(report, [], 'says nowhere how this node proves who it is', 'joinToken or serviceAccountToken');
  }
  checkSidecar(root, file, report);
  const roots = isMapping(controlPlane) ? controlPlane.roots : undefined;
  if (typeof roots === 'string' && isNoFile(resolve(dirname(file), roots))) {
    refuse(report, ['controlPlane', 'roots'], `${describeValue(roots)} is not a file that there is`, 'a PEM file');
  }
  const redisTls = isMapping(root.redis) ? root.redis.tls : undefined;
  const authorities = isMapping(redisTls) ? redisTls.caCertificates : undefined;
  if (typeof authorities === 'string' && isNoFile(resolve(dirname(file), authorities))) {
    const problem = `${describeValue(authorities)} is not a file that there is`;
    refuse(report, ['redis', 'tls', 'caCertificates'], problem, 'a PEM file');
  }
  checkCapture(root, report);
  checkDiscovery(root, report);
  return violations;
}

function checkSidecar(
  { discovery, node, sidecar, stateDirectory }: Mapping,
  file: string,
  report: (violation: Violation) => void,
): void {
  if (sidecar === undefined) return;
  if (node !== undefined) {
    refuse(report, ['node'], 'contradicts sidecar, which serves one workload', 'either of them', undefined, 'key');
  }
  if (isMapping(discovery) && discovery.scope === 'all') {
    refuse(report, ['discovery', 'scope'], 'contradicts sidecar, which is not told the whole mesh', '`used`');
  }
  if (typeof stateDirectory !== 'string') return;
  const problem = relayProblem(resolve(dirname(file), stateDirectory));
  if (problem !== undefined) refuse(report, ['stateDirectory'], problem, 'a shorter path');
}

const EXCLUSIONS = ['excludeOutbound', 'excludeOutboundPorts', 'excludeInbound', 'excludeInboundPorts'] as const;

function checkCapture({ capture }: Mapping, report: (violation: Violation) => void): void {
  if (!isMapping(capture)) return;
  for (const key of EXCLUSIONS) {
    const values = capture[key];
    if (!Array.isArray(values)) continue;
    values.forEach((value: unknown, index) => {
      if (value === BROKEN || typeof value !== 'string' || value === '') return;
      const parsed = parseCapture({ [key]: [value] });
      if (!('faults' in parsed)) return;
      const wanted = key.endsWith('Ports')
        ? 'a port, or a range such as 1000-2000'
        : 'an address, or a prefix such as 10.0.0.0/8';
      refuse(report, ['capture', key, index], `${describeValue(value)} is none`, wanted);
    });
  }
}

function checkDiscovery({ discovery }: Mapping, report: (violation: Violation) => void): void {
  if (!isMapping(discovery) || !Array.isArray(discovery.networks)) return;
  discovery.networks.forEach((value: unknown, index) => {
    if (value === BROKEN || typeof value !== 'string' || value === '') return;
    const network = parseNetwork(value);
    if (!('problem' in network)) return;
    const wanted = network.hint ?? 'an address, or a prefix such as 10.0.0.0/8';
    refuse(report, ['discovery', 'networks', index], `${describeValue(value)} ${network.problem}`, wanted);
  });
}

function isNoFile(path: string): boolean {
  try {
    return !statSync(path).isFile();
  } catch (error) {
    // What this user may not look at may be what it should be: opening it will tell.
    const { code } = error as NodeJS.ErrnoException;
    return code === 'ENOENT' || code === 'ENOTDIR';
  }
}
