// How the API server for tests understands the parameters of lists and watches.
// Spec: Kubernetes API concepts, "Resource versions", "Retrieving large results sets in chunks".

import type { Predicate, ResourceType } from './resources.ts';
import { expired, expiredContinue, Refusal, tooLarge } from './status.ts';
import type { Store, StoredObject } from './store.ts';

/** A page of a list. */
export interface Page {
  items: StoredObject[];
  metadata: Record<string, unknown>;
  /** From 1. */
  number: number;
}

/** What a continue token says: where to go on, at which revision (-1: the newest). */
interface Continuation {
  v: 'meta.k8s.io/v1';
  rv: number;
  start: string;
  page: number;
}

/** One page, or everything. Throws Refusal. */
export function listPage(store: Store, type: ResourceType, query: URLSearchParams, matches: Predicate): Page {
  const token = query.get('continue') ?? '';
  const asked = query.get('resourceVersion') ?? '';
  let limit = Number(query.get('limit') ?? 0);
  if (!Number.isInteger(limit) || limit < 0) throw new Refusal(400, 'BadRequest', 'limit is not a number');
  let from: Continuation = { v: 'meta.k8s.io/v1', rv: -1, start: '', page: 1 };
  if (token !== '') {
    if (asked !== '') {
      throw new Refusal(400, 'BadRequest', 'specifying resource version is not allowed when using continue');
    }
    from = decode(token);
    if (from.rv !== -1 && from.rv < store.compacted) throw expiredContinue(encode({ ...from, rv: -1 }));
  } else from.rv = listRevision(store, asked, query.get('resourceVersionMatch') ?? '');
  // From the cache everything comes at once.
  if (token === '' && asked === '0') limit = 0;
  const revision = from.rv === -1 ? store.revision : from.rv;
  const all = store.at(type.plural, revision).filter(([key, object]) => key >= from.start && matches(object));
  const count = limit === 0 ? all.length : limit;
  const metadata: Record<string, unknown> = { resourceVersion: String(revision) };
  const next = all[count];
  if (next !== undefined) {
    metadata.continue = encode({ v: 'meta.k8s.io/v1', rv: revision, start: next[0], page: from.page + 1 });
    if (!query.has('labelSelector') && !query.has('fieldSelector')) {
      metadata.remainingItemCount = all.length - count;
    }
  }
  return { items: all.slice(0, count).map(([, object]) => object), metadata, number: from.page };
}

/** Revision to list at; -1: the newest. */
function listRevision(store: Store, asked: string, match: string): number {
  if (asked === '') {
    if (match !== '') {
      const message =
        'resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided';
      throw new Refusal(422, 'Invalid', message);
    }
    return -1;
  }
  const revision = revisionOf(asked);
  if (revision > store.revision) throw tooLarge(revision, store.revision);
  if (match !== 'Exact') return -1;
  if (revision < store.compacted) throw expired(asked, store.compacted);
  return revision;
}

/** Where a watch begins. */
export interface Start {
  asked: string;
  /** Null: with the state as it is. */
  revision: number | null;
  expired: boolean;
}

/** Throws Refusal for a version that is none. One from the future is waited for, as the real server does. */
export function startOf(query: URLSearchParams, store: Store): Start {
  const asked = query.get('resourceVersion') ?? '';
  if (asked === '' || asked === '0') return { asked, revision: null, expired: false };
  const revision = revisionOf(asked);
  return { asked, revision, expired: revision < store.compacted };
}

function revisionOf(asked: string): number {
  if (!/^\d+$/.test(asked)) {
    throw new Refusal(
      400,
      'BadRequest',
      `resourceVersion: Invalid value: "${asked}": strconv.ParseUint: invalid syntax`,
    );
  }
  return Number(asked);
}

/** An object as PartialObjectMetadata. */
export function metadataOnly({ metadata }: StoredObject, typed: boolean): object {
  return typed ? { kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1', metadata } : { metadata };
}

function encode(continuation: Continuation): string {
  return Buffer.from(JSON.stringify(continuation)).toString('base64url');
}

function decode(token: string): Continuation {
  try {
    const value = JSON.parse(Buffer.from(token, 'base64url').toString()) as Continuation;
    if (value.v === 'meta.k8s.io/v1') return value;
  } catch {
    // Refused below.
  }
  throw new Refusal(400, 'BadRequest', 'continue key is not valid');
}
