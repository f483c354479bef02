// The node proxy's agent: knows the mesh, holds the identities of this node's workloads, has their namespaces open and
// their connections captured, and makes configurations of all that for the packet workers.
//
//   control plane, certificates, trust, namespaces --> something has changed --> a round:
//     namespaces, identities --> buildConfig --> App.reload --> captures
//
// Rounds never overlap. Changes within a short time are one round, and under a storm of them a round starts no sooner
// than the one before it took.
// Owned by the control thread of the node proxy.

import { hash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { ChannelCredentials } from '@grpc/grpc-js';
import type { LoadResult } from '../../config/load.ts';
import { NamespaceSockets } from '../../core/ffi/netns.ts';
import type { Log } from '../../core/workers/log.ts';
import type { WorkloadCertificateSettings } from '../../core/workers/mesh-settings.ts';
import type { App, Reloaded } from '../../gateway/app.ts';
import { XdsClient } from '../control/xds-client.ts';
import { CertificateClient } from '../identity/certificate-client.ts';
import { IdentityError } from '../identity/errors.ts';
import { makePrivateDirectory } from '../identity/private-files.ts';
import { type ServerName, serverNameOf } from '../identity/server-name.ts';
import { bundleToPem, type TrustBundle } from '../identity/trust-bundle.ts';
import { TrustStore } from '../identity/trust-store.ts';
import { WorkloadCertificates } from '../identity/workload-certificates.ts';
import { identityOf, type Workload } from '../model/mesh-state.ts';
import { buildConfig, type LocalWorkload } from './build-config.ts';
import { WorkloadCaptures } from './captures.ts';
import { Confirmations } from './confirmations.ts';
import { ControlRelay, REDIS_SOCKET } from './control-relay.ts';
import { Demand } from './demand.ts';
import { HostNamespaces } from './namespace-finder.ts';
import { Namespaces, type OpenNamespace, releaseNamespace } from './namespaces.ts';
import { type NodeConfig, statePaths } from './node-config.ts';
import { OwnNamespace, type WorkloadNamespaces } from './own-namespace.ts';
import { connectMarked, ProbeDialer } from './probe-dialer.ts';
import { hostOfControlPlane, proxyIdentity, servedAs, servedWorkloads } from './served-workloads.ts';

/** Shortest time from the end of a round to the next. */
const ROUND_GAP_MS = 50;
/** How often the machine is looked at for namespaces that have come, gone or changed. */
const NAMESPACES_EVERY_MS = 1_000;
/** How long after a configuration was refused another one is made. */
const RETRY_MS = 5_000;

/** What is known of the mesh. */
type Knowledge = 'nothing' | 'saved' | 'current';

/** The agent of one node. Create it with `NodeAgent.open`. */
export class NodeAgent {
  /** The proxy's own identity: that of the node, or of the workload whose sidecar it is. */
  readonly identity: string;
  readonly trust: TrustStore;
  readonly certificates: WorkloadCertificates;
  readonly xds: XdsClient;
  readonly namespaces: WorkloadNamespaces;
  readonly captures: WorkloadCaptures | null;
  /** What is asked for when it is used; null: all is known. */
  readonly demand: Demand | null;
  /** How health checks reach endpoints. */
  readonly prober: ProbeDialer;
  /** What cannot be done as the mesh has it written. */
  problems: string[] = [];
  private node: NodeConfig;
  private readonly log: Log;
  private readonly sockets = new NamespaceSockets();
  private readonly client: CertificateClient;
  private readonly serverName: ServerName;
  /** Its way to the control plane, where its own connections are captured; null: there is no need for one. */
  private readonly relay: ControlRelay | null;
  /** Its way to Redis, for the same reason; null: it has needed none so far. */
  private redisRelay: ControlRelay | null = null;
  private readonly ending = new AbortController();
  private app: App | undefined;
  private knowledge: Knowledge = 'nothing';
  /** What the running configuration was made of. */
  private served: Knowledge = 'nothing';
  /** The same of the last one made. */
  private made: Knowledge = 'nothing';
  /** Identity that is held for each workload, by uid. */
  private readonly held = new Map<string, string>();
  private readonly reported = new Map<string, string>();
  private dirty = false;
  private running = false;
  private timer: NodeJS.Timeout | undefined;
  private poll: NodeJS.Timeout | undefined;
  private retryTimer: NodeJS.Timeout | undefined;
  private nextRoundMs = 0;
  private readonly confirmations = new Confirmations();
  /** Namespaces that the workers may still use. */
  private leaving: OpenNamespace[] = [];

  private constructor(node: NodeConfig, trust: TrustStore, log: Log) {
    this.node = node;
    this.trust = trust;
    this.log = log;
    this.identity = proxyIdentity(node);
    const { serverName: name } = node.controlPlane;
    this.serverName = serverNameOf(node.controlPlane.address, name ?? undefined);
    const { certificates, mesh } = statePaths(node.stateDirectory);
    this.relay =
      node.sidecar === null
        ? null
        : new ControlRelay(node.controlPlane.address, node.stateDirectory, this.sockets, log);
    const address = this.relay?.target ?? node.controlPlane.address;
    this.client = new CertificateClient({
      address,
      shownAddress: node.controlPlane.address,
      serverName: name ?? hostOfControlPlane(node),
      trust,
      token: () => readToken(node.token.file),
      certificate: () => this.certificates.get(this.identity),
    });
    this.certificates = new WorkloadCertificates({ source: this.client, trust, log, directory: certificates });
    this.certificates.onChange(() => this.changed());
    trust.onChange(() => this.changed());
    const own = node.sidecar !== null;
    this.namespaces = own ? new OwnNamespace(this.sockets) : new Namespaces(new HostNamespaces(), this.sockets);
    this.prober = new ProbeDialer({
      certificate: () => this.certificates.get(this.identity),
      bundle: () => trust.current,
      ...(own ? { connect: connectMarked(this.sockets) } : {}),
    });
    this.captures = node.capture === null ? null : new WorkloadCaptures(node.capture, this.sockets, log, own);
    this.xds = new XdsClient({
      address,
      shownAddress: node.controlPlane.address,
      serverName: this.serverName.override,
      credentials: () => this.credentials(),
      id: node.node,
      node: servedAs(node),
      scope: node.discovery.scope === 'all' ? 'mesh' : 'node',
      trustDomain: node.trustDomain,
      stateFile: mesh,
      onUpdate: () => this.meshChanged(),
      onDoubt: (names) => this.demand?.doubt(names),
      onOld: (names) => this.demand?.forget(names),
      use: () => this.useMesh(),
      log,
      trust: {
        store: trust,
        use: (bundle) => this.useBundle(bundle),
        rootsInUse: () => this.certificates.rootsInUse(),
        onRootsChange: (listener) => this.certificates.onChange(listener),
      },
    });
    this.demand = node.discovery.scope === 'all' ? null : this.newDemand();
  }

  /**
   * Opens what an earlier process has left: the state of the mesh, certificates, roots; begins to connect. Rejects
   * with an IdentityError for a state directory or roots that cannot be used, and with the system's error.
   */
  static async open(node: NodeConfig, log: Log): Promise<NodeAgent> {
    await makePrivateDirectory(node.stateDirectory);
    const trust = await openTrust(node, log);
    const agent = new NodeAgent(node, trust, log);
    await agent.relay?.start();
    await agent.relayRedis();
    agent.certificates.hold(agent.identity);
    await agent.xds.start();
    agent.demand?.start();
    void agent.xds.synced().then(() => agent.synced());
    await agent.prepare();
    return agent;
  }

  /** Configuration as it is in force. */
  get config(): NodeConfig {
    return this.node;
  }

  /**
   * Workloads that this proxy is to serve, by uid. None while only a part of the mesh may be known: traffic for the
   * rest of it would be taken for traffic that leaves it.
   */
  get workloads(): Workload[] {
    if (this.knowledge === 'nothing') return [];
    return servedWorkloads(this.node, this.xds.index);
  }

  /** Why this proxy should not be counted on yet. */
  get unready(): string[] {
    return this.served === 'nothing' ? ['the mesh is not known yet'] : [];
  }

  /** Where what is known of the mesh comes from. */
  get knows(): Knowledge {
    return this.served;
  }

  /** A configuration of what is known now, for the App. */
  readonly load = (): LoadResult => {
    const { config, problems } = buildConfig({
      ...{ node: this.node, index: this.xds.index, workloads: this.local() },
      isWhole: (service) => this.xds.isWhole(service),
    });
    const before = new Set(this.problems);
    for (const problem of problems) {
      if (!before.has(problem)) this.log('warn', 'the mesh is not served as it is written', { problem });
    }
    this.problems = problems;
    this.made = this.knowledge;
    return { config, warnings: async () => [] };
  };

  /** From now on changes reach the workers of the app, which was started with `load`. */
  run(app: App): void {
    this.app = app;
    this.served = this.made;
    app.takeDestinationQuestions((questions) => this.demand?.receive(questions));
    void this.install();
    this.poll = setInterval(() => this.look(), NAMESPACES_EVERY_MS);
    if (this.dirty) this.schedule();
  }

  /** A workload is not to be in configurations for a while: its namespace cannot be listened in. */
  readonly leaveOut = (uid: string, problem: string): void => {
    this.leaving.push(...this.namespaces.leaveOut(uid, problem));
    const workload = this.xds.state.workloads.get(uid);
    if (workload !== undefined) this.report(uid, `${workload.namespace}/${workload.name}`, problem);
  };

  /** Takes over another configuration. */
  configure(node: NodeConfig): void {
    this.node = node;
    void this.relayRedis().catch((error: Error) => {
      this.log('error', 'there is no way to redis', { cause: error.message });
    });
    this.changed();
  }

  /** The end begins: nothing is changed any more. Captures that fail closed stay. */
  stop(): void {
    clearInterval(this.poll);
    clearTimeout(this.timer);
    clearTimeout(this.retryTimer);
    this.demand?.close();
    this.ending.abort(new Error('the node proxy ends'));
    this.confirmations.forget();
  }

  /** Closes everything, once the workers have ended. What is known is on disk when this resolves. */
  async close(): Promise<void> {
    this.stop();
    this.certificates.close();
    this.client.close();
    await this.xds.close();
    this.relay?.close();
    this.redisRelay?.close();
    await this.captures?.close();
    await this.sockets.close();
    this.namespaces.closeAll();
  }

  /** Opens the way to Redis where one is needed, or points it elsewhere. Rejects with the system's error. */
  private async relayRedis(): Promise<void> {
    const { redis, stateDirectory } = this.node;
    if (redis?.relay === undefined) return;
    if (this.redisRelay !== null) {
      this.redisRelay.aim(redis.address);
      return;
    }
    this.redisRelay = new ControlRelay(redis.address, stateDirectory, this.sockets, this.log, REDIS_SOCKET, 'redis');
    try {
      await this.redisRelay.start();
    } catch (error) {
      // The next reload tries again.
      this.redisRelay = null;
      throw error;
    }
  }

  private newDemand(): Demand {
    return new Demand({
      directory: this.xds,
      answer: (answers) => this.app?.answerDestinations(answers),
      found: () => this.changed(),
      used: () => this.app?.usedDestinations() ?? Promise.resolve({ hosts: [], all: true }),
      isOwn: (host) => this.workloads.some(({ addresses }) => addresses.includes(host)),
      idleTimeoutMs: this.node.discovery.idleTimeoutMs,
    });
  }

  private meshChanged(): void {
    // Before there is a connection, it is the saved one: a whole state.
    if (this.knowledge === 'nothing' && !this.xds.status.connected) this.knowledge = 'saved';
    if (this.knowledge !== 'nothing') this.changed();
  }

  private synced(): void {
    this.knowledge = 'current';
    this.changed();
  }

  private changed(): void {
    this.dirty = true;
    this.schedule();
  }

  private schedule(): void {
    if (this.app === undefined || this.running || this.timer !== undefined || this.ending.signal.aborted) return;
    this.timer = setTimeout(() => void this.round(), Math.max(0, this.nextRoundMs - performance.now()));
  }

  /** The machine is looked at, which makes a round if something there is new. */
  private look(): void {
    if (this.running || this.timer !== undefined || this.ending.signal.aborted) return;
    void this.round();
  }

  private async round(): Promise<void> {
    const startMs = performance.now();
    this.running = true;
    this.timer = undefined;
    const wanted = this.dirty;
    let hasLate = false;
    this.dirty = false;
    try {
      if (wanted) this.confirmations.begin();
      const changed = await this.prepare();
      if (wanted || changed) {
        const reloaded = await this.app!.reload();
        if (this.ending.signal.aborted) return;
        if (reloaded.applied) this.served = this.made;
        this.settle(reloaded);
        hasLate = reloaded.late > 0;
        // Workers that are late may still use what is leaving.
        if (reloaded.applied && reloaded.late === 0) await this.release();
      }
      void this.install();
    } catch (error) {
      this.log('error', 'the node proxy could not follow the mesh', { cause: (error as Error).stack });
      this.settle({ applied: false, late: 0, errors: [(error as Error).message] });
    } finally {
      const endMs = performance.now();
      // To wait for a worker that is late is no work; the others may need what is next.
      this.nextRoundMs = endMs + (hasLate ? ROUND_GAP_MS : Math.max(ROUND_GAP_MS, endMs - startMs));
      this.running = false;
      if (this.dirty) this.schedule();
    }
  }

  /** A configuration was taken by all workers, or not; then another one is made later. The log has told of it. */
  private settle(reloaded: Reloaded): void {
    if (this.confirmations.settle(reloaded).recovered) this.xds.withdrawRefusals();
    if (this.confirmations.everywhere || this.ending.signal.aborted || this.retryTimer !== undefined) return;
    this.retryTimer = setTimeout(() => {
      this.retryTimer = undefined;
      this.changed();
    }, RETRY_MS).unref();
  }

  /** Opens namespaces and holds identities for the workloads of now; whether something has changed. */
  private async prepare(): Promise<boolean> {
    const { workloads } = this;
    this.hold(workloads);
    const { changed, dropped } = await this.namespaces.update(workloads);
    this.leaving.push(...dropped);
    for (const { uid, namespace, name } of workloads) {
      this.report(uid, `${namespace}/${name}`, this.namespaces.problemOf(uid) ?? '');
    }
    return changed;
  }

  /** Says once what is wrong with a workload; empty: nothing. */
  private report(uid: string, workload: string, problem: string): void {
    if (problem === this.reported.get(uid)) return;
    this.reported.set(uid, problem);
    if (problem === '') this.log('info', 'workload is served', { workload });
    else this.log('warn', 'workload is not served', { workload, problem });
  }

  private hold(workloads: readonly Workload[]): void {
    const now = new Map(workloads.map((workload) => [workload.uid, workload]));
    for (const [uid, identity] of this.held) {
      const workload = now.get(uid);
      if (workload !== undefined && identityOf(workload) === identity) continue;
      this.certificates.release(identity);
      this.held.delete(uid);
      if (workload === undefined) this.reported.delete(uid);
    }
    // A token may be good for one certificate only: the node's own comes first, and all others with that.
    if (this.certificates.get(this.identity) === null && this.held.size === 0) return;
    for (const [uid, workload] of now) {
      if (this.held.has(uid)) continue;
      const identity = identityOf(workload);
      try {
        this.certificates.hold(identity);
        this.held.set(uid, identity);
      } catch (error) {
        // It stays without a certificate, so nothing of it leaves or is let in.
        this.report(uid, `${workload.namespace}/${workload.name}`, (error as Error).message);
      }
    }
  }

  /** Workloads that have a namespace now, with their certificates. */
  private local(): LocalWorkload[] {
    const caPem = bundleToPem(this.trust.current);
    return this.workloads.flatMap((workload) => {
      const namespace = this.namespaces.get(workload.uid);
      if (namespace === undefined) return [];
      return [{ workload, namespaceFd: namespace.fd, certificate: this.certificateOf(identityOf(workload), caPem) }];
    });
  }

  private certificateOf(identity: string, caPem: string): WorkloadCertificateSettings | null {
    const certificate = this.certificates.get(identity);
    if (certificate === null) return null;
    const { chainPem, keyPem } = certificate;
    return { key: hash('sha256', `${chainPem}\n${keyPem}\n${caPem}`, 'base64url'), chainPem, keyPem, caPem };
  }

  /** Lets go of namespaces that the workers do not know any more, and ends captures of those that have left. */
  private async release(): Promise<void> {
    const leaving = this.leaving.splice(0);
    await this.captures?.keepOnly(new Set(this.workloads.map(({ uid }) => uid)));
    for (const namespace of leaving) releaseNamespace(namespace, this.node.drainTimeoutMs);
  }

  /** Captures every workload that is served. */
  private async install(): Promise<void> {
    const { captures } = this;
    if (captures === null) return;
    await Promise.all(
      this.workloads.map(async ({ uid, namespace, name }) => {
        const open = this.namespaces.get(uid);
        if (open !== undefined) await captures.install(uid, `${namespace}/${name}`, open);
      }),
    );
  }

  /** Resolves when all workers run on all that the control plane has told; rejects when that is refused. */
  private useMesh(): Promise<void> {
    // Nothing is served of a part of the mesh, and the rest comes only when this has been confirmed.
    if (this.knowledge === 'nothing' && !this.xds.status.synced) return Promise.resolve();
    const unchanged = this.knowledge !== 'nothing' && !this.dirty && !this.running;
    return unchanged && this.confirmations.everywhere ? Promise.resolve() : this.inUse();
  }

  /** Resolves when all workers verify with the bundle. */
  private useBundle(_bundle: TrustBundle): Promise<void> {
    return this.inUse();
  }

  /** Resolves when all workers run on what is known now. */
  private inUse(): Promise<void> {
    this.changed();
    return this.confirmations.wait();
  }

  /** Credentials of the node, once it has a certificate. */
  private async credentials(): Promise<ChannelCredentials> {
    const { chainPem, keyPem } = await this.certificates.wait(this.identity, this.ending.signal);
    const grpc = await import('@grpc/grpc-js');
    const roots = Buffer.from(bundleToPem(this.trust.current));
    return grpc.credentials.createSsl(roots, Buffer.from(keyPem), Buffer.from(chainPem), this.serverName.verify);
  }
}

/** The text of a token; null: there is none. */
async function readToken(file: string): Promise<string | null> {
  try {
    return (await readFile(file, 'utf8')).trim() || null;
  } catch {
    return null;
  }
}

/** Opens what the node trusts. Rejects with an IdentityError that names the file if its roots cannot be used. */
async function openTrust({ controlPlane, stateDirectory, trustDomain }: NodeConfig, log: Log): Promise<TrustStore> {
  const { rootsFile } = controlPlane;
  const roots = await readFile(rootsFile, 'utf8');
  try {
    return await TrustStore.open(trustDomain, roots, statePaths(stateDirectory).trust, log);
  } catch (error) {
    // A bundle that was stored is passed over if it is damaged, so that it is these roots.
    if (!(error instanceof IdentityError) || error.code !== 'bundle-malformed') throw error;
    const advice = 'the file is to have what `portcullis mesh roots` prints';
    throw new IdentityError(error.code, `controlPlane.roots (${rootsFile}): ${error.message}`, advice);
  }
}
