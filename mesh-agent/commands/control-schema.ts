// The configuration of `portcullis control` as users write it: one schema for types, validation and documentation.
//
// Control thread of the control plane. Every key has a description, and a default or what its absence means.

import { statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Static } from 'typebox';
import { describeValue } from '../../config/errors.ts';
import { boolean, duration, filePath, listenAddress, NOTE, type Note, oneOf, text } from '../../config/kinds.ts';
import { serverNameProblem } from '../../config/names.ts';
import { list, literal, mapping, maybe, union } from '../../config/schema-builder.ts';
import { isMapping, type Mapping, refuse } from '../../config/semantics-walk.ts';
import { type Violation, validate } from '../../config/validate.ts';
import { BROKEN } from '../../config/yaml.ts';
import { isNamespaceName, isSubdomain, parseSpiffeId, parseTrustDomain } from '../identity/spiffe.ts';

/** Where the control plane's admin port listens unless configured otherwise; the status commands ask there. */
export const CONTROL_ADMIN_DEFAULT = '127.0.0.1:9903';

const CERTIFICATE_LIFETIME_MIN_MS = 5 * 60_000;

const trustDomain = text(
  {
    description:
      'Trust domain of the mesh, part of every identity: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`. It cannot be changed later.',
  },
  'name',
  'a name of lower-case letters, digits, ".", "-" and "_" such as cluster.local',
  (value) => problemOf(() => parseTrustDomain(value), 'is not a trust domain'),
);

const dnsSuffix = text(
  {
    default: 'cluster.local',
    description: 'Domain that names of services end with: `<service>.<namespace>.svc.<domain>`.',
  },
  'name',
  'a name in DNS such as cluster.local',
  serverNameProblem,
);

const account = (description: string, fallback?: string) =>
  text(
    fallback === undefined ? { description } : { description, default: fallback },
    'account',
    'namespace/name of a service account',
    (value) => {
      const [namespace = '', name = '', more] = value.split('/');
      return more === undefined && isNamespaceName(namespace) && isSubdomain(name)
        ? undefined
        : 'is not a service account';
    },
  );

const adminSchema = union(
  [
    literal('off'),
    mapping({
      address: maybe(
        listenAddress({
          default: CONTROL_ADMIN_DEFAULT,
          description:
            'Address of the admin port. It has no authentication: give anything but loopback only on a network that you trust.',
        }),
      ),
    }),
  ],
  {
    default: {},
    description: 'Admin port with health, metrics and what `portcullis mesh status` shows. `admin: off` disables it.',
    [NOTE]: { type: '`off` or mapping', expected: 'off or a mapping with an address', names: ['off'] } satisfies Note,
  },
);

const caFilesSchema = (description: string) =>
  mapping(
    {
      rootCertificate: filePath('Certificate of the root, PEM.'),
      certificate: filePath(
        'Certificate that signs, with further intermediates up to the root behind it, PEM; may be the root itself.',
      ),
      key: filePath('Key of the certificate that signs, PEM, not encrypted.'),
    },
    { description },
  );

const caSchema = mapping(
  {
    directory: filePath(
      "Private directory of the CA's state, and of its keys where they are generated; made when it is not there. One control plane at a time uses it: back it up.",
      true,
    ),
    files: maybe(caFilesSchema("An operator's own CA. Absent: a root and an intermediate are generated.")),
    nextFiles: maybe(
      caFilesSchema(
        'The CA that `portcullis mesh rotate` moves to from that of `files`; stays until `files` names it. Absent: `files` cannot be rotated away from.',
      ),
    ),
    certificateLifetime: maybe(
      duration({
        default: '24h',
        minMs: CERTIFICATE_LIFETIME_MIN_MS,
        description: 'Lifetime of the certificates of workloads and nodes; renewed at half of it.',
      }),
    ),
  },
  { description: 'The certificate authority of the mesh.' },
);

const kubernetesSourceSchema = mapping(
  {
    clusterId: maybe(
      text(
        { default: 'Kubernetes', description: 'First part of the names of workloads; different for each cluster.' },
        'name',
        'a name of letters, digits, "-", "_" and "."',
        (value) => (/^[A-Za-z0-9._-]{1,253}$/.test(value) ? undefined : 'is not a name'),
      ),
    ),
    kubeConfig: maybe(
      filePath('File with credentials. Absent: $KUBECONFIG, ~/.kube/config, or the account of the pod.'),
    ),
    context: maybe(
      text(
        { description: 'Context of that file. Absent: its current one.' },
        'name',
        'the name of a context',
        (value) => (value === '' ? 'is empty' : undefined),
      ),
    ),
    meshByDefault: maybe(
      boolean({
        default: false,
        description: 'Whether pods are in the mesh where neither they nor their namespaces have the label.',
      }),
    ),
  },
  { description: 'Services and workloads of a Kubernetes cluster. Absent: see `directory`.' },
);

const sourceSchema = mapping(
  {
    directory: maybe(
      filePath(
        'Directory of YAML files that hold the mesh; beside `kubernetes`, its policies (AuthorizationPolicy, TrafficPolicy). Absent: see `kubernetes`.',
        true,
      ),
    ),
    lastGoodDirectory: maybe(
      filePath(
        'Where the last good content of the files of `directory` is kept, so that a restart loses nothing when one is broken, or when all are gone at once. Default: `last-good` beside the directory of the CA.',
        true,
      ),
    ),
    kubernetes: maybe(kubernetesSourceSchema),
  },
  {
    description:
      'Where services, workloads and policies come from: a directory, or Kubernetes, or Kubernetes with policies from a directory.',
  },
);

const joinTokensSchema = union(
  [
    literal('off'),
    mapping({
      directory: maybe(
        filePath(
          'Private directory of the tokens, which `portcullis mesh token` writes. Default: `join-tokens` beside the directory of the CA.',
          true,
        ),
      ),
    }),
  ],
  {
    default: {},
    description: 'Join tokens, with which plain hosts get their first certificate. `joinTokens: off` takes none.',
    [NOTE]: { type: '`off` or mapping', expected: 'off or a mapping with a directory', names: ['off'] } satisfies Note,
  },
);

const blockedSchema = list(
  text(
    { description: 'SPIFFE id.' },
    'SPIFFE id',
    'a SPIFFE id of this mesh such as spiffe://cluster.local/node/host-7',
    (value) => problemOf(() => parseSpiffeId(value), 'is not a SPIFFE id'),
  ),
  {
    default: [],
    maxItems: 10_000,
    description:
      'Identities that get no certificates, by their node either, and may not connect, such as that of a lost node.',
  },
);

const attestationSchema = mapping(
  {
    joinTokens: maybe(joinTokensSchema),
    kubernetes: maybe(
      mapping(
        {
          audience: maybe(
            text(
              { default: 'portcullis', description: 'Audience that tokens must be made for.' },
              'text',
              'visible ASCII characters without spaces',
              (value) => (/^[\x21-\x7e]{1,256}$/.test(value) ? undefined : 'is not an audience'),
            ),
          ),
          nodeAccounts: maybe(
            list(account('Service account.'), {
              default: [],
              maxItems: 256,
              description: 'Service accounts of node proxies, as `namespace/name`: only they speak for their nodes.',
            }),
          ),
        },
        {
          description:
            'Take service-account tokens, which the API server of `source.kubernetes` reviews. Absent: none are taken.',
        },
      ),
    ),
    blockedIdentities: maybe(blockedSchema),
  },
  { default: {}, description: 'How callers prove who they are, besides with a certificate of the mesh.' },
);

/** The schema. */
export const controlSchema = mapping({
  trustDomain,
  clusterDomain: maybe(dnsSuffix),
  listen: maybe(
    listenAddress({ default: ':15012', description: 'Address for node proxies: certificates and xDS, over TLS.' }),
  ),
  serverNames: maybe(
    list(text({ description: 'Name.' }, 'name', 'a name in DNS, or an IP address', serverNameProblem), {
      minItems: 1,
      maxItems: 64,
      description:
        "Names and IP addresses in the server's certificate: those that node proxies reach it by. Default: `localhost`, the name of the host, and the IP addresses that `listen` stands for.",
    }),
  ),
  serviceAccount: maybe(
    account("Account of the control plane's own identity, as `namespace/name`.", 'portcullis/portcullis-control'),
  ),
  admin: maybe(adminSchema),
  log: maybe(
    mapping(
      {
        level: maybe(
          oneOf(['debug', 'info', 'warn', 'error'], { default: 'info', description: 'Lines below this are dropped.' }),
        ),
      },
      { default: {}, description: 'Log of the control plane, on standard error.' },
    ),
  ),
  ca: caSchema,
  source: sourceSchema,
  attestation: maybe(attestationSchema),
});

/** The configuration as written, valid. */
export type ControlInput = Static<typeof controlSchema>;

/** Everything that is wrong with a configuration that was read from `file`. */
export function checkControl(root: unknown, file: string): Violation[] {
  const violations = validate(controlSchema, root);
  if (!isMapping(root)) return violations;
  checkSource(root, file, violations);
  checkCaFiles(root, file, violations);
  checkBlocked(root, violations);
  return violations;
}

function checkSource(root: Mapping, file: string, violations: Violation[]): void {
  const { source } = root;
  if (!isMapping(source)) return;
  const report = (violation: Violation): void => void violations.push(violation);
  const { directory, kubernetes, lastGoodDirectory } = source;
  if (directory === undefined && kubernetes === undefined) {
    refuse(report, ['source'], 'says nowhere that the mesh comes from', 'directory, kubernetes or both');
  }
  if (lastGoodDirectory !== undefined && directory === undefined) {
    const problem = 'is for files, and there is no source.directory';
    refuse(report, ['source', 'lastGoodDirectory'], problem, 'source.directory', undefined, 'key');
  }
  if (typeof directory === 'string' && isNot('directory', resolve(dirname(file), directory))) {
    const problem = `${describeValue(directory)} is not a directory that there is`;
    refuse(report, ['source', 'directory'], problem, 'a directory of YAML files');
  }
  const { attestation } = root;
  if (isMapping(attestation) && attestation.kubernetes !== undefined && kubernetes === undefined) {
    const problem = 'needs an API server that reviews tokens';
    refuse(report, ['attestation', 'kubernetes'], problem, 'source.kubernetes', undefined, 'key');
  }
}

function checkCaFiles({ ca }: Mapping, file: string, violations: Violation[]): void {
  if (!isMapping(ca)) return;
  const report = (violation: Violation): void => void violations.push(violation);
  if (ca.nextFiles !== undefined && ca.files === undefined) {
    const problem = 'is for a CA of files, and there is no ca.files';
    refuse(report, ['ca', 'nextFiles'], problem, 'ca.files', undefined, 'key');
  }
  for (const name of ['files', 'nextFiles']) {
    const files = ca[name];
    if (!isMapping(files)) continue;
    for (const key of ['rootCertificate', 'certificate', 'key']) {
      const value = files[key];
      if (typeof value !== 'string' || !isNot('file', resolve(dirname(file), value))) continue;
      refuse(report, ['ca', name, key], `${describeValue(value)} is not a file that there is`, 'a PEM file');
    }
  }
}

function checkBlocked({ attestation, trustDomain: domain }: Mapping, violations: Violation[]): void {
  const blocked = isMapping(attestation) ? attestation.blockedIdentities : undefined;
  if (!Array.isArray(blocked) || typeof domain !== 'string') return;
  blocked.forEach((identity: unknown, index) => {
    if (identity === BROKEN || typeof identity !== 'string' || !identity.startsWith('spiffe://')) return;
    if (identity.startsWith(`spiffe://${domain}/`)) return;
    const problem = `${describeValue(identity)} is of another trust domain`;
    const report = (violation: Violation): void => void violations.push(violation);
    refuse(report, ['attestation', 'blockedIdentities', index], problem, `spiffe://${domain}/...`);
  });
}

function isNot(kind: 'directory' | 'file', path: string): boolean {
  try {
    return statSync(path).isDirectory() !== (kind === 'directory');
  } catch (error) {
    // What this user may not look at may be what it should be: opening it will tell.
    const { code } = error as NodeJS.ErrnoException;
    return code === 'ENOENT' || code === 'ENOTDIR';
  }
}

function problemOf(parse: () => unknown, problem: string): string | undefined {
  try {
    parse();
    return undefined;
  } catch {
    return problem;
  }
}
