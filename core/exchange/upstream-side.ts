// What an exchange asks of the connection or stream to its upstream, whatever its protocol.

import type { BodyPiece } from './body.ts';
import type { Exchange } from './exchange.ts';

/** Implemented by upstream-http1.ts and upstream-http2.ts. */
export interface UpstreamSide {
  /** Whether body bytes can be passed on now: the head has gone and nothing is queued. */
  acceptsBody(exchange: Exchange): boolean;
  /** Sends a piece of the request body. Returns false when the connection has failed. */
  sendBody(exchange: Exchange, piece: BodyPiece): boolean;
  /** The request cannot be written any further; what the upstream has answered may still be of use. */
  writeFailed(exchange: Exchange): void;
  /** Drops a response whose head is not wanted; the connection is kept if it can be. */
  discard(exchange: Exchange): void;
  /** Drops the upstream side of an exchange that ends for another reason. */
  cancel(exchange: Exchange): void;
}
