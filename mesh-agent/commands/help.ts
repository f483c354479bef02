// Help of the mesh's commands.

import { NODE_ADMIN_DEFAULT } from '../node/admin-address.ts';
import { CONTROL_ADMIN_DEFAULT } from './control-schema.ts';

/** Help of `portcullis control`. */
export const CONTROL_HELP = `The control plane of the mesh: certificate authority, and the state of the mesh for node proxies.

Usage:
  portcullis control --config FILE     serve (docs/mesh/control-configuration.md, \`portcullis schema control\`)

Signals: SIGHUP re-reads log level and attestation, SIGTERM finishes what is being answered and ends,
SIGINT ends at once. Exit codes are those of \`portcullis --help\`.
`;

/** Help of `portcullis mesh`. */
export const MESH_HELP = `The mesh: how it stands, who may join, whose traffic it carries.

Usage:
  portcullis mesh node --config FILE     the node proxy, or a sidecar: see \`portcullis mesh node --help\`
  portcullis mesh ready                  whether a node proxy or sidecar serves: exit code 0 or 1, for probes
                                         (--admin HOST:PORT, ${NODE_ADMIN_DEFAULT})
  portcullis mesh status                 the control plane, its source, and every node proxy
  portcullis mesh services               services and how many of their endpoints take traffic
  portcullis mesh workloads              workloads, their identities and policies
  portcullis mesh policies               authorisation policies and how many workloads they apply to
  portcullis mesh roots                  certificates of the roots that a joining node is to trust, PEM; and on
                                         standard error, how far a rotation of the root is
  portcullis mesh graph ...              who talks to whom: see \`portcullis mesh graph --help\`
  portcullis mesh check ...              errors and warnings of a directory: see \`portcullis mesh check --help\`
  portcullis mesh apply ...              files into the mesh: see \`portcullis mesh apply --help\`
  portcullis mesh wait ...               until every node proxy serves the newest version
  portcullis mesh rotate ...             rotation of the root: see \`portcullis mesh rotate --help\`
  portcullis mesh token ...              join tokens: see \`portcullis mesh token --help\`
  portcullis mesh capture ...            traffic of workloads: see \`portcullis mesh capture --help\`

Options of status, services, workloads, policies and roots:
  --admin HOST:PORT        admin port of the control plane (${CONTROL_ADMIN_DEFAULT})
  --json                   what the admin port says, as JSON (not of roots)
`;

/** Help of `portcullis mesh node`. */
export const NODE_HELP = `The node proxy: carries the traffic of every workload of this node, or of one as its sidecar.

Usage:
  portcullis mesh node --config FILE     serve (docs/mesh/node-configuration.md, \`portcullis schema node\`)

Needs root, or CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE; a sidecar (\`sidecar\` in FILE), which runs in the
network namespace of its workload, CAP_NET_ADMIN only. Signals: SIGHUP re-reads mode, egress, limits,
log, access log and admin port; SIGTERM finishes what runs and ends, SIGINT ends at once; SIGUSR1 reopens the
access log. Captures that fail closed stay when it ends. Exit codes are those of \`portcullis --help\`.
`;

/** Help of `portcullis mesh graph`. */
export const GRAPH_HELP = `Who talks to whom, as node proxies have counted it since their workloads came.

Usage:
  portcullis mesh graph [--admin HOST:PORT[,HOST:PORT...]] [--json]

Each connection inside the mesh is counted at both of its ends: SEEN AT source, the destination is a port of a
service, an identity, or where it is outside; SEEN AT destination, the source is an identity, or \`unknown\` in
plain text. What policies have refused (DENIED) is counted at the destination.

Options:
  --admin LIST             admin ports of the node proxies to ask, added up (${NODE_ADMIN_DEFAULT})
  --json                   edges as a list of objects

Exit codes: 0 all have answered, 1 one has not (the others are shown), 2 wrong use.
`;

/** Help of `portcullis mesh token`. */
export const TOKEN_HELP = `Join tokens: how a plain host proves for the first time that it belongs to the mesh.

Usage:
  portcullis mesh token create --config FILE --node NODE [OPTIONS]
  portcullis mesh token create --config FILE --namespace LIST [OPTIONS]
  portcullis mesh token create --config FILE --service-account NAMESPACE/NAME[,...] [OPTIONS]
  portcullis mesh token list   --config FILE [--json]
  portcullis mesh token revoke --config FILE ID

FILE is the configuration of the control plane. Run this on its machine and as its user; a running
control plane sees the change at once. The text of a new token is printed once and kept nowhere.

Options of create; at least one of --node, --namespace and --service-account is given:
  --node NODE              for the proxy of this node: the node's identity and those of its workloads
  --namespace LIST         for every service account of these namespaces
  --service-account LIST   for these service accounts
  --expires DURATION       how long it can be used (24h)
  --uses N|unlimited       how many certificates it is good for (1; a node needs one)
  --json                   id and text as JSON
`;

/** Help of `portcullis mesh rotate`. */
export const ROTATE_HELP = `Rotates the root of the mesh: to a new one, or to ca.nextFiles of the configuration.

Usage:
  portcullis mesh rotate --config FILE                 begins a rotation
  portcullis mesh rotate --config FILE --abort         turns it back, while the old root is still trusted
  portcullis mesh rotate --config FILE --forget NODE   does not wait for that node's proxy any more

FILE is the configuration of the control plane, which has to run. Run this on its machine and as its user. The
rotation goes on by itself, as node proxies confirm its steps; \`portcullis mesh roots\` shows how far it is and
which nodes it waits for. Nodes that are gone are waited for as long as their certificates could be valid.
`;

/** Help of `portcullis mesh check`. */
export const CHECK_HELP = `Says what is wrong with a directory of the mesh, as the control plane would find it, and what is probably not meant.

Usage:
  portcullis mesh check DIRECTORY [OPTIONS]
  portcullis mesh check --config FILE [DIRECTORY] [OPTIONS]

Options:
  --config FILE            configuration of the control plane: its directory, trust domain and kind of source
  --trust-domain NAME      trust domain of the mesh (cluster.local)
  --cluster-domain NAME    domain that names of services end with (cluster.local)
  --warnings-as-errors     exit code 1 when there is a warning
  --format text|json       json: a list of findings, for editors and CI

Exit codes: 0 valid, 1 errors (or warnings as errors), 2 wrong use.
`;

/** Help of `portcullis mesh apply`. */
export const APPLY_HELP = `Puts files into the directory of the mesh, as one change, if all of them are valid beside what is there.

Usage:
  portcullis mesh apply [OPTIONS] FILE|DIRECTORY...

A file keeps its name, files of a directory their paths there; what the mesh has besides stays. Run this on the
control plane's machine.

Options:
  --wait                   return when every connected node proxy serves the change, and say which was slowest
  --timeout DURATION       longest wait (30s)
  --admin HOST:PORT        admin port of the control plane (${CONTROL_ADMIN_DEFAULT}), which says where the mesh is
  --config FILE            configuration of the control plane, instead of asking it

Exit codes: 0 done, 1 a file is not valid, 2 wrong use, 7 a node proxy refuses the change, or time ran out.
`;

/** Help of `portcullis mesh wait`. */
export const WAIT_HELP = `Waits until every connected node proxy serves the newest version of the mesh, and says which was slowest.

Usage:
  portcullis mesh wait [--admin HOST:PORT] [--timeout DURATION]

Options:
  --timeout DURATION       longest wait (30s)
  --admin HOST:PORT        admin port of the control plane (${CONTROL_ADMIN_DEFAULT})

Exit codes: 0 all serve it, 7 one refuses some of it, or time ran out.
`;
