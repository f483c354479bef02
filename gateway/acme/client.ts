// The ACME protocol (RFC 8555) from a client's side: signed requests, nonces, accounts, orders.
//
// One client serves one run of work and is then closed. Nothing here decides when to try again,
// except that a refused nonce is replaced, as RFC 8555 §6.5 asks for.
// No library: acme-client 5.4.0, the usual one, was last released in 2024, brings fifty packages, repeats
// requests by itself on timers that nobody can stop, and drops the CA's error types and Retry-After.
// Control thread only.

import { createHash, createHmac, createPublicKey, type KeyObject, sign } from 'node:crypto';
import { type Clock, sleep } from '../../core/process/clock.ts';
import { AcmeError, asAcmeError, type Problem, problemError, retryAfterMs } from './errors.ts';
import type { AcmeResponse, Transport } from './transport.ts';

/** A key that the CA gave out elsewhere, and that ties the ACME account to a customer (RFC 8555 §7.3.4). */
export interface ExternalAccountBinding {
  keyId: string;
  /** base64url, as the CA shows it. */
  hmacKey: string;
}

/** An order (RFC 8555 §7.1.3). */
export interface Order {
  url: string;
  status: string;
  authorizations: string[];
  finalize: string;
  certificate?: string;
  error?: Problem;
}

/** A challenge (RFC 8555 §7.1.5). */
export interface Challenge {
  type: string;
  url: string;
  status: string;
  token: string;
  error?: Problem;
}

/** An authorization (RFC 8555 §7.1.4). */
export interface Authorization {
  identifier: { type: string; value: string };
  status: string;
  challenges: Challenge[];
}

/** When the CA wants a certificate to be renewed (RFC 9773 §4.2). */
export interface RenewalInfo {
  startMs: number;
  endMs: number;
  /** Where the CA says why; often absent. */
  explanationUrl: string | undefined;
  /** When to ask again, from now; 0: the CA did not say. */
  retryAfterMs: number;
}

interface Directory {
  newNonce: string;
  newAccount: string;
  newOrder: string;
  renewalInfo?: string;
  meta?: { termsOfService?: string; externalAccountRequired?: boolean };
}

/** Most tries with nonces that the server refuses: Pebble refuses some at random, and five tries were once too few. */
const NONCE_ATTEMPTS_MAX = 10;

/** How long the CA may take over a challenge or an order before the attempt counts as failed. */
const POLL_TIMEOUT_MS = 300_000;
/** Wait between two looks at an order where the CA does not say; doubled up to the second. */
const POLL_FIRST_MS = 500;
const POLL_MAX_MS = 15_000;

/** A conversation with one CA on behalf of one account. */
export class AcmeClient {
  private readonly directoryUrl: string;
  private readonly key: KeyObject;
  private readonly transport: Transport;
  private readonly clock: Clock;
  private readonly signal: AbortSignal;
  private readonly jwk: { crv: string; kty: string; x: string; y: string };
  private directoryCache: Directory | undefined;
  private nonce: string | undefined;
  /** URL of the account, which signs every request but the first. */
  accountUrl = '';

  /** `key`: the account's private key, ECDSA P-256. `signal` ends all waits; the caller closes the transport. */
  constructor(directoryUrl: string, key: KeyObject, transport: Transport, clock: Clock, signal: AbortSignal) {
    this.directoryUrl = directoryUrl;
    this.key = key;
    this.transport = transport;
    this.clock = clock;
    this.signal = signal;
    const { crv, kty, x, y } = createPublicKey(key).export({ format: 'jwk' });
    this.jwk = { crv: crv!, kty: kty!, x: x!, y: y! };
  }

  /** What a challenge wants to see: its token and the account key's thumbprint (RFC 8555 §8.1, RFC 7638). */
  keyAuthorization(token: string): string {
    const thumbprint = createHash('sha256').update(JSON.stringify(this.jwk)).digest('base64url');
    return `${token}.${thumbprint}`;
  }

  /**
   * Registers the account, or finds the one that the key has, and signs with it from then on. Throws
   * an AcmeError of kind `configuration` where the CA wants an agreement or a binding that is missing.
   */
  async register(
    email: string | undefined,
    termsOfServiceAgreed: boolean,
    binding: ExternalAccountBinding | undefined,
  ): Promise<void> {
    const { newAccount, meta } = await this.directory();
    if (meta?.termsOfService !== undefined && !termsOfServiceAgreed) {
      throw new AcmeError(
        'configuration',
        'the terms of service of the CA have not been agreed to',
        `read ${meta.termsOfService} and set termsOfServiceAgreed to true`,
      );
    }
    if (meta?.externalAccountRequired === true && binding === undefined) {
      throw problemError(
        { type: 'urn:ietf:params:acme:error:externalAccountRequired' },
        403,
        'the account was not registered',
        0,
      );
    }
    const payload = {
      termsOfServiceAgreed,
      contact: contactOf(email),
      ...(binding === undefined ? {} : { externalAccountBinding: this.bind(binding, newAccount) }),
    };
    this.accountUrl = '';
    const response = await this.post(newAccount, payload, 'the account was not registered');
    const url = header(response, 'location');
    if (url === undefined) throw nonsense('the account has no URL');
    this.accountUrl = url;
  }

  /** Changes the account's address for notices. */
  async updateContact(email: string | undefined): Promise<void> {
    await this.post(this.accountUrl, { contact: contactOf(email) }, 'the contact was not changed');
  }

  /**
   * Orders a certificate. `replaces`: renewal id of the one that it follows (RFC 9773 §5); a CA that
   * does not accept it as such is asked again without.
   */
  async newOrder(hostnames: readonly string[], replaces: string | undefined): Promise<Order> {
    const { newOrder, renewalInfo } = await this.directory();
    const identifiers = hostnames.map((value) => ({ type: 'dns', value }));
    const follows = renewalInfo !== undefined && replaces !== undefined;
    let response: AcmeResponse;
    try {
      const payload = { identifiers, ...(follows ? { replaces } : {}) };
      response = await this.post(newOrder, payload, 'the order was refused');
    } catch (error) {
      const { kind, problem } = asAcmeError(error);
      if (!follows || kind !== 'refused' || problem === 'accountDoesNotExist') throw error;
      return this.newOrder(hostnames, undefined);
    }
    const url = header(response, 'location');
    if (url === undefined) throw nonsense('the order has no URL');
    return orderOf(url, response);
  }

  /** Reads an authorization. */
  async authorization(url: string): Promise<Authorization> {
    return authorizationOf(await this.post(url, null, 'the authorization cannot be read'));
  }

  /** Tells the CA that a challenge can be looked at. */
  async answerChallenge(challenge: Challenge): Promise<void> {
    await this.post(challenge.url, {}, `the ${challenge.type} challenge was refused`);
  }

  /** Waits until an authorization is neither pending nor being looked at. */
  waitForAuthorization(url: string): Promise<Authorization> {
    return this.poll(url, authorizationOf, ['pending', 'processing'], 'the authorization cannot be read');
  }

  /** Waits until an order is in none of the given states. */
  waitForOrder(url: string, states: readonly string[]): Promise<Order> {
    return this.poll(url, (response) => orderOf(url, response), states, 'the order cannot be read');
  }

  /** Sends the signing request (DER) of an order that is ready. */
  async finalize(order: Order, request: Uint8Array): Promise<void> {
    const csr = Buffer.from(request).toString('base64url');
    await this.post(order.finalize, { csr }, 'the order could not be completed');
  }

  /** The certificate with its chain, as PEM. */
  async certificate(url: string): Promise<string> {
    return (await this.post(url, null, 'the certificate cannot be fetched')).body;
  }

  /** When the CA wants the certificate renewed; undefined where the CA has no such service. */
  async renewalInfo(renewalId: string): Promise<RenewalInfo | undefined> {
    const { renewalInfo } = await this.directory();
    if (renewalInfo === undefined) return undefined;
    const response = await this.transport.send('GET', `${renewalInfo.replace(/\/$/, '')}/${renewalId}`);
    if (response.status !== 200) throw this.refusal(response, 'the renewal information cannot be read');
    const { suggestedWindow, explanationURL } = parseObject(response) as {
      suggestedWindow?: { start?: string; end?: string };
      explanationURL?: string;
    };
    const startMs = Date.parse(String(suggestedWindow?.start));
    const endMs = Date.parse(String(suggestedWindow?.end));
    if (!(endMs > startMs)) throw nonsense('the renewal information has no window');
    return {
      startMs,
      endMs,
      explanationUrl: typeof explanationURL === 'string' ? explanationURL : undefined,
      retryAfterMs: this.retryAfter(response),
    };
  }

  private async poll<T extends { status: string }>(
    url: string,
    read: (response: AcmeResponse) => T,
    states: readonly string[],
    what: string,
  ): Promise<T> {
    const deadlineMs = this.clock.nowMs() + POLL_TIMEOUT_MS;
    for (let waitMs = POLL_FIRST_MS; ; waitMs = Math.min(waitMs * 2, POLL_MAX_MS)) {
      const response = await this.post(url, null, what);
      const object = read(response);
      if (!states.includes(object.status)) return object;
      const pauseMs = this.retryAfter(response) || waitMs;
      if (this.clock.nowMs() + pauseMs > deadlineMs) {
        const cause = `the CA came to no decision within ${POLL_TIMEOUT_MS / 60_000} minutes`;
        throw new AcmeError('unreachable', cause, 'wait; look at the status page of the CA');
      }
      await sleep(this.clock, pauseMs, this.signal);
    }
  }

  private async directory(): Promise<Directory> {
    if (this.directoryCache === undefined) {
      const response = await this.transport.send('GET', this.directoryUrl);
      if (response.status !== 200) throw this.refusal(response, `the directory ${this.directoryUrl} cannot be read`);
      const directory = parseObject(response) as unknown as Directory;
      for (const member of ['newNonce', 'newAccount', 'newOrder'] as const) {
        if (typeof directory[member] === 'string') continue;
        throw new AcmeError(
          'protocol',
          `${this.directoryUrl} is not an ACME directory (no ${member})`,
          'correct the directory URL',
        );
      }
      this.directoryCache = directory;
    }
    return this.directoryCache;
  }

  /** A signed request (RFC 8555 §6.2); a payload of null reads (POST-as-GET, §6.3). `what` begins the error. */
  private async post(url: string, payload: object | null, what: string): Promise<AcmeResponse> {
    for (let attempt = 1; ; attempt++) {
      const nonce = this.nonce ?? (await this.newNonce());
      this.nonce = undefined;
      const account = this.accountUrl === '' ? { jwk: this.jwk } : { kid: this.accountUrl };
      const body = this.jws({ alg: 'ES256', nonce, url, ...account }, payload);
      const response = await this.transport.send('POST', url, body);
      this.nonce = header(response, 'replay-nonce');
      if (response.status >= 200 && response.status < 300) return response;
      const error = this.refusal(response, what);
      if (error.problem !== 'badNonce' || attempt === NONCE_ATTEMPTS_MAX) throw error;
    }
  }

  private async newNonce(): Promise<string> {
    const { newNonce } = await this.directory();
    const response = await this.transport.send('HEAD', newNonce);
    const nonce = header(response, 'replay-nonce');
    if (nonce === undefined) throw this.refusal(response, 'the CA gave no nonce');
    return nonce;
  }

  private jws(protectedHeader: object, payload: object | null): string {
    const head = base64Url(JSON.stringify(protectedHeader));
    const text = payload === null ? '' : base64Url(JSON.stringify(payload));
    const signature = sign('sha256', Buffer.from(`${head}.${text}`), { key: this.key, dsaEncoding: 'ieee-p1363' });
    return JSON.stringify({ protected: head, payload: text, signature: signature.toString('base64url') });
  }

  private bind({ keyId, hmacKey }: ExternalAccountBinding, url: string): object {
    const head = base64Url(JSON.stringify({ alg: 'HS256', kid: keyId, url }));
    const text = base64Url(JSON.stringify(this.jwk));
    const signature = createHmac('sha256', Buffer.from(hmacKey, 'base64url')).update(`${head}.${text}`);
    return { protected: head, payload: text, signature: signature.digest('base64url') };
  }

  private refusal(response: AcmeResponse, what: string): AcmeError {
    let problem: Problem = {};
    try {
      problem = parseObject(response);
    } catch {
      // A load balancer in front of the CA answers in HTML; the status says enough.
    }
    return problemError(problem, response.status, what, this.retryAfter(response));
  }

  private retryAfter(response: AcmeResponse): number {
    return retryAfterMs(header(response, 'retry-after'), this.clock.nowMs());
  }
}

function contactOf(email: string | undefined): string[] {
  return email === undefined ? [] : [`mailto:${email}`];
}

function orderOf(url: string, response: AcmeResponse): Order {
  const order = parseObject(response) as unknown as Order;
  if (!Array.isArray(order.authorizations) || typeof order.finalize !== 'string') throw nonsense('it is not an order');
  return { ...order, url, status: String(order.status) };
}

function authorizationOf(response: AcmeResponse): Authorization {
  const authorization = parseObject(response) as unknown as Authorization;
  const { identifier, challenges } = authorization;
  if (typeof identifier?.value !== 'string' || !Array.isArray(challenges)) throw nonsense('it is not an authorization');
  return authorization;
}

function parseObject(response: AcmeResponse): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(response.body);
  } catch {
    throw nonsense('it is not JSON');
  }
  if (typeof value !== 'object' || value === null) throw nonsense('it is not a JSON object');
  return value as Record<string, unknown>;
}

function nonsense(why: string): AcmeError {
  const advice = 'see that the directory URL is that of an ACME CA and that no proxy answers for it';
  return new AcmeError('protocol', `the CA's answer cannot be used: ${why}`, advice);
}

function header(response: AcmeResponse, name: string): string | undefined {
  const value = response.headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function base64Url(text: string): string {
  return Buffer.from(text).toString('base64url');
}
