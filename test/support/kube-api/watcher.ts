// One watch of the API server for tests: events as lines, in the form, order and pieces that a test asks for.
// Spec: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks".

import type { ServerResponse } from 'node:http';
import { createGzip, type Gzip } from 'node:zlib';
import type { Predicate, ResourceType } from './resources.ts';
import type { Refusal } from './status.ts';
import type { StoredObject, Write } from './store.ts';

/** A client that is so far behind is dropped, as the real server does. */
const BACKLOG_BYTES_MAX = 64 * 1024 * 1024;

/** What a watch has been asked for. */
export interface WatchRequest {
  type: ResourceType;
  matches: Predicate;
  bookmarks: boolean;
  /** Writes up to here are known to the client. */
  after: number;
  /** Makes what is sent of an object. */
  present: (object: StoredObject) => object;
}

/** A running watch. */
export class Watcher {
  readonly request: WatchRequest;
  private readonly response: ServerResponse;
  private readonly out: ServerResponse | Gzip;
  private held: string[] | null = null;
  private pieceBytes: number;
  private cutAfterBytes: number | null = null;
  private over = false;

  /** Sends the head at once. `pieceBytes`: the lines go out in pieces of this size; 0: whole. */
  constructor(request: WatchRequest, response: ServerResponse, options: { gzip: boolean; pieceBytes: number }) {
    this.request = request;
    this.response = response;
    this.pieceBytes = options.pieceBytes;
    response.on('close', () => {
      this.over = true;
    });
    const gzip = options.gzip ? { 'content-encoding': 'gzip' } : {};
    response.writeHead(200, { 'content-type': 'application/json', ...gzip });
    response.flushHeaders();
    if (options.gzip) {
      this.out = createGzip();
      this.out.pipe(response);
    } else this.out = response;
  }

  /** An object of the state that the watch begins with. */
  initial(object: StoredObject): void {
    if (this.request.matches(object)) this.line('ADDED', this.request.present(object));
  }

  /** A write: what it means to a client that sees a selection only. */
  write({ type, object, before, revision }: Write): void {
    const { matches, present, after } = this.request;
    if (revision <= after) return;
    const was = before !== undefined && matches(before);
    const is = type !== 'DELETED' && matches(object);
    if (is) this.line(was ? 'MODIFIED' : 'ADDED', present(object));
    else if (was) {
      const gone = structuredClone(before);
      gone.metadata.resourceVersion = String(revision);
      this.line('DELETED', present(gone));
    }
  }

  /** Everything up to a revision has been sent. */
  bookmark(revision: number): void {
    if (!this.request.bookmarks) return;
    const { group, version, kind } = this.request.type;
    const metadata = { resourceVersion: String(revision), creationTimestamp: null };
    this.line('BOOKMARK', { kind, apiVersion: group === '' ? version : `${group}/${version}`, metadata });
  }

  /** A failure in the stream; the watch ends with it. */
  error(refusal: Refusal): void {
    this.line('ERROR', refusal.body);
    this.end();
  }

  /** Any bytes. */
  raw(text: string): void {
    if (this.over) return;
    if (this.held !== null) {
      this.held.push(text);
      return;
    }
    if (this.response.writableLength > BACKLOG_BYTES_MAX) {
      this.destroy();
      return;
    }
    const bytes = Buffer.from(text);
    if (this.cutAfterBytes !== null) {
      const piece = bytes.subarray(0, Math.min(this.cutAfterBytes, bytes.length - 1));
      this.out.write(piece, () => this.destroy());
      this.over = true;
      return;
    }
    const size = this.pieceBytes === 0 ? bytes.length : this.pieceBytes;
    for (let start = 0; start < bytes.length; start += size) this.out.write(bytes.subarray(start, start + size));
    if (this.out !== this.response) (this.out as Gzip).flush();
  }

  /** The connection breaks in the middle of the next line, after so many bytes. */
  cutNextLine(afterBytes: number): void {
    this.cutAfterBytes = afterBytes;
  }

  /** Keeps what would be sent, until `release`. */
  hold(): void {
    this.held ??= [];
  }

  release(): void {
    const held = this.held ?? [];
    this.held = null;
    for (const text of held) this.raw(text);
  }

  /** The server ends the watch as it should. */
  end(): void {
    if (this.over) return;
    this.over = true;
    this.out.end();
  }

  /** The connection breaks. */
  destroy(): void {
    this.over = true;
    this.response.destroy();
  }

  private line(type: string, object: object): void {
    this.raw(`${JSON.stringify({ type, object })}\n`);
  }
}
