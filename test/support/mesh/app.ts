// A small application for tests and the demo, started inside a namespace: it knows nothing of a mesh.
//
//   node app.ts '{"name": "cart", "ports": [{"port": 8080, "kind": "http", "calls": ["http://10.96.0.2/"]}]}'
//
// Prints `ready` when it listens everywhere. SIGTERM: finishes what is under way, takes nothing new, and ends.

import { createServer as createHttp, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttp2 } from 'node:http2';
import { connect, createServer as createTcp, type Server } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { AppPort, AppSpec } from './apps.ts';

const spec = JSON.parse(process.argv[2]!) as AppSpec;
const endings: (() => void)[] = [];
let ending = false;
/** What `/healthz` answers. */
let healthStatus = 200;

/**
 * Says who was reached, and what arrived there. `/wait/MS`: answers later; `/bytes/N`: with so many bytes; `/healthz`:
 * with the status that was last PUT there.
 */
async function answer(port: AppPort, incoming: IncomingMessage, response: ServerResponse): Promise<void> {
  const [, verb, number] = /^\/(wait|bytes|status)\/(\d+)/.exec(incoming.url!) ?? [];
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk);
  // node:http would go on with connections that are never idle.
  if (ending && incoming.httpVersion === '1.1') response.setHeader('connection', 'close');
  if (verb === 'wait') await delay(Number(number));
  if (verb === 'bytes') return void response.end(Buffer.alloc(Number(number), 120));
  if (verb === 'status') response.statusCode = Number(number);
  if (incoming.url === '/healthz') {
    if (incoming.method === 'PUT') healthStatus = Number(Buffer.concat(chunks));
    else response.statusCode = healthStatus;
  }
  const called = await Promise.all((port.calls ?? []).map(call));
  const { method, url, headers, socket } = incoming;
  const body = {
    ...{ app: spec.name, method, url, headers, from: socket.remoteAddress, httpVersion: incoming.httpVersion },
    ...{ bytes: chunks.reduce((sum, { length }) => sum + length, 0), called },
  };
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(body));
}

/** One call to another service; `tcp://` asks with one line. */
async function call(url: string): Promise<string> {
  try {
    if (url.startsWith('tcp://')) {
      const { hostname, port } = new URL(url);
      const socket = connect(Number(port), hostname);
      socket.end('ping\n');
      let text = '';
      for await (const chunk of socket.setEncoding('utf8')) text += chunk;
      return text === '' ? `${url}: closed` : 'ok';
    }
    const response = await fetch(url);
    await response.arrayBuffer();
    return response.ok ? 'ok' : `${url}: ${response.status}`;
  } catch (error) {
    return `${url}: ${(error as { cause?: Error }).cause?.message ?? String(error)}`;
  }
}

async function serverOf(port: AppPort): Promise<Server | null> {
  const handler = (incoming: IncomingMessage, response: ServerResponse): void => {
    answer(port, incoming, response).catch(() => response.destroy());
  };
  switch (port.kind) {
    case 'http': {
      const server = createHttp({ keepAliveTimeout: 60_000 }, handler);
      // Whatever it is upgraded to, it says what it hears.
      server.on('upgrade', (_incoming, socket) => {
        socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
        socket.on('error', () => {}).pipe(socket);
      });
      endings.push(() => setInterval(() => server.closeIdleConnections(), 20).unref());
      return server;
    }
    case 'h2c': {
      const server = createHttp2({}, handler as never);
      server.on('session', (session) => endings.push(() => session.close()));
      return server as unknown as Server;
    }
    case 'echo':
      return createTcp({ allowHalfOpen: true }, (socket) => socket.on('error', () => {}).pipe(socket));
    case 'banner':
      return createTcp((socket) => socket.on('error', () => {}).end(`220 ${spec.name} speaks first\r\n`));
    case 'grpc': {
      const { serveGrpc } = await import('./grpc-echo.ts');
      const server = await serveGrpc(port.port, spec.name);
      endings.push(() => server.tryShutdown(() => {}));
      return null;
    }
  }
}

for (const port of spec.ports) {
  const server = await serverOf(port);
  if (server === null) continue;
  await new Promise<void>((resolve) => server.listen(port.port, '::', resolve));
  endings.push(() => server.close());
}
process.on('SIGTERM', () => {
  ending = true;
  for (const end of endings) end();
});
console.log('ready');
