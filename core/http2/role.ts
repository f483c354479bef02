// What the HTTP/2 engine asks of the side that it serves: requests from clients (downstream-http2.ts)
// or to upstreams (upstream-http2.ts). Frames, flow control, limits and errors are the engine's.

import type { HeaderTable } from '../http1/header-table.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import type { HpackDecoder } from './hpack-decoder.ts';
import type { Http2Session } from './session.ts';
import type { Http2Stream } from './stream.ts';

/** A decoded header block. The text lies in scratch memory and may be rewritten there; valid during the call. */
export interface HeaderBlock {
  /** Positions of all fields, pseudo-header fields first. */
  headers: HeaderTable;
  /** Bit sets, `malformed`, `tooLarge`: what the decoder says of the block. */
  decoder: HpackDecoder;
  /** Where the lines start; the fields that were left out are not among them. */
  textOffset: number;
  textLength: number;
  /** Free bytes before `textOffset`. */
  roomBefore: number;
  /** Where the text may grow to. */
  textLimit: number;
}

/** Implemented by both sides. All methods may close any stream; none may close the session. */
export interface Http2Role {
  readonly isServer: boolean;
  /** Indexes in the worker's counters (telemetry/metrics.ts) for bytes of such connections. */
  readonly bytesInCounter: number;
  readonly bytesOutCounter: number;
  /** `connection.state` of a connection that only waits for the peer to close. */
  readonly lingerState: number;
  /** Protocol of streams that the peer opens. */
  readonly streamProtocol: Protocol;
  /**
   * The head of a message: a request on a new stream (servers), or a response, 1xx ones included
   * (clients; `stream.headReceived` is to be set with the final one). `stream.remoteEnded` says whether a body
   * follows; `stream.contentLength` is to be set. Returns 0, or an error code (ErrorCode) to reset
   * the stream with: the message is malformed. `block.decoder.tooLarge` and `malformed` are to be looked at.
   */
  head(stream: Http2Stream, block: HeaderBlock): number;
  /** The peer has reset a stream. The role closes `stream.connection` now, or lets go of it and closes later. */
  streamReset(stream: Http2Stream, errorCode: number): void;
  /**
   * A stream ends by the peer's fault: RST_STREAM has been sent. To be treated like `streamReset`.
   */
  streamFailed(stream: Http2Stream, errorCode: number): void;
  /** Bytes that the socket had not taken move on, and with them some of this stream. Ends no stream. */
  moved?(stream: Http2Stream): void;
  /** The peer has sent GOAWAY; streams of ours above `session.goawayReceivedLastId` were not acted on. */
  goaway(session: Http2Session, errorCode: number): void;
  /** The peer has announced settings, or a stream has ended: a further one may be possible. */
  streamsAvailable(session: Http2Session): void;
  /** All streams have ended and the connection has none: it stays open, or is closed by whoever wants that. */
  sessionIdle(session: Http2Session): void;
  /**
   * The connection is about to be closed: `errno` of the socket, or 0, and a CloseCause. Streams still
   * open are told by `streamReset` first.
   */
  sessionClosed(connection: Connection, session: Http2Session, cause: number, errno: number): void;
}
