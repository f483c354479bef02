// What logs and records say of an exchange of a node proxy besides: whose it is, which way it goes, who is at the other
// end, which service was meant, and which policy decided.
//
// Owned by one worker. Hot module: works per exchange that is logged or recorded; what it makes of a name it keeps.
// A gateway never comes here.

import { policySlotName, policyWord, refusingPolicies } from '../authorization/policy-numbers.ts';
import type { Connection } from '../io/connection.ts';
import { type LogSource, noBytes } from '../telemetry/log-source.ts';
import type { Exchange } from './exchange.ts';
import { DETAIL_POLICY as refusedBy } from './reasons.ts';
import { isInbound } from './workload-traffic.ts';

const DETAIL_POLICY = refusedBy;

/** Names that are kept as bytes; beyond, all are made anew. */
const NAMES_MAX = 8192;

const encoder = new TextEncoder();
const outbound = encoder.encode('outbound');
const inbound = encoder.encode('inbound');

const identities = new Map<string, Uint8Array>();
const allowing: (Uint8Array | undefined)[] = [];
const refusing = new Map<number, Uint8Array>();

/** Fills in what an exchange of a workload has in logs and records. */
export function loadMesh(source: LogSource, exchange: Exchange, connection: Connection): void {
  const isIn = isInbound(connection);
  source.hasMesh = true;
  source.isInbound = isIn;
  source.workload = connection.workload!.nameBytes;
  source.side = isIn ? inbound : outbound;
  source.peer = isIn ? clientIdentity(connection) : serverIdentity(exchange);
  const { listener } = connection;
  // Of the listeners without a socket those of services have a port.
  source.service =
    !isIn && listener !== null && listener.settings.mesh!.role === 'virtual' && listener.settings.port > 0
      ? listener.nameBytes
      : noBytes;
  source.policy = policyOf(exchange);
}

/** The exchange has no workload: what another has left is taken away. */
export function clearMesh(source: LogSource): void {
  source.hasMesh = false;
  source.workload = source.side = source.peer = source.service = source.policy = noBytes;
}

function clientIdentity({ clientCertificate }: Connection): Uint8Array {
  return clientCertificate?.verified ? identityBytes(clientCertificate.spiffeId) : noBytes;
}

/** Whom the other end of the tunnel has to be; none: there is no tunnel, or none was chosen. */
function serverIdentity({ backend, endpoint, runtime }: Exchange): Uint8Array {
  if (backend < 0 || endpoint < 0) return noBytes;
  const names = runtime!.backends[backend]!.endpoints[endpoint]?.tunnel?.verifyNames;
  return names == null || names.length === 0 ? noBytes : identityBytes(names[0]!);
}

function policyOf({ detail, allowedBy }: Exchange): Uint8Array {
  if (detail < DETAIL_POLICY) return allowedBy < 0 ? noBytes : allowingBytes(allowedBy);
  let bytes = refusing.get(detail);
  if (bytes === undefined) {
    bytes = encoder.encode(refusingPolicies(policyWord(detail - DETAIL_POLICY)));
    refusing.set(detail, bytes);
  }
  return bytes;
}

function allowingBytes(slot: number): Uint8Array {
  let bytes = allowing[slot];
  if (bytes === undefined) {
    bytes = encoder.encode(policySlotName(slot));
    allowing[slot] = bytes;
  }
  return bytes;
}

function identityBytes(identity: string): Uint8Array {
  let bytes = identities.get(identity);
  if (bytes === undefined) {
    if (identities.size >= NAMES_MAX) identities.clear();
    bytes = encoder.encode(identity);
    identities.set(identity, bytes);
  }
  return bytes;
}
