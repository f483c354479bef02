// Keeps a copy of one collection of the API server: lists it, then watches it, for ever.
//
//              +--------------------------- expired (410) ----------------------------+
//              v                                                                      |
//   listing --> watching --server ends it, connection breaks--> watching from the version reached
//      ^           |
//      +-- waiting <-- refused, unreachable, malformed (longer and longer)
//
// The copy holds what `project` makes of an object and nothing else: 10,000 pods as they come are 100 MB. A list
// replaces the copy at once when it is complete, never page by page. The library's informer is not used: it treats
// every failure but 410 as final, keeps whole objects, and takes no page smaller than the collection.
//
// Owned by one control thread. Spec: Kubernetes API concepts, "Efficient detection of changes".

import { isDeepStrictEqual } from 'node:util';
import type { Log, LogLevel } from '../../core/workers/log.ts';
import type { ApiClient } from './api-client.ts';
import { ApiError } from './api-error.ts';
import { Backoff, type BackoffSettings, DEFAULT_BACKOFF, pause } from './backoff.ts';
import { acceptFor, listAll, PAGE_SIZE, type Resource, selectorsOf } from './resource-list.ts';
import { type ApiObject, type WatchEvent, watchEvents } from './watch-stream.ts';

/** The server is asked to end a watch after 5 to 10 minutes, so that its load spreads over its replicas. */
const WATCH_MS_MIN = 300_000;
const WATCH_MS_MAX = 600_000;

/** So much later than it promised, a server that has not ended a watch is dead. */
const WATCH_GRACE_MS = 30_000;

/** A watch that lived so long worked, even if nothing happened; what it had to catch up with has come. */
const LIVED_MS = 5000;

/** So many watches in a row that the server refuses or garbles: the version itself may be the cause. */
const DOUBTS_MAX = 3;

/** What one object is kept as, and under which key; null: it is of no interest. */
export type Project<T> = (object: ApiObject) => T | null;

/** What a reflector is about and whom it tells. */
export interface ReflectorOptions<T> {
  client: Pick<ApiClient, 'json' | 'stream'>;
  resource: Resource;
  project: Project<T>;
  /** An object is new, different (by content) or gone (undefined), with what it was before. */
  onChange: (key: string, value: T | undefined, before: T | undefined) => void;
  /** The copy is complete: after the first list, and after each further one. */
  onListed: () => void;
  log: Log;
  pageSize?: number;
  backoff?: BackoffSettings;
  /** Milliseconds of a clock that never goes back; absent: performance.now(). */
  now?: () => number;
}

/** What a reflector is doing, for status and metrics. */
export interface ReflectorState {
  resource: string;
  phase: 'listing' | 'watching' | 'waiting' | 'closed';
  /** Objects in the copy. */
  objects: number;
  /** Whether the copy has ever been complete. */
  synced: boolean;
  resourceVersion: string;
  lists: number;
  watches: number;
  failures: number;
  /** Of the last failure; empty since it works again. */
  lastError: string;
}

/** A copy of one collection. */
export class Reflector<T> {
  readonly state: ReflectorState;
  /** By `namespace/name`, or `name` of what has no namespace. */
  readonly objects: ReadonlyMap<string, T>;
  private copy: Map<string, T>;
  private readonly options: ReflectorOptions<T>;
  private readonly backoff: Backoff;
  private readonly closing = new AbortController();
  private running: Promise<void> | null = null;
  /** Refused or garbled watches in a row. */
  private doubts = 0;
  /** The version was forgotten, and nothing has worked since. */
  private forgotten = false;
  private watchingSinceMs = 0;
  /** A watch is open. */
  private isOpen = false;
  /** When the copy was last known to be as new as the collection. */
  private currentMs = Number.NEGATIVE_INFINITY;
  private readonly now: () => number;

  constructor(options: ReflectorOptions<T>) {
    this.options = options;
    this.now = options.now ?? (() => performance.now());
    this.backoff = new Backoff(options.backoff ?? DEFAULT_BACKOFF);
    this.copy = new Map();
    this.objects = this.copy;
    this.state = {
      resource: options.resource.name,
      phase: 'listing',
      objects: 0,
      synced: false,
      resourceVersion: '',
      lists: 0,
      watches: 0,
      failures: 0,
      lastError: '',
    };
  }

  /**
   * How long the copy may lack what is new, in milliseconds; 0: it follows. A server that is silent because it is cut off
   * itself, or a connection that has broken and does not show it yet, cannot be told from one where nothing happens.
   */
  get behindMs(): number {
    return this.isOpen && this.lived() ? 0 : this.now() - this.currentMs;
  }

  /** Begins. */
  start(): void {
    this.running ??= this.run();
  }

  /** Ends; no change is told any more. */
  async close(): Promise<void> {
    this.closing.abort();
    await this.running;
    this.state.phase = 'closed';
  }

  private async run(): Promise<void> {
    const { signal } = this.closing;
    while (!signal.aborted) {
      let waitMs = 0;
      try {
        if (this.state.resourceVersion === '') await this.list();
        waitMs = (await this.watch()) ? 0 : this.backoff.next();
      } catch (error) {
        if (signal.aborted) break;
        waitMs = this.failed(error);
      }
      if (waitMs > 0) {
        this.state.phase = 'waiting';
        await pause(waitMs, signal);
      }
    }
  }

  private async list(): Promise<void> {
    const { client, resource, pageSize = PAGE_SIZE } = this.options;
    this.state.phase = 'listing';
    let fresh = new Map<string, T>();
    const version = await listAll(
      client,
      resource,
      {
        begin: () => {
          fresh = new Map();
        },
        add: (items) => {
          for (const item of items) {
            const key = keyOf(item);
            const value = this.projected(key, item);
            if (value !== null) fresh.set(key, value);
          }
        },
      },
      { pageSize, signal: this.closing.signal },
    );
    if (this.closing.signal.aborted) return;
    this.state.lists++;
    for (const key of [...this.copy.keys()]) if (!fresh.has(key)) this.remove(key);
    for (const [key, value] of fresh) this.put(key, value);
    this.state.resourceVersion = version;
    this.state.synced = true;
    this.currentMs = this.now();
    this.options.onListed();
  }

  /** Watches until the server ends it; returns whether that was a watch that worked. */
  private async watch(): Promise<boolean> {
    const { client, resource } = this.options;
    const { signal } = this.closing;
    const askedMs = Math.round(WATCH_MS_MIN + Math.random() * (WATCH_MS_MAX - WATCH_MS_MIN));
    const body = await client.stream(
      {
        path: resource.path,
        query: {
          ...selectorsOf(resource),
          watch: true,
          allowWatchBookmarks: true,
          resourceVersion: this.state.resourceVersion,
          timeoutSeconds: Math.round(askedMs / 1000),
        },
        accept: acceptFor(resource, 'watch'),
        signal,
      },
      askedMs + WATCH_GRACE_MS,
    );
    this.state.watches++;
    this.state.phase = 'watching';
    this.watchingSinceMs = this.now();
    this.isOpen = true;
    if (this.state.lastError !== '') {
      this.state.lastError = '';
      this.options.log('info', 'kubernetes answers again', { resource: resource.name });
    }
    let worked = false;
    try {
      for await (const events of watchEvents(body)) {
        if (signal.aborted) return true;
        for (const event of events) this.apply(event);
        worked = true;
        this.worked();
      }
    } finally {
      // One that ends sooner may have had more to tell.
      if (this.lived()) this.currentMs = this.now();
      this.isOpen = false;
    }
    worked ||= this.lived();
    if (worked) this.worked();
    return worked;
  }

  private apply({ type, object }: WatchEvent): void {
    if (type !== 'BOOKMARK') {
      const key = keyOf(object);
      const value = type === 'DELETED' ? null : this.projected(key, object);
      if (value === null) this.remove(key);
      else this.put(key, value);
    }
    const version = object.metadata?.resourceVersion;
    if (typeof version === 'string' && version !== '') this.state.resourceVersion = version;
  }

  /** What is kept of an object. One that cannot be understood is left out by name; the others are served. */
  private projected(key: string, object: ApiObject): T | null {
    if (key === '') return null;
    try {
      return this.options.project(object);
    } catch (error) {
      this.options.log('error', 'a kubernetes object is not as it should be, and is left out', {
        resource: this.state.resource,
        object: key,
        error: String(error),
      });
      return null;
    }
  }

  private lived(): boolean {
    return this.state.phase === 'watching' && this.now() - this.watchingSinceMs >= LIVED_MS;
  }

  private put(key: string, value: T): void {
    const before = this.copy.get(key);
    if (before !== undefined && isDeepStrictEqual(before, value)) return;
    this.copy.set(key, value);
    this.state.objects = this.copy.size;
    this.options.onChange(key, value, before);
  }

  private remove(key: string): void {
    const before = this.copy.get(key);
    if (before === undefined) return;
    this.copy.delete(key);
    this.state.objects = this.copy.size;
    this.options.onChange(key, undefined, before);
  }

  /** The server does what it should: the next failure is a first one. */
  private worked(): void {
    this.backoff.reset();
    this.doubts = 0;
    this.forgotten = false;
  }

  /** Notes a failure; returns how long to wait. */
  private failed(error: unknown): number {
    const { state } = this;
    const failure = error instanceof ApiError ? error : new ApiError('malformed', String(error), { cause: error });
    const watched = state.resourceVersion !== '';
    if (this.lived()) this.backoff.reset();
    if (failure.code === 'expired') {
      // Ordinary after a long silence, and above all when the server was away. The list that follows is not held back by
      // failures before this answer, only when this happens again and again.
      if (!this.forgotten) this.backoff.reset();
      this.forgotten = true;
      const waitMs = this.backoff.next(failure.retryAfterMs);
      this.options.log('info', 'kubernetes forgot the version that was reached: listing anew', {
        resource: state.resource,
        resourceVersion: state.resourceVersion,
        inMs: Math.round(waitMs),
      });
      state.resourceVersion = '';
      return waitMs;
    }
    state.failures++;
    if (watched && ['refused', 'malformed', 'not-found'].includes(failure.code) && ++this.doubts >= DOUBTS_MAX) {
      this.doubts = 0;
      state.resourceVersion = '';
    }
    const waitMs = this.backoff.next(failure.retryAfterMs);
    // Once per cause, or a server that is away for an hour fills the log.
    if (state.lastError !== failure.message) {
      this.options.log(levelOf(failure), 'kubernetes cannot be followed', {
        resource: state.resource,
        cause: failure.code,
        error: failure.message,
        hint: hintOf(failure, state.resource),
        retryInMs: Math.round(waitMs),
      });
    }
    state.lastError = failure.message;
    return waitMs;
  }
}

/** Key of an object; empty for something without a name. */
function keyOf({ metadata }: ApiObject): string {
  const name = metadata?.name;
  if (typeof name !== 'string' || name === '') return '';
  return typeof metadata?.namespace === 'string' && metadata.namespace !== '' ? `${metadata.namespace}/${name}` : name;
}

function levelOf({ code }: ApiError): LogLevel {
  return code === 'unreachable' || code === 'overloaded' ? 'warn' : 'error';
}

function hintOf({ code }: ApiError, resource: string): string | undefined {
  if (code === 'forbidden') return `the service account needs list and watch on ${resource} in every namespace`;
  if (code === 'unauthenticated') return 'the token or client certificate is not accepted, or no longer';
  return undefined;
}
