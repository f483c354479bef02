// A condition of a rule (`when`) that needs the request: a field, or the client behind trusted proxies.
// Compiled once per snapshot. Hot module: no allocation per request.
// Spec: Istio AuthorizationPolicy Conditions.

import { type ConnectionFacts, networkList, textList } from './connection-facts.ts';
import type { NetworkList } from './network.ts';
import type { RequestFacts } from './request-facts.ts';
import type { PolicyConditionSettings } from './settings.ts';
import type { TextList } from './text-match.ts';

const encoder = new TextEncoder();

export class RequestCondition {
  /** In lower case; empty: the client's address. */
  private readonly field: Uint8Array;
  private readonly values: TextList | null;
  private readonly notValues: TextList | null;
  private readonly networks: NetworkList | null;
  private readonly notNetworks: NetworkList | null;

  constructor(field: string, { values, notValues }: PolicyConditionSettings) {
    const isField = field !== '';
    this.field = encoder.encode(field.toLowerCase());
    this.values = isField ? textList(values) : null;
    this.notValues = isField ? textList(notValues) : null;
    this.networks = isField ? null : networkList(values);
    this.notNetworks = isField ? null : networkList(notValues);
  }

  /** Whether it is about the client behind trusted proxies. */
  get ofClient(): boolean {
    return this.field.length === 0;
  }

  /** Whether a connection without trusted proxies fulfils it; only conditions about the client. */
  isOfPeer(facts: ConnectionFacts, lenient: boolean): boolean {
    const { networks, notNetworks } = this;
    const { peer } = facts.source;
    if (networks !== null && !networks.has(peer, lenient)) return false;
    return notNetworks === null || !notNetworks.has(peer, !lenient);
  }

  /** Whether a request fulfils it. */
  isOfRequest(request: RequestFacts, lenient: boolean): boolean {
    const { field, values, notValues, networks, notNetworks } = this;
    if (networks !== null && !request.remoteIn(networks, lenient)) return false;
    if (notNetworks !== null && request.remoteIn(notNetworks, !lenient)) return false;
    if (values !== null && !request.fieldIn(field, values, lenient)) return false;
    return notValues === null || !request.fieldIn(field, notValues, !lenient);
  }
}
