// One request's way through the proxy, as plain data.
//
// An exchange exists from the end of a request head (or the failure to get one) until its response
// is complete, and links one downstream with at most one upstream connection. It owns one arena
// block: the request head as rewritten for the upstream, kept for retries, logs and flight records.
// Owned by one worker; pooled, never garbage. Holds offsets and numbers, no bytes, no closures.
// Hot module: no allocation per request.

import type { ChunkedState } from '../http1/chunked.ts';
import type { Connection } from '../io/connection.ts';
import type { StreamRoute } from '../routing/stream-routes.ts';
import type { CompressedBody } from './compression.ts';
import type { Downstream } from './downstream.ts';
import type { GrpcWebState } from './grpc-web.ts';
import type { RequestBuffer } from './request-buffer.ts';
import type { ExchangeLimits } from './rule-limits.ts';
import type { RefPolicy, RulePolicy } from './rule-policy.ts';
import type { Runtime } from './runtime.ts';
import type { UpstreamSide } from './upstream-side.ts';

/** State of one exchange's request or response body. */
export const BodyFraming = {
  NONE: 0,
  /** `remaining` bytes of a Content-Length body. */
  LENGTH: 1,
  CHUNKED: 2,
  /** Until the sender closes (responses only). */
  CLOSE: 3,
  /** Raw bytes in both directions (101, CONNECT). */
  TUNNEL: 4,
  /** Until the end of an HTTP/2 stream. */
  STREAM: 5,
} as const;

/** Protocol version of a client's request. */
export const HttpVersion = { HTTP_1: 1, HTTP_2: 2 } as const;

export class Exchange {
  /** Configuration this exchange started with. */
  runtime: Runtime | null = null;
  downstream: Connection | null = null;
  upstream: Connection | null = null;
  /** The protocols of both; that of the upstream from the moment it has a connection. */
  downstreamSide: Downstream | null = null;
  upstreamSide: UpstreamSide | null = null;

  // -- request ---------------------------------------------------------------
  /** Arena block that holds the rewritten head; 0: none. */
  headBlock = 0;
  headOffset = 0;
  headLength = 0;
  /** Positions inside the rewritten head, for logs and records; lengths may be 0. */
  methodLength = 0;
  pathOffset = 0;
  pathLength = 0;
  hostOffset = 0;
  hostLength = 0;
  requestIdOffset = 0;
  requestIdLength = 0;
  /** Value of the X-Forwarded-For sent upstream, the client's own address last. */
  forwardedForOffset = 0;
  forwardedForLength = 0;
  /**
   * What a filter has put in the place of the client's path and host: length of the target in the head, and
   * value of its Host; 0: the head has what `pathOffset` and `hostOffset` name.
   */
  rewrittenPathLength = 0;
  rewrittenHostOffset = 0;
  rewrittenHostLength = 0;
  /** The head came by HTTP/2 with never-indexed fields (HpackDecoder.secret), which go on so; of the last response too. */
  secretRequest = false;
  secretResponse = false;
  /** CorsState, and what the response repeats: origin, then method and field names that a preflight asks for. */
  cors = 0;
  corsOffset = 0;
  corsOriginLength = 0;
  corsMethodLength = 0;
  corsHeadersLength = 0;
  /** FaultState: faults that are injected. */
  fault = 0;
  method = 0;
  /** Of HTTP/1, or 1: what its upstream side and its answer go by. */
  versionMinor = 1;
  /** HttpVersion of the request. */
  httpVersion = 1;
  requestFraming = 0;
  /** Bytes of a LENGTH request body that the client has still to send; of a STREAM: its Content-Length, or -1. */
  requestRemaining = 0;
  /** Decoder of a CHUNKED request body; made at first use, kept with the pooled exchange. */
  requestChunks: ChunkedState | null = null;
  /** The whole request, body included, has been read from the client. */
  requestComplete = false;
  /** The client's FIN came with the last bytes of the request: it sends nothing more, and waits for the answer. */
  clientFinished = false;
  /** Body bytes (payload, without chunk framing) read from the client so far. */
  requestBodyBytes = 0;
  /** Any byte of the request has been accepted by an upstream socket in the current attempt. */
  requestSent = false;
  /** Body bytes have gone upstream in the current attempt. */
  bodyStreamed = false;
  /** Keeps the body, for another attempt or somebody else; null: nobody wants that. Released with the exchange. */
  requestBuffer: RequestBuffer | null = null;
  /** Next piece of it that the current attempt has still to send; -1: it has caught up with the client. */
  replayNext = -1;
  /** Upgrade was asked for and forwarded. */
  upgradeRequested = false;
  /** The downstream connection may be kept after this exchange. */
  keepAlive = false;
  /** The client has said that this is its last request. */
  lastRequest = false;
  /** GrpcKind of the response that the client of an RPC expects; from WEB on it is translated. */
  grpc = 0;
  /** Translation of a gRPC-Web exchange; made at first use, kept with the pooled exchange. */
  grpcWeb: GrpcWebState | null = null;
  /** Time that grpc-timeout is to allow the upstream, milliseconds; 0: what the client said passes. */
  grpcTimeoutMs = 0;
  /** End of the value of grpc-timeout in the head, where a further attempt writes what is left; 0: not to be reduced. */
  grpcTimeoutEnd = 0;
  /** `requestDeadlineMs` is what the client's grpc-timeout allows. */
  grpcDeadline = false;

  // -- choice ----------------------------------------------------------------
  /** Index of the matched rule in the route table; -1: none. */
  rule = -1;
  /** What the rule does besides choosing a backend; null: nothing. */
  policy: RulePolicy | null = null;
  /** What the chosen backend reference does; null: nothing. */
  refPolicy: RefPolicy | null = null;
  /** A connection that is passed on unread, not a request. */
  isConnection = false;
  /** It may turn out to be HTTP yet (detection.ts). */
  detecting = false;
  /** Stream route of a connection that is passed on unread; null: HTTP, or none. */
  streamRoute: StreamRoute | null = null;
  /** Index of the chosen backend in the snapshot; -1: none. */
  backend = -1;
  /** Index of the chosen endpoint in that backend; -1: none. */
  endpoint = -1;
  /** Index of an endpoint that has failed the exchange: another one is chosen where there is one; -1: none. */
  avoidEndpoint = -1;
  /** Endpoints that attempts have failed at: bit `index & 31` of each. */
  triedEndpoints = 0;
  /** Hash of what the backend's `hashOn` found in the request; valid if `hashed`. */
  hash = 0;
  hashed = false;
  /** Value of an affinity cookie that is made for this client; both 0: none. */
  affinityHigh = 0;
  affinityLow = 0;
  /** Place of the session's endpoint as the request named it: backend and endpoint; -1: none that is valid. */
  sessionBackend = -1;
  sessionEndpoint = -1;
  /** When that session began, whole seconds since 1970; 0: it begins now, or its age does not matter. */
  sessionStartS = 0;
  /** Waits for a stream of an HTTP/2 connection (see lb/http2-pool.ts), and its neighbours in that queue. */
  waiting = false;
  waitingNext: Exchange | null = null;
  waitingPrevious: Exchange | null = null;
  /** Attempts started (1 for the first). */
  attempts = 0;
  /** Those of them that the rule's retries have brought. */
  retries = 0;
  /** `resumeMs` is the time of a further attempt. */
  retryPending = false;
  /** The attempt repeats one on a connection that had been closed: it gets one that nothing has used. */
  resent = false;
  /** A second attempt is under way (hedges.ts): each of the two exchanges has the other; null: none is. */
  rival: Exchange | null = null;
  /** The exchange is that second attempt, and has no client of its own. */
  isHedge = false;
  /** RetryEnd, and the last attempt that was not passed on (AttemptFailure, see retry-outcome.ts). */
  retryEnd = 0;
  attemptFailure = 0;
  /** Node proxies: counter of the policy that has let it in (authorization/policy-numbers.ts); -1: none had to. */
  allowedBy = -1;
  /** What it has taken of the backend's circuit breaker, see circuit-breaker.ts. */
  held = 0;
  /** Until then it may wait for a connection or stream (circuitBreaker.pendingTimeout); 0: no limit. */
  pendingDeadlineMs = 0;
  /** An attempt is in progress, and somebody keeps account of it (attempt-tracker.ts). */
  tracked = false;
  /** The attempt in progress has been answered, and how that went has been noted. */
  answered = false;
  /** That answer counted as a failure of the endpoint (outlier-judge.ts). */
  answerFailed = false;
  /** The current attempt uses a connection that has served an exchange before. */
  reusedConnection = false;
  /** Requests the upstream connection had served before, and its age, when the attempt began. */
  upstreamConnectionUses = 0;
  upstreamConnectionAgeMs = 0;

  // -- response --------------------------------------------------------------
  /** Status sent to the client; 0 until then. */
  status = 0;
  responseFraming = 0;
  /** Bytes of a LENGTH response body that the upstream has still to send. */
  responseRemaining = 0;
  responseChunks: ChunkedState | null = null;
  /** How the response body goes to the client: LENGTH, CHUNKED, CLOSE or NONE. */
  responseOutFraming = 0;
  /** The final response head has been handed to the downstream socket or queue. */
  responseStarted = false;
  responseComplete = false;
  /** Body bytes (payload) sent or queued to the client. */
  responseBodyBytes = 0;
  /** The response was made by this proxy. */
  generated = false;
  /** Its record among the recorded requests (request-recorder.ts); 0: none. */
  recorded = 0;
  /** The exchange has become a tunnel (101, or CONNECT). */
  tunnel = false;
  /** The exchange is a copy of another (mirror.ts), with its largest body. */
  isMirror = false;
  mirrorBodyBytesMax = 0;
  /** Copies have been planned, and the first of those that wait for the body; of a copy: the next one. */
  mirroring = false;
  mirrorNext: Exchange | null = null;
  /** ContentCoding that was negotiated for the response; 0: the rule compresses nothing. */
  coding = 0;
  /** The response body while it is being compressed (compression.ts), else null. */
  compression: CompressedBody | null = null;
  /** Nothing is read from the upstream until the compressor has taken what is here. */
  responsePaused = false;
  /** Who has field lines to add to the final response: bits of ResponseLines (response-lines.ts). */
  responseLines = 0;
  /** The attempt in progress is counted by adaptive concurrency (adaptive-limit.ts). */
  adaptiveHeld = false;
  /** The gateway is overloaded, and does without this request. */
  shed = false;
  /** LimitState: what the rule's rate limits say. */
  limitState = 0;
  /** What they said of each; made at first use, kept with the pooled exchange. */
  limits: ExchangeLimits | null = null;
  /** Number of the question to Redis that the exchange waits for; 0: none. */
  limitAsk = 0;
  /** Value of the Retry-After that RETRY_AFTER of `responseLines` adds. */
  retryAfterSeconds = 0;

  // -- outcome ---------------------------------------------------------------
  reason = 0;
  detail = 0;
  /** Positive error number that belongs to the outcome, or 0. */
  errno = 0;

  // -- times, monotonic milliseconds of the worker; 0: did not happen ---------
  startMs = 0;
  /** When the attempt in progress began, if somebody keeps account of it. */
  attemptStartMs = 0;
  connectedMs = 0;
  firstByteMs = 0;
  /** When timeouts.request and timeouts.backendRequest run out; 0: no limit. */
  requestDeadlineMs = 0;
  attemptDeadlineMs = 0;
  /** The exchange goes on at this time: it is delayed, or waits before it is tried again; 0: it does not wait. */
  resumeMs = 0;
  /** When a second attempt is due; 0: none is. When the first began, of a rule that has them; 0: it is over. */
  hedgeAtMs = 0;
  hedgeStartMs = 0;

  /** Back to the state of a new exchange. The decoders stay with it; the head block must be freed before. */
  reset(): void {
    this.runtime = null;
    this.downstream = null;
    this.upstream = null;
    this.downstreamSide = null;
    this.upstreamSide = null;
    this.headBlock = 0;
    this.headOffset = 0;
    this.headLength = 0;
    this.methodLength = 0;
    this.pathOffset = 0;
    this.pathLength = 0;
    this.hostOffset = 0;
    this.hostLength = 0;
    this.requestIdOffset = 0;
    this.requestIdLength = 0;
    this.forwardedForOffset = 0;
    this.forwardedForLength = 0;
    this.rewrittenPathLength = 0;
    this.rewrittenHostOffset = 0;
    this.rewrittenHostLength = 0;
    this.secretRequest = false;
    this.secretResponse = false;
    this.cors = 0;
    this.corsOffset = 0;
    this.corsOriginLength = 0;
    this.corsMethodLength = 0;
    this.corsHeadersLength = 0;
    this.fault = 0;
    this.method = 0;
    this.versionMinor = 1;
    this.httpVersion = 1;
    this.requestFraming = 0;
    this.requestRemaining = 0;
    this.requestComplete = false;
    this.clientFinished = false;
    this.requestBodyBytes = 0;
    this.requestSent = false;
    this.bodyStreamed = false;
    this.requestBuffer = null;
    this.replayNext = -1;
    this.upgradeRequested = false;
    this.keepAlive = false;
    this.lastRequest = false;
    this.grpc = 0;
    this.grpcTimeoutMs = 0;
    this.grpcTimeoutEnd = 0;
    this.grpcDeadline = false;
    this.rule = -1;
    this.policy = null;
    this.refPolicy = null;
    this.isConnection = false;
    this.detecting = false;
    this.streamRoute = null;
    this.backend = -1;
    this.endpoint = -1;
    this.avoidEndpoint = -1;
    this.triedEndpoints = 0;
    this.hash = 0;
    this.hashed = false;
    this.affinityHigh = 0;
    this.affinityLow = 0;
    this.sessionBackend = -1;
    this.sessionEndpoint = -1;
    this.sessionStartS = 0;
    this.waiting = false;
    this.waitingNext = null;
    this.waitingPrevious = null;
    this.attempts = 0;
    this.retries = 0;
    this.retryPending = false;
    this.resent = false;
    this.rival = null;
    this.isHedge = false;
    this.retryEnd = 0;
    this.attemptFailure = 0;
    this.allowedBy = -1;
    this.held = 0;
    this.pendingDeadlineMs = 0;
    this.tracked = false;
    this.answered = false;
    this.reusedConnection = false;
    this.upstreamConnectionUses = 0;
    this.upstreamConnectionAgeMs = 0;
    this.status = 0;
    this.responseFraming = 0;
    this.responseRemaining = 0;
    this.responseOutFraming = 0;
    this.responseStarted = false;
    this.responseComplete = false;
    this.responseBodyBytes = 0;
    this.generated = false;
    this.recorded = 0;
    this.tunnel = false;
    this.isMirror = false;
    this.mirrorBodyBytesMax = 0;
    this.mirroring = false;
    this.mirrorNext = null;
    this.coding = 0;
    this.compression = null;
    this.responsePaused = false;
    this.responseLines = 0;
    this.adaptiveHeld = false;
    this.shed = false;
    this.limitState = 0;
    this.limitAsk = 0;
    this.retryAfterSeconds = 0;
    this.reason = 0;
    this.detail = 0;
    this.errno = 0;
    this.startMs = 0;
    this.attemptStartMs = 0;
    this.connectedMs = 0;
    this.firstByteMs = 0;
    this.requestDeadlineMs = 0;
    this.attemptDeadlineMs = 0;
    this.resumeMs = 0;
    this.hedgeAtMs = 0;
    this.hedgeStartMs = 0;
  }
}
