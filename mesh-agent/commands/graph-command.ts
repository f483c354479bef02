// `portcullis mesh graph`: who talks to whom, as the node proxies that are asked have counted it.
//
// A short process of its own.

import { type AdminAddress, adminOption } from '../../core/process/admin-client.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments } from '../../core/process/options.ts';
import { NODE_ADMIN_DEFAULT } from '../node/admin-address.ts';
import type { GraphEdge } from '../node/node-admin.ts';
import { askControl, parseAnswer } from './control-client.ts';
import { GRAPH_HELP } from './help.ts';
import type { MeshIo } from './io.ts';
import { formatTable, printable } from './table.ts';

/** Runs `portcullis mesh graph`; `args` are those after the word. Throws an ExitError. */
export async function graphCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(GRAPH_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(args, { '--admin': 'value', '--json': 'flag' }, 'mesh graph');
  if (positional.length > 0) {
    const hint = `node proxies are given as --admin ${positional.join(',')}`;
    throw new ExitError(ExitCode.USAGE, `mesh graph takes no argument ${positional[0]} (${hint}).`);
  }
  const nodes = (options.get('--admin') ?? NODE_ADMIN_DEFAULT).split(',').map((text) => adminOption(text.trim()));
  const answers = await Promise.allSettled(nodes.map(edgesOf));
  const failures = answers.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []));
  const defect = failures.find((error) => !(error instanceof ExitError));
  if (defect !== undefined || failures.length === nodes.length) throw defect ?? failures[0];
  const edges = mergeEdges(answers.flatMap((one) => (one.status === 'fulfilled' ? one.value : [])));
  io.out(options.has('--json') ? `${JSON.stringify(edges, null, 2)}\n` : formatGraph(edges));
  // What there is has been said; a program has to know that it is not all.
  for (const error of failures) io.err(`${printable((error as ExitError).message)}\n`);
  return failures.length === 0 ? ExitCode.OK : ExitCode.CONFIG_INVALID;
}

async function edgesOf(node: AdminAddress): Promise<GraphEdge[]> {
  const answer = parseAnswer(await askControl(node, '/mesh/graph', 'node proxy'), node, 'node proxy');
  return answer as GraphEdge[];
}

/** Edges of several nodes: the same ones added up, in order of their names. */
function mergeEdges(edges: readonly GraphEdge[]): GraphEdge[] {
  const merged = new Map<string, GraphEdge>();
  for (const edge of edges) {
    const { source, destination, protocol, reporter } = edge;
    const key = JSON.stringify([source, destination, protocol, reporter]);
    const known = merged.get(key);
    if (known === undefined) {
      merged.set(key, { ...edge });
      continue;
    }
    known.connections += edge.connections;
    known.requests += edge.requests;
    known.failures += edge.failures;
    known.denied += edge.denied;
  }
  return [...merged].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, edge]) => edge);
}

/** The graph, for people. */
function formatGraph(edges: readonly GraphEdge[]): string {
  if (edges.length === 0) return 'nobody has talked to anybody yet\n';
  return formatTable(
    ['SOURCE', 'DESTINATION', 'PROTOCOL', 'CONNECTIONS', 'REQUESTS', 'FAILURES', 'DENIED', 'SEEN AT'],
    edges.map(({ source, destination, protocol, connections, requests, failures, denied, reporter }) => [
      ...[source, destination, protocol, connections, requests, failures, denied, reporter],
    ]),
  );
}
