// How a backend's requests are spread over its endpoints, and where an endpoint belongs, as plain data.
// Compiled by config/, part of a snapshot.

/** Balancing policies; one file each beside this one. */
export type BalancerPolicy = 'RoundRobin' | 'LeastRequest' | 'Random' | 'RingHash' | 'Maglev' | 'PeakEWMA';

/** Where the key of a consistent-hash policy comes from. */
export type HashKeySettings =
  | { type: 'header' /** Lower case. */; name: string }
  /** `ttlS` null: the cookie is only read; else it is made when it is missing; 0: until the browser closes. */
  | { type: 'cookie'; name: string; ttlS: number | null /** Empty: no Path attribute. */; path: string }
  | { type: 'sourceAddress' }
  | { type: 'queryParam'; name: string };

/** Ramp of endpoints that have just come into use. */
export interface SlowStartSettings {
  windowMs: number;
  /** The share of the time that has passed is raised to 1/aggression; 1: linear. */
  aggression: number;
  minWeightPercent: number;
}

/** Settings of a balancer. */
export interface BalancerSettings {
  policy: BalancerPolicy;
  /** LeastRequest: endpoints of which the least busy is taken. */
  choiceCount: number;
  /** RingHash: points on the ring. */
  ringSizeMin: number;
  ringSizeMax: number;
  /** Maglev: places of the table, a prime. */
  tableSize: number;
  /** PeakEWMA: time in which an old latency loses its weight. */
  decayMs: number;
  /** RingHash and Maglev: the first of these that a request has. */
  hashOn: HashKeySettings[];
  /** Below this share of usable endpoints a level uses all of them; 0: never. */
  panicThresholdPercent: number;
  /** Capacity that a priority level has above what it needs, 140 for a factor of 1.4. */
  overprovisioningPercent: number;
  /** Null: zones do not matter. */
  zoneAware: { /** Zone of this node. */ zone: string; endpointsMin: number } | null;
  slowStart: SlowStartSettings | null;
}

/** Settings of a backend that says nothing. */
export const defaultBalancer: BalancerSettings = {
  policy: 'RoundRobin',
  choiceCount: 2,
  ringSizeMin: 1024,
  ringSizeMax: 8_388_608,
  tableSize: 65_537,
  decayMs: 10_000,
  hashOn: [],
  panicThresholdPercent: 50,
  overprovisioningPercent: 140,
  zoneAware: null,
  slowStart: null,
};

/** Where an endpoint belongs. */
export interface EndpointPlace {
  /** 0 is used first. */
  priority: number;
  /** Empty: not known. */
  zone: string;
  labels: Record<string, string>;
}

/** The place of an endpoint of which nothing is said. */
export const defaultPlace: EndpointPlace = { priority: 0, zone: '', labels: {} };

/** Session persistence of a rule (Gateway API SessionPersistence). */
export interface SessionPersistenceSettings {
  type: 'Cookie' | 'Header';
  /** Name of the cookie, or of the header field in lower case. */
  name: string;
  /** Whole seconds; 0: no limit. */
  absoluteTimeoutS: number;
  idleTimeoutS: number;
  /** The cookie outlives the browser's session: it has Max-Age. */
  permanent: boolean;
  path: string;
  sameSite: 'Strict' | 'Lax' | 'None';
  /** What the names of endpoints are keyed with. */
  secret: string;
}

/** Labels that a backend reference asks for, sorted by name. */
export type SubsetSettings = [name: string, value: string][];
