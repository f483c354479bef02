// Lists a whole collection in pages, all of one moment where the server still knows that moment.
//
// Between two pages the server may forget the moment (410): then the list starts over, once in pages and after that
// in one piece, which cannot expire. Continuing with the token of the 410 answer would mix two moments, and objects
// that changed between them would be missed.
// Control threads. Spec: Kubernetes API concepts, "Retrieving large results sets in chunks".

import type { ApiClient } from './api-client.ts';
import { ApiError } from './api-error.ts';
import type { ApiObject } from './watch-stream.ts';

/** Objects of a page: a page of pods is then some 5 MB of JSON. */
export const PAGE_SIZE = 500;

/** More pages than any cluster has; a server that always says "continue" is not followed for ever. */
const PAGES_MAX = 100_000;

/** A collection of the API. */
export interface Resource {
  /** For people, such as `pods`. */
  name: string;
  /** Such as `/api/v1/pods`. */
  path: string;
  /** Only metadata is asked for: `PartialObjectMetadata`. */
  metadataOnly: boolean;
  labelSelector?: string;
  fieldSelector?: string;
}

/** Media types for lists or watches of a resource; plain JSON is what a server that knows no better sends. */
export function acceptFor(resource: Resource, kind: 'list' | 'watch'): string {
  if (!resource.metadataOnly) return 'application/json';
  const as = kind === 'list' ? 'PartialObjectMetadataList' : 'PartialObjectMetadata';
  return `application/json;as=${as};g=meta.k8s.io;v=v1,application/json`;
}

/** The parameters that lists and watches of a resource share. */
export function selectorsOf(resource: Resource): Record<string, string> {
  const { labelSelector, fieldSelector } = resource;
  return {
    ...(labelSelector === undefined ? {} : { labelSelector }),
    ...(fieldSelector === undefined ? {} : { fieldSelector }),
  };
}

/** What takes the pages of a list. */
export interface ListReceiver {
  /** The list starts (again): what came so far is void. */
  begin(): void;
  add(items: ApiObject[]): void;
}

/** Lists everything; returns the version that a watch goes on from. Throws ApiError. */
export async function listAll(
  client: Pick<ApiClient, 'json'>,
  resource: Resource,
  receiver: ListReceiver,
  options: { pageSize: number; signal: AbortSignal },
): Promise<string> {
  try {
    return await listOnce(client, resource, receiver, options);
  } catch (error) {
    if (!(error instanceof ApiError) || error.code !== 'expired') throw error;
  }
  try {
    return await listOnce(client, resource, receiver, options);
  } catch (error) {
    if (!(error instanceof ApiError) || error.code !== 'expired') throw error;
  }
  return listOnce(client, resource, receiver, { ...options, pageSize: 0 });
}

async function listOnce(
  client: Pick<ApiClient, 'json'>,
  resource: Resource,
  receiver: ListReceiver,
  { pageSize, signal }: { pageSize: number; signal: AbortSignal },
): Promise<string> {
  receiver.begin();
  let token = '';
  // No resourceVersion: the state must be no older than what was seen before, and only "the newest" says that.
  for (let page = 0; page < PAGES_MAX; page++) {
    const query: Record<string, string | number> = { ...selectorsOf(resource) };
    if (pageSize > 0) query.limit = pageSize;
    if (token !== '') query.continue = token;
    const answer = await client.json({ path: resource.path, query, accept: acceptFor(resource, 'list'), signal });
    const { items, version, next } = pageOf(answer, resource);
    receiver.add(items);
    if (next === '') return version;
    token = next;
  }
  throw new ApiError('malformed', `the list of ${resource.name} has no end`);
}

function pageOf(answer: unknown, resource: Resource): { items: ApiObject[]; version: string; next: string } {
  const list = answer as { items?: unknown; metadata?: { resourceVersion?: unknown; continue?: unknown } } | null;
  const version = list?.metadata?.resourceVersion;
  const next = list?.metadata?.continue ?? '';
  // An empty list of an older server has items: null.
  const items = list?.items ?? [];
  if (typeof version !== 'string' || version === '' || typeof next !== 'string' || !Array.isArray(items)) {
    throw new ApiError('malformed', `the list of ${resource.name} is not a list`);
  }
  return { items, version, next };
}
