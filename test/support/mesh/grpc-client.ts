// A gRPC client with grpc-js, run inside a namespace: `say` texts one after another, and `count` once.
//
//   node grpc-client.ts '{"target": "10.96.0.1:50051", "say": ["hello"], "count": 3}'

import * as grpc from '@grpc/grpc-js';
import { echoService } from './grpc-echo.ts';

const { target, say, count } = JSON.parse(process.argv[2]!) as { target: string; say: string[]; count: number };
const Client = grpc.makeGenericClientConstructor(echoService, 'Echo');
const client = new Client(target, grpc.credentials.createInsecure());
const deadline = (): Date => new Date(Date.now() + 10_000);
const answers: string[] = [];
for (const text of say) {
  answers.push(
    await new Promise<string>((resolve) =>
      client.Say!(text, { deadline: deadline() }, (error: grpc.ServiceError | null, answer: string) =>
        resolve(error === null ? answer : `status ${error.code}: ${error.details}`),
      ),
    ),
  );
}
const streamed: string[] = [];
if (count > 0) {
  const stream = client.Count!(String(count), { deadline: deadline() }) as grpc.ClientReadableStream<string>;
  try {
    for await (const message of stream) streamed.push(message);
  } catch (error) {
    streamed.push(String(error));
  }
}
client.close();
console.log(JSON.stringify({ answers, streamed }));
