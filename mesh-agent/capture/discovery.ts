// What there is to capture on a plain host: network namespaces, by name and by process.
//
// A name under /run/netns is a mount of the namespace; one that was removed, or came from before a restart of the
// machine, is an empty file there. Reads /run/netns and /proc only; changes nothing.
// Source: ip-netns(8), network_namespaces(7), cgroups(7).

import { readdirSync, readFileSync, readlinkSync, statfsSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** Where `ip netns` keeps its names. */
const NETNS_FOLDER = '/run/netns';

/** Type of the file system that namespace files are on (linux/magic.h). */
const NSFS_MAGIC = 0x6e736673;

/** A network namespace that lives. */
export interface DiscoveredNamespace {
  /** Number of its file, for as long as it lives. */
  inode: string;
  /** A path that leads there: of the name if it has one, otherwise of a process. */
  path: string;
  /** Names under /run/netns. */
  names: string[];
  /** Processes in it, lowest first. */
  pids: number[];
  /** Whether it is the namespace of this process. */
  own: boolean;
}

/** The path of a namespace given as a path, or as a name under /run/netns; undefined: no such name is possible. */
export function namespacePath(nameOrPath: string): string | undefined {
  if (nameOrPath.startsWith('/')) return nameOrPath;
  if (nameOrPath === '' || nameOrPath.includes('/') || nameOrPath === '.' || nameOrPath === '..') return undefined;
  return join(NETNS_FOLDER, nameOrPath);
}

/** Whether the path leads to a namespace now (of whatever type). */
export function isNamespaceFile(path: string): boolean {
  try {
    return statfsSync(path).type === NSFS_MAGIC;
  } catch {
    return false;
  }
}

/** All network namespaces that have a name or a process that this one may look at. */
export function listNamespaces(): DiscoveredNamespace[] {
  const found = new Map<string, DiscoveredNamespace>();
  const own = inodeOf('/proc/self/ns/net');
  const at = (inode: string, path: string): DiscoveredNamespace => {
    let namespace = found.get(inode);
    if (namespace === undefined) {
      namespace = { inode, path, names: [], pids: [], own: inode === own };
      found.set(inode, namespace);
    }
    return namespace;
  };
  for (const name of entries(NETNS_FOLDER)) {
    const path = join(NETNS_FOLDER, name);
    const inode = isNamespaceFile(path) ? inodeOf(path) : undefined;
    if (inode !== undefined) at(inode, path).names.push(name);
  }
  const pids = entries('/proc').filter((name) => /^\d+$/.test(name));
  for (const pid of pids.map(Number).sort((a, b) => a - b)) {
    const path = `/proc/${pid}/ns/net`;
    const inode = inodeOfLink(path);
    if (inode !== undefined) at(inode, path).pids.push(pid);
  }
  return [...found.values()];
}

/**
 * Uid of the Kubernetes Pod that a process is in, by its control groups; undefined: none that could be told (processes of
 * static pods have another name there).
 */
export function podOfProcess(pid: number): string | undefined {
  try {
    return podOfCgroups(readFileSync(`/proc/${pid}/cgroup`, 'utf8'));
  } catch {
    return undefined;
  }
}

/** The same of the text of such a file: `.../pod<uid>/...`, or with systemd `...-pod<uid with underscores>.slice/...`. */
export function podOfCgroups(text: string): string | undefined {
  const found = /[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice)?(?:\/|$)/m.exec(text);
  return found?.[1]?.replaceAll('_', '-');
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}

/** Number of the network namespace that a process is in; undefined: it is gone, or may not be looked at. */
export function namespaceOfProcess(pid: number): string | undefined {
  return inodeOfLink(`/proc/${pid}/ns/net`);
}

function inodeOf(path: string): string | undefined {
  try {
    return String(statSync(path, { bigint: true }).ino);
  } catch {
    return undefined;
  }
}

/** Links of /proc say the number without being followed, which needs fewer rights. */
function inodeOfLink(path: string): string | undefined {
  try {
    return /^net:\[(\d+)\]$/.exec(readlinkSync(path))?.[1];
  } catch {
    return undefined;
  }
}
