// What authorisation policies can ask of a connection, and the parts of rules that ask it.
//
// Compiled once per snapshot, asked once per connection. `lenient` is as in request-facts.ts: what cannot be told
// holds for rules that deny, and does not for rules that allow.

import type { PeerAddress } from '../io/connection.ts';
import { NetworkList } from './network.ts';
import type { PolicySourceSettings } from './settings.ts';
import { TextList, TextMatch } from './text-match.ts';

const encoder = new TextEncoder();
const SCHEME = 'spiffe://';

/** Who and what a connection is. */
export interface ConnectionSource {
  /** Verified SPIFFE identity of the other end; '': it has none (plain text). */
  identity: string;
  /** Where it comes from. */
  peer: PeerAddress;
  /** Address and port of the workload that it is for; null and 0: not known. */
  destination: PeerAddress | null;
  port: number;
  /** Name by SNI, '' if none was asked for; null: nobody has looked into the connection for one. */
  serverName: string | null;
  /** No proxies are trusted to name clients: the client is the peer. */
  clientIsPeer: boolean;
}

/** The same, prepared to be compared. */
export class ConnectionFacts {
  readonly source: ConnectionSource;
  /** Identity without its scheme, and the namespace in it; empty: none. */
  private readonly identity: Uint8Array;
  private readonly namespace: Uint8Array;
  private readonly serverName: Uint8Array;

  constructor(source: ConnectionSource) {
    const identity = withoutScheme(source.identity);
    this.source = source;
    this.identity = encoder.encode(identity);
    this.namespace = encoder.encode(/^[^/]+\/ns\/([^/]+)\/sa\//.exec(identity)?.[1] ?? '');
    this.serverName = encoder.encode(source.serverName ?? '');
  }

  /** Whether the identity is in a list; no identity is in none. */
  identityIn(list: TextList, lenient: boolean): boolean {
    return isIn(this.identity, list, lenient);
  }

  /** Whether the namespace of the identity is in a list. */
  namespaceIn(list: TextList, lenient: boolean): boolean {
    return isIn(this.namespace, list, lenient);
  }

  /** Whether the name by SNI is in a list. */
  serverNameIn(list: TextList, lenient: boolean): boolean {
    return this.source.serverName === null ? lenient : isIn(this.serverName, list, lenient);
  }

  /** Whether the port of the workload is in a list. */
  portIn(ports: readonly number[], lenient: boolean): boolean {
    const { port } = this.source;
    return port === 0 ? lenient : ports.includes(port);
  }
}

function isIn(text: Uint8Array, list: TextList, lenient: boolean): boolean {
  return text.length > 0 && list.has(text, 0, text.length, lenient);
}

/** An identity as policies write it: `cluster.local/ns/shop/sa/cart`. */
function withoutScheme(identity: string): string {
  return identity.startsWith(SCHEME) ? identity.slice(SCHEME.length) : identity;
}

/** A list of texts; null: it is empty, and asks for nothing. */
export function textList(values: readonly string[], foldCase = false): TextList | null {
  return values.length === 0 ? null : new TextList(values.map((value) => TextMatch.of(value, foldCase)));
}

/** A list of identities, with or without their scheme. */
export function identityList(values: readonly string[]): TextList | null {
  return textList(values.map(withoutScheme));
}

/** A list of networks. */
export function networkList(values: readonly string[]): NetworkList | null {
  return values.length === 0 ? null : new NetworkList(values);
}

/** Whether something is in `wanted`, if that asks for anything, and not in `unwanted`. */
export function holds<L>(
  wanted: L | null,
  unwanted: L | null,
  has: (list: L, lenient: boolean) => boolean,
  lenient: boolean,
): boolean {
  if (wanted !== null && !has(wanted, lenient)) return false;
  return unwanted === null || !has(unwanted, !lenient);
}

/** One of the sources of a rule. */
export class Source {
  private readonly identities: TextList | null;
  private readonly notIdentities: TextList | null;
  private readonly namespaces: TextList | null;
  private readonly notNamespaces: TextList | null;
  private readonly networks: NetworkList | null;
  private readonly notNetworks: NetworkList | null;

  constructor(settings: PolicySourceSettings) {
    this.identities = identityList(settings.identities);
    this.notIdentities = identityList(settings.notIdentities);
    this.namespaces = textList(settings.namespaces);
    this.notNamespaces = textList(settings.notNamespaces);
    this.networks = networkList(settings.ipBlocks);
    this.notNetworks = networkList(settings.notIpBlocks);
  }

  /** Whether a connection comes from there. */
  isOf(facts: ConnectionFacts, lenient: boolean): boolean {
    const { identities, notIdentities, namespaces, notNamespaces, networks, notNetworks } = this;
    return (
      holds(identities, notIdentities, (list, some) => facts.identityIn(list, some), lenient) &&
      holds(namespaces, notNamespaces, (list, some) => facts.namespaceIn(list, some), lenient) &&
      holds(networks, notNetworks, (list, some) => list.has(facts.source.peer, some), lenient)
    );
  }
}
