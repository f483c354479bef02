// Load balancing: from what is written to the settings of core/lb.
//
// Control thread. Runs only on input that passed validation and semantic checks, with defaults filled in.

import { createHash } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import {
  type BalancerSettings,
  defaultBalancer,
  defaultPlace,
  type EndpointPlace,
  type HashKeySettings,
  type SessionPersistenceSettings,
  type SubsetSettings,
} from '../core/lb/settings.ts';
import type { ConfigInput } from './schema.ts';
import { parseDurationMs } from './units.ts';

type BackendInput = ConfigInput['backends'][number];
type RuleInput = ConfigInput['routes'][number]['rules'][number];
type LoadBalancerInput = NonNullable<BackendInput['loadBalancer']>;
type HashKeyInput = NonNullable<LoadBalancerInput['hashOn']>[number];
type EndpointInput = Exclude<NonNullable<BackendInput['endpoints']>[number], string>;

/** Settings of a backend's balancer in a gateway of `zone` (empty: none), or null when nothing is special about it. */
export function balancerSettings(input: LoadBalancerInput, zone: string): BalancerSettings | null {
  const { zoneAware, slowStart } = input;
  const settings: BalancerSettings = {
    policy: input.policy!,
    choiceCount: input.choiceCount!,
    ringSizeMin: input.ringHash!.minimumRingSize!,
    ringSizeMax: input.ringHash!.maximumRingSize!,
    tableSize: input.maglev!.tableSize!,
    decayMs: durationMs(input.peakEwma!.decay!),
    hashOn: input.hashOn!.map(hashKey),
    panicThresholdPercent: input.panicThreshold!,
    overprovisioningPercent: input.overprovisioningFactor!,
    zoneAware: zoneAware === undefined ? null : { zone, endpointsMin: zoneAware.minEndpoints! },
    slowStart:
      slowStart === undefined
        ? null
        : {
            windowMs: durationMs(slowStart.window),
            aggression: slowStart.aggression!,
            minWeightPercent: slowStart.minWeightPercent!,
          },
  };
  return isDeepStrictEqual(settings, defaultBalancer) ? null : settings;
}

function hashKey(input: HashKeyInput): HashKeySettings {
  const { cookie } = input;
  if (input.header !== undefined) return { type: 'header', name: input.header.toLowerCase() };
  if (input.queryParam !== undefined) return { type: 'queryParam', name: input.queryParam };
  if (cookie === undefined) return { type: 'sourceAddress' };
  const ttlS = cookie.ttl === undefined ? null : wholeSeconds(cookie.ttl);
  return { type: 'cookie', name: cookie.name, ttlS, path: cookie.path ?? '' };
}

/** Where an endpoint belongs. */
export function endpointPlaceSettings(input: EndpointInput): EndpointPlace {
  const place: EndpointPlace = { priority: input.priority!, zone: input.zone ?? '', labels: input.labels ?? {} };
  return isDeepStrictEqual(place, defaultPlace) ? defaultPlace : place;
}

/** Labels of a subset, or null for all endpoints. */
export function subsetSettings(labels: Record<string, string> | undefined): SubsetSettings | null {
  const entries = Object.entries(labels ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  return entries.length === 0 ? null : entries;
}

/** Session persistence of a rule; `place` names the rule in the file. */
export function sessionSettings(input: RuleInput, place: string): SessionPersistenceSettings | null {
  const session = input.sessionPersistence;
  if (session === undefined) return null;
  const type = session.type!;
  const cookie = session.cookieConfig!;
  const sum = createHash('sha256').update(place).digest('hex').slice(0, 8);
  const name = session.sessionName ?? `${type === 'Cookie' ? 'portcullis' : 'x-portcullis-session'}-${sum}`;
  return {
    type,
    name: type === 'Header' ? name.toLowerCase() : name,
    absoluteTimeoutS: session.absoluteTimeout === undefined ? 0 : wholeSeconds(session.absoluteTimeout),
    idleTimeoutS: session.idleTimeout === undefined ? 0 : wholeSeconds(session.idleTimeout),
    permanent: type === 'Cookie' && cookie.lifetimeType === 'Permanent',
    path: cookiePath(input),
    sameSite: cookie.sameSite!,
    secret: session.secret ?? `portcullis ${place}`,
  };
}

/** Browsers take no notice of a longer attribute (RFC 6265bis §5.6). */
export const COOKIE_PATH_BYTES_MAX = 1024;

/** The path of the rule's only match, so that rules with different paths keep different sessions (GEP-1619); or all. */
function cookiePath({ matches }: RuleInput): string {
  const path = matches?.length === 1 ? matches[0]!.path : undefined;
  if (path === undefined || (path.type !== 'Exact' && path.type !== 'PathPrefix')) return '/';
  // A semicolon would end the attribute.
  const isGood = !path.value!.includes(';') && path.value!.length <= COOKIE_PATH_BYTES_MAX;
  const value = isGood ? path.value! : '/';
  return value.length > 1 ? value.replace(/\/$/, '') : value;
}

function wholeSeconds(value: string | number): number {
  return Math.ceil(durationMs(value) / 1000);
}

function durationMs(value: string | number): number {
  return parseDurationMs(String(value))!;
}
