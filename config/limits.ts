// Limits and timeouts of HTTP: every number a user may tune, with its unit, default and reason.
//
// Control thread. Defaults are generous to honest traffic and bounded for the rest.
// Relations between limits are checked in semantics.ts.

import { duration, integer, integerOrAuto, size } from './kinds.ts';
import { mapping, maybe } from './schema-builder.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

/** Largest head: it must fit into one buffer of the arena together with what the rewrite adds. */
const HEAD_BYTES_MAX = 60 * KIB;

/** Schema of `limits`. */
export const limitsSchema = mapping(
  {
    maxRequestHeadSize: maybe(
      size({
        default: '32KiB',
        minBytes: KIB,
        maxBytes: HEAD_BYTES_MAX,
        description:
          'Largest request head: request line and header fields. A larger one is answered with 431. Room for large cookies and tokens, yet small enough that many slow clients cannot fill the memory.',
      }),
    ),
    maxResponseHeadSize: maybe(
      size({
        default: '32KiB',
        minBytes: KIB,
        maxBytes: HEAD_BYTES_MAX,
        description: 'Largest response head taken from a backend. A larger one is answered with 502.',
      }),
    ),
    maxHeaders: maybe(
      integer({
        default: 100,
        min: 1,
        max: 256,
        description: 'Most header fields of a request or response. A request with more is answered with 431.',
      }),
    ),
    maxUriLength: maybe(
      size({
        default: '8KiB',
        minBytes: 64,
        maxBytes: HEAD_BYTES_MAX,
        description:
          'Longest request target. A longer one is answered with 414. At most limits.maxRequestHeadSize; RFC 9112 §3 recommends at least 8000 bytes.',
      }),
    ),
    maxRequestBodySize: maybe(
      size({
        default: 0,
        minBytes: 1,
        maxBytes: 1024 * GIB,
        zero: 'no limit',
        description:
          'Largest request body. A larger one is answered with 413. Bodies are streamed and cost no memory, so the default leaves this to the backends.',
      }),
    ),
    maxRequestsPerConnection: maybe(
      integer({
        default: 0,
        min: 0,
        max: 1_000_000_000,
        zero: 'no limit',
        description: 'Requests after which a client connection is closed.',
      }),
    ),
    maxConnections: maybe(
      integerOrAuto({
        default: 'auto',
        min: 1,
        max: 10_000_000,
        description:
          'Most connections of the whole process, clients and backends together. `auto` derives it from the limit on open files.',
      }),
    ),
    bufferMemory: maybe(
      size({
        default: '256MiB',
        minBytes: 4 * MIB,
        maxBytes: 4 * GIB,
        description:
          'Memory for buffers, per worker. It is reserved at the start and costs resident memory only once used; idle connections use none.',
      }),
    ),
  },
  { default: {}, description: 'Limits on what clients and backends may send.' },
);

/** Schema of `timeouts` (of the whole gateway; those of a rule are in schema.ts). */
export const timeoutsSchema = mapping(
  {
    requestHead: maybe(
      duration({
        default: '10s',
        description:
          'Time for a whole request head, from its first byte (for the first request of a connection from the accept). Then 408. Stops clients that send a byte now and then.',
      }),
    ),
    idle: maybe(
      duration({
        default: '75s',
        description: 'Time that a kept-alive client connection may wait for its next request.',
      }),
    ),
    streamIdle: maybe(
      duration({
        default: '60s',
        description: 'Time without one byte of progress, in either direction, while a request is being served.',
      }),
    ),
    tlsHandshake: maybe(
      duration({
        default: '10s',
        description: 'Time for the TLS handshake of a client, from the accept. Then the connection is closed.',
      }),
    ),
    tunnelIdle: maybe(
      duration({
        default: '1h',
        zero: 'no limit',
        description: 'Time without one byte in either direction of a tunnel (WebSocket, CONNECT, TCP and TLS routes).',
      }),
    ),
  },
  {
    default: {},
    description: 'How long the gateway waits. Timeouts of a rule are in routes[].rules[].timeouts.',
  },
);

/** What both sides can hold: 65,535 bytes is the window that every connection begins with (RFC 9113 §6.9.2). */
function windowSize(fallback: string, description: string) {
  return size({ default: fallback, minBytes: 64 * KIB, maxBytes: 64 * MIB, description });
}

/** Schema of `http2`: towards clients. */
export const http2Schema = mapping(
  {
    maxConcurrentStreams: maybe(
      integer({
        default: 128,
        min: 1,
        max: 10_000,
        description: 'Most requests at a time on one connection. Clients are told; more are refused.',
      }),
    ),
    streamWindow: maybe(windowSize('256KiB', 'Most bytes of one request body that wait here for the backend.')),
    connectionWindow: maybe(
      windowSize('1MiB', 'The same for all requests of a connection together; at least http2.streamWindow.'),
    ),
    maxResetsPerSecond: maybe(
      integer({
        default: 100,
        min: 1,
        max: 1_000_000,
        description:
          'Streams that a client may reset, or make the gateway reset, in one second. Then its connection is closed (CVE-2023-44487, CVE-2025-8671).',
      }),
    ),
    maxControlFramesPerSecond: maybe(
      integer({
        default: 1000,
        min: 10,
        max: 1_000_000,
        description:
          'Frames without use (SETTINGS, PING, PRIORITY, empty DATA and others) that a client may send in one second. Then its connection is closed.',
      }),
    ),
  },
  { default: {}, description: 'HTTP/2 with clients.' },
);

/** Schema of `backends[].http2`. */
export const backendHttp2Schema = mapping(
  {
    maxConcurrentStreams: maybe(
      integer({
        default: 100,
        min: 1,
        max: 10_000,
        description: 'Most requests at a time on one connection, if the backend does not allow fewer.',
      }),
    ),
    maxConnections: maybe(
      integer({ default: 4, min: 1, max: 10_000, description: 'Most connections to one endpoint, per worker.' }),
    ),
    pingInterval: maybe(
      duration({
        default: '30s',
        zero: 'never',
        description: 'A connection in use without a frame for this long is asked for a sign of life.',
      }),
    ),
    pingTimeout: maybe(
      duration({ default: '10s', description: 'A connection that leaves a ping unanswered for this long is closed.' }),
    ),
  },
  { default: {}, description: 'HTTP/2 connections to the endpoints; with protocol h2 or h2c only.' },
);
