// The heart of the control plane: the state of the mesh on one side, the streams of proxies on the other.
//
// Control thread of the control plane. A change reaches all streams in one turn, and each sends what its
// proxy is to know. Who waits for a version learns when every connected proxy serves it.

import type { Log } from '../../core/workers/log.ts';
import type { MeshIndex } from '../model/mesh-index.ts';
import type { MeshState, MeshUpdate } from '../model/mesh-state.ts';
import { type ProxyIdentity, ProxyStream, type ProxyTransport, type StreamContext } from './proxy-stream.ts';
import { Resources } from './resources.ts';
import type { TrustFeed } from './trust-feed.ts';

/** What became of a version that was waited for. */
export interface Applied {
  version: number;
  /** Every connected proxy serves it. */
  complete: boolean;
  /** Number of connected proxies. */
  proxies: number;
  /** The proxy that took longest, and how long after the change, in milliseconds; null: there is none. */
  slowest: { proxy: string; ms: number } | null;
  /** Proxies that refused something and therefore do not serve all of it. */
  refused: { proxy: string; reason: string; resources: string[] }[];
  /** Proxies that had not answered when the time was over. */
  waiting: string[];
}

interface Waiter {
  version: number;
  check(final: boolean): void;
}

/** Versions whose time is remembered. */
const VERSIONS_KEPT = 1024;

/** Distributes the state of the mesh. */
export class Discovery {
  readonly resources: Resources;
  private readonly log: Log;
  private readonly now: () => number;
  private readonly streams = new Set<ProxyStream>();
  private readonly waiters = new Set<Waiter>();
  private readonly versionMs = new Map<number, number>();
  private readonly trust: TrustFeed | null;
  private latest = 0;
  private isCutOff = false;

  /** `now`: milliseconds of a clock that never goes back. `trust`: sends trust bundles; null: none are sent. */
  constructor(
    log: Log,
    trustDomain: string,
    now: () => number = () => performance.now(),
    trust: TrustFeed | null = null,
  ) {
    this.log = log;
    this.now = now;
    this.trust = trust;
    this.resources = new Resources(log, {
      workloads: new Map(),
      services: new Map(),
      policies: new Map(),
      trustDomain,
    });
  }

  /** Version of the newest state, counted from 1; 0: no source has given one yet. */
  get version(): number {
    return this.latest;
  }

  /**
   * Whether it can be said of an address that nothing has it. Before there is a state, and while the source is cut off,
   * it may be that of something new; whoever asks would send there in plain text.
   */
  get tellsOutside(): boolean {
    return this.latest > 0 && !this.isCutOff;
  }

  /** Now, by the clock that times of streams are of. */
  get nowMs(): number {
    return this.now();
  }

  /** The newest state. */
  get state(): MeshState {
    return this.resources.index.state;
  }

  /** Indexes over the newest state. */
  get index(): MeshIndex {
    return this.resources.index;
  }

  /** The proxies that are connected, in the order in which they came. */
  get proxies(): readonly ProxyStream[] {
    return [...this.streams];
  }

  /** Takes a new state and sends it to whom it concerns. Returns its version. */
  update(update: MeshUpdate): number {
    const change = this.resources.apply(update);
    this.latest++;
    this.versionMs.set(this.latest, this.now());
    this.versionMs.delete(this.latest - VERSIONS_KEPT);
    for (const stream of this.streams) stream.recvChange(change);
    if (this.latest === 1) this.tellUnsaid();
    return this.latest;
  }

  /**
   * The source does not know any more what is new, or does again. Meanwhile nobody is told that an address is nothing's
   * who has not been told before; who has asked is told as soon as that is known.
   */
  setCutOff(isCutOff: boolean): void {
    this.isCutOff = isCutOff;
    this.tellUnsaid();
  }

  /** Takes a proxy in; hand its requests to the stream, and call `disconnect` at its end. */
  connect(identity: ProxyIdentity, transport: ProxyTransport): ProxyStream {
    const context: StreamContext = {
      resources: this.resources,
      log: this.log,
      now: this.now,
      version: () => this.latest,
      tellsOutside: () => this.tellsOutside,
      changed: () => this.checkWaiters(),
    };
    // The CA knows of the proxy before it is sent anything.
    const trust =
      identity.node === null ? undefined : this.trust?.connect(identity.node, (bytes) => transport.send(bytes));
    const stream = new ProxyStream(identity, transport, context, trust ?? null);
    this.streams.add(stream);
    return stream;
  }

  /** The stream of a proxy has ended. */
  disconnect(stream: ProxyStream): void {
    stream.close();
    if (stream.trust !== null) this.trust?.disconnect(stream.trust);
    this.streams.delete(stream);
    this.checkWaiters();
  }

  /**
   * Resolves when every connected proxy has confirmed the version (or a later one) or refused some of it,
   * or after `timeoutMs`. A proxy that leaves is not waited for, one that comes has to catch up.
   */
  applied(version: number, timeoutMs: number): Promise<Applied> {
    return new Promise((resolve) => {
      const check = (final: boolean): void => {
        const result = this.judge(version);
        if (result.waiting.length > 0 && !final) return;
        clearTimeout(timer);
        this.waiters.delete(waiter);
        resolve(result);
      };
      const waiter: Waiter = { version, check };
      const timer = setTimeout(() => check(true), timeoutMs);
      this.waiters.add(waiter);
      check(false);
    });
  }

  private tellUnsaid(): void {
    if (this.tellsOutside) for (const stream of this.streams) stream.tellUnsaid();
  }

  private judge(version: number): Applied {
    const startMs = this.versionMs.get(version) ?? 0;
    const result: Applied = { version, complete: true, proxies: 0, slowest: null, refused: [], waiting: [] };
    for (const stream of this.streams) {
      if (!stream.subscribed) continue;
      result.proxies++;
      const atMs = stream.reachedMs(version);
      const [refusal] = stream.refusals;
      if (atMs === null) result.waiting.push(stream.name);
      else if (refusal !== undefined) {
        result.refused.push({ proxy: stream.name, reason: refusal.reason, resources: refusal.names });
      } else {
        const ms = Math.max(0, atMs - startMs);
        if (result.slowest === null || ms > result.slowest.ms) result.slowest = { proxy: stream.name, ms };
      }
    }
    result.complete = result.waiting.length === 0 && result.refused.length === 0 && version <= this.latest;
    if (version > this.latest) result.waiting.push('the control plane');
    return result;
  }

  private checkWaiters(): void {
    for (const waiter of this.waiters) waiter.check(false);
  }
}
