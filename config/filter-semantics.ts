// Checks of filters that the schema cannot say: keys that go with types, combinations that make no sense, and
// rules without backends.
//
// Control thread. Like semantics.ts it takes nothing for granted about shapes and skips what is wrong already.
// Spec: Gateway API HTTPRouteFilter (validation rules), HTTPPathModifier, HTTPCORSFilter; Fetch standard §3.2.3.

import { Cors } from '../core/exchange/cors.ts';
import { RESPONSE_LINES_BYTES_MAX } from '../core/io/arena.ts';
import type { CorsSettings } from '../core/workers/filter-settings.ts';
import { describeValue } from './errors.ts';
import { composed, headEdits, linesBytes } from './filter-normalise.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse } from './semantics-walk.ts';
import { pathText } from './validate.ts';
import type { Path } from './yaml.ts';

/** Key of the settings of each type that has some. */
const members: Record<string, string> = {
  RequestHeaderModifier: 'requestHeaderModifier',
  ResponseHeaderModifier: 'responseHeaderModifier',
  RequestRedirect: 'requestRedirect',
  URLRewrite: 'urlRewrite',
  DirectResponse: 'directResponse',
  CORS: 'cors',
  FaultInjection: 'faultInjection',
};

/** Types that take a rule's requests away from its backends. */
const answering = ['RequestRedirect', 'DirectResponse'];

/** Most bytes of the lines that the filters of one kind of head add: half of what there is room for. */
const LINES_BYTES_MAX = RESPONSE_LINES_BYTES_MAX / 2;

/** Most bytes of the lines of CORS. What is left of the room is for sessions, cookies and rate limits. */
const CORS_BYTES_MAX = (RESPONSE_LINES_BYTES_MAX * 3) / 8;

/** Statuses whose responses have no body. */
const bodyless = [204, 205, 304];

/** Reports all violations. */
export function checkFilters(root: Mapping, report: Report): void {
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    const isHttp = route.kind === undefined || route.kind === 'HTTP';
    for (const [rule, at] of mappings(route.rules, [...path, 'rules'])) {
      const ruleTypes = checkList(rule.filters, [...at, 'filters'], report);
      checkBackendRefs(rule, at, ruleTypes, report);
      for (const [ref, refPath] of mappings(rule.backendRefs, [...at, 'backendRefs'])) {
        if (!isHttp && ref.filters !== undefined) {
          const problem = `has no meaning in a route of kind ${route.kind}`;
          refuse(report, [...refPath, 'filters'], problem, 'no filters', undefined, 'key');
          continue;
        }
        checkList(ref.filters, [...refPath, 'filters'], report);
        checkRewrites(rule, ref, refPath, at, report);
        checkBytes(rule, ref, [...refPath, 'filters'], report);
      }
      checkCombinations(rule, at, report);
      checkBytes(rule, undefined, [...at, 'filters'], report);
    }
  }
}

/** Checks each filter of a list; gives the types that are there. */
function checkList(list: unknown, path: Path, report: Report): Set<string> {
  const first = new Map<string, Path>();
  for (const [filter, at] of mappings(list, path)) {
    const { type } = filter;
    if (typeof type !== 'string') continue;
    const member = members[type];
    for (const [other, key] of Object.entries(members)) {
      if (filter[key] === undefined || other === type) continue;
      refuse(report, [...at, key], `belongs to type: ${other}, not ${type}`, member ?? 'no such key', undefined, 'key');
    }
    const earlier = first.get(type);
    if (earlier === undefined) {
      first.set(type, at);
    } else if (member !== undefined || type === 'GrpcWeb') {
      const problem = `the filter ${type} is there already (${pathText(earlier)})`;
      refuse(report, [...at, 'type'], problem, 'one filter of this type');
    }
    if (member === undefined) continue;
    const settings = filter[member];
    if (settings === undefined)
      refuse(report, at, `key "${member}" is missing`, `a mapping, as type: ${type} needs it`);
    else if (isMapping(settings)) checkSettings(type, settings, [...at, member], report);
  }
  return new Set(first.keys());
}

function checkSettings(type: string, settings: Mapping, path: Path, report: Report): void {
  switch (type) {
    case 'RequestHeaderModifier':
    case 'ResponseHeaderModifier':
      checkModifier(settings, path, report);
      return;
    case 'RequestRedirect':
      if (isMapping(settings.path)) checkPath(settings.path, [...path, 'path'], report);
      if (['scheme', 'hostname', 'path', 'port'].every((key) => settings[key] === undefined)) {
        refuse(report, path, 'redirects every request to itself', 'a scheme, hostname, path or port');
      }
      return;
    case 'URLRewrite':
      if (isMapping(settings.path)) checkPath(settings.path, [...path, 'path'], report);
      if (settings.hostname === undefined && settings.path === undefined) {
        refuse(report, path, 'changes nothing', 'a hostname or a path');
      }
      return;
    case 'DirectResponse':
      checkDirect(settings, path, report);
      return;
    case 'CORS':
      checkCors(settings, path, report);
      return;
    case 'FaultInjection':
      checkFault(settings, path, report);
  }
}

function checkModifier(settings: Mapping, path: Path, report: Report): void {
  const seen = new Map<string, Path>();
  let count = 0;
  const see = (name: unknown, at: Path): void => {
    count++;
    if (typeof name !== 'string') return;
    const lower = name.toLowerCase();
    const earlier = seen.get(lower);
    if (earlier === undefined) seen.set(lower, at);
    else refuse(report, at, `${describeValue(name)} is there already (${pathText(earlier)})`, 'each field once');
  };
  for (const key of ['set', 'add']) {
    for (const [field, at] of mappings(settings[key], [...path, key])) see(field.name, [...at, 'name']);
  }
  for (const [name, at] of items(settings.remove, [...path, 'remove'])) see(name, at);
  if (count === 0) refuse(report, path, 'changes nothing', 'set, add or remove');
}

/** The value of a path must be the one that its type means. */
function checkPath(settings: Mapping, path: Path, report: Report): void {
  const { type } = settings;
  if (type !== 'ReplaceFullPath' && type !== 'ReplacePrefixMatch') return;
  const full = type === 'ReplaceFullPath';
  const [needed, other] = full ? ['replaceFullPath', 'replacePrefixMatch'] : ['replacePrefixMatch', 'replaceFullPath'];
  if (settings[needed] === undefined) refuse(report, path, `key "${needed}" is missing`, 'a path such as /cart');
  if (settings[other] === undefined) return;
  refuse(report, [...path, other], `belongs to the other type of path, not ${type}`, needed, undefined, 'key');
}

function checkDirect(settings: Mapping, path: Path, report: Report): void {
  const { statusCode, body, bodyFile } = settings;
  const bodyKey = bodyFile === undefined ? 'body' : 'bodyFile';
  if (body !== undefined && bodyFile !== undefined) {
    refuse(report, [...path, 'bodyFile'], 'there is a body as well', 'body or bodyFile', undefined, 'key');
  } else if ((body !== undefined || bodyFile !== undefined) && bodyless.includes(statusCode as number)) {
    const problem = `a response with status ${statusCode} has no body`;
    refuse(report, [...path, bodyKey], problem, 'no body, or another status', undefined, 'key');
  }
  if (settings.contentType !== undefined && body === undefined && bodyFile === undefined) {
    refuse(report, [...path, 'contentType'], 'there is no body', 'body or bodyFile', undefined, 'key');
  }
}

function checkCors(settings: Mapping, path: Path, report: Report): void {
  for (const key of ['allowOrigins', 'allowMethods', 'allowHeaders', 'exposeHeaders']) {
    const list = settings[key];
    if (!Array.isArray(list) || list.length < 2 || !list.includes('*')) continue;
    refuse(report, [...path, key, list.indexOf('*')], '"*" stands beside others', '["*"] alone, or no "*"');
  }
  const exposed = settings.exposeHeaders;
  if (settings.allowCredentials === true && Array.isArray(exposed) && exposed.includes('*')) {
    const problem = '"*" means nothing to browsers where allowCredentials is true';
    refuse(report, [...path, 'exposeHeaders', exposed.indexOf('*')], problem, 'the names of the fields');
  }
  const bytes = corsBytes(settings);
  if (bytes <= CORS_BYTES_MAX) return;
  const problem = `the fields of a response may take ${bytes} bytes`;
  refuse(report, path, problem, `at most ${CORS_BYTES_MAX} bytes: fewer or shorter names`, undefined, 'key');
}

/** Most bytes of the lines that CORS adds to a response; lists that are no lists of texts count for nothing. */
function corsBytes(settings: Mapping): number {
  const texts = (key: string): string[] =>
    [...items(settings[key], [])].map(([item]) => item).filter((item) => typeof item === 'string');
  const whole: CorsSettings = {
    allowOrigins: texts('allowOrigins'),
    allowMethods: texts('allowMethods'),
    allowHeaders: texts('allowHeaders'),
    exposeHeaders: texts('exposeHeaders'),
    maxAgeSeconds: 0,
    allowCredentials: settings.allowCredentials === true,
  };
  return new Cors(whole).linesBytesMax;
}

function checkFault(settings: Mapping, path: Path, report: Report): void {
  const { delay, abort } = settings;
  if (delay === undefined && abort === undefined) {
    refuse(report, path, 'injects nothing', 'delay or abort');
    return;
  }
  if (!isMapping(abort)) return;
  const at = [...path, 'abort'];
  const { statusCode, grpcStatus } = abort;
  if (statusCode === undefined && grpcStatus === undefined) {
    refuse(report, at, 'says no status', 'statusCode or grpcStatus');
  } else if (statusCode !== undefined && grpcStatus !== undefined) {
    refuse(report, [...at, 'grpcStatus'], 'there is a statusCode as well', 'one of them', undefined, 'key');
  } else if (bodyless.includes(statusCode as number)) {
    const problem = `an answer with status ${statusCode} could not say what it is`;
    refuse(report, [...at, 'statusCode'], problem, 'a status whose responses have a body');
  }
}

/** backendRefs are left out where a filter answers, and only there. */
function checkBackendRefs(rule: Mapping, path: Path, types: Set<string>, report: Report): void {
  const answer = answering.find((type) => types.has(type));
  if (rule.backendRefs === undefined) {
    // Without any filter in question it is as if the schema had said so.
    if (answer === undefined) refuse(report, path, 'key "backendRefs" is missing', 'a list');
  } else if (answer !== undefined && Array.isArray(rule.backendRefs)) {
    const problem = `get no request, since the filter ${answer} answers all of them`;
    refuse(report, [...path, 'backendRefs'], problem, 'no backendRefs, or no such filter', undefined, 'key');
  }
}

function checkCombinations(rule: Mapping, path: Path, report: Report): void {
  const filters = [...mappings(rule.filters, [...path, 'filters'])];
  const find = (type: string): [Mapping, Path] | undefined => filters.find(([filter]) => filter.type === type);
  const redirect = find('RequestRedirect');
  const direct = find('DirectResponse');
  const rewrite = find('URLRewrite');
  const clash = ([, at]: [Mapping, Path], type: string, why: string): void =>
    refuse(report, [...at, 'type'], `${type} ${why}`, 'one of the two');
  if (redirect !== undefined && direct !== undefined) {
    clash(direct, 'DirectResponse', 'and RequestRedirect both answer the request');
  }
  if (rewrite !== undefined && redirect !== undefined) {
    clash(rewrite, 'URLRewrite', 'changes requests to backends, but RequestRedirect answers them');
  } else if (rewrite !== undefined && direct !== undefined) {
    clash(rewrite, 'URLRewrite', 'changes requests to backends, but DirectResponse answers them');
  }
  for (const [filter, at] of [redirect, rewrite].filter((found) => found !== undefined)) {
    const member = members[filter.type as string]!;
    checkPrefixes(rule, filter[member], [...at, member, 'path'], report);
  }
  if (find('CORS') === undefined) return;
  const modifier = find('ResponseHeaderModifier');
  if (modifier === undefined || !isMapping(modifier[0].responseHeaderModifier)) return;
  for (const key of ['set', 'add']) {
    const at = [...modifier[1], 'responseHeaderModifier', key];
    for (const [{ name }, fieldPath] of mappings(modifier[0].responseHeaderModifier[key], at)) {
      if (typeof name !== 'string' || !name.toLowerCase().startsWith('access-control-')) continue;
      refuse(report, [...fieldPath, 'name'], `${describeValue(name)} is what the filter CORS says`, 'one of the two');
    }
  }
}

/** A prefix can be replaced only where every match of the rule has one. */
function checkPrefixes(rule: Mapping, settings: unknown, path: Path, report: Report): void {
  if (!isMapping(settings) || !isMapping(settings.path) || settings.path.type !== 'ReplacePrefixMatch') return;
  for (const [match] of mappings(rule.matches, [])) {
    const type = isMapping(match.path) ? match.path.type : undefined;
    if (type === undefined || type === 'PathPrefix' || typeof type !== 'string') continue;
    const problem = `"ReplacePrefixMatch" replaces a prefix, but a match of the rule is of type ${type}`;
    refuse(report, [...path, 'type'], problem, 'ReplaceFullPath, or matches of type PathPrefix only');
    return;
  }
}

/** A path or host is rewritten once: by the rule, or by the reference. */
function checkRewrites(rule: Mapping, ref: Mapping, refPath: Path, rulePath: Path, report: Report): void {
  const own = [...mappings(ref.filters, [...refPath, 'filters'])].find(([{ type }]) => type === 'URLRewrite');
  if (own === undefined) return;
  const [filter, at] = own;
  checkPrefixes(rule, filter.urlRewrite, [...at, 'urlRewrite', 'path'], report);
  const other = [...mappings(rule.filters, [...rulePath, 'filters'])].find(([{ type }]) => type === 'URLRewrite');
  if (other === undefined) return;
  refuse(report, [...at, 'type'], `the rule has URLRewrite already (${pathText(other[1])})`, 'one of the two');
}

/** The lines that filters add have bounded room in a head. */
function checkBytes(rule: Mapping, ref: Mapping | undefined, path: Path, report: Report): void {
  if (ref !== undefined && ref.filters === undefined) return;
  for (const [type, member] of Object.entries(members).slice(0, 2)) {
    const editsOf = (holder: Mapping | undefined) => {
      const filter = [...mappings(holder?.filters, [])].find(([found]) => found.type === type)?.[0][member];
      return isWholeModifier(filter) ? headEdits(filter) : null;
    };
    const bytes = linesBytes(composed(editsOf(rule), editsOf(ref)));
    if (bytes <= LINES_BYTES_MAX) continue;
    const problem = `the fields that ${type} adds take ${bytes} bytes`;
    refuse(report, path, problem, `at most ${LINES_BYTES_MAX} bytes`, undefined, 'key');
    return;
  }
}

type Modifier = NonNullable<Parameters<typeof headEdits>[0]>;

function isWholeModifier(value: unknown): value is Modifier {
  if (!isMapping(value)) return false;
  const fields = [...items(value.set, []), ...items(value.add, [])].map(([field]) => field);
  const names = [...items(value.remove, [])].map(([name]) => name);
  if (![value.set, value.add, value.remove].every((list) => list === undefined || Array.isArray(list))) return false;
  return (
    names.every((name) => typeof name === 'string') &&
    fields.every((field) => isMapping(field) && typeof field.name === 'string' && typeof field.value === 'string')
  );
}
