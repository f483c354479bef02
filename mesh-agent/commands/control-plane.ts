// The control plane put together: a source, the CA, and what node proxies ask, on one gRPC port.
//
//   source --> Discovery --> xDS            join tokens, service-account tokens, certificates --> attestors
//                            certificates <-- MeshAuthority
//
// Nobody is served before the source has given its first state, or proxies would be told that what they know is gone.
// Control thread of the control plane. Heavy libraries are imported when something is started.

import { isIP } from 'node:net';
import { constants } from 'node:os';
import type { Server } from '@grpc/grpc-js';
import { formatAddress } from '../../config/names.ts';
import { cannotListen } from '../../core/process/listen-failure.ts';
import type { LockFile } from '../../core/process/lock-file.ts';
import type { Log } from '../../core/workers/log.ts';
import { CombinedSource } from '../control/combined-source.ts';
import { DirectorySource } from '../control/directory-source.ts';
import { Discovery } from '../control/discovery.ts';
import { RpcCode } from '../control/protocol.ts';
import { TrustFeed } from '../control/trust-feed.ts';
import { addDiscoveryService, xdsServerOptions } from '../control/xds-service.ts';
import {
  type Attestor,
  authenticate,
  CertificateAttestor,
  type RunsOnNode,
  ServiceAccountAttestor,
  type TokenReviewer,
} from '../identity/attestation.ts';
import { MeshAuthority } from '../identity/authority.ts';
import { addCertificateService, type CertificateServiceCounts } from '../identity/certificate-service.ts';
import { lockDirectory } from '../identity/directory-lock.ts';
import { JoinTokens } from '../identity/join-tokens.ts';
import { makePrivateDirectory } from '../identity/private-files.ts';
import { RotationOrders } from '../identity/rotation-orders.ts';
import { ServerTls } from '../identity/server-tls.ts';
import { formatWorkloadIdentity } from '../identity/spiffe.ts';
import type { KubernetesSource } from '../kubernetes/source.ts';
import { identityOf, type MeshSource, type Service } from '../model/mesh-state.ts';
import type { AttestationConfig, ControlConfig, DirectoryConfig, ListenAddress } from './control-config.ts';

/**
 * A source that has missed what is new for longer than this is cut off. Longer than an API server that is restarted is
 * away (with the 5 s after which a watch counts as caught up); so long a service that is new may be taken for something
 * outside of the mesh by who first asks for it.
 */
const BEHIND_MAX_MS = 10_000;
/** How often that is looked at. */
const LOOK_MS = 500;

/** How long requests that are being answered have at the end. */
const DRAIN_TIMEOUT_MS = 5_000;

type Phase = 'starting' | 'waiting for the source' | 'serving' | 'draining';

/** A source as the control plane uses it. */
interface Source {
  source: MeshSource;
  /** The part of it that is files; null: none is. */
  directory: DirectorySource | null;
  runsOnNode: RunsOnNode;
  /** What is wrong with it now, one line each. */
  problems: () => string[];
  /** Reviews service-account tokens; null: it cannot. */
  reviewerFor: ((audience: string) => TokenReviewer) | null;
}

/** A running control plane. */
export class ControlPlane {
  readonly startedMs = Date.now();
  readonly config: ControlConfig;
  readonly discovery: Discovery;
  readonly authority: MeshAuthority;
  /** What the certificate service has done. */
  counts: CertificateServiceCounts = { issued: 0, refused: {} };
  private phase: Phase = 'starting';
  private readonly log: Log;
  private readonly source: Source;
  private readonly lock: LockFile;
  private readonly trust: TrustFeed;
  private orders: RotationOrders | undefined;
  /** In the order in which they are asked; replaced by a reload. */
  private readonly attestors: Attestor[] = [];
  /** Identities that are locked out; replaced by a reload. */
  private blocked: ReadonlySet<string> = new Set();
  private tokens: { directory: string; attestor: JoinTokens } | undefined;
  private server: Server | undefined;
  private tls: ServerTls | undefined;
  private listening: ListenAddress | undefined;
  private stopping: Promise<void> | undefined;
  private lookTimer: NodeJS.Timeout | undefined;
  private isCutOff = false;

  private constructor(config: ControlConfig, log: Log, lock: LockFile, authority: MeshAuthority, source: Source) {
    this.config = config;
    this.log = log;
    this.lock = lock;
    this.authority = authority;
    this.source = source;
    this.trust = new TrustFeed(authority);
    this.discovery = new Discovery(log, config.trustDomain, undefined, this.trust);
  }

  /**
   * Opens the CA, and the source without starting it. Rejects with an IdentityError, `in-use` when another control
   * plane has the CA's directory. `lost`: another one took it, because this process stood still: it has to end at once.
   */
  static async open(config: ControlConfig, log: Log, lost: () => void): Promise<ControlPlane> {
    const { directory } = config.ca;
    await makePrivateDirectory(directory);
    const lock = await lockDirectory(directory, { log, lost });
    try {
      return await ControlPlane.openLocked(config, log, lock);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  private static async openLocked(config: ControlConfig, log: Log, lock: LockFile): Promise<ControlPlane> {
    const { ca, trustDomain } = config;
    const authority = await MeshAuthority.open({
      directory: ca.directory,
      trustDomain,
      log,
      leafLifetimeMs: ca.certificateLifetimeMs,
      ...(ca.files === null ? {} : { files: ca.files }),
      ...(ca.nextFiles === null ? {} : { nextFiles: ca.nextFiles }),
    });
    const box: { plane?: ControlPlane } = {};
    const source = await openSource(config, log, () => box.plane!.discovery);
    const plane = new ControlPlane(config, log, lock, authority, source);
    box.plane = plane;
    await plane.attest(config.attestation);
    plane.orders = await RotationOrders.start(ca.directory, authority, log);
    return plane;
  }

  /** Name of the source, for people. */
  get sourceName(): string {
    return this.source.source.name;
  }

  /** The part of the source that is files; null: none is. */
  get directory(): DirectorySource | null {
    return this.source.directory;
  }

  /** What is wrong with the source now; none: nothing. */
  get sourceProblems(): string[] {
    const problems = this.source.problems();
    return this.isCutOff
      ? [...problems, 'cut off: what it does not know is not said to be outside of the mesh']
      : problems;
  }

  /** Where node proxies connect, once they can. */
  get address(): string | undefined {
    return this.listening === undefined ? undefined : formatAddress(this.listening.host, this.listening.port);
  }

  /** Why node proxies should not come here; none: they should. */
  get unready(): string[] {
    return this.phase === 'serving' ? [] : [this.phase];
  }

  /**
   * Starts the source, and listens when it has given its first state. Rejects with an ExitError when the address
   * cannot be listened on, and with the source's error when that cannot work.
   */
  async start(): Promise<void> {
    this.phase = 'waiting for the source';
    await this.source.source.start((update) => void this.discovery.update(update));
    if (this.phase !== 'waiting for the source') return;
    // Before anybody can ask: it may have begun with less than there was.
    this.lookAtSource();
    this.lookTimer = setInterval(() => this.lookAtSource(), LOOK_MS).unref();
    const { trustDomain, serviceAccount, serverNames } = this.config;
    const { namespace, name } = serviceAccount;
    this.tls = await ServerTls.start(
      this.authority,
      {
        identity: formatWorkloadIdentity({ trustDomain, namespace, serviceAccount: name }),
        dnsNames: serverNames.filter((text) => isIP(text) === 0),
        ipAddresses: serverNames.filter((text) => isIP(text) > 0),
      },
      this.log,
    );
    const grpc = await import('@grpc/grpc-js');
    const server = new grpc.Server(xdsServerOptions);
    this.server = server;
    const { attestors, authority, log } = this;
    const { runsOnNode } = this.source;
    this.counts = await addCertificateService(server, {
      ...{ authority, attestors, runsOnNode, log },
      isBlocked: (identity) => this.blocked.has(identity),
    });
    addDiscoveryService(server, this.discovery, (evidence) => authenticate(attestors, evidence), log);
    // It may have been told to end meanwhile.
    if (this.phase !== 'waiting for the source') return;
    await this.listen(server);
    this.phase = 'serving';
  }

  /** Takes over what a reload can change. Rejects with an IdentityError, and then everything is as before. */
  async attest(config: AttestationConfig): Promise<void> {
    const { trustDomain } = this.config;
    const blocked = new Set(config.blockedIdentities);
    const isBlocked = (identity: string): boolean => blocked.has(identity);
    const attestors: Attestor[] = [];
    if (config.joinTokenDirectory !== null) {
      const directory = config.joinTokenDirectory;
      await makePrivateDirectory(directory);
      // The same one, because it counts uses one after another.
      if (this.tokens?.directory !== directory) {
        this.tokens = { directory, attestor: new JoinTokens(directory, trustDomain) };
      }
      attestors.push(this.tokens.attestor);
    }
    const { reviewerFor } = this.source;
    // Null after a reload whose source needs a restart.
    if (config.kubernetes !== null && reviewerFor !== null) {
      const { audience, nodeAccounts } = config.kubernetes;
      attestors.push(new ServiceAccountAttestor(trustDomain, reviewerFor(audience), nodeAccounts, isBlocked));
    }
    attestors.push(new CertificateAttestor(trustDomain, isBlocked));
    this.attestors.splice(0, this.attestors.length, ...attestors);
    this.blocked = blocked;
    for (const stream of this.discovery.proxies) {
      if (blocked.has(stream.identity.name)) stream.end(RpcCode.UNAUTHENTICATED, `${stream.identity.name} is blocked`);
    }
  }

  /** Finishes what is being answered, and ends. Resolves to false when something had to be cut. */
  async drain(): Promise<boolean> {
    this.phase = 'draining';
    const { server } = this;
    let finished = true;
    if (server !== undefined) {
      const done = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      for (const stream of this.discovery.proxies)
        stream.end(RpcCode.UNAVAILABLE, 'the control plane is shutting down');
      const timer = setTimeout(() => {
        finished = false;
        server.forceShutdown();
      }, DRAIN_TIMEOUT_MS);
      await done;
      clearTimeout(timer);
    }
    await this.stop();
    return finished;
  }

  /** Ends at once; the CA's state is on disk when this resolves. */
  stop(): Promise<void> {
    this.phase = 'draining';
    this.stopping ??= this.stopNow();
    return this.stopping;
  }

  /** Finds out whether the source follows what is new. */
  private lookAtSource(): void {
    const isCutOff = this.source.source.behindMs > BEHIND_MAX_MS;
    if (isCutOff === this.isCutOff) return;
    this.isCutOff = isCutOff;
    const source = this.sourceName;
    if (isCutOff) {
      const consequence = 'addresses that are not known are not said to be outside of the mesh, so nodes refuse them';
      this.log('warn', 'the source of the mesh is cut off', { source, consequence });
    } else {
      this.log('info', 'the source of the mesh is followed again', { source });
    }
    this.discovery.setCutOff(isCutOff);
  }

  private async stopNow(): Promise<void> {
    clearInterval(this.lookTimer);
    await this.orders?.close();
    // Nothing may be written any more when the lock is given back.
    this.trust.close();
    this.server?.forceShutdown();
    this.tls?.close();
    await this.source.source.close();
    await this.authority.close();
    await this.lock.release();
  }

  private async listen(server: Server): Promise<void> {
    const { host, port } = this.config.listen;
    const credentials = await this.tls!.credentials();
    const bound = await new Promise<number>((resolve, reject) => {
      server.bindAsync(formatAddress(host, port), credentials, (error, actual) => {
        if (error === null) resolve(actual);
        else reject(cannotListen('node proxies', formatAddress(host, port), systemError(error)));
      });
    });
    this.listening = { host, port: bound };
  }
}

async function openSource(config: ControlConfig, log: Log, discovery: () => Discovery): Promise<Source> {
  const { trustDomain, clusterDomain, source: from } = config;
  const directorySource = (files: DirectoryConfig, services?: () => ReadonlyMap<string, Service>): DirectorySource =>
    new DirectorySource({
      ...files,
      trustDomain,
      domain: clusterDomain,
      env: process.env,
      log,
      ...(services === undefined ? {} : { services }),
    });
  if (from.kind === 'directory') {
    const source = directorySource(from);
    return {
      source,
      directory: source,
      runsOnNode: (node, identity) =>
        discovery()
          .index.onNode(node)
          .some((workload) => identityOf(workload) === identity),
      problems: () => problemsOf(source),
      reviewerFor: null,
    };
  }
  const { KubernetesSource } = await import('../kubernetes/source.ts');
  const { clusterId, meshByDefault, kubeConfig, context, policies } = from;
  const cluster: KubernetesSource = new KubernetesSource({
    clusterId,
    clusterDomain,
    trustDomain,
    meshByDefault,
    kubeConfig: {
      ...(kubeConfig === null ? {} : { file: kubeConfig }),
      ...(context === null ? {} : { context }),
    },
    log,
  });
  const box: { directory?: DirectorySource } = {};
  const source =
    policies === null
      ? cluster
      : new CombinedSource(trustDomain, cluster, (services) => {
          box.directory = directorySource(policies, services);
          return box.directory;
        });
  const { directory } = box;
  return {
    source,
    directory: directory ?? null,
    runsOnNode: cluster.runsOnNode,
    problems: () => [
      ...cluster.state.collections
        .filter(({ lastError }) => lastError !== '')
        .map(({ resource, lastError }) => `${resource}: ${lastError}`),
      ...(directory === undefined ? [] : problemsOf(directory)),
    ],
    reviewerFor: (audience) => cluster.tokenReviewer(audience),
  };
}

function problemsOf({ errors }: DirectorySource): string[] {
  return errors.map(({ file, line, problem }) => `${file}${line === 0 ? '' : `:${line}`}: ${problem}`);
}

/** grpc-js tells of the system's error only in a sentence. */
function systemError(error: Error): Error {
  const name = /\b(E[A-Z]{3,})\b/.exec(error.message)?.[1] ?? '';
  const errno = (constants.errno as Record<string, number>)[name];
  return errno === undefined ? error : Object.assign(error, { errno: -errno });
}
