// Where the workloads of a node run: the network namespace of each.
//
// On plain hosts the Workload names it. In a cluster it is found by the workload's address among the namespaces of
// running processes, and by the pod that their control groups name: an address is what whoever may administer a
// namespace can give it, a control group is not. Where that says nothing, an address that two namespaces have is nobody's.
// Control thread of the node proxy. Reads /run/netns and /proc, changes nothing.
// Source: proc_pid_net(5): fib_trie, if_inet6; cgroups(7); names of control groups as the kubelet makes them.

import { readFileSync } from 'node:fs';
import { canonicalAddress } from '../../config/networks.ts';
import {
  type DiscoveredNamespace,
  listNamespaces,
  namespaceOfProcess,
  namespacePath,
  podOfProcess,
} from '../capture/discovery.ts';
import type { Workload } from '../model/mesh-state.ts';

/**
 * Where a workload runs, or why that is not known. `inode`: number of the namespace that was looked at; what the path
 * leads to by now may be another one. Without it, the path itself says where.
 */
export type Found = { path: string; inode?: string } | { problem: string };

/** Finds the network namespaces of workloads. */
export interface NamespaceFinder {
  /** Looks at the machine anew; called before a round of `find`. */
  refresh(): void;
  /** The namespace of a workload of this node now. */
  find(workload: Workload): Found;
}

/** A namespace that has an address. */
interface Place {
  path: string;
  inode: string;
  /** Uids of the pods that have processes there, as far as they are known: one may have joined that of another. */
  pods: ReadonlySet<string>;
}

/** What is asked of the machine; tests have answers of their own. */
export interface MachineView {
  /** All network namespaces. */
  list: () => DiscoveredNamespace[];
  /** IP addresses in the namespace of a process. */
  addressesOf: (pid: number) => string[];
  /** Number of the namespace of a process. */
  namespaceOf: (pid: number) => string | undefined;
  /** Uid of the pod of a process. */
  podOf: (pid: number) => string | undefined;
}

const thisMachine: MachineView = {
  list: listNamespaces,
  addressesOf: addressesOfProcess,
  namespaceOf: namespaceOfProcess,
  podOf: podOfProcess,
};

/** Namespaces that workloads name, and otherwise those that have their addresses. */
export class HostNamespaces implements NamespaceFinder {
  private readonly machine: MachineView;
  /** Namespaces by address, once somebody asked. */
  private byAddress: Map<string, Place[]> | undefined;

  constructor(machine = thisMachine) {
    this.machine = machine;
  }

  /** See NamespaceFinder. */
  refresh(): void {
    this.byAddress = undefined;
  }

  /** See NamespaceFinder. */
  find({ addresses, networkNamespace, podUid }: Workload): Found {
    if (networkNamespace !== undefined) {
      const path = namespacePath(networkNamespace);
      return path === undefined ? { problem: `${JSON.stringify(networkNamespace)} is not a name` } : { path };
    }
    this.byAddress ??= this.scan();
    const all = [...new Set(addresses.flatMap((address) => this.byAddress!.get(address) ?? []))];
    if (all.length === 0) return { problem: `no network namespace has ${addresses.join(', ')}` };
    const places = podUid === undefined ? all : ofPod(all, podUid);
    const [place] = places;
    if (place === undefined)
      return { problem: `the network namespace that has ${addresses.join(', ')} is another pod's` };
    if (places.length > 1) return { problem: `several network namespaces have ${addresses.join(', ')}` };
    return { path: place.path, inode: place.inode };
  }

  private scan(): Map<string, Place[]> {
    const { list, addressesOf, namespaceOf } = this.machine;
    const found = new Map<string, Place[]>();
    for (const { inode, own, pids } of list()) {
      // Workloads in the namespace of the host cannot be told apart by it.
      if (own) continue;
      for (const pid of pids) {
        const addresses = addressesOf(pid);
        const place = { path: `/proc/${pid}/ns/net`, inode, pods: this.podsOf(pids) };
        // The process may have ended since the list was made, and another one have its number.
        if (namespaceOf(pid) !== inode) continue;
        for (const address of addresses) found.set(address, [...(found.get(address) ?? []), place]);
        break;
      }
    }
    return found;
  }

  private podsOf(pids: readonly number[]): Set<string> {
    return new Set(pids.map(this.machine.podOf).filter((pod) => pod !== undefined));
  }
}

/** Those namespaces that may be a pod's: its own, or, if none is known to be, those of which nothing is known. */
function ofPod(places: readonly Place[], uid: string): Place[] {
  const own = places.filter(({ pods }) => pods.has(uid));
  return own.length > 0 ? own : places.filter(({ pods }) => pods.size === 0);
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
