// Checks of the filters Compression and RequestMirror that the schema cannot say.
// Control thread. Takes nothing for granted about shapes, see semantics.ts.
// Spec: Gateway API HTTPRequestMirrorFilter (percent or fraction, not both), filters that may not be repeated.

import { checkReference, isMapping, type Mapping, mappings, names, type Report, refuse } from './semantics-walk.ts';
import type { Path } from './yaml.ts';

/** Members of filters, and the type that each is for. */
const members = [
  ['compression', 'Compression'],
  ['requestMirror', 'RequestMirror'],
] as const;

/** Checks the filters of all HTTP rules. */
export function checkCompressionAndMirrors(root: Mapping, report: Report): void {
  const backends = names(root.backends);
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    for (const [rule, rulePath] of mappings(route.rules, [...path, 'rules'])) {
      checkFilters(rule, rulePath, backends, report);
    }
  }
}

function checkFilters(rule: Mapping, path: Path, backends: Set<string> | undefined, report: Report): void {
  let compressions = 0;
  for (const [filter, at] of mappings(rule.filters, [...path, 'filters'])) {
    if (filter.type === 'Compression' && ++compressions > 1) {
      refuse(report, [...at, 'type'], 'the filter Compression is there already', 'one filter of this type');
    }
    if (filter.type === 'RequestMirror' && filter.requestMirror === undefined) {
      refuse(report, at, 'key "requestMirror" is missing', 'a mapping with a backendRef', undefined, 'key');
    }
    for (const [member, type] of members) {
      if (filter[member] === undefined || filter.type === type || typeof filter.type !== 'string') continue;
      refuse(report, [...at, member], `belongs to type: ${type}, not ${filter.type}`, 'no such key', undefined, 'key');
    }
    if (filter.type === 'RequestMirror') checkMirror(filter, at, backends, report);
  }
}

function checkMirror(filter: Mapping, at: Path, backends: Set<string> | undefined, report: Report): void {
  const { requestMirror: mirror } = filter;
  if (!isMapping(mirror)) return;
  const mirrorPath = [...at, 'requestMirror'];
  if (isMapping(mirror.backendRef)) {
    checkReference(mirror.backendRef.name, [...mirrorPath, 'backendRef', 'name'], 'backend', backends, report);
  }
  if (mirror.fraction === undefined) return;
  if (mirror.percent !== undefined) {
    refuse(
      report,
      [...mirrorPath, 'fraction'],
      'percent says already how many are mirrored',
      'one of them',
      undefined,
      'key',
    );
  }
  if (!isMapping(mirror.fraction)) return;
  const { numerator, denominator = 100 } = mirror.fraction;
  if (typeof numerator !== 'number' || typeof denominator !== 'number' || numerator <= denominator) return;
  refuse(
    report,
    [...mirrorPath, 'fraction', 'numerator'],
    `${numerator} of ${denominator} is more than all`,
    'at most the denominator',
  );
}
