// Filters of rules and backend references as users write them: type, and a mapping named like it.
//
// Control thread. The names are the Gateway API's where it has the filter (RequestHeaderModifier,
// ResponseHeaderModifier, RequestRedirect, URLRewrite, CORS); DirectResponse and FaultInjection have Envoy's
// settings. Which keys go with which type is checked in filter-semantics.ts.
// Spec: Gateway API HTTPRouteFilter, HTTPBackendRef.filters; Fetch standard (CORS); Envoy fault filter.

import { isIP } from 'node:net';
import { compressionSchema } from './compression-schema.ts';
import { boolean, decimal, duration, filePath, integer, NOTE, type Note, oneOf, text, token } from './kinds.ts';
import { requestMirrorSchema } from './mirror-schema.ts';
import { pathProblem, serverNameProblem } from './names.ts';
import { list, literal, mapping, maybe, union } from './schema-builder.ts';

/** Fields that frame messages or belong to one connection: only the gateway itself says what they hold. */
export const framingHeaders = [
  'connection',
  'content-length',
  'date',
  'host',
  'keep-alive',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
];

/** Further fields of one connection that no filter may touch. */
const hopHeaders = ['expect', 'http2-settings', 'proxy-connection'];

/** Longest value of a field that a filter adds, in bytes. */
const FIELD_VALUE_BYTES_MAX = 4096;

function fieldName(description: string) {
  return token({ description }, 'the name of a header field', (value) => {
    const lower = value.toLowerCase();
    if (lower === 'host') return 'is set by URLRewrite with a hostname';
    return framingHeaders.includes(lower) || hopHeaders.includes(lower)
      ? 'is a field that frames messages or belongs to one connection'
      : undefined;
  });
}

function fieldValue(description: string) {
  return text(
    { description },
    'text',
    `up to ${FIELD_VALUE_BYTES_MAX} visible ASCII characters, with spaces only inside`,
    (value) =>
      value.length <= FIELD_VALUE_BYTES_MAX && /^[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?$/.test(value)
        ? undefined
        : 'is not the value of a header field',
  );
}

const fieldSchema = (description: string) =>
  mapping(
    { name: fieldName('Name of the field, without regard to case.'), value: fieldValue('Its value.') },
    { description },
  );

function modifier(what: string) {
  return mapping(
    {
      set: maybe(
        list(fieldSchema('One field.'), {
          maxItems: 64,
          description: `Fields that replace all of their name in ${what}. Absent: none.`,
        }),
      ),
      add: maybe(
        list(fieldSchema('One field.'), {
          maxItems: 64,
          description: 'Fields that are added to those of their name. Absent: none.',
        }),
      ),
      remove: maybe(
        list(fieldName('Name of a field.'), { maxItems: 64, description: 'Fields that are left out. Absent: none.' }),
      ),
    },
    { description: `Changes to the fields of ${what}. Absent: see \`type\`.` },
  );
}

function rewrittenPath(otherwise: string) {
  return mapping(
    {
      type: oneOf(['ReplaceFullPath', 'ReplacePrefixMatch'], {
        description:
          '`ReplaceFullPath` gives every request the same path; `ReplacePrefixMatch` replaces the prefix that the rule matched, and needs rules whose matches are all of type PathPrefix.',
      }),
      replaceFullPath: maybe(
        text({ description: 'The new path. Absent: see `type`.' }, 'path', 'a path such as /cart', pathProblem),
      ),
      replacePrefixMatch: maybe(
        text(
          {
            description:
              'What stands for the matched prefix; a slash at its end is ignored, and `/` takes the prefix away. Absent: see `type`.',
          },
          'path',
          'a path such as /cart, or /',
          (value) => (value === '' ? undefined : pathProblem(value)),
        ),
      ),
    },
    { description: `The path; the query stays as it is. Absent: ${otherwise}` },
  );
}

function hostnameOf(description: string) {
  return text({ description }, 'hostname', 'a hostname such as shop.example.com', (value) =>
    isIP(value) === 6 ? 'is an IPv6 address' : serverNameProblem(value),
  );
}

const redirectSchema = mapping(
  {
    scheme: maybe(oneOf(['http', 'https'], { description: 'Scheme of the new URL. Absent: that of the request.' })),
    hostname: maybe(hostnameOf('Host of the new URL. Absent: that of the request.')),
    path: maybe(rewrittenPath('that of the request.')),
    port: maybe(
      integer({
        min: 1,
        max: 65535,
        description:
          'Port of the new URL. Absent: that of `scheme` if it is given, else that of the listener. 80 and 443 are left out where the scheme means them.',
      }),
    ),
    statusCode: maybe(
      union([literal(301), literal(302), literal(303), literal(307), literal(308)], {
        default: 302,
        description:
          'Status of the redirect. 301 and 302 let clients turn POST into GET, 303 makes them, 307 and 308 do not.',
        [NOTE]: {
          type: '`301`, `302`, `303`, `307`, `308`',
          expected: '301, 302, 303, 307 or 308',
        } satisfies Note,
      }),
    ),
  },
  { description: 'Redirect to another URL; such a rule has no backendRefs. Absent: see `type`.' },
);

const rewriteSchema = mapping(
  {
    hostname: maybe(hostnameOf("Host that the backend gets. Absent: the client's.")),
    path: maybe(rewrittenPath("the client's.")),
  },
  { description: 'Changes of host and path on the way to the backend. Absent: see `type`.' },
);

const directSchema = mapping(
  {
    statusCode: maybe(integer({ default: 200, min: 200, max: 599, description: 'Status of the response.' })),
    body: maybe(
      text({ description: 'The body. Absent: `bodyFile`, or none.' }, 'text', 'up to 64 KiB of text', (value) =>
        Buffer.byteLength(value) > 64 * 1024 ? 'is longer than 64 KiB' : undefined,
      ),
    ),
    bodyFile: maybe(
      filePath(
        'File with the body, at most 64 KiB, relative to the configuration file; it is read when the configuration is. Absent: `body`, or none.',
      ),
    ),
    contentType: maybe(
      text(
        { default: 'text/plain; charset=utf-8', description: 'Content-Type of the body.' },
        'text',
        'a media type such as application/json',
        (value) =>
          /^[\x21-\x7e]+\/[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(value) && value.length <= 256
            ? undefined
            : 'is not a media type',
      ),
    ),
  },
  {
    description: 'A response of the gateway itself; such a rule has no backendRefs. Absent: see `type`.',
  },
);

/** What is wrong with an origin of CORS: `*`, or scheme and host, whose first label may be `*`. */
function originProblem(value: string): string | undefined {
  if (value === '*') return undefined;
  const [, host, port] = /^[a-z][a-z0-9+.-]*:\/\/([^/:?#@]+)(?::(\d+))?$/i.exec(value) ?? [];
  if (host === undefined) return value === 'null' ? 'stands for any page of unknown origin' : 'is not an origin';
  if (port !== undefined && (Number(port) > 65535 || Number(port) === 0)) return 'has a port that is not 1 to 65535';
  const name = host.replace(/^\*\./, '');
  return name.includes('*') ? 'has a * that is not its whole first label' : serverNameProblem(name);
}

const methodName = (description: string) => token({ description }, 'a method such as PUT, or *');
const anyName = (description: string) => token({ description }, 'the name of a header field, or *');

const corsSchema = mapping(
  {
    allowOrigins: list(
      text(
        { description: 'One origin.' },
        'origin',
        'an origin such as https://shop.example.com, https://*.example.com or *',
        originProblem,
      ),
      {
        minItems: 1,
        maxItems: 64,
        description:
          'Origins whose pages may use the responses: `https://shop.example.com`, `https://*.example.com` for all names below it, or `*` for every origin.',
      },
    ),
    allowMethods: maybe(
      list(methodName('One method, or `*`.'), {
        maxItems: 64,
        description: 'Methods that they may use; `*` is all. Absent: GET, HEAD and POST, which need no permission.',
      }),
    ),
    allowHeaders: maybe(
      list(anyName('One name, or `*`.'), {
        maxItems: 64,
        description: 'Request fields that they may set; `*` is all. Absent: those that need no permission.',
      }),
    ),
    exposeHeaders: maybe(
      list(anyName('One name, or `*`.'), {
        maxItems: 64,
        description: 'Response fields that they may read; `*` is all. Absent: those that need no permission.',
      }),
    ),
    maxAge: maybe(
      integer({
        default: 5,
        min: 0,
        max: 86_400,
        description: 'Seconds for which a browser may remember the answer to a preflight request.',
      }),
    ),
    allowCredentials: maybe(
      boolean({ default: false, description: 'Whether they may send cookies and other credentials.' }),
    ),
  },
  { description: 'Which pages of other origins may use the rule. Absent: see `type`.' },
);

function percent(what: string) {
  return maybe(
    decimal({ default: 100, min: 0, max: 100, description: `Share of the requests that ${what}, such as 0.5.` }),
  );
}

const faultSchema = mapping(
  {
    delay: maybe(
      mapping(
        {
          duration: duration({ maxMs: 3_600_000, description: 'How long a request waits before it is sent on.' }),
          percent: percent('are delayed'),
        },
        { description: 'Delay of requests. Absent: none.' },
      ),
    ),
    abort: maybe(
      mapping(
        {
          statusCode: maybe(
            integer({ min: 200, max: 599, description: 'HTTP status of the answer. Absent: `grpcStatus` is given.' }),
          ),
          grpcStatus: maybe(
            integer({
              min: 0,
              max: 16,
              description:
                'gRPC status that RPCs are answered with; other requests get the HTTP status for it. Absent: `statusCode` is given.',
            }),
          ),
          percent: percent('are aborted'),
        },
        { description: 'Answers in place of the backend. Absent: none.' },
      ),
    ),
    headers: maybe(
      list(
        mapping(
          {
            name: token({ description: 'Name of the field, without regard to case.' }, 'the name of a header field'),
            value: fieldValue('Its value, compared byte by byte.'),
          },
          { description: 'One condition.' },
        ),
        { maxItems: 16, description: 'Only requests that have all these fields are concerned. Absent: all are.' },
      ),
    ),
  },
  { description: 'Faults for tests of what depends on the rule. Absent: see `type`.' },
);

/** Filters of a rule. */
export const filtersSchema = list(
  mapping(
    {
      type: oneOf(
        [
          'RequestHeaderModifier',
          'ResponseHeaderModifier',
          'RequestRedirect',
          'URLRewrite',
          'DirectResponse',
          'CORS',
          'FaultInjection',
          'Compression',
          'RequestMirror',
          'GrpcWeb',
        ],
        {
          description:
            'What the filter does; its settings stand in the key of the same name (`requestHeaderModifier` and so on). `GrpcWeb` has none: requests of gRPC-Web clients become gRPC, the backends of the rule speak h2 or h2c, and other requests pass.',
        },
      ),
      requestHeaderModifier: maybe(modifier('the request')),
      responseHeaderModifier: maybe(modifier('the response')),
      requestRedirect: maybe(redirectSchema),
      urlRewrite: maybe(rewriteSchema),
      directResponse: maybe(directSchema),
      cors: maybe(corsSchema),
      faultInjection: maybe(faultSchema),
      compression: maybe(compressionSchema),
      requestMirror: maybe(requestMirrorSchema),
    },
    { description: 'One filter.' },
  ),
  { default: [], maxItems: 16, description: 'What is done to requests and responses on their way.' },
);

/** Filters of a backend reference. */
export const refFiltersSchema = list(
  mapping(
    {
      type: oneOf(['RequestHeaderModifier', 'ResponseHeaderModifier', 'URLRewrite'], {
        description: 'What the filter does; its settings stand in the key of the same name.',
      }),
      requestHeaderModifier: maybe(modifier('the request')),
      responseHeaderModifier: maybe(modifier('the response')),
      urlRewrite: maybe(rewriteSchema),
    },
    { description: 'One filter.' },
  ),
  {
    default: [],
    maxItems: 16,
    description: 'What is done, after the filters of the rule, to requests that this backend gets.',
  },
);
