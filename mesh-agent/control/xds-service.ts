// xDS over gRPC: the transport between proxies and Discovery.
//
// Control thread of the control plane. gRPC comes in as an argument, so that importing this loads nothing.
// A stream is authenticated before its first request is looked at. Spec: envoy.service.discovery.v3
// AggregatedDiscoveryService/DeltaAggregatedResources.

import type { Server, ServerDuplexStream } from '@grpc/grpc-js';
import type { Log } from '../../core/workers/log.ts';
import type { Evidence } from '../identity/attestation.ts';
import { evidenceOfCall } from '../identity/certificate-service.ts';
import type { Discovery } from './discovery.ts';
import { DELTA_PATH, type DeltaRequest, RpcCode, requestCodec } from './protocol.ts';
import type { ProxyStream } from './proxy-stream.ts';

/** Who calls. */
interface XdsCaller {
  name: string;
  /** The node whose proxy it is; null: of none. */
  node: string | null;
  /** Identities that it has; the first is its own. */
  identities?: readonly string[];
}

/** Finds out who a caller is; rejects when it cannot be told. `authenticate` of identity/attestation.ts does. */
export type ProxyAuthenticator = (evidence: Evidence) => Promise<XdsCaller>;

/** Requests of a stream that may arrive while its caller is being authenticated. */
const EARLY_REQUESTS_MAX = 64;

/** Settings of the gRPC server that xDS needs: dead proxies are noticed, long lists of versions are taken. */
export const xdsServerOptions = {
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.max_receive_message_length': 32 * 1024 * 1024,
  // Callers prove who they are again from time to time; what they have is kept. That also bounds what they believe of a
  // control plane that is cut off from its source: the next stream does not say again that an address is nothing's, so
  // from the end of this one that grows old as without a control plane (ABSENCE_AGE_MAX_MS of lookups.ts).
  'grpc.max_connection_age_ms': 30 * 60_000,
  'grpc.max_connection_age_grace_ms': 10_000,
};

/** Adds the service to a gRPC server. Callers that are neither the proxy of a node nor a sidecar are refused. */
export function addDiscoveryService(
  server: Server,
  discovery: Discovery,
  authenticator: ProxyAuthenticator,
  log: Log,
): void {
  const definition = {
    DeltaAggregatedResources: {
      path: DELTA_PATH,
      requestStream: true,
      responseStream: true,
      requestSerialize: (request: DeltaRequest) => requestCodec.encode(request),
      requestDeserialize: (bytes: Buffer) => requestCodec.decode(bytes),
      // Responses are bytes already, put together from resources that were encoded once.
      responseSerialize: (bytes: Buffer) => bytes,
      responseDeserialize: (bytes: Buffer) => bytes,
    },
  };
  server.addService(definition, {
    DeltaAggregatedResources: (call: ServerDuplexStream<DeltaRequest, Buffer>) => {
      void serve(call, discovery, authenticator, log);
    },
  });
}

async function serve(
  call: ServerDuplexStream<DeltaRequest, Buffer>,
  discovery: Discovery,
  authenticator: ProxyAuthenticator,
  log: Log,
): Promise<void> {
  const early: DeltaRequest[] = [];
  let stream: ProxyStream | undefined;
  let over = false;
  const end = (code: number, details: string): void => {
    if (over) return;
    over = true;
    if (stream !== undefined) discovery.disconnect(stream);
    call.emit('error', { code, details });
  };
  const leave = (): void => {
    if (over) return;
    over = true;
    if (stream === undefined) return;
    discovery.disconnect(stream);
    log('info', 'proxy disconnected', { proxy: stream.name });
  };
  call.on('data', (request: DeltaRequest) => {
    if (over) return;
    if (stream !== undefined) stream.recvRequest(request);
    else if (early.push(request) > EARLY_REQUESTS_MAX) end(RpcCode.RESOURCE_EXHAUSTED, 'too many requests at once');
  });
  call.on('cancelled', leave);
  call.on('error', leave);
  call.on('end', () => {
    leave();
    call.end();
  });
  try {
    const caller = await authenticator(evidenceOfCall(call));
    if (over) return;
    const node = caller.node ?? sidecarOf(caller, discovery);
    if (node === null) {
      end(RpcCode.PERMISSION_DENIED, `${caller.name} is neither the proxy of a node nor a sidecar that is known here`);
      return;
    }
    stream = discovery.connect({ name: caller.name, node }, { send: (bytes) => void call.write(bytes), end });
    log('info', 'proxy connected', { proxy: caller.name, node, peer: call.getPeer() });
    for (const request of early) stream.recvRequest(request);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    log('warn', 'proxy refused', { peer: call.getPeer(), reason });
    end(RpcCode.UNAUTHENTICATED, reason);
  }
}

/** What a workload's own proxy serves, see `proxyOf`; null: no workload with the identity of the caller has one. */
function sidecarOf({ identities = [] }: XdsCaller, { index }: Discovery): string | null {
  const [own = ''] = identities;
  return own.startsWith('spiffe://') && index.uidsOnNode(own).size > 0 ? own : null;
}
