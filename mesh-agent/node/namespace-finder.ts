// Where the workloads of a node run: the network namespace of each.
//
// On plain hosts the Workload names it. In a cluster it is found by the workload's address among the namespaces of
// running processes. Control thread of the node proxy. Reads /run/netns and /proc, changes nothing.
// An address that two namespaces have is nobody's: whoever may set addresses in one of them could otherwise
// take the place of the other.
// Source: proc_pid_net(5): fib_trie, if_inet6.

import { readFileSync } from 'node:fs';
import { canonicalAddress } from '../../config/networks.ts';
import { type DiscoveredNamespace, listNamespaces, namespacePath } from '../capture/discovery.ts';
import type { Workload } from '../model/mesh-state.ts';

/** Where a workload runs, or why that is not known. */
export type Found = { path: string } | { problem: string };

/** Finds the network namespaces of workloads. */
export interface NamespaceFinder {
  /** Looks at the machine anew; called before a round of `find`. */
  refresh(): void;
  /** The namespace of a workload of this node now. */
  find(workload: Workload): Found;
}

/** Namespaces that workloads name, and otherwise those that have their addresses. */
export class HostNamespaces implements NamespaceFinder {
  private readonly list: () => DiscoveredNamespace[];
  private readonly addressesOf: (pid: number) => string[];
  /** By address, once somebody asked; null: several have it. */
  private byAddress: Map<string, string | null> | undefined;

  /** The arguments stand in for the machine in tests. */
  constructor(list = listNamespaces, addressesOf = addressesOfProcess) {
    this.list = list;
    this.addressesOf = addressesOf;
  }

  /** See NamespaceFinder. */
  refresh(): void {
    this.byAddress = undefined;
  }

  /** See NamespaceFinder. */
  find({ addresses, networkNamespace }: Workload): Found {
    if (networkNamespace !== undefined) {
      const path = namespacePath(networkNamespace);
      return path === undefined ? { problem: `${JSON.stringify(networkNamespace)} is not a name` } : { path };
    }
    this.byAddress ??= this.scan();
    const paths = new Set(
      addresses.map((address) => this.byAddress!.get(address)).filter((path) => path !== undefined),
    );
    if (paths.has(null) || paths.size > 1)
      return { problem: `several network namespaces have ${addresses.join(', ')}` };
    const [path] = paths;
    if (path === undefined || path === null) return { problem: `no network namespace has ${addresses.join(', ')}` };
    return { path };
  }

  private scan(): Map<string, string | null> {
    const found = new Map<string, string | null>();
    for (const { own, pids } of this.list()) {
      const [pid] = pids;
      // Workloads in the namespace of the host cannot be told apart by it.
      if (own || pid === undefined) continue;
      for (const address of this.addressesOf(pid))
        found.set(address, found.has(address) ? null : `/proc/${pid}/ns/net`);
    }
    return found;
  }
}

/** IP addresses of the network namespace that a process is in, without those of loopback and of links. */
function addressesOfProcess(pid: number): string[] {
  return [...ipv4Addresses(read(`/proc/${pid}/net/fib_trie`)), ...ipv6Addresses(read(`/proc/${pid}/net/if_inet6`))];
}

/** Local addresses of a fib_trie: those above a line `/32 host LOCAL`. */
export function ipv4Addresses(trie: string): string[] {
  const found = new Set<string>();
  let last = '';
  for (const line of trie.split('\n')) {
    const address = /\|--\s+(\d+\.\d+\.\d+\.\d+)/.exec(line);
    if (address !== null) last = address[1]!;
    else if (line.includes('/32 host LOCAL') && !last.startsWith('127.')) found.add(last);
  }
  return [...found];
}

/** Addresses of an if_inet6 of global scope. */
export function ipv6Addresses(table: string): string[] {
  return table.split('\n').flatMap((line) => {
    const [digits = '', , , scope] = line.trim().split(/\s+/);
    if (digits.length !== 32 || scope !== '00') return [];
    return [canonicalAddress(digits.match(/.{4}/g)!.join(':'))];
  });
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // The process is gone: its namespace has nobody, or somebody else who is found next time.
    return '';
  }
}
