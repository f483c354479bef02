// Schema of the filter RequestMirror. Control thread. Spec: Gateway API HTTPRequestMirrorFilter.

import { REQUEST_BUFFER_BYTES_MAX } from '../core/exchange/request-buffer.ts';
import { decimal, duration, integer, reference, size } from './kinds.ts';
import { mapping, maybe } from './schema-builder.ts';

/** Member `requestMirror` of a filter. */
export const requestMirrorSchema = mapping(
  {
    backendRef: mapping(
      { name: reference('backend', 'Name of a backend.') },
      { description: 'Where the copies go. What it answers is thrown away.' },
    ),
    percent: maybe(
      decimal({
        min: 0,
        max: 100,
        description: 'Share of the requests that is mirrored, in percent. Absent: all, unless there is a `fraction`.',
      }),
    ),
    fraction: maybe(
      mapping(
        {
          numerator: integer({ min: 0, max: 1_000_000_000, description: 'So many requests ...' }),
          denominator: maybe(
            integer({ default: 100, min: 1, max: 1_000_000_000, description: '... of so many are mirrored.' }),
          ),
        },
        { description: 'Share of the requests that is mirrored, instead of `percent`. Absent: see there.' },
      ),
    ),
    timeout: maybe(
      duration({
        default: '15s',
        description: 'Time for a mirrored request; then it is given up and counts as failed.',
      }),
    ),
    bodyBuffer: maybe(
      size({
        default: '64KiB',
        minBytes: 1,
        maxBytes: REQUEST_BUFFER_BYTES_MAX,
        zero: 'only requests without body are mirrored',
        description: 'Requests with larger bodies are not mirrored. Bodies are kept until the request is complete.',
      }),
    ),
  },
  {
    description: 'Options of `type: RequestMirror`, of which a rule may have several. Absent: see `type`.',
  },
);
