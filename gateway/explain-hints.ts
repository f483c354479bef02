// Hints of `portcullis explain`: what an operator can do about an outcome, where something can be
// done. Settings are named as in the configuration file.

import { DETAIL_LIMIT, DETAIL_TLS, Detail, Reason } from '../core/exchange/reasons.ts';
import { Errno } from '../core/ffi/errno.ts';
import { MeshPort } from '../core/tcp/mesh-ports.ts';
import type { FlightRecord } from '../core/telemetry/flight-reader.ts';
import { TlsFailure } from '../core/tls/errors.ts';

const limitHints: Record<number, string> = {
  [Detail.HEAD_TOO_LARGE]: 'large cookies are the usual cause; limits.maxRequestHeadSize can be raised.',
  [Detail.URI_TOO_LONG]: 'limits.maxUriLength can be raised, if such long addresses are wanted.',
  [Detail.TOO_MANY_HEADERS]: 'limits.maxHeaders can be raised, if so many fields are wanted.',
  [Detail.BODY_TOO_LARGE]: 'raise limits.maxRequestBodySize if uploads of this size are wanted.',
  [Detail.NO_BUFFERS]: 'raise limits.bufferMemory, or look for clients that read slowly.',
  [Detail.NO_CONNECTION_SLOTS]: 'raise limits.maxConnections, or add workers.',
  [Detail.NO_DESCRIPTORS]: 'raise the limit of open files (ulimit -n, LimitNOFILE= in a systemd unit).',
  [Detail.RESPONSE_HEAD_TOO_LARGE]: 'limits.maxResponseHeadSize can be raised.',
  [Detail.COMPRESSOR_FAILED]: 'the log of the gateway says why its compressor thread ended.',
  [Detail.SHED]:
    'the log says which threshold of overload was passed at that time; rules that must be served have priority: high.',
  [Detail.DISCOVERY_AWAY]:
    'what was in use goes on. Addresses outside of the mesh need no control plane where discovery.networks says which are inside.',
  [Detail.DISCOVERY_TIMEOUT]: 'see `portcullis mesh status` for the control plane, and /mesh for what was refused.',
  [Detail.DISCOVERY_LIMIT]:
    'a workload that connects to very many addresses outside of the mesh needs discovery.networks, which says which are inside.',
  [Detail.ADAPTIVE_LIMIT]:
    'its latency had grown: the metrics portcullis_adaptive_concurrency_* show the limit and what it was judged by.',
};

const timerHints: Record<number, string> = {
  [Detail.REQUEST_TIMER]:
    "the time counts from the request's start, body and retries included; see timeouts.request of the rule.",
  [Detail.BACKEND_REQUEST_TIMER]: 'the endpoint was too slow for timeouts.backendRequest of the rule.',
  [Detail.CONNECT_TIMER]:
    'nothing answered at this address: check that it is right and that no firewall drops packets to it; the time is backends[].connectTimeout.',
  [Detail.UPSTREAM_IDLE_TIMER]: 'for responses with long pauses (events, long polling) raise timeouts.streamIdle.',
  [Detail.REQUEST_HEAD_TIMER]:
    'slow clients, or an attack that holds connections open; the time is timeouts.requestHead.',
  [Detail.REQUEST_BODY_TIMER]: 'the client stopped sending, or its network did; the time is timeouts.streamIdle.',
  [Detail.DOWNSTREAM_WRITE_TIMER]: 'the client stopped reading, or its network did; the time is timeouts.streamIdle.',
  [Detail.TUNNEL_IDLE_TIMER]: 'let the application send pings, or raise timeouts.tunnelIdle.',
};

const balancingHints: Record<number, string> = {
  [Detail.NO_USABLE_ENDPOINTS]:
    'health checks or outlier detection have found them bad, or they are draining: the log has the cause of each; loadBalancer.panicThreshold of the backend decides whether they are used all the same.',
  [Detail.SUBSET_EMPTY]: 'compare the subset of the backendRef with the labels of the endpoints.',
};

const trustHints: Record<number, string> = {
  [Detail.TUNNEL_UNTRUSTED]:
    'portcullis mesh roots shows the roots of the mesh and who has not renewed; /mesh of the admin ports of both nodes shows whom they trust.',
  [Detail.TUNNEL_IDENTITY]:
    'the certificate that the client showed has run out, or is of another trust domain; or the workload has none: see /mesh of the admin ports of both nodes.',
  [Detail.NO_CERTIFICATE]:
    'the log of the node and /mesh of its admin port say why: the control plane may have been away for longer than certificates live, or refuses.',
  [Detail.PLAINTEXT_REFUSED]:
    'whoever connects is not in the mesh; mode: permissive of the node takes plain text, as from nobody.',
};

/** One hint for a record, or undefined where there is nothing to advise. */
export function hintFor(record: FlightRecord): string | undefined {
  const specific = limitHints[record.detail] ?? timerHints[record.detail] ?? trustHints[record.detail];
  switch (record.reason) {
    case Reason.NONE:
      return undefined;
    case Reason.NO_ROUTE:
      if (specific !== undefined) return specific;
      return `compare the host "${record.host.text}" and the path with the hostnames and matches of your routes; GET /config of the admin port shows what runs now.`;
    case Reason.NO_HEALTHY_UPSTREAM:
      return (
        balancingHints[record.detail] ??
        `check the endpoints of backend "${record.backend}"; a DNS name without an address counts as none.`
      );
    case Reason.UPSTREAM_CONNECT_FAILURE:
      return specific ?? connectHint(record);
    case Reason.STALE_UPSTREAM_CONNECTION:
      return staleHint(record);
    case Reason.UPSTREAM_OVERFLOW:
      return (
        specific ??
        `GET /breakers of the admin port shows what is in use; raise the limit of circuitBreaker of "${record.backend}", or give it more endpoints.`
      );
    case Reason.UPSTREAM_CONNECTION_TERMINATION:
      return trustHints[record.detail] ?? terminationHint(record);
    case Reason.UPSTREAM_PROTOCOL_ERROR:
      return specific ?? 'check that the endpoint speaks plain HTTP/1.1 on this port, and not TLS or another protocol.';
    case Reason.DOWNSTREAM_CONNECTION_TERMINATION:
      return clientGoneHint(record);
    case Reason.RATE_LIMITED:
      return 'the limit is in rateLimits of the rule; the metric portcullis_rate_limit_requests_total shows how often it refuses, and dryRun tries another one out.';
    case Reason.UNAUTHORIZED:
      if (specific !== undefined) return specific;
      return 'rules are counted from 1 in spec.rules of the policy; a rule compares what the client is (its identity) and asks for; dryRun tries a change out, and portcullis mesh policies shows what each policy is about.';
    case Reason.CONNECT_REFUSED:
      return 'set allowConnect on the listener, if it is meant to be a CONNECT proxy.';
    case Reason.DRAIN_TIMEOUT:
      return 'drainTimeout can be raised, if exchanges of this length must survive a restart.';
    case Reason.FAULT_INJECTED:
    case Reason.DELAY_INJECTED:
      return `this is a test on purpose: take the FaultInjection filter off rule "${record.route}" to end it.`;
    case Reason.INTERNAL:
      return "this is a defect of the gateway; its log has the cause at this record's time.";
    default:
      return specific;
  }
}

function connectHint(record: FlightRecord): string {
  if (record.errno === Errno.ECONNREFUSED) {
    return record.workload === ''
      ? `nothing listens at ${record.endpoint}: is the service running, on this port?`
      : `nothing listens at ${record.endpoint}, or at port ${MeshPort.TUNNELS} of its host, where the tunnel to it goes: are the service and the proxy of its node running?`;
  }
  if (record.errno === Errno.EPERM)
    return 'a firewall of this machine forbids it, or a node proxy may not mark its sockets: that needs CAP_NET_ADMIN.';
  if (record.detail === Detail.TUNNEL_REFUSED)
    return `the tunnel to the host of ${record.endpoint} was reached, and said no: its own records tell why.`;
  if (record.detail >= DETAIL_TLS && record.detail < DETAIL_LIMIT) return tlsHint(record);
  return `check that this machine can reach ${record.endpoint}.`;
}

/** Who was reached and is not who it should be. The address is that of the service: in a mesh, TLS is with the tunnel to it. */
function tlsHint({ detail, endpoint }: FlightRecord): string {
  const reached = `${endpoint}, or the tunnel to it (port ${MeshPort.TUNNELS} of its host in a mesh), was reached`;
  switch (detail - DETAIL_TLS) {
    case TlsFailure.WRONG_HOST:
      return `${reached}, and is somebody else: the log line "TLS handshake failed" of that time has the name or identity that was expected. In a mesh, compare it with portcullis mesh workloads: the address may have a new owner.`;
    case TlsFailure.UNKNOWN_CA:
    case TlsFailure.SELF_SIGNED:
      return `${reached}, and nobody who is trusted here has signed its certificate: in a mesh, compare the roots of both nodes (trust in /mesh of their admin ports).`;
    case TlsFailure.CERTIFICATE_EXPIRED:
    case TlsFailure.CERTIFICATE_NOT_YET_VALID:
      return `${reached}, with a certificate out of its time: look at the clocks of both machines, and at why it was not renewed (in a mesh: /mesh of the admin port of its node).`;
    default:
      return `${reached}, and TLS with it failed: look at its certificate and names, and at who is trusted here.`;
  }
}

function staleHint(record: FlightRecord): string {
  const again =
    record.attempts > 1
      ? 'The request was sent once more and met the same.'
      : 'The request was not sent again, because that was not safe.';
  return `the upstream's keep-alive timeout is shorter than this gateway's idleTimeout; set backends[].idleTimeout of "${record.backend}" below it. ${again}`;
}

function terminationHint(record: FlightRecord): string {
  if (record.upstreamMs === null) {
    const closed = `${record.endpoint} closed without answering`;
    return record.workload === ''
      ? `${closed}: its log at this time should say why (a crash, a restart, a limit of its own).`
      : `${closed}: its log, or the records and the log of the proxy of its node, which closes what policies do not allow, should say why.`;
  }
  return `${record.endpoint} broke off in the middle of its response: its log at this time should say why; the client's connection was aborted so that the response does not look complete.`;
}

function clientGoneHint(record: FlightRecord): string | undefined {
  if (record.responseStarted) return undefined;
  return 'clients that leave before a response often have a timeout shorter than the service needs.';
}
