// Whose token it is: every answer of the API server that is not a clear yes is a no.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ApiRequest } from '../../../../mesh-agent/kubernetes/api-client.ts';
import { ApiClient } from '../../../../mesh-agent/kubernetes/api-client.ts';
import { ApiError } from '../../../../mesh-agent/kubernetes/api-error.ts';
import { KubernetesTokenReviewer } from '../../../../mesh-agent/kubernetes/token-review.ts';
import { configFor, startApi } from '../../../support/kube-api/harness.ts';
import { Refusal } from '../../../support/kube-api/status.ts';

const USER = 'system:serviceaccount:shop:cart';
const extra = {
  'authentication.kubernetes.io/pod-name': ['cart-0'],
  'authentication.kubernetes.io/pod-uid': ['u-1'],
  'authentication.kubernetes.io/node-name': ['node-a'],
};

function tokenWith(payload: object): string {
  return ['{}', JSON.stringify(payload), 'signature'].map((part) => Buffer.from(part).toString('base64url')).join('.');
}

/** A reviewer whose API server answers with this status. */
function reviewing(status: unknown, options: { nodeOfPod?: () => string } = {}) {
  const asked: ApiRequest[] = [];
  let nowMs = 1_000_000;
  const client = {
    json: async (request: ApiRequest): Promise<unknown> => {
      asked.push(request);
      if (status instanceof Error) throw status;
      return { kind: 'TokenReview', status };
    },
  };
  const reviewer = new KubernetesTokenReviewer({ client, audience: 'portcullis', nowMs: () => nowMs, ...options });
  return { reviewer, asked, wait: (ms: number) => (nowMs += ms) };
}

const good = { authenticated: true, audiences: ['portcullis'], user: { username: USER, extra } };

test('a valid token names its service account, pod and node', async () => {
  const { reviewer, asked } = reviewing(good);
  const review = await reviewer.review('a.b.c');
  assert.deepEqual(review, { namespace: 'shop', serviceAccount: 'cart', pod: 'cart-0', node: 'node-a' });
  assert.deepEqual(asked[0]!.body, {
    apiVersion: 'authentication.k8s.io/v1',
    kind: 'TokenReview',
    spec: { token: 'a.b.c', audiences: ['portcullis'] },
  });
});

for (const [what, status] of [
  ['not authenticated', { authenticated: false, error: 'expired' }],
  ['without a word on it', {}],
  ['authenticated in words only', { ...good, authenticated: 'true' }],
  ['from a server that knows no audiences', { ...good, audiences: undefined }],
  ['for another audience', { ...good, audiences: ['https://kubernetes.default.svc'] }],
  ['of a person', { ...good, user: { username: 'alice' } }],
  ['of a node', { ...good, user: { username: 'system:node:node-a' } }],
  ['of a name with too many parts', { ...good, user: { username: `${USER}:more` } }],
  ['of nobody', { ...good, user: undefined }],
] as const) {
  test(`a token ${what} is refused`, async () => {
    await assert.rejects(reviewing(status).reviewer.review('a.b.c'), { code: 'unauthenticated' });
  });
}

test('no answer, or one that is none, is no refusal of the token, and is not remembered', async () => {
  for (const status of [
    new ApiError('unreachable', 'refused'),
    new ApiError('forbidden', 'no role'),
    undefined,
    null,
  ]) {
    const { reviewer, asked } = reviewing(status);
    await assert.rejects(reviewer.review('a.b.c'), { code: 'ca-unreachable' });
    await assert.rejects(reviewer.review('a.b.c'), { code: 'ca-unreachable' });
    assert.equal(asked.length, 2);
  }
});

test('what is no token at all is refused without asking', async () => {
  const { reviewer, asked } = reviewing(good);
  for (const token of ['', 'a.b', 'a.b.c.d', 'a.b.c\n', 'a b.c.d', `a.b.${'c'.repeat(20_000)}`]) {
    await assert.rejects(reviewer.review(token), { code: 'unauthenticated' });
  }
  assert.equal(asked.length, 0);
});

test('answers are remembered for half a minute, refusals for seconds, and never beyond the token’s end', async () => {
  const valid = reviewing(good);
  await Promise.all([valid.reviewer.review('a.b.c'), valid.reviewer.review('a.b.c')]);
  valid.wait(29_000);
  await valid.reviewer.review('a.b.c');
  assert.equal(valid.asked.length, 1, 'one question for all');
  valid.wait(2000);
  await valid.reviewer.review('a.b.c');
  assert.equal(valid.asked.length, 2);
  await valid.reviewer.review('a.b.d');
  assert.equal(valid.asked.length, 3, 'another token is another question');

  const invalid = reviewing({ authenticated: false });
  await assert.rejects(invalid.reviewer.review('a.b.c'));
  await assert.rejects(invalid.reviewer.review('a.b.c'), { code: 'unauthenticated' });
  assert.equal(invalid.asked.length, 1);
  invalid.wait(5001);
  await assert.rejects(invalid.reviewer.review('a.b.c'));
  assert.equal(invalid.asked.length, 2);

  const ending = reviewing(good);
  const token = tokenWith({ exp: 1003 });
  await ending.reviewer.review(token);
  ending.wait(3001);
  await ending.reviewer.review(token);
  assert.equal(ending.asked.length, 2);
});

test('without a node in the token, the pod is looked up, by name and uid', async () => {
  const { 'authentication.kubernetes.io/node-name': _, ...older } = extra;
  const status = { ...good, user: { username: USER, extra: older } };
  const seen: unknown[] = [];
  const nodeOfPod = (...asked: unknown[]): string => {
    seen.push(asked);
    return 'node-b';
  };
  assert.equal((await reviewing(status, { nodeOfPod }).reviewer.review('a.b.c')).node, 'node-b');
  assert.deepEqual(seen, [['shop', 'cart-0', 'u-1']]);
  assert.equal((await reviewing(status).reviewer.review('a.b.c')).node, '');
});

test('an extra with several values is nobody’s word', async () => {
  const twice = { ...extra, 'authentication.kubernetes.io/node-name': ['node-a', 'node-b'] };
  const { reviewer } = reviewing({ ...good, user: { username: USER, extra: twice } });
  assert.equal((await reviewer.review('a.b.c')).node, '');
});

test('a flood of tokens becomes no flood of questions', async () => {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  let questions = 0;
  const client = {
    json: async (): Promise<unknown> => {
      questions++;
      await held;
      return { status: { authenticated: false } };
    },
  };
  const reviewer = new KubernetesTokenReviewer({ client, audience: 'portcullis' });
  const results = Promise.allSettled(Array.from({ length: 500 }, (_, index) => reviewer.review(`a.b.${index}`)));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(questions, 64);
  release();
  const codes = (await results).map((result) => (result.status === 'rejected' ? result.reason.code : ''));
  assert.equal(codes.filter((code) => code === 'ca-unreachable').length, 436);
});

test('over the wire: audience, unknown tokens, a server without audiences, and one that is away', async (t) => {
  const api = await startApi(t);
  const client = new ApiClient(async () => configFor(api));
  t.after(() => client.close());
  api.access.tokens.set('a.b.good', { username: USER, audiences: ['portcullis'], extra });
  api.access.tokens.set('a.b.other', { username: USER });
  const reviewer = new KubernetesTokenReviewer({ client, audience: 'portcullis' });
  assert.equal((await reviewer.review('a.b.good')).node, 'node-a');
  await assert.rejects(reviewer.review('a.b.other'), { code: 'unauthenticated' });
  await assert.rejects(reviewer.review('a.b.unknown'), { code: 'unauthenticated', message: /invalid bearer token/ });
  api.access.audienceUnaware = true;
  const fresh = new KubernetesTokenReviewer({ client, audience: 'portcullis' });
  await assert.rejects(fresh.review('a.b.good'), { code: 'unauthenticated' });
  api.refuse('create', 'tokenreviews', new Refusal(503, 'ServiceUnavailable', 'starting'));
  await assert.rejects(fresh.review('a.b.third'), { code: 'ca-unreachable' });
  await api.stop();
  await assert.rejects(fresh.review('a.b.fourth'), { code: 'ca-unreachable' });
});
