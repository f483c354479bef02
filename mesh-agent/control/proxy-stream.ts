// One proxy's stream: its requests change its subscriptions, changes of the mesh become responses.
//
// Control thread of the control plane. Knows no transport: requests are handed in decoded, responses out
// encoded. Order, so that no workload is ever served without the policies that it needs: changed policies
// first, then workloads and services, then the removal of policies; each waits for the one before to be
// confirmed. What it asks for by name and is not on its node waits for nothing. Spec: xDS, incremental aggregated variant.

import type { Log } from '../../core/workers/log.ts';
import { addressInterest, type Interest, policyInterest } from './interest.ts';
import {
  ADDRESS_TYPE,
  AUTHORIZATION_TYPE,
  type DeltaRequest,
  type NodeMessage,
  REFUSED_TYPE,
  RpcCode,
  refusedCodec,
  TRUST_TYPE,
} from './protocol.ts';
import { nodeToken, type ResourceChange, type Resources, type ResourceType } from './resources.ts';
import { type Refusal, Subscription } from './subscription.ts';
import type { TrustStream } from './trust-feed.ts';

/** Above so many tokens a change is taken to concern everybody, which is cheaper than to find out. */
const TOKENS_MAX = 2000;

/** Times at which a proxy reached a version that are remembered. */
const REACHED_MAX = 64;

/** Most names that a proxy may subscribe to. */
const NAMES_MAX = 200_000;

/** Longest reason of a refusal that is kept and logged. */
const REASON_LENGTH_MAX = 1000;

const ORDER: readonly ResourceType[] = [AUTHORIZATION_TYPE, ADDRESS_TYPE];

/** Who is at the other end. */
export interface ProxyIdentity {
  /** For logs and status. */
  name: string;
  /** Node that it was found to be the proxy of; null: it may say so itself. */
  node: string | null;
}

/** Where responses go. */
export interface ProxyTransport {
  send(bytes: Buffer): void;
  /** Ends the stream with a gRPC status. */
  end(code: number, message: string): void;
}

/** What every stream of a control plane shares. */
export interface StreamContext {
  resources: Resources;
  log: Log;
  /** Milliseconds of a clock that never goes back. */
  now(): number;
  /** Version of the mesh, counted from 1. */
  version(): number;
  /** Whether it can be said of an address that nothing has it. */
  tellsOutside(): boolean;
  /** Something about the stream is different, for those who wait. */
  changed(stream: ProxyStream): void;
}

/** One proxy. */
export class ProxyStream {
  readonly identity: ProxyIdentity;
  /** What the proxy calls itself; empty until its first request. */
  id = '';
  /** Node that it serves; empty: none. */
  node = '';
  /** `*` means what concerns its node, not everything. */
  private scoped = false;
  private nonces = 0;
  private closed = false;
  readonly connectedMs: number;
  private readonly subscriptions = new Map<ResourceType, Subscription>();
  /** Versions that it reached, and when; the newest last. */
  private readonly reached: { version: number; atMs: number }[] = [];
  /** Versions of which all is confirmed but answers out of turn up to a nonce. */
  private readonly nearly: { version: number; nonce: number }[] = [];
  private readonly context: StreamContext;
  private readonly transport: ProxyTransport;
  /** Its trust bundle; null: none is sent to it. */
  readonly trust: TrustStream | null;

  constructor(
    identity: ProxyIdentity,
    transport: ProxyTransport,
    context: StreamContext,
    trust: TrustStream | null = null,
  ) {
    this.identity = identity;
    this.trust = trust;
    this.transport = transport;
    this.context = context;
    this.connectedMs = context.now();
  }

  /** Name in logs and status. */
  get name(): string {
    return this.id === '' ? this.identity.name : this.id;
  }

  /** Newest version of the mesh that the proxy has confirmed all of; 0: none yet. */
  get served(): number {
    return this.reached.at(-1)?.version ?? 0;
  }

  /** Whether it has subscribed to something. */
  get subscribed(): boolean {
    return this.subscriptions.size > 0;
  }

  /** Subscriptions that it has refused something of. */
  get refusals(): (Refusal & { type: ResourceType })[] {
    return [...this.subscriptions.values()].flatMap(({ type, refusal }) =>
      refusal === null ? [] : [{ type, ...refusal }],
    );
  }

  /** Number of resources of a type that it has been sent. */
  resourceCount(type: ResourceType): number {
    return this.subscriptions.get(type)?.size ?? 0;
  }

  /** Time since which it has not answered, in milliseconds; null: it owes no answer. */
  get unansweredMs(): number | null {
    const times = [...this.subscriptions.values()].flatMap(({ outstanding, oldestAnswer }) =>
      [outstanding, oldestAnswer].flatMap((response) => response?.sentMs ?? []),
    );
    return times.length === 0 ? null : this.context.now() - Math.min(...times);
  }

  /** When it had confirmed a version, by the clock of the context; null: not yet. */
  reachedMs(version: number): number | null {
    return this.reached.find((one) => one.version >= version)?.atMs ?? null;
  }

  /** A request has arrived. */
  recvRequest(request: DeltaRequest): void {
    if (this.closed) return;
    if (request.node !== null && this.id === '' && !this.introduce(request.node)) return;
    if (request.typeUrl === TRUST_TYPE && this.trust !== null) {
      this.trust.recvRequest(request);
      return;
    }
    const type = ORDER.find((one) => one === request.typeUrl);
    if (type === undefined) {
      this.context.log('debug', 'proxy asks for a type that is not served', {
        proxy: this.name,
        type: request.typeUrl,
      });
      return;
    }
    let subscription = this.subscriptions.get(type);
    const initial = subscription === undefined;
    if (subscription === undefined) {
      subscription = new Subscription(type, this.context.resources, request.initialResourceVersions);
      this.subscriptions.set(type, subscription);
    } else if (request.responseNonce !== '') {
      this.recvAnswer(subscription, request);
    }
    this.recvNames(subscription, request, initial);
    this.pump();
  }

  /** The mesh has changed. */
  recvChange({ names, tokens }: ResourceChange): void {
    const policies = names[AUTHORIZATION_TYPE].size > 0;
    const own = this.node !== '' && tokens.has(nodeToken(this.node));
    for (const [type, subscription] of this.subscriptions) {
      const concerned =
        own || (type === AUTHORIZATION_TYPE && policies) || tokens.size > TOKENS_MAX || subscription.concerns(tokens);
      if (concerned) this.renew(subscription);
      subscription.touch(names[type]);
    }
    this.pump();
  }

  /** It can be said again what there is not. */
  tellUnsaid(): void {
    const held = [...this.subscriptions.values()].filter((subscription) => subscription.tellUnsaid());
    if (held.length > 0) this.pump();
  }

  /** Ends the stream with a gRPC status; the proxy will connect again, and prove anew who it is. */
  end(code: number, message: string): void {
    this.transport.end(code, message);
  }

  /** The stream is over. */
  close(): void {
    this.closed = true;
    this.subscriptions.clear();
  }

  private introduce(node: NodeMessage): boolean {
    const metadata = (key: string): string => node.metadata?.fields[key]?.stringValue ?? '';
    const claimed = metadata('NODE_NAME');
    const own = this.identity.node;
    if (own !== null && claimed !== '' && claimed !== own) {
      const message = `${this.identity.name} is the proxy of node ${own}, not of ${claimed}`;
      this.context.log('warn', 'proxy refused', { proxy: node.id, reason: message });
      this.closed = true;
      this.transport.end(RpcCode.PERMISSION_DENIED, message);
      return false;
    }
    this.id = node.id === '' ? this.identity.name : node.id;
    this.node = own ?? claimed;
    this.scoped = metadata('PORTCULLIS_SCOPE') === 'node' && this.node !== '';
    return true;
  }

  private recvAnswer(subscription: Subscription, request: DeltaRequest): void {
    const { errorDetail, responseNonce: nonce } = request;
    if (errorDetail === null) {
      subscription.acknowledge(nonce);
      return;
    }
    const reason = errorDetail.message.slice(0, REASON_LENGTH_MAX);
    if (!subscription.refuse(nonce, reason, refusedNames(request), this.context.now())) return;
    const resources = subscription.refusal!.names.slice(0, 10).join(', ');
    this.context.log('error', 'proxy refused resources', {
      proxy: this.name,
      type: subscription.type,
      reason,
      resources,
    });
  }

  private recvNames(subscription: Subscription, request: DeltaRequest, initial: boolean): void {
    const { resourceNamesSubscribe: more, resourceNamesUnsubscribe: less } = request;
    if (!initial && more.length === 0 && less.length === 0) return;
    // An empty first request means everything, as it did before there was "*".
    if (subscription.asked.size + more.length > NAMES_MAX) {
      this.closed = true;
      this.transport.end(RpcCode.RESOURCE_EXHAUSTED, `more than ${NAMES_MAX} names are subscribed to`);
      return;
    }
    subscription.subscribe(initial && more.length === 0 && less.length === 0 ? ['*'] : more, initial);
    subscription.unsubscribe(less);
    // To be told a part and take it for all would be to take the rest for outside.
    if (subscription.wildcard && !this.scoped && subscription.type === ADDRESS_TYPE && isSidecar(this.node)) {
      const message = 'a sidecar is not told the whole mesh: PORTCULLIS_SCOPE has to be node (discovery.scope: used)';
      this.context.log('warn', 'proxy refused', { proxy: this.name, reason: message });
      this.closed = true;
      this.transport.end(RpcCode.PERMISSION_DENIED, message);
      return;
    }
    if (initial || !this.renewNames(subscription, more, less)) this.renew(subscription, initial ? [] : more);
  }

  /**
   * The same as `renew` for names that are asked for besides others, and ones that nothing has: in time proportional to
   * those, since a proxy may have asked for very many, one by one. False: it is not as simple as that.
   */
  private renewNames(subscription: Subscription, more: readonly string[], less: readonly string[]): boolean {
    const { type, wildcard } = subscription;
    if (type !== ADDRESS_TYPE || (wildcard && !this.scoped) || more.includes('*')) return false;
    if ((more.length > 0 && less.length > 0) || !subscription.forgetAbsent(less)) return false;
    subscription.wantAlso(addressInterest(this.context.resources.index, '', more));
    return true;
  }

  /** Finds out anew what a subscription comes to. */
  private renew(subscription: Subscription, resend: readonly string[] = []): void {
    const { index } = this.context.resources;
    const { asked, type, wildcard } = subscription;
    // Who may reach others is none of a sidecar's business.
    if (wildcard && !this.scoped && !(type === AUTHORIZATION_TYPE && isSidecar(this.node))) {
      subscription.wantEverything(resend);
      return;
    }
    if (type === AUTHORIZATION_TYPE) {
      const interest = isSidecar(this.node)
        ? this.sidecarInterest(wildcard, asked)
        : policyInterest(index, wildcard ? this.node : '', asked);
      subscription.want(interest, resend);
      return;
    }
    // A proxy that loads on demand gets the workloads of its node all the same: they receive traffic unasked.
    const again = resend.flatMap((name) => [...addressInterest(index, '', [name]).names, name]);
    subscription.want(addressInterest(index, this.node, asked), again);
  }

  /** Policies for a sidecar: workloads name theirs, so it could ask for those of others. To it nothing has such a name. */
  private sidecarInterest(wildcard: boolean, asked: ReadonlySet<string>): Interest {
    const own = policyInterest(this.context.resources.index, this.node, []);
    const names = wildcard ? own.names : new Set([...asked].filter((name) => own.names.has(name)));
    return { ...own, names, absent: new Set([...asked].filter((name) => !own.names.has(name))) };
  }

  /** Sends what can be sent, and notes what the proxy has come to serve. */
  private pump(): void {
    if (this.closed) return;
    const policies = this.subscriptions.get(AUTHORIZATION_TYPE);
    const addresses = this.subscriptions.get(ADDRESS_TYPE);
    if (policies?.outstanding === null && policies.hasMore) this.send(policies, addresses?.settled ?? true);
    if (addresses?.outstanding === null && addresses.hasMore && this.policiesFirst(policies))
      this.send(addresses, true);
    // The addresses may have needed nothing, which is when removals may go.
    if (policies?.outstanding === null && policies.hasMore && (addresses?.settled ?? true)) this.send(policies, true);
    if (addresses !== undefined) this.answerOutOfTurn(addresses);
    this.noteReached(addresses?.oldestAnswer?.nonce);
    this.context.changed(this);
  }

  /** Notes what the proxy has come to serve; `oldest`: nonce of the oldest answer out of turn that is not confirmed. */
  private noteReached(oldest = 'Infinity'): void {
    const { version, now } = this.context;
    const { nearly, reached } = this;
    const all = [...this.subscriptions.values()];
    const noted = nearly.at(-1)?.version ?? this.served;
    if (all.length > 0 && all.every(({ settled }) => settled) && noted < version()) {
      nearly.push({ version: version(), nonce: this.nonces });
      if (nearly.length > REACHED_MAX) nearly.shift();
    }
    while (nearly.length > 0 && nearly[0]!.nonce < Number(oldest)) {
      reached.push({ version: nearly.shift()!.version, atMs: now() });
      if (reached.length > REACHED_MAX) reached.shift();
    }
  }

  /** Answers what was asked for just now and cannot be sent yet: connections wait for it, and it changes nothing. */
  private answerOutOfTurn(addresses: Subscription): void {
    const { resources, version, now, tellsOutside } = this.context;
    const own = this.node === '' ? null : resources.index.uidsOnNode(this.node);
    const isOwn = (name: string): boolean => own?.has(name) === true;
    for (;;) {
      const next = addresses.answer(`${this.nonces + 1}`, version(), now(), tellsOutside(), isOwn);
      if (next === null) return;
      this.nonces++;
      this.transport.send(next.bytes);
    }
  }

  private get hasPolicyClaims(): boolean {
    return this.subscriptions.get(AUTHORIZATION_TYPE)?.hasClaims === true;
  }

  private policiesFirst(policies: Subscription | undefined): boolean {
    if (policies === undefined) return true;
    // One without any policy in it, as after a reconnect, leaves none in doubt.
    const inDoubt = policies.outstanding !== null && policies.outstanding.names.length > 0;
    return !inDoubt && !policies.hasAdditions();
  }

  private send(subscription: Subscription, removals: boolean): void {
    const nonce = `${++this.nonces}`;
    const { resources, version, now, tellsOutside } = this.context;
    // A workload says which policies select it: without those that are not known here it would be told to have none.
    const own = this.hasPolicyClaims ? resources.index.uidsOnNode(this.node) : null;
    const stays = (name: string): boolean => own?.has(name) === true;
    const allowed = { outside: tellsOutside(), removals, stays };
    const next = subscription.next(nonce, version(), now(), allowed);
    if (next !== null) this.transport.send(next.bytes);
  }
}

/** Whether a proxy is that of one workload: it is known by an identity instead of the name of a node. */
function isSidecar(proxy: string): boolean {
  return proxy.startsWith('spiffe://');
}

/** Names that a proxy of ours says it refused; empty for others. */
function refusedNames({ errorDetail }: DeltaRequest): string[] {
  const detail = errorDetail?.details.find(({ type_url: type }) => type === REFUSED_TYPE);
  if (detail === undefined) return [];
  try {
    return refusedCodec.decode(detail.value).names;
  } catch {
    return [];
  }
}
