// The recorder of requests in the configuration.
//
// Control thread. One part of the schema (schema.ts); what is recorded, and how, is told by
// core/telemetry/request-recorder.ts and docs/check.md.

import type { RecorderConfig } from './config.ts';
import { duration, size, token } from './kinds.ts';
import { list, mapping, maybe } from './schema-builder.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';

/** Fields that usually carry secrets. */
const redactedByDefault = ['x-api-key', 'x-auth-token', 'x-csrf-token', 'x-amz-security-token'];

/** `recorder`. */
export const recorderSchema = mapping(
  {
    size: maybe(
      size({
        default: '16MiB',
        minBytes: 128 * 1024,
        maxBytes: 1024 ** 3,
        description: 'Memory for recorded requests, over all workers; what is used is the next smaller power of two.',
      }),
    ),
    maxAge: maybe(
      duration({ default: '10m', description: 'Age from which a recorded request is not shown any more.' }),
    ),
    redactHeaders: maybe(
      list(token({ description: 'Name of a header field.' }, 'the name of a header field such as x-api-key'), {
        default: redactedByDefault,
        maxItems: 64,
        description:
          'Header fields whose values are hashed, besides Authorization, Proxy-Authorization and the values of cookies, which always are.',
      }),
    ),
  },
  {
    description:
      'Keeps the heads of the last requests in memory, for `portcullis check --replay`; secrets are hashed, bodies not kept. Absent: off.',
  },
);

/** Valid input, defaults filled in. */
interface RecorderInput {
  size?: string | number;
  maxAge?: string | number;
  redactHeaders?: string[];
}

/** The recorder of a configuration; null: none. */
export function recorderConfig(input: RecorderInput | undefined): RecorderConfig | null {
  if (input === undefined) return null;
  return {
    bytes: parseSizeBytes(String(input.size!))!,
    maxAgeMs: parseDurationMs(String(input.maxAge!))!,
    redactHeaders: [...new Set(input.redactHeaders!.map((name) => name.toLowerCase()))],
  };
}
