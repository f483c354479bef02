// Names of rate limits by number: outcomes are kept as numbers (exchange/reasons.ts, DETAIL_LIMIT), and say
// which limit refused a request. One table per thread; a number never changes its name.

const names: string[] = [];

/** Learns the names of limits, at a snapshot. */
export function useLimitNames(limits: readonly { id: number; name: string }[]): void {
  for (const { id, name } of limits) names[id] = name;
}

/** The name of a limit; `limit_7` for one that this thread has not heard of. */
export function limitName(id: number): string {
  return names[id] ?? `limit_${id}`;
}
