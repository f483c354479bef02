// The captures of a node's workloads: installed when their sockets listen, removed when they have left the mesh.
//
// A workload that cannot be served any more but is still of the mesh keeps its capture: its traffic is refused, and
// does not go around the mesh. Changes run beside everything else; what fails is tried again. Installed ones are compared
// with what they should be now and then: without its rules a workload goes around the mesh, whoever removed them.
// Control thread of the node proxy.

import type { NamespaceSockets } from '../../core/ffi/netns.ts';
import type { Log } from '../../core/workers/log.ts';
import { Captures } from '../capture/capture.ts';
import { type CaptureInput, type CaptureSpec, parseCapture, tableName } from '../capture/spec.ts';
import type { OpenNamespace } from './namespaces.ts';
import type { NodeConfig } from './node-config.ts';

/** How long after a failure a capture is tried again. */
const RETRY_MS = 5_000;

/**
 * How often installed captures are looked at, all of them one after the other: a look is a program run of some
 * milliseconds, and the thread that enters namespaces has 10 MiB for as long as there is something to do.
 */
const CHECK_EVERY_MS = 60_000;

/** How the capture of a workload stands. */
export type CaptureState = 'installed' | 'pending' | 'failed' | 'off';

interface Entry {
  name: string;
  namespace: OpenNamespace;
  state: CaptureState;
  /** Why it failed. */
  problem: string;
  retryAtMs: number;
}

/** Captures of one node proxy. */
export class WorkloadCaptures {
  private readonly log: Log;
  private readonly spec: CaptureSpec;
  private readonly captures: Captures;
  private readonly own: boolean;
  private readonly entries = new Map<string, Entry>();
  private readonly ticks: NodeJS.Timeout;
  private checking = false;

  /** `sockets` is used and not closed. `own`: the namespace of this process is that of its workload. */
  constructor(
    config: NonNullable<NodeConfig['capture']>,
    sockets: NamespaceSockets,
    log: Log,
    own = false,
    checkEveryMs = CHECK_EVERY_MS,
  ) {
    this.log = log;
    this.own = own;
    const { failClosed, ...exclusions } = config;
    const parsed = parseCapture({ ...(exclusions as CaptureInput), failOpen: !failClosed });
    if ('faults' in parsed) throw new Error(parsed.faults.join('; '));
    // A pod may get a sidecar, or lose it: the proxy of the node and that of the pod do not remove each other's rules.
    this.spec = own ? { ...parsed.spec, table: tableName('sidecar') } : parsed.spec;
    this.captures = new Captures({ sockets, onReleased: (target) => this.released(target) });
    this.ticks = setInterval(() => void this.check(), checkEveryMs).unref();
  }

  /** Sees to it that the workload is captured: to be called whenever it is served. Resolves when it has been tried. */
  async install(uid: string, name: string, namespace: OpenNamespace): Promise<void> {
    const known = this.entries.get(uid);
    const isSame = known?.namespace.identity === namespace.identity;
    if (isSame && (known.state !== 'failed' || known.retryAtMs > performance.now())) return;
    const entry: Entry = { name, namespace, state: 'pending', problem: '', retryAtMs: 0 };
    this.entries.set(uid, entry);
    const { path, identity } = namespace;
    const result = await this.captures.install({ path, identity }, this.spec, this.own);
    // It may have left, or moved, meanwhile.
    if (this.entries.get(uid) !== entry) return;
    if (result.ok) {
      entry.state = 'installed';
      if (result.changed) this.log('info', 'workload captured', { workload: name });
    } else {
      entry.state = 'failed';
      entry.retryAtMs = performance.now() + RETRY_MS;
      if (known === undefined || !isSame || known.problem !== result.message) {
        this.log('error', 'workload is not captured', { workload: name, code: result.code, problem: result.message });
      }
      entry.problem = result.message;
    }
  }

  /** Ends the captures of all workloads but these: those that are not of the mesh any more. Resolves when that is done. */
  async keepOnly(uids: ReadonlySet<string>): Promise<void> {
    const gone = [...this.entries].filter(([uid]) => !uids.has(uid));
    for (const [uid] of gone) this.entries.delete(uid);
    await Promise.all(gone.map(([uid, { namespace }]) => this.remove(uid, namespace)));
  }

  /** How the capture of a workload stands. */
  stateOf(uid: string): { state: CaptureState; problem: string } {
    const { state = 'pending', problem = '' } = this.entries.get(uid) ?? {};
    return { state, problem };
  }

  /** Those that fail open end; all others stay. */
  close(): Promise<void> {
    clearInterval(this.ticks);
    return this.captures.close();
  }

  private async remove(uid: string, { path, identity }: OpenNamespace): Promise<void> {
    const result = await this.captures.remove({ path, identity }, this.spec.table);
    if (result.ok || result.code === 'NAMESPACE_CHANGED') return;
    this.log('warn', 'a capture cannot be removed', { workload: uid, code: result.code, problem: result.message });
  }

  /** Looks at what is installed, and installs again what is not as it should be. */
  private async check(): Promise<void> {
    if (this.checking) return;
    this.checking = true;
    for (const [uid, entry] of [...this.entries]) {
      if (entry.state !== 'installed' || this.entries.get(uid) !== entry) continue;
      const { path, identity } = entry.namespace;
      const status = await this.captures.status({ path, identity }, this.spec);
      // A namespace that is gone is the business of those who look for namespaces.
      if (this.entries.get(uid) !== entry || !status.ok || status.state === 'installed') continue;
      await this.reinstall(uid, entry, status.state === 'absent' ? 'its rules are gone' : 'its rules were changed');
    }
    this.checking = false;
  }

  private released(target: unknown): void {
    const { path = target } = target as { path?: string };
    for (const [uid, entry] of this.entries) {
      if (entry.namespace.path === path) void this.reinstall(uid, entry, 'its holder is gone');
    }
  }

  private async reinstall(uid: string, entry: Entry, problem: string): Promise<void> {
    const { name, namespace } = entry;
    this.log('warn', 'a capture was lost, and is installed again', { workload: name, problem });
    entry.state = 'failed';
    entry.problem = problem;
    await this.install(uid, name, namespace);
  }
}
