// For tests of automatic certificates: a clock that can be moved, a log that can be read, and a small CA.
//
// The CA speaks RFC 8555 over real HTTPS, checks every signature and nonce, and issues real certificates;
// tests replace its answers one by one. Whether a hostname is validated is the test's word.

import { createHash, createPublicKey, type KeyObject, verify, type webcrypto, X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { Clock } from '../../../core/process/clock.ts';
import type { Log, LogFields, LogLevel } from '../../../core/workers/log.ts';
import { readElements } from '../../../gateway/acme/der.ts';
import type { ChallengeAnswer } from '../../../gateway/acme/issue.ts';
import {
  AcmeManager,
  type AcmeManagerOptions,
  type AcmeSettings,
  type DeliveredCertificate,
} from '../../../gateway/acme/manager.ts';
import { buildCertificate, generateKey, keyToPem, toPem } from '../../../gateway/acme/x509.ts';

type JsonWebKey = webcrypto.JsonWebKey;

export const DAY_MS = 86_400_000;

/** Runs with the real time, and can be moved ahead; timers that are passed over fire at once. */
export class MovableClock implements Clock {
  private offsetMs = 0;
  private readonly timers = new Set<{ dueMs: number; fire: () => void; real: NodeJS.Timeout }>();
  /** What `random` returns. */
  randomValue = 0.5;

  nowMs(): number {
    return Date.now() + this.offsetMs;
  }

  random(): number {
    return this.randomValue;
  }

  setTimer(callback: () => void, delayMs: number): unknown {
    const fire = (): void => {
      if (!this.timers.delete(timer)) return;
      clearTimeout(timer.real);
      callback();
    };
    const timer = { dueMs: this.nowMs() + delayMs, fire, real: setTimeout(() => fire(), delayMs) };
    this.timers.add(timer);
    return timer;
  }

  clearTimer(timer: unknown): void {
    const known = timer as { real: NodeJS.Timeout } | undefined;
    if (known !== undefined && this.timers.delete(known as never)) clearTimeout(known.real);
  }

  /** Moves the time ahead. */
  advance(deltaMs: number): void {
    this.offsetMs += deltaMs;
    for (const timer of [...this.timers]) if (timer.dueMs <= this.nowMs()) timer.fire();
  }

  /** Milliseconds until each timer, shortest first. */
  waits(): number[] {
    return [...this.timers].map(({ dueMs }) => dueMs - this.nowMs()).sort((a, b) => a - b);
  }
}

/** A log whose lines can be waited for. */
export class TestLog {
  readonly lines: { level: LogLevel; message: string; fields: LogFields }[] = [];
  private waiting: (() => void)[] = [];

  readonly log: Log = (level, message, fields = {}) => {
    this.lines.push({ level, message, fields });
    const waiting = this.waiting;
    this.waiting = [];
    for (const wake of waiting) wake();
  };

  /** Lines with this message. */
  all(message: string): { level: LogLevel; message: string; fields: LogFields }[] {
    return this.lines.filter((line) => line.message === message);
  }

  /** Resolves to the `count`th line with this message, once it is there. */
  async wait(message: string, count = 1): Promise<{ level: LogLevel; fields: LogFields }> {
    while (this.all(message).length < count) await new Promise<void>((wake) => this.waiting.push(wake));
    return this.all(message)[count - 1]!;
  }
}

/** A directory that goes away with the test. */
export function temporaryDirectory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'portcullis-acme-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A manager with everything that a test looks at. */
export interface ManagerHarness {
  manager: AcmeManager;
  log: TestLog;
  clock: MovableClock;
  delivered: DeliveredCertificate[];
  /** Challenges that are in place at the moment. */
  answers: Set<ChallengeAnswer>;
  /** All that ever were. */
  answersSeen: ChallengeAnswer[];
}

/** Makes a manager for the CA; it is stopped with the test. */
export function makeManager(
  t: TestContext,
  settings: Partial<AcmeSettings> & { directoryUrl: string; storage: string },
  options: Partial<AcmeManagerOptions> & { clock?: MovableClock } = {},
): ManagerHarness {
  const log = new TestLog();
  const clock = options.clock ?? new MovableClock();
  const delivered: DeliveredCertificate[] = [];
  const answers = new Set<ChallengeAnswer>();
  const answersSeen: ChallengeAnswer[] = [];
  const manager = new AcmeManager({
    settings: { termsOfServiceAgreed: true, ...settings },
    challenges: {
      set: (answer) => {
        answers.add(answer);
        answersSeen.push(answer);
      },
      clear: (answer) => void answers.delete(answer),
    },
    onCertificate: (certificate) => void delivered.push(certificate),
    log: log.log,
    ...options,
    clock,
  });
  t.after(() => manager.stop());
  return { manager, log, clock, delivered, answers, answersSeen };
}

/** One answer of the CA in place of its own. */
export interface ScriptedAnswer {
  status: number;
  headers?: Record<string, string>;
  body?: unknown;
}

interface FakeOrder {
  hostnames: string[];
  replaces: string | undefined;
  status: string;
  valid: Set<string>;
  failed: boolean;
  certificate: string | undefined;
}

/** An ACME CA. */
export class FakeCa {
  /** The requests so far, as `METHOD path`. */
  readonly requests: string[] = [];
  /** Payloads of newAccount requests. */
  readonly accounts: Record<string, unknown>[] = [];
  /** `replaces` of each accepted order. */
  readonly replaced: (string | undefined)[] = [];
  /** Answers in place of its own: by path without numbers, such as `/new-order`; first come, first served. */
  readonly script = new Map<string, ScriptedAnswer[]>();
  /** Whether a hostname passes; receives what the challenge has to show. */
  validate: (hostname: string, type: string, keyAuthorization: string) => boolean | Promise<boolean> = () => true;
  /** Lifetime of the certificates, which begin an hour ago. */
  lifetimeMs = 90 * DAY_MS;
  /** Time by which it dates certificates. */
  nowMs: () => number = Date.now;
  /** Answers `renewal-info`; undefined: the directory does not have it. */
  renewalInfo: ((id: string) => ScriptedAnswer) | undefined;
  /** Members of the directory's `meta`. */
  meta: Record<string, unknown> = {};
  /** Authority of the issued certificates and of its own server. */
  readonly rootPem: string;
  private readonly key = generateKey();
  private readonly server: Server;
  private readonly nonces = new Set<string>();
  private readonly keys = new Map<string, { jwk: JsonWebKey; thumbprint: string }>();
  private readonly orders: FakeOrder[] = [];
  private origin = '';
  private counter = 0;

  /** A CA that ends with the test. */
  static async start(t: TestContext): Promise<FakeCa> {
    const ca = new FakeCa();
    await new Promise<void>((resolve) => ca.server.listen(0, '127.0.0.1', resolve));
    ca.origin = `https://localhost:${(ca.server.address() as AddressInfo).port}`;
    t.after(() => ca.stop());
    return ca;
  }

  private constructor() {
    const root = { commonName: 'Fake root', privateKey: this.key };
    const span = { notBeforeMs: Date.now() - DAY_MS, notAfterMs: Date.now() + 3650 * DAY_MS, issuer: root };
    const certificate = (commonName: string, hostnames: string[], publicKey: KeyObject, authority: boolean): string =>
      toPem('CERTIFICATE', buildCertificate({ commonName, hostnames, publicKey, authority, ...span }));
    this.rootPem = certificate('Fake root', [], createPublicKey(this.key), true);
    const serverKey = generateKey();
    const cert = certificate('localhost', ['localhost'], createPublicKey(serverKey), false);
    this.server = createServer({ cert, key: keyToPem(serverKey) }, (request, response) => {
      void this.answer(request).then(({ status, headers = {}, body }) => {
        const nonce = `nonce${++this.counter}`;
        this.nonces.add(nonce);
        const text = typeof body === 'string' ? body : JSON.stringify(body ?? {});
        response.writeHead(status, { 'replay-nonce': nonce, ...headers });
        response.end(text);
      });
    });
  }

  get directoryUrl(): string {
    return `${this.origin}/directory`;
  }

  /** Ends it; connections are refused from then on. */
  stop(): void {
    this.server.closeAllConnections();
    this.server.close();
  }

  /** Puts an answer in place of its next own one for this path. */
  next(path: string, answer: ScriptedAnswer): void {
    this.script.set(path, [...(this.script.get(path) ?? []), answer]);
  }

  /** Number of requests so far whose path is this one, numbers left out. */
  count(path: string): number {
    return this.requests.filter((request) => request === path).length;
  }

  /** Forgets all accounts, as a CA that was set up anew. */
  forgetAccounts(): void {
    this.keys.clear();
  }

  private async answer(request: IncomingMessage): Promise<ScriptedAnswer> {
    const { pathname } = new URL(request.url!, this.origin);
    const [, kind = '', id = ''] = pathname.split('/');
    this.requests.push(`/${kind}`);
    let text = '';
    for await (const chunk of request) text += chunk;
    const scripted = this.script.get(`/${kind}`)?.shift();
    if (scripted !== undefined) return scripted;
    if (kind === 'directory') return { status: 200, body: this.directory() };
    if (kind === 'new-nonce') return { status: 200 };
    if (kind === 'renewal-info') return this.renewalInfo!(id);
    const jws = JSON.parse(text) as { protected: string; payload: string; signature: string };
    const head = JSON.parse(decode(jws.protected)) as { nonce: string; url: string; kid?: string; jwk?: JsonWebKey };
    if (head.url !== `${this.origin}${pathname}`) return problem(401, 'unauthorized', 'wrong url');
    if (!this.nonces.delete(head.nonce)) return problem(400, 'badNonce', 'unknown nonce');
    const account = head.jwk === undefined ? this.keys.get(head.kid!) : { jwk: head.jwk, thumbprint: print(head.jwk) };
    if (account === undefined) return problem(400, 'accountDoesNotExist', 'no such account');
    const key = createPublicKey({ key: account.jwk, format: 'jwk' });
    const signed = Buffer.from(`${jws.protected}.${jws.payload}`);
    const signature = Buffer.from(jws.signature, 'base64url');
    if (!verify('sha256', signed, { key, dsaEncoding: 'ieee-p1363' }, signature)) {
      return problem(403, 'unauthorized', 'wrong signature');
    }
    const payload = jws.payload === '' ? {} : (JSON.parse(decode(jws.payload)) as Record<string, unknown>);
    return this.act(kind, id, payload, account);
  }

  private async act(
    kind: string,
    id: string,
    payload: Record<string, unknown>,
    account: { jwk: JsonWebKey; thumbprint: string },
  ): Promise<ScriptedAnswer> {
    const [orderIndex, nameIndex] = id.split('-').map(Number);
    const order = this.orders[orderIndex ?? -1];
    switch (kind) {
      case 'new-account': {
        this.accounts.push(payload);
        const url = `${this.origin}/account/${account.thumbprint}`;
        this.keys.set(url, account);
        return { status: 201, headers: { location: url }, body: { status: 'valid' } };
      }
      case 'account':
        this.accounts.push(payload);
        return { status: 200, body: { status: 'valid' } };
      case 'new-order': {
        const hostnames = (payload.identifiers as { value: string }[]).map(({ value }) => value);
        const replaces = payload.replaces as string | undefined;
        this.replaced.push(replaces);
        const made = { hostnames, replaces, status: 'pending', valid: new Set<string>(), failed: false };
        this.orders.push({ ...made, certificate: undefined });
        return this.showOrder(this.orders.length - 1, 201);
      }
      case 'order':
        return this.showOrder(orderIndex!, 200);
      case 'authorization':
        return { status: 200, body: this.showAuthorization(orderIndex!, nameIndex!) };
      case 'challenge': {
        const hostname = order!.hostnames[nameIndex!]!;
        const type = id.split('-').slice(2).join('-');
        const passed = await this.validate(hostname, type, `token-${id}.${account.thumbprint}`);
        if (passed) order!.valid.add(hostname);
        else order!.failed = true;
        if (order!.failed) order!.status = 'invalid';
        else if (order!.valid.size === order!.hostnames.length) order!.status = 'ready';
        return { status: 200, body: { status: 'processing' } };
      }
      case 'finalize':
        order!.certificate = this.issue(order!, Buffer.from(String(payload.csr), 'base64url'));
        order!.status = 'valid';
        return this.showOrder(orderIndex!, 200);
      case 'certificate':
        return { status: 200, body: order!.certificate };
      default:
        return problem(404, 'malformed', 'no such resource');
    }
  }

  private directory(): object {
    const resource = (name: string): string => `${this.origin}/${name}`;
    return {
      newNonce: resource('new-nonce'),
      newAccount: resource('new-account'),
      newOrder: resource('new-order'),
      ...(this.renewalInfo === undefined ? {} : { renewalInfo: resource('renewal-info') }),
      meta: this.meta,
    };
  }

  private showOrder(index: number, status: number): ScriptedAnswer {
    const order = this.orders[index]!;
    const body = {
      status: order.status,
      authorizations: order.hostnames.map((_, name) => `${this.origin}/authorization/${index}-${name}`),
      finalize: `${this.origin}/finalize/${index}`,
      ...(order.certificate === undefined ? {} : { certificate: `${this.origin}/certificate/${index}` }),
    };
    return { status, headers: { location: `${this.origin}/order/${index}` }, body };
  }

  private showAuthorization(index: number, name: number): object {
    const order = this.orders[index]!;
    const hostname = order.hostnames[name]!;
    const status = order.valid.has(hostname) ? 'valid' : order.failed ? 'invalid' : 'pending';
    const error = { type: 'urn:ietf:params:acme:error:connection', detail: 'Connection refused' };
    const challenges = ['http-01', 'tls-alpn-01'].map((type) => ({
      type,
      status,
      url: `${this.origin}/challenge/${index}-${name}-${type}`,
      token: `token-${index}-${name}-${type}`,
      ...(status === 'invalid' ? { error } : {}),
    }));
    return { identifier: { type: 'dns', value: hostname }, status, challenges };
  }

  /** A certificate for the key in a signing request. */
  private issue(order: FakeOrder, request: Buffer): string {
    const [info] = readElements(readElements(request)[0]!.content);
    const spki = readElements(info!.content)[2]!.content;
    // The element around it, with its header of two bytes.
    const publicKey = createPublicKey({
      key: Buffer.concat([Uint8Array.of(0x30, spki.length), spki]),
      type: 'spki',
      format: 'der',
    });
    const notBeforeMs = this.nowMs() - 3_600_000;
    const bytes = buildCertificate({
      commonName: '',
      hostnames: order.hostnames,
      notBeforeMs,
      notAfterMs: notBeforeMs + this.lifetimeMs,
      publicKey,
      issuer: { commonName: 'Fake root', privateKey: this.key },
    });
    return toPem('CERTIFICATE', bytes) + this.rootPem;
  }
}

/** An error document as an answer. */
export function problem(
  status: number,
  type: string,
  detail: string,
  headers: Record<string, string> = {},
): ScriptedAnswer {
  return { status, headers, body: { type: `urn:ietf:params:acme:error:${type}`, detail } };
}

/** The leaf of a chain. */
export function leafOf({ chainPem }: { chainPem: string }): X509Certificate {
  return new X509Certificate(chainPem);
}

function print(jwk: JsonWebKey): string {
  const { crv, kty, x, y } = jwk;
  return createHash('sha256').update(JSON.stringify({ crv, kty, x, y })).digest('base64url');
}

function decode(text: string): string {
  return Buffer.from(text, 'base64url').toString('utf8');
}
