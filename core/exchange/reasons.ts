// Why a response is not the upstream's own, or why an exchange ended badly: one short code each.
// The codes are the response-flag vocabulary that operators know from Envoy, with a few of ours
// where one flag there covers several causes. Codes are written to shared memory: append only.

/** One reason: its flag, and one plain sentence for log and `explain`. */
export interface ReasonText {
  flag: string;
  sentence: string;
}

/** Reason numbers; 0 means the exchange went as it should. */
export const Reason = {
  NONE: 0,
  NO_ROUTE: 1,
  NO_HEALTHY_UPSTREAM: 2,
  UPSTREAM_CONNECT_FAILURE: 3,
  UPSTREAM_CONNECTION_TERMINATION: 4,
  UPSTREAM_TIMEOUT: 5,
  UPSTREAM_OVERFLOW: 6,
  UPSTREAM_PROTOCOL_ERROR: 7,
  RATE_LIMITED: 8,
  DOWNSTREAM_CONNECTION_TERMINATION: 9,
  DOWNSTREAM_PROTOCOL_ERROR: 10,
  DOWNSTREAM_TIMEOUT: 11,
  REQUEST_TOO_LARGE: 12,
  NOT_IMPLEMENTED: 13,
  STALE_UPSTREAM_CONNECTION: 14,
  OVERLOAD: 15,
  DRAIN_TIMEOUT: 16,
  CONNECT_REFUSED: 17,
  INTERNAL: 18,
  FAULT_INJECTED: 19,
  DELAY_INJECTED: 20,
  UNAUTHORIZED: 21,
} as const;

const texts: Record<number, ReasonText> = {
  [Reason.NONE]: { flag: '-', sentence: 'The exchange completed.' },
  [Reason.NO_ROUTE]: { flag: 'NR', sentence: 'No route matches this host and path on this listener.' },
  [Reason.NO_HEALTHY_UPSTREAM]: { flag: 'UH', sentence: 'The backend has no endpoint that could take the request.' },
  [Reason.UPSTREAM_CONNECT_FAILURE]: { flag: 'UF', sentence: 'The connection to the upstream endpoint failed.' },
  [Reason.UPSTREAM_CONNECTION_TERMINATION]: {
    flag: 'UC',
    sentence: 'The upstream closed its connection before its response was complete.',
  },
  [Reason.UPSTREAM_TIMEOUT]: { flag: 'UT', sentence: 'The upstream did not answer in time.' },
  [Reason.UPSTREAM_OVERFLOW]: { flag: 'UO', sentence: 'A limit on upstream connections or requests was reached.' },
  [Reason.UPSTREAM_PROTOCOL_ERROR]: { flag: 'UPE', sentence: 'The upstream sent bytes that are not valid HTTP.' },
  [Reason.RATE_LIMITED]: { flag: 'RL', sentence: 'A rate limit refused the request.' },
  [Reason.DOWNSTREAM_CONNECTION_TERMINATION]: {
    flag: 'DC',
    sentence: 'The client closed its connection before the response was complete.',
  },
  [Reason.DOWNSTREAM_PROTOCOL_ERROR]: { flag: 'DPE', sentence: 'The client sent bytes that are not valid HTTP.' },
  [Reason.DOWNSTREAM_TIMEOUT]: { flag: 'DT', sentence: 'The client was too slow in sending or in reading.' },
  [Reason.REQUEST_TOO_LARGE]: { flag: 'RQL', sentence: 'The request is over a configured size limit.' },
  [Reason.NOT_IMPLEMENTED]: { flag: 'NI', sentence: 'The request asks for something this gateway does not do.' },
  [Reason.STALE_UPSTREAM_CONNECTION]: {
    flag: 'UCS',
    sentence: 'The upstream closed a kept-alive connection just as the request was sent on it.',
  },
  [Reason.OVERLOAD]: {
    flag: 'OM',
    sentence: 'The gateway itself is overloaded: too few connections, descriptors, buffers or too little time.',
  },
  [Reason.DRAIN_TIMEOUT]: { flag: 'DR', sentence: 'The gateway shut down before the exchange was complete.' },
  [Reason.CONNECT_REFUSED]: { flag: 'CR', sentence: 'CONNECT is not allowed on this listener.' },
  [Reason.INTERNAL]: { flag: 'IE', sentence: 'An internal error ended the exchange.' },
  [Reason.FAULT_INJECTED]: { flag: 'FI', sentence: 'A fault filter of the rule answered the request.' },
  [Reason.DELAY_INJECTED]: { flag: 'DI', sentence: 'A fault filter of the rule delayed the request.' },
  [Reason.UNAUTHORIZED]: { flag: 'RBAC', sentence: 'The authorization policies of the workload do not allow this.' },
};

/** Number of reasons; sizes the counters in shared memory. */
export const REASON_COUNT = Object.keys(Reason).length;

/** Flag and sentence of a reason number. */
export function reasonText(reason: number): ReasonText {
  return texts[reason] ?? { flag: '?', sentence: `Unknown reason ${reason}.` };
}

/**
 * What exactly happened, below the reason: which side, which timer, which rule. Free of bytes from
 * the wire, so it can be counted and stored as a number. Append only.
 */
export const Detail = {
  NONE: 0,
  // Downstream protocol errors: the parser's own code is DETAIL_PARSE + code.
  DOWNSTREAM_FIN: 1,
  DOWNSTREAM_RESET: 2,
  DOWNSTREAM_WRITE_FAILED: 3,
  REQUEST_HEAD_TIMER: 4,
  REQUEST_BODY_TIMER: 5,
  DOWNSTREAM_WRITE_TIMER: 6,
  REQUEST_TIMER: 7,
  BACKEND_REQUEST_TIMER: 8,
  CONNECT_TIMER: 9,
  UPSTREAM_IDLE_TIMER: 10,
  UPSTREAM_FIN: 11,
  UPSTREAM_RESET: 12,
  UPSTREAM_WRITE_FAILED: 13,
  CONNECT_ERRNO: 14,
  NO_ENDPOINTS: 15,
  HEAD_TOO_LARGE: 16,
  URI_TOO_LONG: 17,
  TOO_MANY_HEADERS: 18,
  BODY_TOO_LARGE: 19,
  NO_BUFFERS: 20,
  NO_CONNECTION_SLOTS: 21,
  NO_DESCRIPTORS: 22,
  RESPONSE_HEAD_INVALID: 23,
  RESPONSE_BODY_INVALID: 24,
  RESPONSE_HEAD_TOO_LARGE: 25,
  REQUEST_BODY_INVALID: 26,
  TUNNEL_IDLE_TIMER: 27,
  UNEXPECTED_UPGRADE: 28,
  RETRIES_EXHAUSTED: 29,
  PLAIN_HTTP: 30,
  GRPC_TIMER: 31,
  GRPC_TIMEOUT_INVALID: 32,
  GRPC_WEB_BODY_INVALID: 33,
  GRPC_WEB_RESPONSE_INVALID: 34,
  UPSTREAM_STREAM_REFUSED: 35,
  UPSTREAM_STREAM_RESET: 36,
  UPSTREAM_STREAM_CANCELLED: 37,
  UPSTREAM_STREAM_FAILED: 38,
  UPSTREAM_GOAWAY: 39,
  UPSTREAM_HTTP2_INVALID: 40,
  UPSTREAM_NOT_HTTP2: 41,
  UPSTREAM_LENGTH_MISMATCH: 42,
  UPSTREAM_PING_TIMER: 43,
  UPSTREAM_STALL_TIMER: 44,
  STREAM_QUEUE_FULL: 45,
  EXTENDED_CONNECT_MISSING: 46,
  REQUESTS_LIMIT: 47,
  PENDING_LIMIT: 48,
  PENDING_TIMER: 49,
  CONNECTIONS_LIMIT: 50,
  NO_USABLE_ENDPOINTS: 51,
  SUBSET_EMPTY: 52,
  COMPRESSOR_FAILED: 53,
  FAULT_ABORT: 54,
  FAULT_DELAY: 55,
  SHED: 56,
  ADAPTIVE_LIMIT: 57,
  TUNNEL_REFUSED: 58,
  TUNNEL_NOWHERE: 59,
  NOT_CAPTURED: 60,
  EGRESS_REFUSED: 61,
  PLAINTEXT_REFUSED: 62,
  WORKLOAD_CONNECTIONS: 63,
  WORKLOAD_BUFFERS: 64,
  WORKLOAD_RATE: 65,
  WORKLOAD_GONE: 66,
  TUNNEL_IDENTITY: 67,
  TUNNEL_UNTRUSTED: 68,
  NO_CERTIFICATE: 69,
  DISCOVERY_AWAY: 70,
  DISCOVERY_TIMEOUT: 71,
  DISCOVERY_LIMIT: 72,
} as const;

const detailSentences: Record<number, string> = {
  [Detail.NONE]: '',
  [Detail.DOWNSTREAM_FIN]: 'The client finished its side of the connection (FIN).',
  [Detail.DOWNSTREAM_RESET]: 'The client reset the connection (RST).',
  [Detail.DOWNSTREAM_WRITE_FAILED]: 'Writing to the client failed.',
  [Detail.REQUEST_HEAD_TIMER]: 'The request head was not complete within timeouts.requestHead.',
  [Detail.REQUEST_BODY_TIMER]: 'No byte of the request body arrived within timeouts.streamIdle.',
  [Detail.DOWNSTREAM_WRITE_TIMER]: 'The client took no byte of the response within timeouts.streamIdle.',
  [Detail.REQUEST_TIMER]: "The rule's timeouts.request ran out.",
  [Detail.BACKEND_REQUEST_TIMER]: "The rule's timeouts.backendRequest ran out.",
  [Detail.CONNECT_TIMER]: "The connection was not established within the backend's connectTimeout.",
  [Detail.UPSTREAM_IDLE_TIMER]: 'The upstream sent no byte within timeouts.streamIdle.',
  [Detail.UPSTREAM_FIN]: 'The upstream finished its side of the connection (FIN).',
  [Detail.UPSTREAM_RESET]: 'The upstream reset the connection (RST).',
  [Detail.UPSTREAM_WRITE_FAILED]: 'Writing to the upstream failed.',
  [Detail.CONNECT_ERRNO]: 'The system reported an error for the connection attempt.',
  [Detail.NO_ENDPOINTS]: 'The backend has no endpoints (a DNS name may have no address).',
  [Detail.HEAD_TOO_LARGE]: 'The request head is larger than limits.maxRequestHeadSize.',
  [Detail.URI_TOO_LONG]: 'The request target is longer than limits.maxUriLength.',
  [Detail.TOO_MANY_HEADERS]: 'The request has more fields than limits.maxHeaders.',
  [Detail.BODY_TOO_LARGE]: 'The request body is larger than limits.maxRequestBodySize.',
  [Detail.NO_BUFFERS]: 'All buffers of the worker are in use (limits.bufferMemory).',
  [Detail.NO_CONNECTION_SLOTS]: 'All connection slots of the worker are in use (limits.maxConnections).',
  [Detail.NO_DESCRIPTORS]: 'The process has no file descriptors left.',
  [Detail.RESPONSE_HEAD_INVALID]: 'The response head is malformed.',
  [Detail.RESPONSE_BODY_INVALID]: 'The chunked response body is malformed.',
  [Detail.RESPONSE_HEAD_TOO_LARGE]: 'The response head is larger than limits.maxResponseHeadSize.',
  [Detail.REQUEST_BODY_INVALID]: 'The chunked request body is malformed.',
  [Detail.TUNNEL_IDLE_TIMER]: 'No byte passed through the tunnel within timeouts.tunnelIdle.',
  [Detail.UNEXPECTED_UPGRADE]: 'The upstream switched protocols although the request did not ask for it.',
  [Detail.RETRIES_EXHAUSTED]: 'The one retry that a stale connection allows was already used.',
  [Detail.PLAIN_HTTP]: 'The client sent plain HTTP to a port that expects TLS; use https.',
  [Detail.GRPC_TIMER]: "The client's own grpc-timeout ran out.",
  [Detail.GRPC_TIMEOUT_INVALID]: 'The grpc-timeout field is malformed, or is there twice.',
  [Detail.GRPC_WEB_BODY_INVALID]: 'The base64 of the gRPC-Web request body is malformed or cut off.',
  [Detail.GRPC_WEB_RESPONSE_INVALID]:
    'The gRPC response cannot be translated to gRPC-Web: bad or cut-off messages, or too large trailers.',
  [Detail.UPSTREAM_STREAM_REFUSED]: 'The upstream refused the HTTP/2 stream (REFUSED_STREAM).',
  [Detail.UPSTREAM_STREAM_RESET]: 'The upstream reset the HTTP/2 stream.',
  [Detail.UPSTREAM_STREAM_CANCELLED]: 'The upstream reset the HTTP/2 stream as no longer needed (CANCEL).',
  [Detail.UPSTREAM_STREAM_FAILED]: 'The upstream reset the HTTP/2 stream for an error of its own (INTERNAL_ERROR).',
  [Detail.UPSTREAM_GOAWAY]: 'The upstream ended its HTTP/2 connection before it acted on the request (GOAWAY).',
  [Detail.UPSTREAM_HTTP2_INVALID]: 'The upstream sent frames that break the rules of HTTP/2.',
  [Detail.UPSTREAM_NOT_HTTP2]: 'The upstream did not begin its connection as HTTP/2 does; it may speak HTTP/1.1 only.',
  [Detail.UPSTREAM_LENGTH_MISMATCH]: 'The upstream sent a body that is not as long as its Content-Length.',
  [Detail.UPSTREAM_PING_TIMER]: "The upstream did not answer a PING within the backend's http2.pingTimeout.",
  [Detail.UPSTREAM_STALL_TIMER]: 'The upstream took no byte from its HTTP/2 connection within timeouts.streamIdle.',
  [Detail.STREAM_QUEUE_FULL]: 'Too many requests wait for a free stream to the endpoint.',
  [Detail.REQUESTS_LIMIT]: "The backend's circuitBreaker.maxRequests was reached.",
  [Detail.PENDING_LIMIT]:
    'All connections of the backend were in use, and its circuitBreaker.maxPendingRequests were waiting for one.',
  [Detail.PENDING_TIMER]:
    'No connection or stream to the backend became free within its circuitBreaker.pendingTimeout.',
  [Detail.CONNECTIONS_LIMIT]: "The backend's circuitBreaker.maxConnections was reached.",
  [Detail.EXTENDED_CONNECT_MISSING]: 'The upstream does not take WebSocket over HTTP/2 (RFC 8441).',
  [Detail.NO_USABLE_ENDPOINTS]: 'All endpoints of the backend are unhealthy, ejected or draining.',
  [Detail.SUBSET_EMPTY]: 'No endpoint of the backend has the labels of backendRefs[].subset.',
  [Detail.SHED]: 'The gateway is overloaded, and sheds requests of this priority (see overload).',
  [Detail.FAULT_ABORT]: 'The rule has a FaultInjection filter, and the abort fell to this request.',
  [Detail.FAULT_DELAY]: 'The rule has a FaultInjection filter, and the delay fell to this request.',
  [Detail.ADAPTIVE_LIMIT]: 'The backend has as many requests in progress as its adaptiveConcurrency allows at present.',
  [Detail.TUNNEL_NOWHERE]: 'No listener takes tunnels to the port that the client named (listeners[].tunnels).',
  [Detail.TUNNEL_REFUSED]:
    'The other end of the tunnel refused the connection through it: its answer to CONNECT was not 2xx.',
  [Detail.NOT_CAPTURED]: 'The connection was made to the node proxy itself: no rule of a capture has redirected it.',
  [Detail.EGRESS_REFUSED]: 'The destination is outside the mesh, and the node refuses such connections (egress).',
  [Detail.PLAINTEXT_REFUSED]:
    'The workload takes connections of the mesh only (mode: strict), and this was plain text.',
  [Detail.WORKLOAD_CONNECTIONS]: 'The workload has as many connections open as it may have (limits of the node).',
  [Detail.WORKLOAD_BUFFERS]: 'The workload holds as many buffers as it may (limits of the node).',
  [Detail.TUNNEL_IDENTITY]:
    'The certificate of the client of the tunnel has expired, or has no identity of the trust domain; or the workload has no certificate.',
  [Detail.TUNNEL_UNTRUSTED]:
    'The certificate at the other end of the tunnel leads to no root that is trusted any more, or has expired since.',
  [Detail.NO_CERTIFICATE]: 'The workload has no valid certificate of its own, and so no tunnels.',
  [Detail.DISCOVERY_AWAY]:
    'The node does not know what is at the destination, and the control plane, which may know it, is away.',
  [Detail.DISCOVERY_TIMEOUT]:
    'The node does not know what is at the destination, and the control plane has given no answer in time that could be used.',
  [Detail.DISCOVERY_LIMIT]:
    'Too many connections of the workload, or of the node, wait until it is known what is at their destinations, or the workload has as many addresses of the mesh in use as it may.',
  [Detail.WORKLOAD_RATE]: 'The workload has got as many new connections per second as it may (limits of the node).',
  [Detail.WORKLOAD_GONE]: 'The workload has left this node, and nothing more is begun for it.',
  [Detail.COMPRESSOR_FAILED]: 'The compressor of the response body failed or was restarted.',
};

/** First detail number that carries an HTTP/1 parse error: `DETAIL_PARSE + error` (see http1/errors.ts). */
export const DETAIL_PARSE = 1000;

/** First detail number that carries a TLS failure of an upstream: `DETAIL_TLS + failure` (see tls/errors.ts). */
export const DETAIL_TLS = 2000;

/** First detail number that carries the rate limit which refused a request: `DETAIL_LIMIT + id` (see limits/limit-names.ts). */
export const DETAIL_LIMIT = 3000;

/**
 * First detail number that carries the authorisation policy and rule which refused something: `DETAIL_POLICY + id` (see
 * authorization/policy-numbers.ts).
 */
export const DETAIL_POLICY = 100_000;

/** One plain sentence for a detail below DETAIL_PARSE; empty for `Detail.NONE`. */
export function detailSentence(detail: number): string {
  return detailSentences[detail] ?? `Detail ${detail}.`;
}
