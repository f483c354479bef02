// The program of the uWebSockets.js peer: `uwebsockets-server.ts PORT BACKEND_PORT`.
// A plain forwarder: uWebSockets.js below, node:http's agent above, bodies streamed both ways.

import { Agent, request as httpRequest, type IncomingMessage } from 'node:http';
import { createRequire } from 'node:module';

/** The part of uWebSockets.js that is used; the package brings no types of its own to rely on. */
interface UwsRequest {
  getMethod(): string;
  getUrl(): string;
  getQuery(): string;
  forEach(visit: (name: string, value: string) => void): void;
}
interface UwsResponse {
  cork(write: () => void): UwsResponse;
  writeStatus(status: string): UwsResponse;
  writeHeader(name: string, value: string): UwsResponse;
  tryEnd(chunk: ArrayBufferView, totalBytes: number): [boolean, boolean];
  end(): UwsResponse;
  endWithoutBody(length?: number): UwsResponse;
  close(): UwsResponse;
  getWriteOffset(): number;
  onWritable(handler: (offset: number) => boolean): UwsResponse;
  onAborted(handler: () => void): UwsResponse;
  onData(handler: (chunk: ArrayBuffer, last: boolean) => void): UwsResponse;
}
interface UwsApp {
  any(pattern: string, handler: (response: UwsResponse, request: UwsRequest) => void): UwsApp;
  listen(host: string, port: number, listening: (socket: unknown) => void): UwsApp;
}

const HOP_BY_HOP = new Set(['connection', 'keep-alive', 'transfer-encoding', 'te', 'trailer', 'upgrade']);
const [port, backendPort] = process.argv.slice(2).map(Number);
const uws = createRequire(import.meta.url)('uWebSockets.js') as { App(): UwsApp };
const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY, maxFreeSockets: 4096 });

uws
  .App()
  .any('/*', forward)
  .listen('127.0.0.1', port, (socket) => {
    if (!socket) process.exit(1);
  });

function forward(response: UwsResponse, request: UwsRequest): void {
  const headers: Record<string, string> = {};
  request.forEach((name, value) => {
    if (!HOP_BY_HOP.has(name)) headers[name] = value;
  });
  const method = request.getMethod().toUpperCase();
  const query = request.getQuery();
  const path = query ? `${request.getUrl()}?${query}` : request.getUrl();
  let gone = false;
  const upstream = httpRequest({ host: '127.0.0.1', port: backendPort, method, path, headers, agent }, (incoming) =>
    answer(response, incoming, () => gone),
  );
  upstream.once('error', () => {
    if (!gone) response.close();
  });
  response.onAborted(() => {
    gone = true;
    upstream.destroy();
  });
  response.onData((chunk, last) => {
    // The ArrayBuffer is only valid during this call, so it is copied.
    if (chunk.byteLength > 0) upstream.write(Buffer.from(new Uint8Array(chunk)));
    if (last) upstream.end();
  });
}

/** Sends the upstream's answer on; it must have a Content-Length, as the benchmark's backends give. */
function answer(response: UwsResponse, incoming: IncomingMessage, isGone: () => boolean): void {
  const totalBytes = Number(incoming.headers['content-length'] ?? 0);
  if (isGone()) return;
  response.cork(() => {
    response.writeStatus(`${incoming.statusCode} ${incoming.statusMessage}`);
    for (let i = 0; i < incoming.rawHeaders.length; i += 2) {
      const name = incoming.rawHeaders[i].toLowerCase();
      if (!HOP_BY_HOP.has(name) && name !== 'content-length') response.writeHeader(name, incoming.rawHeaders[i + 1]);
    }
    if (totalBytes === 0) response.endWithoutBody(0);
  });
  let blocked: Buffer | null = null;
  let blockedAt = 0;
  response.onWritable((offset) => {
    if (blocked === null) return true;
    const [sent] = response.tryEnd(blocked.subarray(offset - blockedAt), totalBytes);
    if (sent) {
      blocked = null;
      incoming.resume();
    }
    return sent;
  });
  incoming.on('data', (chunk: Buffer) => {
    if (isGone()) return;
    response.cork(() => {
      blockedAt = response.getWriteOffset();
      if (response.tryEnd(chunk, totalBytes)[0]) return;
      blocked = chunk;
      incoming.pause();
    });
  });
}
