// Routes recorded requests through a configuration that does not run: the same parser and the same
// compiled table as the packet path, fed with the recorded head written as HTTP/1.
//
// Runs in the process of `portcullis check`.

import { compileRoutes } from '../../config/compile-routes.ts';
import type { Config, RuleConfig } from '../../config/config.ts';
import { readForwardedClient } from '../../core/exchange/forwarded-client.ts';
import { encodeSockaddr, Family } from '../../core/ffi/sockaddr.ts';
import { type ParserLimits, RequestHead, TargetForm } from '../../core/http1/message.ts';
import { parseRequestHead } from '../../core/http1/request-parser.ts';
import type { PeerAddress } from '../../core/io/connection.ts';
import { RouteRequest } from '../../core/routing/route-request.ts';
import { RouteTable } from '../../core/routing/route-table.ts';
import type { RecordedRequest } from '../../core/telemetry/recorder-reader.ts';

/** What a configuration does with a request. */
export type Fate =
  /** No listener of that name, or no rule: 404. */
  | { kind: 'none'; cause: 'no listener' | 'no rule' | 'not parsed' }
  /** Answered by the gateway; `how` says with what, such as `redirected with 301`. */
  | { kind: 'answered'; route: string; label: string; how: string }
  /** Goes to one of these backends, by weight. */
  | { kind: 'forwarded'; route: string; label: string; backends: Record<string, number> };

/** Longest head: what the packet path can take at most, and room for fields written longer. */
const HEAD_BYTES_MAX = 1024 * 1024;

/** Recorded heads were within the limits of their time; here only routing counts. */
const limits: ParserLimits = { headBytesMax: HEAD_BYTES_MAX, headerCountMax: 256, uriBytesMax: HEAD_BYTES_MAX };

/** Bytes behind a head that its reader may look at. */
const SLACK_BYTES = 64;

/** Routes requests through one configuration. */
export class ReplayRouter {
  private readonly config: Config;
  private readonly table: RouteTable;
  private readonly rules: { rule: RuleConfig; route: string }[];
  private readonly listeners: Map<string, number>;
  private readonly memory = new Uint8Array(HEAD_BYTES_MAX + SLACK_BYTES);
  private readonly head = new RequestHead();
  private readonly request: RouteRequest;

  constructor(config: Config) {
    this.config = config;
    this.table = new RouteTable(compileRoutes(config));
    // In the order of the table.
    this.rules = config.routes.flatMap(({ name, rules }) => rules.map((rule) => ({ rule, route: name })));
    this.listeners = new Map(config.listeners.map(({ name }, index) => [name, index]));
    this.request = new RouteRequest(this.memory, this.head);
  }

  /** What would become of a recorded request. */
  fateOf(recorded: RecordedRequest): Fate {
    const listener = this.listeners.get(recorded.listener);
    if (listener === undefined) return { kind: 'none', cause: 'no listener' };
    const index = this.lookup(recorded, listener);
    if (index === undefined) return { kind: 'none', cause: 'not parsed' };
    const redirect = this.config.listeners[listener]!.redirectToHttps;
    if (redirect !== null) {
      return { kind: 'answered', route: '', label: '', how: `redirected to https with ${redirect.status}` };
    }
    if (index < 0) return { kind: 'none', cause: 'no rule' };
    const { rule, route } = this.rules[index]!;
    const label = this.table.ruleLabel(index);
    const how = answerOf(rule, recorded);
    if (how !== undefined) return { kind: 'answered', route, label, how };
    const backends: Record<string, number> = {};
    for (const { name, weight } of rule.backendRefs) {
      if (weight > 0) backends[name] = (backends[name] ?? 0) + weight;
    }
    return { kind: 'forwarded', route, label, backends };
  }

  /** Index of the rule, -1 for none, undefined for a head that this Portcullis would not take. */
  private lookup(recorded: RecordedRequest, listener: number): number | undefined {
    const { memory, head, request } = this;
    const text = headText(recorded);
    if (text.length > HEAD_BYTES_MAX) return undefined;
    const length = Buffer.from(memory.buffer).write(text, 0, 'latin1');
    if (parseRequestHead(memory, 0, length, limits, head) <= 0) return undefined;
    request.listener = listener;
    request.hostOffset = head.authorityOffset;
    request.hostLength = head.hostLength;
    // As Downstream.route: "*", a CONNECT authority and a target without path are routed like "/".
    const hasPath = head.pathOnlyLength > 0 && head.targetForm < TargetForm.AUTHORITY;
    request.pathOffset = head.pathOffset;
    request.pathLength = hasPath ? head.pathOnlyLength : 0;
    request.certificate = certificateOf(recorded.certificate);
    request.client = this.clientOf(recorded);
    return this.table.lookup(request);
  }

  /** The client behind the proxies that the new configuration trusts. */
  private clientOf({ client, headers }: RecordedRequest): PeerAddress | null {
    const peer = addressOf(client);
    const { trustedHops } = this.config;
    if (peer === null || trustedHops === 0) return peer;
    const entries = headers.filter(([name]) => name === 'x-forwarded-for').map(([, value]) => value);
    const value = Buffer.from([...entries, client].join(', '), 'latin1');
    return { ...readForwardedClient(value, 0, value.length, trustedHops, peer) };
  }
}

/** The head as HTTP/1; HTTP/2 has been the same to routing. */
function headText({ method, path, host, protocol, headers }: RecordedRequest): string {
  const version = protocol === 'HTTP/1.0' ? 'HTTP/1.0' : 'HTTP/1.1';
  // Framing would only be checked here: routing does not look at it, and a body is not there.
  const fields = headers.filter(
    ([name]) => !['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade'].includes(name),
  );
  const lines = fields.map(([name, value]) => `${name}: ${value}\r\n`).join('');
  const hostLine = host === '' && protocol === 'HTTP/1.0' ? '' : `host: ${host}\r\n`;
  return `${method} ${path} ${version}\r\n${hostLine}${lines}\r\n`;
}

function addressOf(text: string): PeerAddress | null {
  const sockaddr = encodeSockaddr(text, 0);
  if (sockaddr === undefined) return null;
  const view = new DataView(sockaddr.buffer, sockaddr.byteOffset);
  const v6 = text.includes(':');
  const at = v6 ? 8 : 4;
  const word = (index: number): number => (v6 || index === 0 ? view.getInt32(at + index * 4) : 0);
  return {
    peerFamily: v6 ? Family.INET6 : Family.INET,
    peerPort: 0,
    peer0: word(0),
    peer1: word(1),
    peer2: word(2),
    peer3: word(3),
  };
}

function certificateOf(certificate: RecordedRequest['certificate']): RouteRequest['certificate'] {
  if (certificate === null) return null;
  const encoder = new TextEncoder();
  return {
    verified: true,
    subjectAltNames: certificate.subjectAltNames.map((name) => encoder.encode(name)),
    sha256Bytes: encoder.encode(certificate.sha256),
  };
}

/** Every request has the fault; shares are of a million. */
const WHOLE_SHARE = 1_000_000;

/** What the gateway answers to a request of a rule itself, in words, or undefined. */
function answerOf(rule: RuleConfig, request: RecordedRequest): string | undefined {
  const filters = rule.policy?.filters ?? null;
  if (filters === null) return undefined;
  const { redirect, direct, cors, fault } = filters;
  const has = (wanted: string): boolean => request.headers.some(([name]) => name === wanted);
  // In the order in which the packet path asks them.
  if (cors !== null && request.method === 'OPTIONS' && has('origin') && has('access-control-request-method')) {
    return 'answered as a CORS preflight';
  }
  if (fault !== null && fault.abortShare >= WHOLE_SHARE && (fault.abortStatus > 0 || fault.abortGrpcStatus >= 0)) {
    const concerned = fault.headers.every(({ name, value }) =>
      request.headers.some(([field, text]) => field === name.toLowerCase() && text === value),
    );
    if (concerned) return 'denied by FaultInjection';
  }
  if (redirect !== null) return `redirected with ${redirect.status}`;
  if (direct !== null) return `answered with ${direct.status}`;
  return undefined;
}
