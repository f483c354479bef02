// The 10,000 routes of the many-routes and reload scenarios: 1,000 hostnames with 10 path prefixes
// each. Every peer writes them in its own configuration language.

/** Number of hostnames. */
export const ROUTE_HOSTS = 1000;
/** Path prefixes of each hostname. */
export const ROUTE_PREFIXES = 10;
/** A hostname that only a reloaded configuration routes. */
export const NEW_HOST = 'new.example';

/** Hostname number `index`, 0 to ROUTE_HOSTS - 1. */
export function hostName(index: number): string {
  return `h${index}.example`;
}

/** Path prefix number `index`, 0 to ROUTE_PREFIXES - 1; requests add `/item`. */
export function routePrefix(index: number): string {
  return `/p${index}`;
}

/** All hostnames. */
export function allHosts(): string[] {
  return Array.from({ length: ROUTE_HOSTS }, (_, index) => hostName(index));
}

/** All path prefixes. */
export function allPrefixes(): string[] {
  return Array.from({ length: ROUTE_PREFIXES }, (_, index) => routePrefix(index));
}
