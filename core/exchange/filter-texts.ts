// Texts that filters prepare when a snapshot is opened. Not for the packet path.

import { Text } from '../io/bytes.ts';
import { percentEncoded } from './grpc.ts';

/** Content types of answers to RPCs, by GrpcKind. */
const grpcTypes = ['', 'application/grpc', 'application/grpc-web+proto', 'application/grpc-web-text+proto'];

/** The whole answer to an RPC, as HTTP/1 text, for each GrpcKind. */
export function grpcAnswers(status: number, message: string): Text[] {
  const messageLine = message === '' ? '' : `grpc-message: ${percentEncoded(message)}\r\n`;
  return grpcTypes.map((type) => {
    const fields = `content-type: ${type}\r\ncontent-length: 0\r\ngrpc-status: ${status}\r\n`;
    return new Text(`HTTP/1.1 200 OK\r\n${fields}${messageLine}\r\n`);
  });
}

/** A field whose value is a list, as a line; empty when there is nothing to list. */
export function listLine(name: string, values: readonly string[]): Text {
  return new Text(values.length === 0 ? '' : `${name}: ${values.join(', ')}\r\n`);
}
