// One socket as plain data: descriptor, readiness, unread input, unsent output, and who handles it.
//
// Connections live in a table of slots (reactor.ts) and are reused; `generation` tells the present
// occupant of a slot from an earlier one, and is what events and stored references are checked by.
// Between batches a connection is only numbers and references to other plain objects, never a
// closure, promise or timer. Owned by one worker.

import type { ConnectionAccess } from '../authorization/connection-access.ts';
import type { ClientCertificate } from '../exchange/client-certificate.ts';
import type { ConnectOwner } from '../exchange/connector.ts';
import type { Exchange } from '../exchange/exchange.ts';
import type { WorkloadRuntime } from '../exchange/mesh-runtime.ts';
import type { BackendRuntime, ListenerRuntime } from '../exchange/runtime.ts';
import type { HeaderTable } from '../http1/header-table.ts';
import type { Http2Session } from '../http2/session.ts';
import type { Http2Stream } from '../http2/stream.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import type { Peer } from '../telemetry/workload-metrics.ts';
import { noBytes } from './bytes.ts';
import type { Transport } from './transport.ts';

/** What the reactor calls on a connection. Handlers may close any connection, this one included. */
export interface Protocol {
  /** Bytes, the end of the stream or an error may be read. Also called to resume a paused reader. */
  readable(connection: Connection): void;
  /** The socket takes bytes again after it had refused some, or a connect has ended. */
  writable(connection: Connection): void;
  /** The timer set with `reactor.setTimer` has run out. */
  expired(connection: Connection): void;
  /** Bytes given to `output.sendDeferred` could not be sent; `connection.errno` says why. */
  sendFailed(connection: Connection): void;
  /** The end of a batch, where `reactor.atBatchEnd` was asked for it. */
  batchEnd?(connection: Connection): void;
}

/** Words of a peer address kept as numbers: no text until somebody asks. */
export interface PeerAddress {
  /** Family.INET or Family.INET6. */
  peerFamily: number;
  peerPort: number;
  /** Address in network order, four bytes a word; IPv4 uses the first. */
  peer0: number;
  peer1: number;
  peer2: number;
  peer3: number;
}

export class Connection implements PeerAddress {
  readonly slot: number;
  generation = 0;
  /** -1 for a stream inside another connection. */
  fd = -1;
  /** How bytes travel; null: by plain socket calls. */
  transport: Transport | null = null;
  protocol: Protocol | null = null;
  /** State within the protocol; meaning is the protocol's. */
  state = 0;

  /** TLS session (see core/tls/session.ts); 0: none. */
  tls = 0;
  /** A receive may bring more although no event has said so. */
  tlsMore = false;
  /** Name that the client asked for by SNI, or null. */
  serverName: string | null = null;
  /** Texts for logs: the TLS version, such as `TLSv1.3`, and the name by SNI; empty without TLS, or without a name. */
  tlsVersion = noBytes;
  serverNameBytes = noBytes;
  /** What the client has shown on a listener that validates clients; null: nothing. */
  clientCertificate: ClientCertificate | null = null;

  /** Node proxies: whose traffic it is, and where that was going (`ip:port`); null: a gateway's. */
  workload: WorkloadRuntime | null = null;
  destination: string | null = null;
  /** It comes to a workload: what the policies of that say of it (exchange/authorizer.ts); null: nobody asks them. */
  access: ConnectionAccess | null = null;
  /** As which of the connections of its workload it counts (exchange/mesh.ts); 0: as none. */
  workloadSide = 0;
  /** Whom it has last counted for as a connection (exchange/workload-traffic.ts). */
  peer: Peer | null = null;

  // -- readiness (edge-triggered: remembered here until used up) --------------
  /** A receive may bring bytes. */
  readReady = false;
  /** The peer has finished sending; a receive returning 0 is to come or has come. */
  readHangup = false;
  /** The last receive returned 0, or failed. */
  readEnded = false;
  /** Our side is finished, or writing has failed: nothing more is sent. */
  writeEnded = false;
  /** Positive error number of a failed receive or send; 0: none. */
  errno = 0;
  /** The slot waits in the reactor's queue to be read again in this or the next batch. */
  queued = false;

  // -- unread input: bytes received but not yet used --------------------------
  inputBlock = 0;
  inputOffset = 0;
  inputLength = 0;
  /** How far the search for the end of a partial head has come, relative to inputOffset. */
  inputScanned = 0;

  // -- input received ahead of its turn (Input.receiveAhead) --------------------
  /** Result of that receive, which the next `fill` gives: a count, 0 for none, or an AHEAD_ or negative error number. */
  ahead = 0;
  aheadOffset = 0;
  /** Block that keeps the bytes of a connection that did not read in its turn; 0: they are in the receive area. */
  aheadBlock = 0;
  /** Streams: the bytes that the last `fill` gave are the last ones. */
  inputEnds = false;
  /** Streams: trailer fields that came after the last bytes; valid from `inputEnds` on. */
  trailers: HeaderTable | null = null;
  /** The last receive brought so few bytes that the next message is worth receiving ahead. */
  smallInput = false;

  /** Bytes wait for the end of the batch (see `output.sendDeferred`). */
  deferred = false;

  // -- unsent output: a chain of large blocks --------------------------------
  outputFirst = 0;
  outputLast = 0;
  /** Where unsent bytes start in the first block, and end in the last. */
  outputStart = 0;
  outputEnd = 0;
  outputBytes = 0;

  // -- who it is ---------------------------------------------------------------
  peerFamily = 0;
  peerPort = 0;
  peer0 = 0;
  peer1 = 0;
  peer2 = 0;
  peer3 = 0;
  openedMs = 0;
  /** Exchanges begun on this connection. */
  exchanges = 0;
  /** Upstream: the stream stands for a connection (exchange/upstream-tunnels.ts), and how often it was asked for again. */
  tunnelled = false;
  askedAgain = 0;
  /** Upstream: may serve another request after this one. */
  reusable = true;

  // -- links ---------------------------------------------------------------------
  exchange: Exchange | null = null;
  /** The other end of a tunnel. */
  tunnelPeer: Connection | null = null;
  /** HTTP/2: what belongs to a connection, and to a stream in one. */
  http2Session: Http2Session | null = null;
  http2Stream: Http2Stream | null = null;
  /** Downstream, while it lingers after its last response: until when at most, and what it has thrown away. */
  lingerEndMs = 0;
  discardedBytes = 0;
  /** Downstream: the listener that accepted it. */
  listener: ListenerRuntime | null = null;
  /** Upstream: the endpoint it leads to, and its neighbours in the idle list. */
  endpoint: Endpoint | null = null;
  idleNext: Connection | null = null;
  idlePrevious: Connection | null = null;
  /** Upstream: slot of the backend whose circuit breaker counts it; -1: none does. */
  breakerSlot = -1;
  /** Upstream: its response has come whole, with nothing behind it; valid when the head has been read. */
  wholeResponse = false;
  /** Upstream: since when it is kept without a request. */
  idleSinceMs = 0;
  /** Upstream: the backend that it was opened for. */
  backend: BackendRuntime | null = null;
  /** Upstream, until it is established: whose it will be. */
  connectOwner: ConnectOwner | null = null;

  constructor(slot: number) {
    this.slot = slot;
  }

  /**
   * Makes the slot ready for another occupant: references to the one until now become stale. Buffers must have been
   * freed; `queued` says whether the slot is in the queue, whoever is in it.
   */
  reset(): void {
    this.generation = (this.generation + 1) | 0;
    this.fd = -1;
    this.transport = null;
    this.tls = 0;
    this.tlsMore = false;
    this.serverName = null;
    this.tlsVersion = noBytes;
    this.serverNameBytes = noBytes;
    this.clientCertificate = null;
    this.workloadSide = 0;
    this.workload = null;
    this.destination = null;
    this.access = null;
    this.peer = null;
    this.inputEnds = false;
    this.trailers = null;
    this.protocol = null;
    this.state = 0;
    this.readReady = false;
    this.readHangup = false;
    this.readEnded = false;
    this.writeEnded = false;
    this.errno = 0;
    this.deferred = false;
    this.smallInput = false;
    this.inputScanned = 0;
    this.exchanges = 0;
    this.reusable = true;
    this.tunnelled = false;
    this.breakerSlot = -1;
    this.exchange = null;
    this.tunnelPeer = null;
    this.http2Session = null;
    this.http2Stream = null;
    this.listener = null;
    this.endpoint = null;
    this.idleNext = null;
    this.idlePrevious = null;
    this.connectOwner = null;
    this.backend = null;
  }
}
