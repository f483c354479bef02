// Replays a recording: what a new configuration would do with each request, compared with what the
// running one did.
//
// Runs in the process of `portcullis check`. Balancing by weight is chance, so backends are compared as
// sets: all that the old rule and the new one may choose. Limits, faults and health are not replayed.

import type { Config } from '../../config/config.ts';
import type { RecordedRequest } from '../../core/telemetry/recorder-reader.ts';
import { openRecording } from './read-recording.ts';
import { type Fate, ReplayRouter } from './router.ts';

/** How a request would fare, compared with how it did. */
export const outcomes = {
  kept: 'keep their route and backends',
  route: 'would take another route to the same backends',
  backend: 'would go to other backends',
  lost: 'would lose their route (404)',
  answered: 'would be answered by the gateway itself',
  forwarded: 'would go to a backend instead of being answered by the gateway',
  gained: 'had no route (404) and would have one',
} as const;

/** One of `outcomes`. */
export type Outcome = keyof typeof outcomes;

/** One request as an example. */
export interface Example {
  time: string;
  listener: string;
  method: string;
  host: string;
  path: string;
  client: string;
  /** What it did and what it would do, such as `shop rule 1, backend cart-v1`. */
  before: string;
  after: string;
}

/** What became of a recording. */
export interface ReplayResult {
  file: string;
  requests: number;
  /** All but those that keep route and backends. */
  changed: number;
  outcomes: Record<Outcome, number>;
  /** Requests with the same backends in other shares. */
  otherShares: number;
  /** The first ones of each outcome but `kept`. */
  examples: Partial<Record<Outcome, Example[]>>;
  /** What the figures do not tell. */
  notes: string[];
}

/** Examples of each outcome. */
const EXAMPLES_MAX = 5;

/** Longest text of an example. */
const TEXT_MAX = 200;

/** Routes the requests of a recording through `config`. Throws an ExitError when the file is no recording. */
export async function replayFile(file: string, config: Config): Promise<ReplayResult> {
  const { header, requests } = await openRecording(file);
  const router = new ReplayRouter(config);
  const counts = Object.fromEntries(Object.keys(outcomes).map((name) => [name, 0])) as Record<Outcome, number>;
  const result: ReplayResult = {
    file,
    requests: 0,
    changed: 0,
    outcomes: counts,
    otherShares: 0,
    examples: {},
    notes: notesOf(config, header.hashedHeaders, header.tooLong),
  };
  for await (const request of requests) {
    const fate = router.fateOf(request);
    const outcome = outcomeOf(request, fate);
    result.requests++;
    counts[outcome]++;
    if (fate.kind === 'forwarded' && sameBackends(request, fate) && !sameShares(request.backends, fate.backends)) {
      result.otherShares++;
    }
    if (outcome === 'kept') continue;
    result.changed++;
    result.examples[outcome] ??= [];
    const examples = result.examples[outcome];
    if (examples.length < EXAMPLES_MAX) examples.push(exampleOf(request, fate));
  }
  if (result.requests === 0) result.notes.push('the recording holds no request');
  return result;
}

function outcomeOf(before: RecordedRequest, after: Fate): Outcome {
  const wasAnswered = answeredBefore(before);
  const wasForwarded = before.backend !== '' && !wasAnswered;
  switch (after.kind) {
    case 'none':
      return wasForwarded || wasAnswered ? 'lost' : 'kept';
    case 'answered':
      if (!wasAnswered) return 'answered';
      return routeOf(before) === after.route || after.route === '' ? 'kept' : 'route';
    case 'forwarded':
      if (wasAnswered) return 'forwarded';
      if (!wasForwarded) return 'gained';
      if (!sameBackends(before, after)) return 'backend';
      return routeOf(before) === after.route ? 'kept' : 'route';
  }
}

/** The gateway answered, and not because something failed: a redirect, or an answer of a rule's own. */
function answeredBefore({ generated, reason, route, backend }: RecordedRequest): boolean {
  return (generated && reason === 0) || (route !== '' && backend === '');
}

/** Name of the route in a label such as `shop rule 2`; a rule's number changes with those before it. */
function routeOf({ route }: RecordedRequest): string {
  return route.replace(/ rule \d+$/, '');
}

/** Backends that a recorded request could have gone to. */
function backendsBefore({ backends, backend }: RecordedRequest): string[] {
  const names = Object.keys(backends).filter((name) => backends[name]! > 0);
  return names.length > 0 || backend === '' ? names : [backend];
}

function sameBackends(before: RecordedRequest, after: { backends: Record<string, number> }): boolean {
  const names = backendsBefore(before);
  const wanted = Object.keys(after.backends);
  return names.length === wanted.length && names.every((name) => Object.hasOwn(after.backends, name));
}

/** Whether the same names have the same share of their sum. */
function sameShares(a: Record<string, number>, b: Record<string, number>): boolean {
  const sum = (shares: Record<string, number>): number =>
    Object.values(shares).reduce((total, weight) => total + weight, 0);
  const sumA = sum(a);
  const sumB = sum(b);
  return Object.keys(b).every((name) => (a[name] ?? 0) * sumB === b[name]! * sumA);
}

/** What a reader of the figures has to know. */
function notesOf(config: Config, hashed: readonly string[], tooLong: number): string[] {
  const notes: string[] = [];
  const tested = new Set<string>();
  for (const { rules } of config.routes) {
    for (const { matches } of rules) {
      for (const match of matches) {
        for (const { name } of match.conditions?.headers ?? []) if (hashed.includes(name)) tested.add(name);
      }
    }
  }
  if (tested.size > 0) {
    const names = [...tested].join(', ');
    notes.push(
      `rules match on ${names}, whose values are hashed in the recording: requests that these rules take may be judged wrongly`,
    );
  }
  if (tooLong > 0) notes.push(`${tooLong} requests are not in the recording because their heads were too long for it`);
  return notes;
}

function exampleOf(request: RecordedRequest, after: Fate): Example {
  const { time, listener, method, host, path, client } = request;
  return {
    time,
    listener,
    method,
    host: short(host),
    path: short(path),
    client,
    before: describeBefore(request),
    after: describeAfter(after),
  };
}

function describeBefore(request: RecordedRequest): string {
  const { route, backend, status } = request;
  if (backend !== '' && !answeredBefore(request)) return `${route}, backend ${backendsBefore(request).join(' or ')}`;
  return route !== '' ? `${route}, answered with ${status}` : `no route, answered with ${status}`;
}

function describeAfter(fate: Fate): string {
  switch (fate.kind) {
    case 'none':
      return fate.cause === 'no listener'
        ? 'no listener of this name'
        : fate.cause === 'no rule'
          ? 'no route'
          : 'a head that is refused';
    case 'answered':
      return fate.label === '' ? fate.how : `${fate.label}, ${fate.how}`;
    case 'forwarded':
      return `${fate.label}, backend ${Object.keys(fate.backends).join(' or ')}`;
  }
}

function short(text: string): string {
  return text.length <= TEXT_MAX ? text : `${text.slice(0, TEXT_MAX)}...`;
}
