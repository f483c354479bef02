// Shedding of requests while the gateway itself is overloaded, the least important first.
//
// The control thread judges how overloaded the gateway is (gateway/overload.ts) and writes the level into
// the node state; workers look at it when they accept connections and when they dispatch a request.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Priority } from '../lb/attempt-settings.ts';
import type { NodeState } from '../lb/node-state.ts';
import type { Exchange } from './exchange.ts';

/** What is done without, from level to level: everything of the levels before, too. */
export const OverloadLevel = {
  NONE: 0,
  /** No new connections are accepted: they wait in the system's queue. */
  ACCEPT: 1,
  /** Requests of rules with priority low are refused. */
  LOW: 2,
  /** So are those of priority default. */
  DEFAULT: 3,
} as const;

const { DEFAULT, LOW } = OverloadLevel;
const PRIORITY_LOW = Priority.LOW;
const PRIORITY_DEFAULT = Priority.DEFAULT;

/** Seconds that clients are told to wait, with as many again at random so that they do not come back together. */
const RETRY_SECONDS = 2;

/** Whether a request of this rule is to be refused at a level of overload (of LOW or more). */
export function isShed(exchange: Exchange, level: number): boolean {
  if (level < LOW) return false;
  const priority = exchange.policy === null ? PRIORITY_DEFAULT : exchange.policy.settings.priority;
  return priority === PRIORITY_LOW || (level >= DEFAULT && priority === PRIORITY_DEFAULT);
}

/** Counts a request that is shed. */
export function countShed(exchange: Exchange, node: NodeState): void {
  node.countShed(exchange.policy !== null && exchange.policy.settings.priority === PRIORITY_LOW);
}

/** Seconds for Retry-After, spread by a random number. */
export function shedRetrySeconds(random: number): number {
  return RETRY_SECONDS + ((random >>> 1) % (RETRY_SECONDS + 1));
}
