// What the access log and the flight recorder need to know of one exchange that ended.
//
// Each worker owns one LogSource and fills it anew for every exchange: `loadExchange` copies the
// numbers, the caller sets the client and the names of the snapshot. Texts are positions (bytes of
// the kept request head) or prepared byte arrays of the snapshot, so that nothing is allocated.
// Hot module: no allocation per exchange.

import type { Exchange } from '../exchange/exchange.ts';
import { FieldBits, parseFields } from '../http1/fields.ts';
import { HeaderId } from '../http1/header-ids.ts';
import { HEADER_COUNT_CAPACITY, HeaderTable } from '../http1/header-table.ts';
import type { PeerAddress } from '../io/connection.ts';

/** Index of the protocol's name in logs and records. */
export const LogProtocol = { HTTP_1_0: 0, HTTP_1_1: 1, HTTP_2: 2, TCP: 3 } as const;

/** Name of each `LogProtocol`, as in a request line. */
export const protocolNames: readonly string[] = ['HTTP/1.0', 'HTTP/1.1', 'HTTP/2.0', 'TCP'];

/** ` HTTP/1.1` and CRLF, which end the request line of a kept head. */
const REQUEST_LINE_END_BYTES = 11;

/** No bytes: stands for a text that is absent. */
export const noBytes = new Uint8Array(0);

/** Stands in where the client's connection is not known any more. */
export const unknownPeer: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };

/** One ended exchange. Times are milliseconds with fractions; -1 means "did not happen". */
export class LogSource {
  private readonly fields = new HeaderTable();
  private readonly bits = new FieldBits();
  /** Memory that the offsets of the request's texts refer to. */
  memory: Uint8Array = noBytes;

  // -- request; a length of 0 means "none" -----------------------------------
  methodOffset = 0;
  methodLength = 0;
  pathOffset = 0;
  pathLength = 0;
  hostOffset = 0;
  hostLength = 0;
  userAgentOffset = 0;
  userAgentLength = 0;
  refererOffset = 0;
  refererLength = 0;
  requestIdOffset = 0;
  requestIdLength = 0;
  /** A `LogProtocol`. */
  protocol: number = LogProtocol.HTTP_1_1;

  /** The client; family 0: unknown. */
  client: PeerAddress = unknownPeer;

  // -- names from the configuration, UTF-8; empty: none -----------------------
  listener: Uint8Array = noBytes;
  /** Route and rule that applied, for people: `shop rule 1`. */
  route: Uint8Array = noBytes;
  backend: Uint8Array = noBytes;
  endpoint: Uint8Array = noBytes;

  // -- the client's connection; empty: no TLS, no SNI, no certificate ----------
  tlsVersion: Uint8Array = noBytes;
  serverName: Uint8Array = noBytes;
  clientSubject: Uint8Array = noBytes;

  // -- a node proxy's (exchange/mesh-log.ts); empty: none, or not of a mesh -----
  /** Something below is set. */
  hasMesh = false;
  /** It came to the workload. */
  isInbound = false;
  /** `namespace/name` */
  workload: Uint8Array = noBytes;
  /** `outbound` or `inbound`. */
  side: Uint8Array = noBytes;
  /** SPIFFE identity at the other end of the tunnel. */
  peer: Uint8Array = noBytes;
  /** `namespace/hostname:port` that the workload has connected to. */
  service: Uint8Array = noBytes;
  /** Authorisation policies that decided, `namespace/name`. */
  policy: Uint8Array = noBytes;

  // -- outcome -----------------------------------------------------------------
  /** Status sent to the client; 0: none. */
  status = 0;
  reason = 0;
  detail = 0;
  /** Positive error number, or 0. */
  errno = 0;
  /** The response was made by this gateway. */
  generated = false;
  responseStarted = false;
  responseComplete = false;
  /** The exchange became a tunnel: its duration says nothing of a slow upstream. */
  tunnel = false;
  attempts = 0;
  /** RetryEnd, and AttemptFailure of the last attempt that was not passed on (exchange/retry-outcome.ts). */
  retryEnd = 0;
  attemptFailure = 0;
  reusedConnection = false;
  upstreamConnectionUses = 0;
  upstreamConnectionAgeMs = 0;
  epoch = 0;
  /** Body bytes from and to the client. */
  bytesReceived = 0;
  bytesSent = 0;

  // -- times ---------------------------------------------------------------------
  /** Wall clock when the exchange ended, milliseconds since 1970. */
  wallMs = 0;
  /** From the start of the exchange to its end. */
  durationMs = 0;
  /** From the start of the exchange until an upstream connection was ready. */
  connectMs = -1;
  /** From upstream connection ready to the first byte of the response. */
  upstreamMs = -1;

  /**
   * Copies what an exchange itself knows. `nowMs` is the worker's monotonic time and `wallMs` the
   * wall clock, both at the end of the exchange. The caller then sets `client`, `epoch` and the four
   * names. The texts stay valid until the exchange's head block is given back.
   */
  loadExchange(exchange: Exchange, memory: Uint8Array, nowMs: number, wallMs: number): void {
    this.memory = memory;
    this.methodOffset = exchange.headOffset;
    this.methodLength = exchange.methodLength;
    this.pathOffset = exchange.pathOffset;
    this.pathLength = exchange.pathLength;
    this.hostOffset = exchange.hostOffset;
    this.hostLength = exchange.hostLength;
    this.findFields(exchange, memory);
    this.requestIdOffset = exchange.requestIdOffset;
    this.requestIdLength = exchange.requestIdLength;
    this.protocol = exchange.versionMinor === 0 ? LogProtocol.HTTP_1_0 : LogProtocol.HTTP_1_1;
    if (exchange.httpVersion === 2) this.protocol = LogProtocol.HTTP_2;
    if (exchange.isConnection) this.protocol = LogProtocol.TCP;
    this.status = exchange.status;
    this.reason = exchange.reason;
    this.detail = exchange.detail;
    this.errno = exchange.errno;
    this.generated = exchange.generated;
    this.responseStarted = exchange.responseStarted;
    this.responseComplete = exchange.responseComplete;
    this.attempts = exchange.attempts;
    this.retryEnd = exchange.retryEnd;
    this.attemptFailure = exchange.attemptFailure;
    this.reusedConnection = exchange.reusedConnection;
    this.upstreamConnectionUses = exchange.upstreamConnectionUses;
    this.upstreamConnectionAgeMs = exchange.upstreamConnectionAgeMs;
    this.tunnel = exchange.tunnel;
    this.bytesReceived = exchange.requestBodyBytes;
    this.bytesSent = exchange.responseBodyBytes;
    this.wallMs = wallMs;
    this.durationMs = nowMs - exchange.startMs;
    this.connectMs = exchange.connectedMs > 0 ? exchange.connectedMs - exchange.startMs : -1;
    const sentMs = exchange.connectedMs > 0 ? exchange.connectedMs : exchange.startMs;
    this.upstreamMs = exchange.firstByteMs > 0 ? exchange.firstByteMs - sentMs : -1;
  }

  /** Looks up the fields that only logs and records want: nobody pays for them otherwise. */
  private findFields(exchange: Exchange, memory: Uint8Array): void {
    this.userAgentLength = 0;
    this.refererLength = 0;
    if (exchange.headLength === 0) return;
    const { rewrittenPathLength } = exchange;
    const target =
      rewrittenPathLength > 0
        ? exchange.headOffset + exchange.methodLength + 1 + rewrittenPathLength
        : exchange.pathOffset + exchange.pathLength;
    const start = target + REQUEST_LINE_END_BYTES;
    const end = exchange.headOffset + exchange.headLength;
    if (parseFields(memory, start, end, HEADER_COUNT_CAPACITY, this.fields, this.bits) <= 0) return;
    const userAgent = this.fields.find(HeaderId.USER_AGENT);
    if (userAgent >= 0) {
      this.userAgentOffset = this.fields.valueOffset(userAgent);
      this.userAgentLength = this.fields.valueLength(userAgent);
    }
    const referer = this.fields.find(HeaderId.REFERER);
    if (referer >= 0) {
      this.refererOffset = this.fields.valueOffset(referer);
      this.refererLength = this.fields.valueLength(referer);
    }
  }
}
