// What the gateway's own judgement says of traffic policies: rules and settings that are valid and hardly meant.
//
// The command line; nobody who serves waits for it. Left out is what only a gateway has, what depends on the number of
// endpoints, which come and go in a mesh, and what other policies may make use of.

import { pathText } from '../../config/validate.ts';
import { judge, type WarningName, warningNames } from '../../config/warnings.ts';
import type { Path } from '../../config/yaml.ts';
import { asGateway, pathInPolicy } from './traffic-rules.ts';

const NAMES = [
  ...(['shadowed-rule', 'shadowed-match', 'zero-weight', 'timeout-nesting', 'retry-time', 'unsafe-retry'] as const),
  ...(['retry-amplification', 'active-fault', 'ineffective-policy', 'impossible-threshold'] as const),
  'credentials-everywhere',
] as const satisfies WarningName[];

/** Name of a warning about a traffic policy. */
export type TrafficWarningName = (typeof NAMES)[number];

/** Names of warnings, and what they mean: those of a gateway that are about rules, too. */
export const trafficWarnings = Object.fromEntries(NAMES.map((name) => [name, warningNames[name]])) as Record<
  TrafficWarningName,
  string
>;

/** A warning; the path starts with `rules` or `backend`. */
export interface TrafficFinding {
  name: TrafficWarningName;
  path: Path;
  part: 'key' | 'value';
  problem: string;
}

/** Judges what `configuration` of a valid policy for a service means. */
export function judgeTraffic(configuration: string, service: string): TrafficFinding[] {
  return judge(asGateway(configuration, service)).flatMap(({ name, path, part, message }) => {
    const own = pathInPolicy(path);
    if (own === null || !isOfTraffic(name) || isOfOthers(own)) return [];
    // A service has no route: the policy is what stands for one.
    const text = message.replaceAll(pathText(path), pathText(own)).replaceAll(' of this route', ' of this policy');
    return [{ name, path: own, part, problem: `spec.${text.replaceAll('the gateway itself', 'the proxy itself')}` }];
  });
}

function isOfTraffic(name: WarningName): name is TrafficWarningName {
  return (NAMES as readonly WarningName[]).includes(name);
}

/** Retries and priorities come from rules of other services, too, that lead to this one. */
function isOfOthers([section, key]: Path): boolean {
  return section === 'backend' && key === 'circuitBreaker';
}
