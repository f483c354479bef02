// The state of the mesh from Kubernetes: six collections of one API server, listed and watched, made into one.
//
// Nothing is told before every collection is complete, or the first state would lack what has not come yet. After
// that a lone change is told at once, and of many in a row those that came together. While the server is away the
// last state stays: endpoints that die are found out by the proxies themselves.
//
//   reflectors (one per collection) --> Cluster (records, indexes) --> Translator --> onUpdate
//
// A further collection that has a place in the mesh's state (a policy of ours as a custom resource, say) is one more
// entry in `follow`, a record in records.ts and a function in workloads.ts.
// Owned by one control thread.

import type { Log } from '../../core/workers/log.ts';
import type { RunsOnNode, TokenReviewer } from '../identity/attestation.ts';
import { parseWorkloadIdentity } from '../identity/spiffe.ts';
import type { MeshSource, MeshUpdate } from '../model/mesh-state.ts';
import { ApiClient, type KubeConfigLocation, kubeConfigLoader, type LoadKubeConfig } from './api-client.ts';
import { ApiError } from './api-error.ts';
import type { BackoffSettings } from './backoff.ts';
import { namespaceRecord, nodeRecord, podRecord, serviceRecord, sliceRecord } from './records.ts';
import { type Project, Reflector, type ReflectorState } from './reflector.ts';
import type { Resource } from './resource-list.ts';
import { KubernetesTokenReviewer } from './token-review.ts';
import { Translator } from './translator.ts';
import type { ClusterSettings } from './workloads.ts';

/** A lone change waits so long for company. */
const QUIET_MS = 10;

/** States follow each other no faster than this, however much changes. */
const INTERVAL_MS = 100;

/** So long a service account may be behind the pods that have it; a refused node asks again much later. */
const ACCOUNT_WAIT_MS = 3000;

/** A question that waits for a change of service accounts. */
interface AccountWait {
  timer: NodeJS.Timeout;
  resolve: () => void;
}

/** Where the cluster is and how it is to be read. */
export interface KubernetesSourceOptions extends Partial<ClusterSettings> {
  /** Credentials: a place, or a function that makes the library's configuration. */
  kubeConfig?: KubeConfigLocation | LoadKubeConfig;
  log: Log;
  /** Objects per page of a list. */
  pageSize?: number;
  backoff?: BackoffSettings;
  /** Milliseconds of a clock that never goes back, for `behindMs`; absent: performance.now(). */
  now?: () => number;
}

/** What the source is doing, for status and metrics. */
export interface KubernetesSourceState {
  /** Every collection is complete. */
  synced: boolean;
  collections: ReflectorState[];
  updates: number;
}

/** Collections, with what is not needed of them left at the server. */
const RESOURCES = {
  pods: {
    name: 'pods',
    path: '/api/v1/pods',
    metadataOnly: false,
    // Finished jobs would be most of the pods in some clusters, and their addresses belong to others by now.
    fieldSelector: 'status.phase!=Succeeded,status.phase!=Failed',
  },
  services: { name: 'services', path: '/api/v1/services', metadataOnly: false },
  endpointSlices: {
    name: 'endpointslices',
    path: '/apis/discovery.k8s.io/v1/endpointslices',
    metadataOnly: false,
    // Those that Kubernetes derives from selectors say nothing new, later (see workloads.ts).
    labelSelector: 'endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io',
  },
  namespaces: { name: 'namespaces', path: '/api/v1/namespaces', metadataOnly: true },
  nodes: { name: 'nodes', path: '/api/v1/nodes', metadataOnly: true },
  serviceAccounts: { name: 'serviceaccounts', path: '/api/v1/serviceaccounts', metadataOnly: true },
} satisfies Record<string, Resource>;

/** The collections that say which addresses are of the mesh. */
const OF_ADDRESSES: ReadonlySet<string> = new Set(['pods', 'services', 'endpointslices']);

/** Pods, services and what belongs to them, from one cluster. */
export class KubernetesSource implements MeshSource {
  readonly name = 'kubernetes';
  private readonly options: KubernetesSourceOptions;
  private readonly client: ApiClient;
  private readonly load: LoadKubeConfig;
  private readonly translator: Translator;
  private readonly reflectors: Reflector<unknown>[] = [];
  private readonly accounts: ReadonlyMap<string, unknown>;
  private readonly accountWaits = new Set<AccountWait>();
  private onUpdate: ((update: MeshUpdate) => void) | null = null;
  private onFirst: (() => void) | null = null;
  private timer: NodeJS.Timeout | undefined;
  private lastUpdateMs = Number.NEGATIVE_INFINITY;
  private updates = 0;
  private synced = false;
  private closed = false;

  constructor(options: KubernetesSourceOptions) {
    this.options = options;
    const { kubeConfig = {} } = options;
    this.load = typeof kubeConfig === 'function' ? kubeConfig : kubeConfigLoader(kubeConfig);
    this.client = new ApiClient(this.load);
    this.translator = new Translator({
      clusterId: options.clusterId ?? 'Kubernetes',
      clusterDomain: options.clusterDomain ?? 'cluster.local',
      trustDomain: options.trustDomain ?? 'cluster.local',
      meshByDefault: options.meshByDefault ?? false,
    });
    const { cluster } = this.translator;
    this.follow(RESOURCES.namespaces, namespaceRecord, (key, value) => cluster.setNamespace(key, value));
    this.follow(RESOURCES.nodes, nodeRecord, (key, value) => cluster.setNode(key, value));
    this.follow(RESOURCES.services, serviceRecord, (key, value, before) => cluster.setService(key, value, before));
    this.follow(RESOURCES.endpointSlices, sliceRecord, (key, value, before) => cluster.setSlice(key, value, before));
    this.follow(RESOURCES.pods, podRecord, (key, value, before) => cluster.setPod(key, value, before));
    // Only that there is one.
    const accounts = this.follow(
      RESOURCES.serviceAccounts,
      () => true as const,
      () => this.tellAccountWaits(),
    );
    this.accounts = accounts.objects;
  }

  /**
   * See MeshSource. Rejects with ApiError `no-credentials` when there are none; a server that cannot be reached, or
   * refuses, is asked again until `close`.
   */
  async start(onUpdate: (update: MeshUpdate) => void): Promise<void> {
    await this.load();
    if (this.closed) throw new ApiError('unreachable', 'the source was closed before it had started');
    this.onUpdate = onUpdate;
    const first = new Promise<void>((resolve) => {
      this.onFirst = resolve;
    });
    for (const reflector of this.reflectors) reflector.start();
    await first;
    if (this.updates === 0) throw new ApiError('unreachable', 'the source was closed before its first state');
  }

  /** See MeshSource. */
  async close(): Promise<void> {
    this.closed = true;
    this.onUpdate = null;
    clearTimeout(this.timer);
    await Promise.all(this.reflectors.map((reflector) => reflector.close()));
    this.client.close();
    this.onFirst?.();
    this.tellAccountWaits();
  }

  /** See MeshSource. */
  get behindMs(): number {
    const ofAddresses = this.reflectors.filter(({ state }) => OF_ADDRESSES.has(state.resource));
    return Math.max(...ofAddresses.map(({ behindMs }) => behindMs));
  }

  /** What every collection is doing. */
  get state(): KubernetesSourceState {
    return {
      synced: this.synced,
      collections: this.reflectors.map(({ state }) => ({ ...state })),
      updates: this.updates,
    };
  }

  /**
   * For the certificate service: a node may have the identities of the pods that run there, and of no others. Pods
   * outlive a service account that is deleted, as processes; its identity ends, as its tokens do.
   */
  readonly runsOnNode: RunsOnNode = async (node, identity) =>
    this.translator.runsOnNode(node, identity) && (await this.hasServiceAccount(identity));

  /** Waits a moment for an account that is not known: it may be as new as the pod, and its watch the slower one. */
  private async hasServiceAccount(identity: string): Promise<boolean> {
    const { namespace, serviceAccount } = parseWorkloadIdentity(identity);
    const key = `${namespace}/${serviceAccount}`;
    const untilMs = performance.now() + ACCOUNT_WAIT_MS;
    while (!this.accounts.has(key)) {
      const leftMs = untilMs - performance.now();
      if (leftMs <= 0 || this.closed) return false;
      await new Promise<void>((resolve) => {
        const wait = { timer: setTimeout(() => this.endAccountWait(wait), leftMs), resolve };
        this.accountWaits.add(wait);
      });
    }
    return true;
  }

  private tellAccountWaits(): void {
    for (const wait of [...this.accountWaits]) this.endAccountWait(wait);
  }

  private endAccountWait(wait: AccountWait): void {
    clearTimeout(wait.timer);
    this.accountWaits.delete(wait);
    wait.resolve();
  }

  /** Reviews service-account tokens with the same API server, for one audience. */
  tokenReviewer(audience: string): TokenReviewer {
    const nodeOfPod = (namespace: string, pod: string, uid: string): string =>
      this.translator.nodeOfPod(namespace, pod, uid);
    return new KubernetesTokenReviewer({ client: this.client, audience, nodeOfPod });
  }

  private follow<T>(
    resource: Resource,
    project: Project<T>,
    onChange: (key: string, value: T | undefined, before: T | undefined) => void,
  ): Reflector<T> {
    const { log, pageSize, backoff, now } = this.options;
    const reflector = new Reflector<T>({
      client: this.client,
      resource,
      project,
      onChange: (key, value, before) => {
        onChange(key, value, before);
        this.schedule();
      },
      onListed: () => this.listed(),
      log,
      ...(pageSize === undefined ? {} : { pageSize }),
      ...(backoff === undefined ? {} : { backoff }),
      ...(now === undefined ? {} : { now }),
    });
    this.reflectors.push(reflector as Reflector<unknown>);
    return reflector;
  }

  private listed(): void {
    if (this.synced || !this.reflectors.every(({ state }) => state.synced)) return;
    this.synced = true;
    this.schedule();
  }

  private schedule(): void {
    if (!this.synced || this.closed || this.timer !== undefined) return;
    const waitMs = Math.max(QUIET_MS, this.lastUpdateMs + INTERVAL_MS - performance.now());
    this.timer = setTimeout(() => this.tell(), waitMs);
  }

  private tell(): void {
    this.timer = undefined;
    this.lastUpdateMs = performance.now();
    const update = this.translator.update();
    if (update === null || this.onUpdate === null) return;
    this.updates++;
    this.onUpdate(update);
    this.onFirst?.();
    this.onFirst = null;
  }
}
