// The network namespace of a sidecar: its own, which it shares with its one workload, and never leaves.
//
// Control thread of the proxy. Needs none of the rights that entering a namespace takes.

import { networkInterfaces } from 'node:os';
import { canonicalAddress } from '../../config/networks.ts';
import type { NamespaceSockets } from '../../core/ffi/netns.ts';
import { OWN_NAMESPACE } from '../capture/capture.ts';
import type { Workload } from '../model/mesh-state.ts';
import { LEFT_OUT_MS, type Namespaces, type OpenNamespace } from './namespaces.ts';

/** Namespaces of the workloads that a proxy serves. */
export type WorkloadNamespaces = Pick<Namespaces, 'closeAll' | 'get' | 'leaveOut' | 'problemOf' | 'update'>;

/** Stands for the namespace of the process where others have descriptors. */
const OWN_FD = -1;

/** The namespace of the process, for the one workload in it. */
export class OwnNamespace implements WorkloadNamespaces {
  private readonly sockets: Pick<NamespaceSockets, 'identify'>;
  private readonly addresses: () => string[];
  private served: { uid: string; namespace: OpenNamespace } | null = null;
  private problems = new Map<string, string>();
  private leftOutUntilMs = 0;

  /** `sockets` is used and not closed. `addresses` stands in for the machine in tests. */
  constructor(sockets: Pick<NamespaceSockets, 'identify'>, addresses = ownAddresses) {
    this.sockets = sockets;
    this.addresses = addresses;
  }

  /** See Namespaces. */
  get(uid: string): OpenNamespace | undefined {
    return this.served?.uid === uid ? this.served.namespace : undefined;
  }

  /** See Namespaces. */
  problemOf(uid: string): string | undefined {
    return this.problems.get(uid);
  }

  /** See Namespaces. */
  leaveOut(uid: string, problem: string): OpenNamespace[] {
    this.served = null;
    this.problems.set(uid, problem);
    this.leftOutUntilMs = performance.now() + LEFT_OUT_MS;
    return [];
  }

  /** See Namespaces. Nothing is ever dropped: there is no descriptor to let go of. */
  async update(workloads: readonly Workload[]): Promise<{ changed: boolean; dropped: OpenNamespace[] }> {
    const before = JSON.stringify([this.served, ...this.problems]);
    if (workloads.length > 0 && performance.now() < this.leftOutUntilMs) return { changed: false, dropped: [] };
    this.problems = new Map();
    let served: typeof this.served = null;
    const [workload] = workloads;
    if (workloads.length > 1) {
      const names = workloads.map(({ namespace, name }) => `${namespace}/${name}`).join(', ');
      for (const { uid } of workloads) this.problems.set(uid, `a sidecar serves one workload, not ${names}`);
    } else if (workload !== undefined) {
      const found = await this.find(workload);
      if (typeof found === 'string') this.problems.set(workload.uid, found);
      else served = { uid: workload.uid, namespace: found };
    }
    this.served = served;
    return { changed: JSON.stringify([served, ...this.problems]) !== before, dropped: [] };
  }

  /** See Namespaces. */
  closeAll(): void {
    this.served = null;
  }

  /** The namespace, or why it cannot be that of the workload. */
  private async find({ addresses }: Workload): Promise<OpenNamespace | string> {
    // Where the proxy runs beside another workload, or on the host, all of that would be captured.
    const own = new Set(this.addresses());
    if (!addresses.some((address) => own.has(address))) {
      return `the sidecar is not in its network namespace: no interface here has ${addresses.join(', ')}`;
    }
    const identified = await this.sockets.identify(OWN_NAMESPACE);
    if (!identified.ok) return identified.message;
    return { fd: OWN_FD, path: OWN_NAMESPACE, identity: identified.identity, inode: '' };
  }
}

function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((of) => (of ?? []).map(({ address }) => canonicalAddress(address)));
}
