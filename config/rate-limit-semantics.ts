// Checks of rate limits (what the schema cannot say of one, and what clashes between those of one name) and of
// adaptive concurrency.
//
// Control thread. Like semantics.ts it takes nothing for granted about shapes and skips what is wrong already.

import { adaptiveConcurrencySchema } from './adaptive-schema.ts';
import { describeValue } from './errors.ts';
import { nodeOf } from './schema-builder.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse, unique } from './semantics-walk.ts';
import { parseDurationMs } from './units.ts';
import { pathText } from './validate.ts';
import type { Path } from './yaml.ts';

const { minLimit: minLimitNode, maxLimit: maxLimitNode } = nodeOf(adaptiveConcurrencySchema).properties!;
const LIMIT_MIN_DEFAULT = minLimitNode!.default;
const LIMIT_MAX_DEFAULT = maxLimitNode!.default;

/** Most requests per millisecond. */
const RATE_MAX = 1000;

/** Reports all violations. */
export function checkRateLimits(root: Mapping, report: Report): void {
  const known = new Map<string, { text: string; path: Path }>();
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    for (const [rule, rulePath] of mappings(route.rules, [...path, 'rules'])) {
      const names = new Map<string, Path>();
      for (const [limit, at] of mappings(rule.rateLimits, [...rulePath, 'rateLimits'])) {
        unique(names, limit.name, [...at, 'name'], 'the name', 'each limit of a rule once', report);
        checkLimit(root, limit, at, report);
        if (typeof limit.name !== 'string') continue;
        const text = meaningOf(limit);
        const first = known.get(limit.name);
        if (first === undefined) {
          known.set(limit.name, { text, path: at });
        } else if (first.text !== text) {
          refuse(
            report,
            [...at, 'name'],
            `${describeValue(limit.name)} is not the limit that ${pathText(first.path)} has by this name`,
            'the same keys and values wherever a limit is used, or another name',
          );
        }
      }
    }
  }
}

function checkLimit(root: Mapping, limit: Mapping, path: Path, report: Report): void {
  const periodMs = limit.period === undefined ? 1000 : parseDurationMs(String(limit.period));
  if (typeof limit.requests === 'number' && periodMs !== undefined && periodMs > 0) {
    if (limit.requests / periodMs > RATE_MAX) {
      const per = limit.period === undefined ? '1s' : String(limit.period);
      refuse(
        report,
        [...path, 'requests'],
        `${limit.requests} in ${per} are more than a million in a second`,
        `at most ${Math.floor(periodMs * RATE_MAX)}`,
      );
    }
  }
  for (const [part, at] of items(limit.key, [...path, 'key'])) {
    if (!isMapping(part)) continue;
    const keys = Object.keys(part).filter((key) => key === 'header' || key === 'jwtClaim');
    if (keys.length !== 1) {
      const problem = keys.length === 0 ? 'says nothing' : 'has both header and jwtClaim';
      refuse(report, at, problem, 'header or jwtClaim; several are items of their own');
    }
  }
  if (limit.global === true && root.redis === undefined) {
    refuse(report, [...path, 'global'], 'there is no redis to count in', 'a section redis with an address');
  }
}

/** Reports limits of adaptive concurrency that leave no room between them. */
export function checkAdaptiveConcurrency(root: Mapping, report: Report): void {
  for (const [{ adaptiveConcurrency: adaptive }, path] of mappings(root.backends, ['backends'])) {
    if (!isMapping(adaptive)) continue;
    const { minLimit = LIMIT_MIN_DEFAULT, maxLimit = LIMIT_MAX_DEFAULT } = adaptive;
    if (typeof minLimit !== 'number' || typeof maxLimit !== 'number' || minLimit <= maxLimit) continue;
    const key = adaptive.maxLimit === undefined ? 'minLimit' : 'maxLimit';
    const problem =
      key === 'maxLimit'
        ? `${maxLimit} is less than minLimit (${minLimit})`
        : `${minLimit} is more than maxLimit (${maxLimit})`;
    const expected = key === 'maxLimit' ? `at least ${minLimit}` : `at most ${maxLimit}`;
    refuse(report, [...path, 'adaptiveConcurrency', key], problem, expected);
  }
}

/** What a limit says, whatever the order of its keys. */
function meaningOf(limit: Mapping): string {
  return JSON.stringify(Object.entries(limit).sort(([a], [b]) => (a < b ? -1 : 1)));
}
