// A gRPC service with grpc-js, without a .proto: messages are text. `Say` answers one message with the server's
// name in front, `Count` streams so many messages as it is told.

import * as grpc from '@grpc/grpc-js';

const method = (path: string, responseStream: boolean) => ({
  path,
  requestStream: false,
  responseStream,
  requestSerialize: (text: string) => Buffer.from(text),
  requestDeserialize: (bytes: Buffer) => bytes.toString(),
  responseSerialize: (text: string) => Buffer.from(text),
  responseDeserialize: (bytes: Buffer) => bytes.toString(),
});

/** The service. */
export const echoService = {
  Say: method('/test.Echo/Say', false),
  Count: method('/test.Echo/Count', true),
};

/** Serves it on all addresses. */
export async function serveGrpc(port: number, name: string): Promise<grpc.Server> {
  const server = new grpc.Server();
  server.addService(echoService, {
    Say: (call: grpc.ServerUnaryCall<string, string>, done: grpc.sendUnaryData<string>) =>
      call.request === 'fail'
        ? done({ code: grpc.status.FAILED_PRECONDITION, details: `${name} does not want to` })
        : done(null, `${name}: ${call.request}`),
    Count: (call: grpc.ServerWritableStream<string, string>) => {
      for (let number = 1; number <= Number(call.request); number++) call.write(`${name} ${number}`);
      call.end();
    },
  });
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(`[::]:${port}`, grpc.ServerCredentials.createInsecure(), (error) =>
      error === null ? resolve() : reject(error),
    ),
  );
  return server;
}
