// One order from beginning to end: authorizations, challenges, signing request, certificate.
//
// Control thread only. Invariant: every challenge that was handed out is taken back, whatever happens.

import type { AcmeClient, Authorization, Challenge } from './client.ts';
import { AcmeError, problemError } from './errors.ts';
import {
  type CertificateFacts,
  createChallengeCertificate,
  createSigningRequest,
  generateKey,
  type KeyedCertificate,
  keyToPem,
  readCertificate,
} from './x509.ts';

/** How a CA convinces itself that a hostname leads here. */
export type ChallengeType = 'http-01' | 'tls-alpn-01';

/**
 * What the listeners have to answer for a time.
 *
 * `http-01` (RFC 8555 §8.3): `GET /.well-known/acme-challenge/<token>` on port 80 of the hostname is
 * answered with `keyAuthorization`, as `application/octet-stream`. `tls-alpn-01` (RFC 8737): a handshake
 * with that server name and the only protocol `acme-tls/1` is answered with this certificate and that
 * protocol, and then closed.
 */
export type ChallengeAnswer =
  | { type: 'http-01'; hostname: string; token: string; keyAuthorization: string }
  | { type: 'tls-alpn-01'; hostname: string; chainPem: string; keyPem: string };

/** Hands challenges to whoever owns the listeners. */
export interface ChallengeSink {
  /** Resolves once all listeners answer; a rejection fails the order. */
  set(answer: ChallengeAnswer): void | Promise<void>;
  /** Takes one back; also after a `set` that failed. */
  clear(answer: ChallengeAnswer): void | Promise<void>;
}

/** What is ordered. */
export interface OrderRequest {
  hostnames: readonly string[];
  challenge: ChallengeType;
  /** Renewal id of the certificate that the new one follows. */
  replaces: string | undefined;
}

/**
 * Orders a certificate with a new key and returns both, checked against what was asked for and against
 * the time `nowMs`, which also dates the challenge certificates. Throws an AcmeError.
 */
export async function issueCertificate(
  client: AcmeClient,
  request: OrderRequest,
  sink: ChallengeSink,
  nowMs: number,
): Promise<KeyedCertificate> {
  const order = await client.newOrder(request.hostnames, request.replaces);
  const answers: ChallengeAnswer[] = [];
  try {
    const waiting: { url: string; hostname: string; type: ChallengeType }[] = [];
    for (const url of order.authorizations) {
      const authorization = await client.authorization(url);
      // The CA remembers hostnames that were validated a short time ago.
      if (authorization.status === 'valid') continue;
      const hostname = authorization.identifier.value;
      if (!request.hostnames.includes(hostname)) {
        throw new AcmeError(
          'protocol',
          `the CA wants ${hostname} validated, which was not ordered`,
          'report it to the CA',
        );
      }
      const challenge = challengeOf(authorization, request.challenge);
      const answer = answerOf(challenge, request.challenge, hostname, client.keyAuthorization(challenge.token), nowMs);
      answers.push(answer);
      await hand(sink, answer);
      await client.answerChallenge(challenge);
      waiting.push({ url, hostname, type: request.challenge });
    }
    for (const { url, hostname, type } of waiting) {
      const authorization = await client.waitForAuthorization(url);
      if (authorization.status !== 'valid') throw authorizationError(authorization, hostname, type);
    }
  } finally {
    for (const answer of answers) await Promise.resolve(sink.clear(answer)).catch(() => {});
  }
  return complete(client, order.url, request.hostnames, nowMs);
}

async function complete(
  client: AcmeClient,
  url: string,
  hostnames: readonly string[],
  nowMs: number,
): Promise<KeyedCertificate> {
  const ready = await client.waitForOrder(url, ['pending']);
  const key = generateKey();
  if (ready.status === 'ready') await client.finalize(ready, createSigningRequest(hostnames, key));
  const order = await client.waitForOrder(url, ['pending', 'ready', 'processing']);
  if (order.status !== 'valid' || order.certificate === undefined) {
    throw problemError(order.error ?? {}, 403, `the order is ${order.status}`, 0);
  }
  const pair = { chainPem: await client.certificate(order.certificate), keyPem: keyToPem(key) };
  let facts: CertificateFacts;
  try {
    facts = readCertificate(pair);
    const missing = hostnames.find((hostname) => !facts.hostnames.includes(hostname));
    if (missing !== undefined) throw new Error(`it is not for ${missing}`);
  } catch (error) {
    const cause = `the certificate that the CA issued cannot be used: ${(error as Error).message}`;
    throw new AcmeError('protocol', cause, 'report it to the CA');
  }
  // It would be due for renewal at once, and so would the next one.
  if (facts.notAfterMs <= nowMs) {
    const cause = "the CA's new certificate has expired already by this machine's clock";
    throw new AcmeError('protocol', cause, 'set the clock of this machine');
  }
  return pair;
}

function challengeOf({ identifier, status, challenges }: Authorization, type: ChallengeType): Challenge {
  if (status !== 'pending') {
    throw problemError({}, 403, `the authorization for ${identifier.value} is ${status}`, 0);
  }
  const challenge = challenges.find((candidate) => candidate.type === type);
  if (challenge === undefined) {
    const offered = challenges.map((candidate) => candidate.type).join(', ');
    throw new AcmeError(
      'configuration',
      `the CA offers no ${type} challenge for ${identifier.value}, only ${offered || 'none'}`,
      'configure another challenge type or CA',
    );
  }
  // The token becomes part of a URL and of an answer (RFC 8555 §8.1: base64url).
  if (!/^[\w-]{1,256}$/.test(challenge.token)) {
    throw new AcmeError('protocol', 'the CA sent a challenge with an invalid token', 'report it to the CA');
  }
  return challenge;
}

function answerOf(
  { token }: Challenge,
  type: ChallengeType,
  hostname: string,
  keyAuthorization: string,
  nowMs: number,
): ChallengeAnswer {
  if (type === 'http-01') return { type, hostname, token, keyAuthorization };
  return { type, hostname, ...createChallengeCertificate(hostname, keyAuthorization, nowMs) };
}

async function hand(sink: ChallengeSink, answer: ChallengeAnswer): Promise<void> {
  try {
    await sink.set(answer);
  } catch (error) {
    const cause = `the ${answer.type} challenge for ${answer.hostname} was not put in place: ${(error as Error).message}`;
    throw new AcmeError('configuration', cause, 'look at the listeners in the log lines before');
  }
}

function authorizationError({ challenges, status }: Authorization, hostname: string, type: ChallengeType): AcmeError {
  const problem = challenges.find((challenge) => challenge.error !== undefined)?.error;
  return problemError(problem ?? {}, 403, `the ${type} challenge for ${hostname} failed (${status})`, 0, true);
}
