// Tunnels (HBONE): those that listeners end, and those that lead to backends. Schema and checks of their keys.
//
// Control thread. Nothing is taken for granted about shapes; what is wrong by itself has been reported.
// Spec: RFC 9113 §8.5 (CONNECT); Istio's HBONE: CONNECT over mutual TLS, port 15008.

import { MeshPort } from '../core/tcp/mesh-ports.ts';
import { describeValue } from './errors.ts';
import { integer, reference } from './kinds.ts';
import { list, mapping, maybe } from './schema-builder.ts';
import { isMapping, type Mapping, mappings, type Report, refuse, unique } from './semantics-walk.ts';
import type { Path } from './yaml.ts';

/** Port of HBONE. */
const HBONE_PORT = MeshPort.TUNNELS;

export const listenerTunnelsSchema = list(
  mapping(
    {
      port: maybe(
        integer({ min: 1, max: 65_535, description: 'Port that the client names. Absent: every other port.' }),
      ),
      listener: reference(
        'listener',
        'Name of the listener that takes the connection as if it had accepted it. It has no TLS.',
      ),
    },
    { description: 'Where tunnels to one port lead.' },
  ),
  {
    minItems: 1,
    maxItems: 1024,
    description:
      'End tunnels (HBONE: CONNECT in HTTP/2 over mutual TLS) on this listener: what comes through one is a connection of another listener, with the client certificate of the tunnel. Needs `tls` with `clientValidation` and protocol h2. Absent: CONNECT is refused, or see `allowConnect`.',
  },
);

export const backendTunnelSchema = mapping(
  {
    port: maybe(
      integer({
        default: HBONE_PORT,
        min: 1,
        max: 65_535,
        description: "Port of the endpoint's address where the tunnel begins.",
      }),
    ),
  },
  {
    description:
      'Reach the endpoints through tunnels (HBONE: CONNECT in HTTP/2 over TLS). `tls` is that of the tunnels; `protocol` is spoken inside. Absent: connections go to the endpoints themselves.',
  },
);

/** Reports contradictions in tunnels. */
export function checkTunnels(root: Mapping, report: Report): void {
  const listeners = new Map([...mappings(root.listeners, [])].map(([listener]) => [listener.name, listener]));
  for (const [listener, path] of mappings(root.listeners, ['listeners'])) {
    if (listener.tunnels !== undefined) checkListener(listener, listeners, path, report);
  }
  for (const [backend, path] of mappings(root.backends, ['backends'])) {
    if (backend.tunnel !== undefined) checkBackend(backend, path, report);
  }
}

function checkListener(listener: Mapping, known: ReadonlyMap<unknown, Mapping>, path: Path, report: Report): void {
  const at = [...path, 'tunnels'];
  const { tls, protocols } = listener;
  const validation = isMapping(tls) ? tls.clientValidation : undefined;
  if (!isMapping(tls) || tls.mode === 'Passthrough' || (Array.isArray(protocols) && !protocols.includes('h2'))) {
    refuse(report, at, 'needs HTTP/2 over TLS', 'tls, and protocols with h2', undefined, 'key');
  } else if (!isMapping(validation) || validation.mode === 'optional') {
    const problem = 'lets in whoever has no certificate';
    refuse(report, at, problem, 'tls.clientValidation that requires one', undefined, 'key');
  }
  if (listener.allowConnect === true) {
    refuse(report, [...path, 'allowConnect'], 'contradicts tunnels', 'one of the two', undefined, 'key');
  }
  const seen = new Map<string, Path>();
  for (const [tunnel, tunnelPath] of mappings(listener.tunnels, at)) {
    const { port } = tunnel;
    if (port === undefined || typeof port === 'number') {
      const place = port === undefined ? [...tunnelPath, 'listener'] : [...tunnelPath, 'port'];
      unique(seen, String(port ?? 'any other port'), place, 'the port', 'each port once', report);
    }
    if (typeof tunnel.listener !== 'string') continue;
    const target = known.get(tunnel.listener);
    const value = describeValue(tunnel.listener);
    const targetPath = [...tunnelPath, 'listener'];
    if (target === undefined) {
      const names = [...known.keys()].filter((name) => typeof name === 'string');
      refuse(report, targetPath, `there is no listener ${value}`, `one of ${names.join(', ')}`);
    } else if (target.tls !== undefined) {
      refuse(report, targetPath, `${value} has tls, which nothing in a tunnel speaks`, 'a listener without tls');
    } else if (target.proxyProtocol === 'required') {
      refuse(report, targetPath, `${value} expects PROXY protocol headers`, 'a listener without proxyProtocol');
    }
  }
}

function checkBackend(backend: Mapping, path: Path, report: Report): void {
  const at = [...path, 'tunnel'];
  if (backend.tls === undefined) {
    refuse(report, at, 'needs tls, with which tunnels prove who they are', 'tls: {...}', undefined, 'key');
  }
  if (backend.protocol === 'h2') {
    const problem = '"h2" is HTTP/2 over TLS, but tls is that of the tunnel here';
    refuse(report, [...path, 'protocol'], problem, 'h2c or http/1.1', 'h2c');
  }
  if (backend.proxyProtocol !== undefined) {
    const problem = 'tells of a client what the certificate of the tunnel says better';
    refuse(report, [...path, 'proxyProtocol'], problem, 'one of the two', undefined, 'key');
  }
  if (backend.healthCheck !== undefined) {
    const problem = 'goes to the endpoints directly, and they are behind a tunnel';
    refuse(report, [...path, 'healthCheck'], problem, 'outlierDetection', undefined, 'key');
  }
}
