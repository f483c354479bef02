// Requests to a Kubernetes API server: JSON answers, and bodies that stream for minutes.
//
// Who and where the server is comes from @kubernetes/client-node's KubeConfig (kubeconfig files, in-cluster service
// accounts, exec plugins, token files that rotate); it is loaded when first needed, because it is large. The bytes go
// through node:https and not through the library's own Watch: that one drops lines which it cannot parse, ends a
// quiet watch after 30 s, and makes a new connection pool for every request.
//
// Control threads. Owns the connection pool.

import { existsSync, readFileSync } from 'node:fs';
import {
  type Agent,
  type ClientRequest,
  Agent as HttpAgent,
  request as httpRequest,
  type IncomingMessage,
} from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest, type RequestOptions } from 'node:https';
import { delimiter, dirname, join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { createGunzip, createInflate } from 'node:zlib';
import type { KubeConfig } from '@kubernetes/client-node';
import { version } from '../../core/process/version.ts';
import { ApiError, errorOfStatus } from './api-error.ts';

/** Time until the head of an answer is there. */
const HEAD_TIMEOUT_MS = 30_000;

/** Time until a whole JSON answer is there: a page of a list from a busy server on a slow line. */
const BODY_TIMEOUT_MS = 60_000;

/** Largest JSON answer: some 30,000 pods at once, for servers that do not page. */
const BODY_BYTES_MAX = 512 * 1024 * 1024;

/** Of the body of a refusal that is not a Status object, so much is quoted. */
const QUOTE_LENGTH_MAX = 200;

/** A dead peer is noticed by TCP even where nothing is sent for minutes. */
const TCP_KEEP_ALIVE_MS = 30_000;

/** Makes the configuration: once, and again after the credentials were refused. */
export type LoadKubeConfig = () => Promise<KubeConfig>;

/** Where the credentials are. */
export interface KubeConfigLocation {
  /** A kubeconfig file; absent: $KUBECONFIG, ~/.kube/config, or the pod's own service account, whichever is there. */
  file?: string;
  /** The context of that file; absent: its current one. */
  context?: string;
}

/** A function that loads the configuration of this place. It throws ApiError `no-credentials`. */
export function kubeConfigLoader(location: KubeConfigLocation): LoadKubeConfig {
  return async () => {
    const [{ KubeConfig }, { parse }] = await Promise.all([import('@kubernetes/client-node'), import('yaml')]);
    const config = new KubeConfig();
    const where = location.file ?? 'the default places';
    const { HOME = '', KUBECONFIG, KUBERNETES_SERVICE_HOST } = process.env;
    try {
      if (location.file !== undefined) config.loadFromFile(location.file);
      else if (KUBERNETES_SERVICE_HOST !== undefined && KUBECONFIG === undefined) config.loadFromCluster();
      else config.loadFromDefault();
      // The home as the library looks for it; in a container there may be none.
      const found = (KUBECONFIG || join(HOME, '.kube/config')).split(delimiter);
      addTokenFiles(config, location.file === undefined ? found.filter(existsSync) : [location.file], parse);
    } catch (cause) {
      throw new ApiError('no-credentials', `no Kubernetes credentials in ${where}: ${messageOf(cause)}`, { cause });
    }
    if (location.context !== undefined) config.setCurrentContext(location.context);
    if (config.getCurrentCluster() === null) {
      const context = config.getCurrentContext() || '(none)';
      throw new ApiError('no-credentials', `the context ${context} in ${where} names no cluster`);
    }
    return config;
  };
}

/**
 * Adds what the library passes over in kubeconfig files: `tokenFile` of a user, which kubectl reads again and again, and
 * prefers to a token beside it.
 */
function addTokenFiles(config: KubeConfig, files: readonly string[], parse: (text: string) => unknown): void {
  const tokenFiles = new Map<unknown, string>();
  for (const file of files) {
    const { users } = parse(readFileSync(file, 'utf8')) as {
      users?: { name?: unknown; user?: { tokenFile?: unknown } }[];
    };
    for (const { name, user } of users ?? []) {
      const tokenFile = user?.tokenFile;
      if (typeof tokenFile !== 'string' || tokenFile === '' || tokenFiles.has(name)) continue;
      tokenFiles.set(name, resolve(dirname(file), tokenFile));
    }
  }
  config.users = config.users.map((user) => {
    const tokenFile = tokenFiles.get(user.name);
    if (tokenFile === undefined) return user;
    const { token: _, ...others } = user;
    return { ...others, authProvider: { name: 'tokenFile', config: { tokenFile } } };
  });
}

/** What is asked for. */
export interface ApiRequest {
  /** Path below the server, such as `/api/v1/pods`. */
  path: string;
  query?: Record<string, string | number | boolean>;
  /** Sent as JSON, with POST. */
  body?: object;
  /** Media types; JSON unless said otherwise. */
  accept?: string;
  signal?: AbortSignal;
}

/** Connections to one API server. */
export class ApiClient {
  private readonly load: LoadKubeConfig;
  private config: Promise<KubeConfig> | null = null;
  private pool: { agent: Agent; key: string } | null = null;
  private readonly closing = new AbortController();
  private readonly userAgent = `portcullis/${version()}`;

  constructor(load: LoadKubeConfig) {
    this.load = load;
  }

  /** The JSON answer; rejects with ApiError. */
  async json(asked: ApiRequest): Promise<unknown> {
    const deadline = AbortSignal.timeout(BODY_TIMEOUT_MS);
    const response = await this.send(asked, deadline);
    const body = await collect(response.body, BODY_BYTES_MAX);
    return parseJson(body, asked.path);
  }

  /**
   * The body of a 200 answer as it comes, decompressed; rejects with ApiError otherwise. The caller reads it to its
   * end or destroys it. After `timeoutMs` it fails.
   */
  async stream(asked: ApiRequest, timeoutMs: number): Promise<Readable> {
    return (await this.send(asked, AbortSignal.timeout(timeoutMs))).body;
  }

  /** Ends every request and connection. */
  close(): void {
    this.closing.abort();
    this.pool?.agent.destroy();
    this.pool = null;
  }

  private async send(asked: ApiRequest, deadline: AbortSignal): Promise<{ body: Readable }> {
    const signals = [deadline, this.closing.signal];
    if (asked.signal !== undefined) signals.push(asked.signal);
    const signal = AbortSignal.any(signals);
    const response = await this.head(asked, signal);
    const body = decoded(response, asked.path);
    if (response.statusCode === 200 || response.statusCode === 201) return { body };
    throw await this.refusal(response, body);
  }

  private async head(asked: ApiRequest, signal: AbortSignal): Promise<IncomingMessage> {
    const { url, options } = await this.target(asked);
    const payload = asked.body === undefined ? undefined : Buffer.from(JSON.stringify(asked.body));
    if (payload !== undefined) {
      options.method = 'POST';
      options.headers = {
        ...options.headers,
        'content-type': 'application/json',
        'content-length': payload.length,
      };
    }
    return new Promise((resolve, reject) => {
      let request: ClientRequest;
      const fail = (cause: Error): void => {
        clearTimeout(timer);
        const what = signal.aborted ? 'no answer in time' : messageOf(cause);
        reject(new ApiError('unreachable', `${url.origin}: ${what}`, { cause }));
      };
      const timer = setTimeout(() => request.destroy(new Error('no answer in time')), HEAD_TIMEOUT_MS);
      try {
        const send = url.protocol === 'http:' ? httpRequest : httpsRequest;
        request = send(url, { ...options, signal });
      } catch (error) {
        return fail(error as Error);
      }
      request.on('error', fail);
      request.on('response', (response) => {
        clearTimeout(timer);
        resolve(response);
      });
      request.end(payload);
    });
  }

  /** Address, headers and connection pool of a request, with credentials as they are now. */
  private async target(asked: ApiRequest): Promise<{ url: URL; options: RequestOptions }> {
    const config = await (this.config ??= this.load());
    const cluster = config.getCurrentCluster();
    // The headers are there for the library to add the credentials to.
    const options: RequestOptions = { headers: {} };
    let url: URL;
    try {
      url = new URL(cluster!.server.replace(/\/+$/, '') + asked.path);
      await config.applyToHTTPSOptions(options);
    } catch (cause) {
      this.config = null;
      throw new ApiError('no-credentials', `the Kubernetes credentials cannot be used: ${messageOf(cause)}`, { cause });
    }
    for (const [name, value] of Object.entries(asked.query ?? {})) url.searchParams.set(name, String(value));
    const headers = options.headers as Record<string, string>;
    // A file that was written by hand ends with a line feed, and so does then the header.
    for (const name of Object.keys(headers)) headers[name] = headers[name]!.trim();
    options.headers = {
      ...headers,
      accept: asked.accept ?? 'application/json',
      'accept-encoding': 'gzip',
      'user-agent': this.userAgent,
    };
    // Through a proxy the library's agent knows the way.
    if (cluster!.proxyUrl === undefined || cluster!.proxyUrl === '') options.agent = this.agentFor(url, options);
    return { url, options };
  }

  /** One pool of connections, until the certificates (ours, or the authorities) are replaced. */
  private agentFor(url: URL, options: RequestOptions): Agent {
    const { ca, cert, key, servername, rejectUnauthorized } = options;
    const identity = [url.origin, ca, cert, key, servername, rejectUnauthorized].map(String).join('\n');
    if (this.pool?.key !== identity) {
      const common = { keepAlive: true, keepAliveMsecs: TCP_KEEP_ALIVE_MS };
      const tls = Object.fromEntries(
        Object.entries({ ca, cert, key, servername, rejectUnauthorized }).filter(([, value]) => value !== undefined),
      );
      const agent = url.protocol === 'http:' ? new HttpAgent(common) : new HttpsAgent({ ...common, ...tls });
      // Running requests of the old pool keep their connections; `close` ends them by the signal.
      this.pool = { agent, key: identity };
    }
    return this.pool.agent;
  }

  private async refusal(response: IncomingMessage, body: Readable): Promise<ApiError> {
    const status = response.statusCode ?? 0;
    // A token that has just been replaced, or credentials that were: look again, not at what was read before.
    if (status === 401) this.config = null;
    const retryAfter = response.headers['retry-after'] ?? '';
    const raw = await collect(body, 1024 * 1024).catch(() => Buffer.alloc(0));
    try {
      return errorOfStatus(JSON.parse(raw.toString()), status, retryAfter);
    } catch {
      const quote = raw.toString().replace(/\s+/g, ' ').slice(0, QUOTE_LENGTH_MAX);
      return errorOfStatus({ message: `the API server answered ${status}: ${quote}` }, status, retryAfter);
    }
  }
}

/** The body without its content coding. Failures of the connection become failures of what is returned. */
function decoded(response: IncomingMessage, path: string): Readable {
  const coding = response.headers['content-encoding'] ?? 'identity';
  if (coding === 'identity') return response;
  if (coding !== 'gzip' && coding !== 'deflate') {
    response.destroy();
    throw new ApiError('malformed', `${path} came with the unknown content coding ${coding}`);
  }
  const decoder = coding === 'gzip' ? createGunzip() : createInflate();
  response.on('error', (error) => decoder.destroy(error));
  decoder.on('close', () => response.destroy());
  return response.pipe(decoder);
}

async function collect(body: Readable, bytesMax: number): Promise<Buffer> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const piece of body) {
      bytes += (piece as Buffer).length;
      if (bytes > bytesMax) throw new ApiError('malformed', `an answer has more than ${bytesMax} bytes`);
      pieces.push(piece as Buffer);
    }
  } catch (cause) {
    if (cause instanceof ApiError) throw cause;
    throw new ApiError('unreachable', `an answer ended before its end: ${messageOf(cause)}`, { cause });
  }
  return Buffer.concat(pieces);
}

function parseJson(body: Buffer, path: string): unknown {
  try {
    return JSON.parse(body.toString());
  } catch (cause) {
    throw new ApiError('malformed', `${path} came with a body that is not JSON: ${messageOf(cause)}`, { cause });
  }
}

function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === '') return error.errors.map(messageOf).join('; ');
  return error instanceof Error ? error.message : String(error);
}
