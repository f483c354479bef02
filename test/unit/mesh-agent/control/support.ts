// A small mesh for tests, and proxies without a network.

import type { Log } from '../../../../core/workers/log.ts';
import { Discovery } from '../../../../mesh-agent/control/discovery.ts';
import {
  ADDRESS_TYPE,
  AUTHORIZATION_TYPE,
  type DeltaRequest,
  type DeltaResponse,
  responseCodec,
} from '../../../../mesh-agent/control/protocol.ts';
import type { ProxyStream } from '../../../../mesh-agent/control/proxy-stream.ts';
import {
  type AuthorizationPolicy,
  changesBetween,
  type MeshState,
  policyKey,
  type Service,
  serviceKey,
  type Workload,
} from '../../../../mesh-agent/model/mesh-state.ts';

export const noLog: Log = () => {};

/** A log that can be read. */
export function logLines(): { log: Log; lines: string[] } {
  const lines: string[] = [];
  return {
    log: (level, message, fields) => void lines.push(`${level} ${message} ${JSON.stringify(fields ?? {})}`),
    lines,
  };
}

/** Workload `shop/NAME` on node-a; the key of the service `shop/cart` is `CART`. */
export function workload(name: string, more: Partial<Workload> = {}): Workload {
  return {
    uid: `test//Workload/${more.namespace ?? 'shop'}/${name}`,
    ...{ name, namespace: 'shop', trustDomain: 'cluster.local', serviceAccount: name, node: 'node-a', addresses: [] },
    ...{ hostNetwork: false, protocol: 'hbone', status: 'healthy', locality: { region: '', zone: '', subzone: '' } },
    ...{ labels: { app: name }, canonicalName: name, services: {} },
    ...more,
  };
}

export function service(name: string, more: Partial<Service> = {}): Service {
  return {
    ...{ namespace: 'shop', name, hostname: `${name}.shop.svc.cluster.local`, vips: [] },
    ports: [{ servicePort: 80, targetPort: 8080, protocol: 'http' }],
    ...{ rules: null, backend: null, configuration: null },
    ...more,
  };
}

export function policy(name: string, more: Partial<AuthorizationPolicy> = {}): AuthorizationPolicy {
  return {
    ...{ namespace: 'shop', name, scope: 'namespace', selector: {}, action: 'allow', dryRun: false, rules: [] },
    ...more,
  };
}

export const CART = 'shop/cart.shop.svc.cluster.local';

/** What makes a workload an endpoint of these services. */
export function endpointOf(...keys: string[]): Pick<Workload, 'services'> {
  return { services: Object.fromEntries(keys.map((key) => [key, [{ servicePort: 80, targetPort: 8080 }]])) };
}

type Thing = Workload | Service | AuthorizationPolicy;

/** A state with these in it. */
export function stateOf(...things: Thing[]): MeshState {
  const state = {
    workloads: new Map<string, Workload>(),
    services: new Map<string, Service>(),
    policies: new Map<string, AuthorizationPolicy>(),
    trustDomain: 'cluster.local',
  };
  for (const thing of things) {
    if ('uid' in thing) state.workloads.set(thing.uid, thing);
    else if ('hostname' in thing) state.services.set(serviceKey(thing), thing);
    else state.policies.set(policyKey(thing), thing);
  }
  return state;
}

/** Gives a control plane a new state. */
export function setState(discovery: Discovery, ...things: Thing[]): number {
  const state = stateOf(...things);
  return discovery.update({ state, changes: changesBetween(discovery.state, state) });
}

/** A control plane with a clock that stands still, at `clock.nowMs`. */
export function newDiscovery(log: Log = noLog): { discovery: Discovery; clock: { nowMs: number } } {
  const clock = { nowMs: 1000 };
  return { discovery: new Discovery(log, 'cluster.local', () => clock.nowMs), clock };
}

/** A proxy that answers nothing by itself. */
export class FakeProxy {
  readonly stream: ProxyStream;
  /** Responses that have not been looked at. */
  readonly responses: DeltaResponse[] = [];
  ended: { code: number; message: string } | undefined;
  private readonly discovery: Discovery;
  private readonly metadata: Record<string, string>;

  constructor(discovery: Discovery, options: { node?: string; own?: string; scope?: string; id?: string } = {}) {
    this.discovery = discovery;
    const { node = 'node-a', own, scope = 'node', id = 'proxy' } = options;
    this.metadata = { NODE_NAME: node, PORTCULLIS_SCOPE: scope };
    this.id = id;
    const transport = {
      send: (bytes: Buffer) => void this.responses.push(responseCodec.decode(bytes)),
      end: (code: number, message: string) => (this.ended = { code, message }),
    };
    this.stream = discovery.connect({ name: id, node: own ?? null }, transport);
  }

  readonly id: string;

  /** Sends a request for a type. */
  request(typeUrl: string, more: Partial<DeltaRequest> = {}): void {
    const fields = Object.fromEntries(
      Object.entries(this.metadata).map(([key, stringValue]) => [key, { stringValue }]),
    );
    this.stream.recvRequest({
      ...{ node: { id: this.id, metadata: { fields } }, typeUrl, responseNonce: '', errorDetail: null },
      ...{ resourceNamesSubscribe: [], resourceNamesUnsubscribe: [], initialResourceVersions: {} },
      ...more,
    });
  }

  /** Subscribes to names of workloads and services. */
  addresses(...names: string[]): void {
    this.request(ADDRESS_TYPE, { resourceNamesSubscribe: names });
  }

  /** Subscribes to all policies that concern it. */
  policies(): void {
    this.request(AUTHORIZATION_TYPE, { resourceNamesSubscribe: ['*'] });
  }

  /** The only response that is waiting. */
  take(): DeltaResponse {
    if (this.responses.length !== 1) throw new Error(`${this.responses.length} responses are waiting`);
    return this.responses.shift()!;
  }

  acknowledge({ typeUrl, nonce }: DeltaResponse): void {
    this.request(typeUrl, { responseNonce: nonce });
  }

  refuse({ typeUrl, nonce }: DeltaResponse, message: string): void {
    this.request(typeUrl, { responseNonce: nonce, errorDetail: { code: 3, message, details: [] } });
  }

  /** Takes and confirms all there is, and gives the names that came and went. */
  settle(): { got: string[]; removed: string[]; types: string[] } {
    const [got, removed, types]: string[][] = [[], [], []];
    for (let response = this.responses.shift(); response !== undefined; response = this.responses.shift()) {
      got!.push(...response.resources.map(({ name }) => name));
      removed!.push(...response.removedResources);
      types!.push(response.typeUrl === ADDRESS_TYPE ? 'addresses' : 'policies');
      this.acknowledge(response);
    }
    return { got: got!.sort(), removed: removed!.sort(), types: types! };
  }

  close(): void {
    this.discovery.disconnect(this.stream);
  }
}

/** Names of resources, sorted. */
export function names({ resources }: DeltaResponse): string[] {
  return resources.map(({ name }) => name).sort();
}
