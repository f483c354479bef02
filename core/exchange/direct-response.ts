// Responses that a rule gives by itself.
// Made once per snapshot and policy, immutable afterwards. Hot module: no allocation.
// Spec: RFC 9110 §8.6 (Content-Length), §15.3.5 (204); gRPC over HTTP/2 (Trailers-Only); Envoy's direct_response.

import { statusLine } from '../http2/status-lines.ts';
import { putBytes, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import type { DirectResponseSettings } from '../workers/filter-settings.ts';
import { grpcAnswers } from './filter-texts.ts';
import { grpcStatusOf } from './grpc.ts';
import { Reason } from './reasons.ts';

/** Characters of a body that an RPC's client is told. */
const GRPC_MESSAGE_CHARACTERS = 256;

export class DirectResponse {
  private readonly start: Text;
  private readonly fields: Text;
  private readonly body: Uint8Array;
  private readonly grpc: Text[];

  constructor({ status, contentType, body }: DirectResponseSettings) {
    this.body = Buffer.from(body, 'base64');
    const { length } = this.body;
    const bodyless = status === 204 || status === 304;
    this.start = statusLine(status);
    this.fields = new Text(
      `${contentType === '' ? '' : `content-type: ${contentType}\r\n`}${bodyless ? '' : `content-length: ${length}\r\n`}\r\n`,
    );
    const message = contentType.startsWith('text/plain') ? new TextDecoder().decode(this.body) : '';
    this.grpc = grpcAnswers(grpcStatusOf(status, Reason.NONE), message.trim().slice(0, GRPC_MESSAGE_CHARACTERS));
  }

  /** Writes the response as HTTP/1 text; `grpc` is the GrpcKind of the client. Returns the offset after it. Spills. */
  put(reactor: Reactor, at: number, grpc: number): number {
    const { memory, view } = reactor;
    if (grpc !== 0) return putText(view, at, this.grpc[grpc]);
    const dest = putText(view, putText(view, at, this.start), this.fields);
    if (this.body.length === 0) return dest;
    return putBody(memory, dest, this.body);
  }
}

/** Bodies are long: the engine's own copy is quicker than a loop. */
function putBody(memory: Uint8Array, at: number, body: Uint8Array): number {
  if (body.length < 64) return putBytes(memory, at, body);
  memory.set(body, at);
  return at + body.length;
}
