// What traffic features cost: all of them in the configuration without work to do, and single ones at
// work, each beside Portcullis without any.

import { atMost, ratio } from '../lib/report.ts';
import { ALLOWED_ORIGIN, FAULT_FIELD, KEY_FIELD } from '../lib/traffic.ts';
import { compression } from './compression.ts';
import { featureScenario } from './feature.ts';
import { mirror } from './mirror.ts';
import type { Scenario } from './scenario.ts';
import { sessions } from './sessions.ts';

/** CPU per request with all features idle, over that without. */
const IDLE_RATIO_MAX = 1.05;

/** All scenarios of traffic features. */
export const traffic: readonly Scenario[] = [
  featureScenario({
    name: 'idle',
    title: 'All traffic features, idle',
    what: 'The configuration has every traffic feature, none of which has anything to do: retries, circuit breaker, outlier detection, health check, rate limit far away, conditions that do not apply.',
    sets: ['idle'],
    targets: (summaries) => [
      atMost(
        'CPU per request, features idle ÷ without',
        ratio(summaries, 'portcullis, idle', 'portcullis'),
        IDLE_RATIO_MAX,
      ),
    ],
  }),
  featureScenario({
    name: 'rate-limit',
    title: 'Local rate limit',
    what: 'Each request takes a token of a bucket of its own address.',
    sets: ['rate-limit'],
  }),
  featureScenario({
    name: 'rate-limit-keys',
    title: 'Local rate limit by field or claim',
    what: 'Each request takes a token of the bucket of its API key, or of the subject in its bearer token of 600 bytes. All have the same ones, so the bucket is always in the cache.',
    sets: ['rate-limit-header', 'rate-limit-jwt'],
    headers: async () => ({
      [KEY_FIELD]: '5d41402abc4b2a76b9719d911017c592',
      Authorization: `Bearer ${bearerToken()}`,
    }),
  }),
  featureScenario({
    name: 'headers',
    title: 'Header modification',
    what: 'Two fields are set and one is removed, in requests and in responses.',
    sets: ['headers'],
    shows: ({ headers }) => headers['x-one'] === 'a',
  }),
  featureScenario({
    name: 'cors',
    title: 'CORS',
    what: 'Each request has an Origin, the second of two allowed ones; its response gets four fields. No preflights.',
    sets: ['cors'],
    headers: async () => ({ Origin: ALLOWED_ORIGIN }),
    shows: ({ headers }) => headers['access-control-allow-origin'] === ALLOWED_ORIGIN,
  }),
  featureScenario({
    name: 'retries',
    title: 'Retries',
    what: 'Retries and a circuit breaker are on; nothing fails.',
    sets: ['retries'],
  }),
  featureScenario({
    name: 'breakers',
    title: 'Circuit breaker and outlier detection',
    what: 'breaker: a circuit breaker with three limits far away. outlier: the same, and outlier detection of every kind. Nothing fails.',
    sets: ['breaker', 'outlier'],
    backends: 'nine',
  }),
  featureScenario({
    name: 'hedge',
    title: 'Hedging',
    what: 'Requests slower than 95 % of the others, and than 10 ms, are sent a second time, at most 2 %. Ordinary backends: hardly any is.',
    sets: ['hedge'],
    backends: 'nine',
  }),
  featureScenario({
    name: 'adaptive',
    title: 'Adaptive concurrency',
    what: 'Every latency is noted and the limit set anew each 100 ms; it stays above the number of connections, so nothing is refused.',
    sets: ['adaptive'],
  }),
  sessions,
  featureScenario({
    name: 'faults',
    title: 'Fault injection',
    what: 'Each request has the field that faults ask for. never: lots are drawn, and one in a million is hit. delay: 1 % wait for 5 ms. abort: 10 % are answered by the gateway, so they cost it no backend.',
    sets: ['fault-never', 'fault-delay', 'fault-abort'],
    headers: async () => ({ [FAULT_FIELD]: '1' }),
  }),
  featureScenario({
    name: 'recorder',
    title: 'Request recorder',
    what: 'The head of each request is kept for `portcullis check --replay`, its three cookies hashed.',
    sets: ['recorder'],
  }),
  ...mirror,
  compression,
];

/** A token as identity providers make them, signature of RSA-2048 included; nobody verifies it. */
function bearerToken(): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const header = part({ alg: 'RS256', typ: 'JWT', kid: '2f8d1c4e' });
  const claims = part({
    iss: 'https://login.example.com/',
    aud: 'https://shop.example.com',
    iat: 1_780_000_000,
    exp: 1_780_003_600,
    scope: 'openid profile orders:read',
    sub: 'user|64af3c09d1',
  });
  return `${header}.${claims}.${Buffer.alloc(256, 0x5a).toString('base64url')}`;
}
