// Rate limits, Redis and overload thresholds as the program uses them. Control thread; runs on valid input with its defaults filled in.

import type { Static } from 'typebox';
import type { RateLimitKeyPart, RateLimitSettings } from '../core/limits/limit-settings.ts';
import type { OverloadConfig, RedisConfig } from './config.ts';
import { parseAddress } from './names.ts';
import type { overloadSchema } from './overload-schema.ts';
import type { rateLimitsSchema, redisSchema } from './rate-limit-schema.ts';
import { parseDurationMs } from './units.ts';

type LimitInput = Static<typeof rateLimitsSchema>[number];

/** Largest default of `burst`. */
const BURST_MAX = 10_000_000;

/** The limits of a rule. */
export function rateLimits(input: LimitInput[]): RateLimitSettings[] {
  return input.map((limit) => ({
    name: limit.name,
    requests: limit.requests,
    periodMs: parseDurationMs(String(limit.period))!,
    burst: limit.burst ?? Math.min(limit.requests, BURST_MAX),
    key: limit.key!.map(keyPart),
    keysMax: limit.maxKeys!,
    global: limit.global!,
    dryRun: limit.dryRun!,
    headers: limit.headers!,
  }));
}

function keyPart(part: NonNullable<LimitInput['key']>[number]): RateLimitKeyPart {
  if (typeof part === 'string') return { type: part };
  if (part.header !== undefined) return { type: 'header', name: part.header.toLowerCase() };
  return { type: 'jwtClaim', claim: part.jwtClaim! };
}

/** Where Redis is, and what is done without it. */
export function redisConfig(input: Static<typeof redisSchema>, fileOf: (name: string) => string): RedisConfig {
  const place = parseAddress(input.address);
  if (typeof place === 'string') throw new Error(`address "${input.address}" ${place}`);
  const { host, port, isIp } = place;
  return {
    address: input.address,
    host,
    port,
    username: input.username ?? null,
    password: input.password ?? null,
    database: input.database!,
    tls:
      input.tls === undefined
        ? null
        : {
            serverName: input.tls.serverName ?? (isIp ? '' : host),
            caFile: input.tls.caCertificates === undefined ? null : fileOf(input.tls.caCertificates),
          },
    timeoutMs: parseDurationMs(String(input.timeout))!,
    failure: input.failure!,
    keyPrefix: input.keyPrefix!,
  };
}

/** Thresholds of overload. */
export function overloadConfig(input: Static<typeof overloadSchema>): OverloadConfig {
  return {
    descriptors: input.descriptors!,
    connections: input.connections!,
    buffers: input.buffers!,
    memory: input.memory!,
    loopLagMs: parseDurationMs(String(input.loopLag))!,
  };
}
