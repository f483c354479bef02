// Captures of the workloads of a node: the door to this folder.
//
// Changes to one table are made one after another, changes to different ones side by side. A namespace is known by
// its identity, so that two paths to it are one.
// Control threads. Needs CAP_NET_ADMIN, and CAP_SYS_ADMIN for namespaces other than the own.

import {
  type NamespaceFailure,
  type NamespaceIdentified,
  NamespaceSockets,
  type NamespaceTarget,
} from '../../core/ffi/netns.ts';
import { namespaceFile } from '../../core/ffi/netns-open.ts';
import {
  type CaptureDone,
  type CaptureFailure,
  type CaptureStatus,
  captureFailure,
  findProgram,
  fromNamespace,
} from './backend.ts';
import { IptablesBackend } from './iptables.ts';
import { NftablesBackend } from './nftables.ts';
import type { CaptureSpec } from './spec.ts';

/** The network namespace of this process. */
export const OWN_NAMESPACE = '/proc/self/ns/net';

/** Changes that run side by side: each is a program or two, and a node may start with hundreds of workloads. */
const PARALLEL_MAX = 8;

/** Settings of `Captures`. */
export interface CapturesOptions {
  /** Used and not closed; absent: one of its own. */
  sockets?: NamespaceSockets;
  /**
   * A `failOpen` capture was lost though nobody removed it (its holder was killed): traffic goes past the proxy
   * until it is installed again.
   */
  onReleased?: (target: NamespaceTarget, table: string) => void;
  /** What may change the packet filter; absent: nft, or else iptables over nf_tables. */
  only?: 'nftables' | 'iptables-nft' | 'none';
}

/** Installs and removes captures. */
export class Captures {
  /** What changes the packet filter; null: nothing is installed. */
  readonly backend: 'nftables' | 'iptables-nft' | null;
  private readonly sockets: NamespaceSockets;
  private readonly ownsSockets: boolean;
  private readonly filter: NftablesBackend | IptablesBackend | undefined;
  /** Table and namespace as they were named, to what they are: a namespace that is gone cannot be asked. */
  private readonly keys = new Map<string, string>();
  private readonly queues = new Map<string, Promise<unknown>>();
  private running = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(options: CapturesOptions = {}) {
    this.sockets = options.sockets ?? new NamespaceSockets();
    this.ownsSockets = options.sockets === undefined;
    const { onReleased = () => {} } = options;
    const released = (key: string) => {
      const alias = [...this.keys].find(([, known]) => known === key)?.[0];
      if (alias === undefined) return;
      const [table, path] = splitAlias(alias);
      onReleased(path, table);
    };
    const { only } = options;
    const find = (backend: string, name: string) => ((only ?? backend) === backend ? findProgram(name) : undefined);
    const nft = find('nftables', 'nft');
    const restore = ['iptables-nft-restore', 'ip6tables-nft-restore', 'iptables-nft-save', 'ip6tables-nft-save'].map(
      (name) => find('iptables-nft', name),
    );
    if (nft !== undefined) {
      this.backend = 'nftables';
      this.filter = new NftablesBackend(this.sockets, nft, released);
    } else if (restore.every((program) => program !== undefined)) {
      this.backend = 'iptables-nft';
      const [v4Restore, v6Restore, v4Save, v6Save] = restore as [string, string, string, string];
      this.filter = new IptablesBackend(this.sockets, [
        { family: 'v4', restore: v4Restore, save: v4Save },
        { family: 'v6', restore: v6Restore, save: v6Save },
      ]);
    } else {
      this.backend = null;
    }
  }

  /**
   * Installs a capture, or brings an installed one to the spec; without a difference nothing is touched. Afterwards
   * the rules have been read back. Never rejects. A spec for a namespace is refused for the own one unless
   * `own` is set: on a host that would capture everything there is.
   */
  install(target: NamespaceTarget, spec: CaptureSpec, own = false): Promise<CaptureDone | CaptureFailure> {
    return this.queued(target, spec.table, async (filter, key, found) => {
      if (!found.ok) return fromNamespace(found);
      if (spec.scope.kind === 'namespace' && !own) {
        const host = await this.sockets.identify(OWN_NAMESPACE);
        if (host.ok && host.identity === found.identity) {
          return captureFailure(
            'HOST_NAMESPACE',
            `${namespaceFile(target).path} is the network namespace of this process: capture users or a cgroup of it`,
          );
        }
      }
      this.keys.set(aliasOf(target, spec.table), key);
      return filter.install(target, key, spec);
    });
  }

  /** Removes a capture. A namespace that is gone has none, which is no failure. Never rejects. */
  remove(target: NamespaceTarget, table: string): Promise<CaptureDone | CaptureFailure> {
    return this.queued(target, table, async (filter, key) => {
      const result = await filter.remove(target, key, table);
      if (result.ok) this.keys.delete(aliasOf(target, table));
      return result;
    });
  }

  /** Compares what is installed with the spec. Never rejects. */
  status(target: NamespaceTarget, spec: CaptureSpec): Promise<CaptureStatus | CaptureFailure> {
    return this.queued(target, spec.table, (filter) => filter.status(target, spec));
  }

  /** Lets go of `failOpen` captures, which ends them; all others stay. */
  async close(): Promise<void> {
    await Promise.all(this.queues.values());
    await this.filter?.close();
    if (this.ownsSockets) await this.sockets.close();
  }

  private async queued<T>(
    target: NamespaceTarget,
    table: string,
    change: (
      filter: NftablesBackend | IptablesBackend,
      key: string,
      found: NamespaceIdentified | NamespaceFailure,
    ) => Promise<T>,
  ): Promise<T | CaptureFailure> {
    const { filter } = this;
    if (filter === undefined) {
      return captureFailure('NO_PACKET_FILTER', 'neither nft nor iptables-nft-restore is installed');
    }
    const alias = aliasOf(target, table);
    const found = await this.sockets.identify(target);
    if (!found.ok && found.code !== 'NAMESPACE_NOT_FOUND') return fromNamespace(found);
    const key = found.ok ? `${table}@${found.identity}` : (this.keys.get(alias) ?? alias);
    const queue = (this.queues.get(key) ?? Promise.resolve()).then(() =>
      this.limited(() => change(filter, key, found)),
    );
    this.queues.set(key, queue);
    const result = await queue;
    if (this.queues.get(key) === queue) this.queues.delete(key);
    return result;
  }

  private async limited<T>(change: () => Promise<T>): Promise<T> {
    if (this.running >= PARALLEL_MAX) await new Promise<void>((resolve) => this.waiting.push(resolve));
    else this.running++;
    try {
      return await change();
    } finally {
      // The place goes to the next in line, or is free.
      const next = this.waiting.shift();
      if (next === undefined) this.running--;
      else next();
    }
  }
}

function aliasOf(target: NamespaceTarget, table: string): string {
  return `${table}@${namespaceFile(target).path}`;
}

function splitAlias(alias: string): [string, string] {
  const at = alias.indexOf('@');
  return [alias.slice(0, at), alias.slice(at + 1)];
}
