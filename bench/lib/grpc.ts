// The unary gRPC call of the benchmark: one small message there, one back, status 0 in the trailers.
// Spec: gRPC over HTTP/2 (Length-Prefixed-Message: flag byte, length in 4 bytes, message).

const PREFIX_BYTES = 5;
const MESSAGE_BYTES = 64;

/** Path of the method. */
export const GRPC_PATH = '/bench.Echo/Unary';
/** Size of the message in both directions, with its prefix. */
export const GRPC_BODY_BYTES = PREFIX_BYTES + MESSAGE_BYTES;

/** A message with its prefix, not compressed. */
export function grpcMessage(): Buffer {
  const message = Buffer.alloc(GRPC_BODY_BYTES, 'x');
  message.writeUInt8(0, 0);
  message.writeUInt32BE(MESSAGE_BYTES, 1);
  return message;
}
