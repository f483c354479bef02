// How many connections the process may have, from the limit of open file descriptors.
// Pure; runs once at start. A connection, to a client or to an upstream, is one descriptor.

/** Descriptors for Node.js itself, log files, DNS, the admin port and its clients. */
const PROCESS_DESCRIPTORS = 128;

/** Descriptors of each packet thread beside its listening sockets: event loops and wake-ups. */
const WORKER_DESCRIPTORS = 16;

/** Fewest connection slots with which a worker is of use. */
const WORKER_CONNECTIONS_MIN = 64;

/**
 * Most connection slots of a worker unless configured. Containers often allow 2^20 descriptors or
 * more, and each slot has a few bytes of bookkeeping from the start.
 */
const WORKER_CONNECTIONS_AUTO_MAX = 131_072;

/** What capacity is derived from. */
export interface CapacityInput {
  workers: number;
  listeners: number;
  /** `limits.maxConnections`, for the whole process. */
  maxConnections: number | 'auto';
  /** Soft limit of open descriptors. */
  descriptorLimit: number;
}

/** Connection slots of each worker, or one sentence why the limit is too low. */
export function workerConnections(input: CapacityInput): { connectionsMax: number } | { sentence: string } {
  const { workers, listeners, maxConnections, descriptorLimit } = input;
  const fixed = PROCESS_DESCRIPTORS + workers * (WORKER_DESCRIPTORS + listeners);
  const wanted = maxConnections === 'auto' ? WORKER_CONNECTIONS_MIN : Math.max(1, Math.ceil(maxConnections / workers));
  const needed = fixed + workers * wanted;
  if (descriptorLimit < needed) {
    const what = maxConnections === 'auto' ? `${workers} worker(s)` : `limits.maxConnections of ${maxConnections}`;
    return {
      sentence:
        `too few file descriptors: ${what} need at least ${needed}, and the limit is ${descriptorLimit} ` +
        '(raise it with `ulimit -n` or LimitNOFILE=).',
    };
  }
  if (maxConnections !== 'auto') return { connectionsMax: wanted };
  const connectionsMax = Math.min(Math.floor((descriptorLimit - fixed) / workers), WORKER_CONNECTIONS_AUTO_MAX);
  return { connectionsMax };
}
