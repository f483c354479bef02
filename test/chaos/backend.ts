// A backend of the chaos run: a process of its own, so that it can be killed and frozen.
//
// Every answer names the request that it belongs to, and who gives it. Its parent tells it by messages how to behave.
// Arguments: its name, the address and the port to listen on.

import { createServer } from 'node:http';

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

const [name, host, port] = process.argv.slice(2);
const server = createServer((request, response) => {
  const { delayMs, errors } = behaviour;
  let body = '';
  request.setEncoding('latin1');
  request.on('data', (chunk) => (body += chunk));
  request.on('end', () => {
    setTimeout(() => {
      response.statusCode = errors ? 500 : 200;
      response.setHeader('x-backend', name!);
      response.end(`${request.method} ${request.url} ${body}`);
    }, delayMs);
  });
});
server.keepAliveTimeout = 60_000;
server.listen(Number(port), host, () => process.send!('listening'));
