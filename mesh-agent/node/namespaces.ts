// The network namespaces that the node proxy has open, one descriptor per workload.
//
// A descriptor keeps its namespace alive, so it is closed as soon as nothing needs it. Workers only borrow it.
// Control thread of the node proxy. Needs CAP_SYS_ADMIN to look whether a namespace can be entered.

import { closeSync, constants, openSync, statSync } from 'node:fs';
import type { NamespaceSockets } from '../../core/ffi/netns.ts';
import { parkDescriptor } from '../../core/ffi/park.ts';
import { DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, TUNNEL_PORT } from '../capture/spec.ts';
import type { Workload } from '../model/mesh-state.ts';
import type { NamespaceFinder } from './namespace-finder.ts';

/** An open namespace. */
export interface OpenNamespace {
  fd: number;
  /** As it was found; it may lead elsewhere by now. */
  path: string;
  /** See `NamespaceOpened` of core/ffi/netns.ts. */
  identity: string;
  /** Number of the file: which namespace it is, for as long as it is open. */
  inode: string;
}

/** How long a workload that the packet workers could not listen for is not tried again. */
export const LEFT_OUT_MS = 5_000;

/** Ports that the proxy listens on inside. */
const PORTS = [DEFAULT_OUTBOUND_PORT, DEFAULT_INBOUND_PORT, TUNNEL_PORT];

/** Opens namespaces of workloads and notices when they are others. */
export class Namespaces {
  private readonly finder: NamespaceFinder;
  private readonly sockets: NamespaceSockets;
  private readonly open = new Map<string, OpenNamespace>();
  /** Why a workload has none, by uid. */
  private readonly problems = new Map<string, string>();
  /** Namespaces that are not tried again for a while, by uid. */
  private readonly leftOut = new Map<string, { inode: string; untilMs: number }>();

  /** `sockets` is used and not closed. */
  constructor(finder: NamespaceFinder, sockets: NamespaceSockets) {
    this.finder = finder;
    this.sockets = sockets;
  }

  /** The namespace of a workload; undefined: there is none, `problemOf` says why. */
  get(uid: string): OpenNamespace | undefined {
    return this.open.get(uid);
  }

  /** Why a workload has no namespace; undefined: it has one, or is not known. */
  problemOf(uid: string): string | undefined {
    return this.problems.get(uid);
  }

  /**
   * A workload is not to be served for a while, since the workers cannot listen in its namespace. Returns what is not in
   * use any more, like `update`.
   */
  leaveOut(uid: string, problem: string): OpenNamespace[] {
    const known = this.open.get(uid);
    this.problems.set(uid, problem);
    if (known === undefined) return [];
    this.open.delete(uid);
    this.leftOut.set(uid, { inode: known.inode, untilMs: performance.now() + LEFT_OUT_MS });
    return [known];
  }

  /**
   * Finds and opens the namespaces of the workloads, and notices those that were replaced or are gone. Returns
   * what is not in use any more: the caller lets go of it with `releaseNamespace` when nothing uses it. Never rejects.
   */
  async update(workloads: readonly Workload[]): Promise<{ changed: boolean; dropped: OpenNamespace[] }> {
    const dropped: OpenNamespace[] = [];
    const drop = (uid: string): void => {
      const known = this.open.get(uid);
      if (known !== undefined) dropped.push(known);
      this.open.delete(uid);
    };
    const uids = new Set(workloads.map(({ uid }) => uid));
    for (const uid of this.open.keys()) if (!uids.has(uid)) drop(uid);
    for (const uid of this.problems.keys()) if (!uids.has(uid)) this.problems.delete(uid);
    for (const uid of this.leftOut.keys()) if (!uids.has(uid)) this.leftOut.delete(uid);
    this.finder.refresh();
    const problemsBefore = JSON.stringify([...this.problems]);
    let opened = false;
    for (const workload of workloads) {
      const { uid } = workload;
      const found = this.finder.find(workload);
      if ('problem' in found) {
        drop(uid);
        this.problems.set(uid, found.problem);
        continue;
      }
      const inode = inodeOf(found.path);
      const known = this.open.get(uid)?.inode;
      // Which namespace was looked at counts for more than where its path leads by now.
      if (known !== undefined && (found.inode === undefined ? known === inode : numberOf(known) === found.inode))
        continue;
      const left = this.leftOut.get(uid);
      if (left !== undefined && left.inode === inode && left.untilMs > performance.now()) continue;
      this.leftOut.delete(uid);
      drop(uid);
      const namespace = await this.openOne(workload, found);
      if (typeof namespace === 'string') {
        this.problems.set(uid, namespace);
        continue;
      }
      this.problems.delete(uid);
      this.open.set(uid, namespace);
      opened = true;
    }
    const problemsChanged = JSON.stringify([...this.problems]) !== problemsBefore;
    return { changed: opened || dropped.length > 0 || problemsChanged, dropped };
  }

  /** Closes everything. */
  closeAll(): void {
    for (const { fd } of this.open.values()) closeSync(fd);
    this.open.clear();
  }

  /** A namespace, or what is wrong with it. */
  private async openOne(
    { uid, addresses }: Workload,
    { path, inode: wanted }: { path: string; inode?: string },
  ): Promise<OpenNamespace | string> {
    for (const [other, { inode }] of this.open) {
      // One namespace has one capture: whose traffic it is could not be told.
      if (other !== uid && inode === inodeOf(path)) return `${path} is the network namespace of ${other} already`;
    }
    let fd: number;
    try {
      // A path that names a FIFO must not hold the thread.
      fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT') return `there is no network namespace ${path}`;
      return message;
    }
    // What is open, whatever the path leads to by now.
    const file = `/proc/self/fd/${fd}`;
    const inode = inodeOf(file) ?? '';
    // The process may have ended since it was looked at, and another one, in another namespace, have its number.
    if (wanted !== undefined && numberOf(inode) !== wanted) {
      closeSync(fd);
      return `${path} has become another network namespace while it was opened`;
    }
    const own = inodeOf('/proc/self/ns/net');
    if (inode === own) {
      closeSync(fd);
      return `${path} is the network namespace of the node itself`;
    }
    const identified = await this.sockets.identify(file);
    const problem = identified.ok
      ? await this.taken({ path: file, identity: identified.identity }, addresses)
      : identified.message;
    if (!identified.ok || problem !== undefined) {
      closeSync(fd);
      return problem!.replaceAll(file, path);
    }
    return { fd, path, identity: identified.identity, inode };
  }

  /** Why the proxy cannot listen there. It is left out at once, and not only when the workers are to listen. */
  private async taken(
    target: { path: string; identity: string },
    addresses: readonly string[],
  ): Promise<string | undefined> {
    const hosts = ['0.0.0.0', ...(addresses.some((address) => address.includes(':')) ? ['::'] : [])];
    for (const port of PORTS) {
      for (const host of hosts) {
        const tried = await this.sockets.open(target, { kind: 'listen', host, port });
        if (!tried.ok) return tried.message;
        for (const fd of tried.fds) closeSync(fd);
      }
    }
    return undefined;
  }
}

/** How long the number of a descriptor stays taken after the last use that is known of. */
const PARKED_MS = 600_000;

/**
 * Lets go of a namespace that is not configured any more: of the namespace itself after `delayMs`, or at once when it
 * has no other name, since it would live on for this; of the number much later.
 */
export function releaseNamespace({ fd, path, inode }: OpenNamespace, delayMs: number): void {
  const release = (): void => {
    parkDescriptor(fd);
    setTimeout(() => closeSync(fd), PARKED_MS).unref();
  };
  if (inodeOf(path) === inode) setTimeout(release, delayMs).unref();
  else release();
}

/** Number of the file alone, as it is with namespaces. */
function numberOf(inode: string): string {
  return inode.slice(inode.indexOf(':') + 1);
}

function inodeOf(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}
