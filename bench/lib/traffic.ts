// Traffic features as parts of Portcullis' configuration: what they cost when they do nothing, and when
// they work.

/** A set of features. */
export type TrafficSet = 'idle' | 'rate-limit' | 'headers' | 'retries' | 'mirror';

/** Where the features stand in the configuration: lines at the top, keys of the backend, keys of the rule. */
export interface TrafficConfig {
  top: string[];
  backend: string;
  rule: string;
}

/** The configuration of a set. */
export function trafficConfig(set: TrafficSet): TrafficConfig {
  return { top: [], backend: '', rule: '', ...configs[set] };
}

const configs: Record<TrafficSet, Partial<TrafficConfig>> = {
  idle: {},
  'rate-limit': {},
  headers: {},
  retries: {},
  mirror: {},
};
