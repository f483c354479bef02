// An API server for tests, for what a client that lists and watches can see of one: versions, pages that expire,
// bookmarks, forgotten history as HTTP status or in the stream, selections, metadata only, compression, bearer tokens,
// roles, TokenReview; and everything that goes wrong on the way.
//
// It is not Kubernetes: nothing is validated, no controller runs. kubectl works with it.
// Spec: Kubernetes API concepts; the behaviour of k8s.io/apiserver where that page is silent.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import { Access } from './access.ts';
import { discover } from './discovery.ts';
import { listPage, metadataOnly, startOf } from './queries.ts';
import { fieldPredicate, labelPredicate, type Predicate, type ResourceType, resourceTypes } from './resources.ts';
import { expired, Refusal } from './status.ts';
import { keyOf, Store, type StoredObject, type Write } from './store.ts';
import { Watcher } from './watcher.ts';

/** The real server compresses answers from this size on. */
const GZIP_BYTES_MIN = 128 * 1024;

/** A safety net only. */
const WAIT_LIMIT_MS = 60_000;

/** A request that has been answered. */
export interface SeenRequest {
  verb: string;
  plural: string;
  query: Record<string, string>;
  accept: string;
  gzip: boolean;
}

/** A refusal that waits for its request. */
interface PlannedRefusal {
  verb: string;
  plural: string;
  refusal: Refusal | 'reset' | { status: number; text: string };
  times: number;
}

/** The server; `listen` it. */
export class KubeApi {
  readonly store = new Store();
  readonly access = new Access();
  /** How a watch of a forgotten version is refused: by status 410, or by an ERROR event after a 200. */
  expiredAs: 'status' | 'event' = 'event';
  gzipBytesMin = GZIP_BYTES_MIN;
  /** Also watches are compressed, as some proxies do. */
  gzipWatches = false;
  /** Bytes of watches go out in pieces of this size; 0: whole lines. */
  pieceBytes = 0;
  /** Like a server of an age that knows nothing but whole objects. */
  knowsMetadataOnly = true;
  readonly seen: SeenRequest[] = [];
  /** Callbacks after every page of a list, with its number from 1. */
  onPage: ((plural: string, page: number) => void) | null = null;
  private readonly watchers = new Map<Watcher, string>();
  private readonly planned: PlannedRefusal[] = [];
  private readonly changes = new Set<() => void>();
  private readonly sockets = new Set<Socket>();
  private readonly tls: { key: string; cert: string } | undefined;
  private server: Server | null = null;
  private port = 0;

  constructor(tls?: { key: string; cert: string }) {
    this.tls = tls;
    this.store.follow((write) => this.spread(write));
  }

  /** Begins to serve; again on the same port after `stop`. */
  async listen(): Promise<void> {
    const handle = (request: IncomingMessage, response: ServerResponse): void => void this.handle(request, response);
    const server = this.tls === undefined ? createServer(handle) : createTlsServer(this.tls, handle);
    server.on('connection', (socket: Socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket));
    });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(this.port, '127.0.0.1', resolve);
    });
    this.server = server;
    this.port = (server.address() as AddressInfo).port;
  }

  /** Such as `http://127.0.0.1:1234`. */
  get url(): string {
    return `${this.tls === undefined ? 'http' : 'https'}://127.0.0.1:${this.port}`;
  }

  /** Breaks every connection and listens no more. */
  async stop(): Promise<void> {
    const { server } = this;
    if (server === null) return;
    this.server = null;
    await new Promise<void>((resolve) => {
      server.close(() => resolve());
      for (const socket of this.sockets) socket.destroy();
    });
  }

  /** The next `times` requests of this kind are refused. `reset` breaks the connection. */
  refuse(verb: string, plural: string, refusal: PlannedRefusal['refusal'], times = 1): void {
    this.planned.push({ verb, plural, refusal, times });
  }

  /** Running watches of a collection, or of all. */
  watches(plural?: string): Watcher[] {
    return [...this.watchers].filter(([, of]) => plural === undefined || of === plural).map(([watcher]) => watcher);
  }

  /** Sends bookmarks with the newest revision to whoever takes them. */
  bookmark(plural?: string): void {
    for (const watcher of this.watches(plural)) watcher.bookmark(this.store.revision);
  }

  /** Waits until something about requests and watches is so. */
  until(holds: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = (): void => {
        if (!holds()) return;
        clearTimeout(timer);
        this.changes.delete(check);
        resolve();
      };
      const timer = setTimeout(() => {
        this.changes.delete(check);
        reject(new Error(`the API server never saw ${holds}`));
      }, WAIT_LIMIT_MS);
      this.changes.add(check);
      check();
    });
  }

  /** Requests of a kind that have been seen. */
  count(verb: string, plural: string): number {
    return this.seen.filter((request) => request.verb === verb && request.plural === plural).length;
  }

  private notify(): void {
    for (const check of [...this.changes]) check();
  }

  private spread(write: Write): void {
    for (const [watcher, plural] of this.watchers) if (plural === write.plural) watcher.write(write);
  }

  private async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', 'http://server');
    try {
      const body = await read(request);
      await this.route(request, response, url, body);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const seconds = (error.body.details as { retryAfterSeconds?: number } | undefined)?.retryAfterSeconds;
      const headers = seconds === undefined ? {} : { 'retry-after': String(seconds) };
      if (response.headersSent) response.destroy();
      else response.writeHead(error.body.code, { 'content-type': 'application/json', ...headers });
      response.end(JSON.stringify(error.body));
    } finally {
      this.notify();
    }
  }

  private async route(request: IncomingMessage, response: ServerResponse, url: URL, body: string): Promise<void> {
    const known = discover(url.pathname, resourceTypes);
    if (known !== null) return this.send(request, response, 200, known);
    const target = targetOf(url.pathname);
    if (target === null) throw new Refusal(404, 'NotFound', 'the server could not find the requested resource');
    const watch = ['true', '1'].includes(url.searchParams.get('watch') ?? '');
    const verb = verbOf(request.method ?? 'GET', target.name, watch);
    this.seen.push({
      verb,
      plural: target.plural,
      query: Object.fromEntries(url.searchParams),
      accept: request.headers.accept ?? '',
      gzip: /\bgzip\b/.test(String(request.headers['accept-encoding'] ?? '')),
    });
    if (this.refusePlanned(verb, target.plural, request, response)) return;
    this.access.check(request.headers.authorization, verb, target.group, target.plural);
    if (target.plural === 'tokenreviews') this.send(request, response, 201, this.access.review(JSON.parse(body)));
    else if (verb === 'list') this.list(request, response, url, target);
    else if (verb === 'watch') this.watch(request, response, url, target);
    else this.single(request, response, verb, target, body);
  }

  private refusePlanned(verb: string, plural: string, request: IncomingMessage, response: ServerResponse): boolean {
    const plan = this.planned.find((entry) => entry.verb === verb && entry.plural === plural && entry.times > 0);
    if (plan === undefined) return false;
    plan.times--;
    if (plan.refusal === 'reset') request.socket.destroy();
    else if (plan.refusal instanceof Refusal) throw plan.refusal;
    else response.writeHead(plan.refusal.status, { 'content-type': 'text/html' }).end(plan.refusal.text);
    return true;
  }

  private list(request: IncomingMessage, response: ServerResponse, url: URL, target: Target): void {
    const type = resourceTypes[target.plural]!;
    const page = listPage(this.store, type, url.searchParams, this.selection(url, type, target));
    const partial = this.asPartial(request, 'PartialObjectMetadataList');
    const items = page.items.map((object) => (partial ? metadataOnly(object, true) : withoutType(object)));
    const kind = partial ? 'PartialObjectMetadataList' : `${type.kind}List`;
    const apiVersion = partial ? 'meta.k8s.io/v1' : versionOf(type);
    this.send(request, response, 200, { kind, apiVersion, metadata: page.metadata, items });
    this.onPage?.(target.plural, page.number);
  }

  private watch(request: IncomingMessage, response: ServerResponse, url: URL, target: Target): void {
    const type = resourceTypes[target.plural]!;
    const matches = this.selection(url, type, target);
    const partial = this.asPartial(request, 'PartialObjectMetadata');
    const start = startOf(url.searchParams, this.store);
    if (start.expired && this.expiredAs === 'status') throw expired(start.asked, this.store.compacted);
    const watcher = new Watcher(
      {
        type,
        matches,
        bookmarks: url.searchParams.get('allowWatchBookmarks') === 'true',
        after: start.revision ?? 0,
        present: (object) => (partial ? metadataOnly(object, true) : withType(object, type)),
      },
      response,
      { gzip: this.gzipWatches && this.seen.at(-1)!.gzip, pieceBytes: this.pieceBytes },
    );
    if (start.expired) {
      watcher.error(expired(start.asked, this.store.compacted));
      return;
    }
    if (start.revision === null) {
      for (const [, object] of this.store.at(target.plural, this.store.revision)) watcher.initial(object);
    } else for (const write of this.store.since(target.plural, start.revision)) watcher.write(write);
    this.watchers.set(watcher, target.plural);
    const seconds = Number(url.searchParams.get('timeoutSeconds') ?? 1800);
    const timer = setTimeout(() => {
      watcher.bookmark(this.store.revision);
      watcher.end();
    }, seconds * 1000);
    response.on('close', () => {
      clearTimeout(timer);
      this.watchers.delete(watcher);
      this.notify();
    });
  }

  private single(request: IncomingMessage, response: ServerResponse, verb: string, target: Target, body: string): void {
    const { store } = this;
    const type = resourceTypes[target.plural]!;
    const key = target.namespace === '' ? target.name : `${target.namespace}/${target.name}`;
    if (verb === 'create' || verb === 'update') {
      const object = JSON.parse(body) as StoredObject;
      if (type.namespaced) object.metadata.namespace ??= target.namespace;
      if (verb === 'create' && store.get(target.plural, keyOf(object)) !== undefined) {
        throw new Refusal(409, 'AlreadyExists', `${target.plural} "${object.metadata.name}" already exists`);
      }
      this.send(request, response, verb === 'create' ? 201 : 200, withType(store.put(target.plural, object), type));
      return;
    }
    const object = verb === 'delete' ? store.delete(target.plural, key) : store.get(target.plural, key);
    if (object === undefined) throw new Refusal(404, 'NotFound', `${target.plural} "${target.name}" not found`);
    this.send(request, response, 200, withType(object, type));
  }

  private selection(url: URL, type: ResourceType, target: Target): Predicate {
    try {
      const byLabel = labelPredicate(url.searchParams.get('labelSelector') ?? '');
      const byField = fieldPredicate(url.searchParams.get('fieldSelector') ?? '', type);
      return (object) =>
        (target.namespace === '' || object.metadata.namespace === target.namespace) &&
        byLabel(object) &&
        byField(object);
    } catch (error) {
      throw new Refusal(400, 'BadRequest', (error as Error).message);
    }
  }

  private asPartial(request: IncomingMessage, kind: string): boolean {
    return this.knowsMetadataOnly && (request.headers.accept ?? '').includes(`as=${kind};`);
  }

  private send(request: IncomingMessage, response: ServerResponse, status: number, object: object): void {
    const body = Buffer.from(JSON.stringify(object));
    const gzip = body.length >= this.gzipBytesMin && /\bgzip\b/.test(String(request.headers['accept-encoding'] ?? ''));
    const headers = { 'content-type': 'application/json', ...(gzip ? { 'content-encoding': 'gzip' } : {}) };
    // Without a length: in chunks.
    response.writeHead(status, headers).end(gzip ? gzipSync(body) : body);
  }
}

/** What a path names. */
interface Target {
  group: string;
  plural: string;
  namespace: string;
  name: string;
}

function targetOf(path: string): Target | null {
  const match =
    /^\/(?:api|apis\/([^/]+))\/v1(?:\/namespaces\/([^/]+)(?=\/))?\/([a-z]+)(?:\/([^/]+))?\/?$/.exec(path) ?? null;
  if (match === null) return null;
  const [, group = '', namespace = '', plural = '', name = ''] = match;
  if (plural === 'tokenreviews' && group === 'authentication.k8s.io') return { group, plural, namespace, name };
  return resourceTypes[plural]?.group === group ? { group, plural, namespace, name } : null;
}

function verbOf(method: string, name: string, watch: boolean): string {
  if (method === 'GET') return watch ? 'watch' : name === '' ? 'list' : 'get';
  const verbs: Record<string, string> = { POST: 'create', PUT: 'update', DELETE: 'delete' };
  const verb = verbs[method];
  if (verb === undefined) throw new Refusal(405, 'MethodNotAllowed', `${method} is not served`);
  return verb;
}

function versionOf({ group, version }: ResourceType): string {
  return group === '' ? version : `${group}/${version}`;
}

function withType(object: StoredObject, type: ResourceType): object {
  return { kind: type.kind, apiVersion: versionOf(type), ...object };
}

/** Items of lists have no type of their own. */
function withoutType(object: StoredObject): object {
  const { kind, apiVersion, ...rest } = object;
  return rest;
}

async function read(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request) text += chunk;
  return text;
}
