// `portcullis mesh status | services | workloads | policies | roots`: what the control plane's admin port says.
//
// A short process of its own.

import { adminOption } from '../../core/process/admin-client.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { type OptionShapes, parseArguments } from '../../core/process/options.ts';
import type { ControlLists, ControlStatus } from './control-admin.ts';
import { askControl, parseAnswer } from './control-client.ts';
import { CONTROL_ADMIN_DEFAULT } from './control-schema.ts';
import type { MeshIo } from './io.ts';
import { formatAge, formatTable, printable } from './table.ts';

const views = {
  status: (answer: unknown) => formatStatus(answer as ControlStatus, Date.now()),
  services: (answer: unknown) => formatServices(answer as ControlLists),
  workloads: (answer: unknown) => formatWorkloads(answer as ControlLists),
  policies: (answer: unknown) => formatPolicies(answer as ControlLists),
};

/** Runs `portcullis mesh VIEW`; `args` are those after the view. Throws an ExitError. */
export async function statusCommand(view: string, args: string[], io: MeshIo): Promise<number> {
  const shapes: OptionShapes = view === 'roots' ? { '--admin': 'value' } : { '--admin': 'value', '--json': 'flag' };
  const { options, positional } = parseArguments(args, shapes, 'mesh');
  if (positional.length > 0) {
    throw new ExitError(ExitCode.USAGE, `mesh ${view} takes no argument ${positional[0]}.`);
  }
  const admin = adminOption(options.get('--admin') ?? CONTROL_ADMIN_DEFAULT);
  const body = await askControl(admin, `/${view}`);
  if (view === 'roots') {
    // Standard output is for files: what is for people goes beside it.
    io.err(formatRotation(parseAnswer(await askControl(admin, '/status'), admin) as ControlStatus));
    io.out(body);
    return ExitCode.OK;
  }
  const answer = parseAnswer(body, admin);
  io.out(options.has('--json') ? `${JSON.stringify(answer, null, 2)}\n` : views[view as keyof typeof views](answer));
  return ExitCode.OK;
}

/** Nodes without a proxy that are named. */
const ABSENT_SHOWN_MAX = 20;

/** The control plane and its proxies, for people. */
function formatStatus(status: ControlStatus, nowMs: number): string {
  const { address, ca, certificates, mesh, source, startedAt, unready, version } = status;
  const refused = Object.entries(certificates.refused).map(([code, count]) => `${count} ${code}`);
  const lines = [
    `control plane  ${unready.length === 0 ? `serving on ${address}` : unready.join(', ')}, version ${version}, up ${formatAge(nowMs - Date.parse(startedAt))}`,
    `mesh           ${mesh.trustDomain}, version ${mesh.version}: ${count(mesh.workloads, 'workload')}, ${count(mesh.services, 'service')}, ${mesh.policies === 1 ? '1 policy' : `${mesh.policies} policies`}`,
    `source         ${source.name}${source.problems.length === 0 ? '' : `, ${count(source.problems.length, 'problem')}:`}`,
    ...source.problems.map((problem) => `                 ${problem}`),
    `CA             root ${ca.activeRoot}${ca.phase === 'idle' ? '' : `, rotation to ${ca.nextRoot}: ${ca.phase}`}`,
    ...ca.waiting.map(({ proxy, reason }) => `                 waits for ${proxy}: ${reason}`),
    `certificates   ${certificates.issued} issued${refused.length === 0 ? '' : `, refused: ${refused.join(', ')}`}`,
  ];
  const proxies = mesh.proxies.map(
    (proxy) =>
      [
        ...[proxy.proxy, proxy.node, proxy.state, proxy.version, proxy.addresses, proxy.policies],
        formatAge(proxy.connectedMs),
        proxy.unansweredMs === null ? '-' : formatAge(proxy.unansweredMs),
      ] as const,
  );
  const head = ['PROXY', 'NODE', 'STATE', 'VERSION', 'ADDRESSES', 'POLICIES', 'CONNECTED', 'UNANSWERED'];
  const table = proxies.length === 0 ? 'no node proxy is connected\n' : formatTable(head, proxies);
  const refusals = mesh.proxies.flatMap(({ proxy, refused: list }) =>
    list.map(({ reason, resources }) => `${proxy} refuses ${resources.join(', ') || 'a response'}: ${reason}`),
  );
  const absent = mesh.absent.map(
    ({ node, workloads }) =>
      `${node}: no proxy is connected here, and without one its ${count(workloads, 'workload')} cannot be reached`,
  );
  const more = [...refusals, ...absent.slice(0, ABSENT_SHOWN_MAX)];
  if (absent.length > ABSENT_SHOWN_MAX) more.push(`and ${absent.length - ABSENT_SHOWN_MAX} more nodes without a proxy`);
  return `${[...lines, '', ''].map(printable).join('\n')}${table}${more.map((line) => `${printable(line)}\n`).join('')}`;
}

/** The roots and where their rotation stands, for people. */
function formatRotation({ ca }: ControlStatus): string {
  const since = new Date(ca.sinceMs).toISOString();
  const lines = [
    ca.phase === 'idle' ? 'phase    idle: no rotation' : `phase    ${ca.phase} since ${since}`,
    `bundle   ${ca.sequence}`,
    ...ca.roots.map(({ id, expires, signs }) => `root     ${id}, until ${expires}, ${signs ? 'signs' : 'trusted'}`),
    ...ca.waiting.map(({ proxy, reason }) => `waiting  ${proxy}: ${reason}`),
  ];
  return lines.map((line) => `${printable(line)}\n`).join('');
}

function formatServices({ services }: ControlLists): string {
  if (services.length === 0) return 'the mesh has no services\n';
  return formatTable(
    ['SERVICE', 'ADDRESSES', 'PORTS', 'HEALTHY', 'ENDPOINTS', 'RULES'],
    services.map(({ service, addresses, ports, healthy, endpoints, rules }) => [
      ...[service, list(addresses), list(ports), healthy, endpoints, rules],
    ]),
  );
}

function formatWorkloads({ workloads }: ControlLists): string {
  if (workloads.length === 0) return 'the mesh has no workloads\n';
  return formatTable(
    ['WORKLOAD', 'NODE', 'ADDRESSES', 'STATUS', 'PROTOCOL', 'IDENTITY', 'POLICIES'],
    workloads.map(({ workload, node, sidecar, addresses, status, protocol, identity, policies, missingPolicies }) => [
      ...[workload, `${node || '-'}${sidecar ? ' (sidecar)' : ''}`, list(addresses), status, protocol, identity || '-'],
      list([...policies, ...missingPolicies.map((name) => `${name} (missing)`)]),
    ]),
  );
}

function formatPolicies({ policies }: ControlLists): string {
  if (policies.length === 0) return 'the mesh has no policies: every workload may reach every other\n';
  return formatTable(
    ['POLICY', 'SCOPE', 'ACTION', 'RULES', 'WORKLOADS', 'ENFORCED'],
    policies.map(({ policy, scope, action, rules, workloads, dryRun }) => [
      ...[policy, scope, action, rules, workloads, dryRun ? 'no (dry run)' : 'yes'],
    ]),
  );
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

function list(texts: readonly string[]): string {
  return texts.length === 0 ? '-' : texts.join(',');
}
