// What every load generator reports, whatever its kind. Pure data and functions.

/** Errors that a generator counted, by kind. Any of them makes a round suspect. */
export interface LoadErrors {
  connect: number;
  read: number;
  write: number;
  timeout: number;
  /** Responses with a status of 400 and above. */
  status: number;
}

/** Figures of one run of a load generator. */
export interface LoadFigures {
  requests: number;
  durationUs: number;
  /** Bytes received; wrk counts heads, the others bodies only. */
  bytes: number;
  latencyP50Us: number;
  latencyP99Us: number;
  errors: LoadErrors;
}

/** No errors. */
export function noErrors(): LoadErrors {
  return { connect: 0, read: 0, write: 0, timeout: 0, status: 0 };
}

/** Sum of all errors of a run. */
export function errorCount(errors: LoadErrors): number {
  return errors.connect + errors.read + errors.write + errors.timeout + errors.status;
}

/** The errors that happened, for people: `2 read, 1 status`; empty when there were none. */
export function describeErrors(errors: LoadErrors): string {
  return Object.entries(errors)
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${count} ${kind}`)
    .join(', ');
}

/** The headers of a browser; with request line and Host an HTTP/1.1 head is about 350 bytes. */
export const BROWSER_HEADERS: Readonly<Record<string, string>> = {
  'User-Agent': 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
  Accept: 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8',
  'Accept-Language': 'en-US,en;q=0.5',
  'Accept-Encoding': 'gzip, deflate, br',
  Cookie: 'session=4f1c0a9be27d4d08; theme=dark; cart=18',
};
