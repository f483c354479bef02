// Asks the Kubernetes API server whose service-account token a caller brought (TokenReview).
//
// Fails closed: a token counts only when the server says that it is valid, for our audience, and a service account's.
// Answers are remembered briefly, by a hash of the token, so that a node proxy that asks for a hundred certificates
// costs one question; a token that is revoked is accepted that much longer. Tokens are neither kept nor logged.
//
// Control threads. Spec: authentication.k8s.io/v1 TokenReview; Kubernetes "Bound service account tokens".

import { createHash } from 'node:crypto';
import type { ServiceAccountReview, TokenReviewer } from '../identity/attestation.ts';
import { IdentityError } from '../identity/errors.ts';
import type { ApiClient } from './api-client.ts';
import { ApiError } from './api-error.ts';

/** How long a valid token is taken without asking again. */
const VALID_MS = 30_000;

/** How long an invalid one is refused without asking again: a token is not valid until it exists. */
const INVALID_MS = 5_000;

/** Answers kept; the oldest goes. */
const ANSWERS_MAX = 10_000;

/** Questions under way; a flood of tokens must not become a flood at the API server. */
const QUESTIONS_MAX = 64;

/** Longest token that is looked at; real ones have some 1,200 characters. */
const TOKEN_LENGTH_MAX = 16_384;

const PATH = '/apis/authentication.k8s.io/v1/tokenreviews';
const USER = /^system:serviceaccount:([^:]+):([^:]+)$/;
const EXTRA = 'authentication.kubernetes.io/';

/** Node of a pod, for API servers before 1.30, whose tokens do not name it; empty: there is no such pod. */
export type NodeOfPod = (namespace: string, pod: string, uid: string) => string;

/** What a token has to be for, and where its pod may be looked up. */
export interface TokenReviewOptions {
  client: Pick<ApiClient, 'json'>;
  /** Audience that the token must be made for, such as `portcullis`; a token for the API server itself is refused. */
  audience: string;
  nodeOfPod?: NodeOfPod;
  /** Milliseconds since 1970. */
  nowMs?: () => number;
}

interface Answer {
  result: ServiceAccountReview | IdentityError;
  untilMs: number;
}

/** The part of a TokenReview that is read; any of it may be missing. */
interface ReviewObject {
  status?: {
    authenticated?: unknown;
    audiences?: unknown;
    error?: unknown;
    user?: { username?: unknown; extra?: Record<string, unknown> };
  };
}

/** Reviews tokens with one API server. */
export class KubernetesTokenReviewer implements TokenReviewer {
  private readonly options: TokenReviewOptions;
  private readonly nowMs: () => number;
  /** By SHA-256 of the token; in the order of their coming. */
  private readonly answers = new Map<string, Answer>();
  private readonly underWay = new Map<string, Promise<ServiceAccountReview>>();

  constructor(options: TokenReviewOptions) {
    this.options = options;
    this.nowMs = options.nowMs ?? Date.now;
  }

  /** See TokenReviewer: whose token this is, or an IdentityError `unauthenticated` or `ca-unreachable`. */
  async review(token: string): Promise<ServiceAccountReview> {
    if (token.length > TOKEN_LENGTH_MAX || !/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) {
      throw new IdentityError('unauthenticated', 'the token is not a service-account token');
    }
    const key = createHash('sha256').update(token).digest('base64');
    const known = this.answers.get(key);
    if (known !== undefined && known.untilMs > this.nowMs()) {
      if (known.result instanceof IdentityError) throw known.result;
      return known.result;
    }
    let question = this.underWay.get(key);
    if (question === undefined) {
      if (this.underWay.size >= QUESTIONS_MAX) {
        throw new IdentityError('ca-unreachable', 'too many tokens are being reviewed', 'try again in a few seconds');
      }
      question = this.ask(token, key).finally(() => this.underWay.delete(key));
      this.underWay.set(key, question);
    }
    return question;
  }

  private async ask(token: string, key: string): Promise<ServiceAccountReview> {
    const { client, audience } = this.options;
    let answer: unknown;
    try {
      const spec = { token, audiences: [audience] };
      const body = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec };
      answer = await client.json({ path: PATH, body });
    } catch (error) {
      throw unreachable(error);
    }
    let result: ServiceAccountReview | IdentityError;
    try {
      result = this.judge(answer);
    } catch (error) {
      if (!(error instanceof IdentityError) || error.code !== 'unauthenticated') throw error;
      result = error;
    }
    this.remember(key, result, token);
    if (result instanceof IdentityError) throw result;
    return result;
  }

  private judge(answer: unknown): ServiceAccountReview {
    const status = (answer as ReviewObject | null)?.status;
    if (typeof status !== 'object' || status === null) {
      throw new IdentityError('ca-unreachable', 'the Kubernetes API server answered without a status');
    }
    if (status.authenticated !== true) {
      // "Could not be checked" comes with an error as well, and cannot be told from "is not valid".
      const why = typeof status.error === 'string' && status.error !== '' ? `: ${status.error.slice(0, 200)}` : '';
      throw new IdentityError('unauthenticated', `the service-account token is not valid${why}`);
    }
    const { audience } = this.options;
    // Without audiences the server did not look at ours, and the token may be meant for the server itself.
    if (!Array.isArray(status.audiences) || !status.audiences.includes(audience)) {
      const advice = `mount a projected service-account token with audience: ${audience}`;
      throw new IdentityError(
        'unauthenticated',
        `the service-account token is not for the audience ${audience}`,
        advice,
      );
    }
    const names = USER.exec(String(status.user?.username ?? ''));
    if (names === null) throw new IdentityError('unauthenticated', 'the token is not of a service account');
    const [, namespace = '', serviceAccount = ''] = names;
    const pod = this.extra(status.user?.extra, 'pod-name');
    let node = this.extra(status.user?.extra, 'node-name');
    if (node === '' && pod !== '') {
      node = this.options.nodeOfPod?.(namespace, pod, this.extra(status.user?.extra, 'pod-uid')) ?? '';
    }
    return { namespace, serviceAccount, pod, node };
  }

  /** One value of `extra`; several would be somebody else's invention, and are taken for none. */
  private extra(extra: Record<string, unknown> | undefined, name: string): string {
    const values = extra?.[EXTRA + name];
    return Array.isArray(values) && values.length === 1 && typeof values[0] === 'string' ? values[0] : '';
  }

  private remember(key: string, result: ServiceAccountReview | IdentityError, token: string): void {
    const nowMs = this.nowMs();
    const valid = !(result instanceof IdentityError);
    // A pod that is not known yet may be a moment later.
    const keepMs = valid && (result.node !== '' || result.pod === '') ? VALID_MS : INVALID_MS;
    this.answers.delete(key);
    this.answers.set(key, { result, untilMs: Math.min(nowMs + keepMs, valid ? expiryMs(token) : Infinity) });
    for (const oldest of this.answers.keys()) {
      if (this.answers.size <= ANSWERS_MAX) break;
      this.answers.delete(oldest);
    }
  }
}

/** When a token that the server has accepted runs out, by its own word; infinite when it does not say. */
function expiryMs(token: string): number {
  try {
    const payload = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString());
    return typeof payload?.exp === 'number' ? payload.exp * 1000 : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

function unreachable(error: unknown): IdentityError {
  const cause = error instanceof Error ? error.message : String(error);
  const advice =
    error instanceof ApiError && error.code === 'forbidden'
      ? 'the control plane needs create on tokenreviews.authentication.k8s.io'
      : '';
  return new IdentityError('ca-unreachable', `the token could not be reviewed: ${cause}`, advice);
}
