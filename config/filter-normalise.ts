// From filters as written to the settings that packet workers use.
//
// Control thread. Runs only on input that passed validation and semantic checks. What a backend reference does
// to heads is put together with what its rule does, so that workers apply one list of changes.

import { readFileSync } from 'node:fs';
import type { Static } from 'typebox';
import type {
  DirectResponseSettings,
  HeadEditSettings,
  HeadFilterSettings,
  PathRewriteSettings,
  RuleFilterSettings,
} from '../core/workers/filter-settings.ts';
import type { filtersSchema, refFiltersSchema } from './filter-schema.ts';
import { parseDurationMs } from './units.ts';

type RuleFilters = Static<typeof filtersSchema>;
type RefFilters = Static<typeof refFiltersSchema>;
type RuleFilter = RuleFilters[number];
type ModifierInput = NonNullable<RuleFilter['requestHeaderModifier']>;
type PathInput = NonNullable<NonNullable<RuleFilter['urlRewrite']>['path']>;

/** A match of a rule, as far as it matters here. */
type MatchInput = { path?: { type?: string; value?: string } };

/** Fields of CORS that a rule with that filter answers itself, whatever its backends say. */
const corsFields = [
  'access-control-allow-origin',
  'access-control-allow-credentials',
  'access-control-allow-methods',
  'access-control-allow-headers',
  'access-control-expose-headers',
  'access-control-max-age',
];

/** Percent to shares of a million. */
const SHARE_PER_PERCENT = 10_000;

/** Filters of a rule; null: none that changes or answers anything. `fileOf` gives absolute names. */
export function ruleFilters(
  filters: RuleFilters,
  matches: readonly MatchInput[],
  fileOf: (name: string) => string,
): RuleFilterSettings | null {
  const find = (type: RuleFilter['type']): RuleFilter | undefined => filters.find((filter) => filter.type === type);
  const redirect = find('RequestRedirect')?.requestRedirect;
  const rewrite = find('URLRewrite')?.urlRewrite;
  const direct = find('DirectResponse')?.directResponse;
  const cors = find('CORS')?.cors;
  const fault = find('FaultInjection')?.faultInjection;
  const response = headEdits(find('ResponseHeaderModifier')?.responseHeaderModifier);
  const settings: RuleFilterSettings = {
    requestHeaders: headEdits(find('RequestHeaderModifier')?.requestHeaderModifier),
    responseHeaders: cors === undefined ? response : composed({ drop: corsFields, lines: [] }, response),
    rewrite:
      rewrite === undefined
        ? null
        : { hostname: (rewrite.hostname ?? '').toLowerCase(), path: pathRewrite(rewrite.path, matches) },
    redirect:
      redirect === undefined
        ? null
        : {
            scheme: redirect.scheme ?? '',
            hostname: (redirect.hostname ?? '').toLowerCase(),
            path: pathRewrite(redirect.path, matches),
            port: redirect.port ?? 0,
            status: redirect.statusCode!,
          },
    direct: direct === undefined ? null : directResponse(direct, fileOf),
    cors:
      cors === undefined
        ? null
        : {
            allowOrigins: cors.allowOrigins.map((origin) => origin.toLowerCase()),
            allowMethods: cors.allowMethods ?? [],
            allowHeaders: cors.allowHeaders ?? [],
            exposeHeaders: cors.exposeHeaders ?? [],
            maxAgeSeconds: cors.maxAge!,
            allowCredentials: cors.allowCredentials!,
          },
    fault:
      fault === undefined
        ? null
        : {
            delayMs: fault.delay === undefined ? 0 : parseDurationMs(String(fault.delay.duration))!,
            delayShare: Math.round((fault.delay?.percent ?? 0) * SHARE_PER_PERCENT),
            abortStatus: fault.abort?.statusCode ?? 0,
            abortGrpcStatus: fault.abort?.grpcStatus ?? -1,
            abortShare: Math.round((fault.abort?.percent ?? 0) * SHARE_PER_PERCENT),
            headers: (fault.headers ?? []).map(({ name, value }) => ({ name: name.toLowerCase(), value })),
          },
  };
  return Object.values(settings).every((value) => value === null) ? null : settings;
}

/** Filters of a backend reference with those of its rule before them; null: none of its own. */
export function refFilters(
  filters: RefFilters,
  rule: RuleFilterSettings | null,
  matches: readonly MatchInput[],
): HeadFilterSettings | null {
  if (filters.length === 0) return null;
  const find = (type: RefFilters[number]['type']): RefFilters[number] | undefined =>
    filters.find((filter) => filter.type === type);
  const rewrite = find('URLRewrite')?.urlRewrite;
  return {
    requestHeaders: composed(
      rule?.requestHeaders ?? null,
      headEdits(find('RequestHeaderModifier')?.requestHeaderModifier),
    ),
    responseHeaders: composed(
      rule?.responseHeaders ?? null,
      headEdits(find('ResponseHeaderModifier')?.responseHeaderModifier),
    ),
    rewrite:
      rewrite === undefined
        ? (rule?.rewrite ?? null)
        : { hostname: (rewrite.hostname ?? '').toLowerCase(), path: pathRewrite(rewrite.path, matches) },
  };
}

/** Bytes of the lines that changes add. */
export function linesBytes(edits: HeadEditSettings | null): number {
  return (edits?.lines ?? []).reduce((sum, { name, value }) => sum + name.length + value.length + 4, 0);
}

/** What a modifier says; null when that is nothing. */
export function headEdits(modifier: ModifierInput | undefined): HeadEditSettings | null {
  if (modifier === undefined) return null;
  const { set = [], add = [], remove = [] } = modifier;
  const drop = new Set([...remove, ...set.map(({ name }) => name)].map((name) => name.toLowerCase()));
  const lines = [...set, ...add].map(({ name, value }) => ({ name: name.toLowerCase(), value }));
  return drop.size === 0 && lines.length === 0 ? null : { drop: [...drop], lines };
}

/** The changes of `first` and then of `second`, as one. */
export function composed(first: HeadEditSettings | null, second: HeadEditSettings | null): HeadEditSettings | null {
  if (first === null) return second;
  if (second === null) return first;
  const kept = first.lines.filter(({ name }) => !second.drop.includes(name));
  return { drop: [...new Set([...first.drop, ...second.drop])], lines: [...kept, ...second.lines] };
}

function pathRewrite(path: PathInput | undefined, matches: readonly MatchInput[]): PathRewriteSettings | null {
  if (path === undefined) return null;
  if (path.type === 'ReplaceFullPath') {
    return { type: 'ReplaceFullPath', value: path.replaceFullPath!, prefixes: [] };
  }
  const prefixes = matches.map((match) => withoutSlash(match.path?.value ?? '/'));
  if (prefixes.length === 0) prefixes.push('');
  return {
    type: 'ReplacePrefixMatch',
    value: withoutSlash(path.replacePrefixMatch!),
    prefixes: [...new Set(prefixes)].sort((a, b) => b.length - a.length),
  };
}

function withoutSlash(path: string): string {
  return path.endsWith('/') ? path.slice(0, -1) : path;
}

function directResponse(
  direct: NonNullable<RuleFilter['directResponse']>,
  fileOf: (name: string) => string,
): DirectResponseSettings {
  const body = direct.bodyFile === undefined ? Buffer.from(direct.body ?? '') : fileBytes(fileOf(direct.bodyFile));
  return {
    status: direct.statusCode!,
    contentType: body.length === 0 ? '' : direct.contentType!,
    body: body.toString('base64'),
  };
}

/** That the file is there and not too large has been checked (files.ts). */
function fileBytes(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch {
    return Buffer.alloc(0);
  }
}
