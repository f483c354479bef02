// Asking policies about made-up connections and requests.

import assert from 'node:assert/strict';
import { Authorization, ConnectionVerdict } from '../../../../core/authorization/authorization.ts';
import { ConnectionFacts } from '../../../../core/authorization/connection-facts.ts';
import { parseAddress } from '../../../../core/authorization/network.ts';
import { numberPolicies } from '../../../../core/authorization/policy-numbers.ts';
import { RequestFacts } from '../../../../core/authorization/request-facts.ts';
import type {
  AuthorizationSettings,
  PolicyConditionSettings,
  PolicyOperationSettings,
  PolicyRuleSettings,
  PolicySourceSettings,
} from '../../../../core/authorization/settings.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import type { PeerAddress } from '../../../../core/io/connection.ts';

/** A rule with only what a test cares for. */
export interface ShortRule {
  from?: Partial<PolicySourceSettings>[];
  to?: Partial<PolicyOperationSettings>[];
  when?: (Partial<PolicyConditionSettings> & { key: string })[];
}

/** A policy with only what a test cares for. */
export interface ShortPolicy {
  name: string;
  action?: 'allow' | 'deny';
  dryRun?: boolean;
  rules?: ShortRule[];
}

/** A connection with only what a test cares for. */
export interface ShortConnection {
  identity?: string;
  ip?: string;
  /** `ip:port`, or '' where that is not known. */
  to?: string;
  sni?: string | null;
  trustedHops?: number;
}

const noSource = {
  identities: [],
  notIdentities: [],
  namespaces: [],
  notNamespaces: [],
  ipBlocks: [],
  notIpBlocks: [],
};
const noOperation = {
  ...{ ports: [], notPorts: [], hosts: [], notHosts: [], paths: [], notPaths: [], methods: [], notMethods: [] },
};

function wholeRule({ from = [], to = [], when = [] }: ShortRule): PolicyRuleSettings {
  return {
    from: from.map((source) => ({ ...noSource, ...source })),
    to: to.map((operation) => ({ ...noOperation, ...operation })),
    when: when.map((condition) => ({ values: [], notValues: [], ...condition })),
  };
}

/** Settings out of short policies. */
export function settingsOf(policies: readonly ShortPolicy[]): AuthorizationSettings {
  return {
    key: JSON.stringify(policies),
    policies: policies.map(({ name, action = 'allow', dryRun = false, rules = [] }) => ({
      ...{ name, action, dryRun },
      rules: rules.map(wholeRule),
    })),
  };
}

/** The policies as a worker uses them. */
export function authorizationOf(policies: readonly ShortPolicy[]): Authorization {
  const settings = settingsOf(policies);
  numberPolicies([settings]);
  return new Authorization(settings);
}

/** What policies come to for a connection. */
export function verdictOf(authorization: Authorization, connection: ShortConnection = {}): ConnectionVerdict {
  const { identity = '', ip = '10.0.0.1', to = '10.1.0.5:8080', sni = null, trustedHops = 0 } = connection;
  const colon = to.lastIndexOf(':');
  const facts = new ConnectionFacts({
    identity,
    peer: parseAddress(ip)!,
    destination: to === '' ? null : parseAddress(to.slice(0, colon).replace(/[[\]]/g, '')),
    port: to === '' ? 0 : Number(to.slice(colon + 1)),
    serverName: sni,
    clientIsPeer: trustedHops === 0,
  });
  return new ConnectionVerdict(authorization, facts);
}

const memory = new Uint8Array(256 * 1024);
const facts = new RequestFacts();
const limits = { headBytesMax: 200_000, headerCountMax: 64, uriBytesMax: 150_000 };

/** A request: `GET /path` and field lines; a Host of `a.example` unless there is one. */
export function requestOf(
  line: string,
  fields: readonly string[] = [],
  client: PeerAddress | null = null,
): RequestFacts {
  const hosts = fields.some((field) => /^host:/i.test(field)) ? [] : ['host: a.example'];
  const text = [`${line} HTTP/1.1`, ...hosts, ...fields, '', ''].join('\r\n');
  const offset = 512;
  memory.set(Buffer.from(text, 'latin1'), offset);
  const head = new RequestHead();
  assert.ok(parseRequestHead(memory, offset, text.length, limits, head) > 0, `not a request: ${text}`);
  facts.load(memory, head, client);
  return facts;
}
