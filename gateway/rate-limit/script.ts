// The script by which Redis counts requests: the same token buckets as core/limits/limit-table.ts, for all
// gateways together. Redis runs a script without interruption, so that the decision is exact.
//
// A key holds the time, in ticks, at which its bucket is full again, and is gone once it is. Time is that of Redis.
// For several limits at once: either all let the request pass, and are charged, or none is charged.

import { createHash } from 'node:crypto';
import type { RateLimitSettings } from '../../core/limits/limit-settings.ts';
import { limitTicks } from '../../core/limits/limit-table.ts';

/** KEYS: buckets. ARGV, for each: ticks per microsecond, ticks of a request, ticks of a full bucket, 1 if it refuses nothing. */
const source = `
local time = redis.call('TIME')
local us = (time[1] - 1600000000) * 1000000 + time[2]
local used, now, allowed = {}, {}, {}
local pass = true
for i = 1, #KEYS do
  local a = (i - 1) * 4
  local cost, fill = tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  now[i] = math.floor(us * tonumber(ARGV[a + 1]))
  local ahead = tonumber(redis.call('GET', KEYS[i]) or '0') - now[i]
  if ahead < 0 then ahead = 0 end
  if ahead > fill then ahead = fill end
  used[i] = ahead
  allowed[i] = ahead + cost <= fill
  if not allowed[i] and ARGV[a + 4] == '0' then pass = false end
end
local result = {}
for i = 1, #KEYS do
  local a = (i - 1) * 4
  if pass and allowed[i] then
    used[i] = used[i] + tonumber(ARGV[a + 2])
    local ms = math.ceil(used[i] / tonumber(ARGV[a + 1]) / 1000) + 1000
    redis.call('SET', KEYS[i], string.format('%.0f', now[i] + used[i]), 'PX', string.format('%.0f', ms))
  end
  result[#result + 1] = allowed[i] and 1 or 0
  result[#result + 1] = used[i]
end
return result
`;

/** The script, and the digest by which it is called once Redis knows it. */
export const limitScript: { source: string; sha1: string } = {
  source,
  sha1: createHash('sha1').update(source).digest('hex'),
};

/** A limit as the script takes it. */
export class ScriptLimit {
  readonly args: readonly string[];
  private readonly keyStart: string;
  private readonly identity: string;
  private readonly cost: number;
  private readonly fill: number;
  private readonly ticksPerSecond: number;

  constructor(settings: RateLimitSettings, keyPrefix: string) {
    const { name, requests, periodMs, burst, key, dryRun } = settings;
    const { ticksPerMs, cost, fill } = limitTicks(settings);
    this.args = [String(ticksPerMs / 1000), String(cost), String(fill), dryRun ? '1' : '0'];
    this.keyStart = `${keyPrefix}limit:${name}:`;
    this.identity = JSON.stringify([requests, periodMs, burst, key]);
    this.cost = cost;
    this.fill = fill;
    this.ticksPerSecond = ticksPerMs * 1000;
  }

  /** Name of a bucket. Keys of requests may be secrets (tokens, API keys), so that only their hash leaves this process. */
  bucket(key: string): string {
    const hash = createHash('sha256').update(this.identity).update('\0').update(key, 'latin1').digest('base64url');
    return this.keyStart + hash.slice(0, 22);
  }

  /** What the script says of a bucket: 1 or 0, requests left, and whole seconds until there are more. */
  result(allowed: number, used: number): [number, number, number] {
    const free = Math.max(this.fill - used, 0);
    const waitTicks = free < this.cost ? this.cost - free : used;
    return [allowed, Math.floor(free / this.cost), Math.ceil(waitTicks / this.ticksPerSecond)];
  }
}
