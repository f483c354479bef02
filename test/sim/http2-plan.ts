// What is special about HTTP/2 in a run: how connections and streams behave, and how they break the rules.
//
// Drawn from a source of its own, and laid over plans that were drawn for HTTP/1.1.

import type { CodeName } from './http2-codec.ts';
import { type ClientPlan, hosts, limitedRequests, type RequestPlan, type Troubles } from './plan.ts';
import type { Random } from './random.ts';

/** How one side of a connection goes about HTTP/2. */
export interface Http2Manner {
  /** SETTINGS_INITIAL_WINDOW_SIZE announced first. */
  initialWindowBytes: number;
  /** What windows are filled up to, later, when less than half of it is left. */
  streamWindowBytes: number;
  connectionWindowBytes: number;
  /** Longest time until a window is filled up. */
  updateMsMax: number;
  /** Largest payload of DATA frames. */
  dataBytesMax: number;
  paddingChance: number;
  /** SETTINGS frames in the middle. */
  settingsChanges: number;
  /** PING frames, PRIORITY frames and frames of unknown types. */
  pings: number;
  oddFrames: number;
}

/** How a connection breaks the rules for connections. */
export type Fatality =
  | 'dataOnIdle'
  | 'resetOnIdle'
  | 'windowOnIdle'
  | 'evenStream'
  | 'settingsLength'
  | 'settingsWindow'
  | 'settingsOnStream'
  | 'windowOverflow'
  | 'windowZero'
  | 'continuationAlone'
  | 'interruptedBlock'
  | 'oversizedFrame'
  | 'badHpack'
  | 'paddingTooLong'
  | 'pingLength'
  | 'goawayOnStream'
  | 'pushPromise';

/** The error code that each must be answered with. */
export const fatalCodes: Readonly<Record<Fatality, CodeName>> = {
  dataOnIdle: 'PROTOCOL_ERROR',
  resetOnIdle: 'PROTOCOL_ERROR',
  windowOnIdle: 'PROTOCOL_ERROR',
  evenStream: 'PROTOCOL_ERROR',
  settingsLength: 'FRAME_SIZE_ERROR',
  settingsWindow: 'FLOW_CONTROL_ERROR',
  settingsOnStream: 'PROTOCOL_ERROR',
  windowOverflow: 'FLOW_CONTROL_ERROR',
  windowZero: 'PROTOCOL_ERROR',
  continuationAlone: 'PROTOCOL_ERROR',
  interruptedBlock: 'PROTOCOL_ERROR',
  oversizedFrame: 'FRAME_SIZE_ERROR',
  badHpack: 'COMPRESSION_ERROR',
  paddingTooLong: 'PROTOCOL_ERROR',
  pingLength: 'FRAME_SIZE_ERROR',
  goawayOnStream: 'PROTOCOL_ERROR',
  pushPromise: 'PROTOCOL_ERROR',
};

/** What is wrong with a request; the first group is found before anything of it goes upstream. */
export type Http2Malformed =
  | 'upperCase'
  | 'connectionField'
  | 'transferEncoding'
  | 'teGzip'
  | 'noMethod'
  | 'noPath'
  | 'emptyPath'
  | 'twoPaths'
  | 'latePseudo'
  | 'unknownPseudo'
  | 'status'
  | 'badMethod'
  | 'lineBreak'
  | 'nul'
  | 'colonInName'
  | 'hostMismatch'
  | 'badLength'
  | 'twoLengths'
  | 'selfDependency'
  | 'lengthWithoutBody'
  | 'bodyTooLong'
  | 'bodyTooShort'
  | 'openTrailers'
  | 'pseudoTrailers'
  | 'windowOverflow'
  | 'windowZero';

const lateKinds: readonly Http2Malformed[] = [
  'bodyTooLong',
  'bodyTooShort',
  'openTrailers',
  'pseudoTrailers',
  'windowOverflow',
  'windowZero',
];

/** Whether an upstream may see the head of such a request. */
export function isLate(kind: Http2Malformed | undefined): boolean {
  return kind !== undefined && lateKinds.includes(kind);
}

/** What is special about one request. */
export interface Http2RequestPlan {
  /** Cookie fields, to be joined for upstreams of HTTP/1.1. */
  cookies: number;
  te: boolean;
  malformed: Http2Malformed | undefined;
  /** The client resets the stream so long after it began. */
  resetAfterMs: number | undefined;
}

/** What is special about one client connection. */
export interface Http2ClientPlan extends Http2Manner {
  /** The client breaks the rules after so many requests. */
  fatal: { kind: Fatality; afterRequests: number } | undefined;
  /** The client sends GOAWAY after so many requests, and goes on with those. */
  goawayAfter: number | undefined;
}

/** How an upstream behaves on one connection. */
export interface Http2UpstreamPlan extends Http2Manner {
  /** SETTINGS_MAX_CONCURRENT_STREAMS; undefined: no limit. */
  streamsMax: number | undefined;
  extendedConnect: boolean;
}

/** How a side goes about it, calm or not. */
export function drawManner(random: Random, troubles: Troubles): Http2Manner {
  if (!troubles.network) {
    return {
      initialWindowBytes: 65_535,
      streamWindowBytes: 65_535,
      connectionWindowBytes: 1_000_000,
      updateMsMax: 0.1,
      dataBytesMax: 16_384,
      paddingChance: 0,
      settingsChanges: random.int(0, 2),
      pings: random.int(0, 2),
      oddFrames: 0,
    };
  }
  const windowBytes = (): number => {
    const least = troubles.large ? 5000 : random.pick([10, 1000, 20_000]);
    return random.size(least, 200_000);
  };
  return {
    initialWindowBytes: random.chance(0.2) ? 0 : random.chance(0.3) ? 65_535 : windowBytes(),
    streamWindowBytes: windowBytes(),
    connectionWindowBytes: windowBytes(),
    updateMsMax: random.pick([0.1, 1, 20]),
    dataBytesMax: troubles.large ? 16_384 : random.pick([50, 1000, 16_384]),
    paddingChance: random.pick([0, 0, 0.1, 0.5]),
    settingsChanges: random.pick([0, 0, 1, 6]),
    pings: random.pick([0, 1, 5]),
    oddFrames: random.pick([0, 0, 5]),
  };
}

/** Makes some of the clients of a run HTTP/2 clients. */
export function drawHttp2Clients(random: Random, troubles: Troubles, clients: ClientPlan[]): void {
  for (const client of clients) {
    if (random.chance(0.2)) continue;
    const fatal = troubles.malformed && random.chance(0.3);
    client.http2 = {
      ...drawManner(random, troubles),
      fatal: fatal
        ? {
            kind: random.pick(Object.keys(fatalCodes) as Fatality[]),
            afterRequests: random.int(0, client.requests.length),
          }
        : undefined,
      goawayAfter: random.chance(0.1) ? random.int(0, client.requests.length) : undefined,
    };
    client.pipeline = random.pick([1, 2, 5, 20, 100]);
    for (const plan of client.requests) adapt(random, troubles, plan);
  }
}

/** Turns a request plan into one that HTTP/2 can carry. */
function adapt(random: Random, troubles: Troubles, plan: RequestPlan): void {
  plan.version = 1;
  plan.absoluteForm = false;
  plan.close = false;
  plan.malformed = undefined;
  const hasBody = plan.method === 'POST' || plan.method === 'PUT';
  if (hasBody && plan.framing === 'none') plan.framing = 'length';
  plan.upgrade = troubles.tunnels && plan.method === 'GET' && random.chance(0.2);
  if (plan.upgrade) plan.response.interim = 0;
  plan.trailers = plan.framing === 'chunked' && random.chance(0.3);
  let malformed: Http2Malformed | undefined;
  if (troubles.malformed && random.chance(0.15) && !plan.unrouted && !plan.upgrade) {
    malformed = random.pick(malformedKinds);
    if (malformed === 'bodyTooShort' || malformed === 'bodyTooLong') {
      plan.method = 'POST';
      plan.framing = 'length';
      plan.bytes = Math.max(2, plan.bytes);
    } else if (malformed === 'openTrailers' || malformed === 'pseudoTrailers' || isLate(malformed)) {
      plan.method = 'POST';
      plan.framing = 'chunked';
      plan.bytes = Math.max(1, plan.bytes);
    } else if (malformed === 'lengthWithoutBody') {
      plan.method = 'GET';
      plan.framing = 'none';
      plan.bytes = 0;
    }
    plan.expectContinue = false;
  }
  plan.http2 = {
    cookies: random.chance(0.2) ? random.int(1, 4) : 0,
    te: random.chance(0.2),
    malformed,
    resetAfterMs: troubles.clients && random.chance(0.15) ? random.size(0, 60) + random.float() : undefined,
  };
}

/** To an HTTP/2 upstream every good status agrees to a tunnel (RFC 8441 §5): one that does not has another. */
export function adaptUpgrade(plan: RequestPlan, http2Backends: readonly string[]): void {
  const { response } = plan;
  if (!plan.upgrade || !http2Backends.includes(hosts[plan.host]!)) return;
  if (plan.upgradeAccepted && response.fault === 'none') return;
  if (response.status < 300) response.status = 404;
}

const malformedKinds: readonly Http2Malformed[] = [
  'upperCase',
  'connectionField',
  'transferEncoding',
  'teGzip',
  'noMethod',
  'noPath',
  'emptyPath',
  'twoPaths',
  'latePseudo',
  'unknownPseudo',
  'status',
  'badMethod',
  'lineBreak',
  'nul',
  'colonInName',
  'hostMismatch',
  'badLength',
  'twoLengths',
  'selfDependency',
  'lengthWithoutBody',
  ...lateKinds,
];

/** Draws how an upstream connection behaves. */
export function drawHttp2Upstream(random: Random, troubles: Troubles): Http2UpstreamPlan {
  const manner = drawManner(random, troubles);
  return {
    ...manner,
    streamsMax: random.chance(0.5) ? undefined : random.pick([1, 2, limitedRequests, 10]),
    extendedConnect: true,
  };
}
