// What to capture, checked: the traffic of a whole network namespace, or of some users or a cgroup of the host.
// Pure.

import { MeshPort } from '../../core/tcp/mesh-ports.ts';
import { addressKind, type Interval, mergeIntervals, parseInterval } from './intervals.ts';

/** Where the proxy's listeners are; the numbers are those of Istio ambient. */
export const DEFAULT_OUTBOUND_PORT = MeshPort.OUTBOUND;
export const DEFAULT_INBOUND_PORT = MeshPort.INBOUND;
export const TUNNEL_PORT = MeshPort.TUNNELS;

/** Packet mark (SO_MARK) of what the proxy itself sends, and the bits of it that count, as in Istio ambient. */
export const CAPTURE_MARK = 0x539;
export const CAPTURE_MARK_MASK = 0xfff;

/** Whose traffic. */
export type CaptureScope =
  /** All of a network namespace. */
  | { kind: 'namespace' }
  /** Processes of these users, in the namespace of the host. */
  | { kind: 'uid'; uids: readonly number[] }
  /** Processes of a cgroup (version 2) and those below it; the path is relative to its root. */
  | { kind: 'cgroup'; path: string };

/** Traffic that goes past the proxy. */
export interface CaptureExclusions {
  /** Destination ports of connections that leave. */
  outboundPorts: readonly Interval[];
  /** Destination addresses of connections that leave. */
  outboundV4: readonly Interval[];
  outboundV6: readonly Interval[];
  /** Ports of the workload. */
  inboundPorts: readonly Interval[];
  /** Addresses of clients, such as that of a health checker. */
  inboundV4: readonly Interval[];
  inboundV6: readonly Interval[];
}

/** Checked: made by `parseCapture` only. */
export interface CaptureSpec {
  /** Name of the nftables table; one per workload that shares a namespace. */
  table: string;
  scope: CaptureScope;
  outboundPort: number;
  inboundPort: number;
  /** Ports of a workload of the host whose clients are captured; of a namespace it is all. */
  inboundPorts: readonly Interval[];
  exclude: CaptureExclusions;
  /** Whether traffic goes past the proxy while there is none; otherwise it is refused. */
  failOpen: boolean;
}

/** What people write; everything but the scope may be absent. */
export interface CaptureInput {
  scope?: CaptureScope;
  /** Of a workload of the host: letters, digits, `-` and `_`, up to 40. */
  name?: string;
  outboundPort?: number;
  inboundPort?: number;
  inboundPorts?: readonly string[];
  excludeOutboundPorts?: readonly string[];
  excludeOutbound?: readonly string[];
  excludeInboundPorts?: readonly string[];
  excludeInbound?: readonly string[];
  failOpen?: boolean;
}

const TABLE = 'portcullis';
/** Most excluded ports and addresses together: what the arguments of a program hold, several times over. */
const INTERVALS_MAX = 4096;
const UID_MAX = 0xfffffffe;
const NAME = /^[A-Za-z0-9_-]{1,40}$/;

/** The table of a workload of this name; without one, that of a namespace. */
export function tableName(name: string | undefined): string {
  return name === undefined ? TABLE : `${TABLE}_${name}`;
}

/** Checks everything at once: the spec, or one sentence for each fault. */
export function parseCapture(input: CaptureInput): { spec: CaptureSpec } | { faults: string[] } {
  const faults: string[] = [];
  const scope = input.scope ?? { kind: 'namespace' };
  checkScope(scope, input, faults);
  const outboundPort = checkPort('outboundPort', input.outboundPort ?? DEFAULT_OUTBOUND_PORT, faults);
  const inboundPort = checkPort('inboundPort', input.inboundPort ?? DEFAULT_INBOUND_PORT, faults);
  if (outboundPort === inboundPort) faults.push(`outboundPort and inboundPort are both ${outboundPort}`);
  const ports = (name: string, texts: readonly string[] = []) =>
    mergeIntervals(
      texts.flatMap((text) => {
        const interval = parseInterval(text, 'port');
        if (interval === undefined) faults.push(`${name}: "${text}" is not a port or a range such as 1000-2000`);
        return interval ?? [];
      }),
    );
  const addresses = (name: string, texts: readonly string[] = []) => {
    const found: Record<'v4' | 'v6', Interval[]> = { v4: [], v6: [] };
    for (const text of texts) {
      const kind = addressKind(text);
      const interval = kind && parseInterval(text, kind);
      if (interval) found[kind].push(interval);
      else faults.push(`${name}: "${text}" is not an address or a prefix such as 10.0.0.0/8`);
    }
    return [mergeIntervals(found.v4), mergeIntervals(found.v6)] as const;
  };
  const [outboundV4, outboundV6] = addresses('excludeOutbound', input.excludeOutbound);
  const [inboundV4, inboundV6] = addresses('excludeInbound', input.excludeInbound);
  const spec: CaptureSpec = {
    table: tableName(scope.kind === 'namespace' ? undefined : input.name),
    scope,
    outboundPort,
    inboundPort,
    inboundPorts: ports('inboundPorts', input.inboundPorts),
    exclude: {
      outboundPorts: ports('excludeOutboundPorts', input.excludeOutboundPorts),
      outboundV4,
      outboundV6,
      inboundPorts: ports('excludeInboundPorts', input.excludeInboundPorts),
      inboundV4,
      inboundV6,
    },
    failOpen: input.failOpen ?? false,
  };
  const intervals = Object.values(spec.exclude).reduce((sum, list) => sum + list.length, spec.inboundPorts.length);
  if (intervals > INTERVALS_MAX) faults.push(`${intervals} ports and addresses: ${INTERVALS_MAX} is the most`);
  return faults.length > 0 ? { faults } : { spec };
}

function checkScope(scope: CaptureScope, input: CaptureInput, faults: string[]): void {
  if (scope.kind === 'namespace') {
    if (input.name !== undefined) faults.push('name: a namespace has one table, so only users and cgroups have names');
    if (input.inboundPorts !== undefined) faults.push('inboundPorts: of a namespace all ports are captured');
    return;
  }
  if (input.name === undefined || !NAME.test(input.name)) {
    faults.push('name: a workload of the host needs one, of up to 40 letters, digits, "-" and "_"');
  }
  if (scope.kind === 'uid') {
    if (scope.uids.length === 0) faults.push('uids: at least one is needed');
    for (const uid of scope.uids) {
      if (!Number.isInteger(uid) || uid < 0 || uid > UID_MAX) faults.push(`uids: ${uid} is not a user id`);
      // The proxy's and the system's own connections would be captured with the workload's.
      if (uid === 0) faults.push('uids: 0 is everybody who runs as root, the proxy too: use a cgroup');
    }
    return;
  }
  const parts = scope.path.split('/');
  // Spaces and quotes would need escapes that the language of nft does not have.
  const isSafe = parts.every((part) => /^[A-Za-z0-9_.:@\\-]+$/.test(part) && part !== '.' && part !== '..');
  if (!isSafe) faults.push(`cgroup: "${scope.path}" is not a path such as system.slice/shop.service`);
}

function checkPort(name: string, port: number, faults: string[]): number {
  if (!Number.isInteger(port) || port < 1 || port > 65535) faults.push(`${name}: ${port} is not a port`);
  else if (port === TUNNEL_PORT) faults.push(`${name}: ${port} is the port of tunnels`);
  return port;
}
