// Schema of the filter Compression. Control thread.

import { integer, oneOf, size, text } from './kinds.ts';
import { list, mapping, maybe } from './schema-builder.ts';

const TYPE_PATTERN = /^[A-Za-z0-9!#$&^_.+-]{1,127}\/([A-Za-z0-9!#$&^_.+-]{1,127}|\*)$/;

/** Member `compression` of a filter. */
export const compressionSchema = mapping(
  {
    encodings: maybe(
      list(oneOf(['zstd', 'br', 'gzip'], { description: 'One coding.' }), {
        default: ['zstd', 'br', 'gzip'],
        minItems: 1,
        maxItems: 3,
        description:
          'Codings that are offered, in order of preference among those that the client likes best (Accept-Encoding).',
      }),
    ),
    minSize: maybe(
      size({
        default: '1KiB',
        minBytes: 1,
        maxBytes: 1024 * 1024 * 1024,
        zero: 'every body',
        description: 'Bodies known to be shorter stay as they are.',
      }),
    ),
    contentTypes: maybe(
      list(
        text(
          { description: 'A media type, or `text/*` for a whole family.' },
          'media type',
          'a media type such as application/json or text/*',
          (value) => (TYPE_PATTERN.test(value) ? undefined : 'is not a media type'),
          (value) => {
            const bare = value.replace(/\s*;.*$/, '').trim();
            return bare !== value && TYPE_PATTERN.test(bare) ? bare : undefined;
          },
        ),
        {
          default: [
            'text/*',
            'application/json',
            'application/javascript',
            'application/xml',
            'application/xhtml+xml',
            'application/manifest+json',
            'application/ld+json',
            'application/problem+json',
            'application/atom+xml',
            'application/rss+xml',
            'application/wasm',
            'image/svg+xml',
          ],
          minItems: 1,
          maxItems: 64,
          description: 'Content types that are compressed. Never those of gRPC.',
        },
      ),
    ),
    levels: maybe(
      mapping(
        {
          gzip: maybe(integer({ default: 6, min: 1, max: 9, description: 'Level of gzip.' })),
          br: maybe(integer({ default: 4, min: 0, max: 11, description: 'Quality of brotli; slow from 10 on.' })),
          zstd: maybe(integer({ default: 3, min: 1, max: 19, description: 'Level of zstd.' })),
        },
        { default: {}, description: 'How hard the compressor tries: higher is smaller and slower.' },
      ),
    ),
  },
  {
    description:
      'Options of `type: Compression`. Responses are compressed when the client takes it (Accept-Encoding) and their content type is listed. Absent: the defaults.',
  },
);
