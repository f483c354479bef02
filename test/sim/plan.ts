// What a run consists of: requests, the responses to them, and everything that goes wrong.
//
// Drawn from the seed before the run starts, so that clients, upstreams and the judge know alike
// what each request is and what may become of it. Faults come in families, and a seed has few or
// none of them: in a calm run every request must succeed, which a run full of faults cannot show.

import type { Http2ClientPlan, Http2RequestPlan } from './http2-plan.ts';
import type { Pace } from './peer.ts';
import type { Random } from './random.ts';
import type { LinkProfile } from './tcp.ts';

/** The families of trouble; a family that is off cannot be the excuse for a failed request. */
export interface Troubles {
  /** Small segments, buffers and delays on connections; memory squeezes. */
  network: boolean;
  /** Upstreams refuse, do not answer, or take long to connect. */
  dialing: boolean;
  /** Upstreams close kept connections, also exactly when a request comes. */
  stale: boolean;
  /** Upstreams fail in the middle of things. */
  responses: boolean;
  /** Upstreams answer and close before they have read the request body. */
  early: boolean;
  /** Clients leave, reset or fall silent. */
  clients: boolean;
  /** Clients send what is not HTTP. */
  malformed: boolean;
  /** Descriptors run out for a while; few connection slots; little memory. */
  resources: boolean;
  /** A new configuration with other endpoints arrives. */
  reload: boolean;
  /** The worker is told to drain. */
  drain: boolean;
  /** Clients read slowly. */
  slowReaders: boolean;
  /** Large bodies. */
  large: boolean;
  /** Upgrades to tunnels. */
  tunnels: boolean;
  /** Few requests per connection on both sides, and a limit on request bodies. */
  limits: boolean;
}

/** How a body is framed. */
export type BodyFraming = 'none' | 'length' | 'chunked' | 'close';

/** How an upstream fails, if it does. */
export type ResponseFault =
  | 'none'
  /** The connection ends before the response begins. */
  | 'closeBeforeHead'
  | 'resetBeforeHead'
  /** It ends in the middle of the head, or of the body. */
  | 'closeInHead'
  | 'closeInBody'
  | 'resetInBody'
  /** The response is not HTTP. */
  | 'badHead'
  | 'badChunk'
  /** No answer at all. */
  | 'silence';

/** What the upstream is to do with one request. */
export interface ResponsePlan {
  status: number;
  framing: BodyFraming;
  /** Body bytes, also those that a fault keeps from being sent. */
  bytes: number;
  /** 1xx responses before. */
  interim: number;
  /** Answer once so many body bytes have come; Infinity: after the whole request. */
  afterBodyBytes: number;
  thinkMs: number;
  fault: ResponseFault;
  /** How much of the body is sent before a fault in it. */
  faultAtByte: number;
  /** Bytes that no one asked for follow the response. */
  leftover: boolean;
  /** The upstream closes after the response, and says so (or is HTTP/1.0). */
  close: boolean;
  version: 0 | 1;
  chunkBytesMax: number;
  trailers: boolean;
  /** Longest pause between two pieces. */
  pauseMsMax: number;
}

/** How a request is broken. */
export type MalformedKind =
  | 'bareLf'
  | 'spaceBeforeColon'
  | 'twoLengths'
  | 'lengthAndChunked'
  | 'badChunkSize'
  | 'noHost'
  | 'badVersion'
  | 'garbage'
  | 'hugeHead';

/** One request. */
export interface RequestPlan {
  id: number;
  method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'DELETE';
  version: 0 | 1;
  /** Host; decides the backend. */
  host: string;
  absoluteForm: boolean;
  framing: Exclude<BodyFraming, 'close'>;
  bytes: number;
  chunkBytesMax: number;
  chunkExtensions: boolean;
  trailers: boolean;
  expectContinue: boolean;
  /** The client asks for the connection to be closed afterwards. */
  close: boolean;
  upgrade: boolean;
  /** Bytes each side sends through the tunnel, if there will be one. */
  tunnelBytes: { client: number; upstream: number };
  /** Whether the upstream agrees to the upgrade. */
  upgradeAccepted: boolean;
  extraFieldBytes: number;
  malformed: MalformedKind | undefined;
  /** No route leads anywhere. */
  unrouted: boolean;
  response: ResponsePlan;
  /** It has the field that faults are injected for. */
  faulted?: boolean;
  /** Value of the field that keyed rate limits count by. */
  key?: string;
  /** The request goes over HTTP/2. */
  http2?: Http2RequestPlan;
}

/** One client connection. */
export interface ClientPlan {
  startMs: number;
  pace: Pace;
  requests: RequestPlan[];
  /** Requests that may be under way at once. */
  pipeline: number;
  /** Longest pause before a further request. */
  thinkMsMax: number;
  /** The client leaves after so many bytes sent. */
  cut: { atByte: number; how: 'close' | 'reset' | 'stall' } | undefined;
  /** The client leaves after so many bytes received. */
  leaveAtByte: { atByte: number; how: 'close' | 'reset' | 'freeze' } | undefined;
  /** It uses a listener that a reload may remove. */
  extraListener: boolean;
  /** The client ends its sending side after the last request, before the answers. */
  halfClose: boolean;
  /** The connection speaks HTTP/2. */
  http2?: Http2ClientPlan | undefined;
}

/** Names of backends that hosts lead to. */
export const hosts: Readonly<Record<string, string>> = { 'alpha.test': 'alpha', 'beta.test': 'beta' };

/** Largest request body, and most requests per connection, in runs with limits. */
export const limitedBodyBytes = 10_000;
export const limitedRequests = 3;

/** timeouts.streamIdle of all runs. */
export const streamIdleMs = 30_000;

/** A host without a route. */
export const unroutedHost = 'nowhere.test';

/** Chooses the families of trouble of a run; one run in eight is calm. */
export function drawTroubles(random: Random): Troubles {
  const level = random.pick([0, 0.1, 0.15, 0.25, 0.25, 0.35, 0.5, 0.8]);
  return {
    network: random.chance(0.6),
    dialing: random.chance(level),
    stale: random.chance(level),
    responses: random.chance(level),
    early: random.chance(level),
    clients: random.chance(level),
    malformed: random.chance(level),
    resources: random.chance(level / 2),
    reload: random.chance(0.25),
    drain: random.chance(level / 2),
    slowReaders: random.chance(0.3),
    large: random.chance(0.15),
    tunnels: random.chance(0.4),
    limits: random.chance(0.1),
  };
}

/** How one direction of a new connection behaves: from the worker, or towards it. */
export function drawLink(random: Random, troubles: Troubles, fromWorker: boolean): LinkProfile {
  if (!troubles.network) {
    return {
      delayMinMs: 0.02,
      delayMaxMs: 0.05,
      segmentBytesMax: 16384,
      dribbleBytes: 0,
      sendBufferBytes: 65536,
      receiveBufferBytes: 65536,
    };
  }
  const slow = random.pick([0.1, 1, 5, 40]);
  const tiny = !troubles.large && random.chance(0.2);
  // A far or slow peer with buffers of a few bytes needs longer for a head than any timeout allows.
  const bufferBytesMin = slow > 1 ? 1000 : fromWorker ? 1 : 50;
  return {
    delayMinMs: 0,
    delayMaxMs: slow,
    segmentBytesMax: tiny ? random.int(20, 400) : random.pick([1460, 4096, 65536]),
    dribbleBytes: random.chance(0.2) ? random.int(1, 500) : 0,
    sendBufferBytes: tiny ? random.size(bufferBytesMin, 3000) : random.pick([4096, 16384, 65536]),
    receiveBufferBytes: tiny ? random.size(bufferBytesMin, 3000) : random.pick([4096, 16384, 65536]),
  };
}

/** How a peer goes about its connection. */
export function drawPace(random: Random, troubles: Troubles, slowReader: boolean): Pace {
  const calm = !troubles.network;
  return {
    reactionMsMax: calm ? 0.1 : random.pick([0.05, 1, 20]),
    writeBytesMax: calm ? 65536 : random.pick([slowReader ? 100 : 3, 500, 20000, 65536]),
    readBytesMax: slowReader ? random.pick([100, 2000]) : 65536,
    pauseMsMax: slowReader ? random.pick([1, 10]) : calm ? 0.1 : random.pick([0.1, 1]),
  };
}

/** Draws the clients of a run with their requests, numbered from 1. */
export function drawClients(random: Random, troubles: Troubles): ClientPlan[] {
  let id = 0;
  const count = random.pick([1, 1, 2, 3, 5, 8]);
  return Array.from({ length: count }, () => {
    const slow = troubles.slowReaders && random.chance(0.4);
    const requests: RequestPlan[] = [];
    const requestCount = random.size(1, troubles.large ? 4 : 12);
    for (let i = 0; i < requestCount; i++) requests.push(drawRequest(random, ++id, troubles, i === requestCount - 1));
    const cut = troubles.clients && random.chance(0.4);
    const leaves = troubles.clients && !cut && random.chance(0.3);
    return {
      startMs: random.chance(0.5) ? 0 : random.between(0, 50),
      pace: drawPace(random, troubles, slow),
      requests,
      pipeline: random.pick([1, 1, 1, 2, 5, 20]),
      thinkMsMax: random.pick([0, 1, 30, 400]),
      cut: cut ? { atByte: random.size(1, 4000), how: random.weighted({ close: 3, reset: 3, stall: 1 }) } : undefined,
      leaveAtByte: leaves
        ? { atByte: random.size(1, 8000), how: random.weighted({ close: 3, reset: 3, freeze: 1 }) }
        : undefined,
      extraListener: troubles.reload && random.chance(0.3),
      halfClose: troubles.clients && !cut && !leaves && random.chance(0.2),
    };
  });
}

function drawRequest(random: Random, id: number, troubles: Troubles, last: boolean): RequestPlan {
  const malformed = troubles.malformed && random.chance(0.15) ? drawMalformed(random) : undefined;
  const method = malformed === undefined ? random.weighted({ GET: 8, HEAD: 2, POST: 6, PUT: 3, DELETE: 1 }) : 'POST';
  const version = random.chance(0.08) ? 0 : 1;
  const hasBody = method === 'POST' || method === 'PUT';
  const framing = !hasBody ? 'none' : version === 1 && random.chance(0.4) ? 'chunked' : 'length';
  const bytes = framing === 'none' ? 0 : drawSize(random, troubles);
  const upgrade = troubles.tunnels && last && method === 'GET' && version === 1 && random.chance(0.5);
  const expectContinue = bytes > 0 && version === 1 && random.chance(0.2);
  return {
    id,
    method,
    version,
    host: random.pick(Object.keys(hosts)),
    absoluteForm: random.chance(0.05),
    framing,
    bytes,
    chunkBytesMax: random.pick([1, 10, 1000, 20000, 100000]) + Math.floor(bytes / 50),
    chunkExtensions: random.chance(0.2),
    trailers: framing === 'chunked' && random.chance(0.2),
    expectContinue,
    close: last ? random.chance(0.3) : random.chance(0.03),
    upgrade,
    upgradeAccepted: random.chance(0.8),
    tunnelBytes: { client: random.size(0, 100_000), upstream: random.size(0, 100_000) },
    extraFieldBytes: random.chance(0.1) ? random.size(1, 6000) : random.size(0, 60),
    malformed,
    unrouted: malformed === undefined && random.chance(0.04),
    response: drawResponse(random, troubles, bytes),
  };
}

function drawResponse(random: Random, troubles: Troubles, requestBytes: number): ResponsePlan {
  const early = troubles.early && requestBytes > 0 && random.chance(0.4);
  // A reset while the request is still being sent, and nothing but the end says how long the answer is.
  const cutEarly = early && random.chance(0.2);
  const fault = cutEarly ? 'resetInBody' : troubles.responses && random.chance(0.2) ? drawFault(random) : 'none';
  const status = random.weighted({ 200: 14, 201: 1, 404: 1, 204: 2, 304: 1, 503: 1 });
  const empty = (status === '204' || status === '304') && fault === 'none';
  const version = random.chance(0.05) ? 0 : 1;
  const framing = empty
    ? 'none'
    : cutEarly
      ? 'close'
      : random.weighted({ length: 6, chunked: version === 1 ? 4 : 0, close: 1 });
  const bytes = framing === 'none' ? 0 : drawSize(random, troubles) + (fault === 'none' ? 0 : 1);
  return {
    status: empty || !['204', '304'].includes(status) ? Number(status) : 200,
    framing: fault === 'badChunk' ? 'chunked' : fault === 'closeInBody' && framing === 'close' ? 'length' : framing,
    bytes,
    interim: random.chance(0.08) ? random.int(1, 3) : 0,
    afterBodyBytes: early ? random.int(0, requestBytes) : Number.POSITIVE_INFINITY,
    thinkMs: random.chance(0.3) ? random.between(0, 60) : 0,
    fault,
    faultAtByte: random.int(0, Math.max(0, bytes - 1)),
    leftover: troubles.responses && framing !== 'close' && random.chance(0.05),
    close: framing === 'close' || version === 0 || random.chance(0.1),
    version: fault === 'badChunk' ? 1 : version,
    chunkBytesMax: random.pick([1, 30, 1000, 9000, 70000]) + Math.floor(bytes / 50),
    trailers: random.chance(0.2),
    pauseMsMax: random.chance(0.2) ? random.between(0.1, 20) : 0,
  };
}

function drawSize(random: Random, troubles: Troubles): number {
  if (troubles.large && random.chance(0.3)) return random.size(50_000, 1_000_000);
  return random.chance(0.1) ? 0 : random.size(1, 30_000);
}

function drawFault(random: Random): ResponseFault {
  return random.weighted({
    closeBeforeHead: 3,
    resetBeforeHead: 3,
    closeInHead: 2,
    closeInBody: 4,
    resetInBody: 4,
    badHead: 2,
    badChunk: 2,
    silence: 1,
  });
}

function drawMalformed(random: Random): MalformedKind {
  return random.pick([
    'bareLf',
    'spaceBeforeColon',
    'twoLengths',
    'lengthAndChunked',
    'badChunkSize',
    'noHost',
    'badVersion',
    'garbage',
    'hugeHead',
  ]);
}
