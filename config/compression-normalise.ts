// Filters Compression and RequestMirror of a rule, as the packet workers take them.
// Control thread. Defaults come from the schema: a filter that says nothing may have no member to fill.

import type { Static } from 'typebox';
import type { CompressionSettings, MirrorSettings } from '../core/workers/policies.ts';
import { compressionSchema } from './compression-schema.ts';
import { requestMirrorSchema } from './mirror-schema.ts';
import { nodeOf, type SchemaNode } from './schema-builder.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';

type CompressionInput = Static<typeof compressionSchema>;
type MirrorInput = Static<typeof requestMirrorSchema>;

/** A filter, as far as it matters here. */
interface FilterInput {
  type: string;
  compression?: CompressionInput;
  requestMirror?: MirrorInput;
}

/** Compression of a rule; null: none. */
export function compressionSettings(filters: readonly FilterInput[]): CompressionSettings | null {
  const filter = filters.find(({ type }) => type === 'Compression');
  if (filter === undefined) return null;
  const input = withDefaults(nodeOf(compressionSchema), filter.compression ?? {});
  return {
    codings: [...new Set(input.encodings!)],
    minBytes: parseSizeBytes(String(input.minSize!))!,
    contentTypes: input.contentTypes!,
    gzipLevel: input.levels!.gzip!,
    brotliLevel: input.levels!.br!,
    zstdLevel: input.levels!.zstd!,
  };
}

/** Mirrors of a rule, in file order; those that get nothing are left out. */
export function mirrorSettings(filters: readonly FilterInput[]): MirrorSettings[] {
  return filters
    .filter(({ type }) => type === 'RequestMirror')
    .map(({ requestMirror }) => {
      const { backendRef, percent, fraction, timeout, bodyBuffer } = withDefaults(
        nodeOf(requestMirrorSchema),
        requestMirror!,
      );
      const share =
        fraction === undefined ? (percent ?? 100) / 100 : fraction.numerator / (fraction.denominator ?? 100);
      return {
        backend: backendRef.name,
        share: Math.min(share, 1),
        timeoutMs: parseDurationMs(String(timeout!))!,
        bodyBytesMax: parseSizeBytes(String(bodyBuffer!))!,
      };
    })
    .filter(({ share }) => share > 0);
}

/** A mapping with the defaults of its schema where it says nothing. */
function withDefaults<T extends object>({ properties }: SchemaNode, input: T): T {
  const filled = { ...input } as Record<string, unknown>;
  for (const [key, property] of Object.entries(properties ?? {})) {
    filled[key] ??= structuredClone(property.default);
    if (property.properties !== undefined && filled[key] !== undefined) {
      filled[key] = withDefaults(property, filled[key] as object);
    }
  }
  return filled as T;
}
