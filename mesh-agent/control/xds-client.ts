// The node proxy's side of xDS: stays connected to the control plane, and knows the mesh without it.
//
// Control thread of the node proxy. What it was last told is kept on disk and used from the start, so that
// neither the control plane nor its network have to be there. Bad resources are refused with the reason.
// Addresses that are not known are asked for when they are first used, and kept.
// Spec: xDS, incremental aggregated variant.

import type { ChannelCredentials, Client, ClientDuplexStream } from '@grpc/grpc-js';
import type { Log } from '../../core/workers/log.ts';
import type { AddressOwner } from '../model/mesh-index.ts';
import { type MeshState, type MeshUpdate, type Service, serviceKey } from '../model/mesh-state.ts';
import { askedAlias } from './interest.ts';
import { Lookups } from './lookups.ts';
import {
  ADDRESS_TYPE,
  AUTHORIZATION_TYPE,
  DELTA_PATH,
  type DeltaRequest,
  type DeltaResponse,
  ISSUERS_METADATA,
  type NodeMessage,
  REFUSED_TYPE,
  RpcCode,
  refusedCodec,
  requestCodec,
  responseCodec,
  TRUST_TYPE,
} from './protocol.ts';
import { ProxyState, type RefusedResource, type SavedNames } from './proxy-state.ts';
import { type ProxyTrust, TrustReceiver } from './proxy-trust.ts';
import { aliasOf } from './resources.ts';
import { SavedFile } from './saved-file.ts';

/** How long to wait before connecting again: from the first, doubling, to the longest; in milliseconds. */
export interface ReconnectTimes {
  firstMs: number;
  maxMs: number;
}

/** Settings of a client. */
export interface XdsClientOptions {
  /** `host:port` of the control plane, or another target of gRPC. */
  address: string;
  /** What it is called in the log; absent: `address`. */
  shownAddress?: string;
  /** Name in the control plane's certificate; needed with TLS where the address is not a name. */
  serverName?: string;
  /** Asked for at every connection, since certificates change. */
  credentials: () => ChannelCredentials | Promise<ChannelCredentials>;
  /** Headers that prove who asks, such as `authorization`; asked for at every connection. */
  headers?: () => Record<string, string> | Promise<Record<string, string>>;
  /** Name of this proxy, unique in the mesh. */
  id: string;
  /** Node whose workloads it serves. */
  node: string;
  /** What it is told unasked: what concerns its node (the default), or the whole mesh. */
  scope?: 'node' | 'mesh';
  trustDomain: string;
  /** Absolute path of the file with the last good state; null: none is kept. */
  stateFile: string | null;
  /** Called with every change, the saved state first. */
  onUpdate: (update: MeshUpdate) => void;
  /**
   * Called with names of which `known` has said that nothing has them, when something has come to have them that had to
   * be refused: they are not known any more.
   */
  onDoubt?: (names: readonly string[]) => void;
  /**
   * Called with names of which `known` has said that nothing has them, when the control plane has been away for too long
   * for that to be believed (ABSENCE_AGE_MAX_MS): they are not known any more.
   */
  onOld?: (names: readonly string[]) => void;
  /**
   * Puts what was told until now to use. A response is confirmed when this resolves, and refused with the error's message
   * when it rejects. Absent: it is in use when `onUpdate` returns.
   */
  use?: () => Promise<void>;
  log: Log;
  reconnect?: ReconnectTimes;
  /** How often a silent control plane is asked whether it is there, and how long it has to say so. */
  keepalive?: KeepaliveTimes;
  /** Where trust bundles go; absent: none are asked for. */
  trust?: ProxyTrust;
  /** Milliseconds since 1970; absent: Date.now(). What is saved outlives every other clock. */
  nowMs?: () => number;
}

/** Times of HTTP/2 pings, in milliseconds. */
export interface KeepaliveTimes {
  intervalMs: number;
  timeoutMs: number;
}

/** What became of a name that was looked up. */
export type Lookup =
  | { status: 'found'; owner: AddressOwner }
  /** The control plane says that nothing has this name. */
  | { status: 'absent' }
  /** Something has it that cannot be used: its resource was refused. */
  | { status: 'unusable' }
  /** There was no answer in time; `connected` tells whether anybody was there to give one. */
  | { status: 'deadline'; connected: boolean };

/** How a client stands. */
export interface XdsClientStatus {
  connected: boolean;
  /** Has everything that the control plane had when it last connected. */
  synced: boolean;
  /** Why it is not connected; empty while it is. */
  problem: string;
  /** What was refused last of each type and still is. */
  refused: RefusedResource[];
}

const RECONNECT: ReconnectTimes = { firstMs: 100, maxMs: 10_000 };

/** As the control plane's own, see xdsServerOptions: a frozen end is noticed after 15 s. */
const KEEPALIVE: KeepaliveTimes = { intervalMs: 10_000, timeoutMs: 5_000 };

/** Largest response that is taken; the control plane sends smaller ones unless a single resource is large. */
const RESPONSE_BYTES_MAX = 64 * 1024 * 1024;

/** How often it is looked for names that are not to be believed any more to be nothing's. */
const REVIEW_MS = 60_000;
/** How often it is written down that they still are, for a process that ends without a word. */
const CONFIRM_MS = 60 * 60_000;

/** In the saved state: that it is of the whole mesh, and what earlier versions had before names that nothing has. */
const WHOLE_MARK = '*';
const ABSENT_MARK = '!';

/** A connection to the control plane that is always being made again. */
export class XdsClient {
  private readonly options: XdsClientOptions;
  private readonly proxy: ProxyState;
  private readonly file: SavedFile | null;
  private client: Client | undefined;
  private call: ClientDuplexStream<DeltaRequest, DeltaResponse> | undefined;
  private closed = false;
  private failures = 0;
  private problem = 'not connected yet';
  private timer: NodeJS.Timeout | undefined;
  private reviewTimer: NodeJS.Timeout | undefined;
  private readonly nowMs: () => number;
  /** When the state was last written down. */
  private savedMs = 0;
  private readonly lookups = new Lookups((names) =>
    this.send({ typeUrl: ADDRESS_TYPE, resourceNamesSubscribe: [...names] }),
  );
  /** Since when nobody is there, by performance.now(); valid while nobody is. */
  private awaySinceMs = performance.now();
  private readonly syncedTypes = new Set<string>();
  private readonly refused = new Map<string, RefusedResource[]>();
  private readonly syncWaiters = new Set<() => void>();
  private readonly trust: TrustReceiver | null;
  /** The whole mesh has been told, now or to an earlier process. Only with the scope `mesh`. */
  private isWholeMesh = false;
  /** Something of the present stream was refused because it could not be put to use. */
  private hasRefusedUse = false;

  constructor(options: XdsClientOptions) {
    this.options = options;
    this.nowMs = options.nowMs ?? Date.now;
    this.trust = options.trust === undefined ? null : this.newTrust(options.trust);
    this.proxy = new ProxyState(options.trustDomain);
    this.file = options.stateFile === null ? null : new SavedFile(options.stateFile, options.log);
  }

  /** The mesh as far as it is known. */
  get state(): MeshState {
    return this.proxy.state;
  }

  /** Indexes over it. */
  get index(): ProxyState['index'] {
    return this.proxy.index;
  }

  /** How the client stands. */
  get status(): XdsClientStatus {
    const synced = this.syncedTypes.size === 2;
    const refused = [...this.refused.values()].flat();
    return { connected: this.call !== undefined && this.problem === '', synced, problem: this.problem, refused };
  }

  /** Reads the saved state, if there is one, and begins to connect. Resolves when the state has been read. */
  async start(): Promise<void> {
    const bytes = await this.file?.read();
    if (bytes !== undefined) {
      try {
        const { subscriptions, absences, update, trust } = this.proxy.load(bytes);
        this.loadNames({ subscriptions, absences });
        if (trust !== null) await this.trust?.load(trust);
        if (this.options.scope === 'mesh' && !this.isWholeMesh) {
          // What it lacks would be taken to be outside.
          this.options.log(
            'warn',
            'last known state is a part of the mesh, nothing is served before the rest is known',
          );
        } else {
          this.options.onUpdate(update);
        }
        this.options.log('info', 'last known state of the mesh loaded', {
          workloads: update.state.workloads.size,
          services: update.state.services.size,
        });
      } catch (error) {
        this.options.log('warn', 'saved state of the mesh cannot be used', { problem: (error as Error).message });
      }
    }
    // Nobody would end what begins now.
    if (this.closed) return;
    this.reviewTimer = setInterval(() => this.review(), REVIEW_MS).unref();
    void this.connect();
  }

  private loadNames({ subscriptions, absences }: SavedNames): void {
    // What was there and cannot be read by this version is asked for again: it is not known to be outside. Nor is what
    // earlier versions have marked as such, since nobody knows how long ago.
    const there = subscriptions.filter((name) => !name.startsWith(ABSENT_MARK) && this.ownerOf(name) !== undefined);
    const absent = new Map(absences.map(({ name, confirmedS }) => [name, confirmedS * 1000]));
    this.lookups.load(there, absent, this.nowMs());
    this.isWholeMesh = this.options.scope === 'mesh' && subscriptions.includes(WHOLE_MARK);
  }

  /**
   * Gives up names of which it is not to be believed any more that nothing has them, and writes down from time to time
   * that the others still are nothing's. Does so by itself every minute.
   */
  review(): void {
    const nowMs = this.nowMs();
    const old = this.lookups.oldAbsences(nowMs);
    if (old.length > 0) {
      // Whoever takes them to be outside is told first.
      this.options.onOld?.(old);
      this.release(...old);
      this.save();
    } else if (nowMs - this.savedMs >= CONFIRM_MS && this.lookups.keepsAbsences) {
      this.save();
    }
  }

  /** Resolves when the control plane has told everything that concerns this proxy. */
  synced(): Promise<void> {
    return this.status.synced ? Promise.resolve() : new Promise((resolve) => this.syncWaiters.add(resolve));
  }

  /** How long there has been no control plane, in milliseconds; 0: it is there. */
  get awayMs(): number {
    return this.status.connected ? 0 : performance.now() - this.awaySinceMs;
  }

  /** Names that are kept up to date, since they have been asked for and were answered; some of them nothing has. */
  get names(): string[] {
    return this.lookups.answered;
  }

  /**
   * Finds what has a name: `/address`, the key of a service, or the uid of a workload. What is not known is
   * asked for, which takes until `deadlineMs` at most; it is kept up to date until `release`, also when nothing has it.
   */
  async lookup(name: string, deadlineMs: number): Promise<Lookup> {
    const answer = await this.lookups.ask(name, deadlineMs);
    if (answer === 'deadline') return { status: 'deadline', connected: this.status.connected };
    return this.known(name) ?? { status: 'unusable' };
  }

  /** What is known of a name without asking anybody; null: nothing. */
  known(name: string): Extract<Lookup, { status: 'found' | 'absent' }> | null {
    if (!this.lookups.isAnswered(name)) return null;
    const owner = this.ownerOf(name);
    if (owner !== undefined) return { status: 'found', owner };
    return this.lookups.wasAbsent(name) ? { status: 'absent' } : null;
  }

  /**
   * Whether a service is known with all of its endpoints and with the services that its rules name. Others are there
   * because a workload of the node belongs to them.
   */
  isWhole(service: Service): boolean {
    if (this.options.scope === 'mesh' || this.lookups.isAnswered(serviceKey(service))) return true;
    return service.vips.some((vip) => {
      const found = this.known(aliasOf(vip));
      return found?.status === 'found' && found.owner.kind === 'service' && found.owner.service === service;
    });
  }

  /** These names are not used any more. */
  release(...names: string[]): void {
    const subscribed = this.lookups.release(names);
    if (subscribed.length > 0) this.send({ typeUrl: ADDRESS_TYPE, resourceNamesUnsubscribe: subscribed });
  }

  /** What `use` has rejected is in use after all. The control plane is told by a new stream, where only differences are sent. */
  withdrawRefusals(): void {
    if (!this.hasRefusedUse) return;
    this.options.log('info', 'what was refused is in use: connecting to the control plane again');
    this.call?.cancel();
  }

  /** Disconnects, and writes down what is known. */
  async close(): Promise<void> {
    this.closed = true;
    this.trust?.close();
    clearTimeout(this.timer);
    clearInterval(this.reviewTimer);
    // That they are nothing's is known until now.
    if (this.lookups.keepsAbsences) this.save();
    this.call?.cancel();
    this.client?.close();
    this.lookups.close();
    await this.file?.close();
  }

  private async connect(): Promise<void> {
    const { address, serverName, credentials, headers, keepalive = KEEPALIVE, log } = this.options;
    try {
      const grpc = await import('@grpc/grpc-js');
      const metadata = new grpc.Metadata();
      for (const [name, value] of Object.entries((await headers?.()) ?? {})) metadata.set(name, value);
      const channel = await credentials();
      if (this.closed) return;
      this.client = new grpc.Client(address, channel, {
        'grpc.keepalive_time_ms': keepalive.intervalMs,
        'grpc.keepalive_timeout_ms': keepalive.timeoutMs,
        'grpc.max_receive_message_length': RESPONSE_BYTES_MAX,
        'grpc.use_local_subchannel_pool': 1,
        ...(serverName === undefined ? {} : { 'grpc.ssl_target_name_override': serverName }),
      });
      const call = this.client.makeBidiStreamRequest(
        DELTA_PATH,
        (request: DeltaRequest) => requestCodec.encode(request),
        (bytes: Buffer) => responseCodec.decode(bytes),
        metadata,
      );
      this.call = call;
      let over = false;
      const end = (reason: string): void => {
        if (over) return;
        over = true;
        this.lost(reason);
      };
      call.on('data', (response: DeltaResponse) => this.recvResponse(response));
      call.on('error', (error) => end((error as { details?: string }).details || error.message));
      call.on('end', () => end('the control plane ended the stream'));
      // Before anybody is met whose certificate leads to another root.
      if (this.trust !== null) this.send({ node: this.self(), typeUrl: TRUST_TYPE, resourceNamesSubscribe: ['*'] });
      for (const typeUrl of [AUTHORIZATION_TYPE, ADDRESS_TYPE]) {
        this.send({
          node: this.self(),
          typeUrl,
          resourceNamesSubscribe: typeUrl === ADDRESS_TYPE ? ['*', ...this.lookups.begin()] : ['*'],
          initialResourceVersions: this.proxy.versions(typeUrl),
        });
      }
    } catch (error) {
      log('debug', 'control plane cannot be connected to', { problem: (error as Error).message });
      this.lost((error as Error).message);
    }
  }

  private lost(reason: string): void {
    this.call = undefined;
    this.client?.close();
    this.client = undefined;
    this.hasRefusedUse = false;
    this.syncedTypes.clear();
    this.lookups.lost(this.nowMs());
    this.trust?.lost();
    if (this.closed) return;
    // Said once for each time that it goes away, not for every attempt.
    const level = this.problem === '' || this.failures === 0 ? 'warn' : 'debug';
    this.options.log(level, 'control plane is away, the last known state stays in use', { reason });
    if (this.problem === '') this.awaySinceMs = performance.now();
    this.problem = reason;
    const { firstMs, maxMs } = this.options.reconnect ?? RECONNECT;
    const fullMs = Math.min(maxMs, firstMs * 2 ** Math.min(this.failures++, 20));
    this.timer = setTimeout(() => void this.connect(), fullMs * (0.5 + Math.random() / 2));
  }

  private recvResponse(response: DeltaResponse): void {
    if (this.problem !== '')
      this.options.log('info', 'connected to the control plane', {
        address: this.options.shownAddress ?? this.options.address,
      });
    this.problem = '';
    this.failures = 0;
    const { typeUrl, nonce, removedResources, systemVersionInfo } = response;
    if (typeUrl === TRUST_TYPE && this.trust !== null) {
      this.trust.receive(response);
      return;
    }
    const { update, refused } = this.proxy.apply(response);
    this.refused.set(typeUrl, this.stillRefused(response, refused));
    const { workloads, services, policies } = update.changes;
    if (workloads.size + services.size + policies.size > 0) {
      this.options.onUpdate(update);
      this.save();
    }
    const refusal = this.refusal(typeUrl, refused);
    // A version with a plus is followed by the rest of it.
    const isLast = !systemVersionInfo.endsWith('+');
    if (typeUrl === ADDRESS_TYPE) {
      if (refused.length > 0) this.doubt(response, refused);
      this.lookups.received(removedResources, isLast, (name) => this.ownerOf(name) !== undefined);
    }
    if (isLast) this.syncedTypes.add(typeUrl);
    if (this.status.synced) {
      if (this.options.scope === 'mesh' && !this.isWholeMesh) {
        this.isWholeMesh = true;
        this.save();
      }
      for (const resolve of this.syncWaiters) resolve();
      this.syncWaiters.clear();
    }
    // An answer that nothing has a name is not waited for.
    if (nonce !== '') void this.answer(typeUrl, nonce, refusal);
  }

  /** What was refused has its addresses all the same: whoever takes them to be outside must not any more. */
  private doubt({ resources }: DeltaResponse, refused: readonly RefusedResource[]): void {
    const names = new Set(refused.map(({ name }) => name));
    const taken = resources.flatMap(({ name, aliases }) => (names.has(name) ? [name, ...aliases] : []));
    const doubted = this.lookups.doubt(taken);
    if (doubted.length === 0) return;
    this.save();
    this.options.onDoubt?.(doubted);
  }

  /** Confirms or refuses a response, once it is in use. */
  private async answer(typeUrl: string, responseNonce: string, refusal: DeltaRequest['errorDetail']): Promise<void> {
    const { call } = this;
    let errorDetail = refusal;
    let refusesUse = false;
    try {
      await this.options.use?.();
    } catch (error) {
      const message = [refusal?.message ?? [], (error as Error).message].flat().join('; ');
      errorDetail = { code: RpcCode.INVALID_ARGUMENT, message, details: [] };
      refusesUse = true;
    }
    // On another stream it would answer something else.
    if (call === undefined || this.call !== call) return;
    this.hasRefusedUse ||= refusesUse;
    this.send({ typeUrl, responseNonce, errorDetail });
  }

  /** Writes down what is known, soon. Changes of the mesh are without being asked, answers that nothing has a name are not. */
  save(): void {
    this.file?.write(() => {
      const nowMs = this.nowMs();
      this.savedMs = nowMs;
      const saved: SavedNames = { subscriptions: this.isWholeMesh ? [WHOLE_MARK] : [], absences: [] };
      for (const name of this.names) {
        const status = this.known(name)?.status;
        if (status === 'found') saved.subscriptions.push(name);
        if (status !== 'absent') continue;
        saved.absences.push({ name, confirmedS: Math.floor(this.lookups.confirmedMs(name, nowMs) / 1000) });
      }
      return this.proxy.save(saved, this.trust?.saved() ?? null);
    });
  }

  private newTrust(trust: ProxyTrust): TrustReceiver {
    const { trustDomain, log } = this.options;
    return new TrustReceiver({
      ...{ trust, trustDomain, log },
      say: (issuers, responseNonce, reason) => {
        const errorDetail = reason === null ? null : { code: RpcCode.INVALID_ARGUMENT, message: reason, details: [] };
        this.send({ node: this.self(issuers), typeUrl: TRUST_TYPE, responseNonce, errorDetail });
      },
      taken: (reason) => {
        this.refused.set(TRUST_TYPE, reason === null ? [] : [{ name: trustDomain, reason }]);
        if (reason === null) this.save();
      },
    });
  }

  private self(issuers?: string): NodeMessage {
    const { id, node, scope } = this.options;
    const fields: Record<string, { stringValue: string }> = {
      NODE_NAME: { stringValue: node },
      PORTCULLIS_SCOPE: { stringValue: scope ?? 'node' },
    };
    if (issuers !== undefined) fields[ISSUERS_METADATA] = { stringValue: issuers };
    return { id, metadata: { fields }, userAgentName: 'portcullis' };
  }

  private refusal(typeUrl: string, refused: readonly RefusedResource[]): DeltaRequest['errorDetail'] {
    if (refused.length === 0) return null;
    for (const { name, reason } of refused) {
      this.options.log('error', 'resource refused, its last good version stays', { type: typeUrl, name, reason });
    }
    const shown = refused.slice(0, 10).map(({ name, reason }) => `${name}: ${reason}`);
    if (refused.length > shown.length) shown.push(`and ${refused.length - shown.length} more`);
    const value = refusedCodec.encode({ names: refused.map(({ name }) => name) });
    return { code: RpcCode.INVALID_ARGUMENT, message: shown.join('; '), details: [{ type_url: REFUSED_TYPE, value }] };
  }

  private stillRefused(response: DeltaResponse, refused: readonly RefusedResource[]): RefusedResource[] {
    const settled = new Set([...response.resources.map(({ name }) => name), ...response.removedResources]);
    const before = this.refused.get(response.typeUrl) ?? [];
    return [...before.filter(({ name }) => !settled.has(name)), ...refused];
  }

  private ownerOf(name: string): AddressOwner | undefined {
    const { workloads, services } = this.state;
    const [workload, service] = [workloads.get(name), services.get(name)];
    if (workload !== undefined) return { kind: 'workload', workload };
    if (service !== undefined) return { kind: 'service', service };
    const alias = askedAlias(name);
    return alias === undefined ? undefined : this.index.byAddress(alias.slice(1));
  }

  private send(request: Partial<DeltaRequest>): void {
    this.call?.write({
      ...{ node: null, typeUrl: '', resourceNamesSubscribe: [], resourceNamesUnsubscribe: [] },
      ...{ initialResourceVersions: {}, responseNonce: '', errorDetail: null },
      ...request,
    });
  }
}
