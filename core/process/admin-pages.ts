// An admin port: pages about the process, for people, probes and Prometheus. Read-only.
//
// Control threads, with node:http; nothing here touches the packet path. The port has no
// authentication: it belongs on loopback or a network of operators, and a Host that is a name is
// refused, so that a web page in an operator's browser cannot read it through a rebound DNS name.

import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { type AddressInfo, isIP } from 'node:net';
import { pipeline, Readable } from 'node:stream';
import { createServer } from './node-http.ts';

/** A page needs milliseconds: slow clients are not waited for. */
const REQUEST_TIMEOUT_MS = 10_000;
const KEEP_ALIVE_TIMEOUT_MS = 15_000;
const CONNECTIONS_MAX = 128;

const TEXT = 'text/plain; charset=utf-8';
const JSON_TYPE = 'application/json; charset=utf-8';

/** Body of one answer; a long one comes in pieces. */
export interface Page {
  status: number;
  type: string;
  body: string | Iterable<string>;
}

/** Makes the page of a path and its query; undefined: there is none. */
export type PageMaker = (url: URL) => Page | undefined | Promise<Page | undefined>;

/** A running admin port. */
export interface AdminServer {
  /** Where it listens; the real port when 0 was asked for. */
  readonly host: string;
  readonly port: number;
  /** Stops listening and closes all connections. */
  close(): Promise<void>;
}

/**
 * Starts an admin port; rejects with the system's error (EADDRINUSE, EACCES ...) when it cannot listen. `index` is
 * the page of `/`, and what a request for a page that does not exist gets to see; a function makes it each time.
 */
export async function startAdminPages(
  host: string,
  port: number,
  index: string | (() => string),
  pageOf: PageMaker,
): Promise<AdminServer> {
  const server = createServer((request, response) => {
    void answer(request, response, index, pageOf);
  });
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.headersTimeout = REQUEST_TIMEOUT_MS;
  server.keepAliveTimeout = KEEP_ALIVE_TIMEOUT_MS;
  server.maxConnections = CONNECTIONS_MAX;
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  const address = server.address() as AddressInfo;
  return { host: address.address, port: address.port, close: () => closeServer(server) };
}

/** A page of plain text. */
export function textPage(status: number, body: string): Page {
  return { status, type: TEXT, body };
}

/** A page of JSON. */
export function jsonPage(status: number, value: unknown): Page {
  return { status, type: JSON_TYPE, body: `${JSON.stringify(value, null, 2)}\n` };
}

/** A page for probes: 200 without causes, otherwise 503 with all of them. */
export function probePage(good: string, causes: readonly string[]): Page {
  return causes.length === 0 ? textPage(200, `${good}\n`) : textPage(503, `not ${good}: ${causes.join('; ')}\n`);
}

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  index: string | (() => string),
  pageOf: PageMaker,
): Promise<void> {
  let page: Page;
  try {
    page = await route(request, response, index, pageOf);
  } catch (error) {
    page = textPage(500, `This page could not be made: ${String(error)}\n`);
  }
  if (typeof page.body !== 'string') {
    response.writeHead(page.status, { 'content-type': page.type, 'cache-control': 'no-store' });
    if (request.method === 'HEAD') response.end();
    // A reader that goes away is no failure of this side.
    else pipeline(Readable.from(page.body), response, () => {});
    return;
  }
  const body = Buffer.from(page.body);
  response.writeHead(page.status, {
    'content-type': page.type,
    'content-length': body.length,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  });
  response.end(request.method === 'HEAD' ? undefined : body);
}

async function route(
  request: IncomingMessage,
  response: ServerResponse,
  index: string | (() => string),
  pageOf: PageMaker,
): Promise<Page> {
  // A request body is nobody's wish here; what is not read ends the connection after the answer.
  if (!isTrustedHost(request.headers.host)) {
    return textPage(403, 'The Host of a request to the admin port must be an IP address or localhost.\n');
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('allow', 'GET, HEAD');
    return textPage(405, 'The admin port is read-only: GET and HEAD only.\n');
  }
  const url = parseTarget(request.url ?? '/');
  const list = typeof index === 'string' ? index : index();
  if (url?.pathname === '/') return textPage(200, list);
  const page = url === undefined ? undefined : await pageOf(url);
  return page ?? textPage(404, `There is no such page.\n\n${list}`);
}

/** Whether a Host field is an IP literal or localhost, with or without port; absent only from HTTP/1.0. */
function isTrustedHost(host: string | undefined): boolean {
  if (host === undefined) return true;
  const bracketed = /^\[([^\]]*)\](?::\d*)?$/.exec(host);
  if (bracketed !== null) return isIP(bracketed[1]) === 6;
  const name = host.replace(/:\d*$/, '').toLowerCase();
  return name === 'localhost' || isIP(name) === 4;
}

/** Path and query of an origin-form target; undefined for anything else. */
function parseTarget(target: string): URL | undefined {
  if (!target.startsWith('/')) return undefined;
  const base = 'http://admin';
  // Appended rather than resolved: "//x/metrics" is a path here, not another host.
  return URL.canParse(base + target) ? new URL(base + target) : undefined;
}
