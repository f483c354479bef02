// One of the operations of a rule: ports, which the connection has, and what the request says.
// Compiled once per snapshot. Hot module: no allocation per request.

import { type ConnectionFacts, textList } from './connection-facts.ts';
import { PathList } from './path-list.ts';
import type { RequestFacts } from './request-facts.ts';
import type { PolicyOperationSettings } from './settings.ts';
import { TextList, TextMatch } from './text-match.ts';

export class Operation {
  /** It asks something of requests. */
  readonly ofRequest: boolean;
  private readonly ports: readonly number[];
  private readonly notPorts: readonly number[];
  private readonly hosts: HostList | null;
  private readonly notHosts: HostList | null;
  private readonly paths: PathList | null;
  private readonly notPaths: PathList | null;
  private readonly methods: TextList | null;
  private readonly notMethods: TextList | null;

  constructor(settings: PolicyOperationSettings) {
    const { hosts, notHosts, paths, notPaths, methods, notMethods } = settings;
    this.ports = settings.ports;
    this.notPorts = settings.notPorts;
    this.hosts = hosts.length === 0 ? null : new HostList(hosts);
    this.notHosts = notHosts.length === 0 ? null : new HostList(notHosts);
    this.paths = paths.length === 0 ? null : new PathList(paths);
    this.notPaths = notPaths.length === 0 ? null : new PathList(notPaths);
    this.methods = textList(methods);
    this.notMethods = textList(notMethods);
    this.ofRequest = [hosts, notHosts, paths, notPaths, methods, notMethods].some((list) => list.length > 0);
  }

  /** Whether requests of a connection may be this. */
  isOfConnection(facts: ConnectionFacts, lenient: boolean): boolean {
    const { ports, notPorts } = this;
    if (ports.length > 0 && !facts.portIn(ports, lenient)) return false;
    return notPorts.length === 0 || !facts.portIn(notPorts, !lenient);
  }

  /** Whether a request of such a connection is this. */
  isOfRequest(request: RequestFacts, lenient: boolean): boolean {
    const { hosts, notHosts, paths, notPaths, methods, notMethods } = this;
    if (methods !== null && !request.methodIn(methods, lenient)) return false;
    if (notMethods !== null && request.methodIn(notMethods, !lenient)) return false;
    if (paths !== null && !request.pathIn(paths, lenient)) return false;
    if (notPaths !== null && request.pathIn(notPaths, !lenient)) return false;
    if (hosts !== null && !hosts.has(request, lenient)) return false;
    return notHosts === null || !notHosts.has(request, !lenient);
  }
}

/** Hosts of which any one will do. The port of a request does not matter, unless a value has one. */
class HostList {
  private readonly hosts: TextList | null;
  private readonly authorities: TextList | null;

  constructor(values: readonly string[]) {
    const hasPort = (value: string): boolean =>
      /[^:]:\d+$/.test(value) && (!value.includes('::') || value.includes(']:'));
    const hosts = values.filter((value) => !hasPort(value));
    this.authorities = textList(
      values.filter((value) => hasPort(value)),
      true,
    );
    this.hosts = hosts.length === 0 ? null : new TextList(hosts.map((value) => hostMatch(value)));
  }

  /** Whether a request is for one of them. */
  has(request: RequestFacts, lenient: boolean): boolean {
    const { hosts, authorities } = this;
    if (hosts !== null && request.hostIn(hosts, lenient)) return true;
    return authorities !== null && request.authorityIn(authorities, lenient);
  }
}

/** `example.com.` is the same host as without the dot. */
function hostMatch(value: string): TextMatch | null {
  return TextMatch.of(value.length > 1 && value.endsWith('.') ? value.slice(0, -1) : value, true);
}
