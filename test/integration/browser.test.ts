// Headless Chromium through the gateway: a page with many resources, uploads and a WebSocket, over
// HTTP/2 and TLS. Skipped, with the reason, where Chromium is not installed.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { startGateway, temporaryDirectory } from './support.ts';

const browser = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) =>
  existsSync(path),
);
const skip = browser === undefined ? 'Chromium is not installed' : false;

const RESOURCES = 120;
const LIMIT_MS = 60_000;

/** What the page sends when it is done. */
interface Report {
  loaded: number;
  failed: number;
  protocols: string[];
  uploadBytes: number;
  echo: string;
}

const page = `<!doctype html><title>start</title><script>
const report = { loaded: 0, failed: 0, protocols: [], uploadBytes: 0, echo: '' };
const one = async (index) => {
  const answer = await fetch('/resource/' + index);
  const text = await answer.text();
  if (answer.status === 200 && text.length === 1000 + index * 100) report.loaded++; else report.failed++;
};
const socket = () => new Promise((resolve, reject) => {
  const ws = new WebSocket('wss://' + location.host + '/socket');
  ws.onopen = () => ws.send('hello through the gateway');
  ws.onmessage = (event) => { resolve(event.data); ws.close(); };
  ws.onerror = () => reject(new Error('socket'));
});
(async () => {
  await Promise.all(Array.from({ length: ${RESOURCES} }, (_, index) => one(index).catch(() => report.failed++)));
  report.protocols = [...new Set(performance.getEntriesByType('resource').map((entry) => entry.nextHopProtocol))];
  const upload = await fetch('/upload', { method: 'POST', body: new Uint8Array(3_000_000) });
  report.uploadBytes = Number(await upload.text());
  report.echo = await socket().catch((error) => String(error));
  await fetch('/report', { method: 'POST', body: JSON.stringify(report) });
})();
</script>`;

/** Answers the handshake and sends each short text frame back. */
function serveSocket(request: IncomingMessage, socket: Socket): void {
  const key = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${key.digest('base64')}\r\n\r\n`,
  );
  let unread = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    unread = Buffer.concat([unread, chunk as Buffer]);
    while (unread.length >= 6 && unread.length >= 6 + (unread[1]! & 0x7f)) {
      const length = unread[1]! & 0x7f;
      const payload = Buffer.from(unread.subarray(6, 6 + length));
      for (let i = 0; i < length; i++) payload[i]! ^= unread[2 + (i & 3)]!;
      socket.write(Buffer.concat([Buffer.from([unread[0]!, length]), payload]));
      unread = unread.subarray(6 + length);
    }
  });
}

/** The site behind the gateway; resolves to the page's report. */
async function startSite(t: TestContext): Promise<{ port: number; report: Promise<Report> }> {
  const { promise, resolve } = Promise.withResolvers<Report>();
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = Buffer.concat(chunks);
      const resource = /^\/resource\/(\d+)$/.exec(request.url!);
      if (resource !== null) response.end('x'.repeat(1000 + Number(resource[1]) * 100));
      else if (request.url === '/upload') response.end(String(body.length));
      else if (request.url === '/') response.setHeader('content-type', 'text/html').end(page);
      else if (request.url === '/report') {
        response.end();
        resolve(JSON.parse(body.toString()));
      } else response.writeHead(404).end();
    });
  });
  server.on('upgrade', (request, socket) => serveSocket(request, socket as Socket));
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { port: (server.address() as AddressInfo).port, report: promise };
}

test('Chromium loads a page with many resources, uploads, and talks over a WebSocket', { skip }, async (t) => {
  const site = await startSite(t);
  const directory = temporaryDirectory(t);
  execFileSync(
    'openssl',
    [
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
      ...['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'],
      ...['-keyout', join(directory, 'key.pem'), '-out', join(directory, 'cert.pem')],
    ],
    { stdio: 'ignore' },
  );
  const gateway = startGateway(
    t,
    `workers: 2
admin: off
listeners:
  - {name: main, address: "127.0.0.1:0", tls: {certificates: [{certificate: ${directory}/cert.pem, key: ${directory}/key.pem}]}}
routes: [{name: all, rules: [{backendRefs: [{name: site}]}]}]
backends: [{name: site, endpoints: ["127.0.0.1:${site.port}"]}]
`,
  );
  const child = spawn(
    browser!,
    [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
      ...['--disable-background-networking', '--disable-component-update', '--disable-sync'],
      ...['--ignore-certificate-errors', `--user-data-dir=${join(directory, 'profile')}`],
      ...['--remote-debugging-port=0', `https://localhost:${await gateway.port('main')}/`],
    ],
    { stdio: 'ignore' },
  );
  const closed = new Promise((resolve) => child.once('close', resolve));
  t.after(async () => {
    child.kill('SIGKILL');
    await closed;
  });
  const limit = Promise.withResolvers<never>();
  const timer = setTimeout(() => limit.reject(new Error('the page did not report')), LIMIT_MS);
  t.after(() => clearTimeout(timer));
  assert.deepEqual(await Promise.race([site.report, limit.promise]), {
    loaded: RESOURCES,
    failed: 0,
    protocols: ['h2'],
    uploadBytes: 3_000_000,
    echo: 'hello through the gateway',
  });
});
