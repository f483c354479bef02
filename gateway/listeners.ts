// Opens the listening sockets that a configuration needs, each in the network namespace that it belongs to.
//
// Workloads of a node proxy share one configuration, and any of them can take a port that the proxy needs in its
// namespace: it is left out then, so that it costs the others nothing.
// Control thread.

import type { Config, ListenerConfig } from '../config/config.ts';
import { formatAddress } from '../config/names.ts';
import { ExitCode, ExitError } from '../core/process/exit-codes.ts';
import { listenFailureSentence } from '../core/process/listen-failure.ts';
import type { ListenAddress, ListenFailure, ListeningSockets, ListenPlan } from '../core/workers/listening-sockets.ts';

/** Told that a workload of a node proxy cannot be listened for: configurations loaded from now on are without it. */
export type LeaveOut = (uid: string, problem: string) => void;

/** A configuration whose sockets are open. */
export interface Opened {
  config: Config;
  plan: ListenPlan;
}

/**
 * Opens what a configuration needs. Where that is not to be had for workloads of a node proxy, they are left out, and what
 * `reload` then gives is opened instead. Throws an ExitError with one sentence.
 */
export function openListeners(
  sockets: ListeningSockets,
  first: Config,
  reload: () => Config,
  leaveOut: LeaveOut,
): Opened {
  const left = new Set<string>();
  let config = first;
  for (;;) {
    const opened = tryAll(sockets, config);
    if (!(opened instanceof Map)) return { config, plan: opened };
    for (const [workload, failure] of opened) {
      const { uid } = config.mesh!.workloads[workload]!;
      // It was not left out: this would never end.
      if (left.has(uid)) throw cannotListen(failure);
      left.add(uid);
      leaveOut(uid, sentence(failure));
    }
    config = reload();
  }
}

/** Opens what a configuration needs; throws an ExitError with one sentence. */
export function planListeners(sockets: ListeningSockets, config: Config): ListenPlan {
  const plan = sockets.plan(config.listeners.map((listener) => listenAddress(listener, config)));
  if ('failure' in plan) throw cannotListen(plan.failure);
  return plan;
}

/** Everything open, or nothing and the workloads (by index) because of which. Throws an ExitError for other listeners. */
function tryAll(sockets: ListeningSockets, config: Config): ListenPlan | Map<number, ListenFailure> {
  const failed = new Map<number, ListenFailure>();
  for (;;) {
    const listeners = config.listeners.filter(({ mesh }) => mesh === undefined || !failed.has(mesh.workload));
    const addresses = listeners.map((listener) => listenAddress(listener, config));
    const plan = sockets.plan(addresses);
    if (!('failure' in plan)) {
      if (failed.size === 0) return plan;
      sockets.abandon(plan);
      return failed;
    }
    const { mesh } = listeners[addresses.indexOf(plan.failure.address)]!;
    if (mesh === undefined || mesh.role === 'virtual') throw cannotListen(plan.failure);
    failed.set(mesh.workload, plan.failure);
  }
}

/** Where a listener listens: those of workloads of a node in their network namespaces, virtual ones nowhere. */
function listenAddress({ name, host, port, mesh }: ListenerConfig, config: Config): ListenAddress {
  if (mesh === undefined) return { name, host, port };
  if (mesh.role === 'virtual') return { name, host, port, virtual: true };
  const { namespaceFd } = config.mesh!.workloads[mesh.workload]!;
  return namespaceFd < 0 ? { name, host, port } : { name, host, port, namespaceFd };
}

function cannotListen(failure: ListenFailure): ExitError {
  return new ExitError(ExitCode.CANNOT_LISTEN, sentence(failure));
}

function sentence({ address, errno }: ListenFailure): string {
  return listenFailureSentence(`listener ${address.name}`, formatAddress(address.host, address.port), errno);
}
