// One health check of one endpoint: connect, ask, judge the answer.
//
// Control thread. Every check has a connection of its own and ends with it.
// Spec: RFC 9110, RFC 9113; grpc.health.v1.Health.

import { connect, constants, type IncomingHttpHeaders, type OutgoingHttpHeaders } from 'node:http2';
import type { Duplex } from 'node:stream';
import type { HealthCheckConfig } from '../../config/config.ts';
import { formatAddress } from '../../config/names.ts';
import { Errno, errnoSentence } from '../../core/ffi/errno.ts';
import { request } from '../../core/process/node-http.ts';
import type { CheckOutcome } from './check-record.ts';
import { HEALTH_CHECK_PATH, healthRequest, readHealthResponse } from './grpc-health.ts';
import { CheckNotMade, type Dial, dialDirectly, openConnection, type ProbePlace } from './probe-connection.ts';

/** Most bytes of an answer that are waited for; its end counts, not its content. */
const BODY_BYTES_MAX = 64 * 1024;

/** Characters of an answer that are looked at for who gave it. */
const TEXT_CHARS_MAX = 1024;

/** What this process or this machine has run out of: every endpoint would be blamed at once. */
const LOCAL_FAULTS = ['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EADDRNOTAVAIL'] as const;

/** How proxies of the mesh begin to say that policies refuse something (core/exchange/reasons.ts; Istio's do alike). */
const POLICY_REFUSAL = 'RBAC: ';

/** What is checked. */
export interface ProbeTarget extends ProbePlace {
  check: HealthCheckConfig;
  /** HTTP/2 is spoken. */
  http2: boolean;
}

/** What came of it. */
export interface ProbeResult {
  /** Null: the check could not be made, which says nothing of the endpoint. */
  outcome: CheckOutcome | null;
  /** Why it is not good, without a full stop; empty for success. */
  cause: string;
}

/** Checks an endpoint. Never rejects. */
export type Probe = (target: ProbeTarget, signal: AbortSignal) => Promise<ProbeResult>;

const success: ProbeResult = { outcome: 'success', cause: '' };

/** Checks an endpoint directly; `signal` ends the check, which then counts as one without an answer in time. */
export const probe: Probe = probeThrough(dialDirectly);

/** Checks that connect by `dial`, and are as `probe` otherwise. */
export function probeThrough(dial: Dial): Probe {
  return async (target, signal) => {
    const { check } = target;
    try {
      const alpn = target.http2 ? ['h2'] : check.type === 'TCP' ? [] : ['http/1.1'];
      const offered = check.type === 'GRPC' ? ['h2'] : alpn;
      const { stream, tunnelAs } = await openConnection(target, offered, signal, dial);
      try {
        if (check.type === 'TCP') {
          if (tunnelAs !== null) await seeAccepted(stream, tunnelAs, check.timeoutMs / 2);
          return success;
        }
        if (check.type === 'GRPC') return await askGrpc(target, stream, tunnelAs);
        return judgeAnswer(check, await (target.http2 ? askHttp2 : askHttp1)(target, stream), tunnelAs);
      } finally {
        stream.destroy();
      }
    } catch (error) {
      const local = localCauseOf(error as NodeJS.ErrnoException);
      if (local !== undefined) return { outcome: null, cause: local };
      if (signal.aborted) return { outcome: 'timeout', cause: `no answer within ${check.timeoutMs} ms` };
      return { outcome: 'failure', cause: causeOf(error as NodeJS.ErrnoException) };
    }
  };
}

/**
 * A tunnel may be there before the connection behind it. So the check ends its side, which reaches the endpoint with
 * that connection: what it says to it, or that it ends, too, shows that it has accepted. Rejects when the tunnel is
 * reset. One that stays silent for so long has accepted: a connection that is refused is so at once.
 */
function seeAccepted(stream: Duplex, tunnelAs: string, silentMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, silentMs).unref();
    stream.once('data', () => resolve());
    stream.once('end', resolve);
    stream.once('close', () => {
      clearTimeout(timer);
      reject(new Error(`connection reset behind the tunnel: nothing listens there, or policies refuse ${tunnelAs}`));
    });
    stream.end();
  });
}

/** An answer to a check by HTTP, and how its body begins. */
interface Answer {
  status: number;
  text: string;
}

function judgeAnswer(check: HealthCheckConfig, { status, text }: Answer, tunnelAs: string | null): ProbeResult {
  if (check.expectedStatuses.some(([first, last]) => status >= first && status <= last)) return success;
  // Without a body nobody can tell whether that is the policies' answer or its own.
  const toWhom = status === 403 && tunnelAs !== null ? ` to ${tunnelAs}` : '';
  return { outcome: 'refusal', cause: refusalOf(tunnelAs, text) ?? `it answered with status ${status}${toWhom}` };
}

/** Who is refused, if the policies of the mesh have answered; undefined: they have not. */
function refusalOf(tunnelAs: string | null, text: string): string | undefined {
  return tunnelAs !== null && text.includes(POLICY_REFUSAL)
    ? `its authorization policies do not allow ${tunnelAs}`
    : undefined;
}

/** The final answer, once that has ended. */
function askHttp1(target: ProbeTarget, socket: Duplex): Promise<Answer> {
  const { check } = target;
  return new Promise((resolve, reject) => {
    const outgoing = request({
      createConnection: () => socket,
      method: check.method,
      path: check.path,
      headers: { host: authorityOf(target), ...fieldsOf(check) },
    });
    outgoing.on('error', reject);
    outgoing.on('response', (incoming) => {
      let bytes = 0;
      let text = '';
      const done = (): void => resolve({ status: incoming.statusCode!, text });
      incoming.on('data', (chunk: Buffer) => {
        bytes += chunk.length;
        if (text.length < TEXT_CHARS_MAX) text += chunk.toString('latin1', 0, TEXT_CHARS_MAX - text.length);
        if (bytes > BODY_BYTES_MAX) done();
      });
      incoming.on('end', done);
      incoming.on('error', reject);
    });
    outgoing.end();
  });
}

async function askHttp2(target: ProbeTarget, socket: Duplex): Promise<Answer> {
  const { check } = target;
  const head = { ':method': check.method, ':path': check.path, ...fieldsOf(check) };
  const { headers, body } = await exchangeHttp2(target, socket, head, undefined);
  return { status: Number(headers[':status']), text: Buffer.from(body).toString('latin1', 0, TEXT_CHARS_MAX) };
}

async function askGrpc(target: ProbeTarget, socket: Duplex, tunnelAs: string | null): Promise<ProbeResult> {
  const { check } = target;
  const head = {
    ':method': 'POST',
    ':path': HEALTH_CHECK_PATH,
    'content-type': 'application/grpc',
    te: 'trailers',
    'user-agent': 'portcullis-health-check',
    ...fieldsOf(check),
  };
  const { headers, body, trailers } = await exchangeHttp2(target, socket, head, healthRequest(check.grpcService));
  const httpStatus = Number(headers[':status']);
  if (httpStatus !== 200) return { outcome: 'refusal', cause: `it answered with HTTP status ${httpStatus}` };
  const status = trailers['grpc-status'] ?? headers['grpc-status'];
  if (status === undefined) return { outcome: 'failure', cause: 'it answered without grpc-status' };
  if (status !== '0') {
    const message = percentDecoded(String(trailers['grpc-message'] ?? headers['grpc-message'] ?? '')).slice(0, 200);
    const answered = `it answered with gRPC status ${status}${message === '' ? '' : ` (${message})`}`;
    return { outcome: 'refusal', cause: refusalOf(tunnelAs, message) ?? answered };
  }
  const serving = readHealthResponse(body);
  if (serving === 'SERVING') return success;
  if (serving === undefined) return { outcome: 'failure', cause: 'it answered with bytes that are no health response' };
  return { outcome: 'refusal', cause: `it says that it is ${serving}` };
}

interface Http2Answer {
  headers: IncomingHttpHeaders;
  body: Uint8Array;
  trailers: IncomingHttpHeaders;
}

/** One request on a new HTTP/2 connection; resolves once its answer has ended. */
function exchangeHttp2(
  target: ProbeTarget,
  socket: Duplex,
  head: OutgoingHttpHeaders,
  body: Uint8Array | undefined,
): Promise<Http2Answer> {
  return new Promise((resolve, reject) => {
    const scheme = target.tls === null ? 'http' : 'https';
    const authority = authorityOf(target);
    const session = connect(`${scheme}://${formatAddress(target.host, target.port)}`, {
      createConnection: () => socket,
    });
    session.on('error', reject);
    session.on('close', () => reject(new Error('connection closed')));
    const stream = session.request(
      { ':authority': authority, ':scheme': scheme, ...head },
      { endStream: body === undefined },
    );
    const answer: Http2Answer = { headers: {}, body: new Uint8Array(0), trailers: {} };
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    stream.on('response', (headers) => {
      answer.headers = headers;
    });
    stream.on('trailers', (trailers) => {
      answer.trailers = trailers;
    });
    const done = (): void => {
      // A connection that is lost ends its streams, too.
      if (answer.headers[':status'] === undefined) {
        reject(new Error('connection closed'));
        return;
      }
      answer.body = Buffer.concat(chunks);
      resolve(answer);
    };
    stream.on('data', (chunk: Uint8Array) => {
      bytes += chunk.length;
      if (bytes > BODY_BYTES_MAX) done();
      else chunks.push(chunk);
    });
    stream.on('end', done);
    stream.on('error', reject);
    stream.on('close', () => {
      if (stream.rstCode !== constants.NGHTTP2_NO_ERROR) reject(new Error(`stream reset (code ${stream.rstCode})`));
    });
    if (body !== undefined) stream.end(body);
  });
}

function authorityOf({ check, tls, host, port }: ProbeTarget): string {
  if (check.host !== '') return check.host.includes(':') ? `[${check.host}]` : check.host;
  return tls === null || tls.serverName === '' ? formatAddress(host, port) : tls.serverName;
}

function fieldsOf({ headers }: HealthCheckConfig): OutgoingHttpHeaders {
  const fields: Record<string, string | string[]> = {};
  for (const { name, value } of headers) {
    const known = fields[name.toLowerCase()];
    fields[name.toLowerCase()] = known === undefined ? value : [known, value].flat();
  }
  return fields;
}

/** grpc-message is percent-encoded; what is not, stays as it is. */
function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Why a check could not be made, in words; undefined: it was made. */
function localCauseOf(error: NodeJS.ErrnoException): string | undefined {
  if (error instanceof CheckNotMade) return inOneLine(error.message);
  const fault = LOCAL_FAULTS.find((code) => code === error.code);
  return fault === undefined ? undefined : `not checked: ${errnoSentence(Errno[fault])}`;
}

/** A cause in words, from errors of sockets, TLS and protocols. */
function causeOf({ code, message }: NodeJS.ErrnoException): string {
  switch (code) {
    case 'ECONNREFUSED':
      return 'connection refused';
    case 'ECONNRESET':
    case 'EPIPE':
      return 'connection reset';
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return 'no route to the address';
    default:
      return inOneLine(message);
  }
}

function inOneLine(message: string): string {
  return message.replace(/\s+/g, ' ').slice(0, 200);
}
