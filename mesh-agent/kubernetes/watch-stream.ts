// The body of a watch: one JSON object per line, cut into pieces anywhere, ended at any time.
//
// A line that the connection broke off is no event: the version that was reached before it asks for it again.
// Nothing that came is passed over in silence: a line that is not an event ends the watch with an error.
// Control threads. Spec: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks".

import type { Readable } from 'node:stream';
import { ApiError, errorOfStatus } from './api-error.ts';

/**
 * Longest line. An object in etcd has at most 1.5 MiB by default, and is somewhat longer as JSON; far beyond that it
 * is not a watch that is being read.
 */
export const LINE_BYTES_MAX = 16 * 1024 * 1024;

/** What every object of Kubernetes may have; nothing of it can be relied upon. */
export interface ApiObject {
  metadata?: {
    name?: string;
    namespace?: string;
    uid?: string;
    resourceVersion?: string;
    creationTimestamp?: string;
    deletionTimestamp?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
}

/** An event of a watch. */
export interface WatchEvent {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK';
  object: ApiObject;
}

const TYPES = new Set(['ADDED', 'MODIFIED', 'DELETED', 'BOOKMARK']);
const LINE_FEED = 10;

/**
 * The events in `body`, several at a time as they arrive. Returns when the server ends the watch. Throws ApiError:
 * what an ERROR event says, `malformed` for what is not an event, `unreachable` when the connection breaks.
 */
export async function* watchEvents(body: Readable, lineBytesMax = LINE_BYTES_MAX): AsyncGenerator<WatchEvent[]> {
  const lines = new Lines(lineBytesMax);
  const chunks = body[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await nextChunk(chunks);
      if (next.done === true) return;
      const complete = lines.add(next.value);
      if (complete.length === 0) continue;
      const events: WatchEvent[] = [];
      for (const line of complete) {
        try {
          events.push(eventOf(line));
        } catch (error) {
          // What came before the failure counts.
          if (events.length > 0) yield events;
          throw error;
        }
      }
      yield events;
    }
  } finally {
    body.destroy();
  }
}

async function nextChunk(chunks: AsyncIterator<Buffer>): Promise<IteratorResult<Buffer>> {
  try {
    return await chunks.next();
  } catch (cause) {
    throw new ApiError('unreachable', `the watch broke off: ${(cause as Error).message}`, { cause });
  }
}

/** Cuts bytes into lines. Whole characters only: a line feed is never part of another character in UTF-8. */
class Lines {
  private readonly bytesMax: number;
  private rest: Buffer[] = [];
  private restBytes = 0;

  constructor(bytesMax: number) {
    this.bytesMax = bytesMax;
  }

  /** The lines that end in this chunk, without empty ones. */
  add(chunk: Buffer): string[] {
    const lines: string[] = [];
    let start = 0;
    for (let end = chunk.indexOf(LINE_FEED); end !== -1; end = chunk.indexOf(LINE_FEED, start)) {
      const piece = chunk.subarray(start, end);
      this.measure(piece.length);
      const line = this.rest.length === 0 ? piece.toString() : Buffer.concat([...this.rest, piece]).toString();
      this.rest = [];
      this.restBytes = 0;
      start = end + 1;
      if (line.trim() !== '') lines.push(line);
    }
    if (start < chunk.length) {
      this.measure(chunk.length - start);
      this.rest.push(chunk.subarray(start));
      this.restBytes += chunk.length - start;
    }
    return lines;
  }

  private measure(bytes: number): void {
    if (this.restBytes + bytes > this.bytesMax) {
      throw new ApiError('malformed', `a line of the watch has more than ${this.bytesMax} bytes`);
    }
  }
}

function eventOf(line: string): WatchEvent {
  let event: { type?: unknown; object?: unknown };
  try {
    event = JSON.parse(line);
  } catch (cause) {
    throw new ApiError('malformed', `a line of the watch is not JSON: ${(cause as Error).message}`, { cause });
  }
  const { type, object } = event ?? {};
  if (type === 'ERROR') throw errorOfStatus(object, 500);
  if (typeof type !== 'string' || !TYPES.has(type) || typeof object !== 'object' || object === null) {
    throw new ApiError('malformed', `a line of the watch is not an event: ${line.slice(0, 100)}`);
  }
  return { type: type as WatchEvent['type'], object };
}
