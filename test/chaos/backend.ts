// A backend of the chaos run: a process of its own, so that it can be killed and frozen.
//
// Every answer names the request that it belongs to. Its parent tells it by messages how to behave.

import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

/** How a backend behaves from now on. */
export interface Behaviour {
  /** Every answer comes so late. */
  delayMs: number;
  /** Every answer is a 500. */
  errors: boolean;
}

let behaviour: Behaviour = { delayMs: 0, errors: false };
process.on('message', (message) => (behaviour = message as Behaviour));
process.on('disconnect', () => process.exit(0));

const server = createServer((request, response) => {
  const { delayMs, errors } = behaviour;
  let body = '';
  request.setEncoding('latin1');
  request.on('data', (chunk) => (body += chunk));
  request.on('end', () => {
    setTimeout(() => {
      response.statusCode = errors ? 500 : 200;
      response.end(`${request.method} ${request.url} ${body}`);
    }, delayMs);
  });
});
server.keepAliveTimeout = 60_000;
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
  process.send!((server.address() as AddressInfo).port);
});
