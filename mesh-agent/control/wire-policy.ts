// Authorisation policies between the model and istio.security.Authorization.
//
// Control threads. The public message can say what is decided of a connection; the whole policy travels in
// an extension beside that. A proxy that does not know the extension must never let in more than the
// whole policy would: rules to allow that ask about requests are left out for it, and rules to deny lose
// what they ask about requests. Spec: istio.security; Istio AuthorizationPolicy and its use at layer 4.

import { parseNetwork } from '../../config/networks.ts';
import type {
  AuthorizationPolicy,
  PolicyCondition,
  PolicyOperation,
  PolicyRule,
  PolicyScope,
  PolicySource,
} from '../model/mesh-state.ts';
import { codec, Extension } from './protocol.ts';
import { addressBytes, addressText, type ExtensionMessage, extension, extensionBytes } from './wire-address.ts';

interface StringMatch {
  exact?: string;
  prefix?: string;
  suffix?: string;
  presence?: object;
}

interface NetworkMessage {
  address: Uint8Array;
  length: number;
}

interface Match {
  namespaces: StringMatch[];
  notNamespaces: StringMatch[];
  principals: StringMatch[];
  notPrincipals: StringMatch[];
  sourceIps: NetworkMessage[];
  notSourceIps: NetworkMessage[];
  destinationIps: NetworkMessage[];
  notDestinationIps: NetworkMessage[];
  destinationPorts: number[];
  notDestinationPorts: number[];
  serviceAccounts: { namespace: string; serviceAccount: string }[];
  notServiceAccounts: { namespace: string; serviceAccount: string }[];
}

type Clause = { matches: Partial<Match>[] };

interface AuthorizationMessage {
  name: string;
  namespace: string;
  scope: string;
  action: string;
  groups: { rules: Clause[] }[];
  dryRun: boolean;
  extensions: ExtensionMessage[];
}

const authorizationCodec = codec<AuthorizationMessage>('istio.security.Authorization');
const wholeCodec = codec<{ rules: PolicyRule[] }>('portcullis.mesh.v1.AuthorizationPolicy');

const scopes: Record<PolicyScope, string> = {
  global: 'GLOBAL',
  namespace: 'NAMESPACE',
  workload: 'WORKLOAD_SELECTOR',
};

/** Encodes a policy. */
export function encodePolicy(policy: AuthorizationPolicy): Buffer {
  const { name, namespace, scope, action, dryRun } = policy;
  const rules = policy.rules.map((rule) => ({ from: [...rule.from], to: [...rule.to], when: [...rule.when] }));
  return authorizationCodec.encode({
    ...{ name, namespace, dryRun },
    scope: scopes[scope],
    action: action === 'allow' ? 'ALLOW' : 'DENY',
    groups: policy.rules.flatMap((rule) => {
      const clauses = connectionClauses(rule, action === 'deny');
      return clauses === undefined ? [] : [{ rules: clauses }];
    }),
    extensions: [extension(Extension.POLICY, 'portcullis.mesh.v1.AuthorizationPolicy', wholeCodec.encode({ rules }))],
  });
}

/** A policy from its bytes, without its selector. Throws an Error with the reason when it cannot be used. */
export function decodePolicy(bytes: Uint8Array): AuthorizationPolicy {
  const message = authorizationCodec.decode(bytes);
  const { name, namespace, dryRun } = message;
  if (name === '') throw new Error('it has no name');
  const scope = scopeOf(message);
  if (message.action !== 'ALLOW' && message.action !== 'DENY') throw new Error(`action ${message.action} is not known`);
  const whole = extensionBytes(message.extensions, Extension.POLICY);
  const rules = whole === undefined ? message.groups.map(({ rules }) => ruleOf(rules)) : wholeCodec.decode(whole).rules;
  for (const rule of rules) checkNetworks(rule);
  return { name, namespace, scope, selector: {}, action: message.action === 'ALLOW' ? 'allow' : 'deny', dryRun, rules };
}

/**
 * What stands for a policy that could not be read and that there is no earlier version of: it denies
 * everything that the policy may have been about, since nobody knows what it would have denied.
 */
export function denyInstead(key: string, bytes: Uint8Array): AuthorizationPolicy {
  let scope: PolicyScope = 'global';
  try {
    scope = scopeOf(authorizationCodec.decode(bytes));
  } catch {
    // Not even that much can be read.
  }
  const [namespace, name] = key.includes('/')
    ? [key.slice(0, key.indexOf('/')), key.slice(key.indexOf('/') + 1)]
    : ['', key];
  const rules = [{ from: [], to: [], when: [] }];
  return { namespace, name, scope, selector: {}, action: 'deny', dryRun: false, rules };
}

function scopeOf({ scope }: { scope: string }): PolicyScope {
  const found = (Object.keys(scopes) as PolicyScope[]).find((one) => scopes[one] === scope);
  if (found === undefined) throw new Error(`scope ${scope} is not known`);
  return found;
}

/** The clauses of a rule, all of which have to match; undefined: there is nothing that could match safely. */
function connectionClauses(rule: PolicyRule, deny: boolean): Clause[] | undefined {
  const parts: { match: Partial<Match>; complete: boolean }[][] = [
    rule.from.map(sourceMatch),
    rule.to.map(operationMatch),
    ...rule.when.map((condition) => [conditionMatch(condition)]),
  ];
  if (!deny && parts.flat().some(({ complete }) => !complete)) return undefined;
  // A match without content counts as none for its readers: the whole clause is true then, and left out.
  return parts
    .filter(
      (part) => part.length > 0 && part.every(({ match }) => Object.values(match).some((list) => list.length > 0)),
    )
    .map((part) => ({ matches: part.map(({ match }) => match) }));
}

function sourceMatch(source: PolicySource): { match: Partial<Match>; complete: boolean } {
  const match = {
    principals: source.identities.map(principal),
    notPrincipals: source.notIdentities.map(principal),
    namespaces: source.namespaces.map(stringMatch),
    notNamespaces: source.notNamespaces.map(stringMatch),
    sourceIps: source.ipBlocks.map(network),
    notSourceIps: source.notIpBlocks.map(network),
  };
  return { match, complete: true };
}

function operationMatch(operation: PolicyOperation): { match: Partial<Match>; complete: boolean } {
  const { hosts, notHosts, paths, notPaths, methods, notMethods } = operation;
  const match = { destinationPorts: [...operation.ports], notDestinationPorts: [...operation.notPorts] };
  const ofRequests = [hosts, notHosts, paths, notPaths, methods, notMethods];
  return { match, complete: ofRequests.every((list) => list.length === 0) };
}

function conditionMatch({ key, values, notValues }: PolicyCondition): { match: Partial<Match>; complete: boolean } {
  switch (key) {
    case 'source.ip':
      return { match: { sourceIps: values.map(network), notSourceIps: notValues.map(network) }, complete: true };
    case 'source.namespace': {
      const match = { namespaces: values.map(stringMatch), notNamespaces: notValues.map(stringMatch) };
      return { match, complete: true };
    }
    case 'source.principal':
      return { match: { principals: values.map(principal), notPrincipals: notValues.map(principal) }, complete: true };
    case 'destination.ip': {
      const match = { destinationIps: values.map(network), notDestinationIps: notValues.map(network) };
      return { match, complete: true };
    }
    case 'destination.port': {
      const match = { destinationPorts: values.map(Number), notDestinationPorts: notValues.map(Number) };
      return { match, complete: true };
    }
    default:
      return { match: {}, complete: false };
  }
}

/** A rule from clauses that another control plane wrote. */
function ruleOf(clauses: readonly Clause[]): PolicyRule {
  const from: PolicySource[] = [];
  const to: PolicyOperation[] = [];
  const when: PolicyCondition[] = [];
  for (const { matches } of clauses) {
    const parsed = matches.map((match) => partsOf(match as Match));
    const kinds = new Set(parsed.flatMap(({ kinds }) => kinds));
    if (parsed.length === 0) continue;
    // Reached only if it asks for something, like the other readers do: an empty match is none.
    if (parsed.some(({ kinds }) => kinds.length === 0)) throw new Error('a match asks for nothing');
    if (parsed.length === 1) {
      when.push(...parsed[0]!.conditions);
    } else if (kinds.size === 1 && kinds.has('source') && from.length === 0) {
      from.push(...parsed.map(({ source }) => source));
    } else if (kinds.size === 1 && kinds.has('operation') && to.length === 0) {
      to.push(...parsed.map(({ operation }) => operation));
    } else {
      throw new Error('alternatives of different kinds in one clause are not supported');
    }
  }
  return { from, to, when };
}

function partsOf(match: Match) {
  const account = (one: { namespace: string; serviceAccount: string }) =>
    `*/ns/${one.namespace}/sa/${one.serviceAccount}`;
  const source: PolicySource = {
    identities: [...match.principals.map(pattern), ...match.serviceAccounts.map(account)],
    notIdentities: [...match.notPrincipals.map(pattern), ...match.notServiceAccounts.map(account)],
    namespaces: match.namespaces.map(pattern),
    notNamespaces: match.notNamespaces.map(pattern),
    ipBlocks: match.sourceIps.map(networkText),
    notIpBlocks: match.notSourceIps.map(networkText),
  };
  if (match.principals.length > 0 && match.serviceAccounts.length > 0) {
    throw new Error('principals and service accounts in one match are not supported');
  }
  const none = { hosts: [], notHosts: [], paths: [], notPaths: [], methods: [], notMethods: [] };
  const operation: PolicyOperation = { ports: match.destinationPorts, notPorts: match.notDestinationPorts, ...none };
  const texts = (numbers: readonly number[]): string[] => numbers.map(String);
  const conditions: PolicyCondition[] = [
    { key: 'source.principal', values: source.identities, notValues: source.notIdentities },
    { key: 'source.namespace', values: source.namespaces, notValues: source.notNamespaces },
    { key: 'source.ip', values: source.ipBlocks, notValues: source.notIpBlocks },
    { key: 'destination.port', values: texts(operation.ports), notValues: texts(operation.notPorts) },
    {
      key: 'destination.ip',
      values: match.destinationIps.map(networkText),
      notValues: match.notDestinationIps.map(networkText),
    },
  ].filter(({ values, notValues }) => values.length > 0 || notValues.length > 0);
  const kindOf = (key: string) =>
    key.startsWith('source.') ? 'source' : key === 'destination.port' ? 'operation' : key;
  return { source, operation, conditions, kinds: [...new Set(conditions.map(({ key }) => kindOf(key)))] };
}

function principal(identity: string): StringMatch {
  return stringMatch(identity.replace(/^spiffe:\/\//, ''));
}

function stringMatch(text: string): StringMatch {
  if (text === '*') return { presence: {} };
  if (text.endsWith('*')) return { prefix: text.slice(0, -1) };
  return text.startsWith('*') ? { suffix: text.slice(1) } : { exact: text };
}

function pattern(match: StringMatch): string {
  if (match.presence !== undefined) return '*';
  if (match.prefix !== undefined) return `${match.prefix}*`;
  return match.suffix !== undefined ? `*${match.suffix}` : (match.exact ?? '');
}

function network(text: string): NetworkMessage {
  const [host, length] = text.split('/');
  const address = addressBytes(host!)[0];
  if (address === undefined) throw new Error(`${text} is not a network`);
  return { address, length: length === undefined ? address.length * 8 : Number(length) };
}

function networkText({ address, length }: NetworkMessage): string {
  if (length > address.length * 8) throw new Error(`a network has a prefix of ${length} bits`);
  return `${addressText(address)}/${length}`;
}

/** Networks are the only texts of a policy that can be wrong in themselves. */
function checkNetworks({ from, when }: PolicyRule): void {
  const conditions = when.filter(({ key }) => key.endsWith('.ip'));
  const texts = [
    ...from.flatMap(({ ipBlocks, notIpBlocks }) => [...ipBlocks, ...notIpBlocks]),
    ...conditions.flatMap(({ values, notValues }) => [...values, ...notValues]),
  ];
  for (const text of texts) {
    const parsed = parseNetwork(text);
    if ('problem' in parsed) throw new Error(`${text} ${parsed.problem}`);
  }
}
