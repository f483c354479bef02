// Who has field lines to add to a final response, see response-lines.ts. A file of its own, because those who
// have are called from there.

/** Bits of `Exchange.responseLines`: who has lines to add. */
export const ResponseLines = {
  /** Filters of a rule or a backend reference: ResponseHeaderModifier, CORS. */
  FILTERS: 1,
  SESSION: 2,
  RATE_LIMIT: 4,
  RETRY_AFTER: 8,
  /** The cookie of `hashOn`. */
  AFFINITY: 16,
} as const;
