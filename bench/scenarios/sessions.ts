// What session persistence costs a client that has its session already.

import { askWhole } from '../lib/ask.ts';
import { bodyPath, SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { RunningProxy } from '../lib/context.ts';
import { BROWSER_HEADERS } from '../lib/figures.ts';
import { SESSION_COOKIES } from '../lib/traffic.ts';
import { featureScenario, withSet } from './feature.ts';

const SETS = ['session', 'session-renewed'] as const;

/** Cookies sent back, over nine endpoints. */
export const sessions = featureScenario({
  name: 'sessions',
  title: 'Session persistence',
  what: "Each request brings the cookies of its sessions, after a browser's others, and goes to the endpoint named there. renewed: with an idle timeout, so that each response sets the cookie anew.",
  sets: SETS,
  backends: 'nine',
  headers: async (proxies) => ({ Cookie: await cookies(proxies) }),
  shows: ({ headers }, set) => (headers['set-cookie'] !== undefined) === (set === 'session-renewed'),
});

/** A browser's Cookie field with one session of each set: all proxies get the same requests. */
async function cookies(proxies: readonly RunningProxy[]): Promise<string> {
  const pairs = [BROWSER_HEADERS.Cookie];
  for (const set of SETS) {
    const proxy = withSet(proxies, set);
    if (proxy === undefined) continue;
    const { headers } = await askWhole(proxy.port, bodyPath(SMALL_BODY_BYTES), {});
    const pair = headers['set-cookie']?.map((line) => line.split(';')[0]).find(isOf(SESSION_COOKIES[set]));
    if (pair === undefined) throw new Error(`${proxy.name} begins no session`);
    pairs.push(pair);
  }
  return pairs.join('; ');
}

function isOf(name: string): (pair: string) => boolean {
  return (pair) => pair.startsWith(`${name}=`);
}
