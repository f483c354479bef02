// Matches of rules as users write them: path, method, fields, query, gRPC, client certificate, address.
//
// Control thread. Names and meaning are the Gateway API's (HTTPRouteMatch, GRPCRouteMatch) where it has
// them. What a value may be depends on the type beside it; match-semantics.ts checks that.
// Spec: Gateway API v1 HTTPRoute, GRPCRoute.

import { NOTE, type Note, oneOf, text, token } from './kinds.ts';
import { list, mapping, maybe } from './schema-builder.ts';

/** Most conditions of one kind in a match. */
const CONDITIONS_MAX = 64;

/** Any text; what is wrong with it, if its meaning depends on a type, is for match-semantics.ts to say. */
const anyText = (): undefined => undefined;

const textProblem = (value: string): string | undefined => {
  if (value === '') return 'is empty';
  return /[\x00-\x08\x0a-\x1f\x7f]/.test(value) ? 'has a control character' : undefined;
};

const path = mapping(
  {
    type: maybe(
      oneOf(['Exact', 'PathPrefix', 'RegularExpression'], {
        default: 'PathPrefix',
        description:
          '`Exact` compares the whole path; `PathPrefix` whole path elements, so that `/foo` matches `/foo` and `/foo/bar` but not `/foobar`; `RegularExpression` must match the whole path (RE2 syntax, see routing.md).',
      }),
    ),
    value: maybe(
      text(
        {
          default: '/',
          description:
            'Path to compare with, byte by byte and without the query. A slash at the end of a prefix is ignored. A regular expression has no default.',
        },
        'path or regular expression',
        'a path such as /cart',
        anyText,
      ),
    ),
  },
  { default: {}, description: 'Condition on the path. Default: every path.' },
);

function valueType(what: string) {
  return maybe(
    oneOf(['Exact', 'RegularExpression'], {
      default: 'Exact',
      description: `\`Exact\` compares the whole ${what}, \`RegularExpression\` must match all of it.`,
    }),
  );
}

function value(description: string) {
  const quoted = (value: string): string | undefined => (value === '' ? undefined : value);
  return text({ description }, 'text', 'a text, quoted where it looks like a number', textProblem, quoted);
}

const headers = list(
  mapping(
    {
      name: token(
        { description: 'Name of the field; case does not matter. Each name once in a match.' },
        'the name of a header field',
      ),
      type: valueType('value'),
      value: value('Value; several fields of the name count as one, joined with `,` (those of Cookie with `; `).'),
    },
    { description: 'One condition on a header field.' },
  ),
  {
    maxItems: CONDITIONS_MAX,
    description: 'Header fields that the request has, all of them. Absent: any.',
  },
);

const queryParams = list(
  mapping(
    {
      name: text(
        { description: 'Name of the parameter, percent-decoded; case matters. Each name once in a match.' },
        'text',
        'the name of a query parameter',
        textProblem,
      ),
      type: valueType('value'),
      value: value('Value of the first parameter of that name, percent-decoded; `+` is a plus sign.'),
    },
    { description: 'One condition on a query parameter.' },
  ),
  {
    maxItems: CONDITIONS_MAX,
    description: 'Query parameters that the request has, all of them. Absent: any.',
  },
);

const grpc = mapping(
  {
    type: maybe(
      oneOf(['Exact', 'RegularExpression'], {
        default: 'Exact',
        description: 'How `service` and `method` are compared; regular expressions match all of them.',
      }),
    ),
    service: maybe(
      text(
        { description: 'Full name of the service, such as `shop.v1.Cart`. Absent: any.' },
        'text',
        'the name of a service such as shop.v1.Cart',
        textProblem,
      ),
    ),
    method: maybe(
      text(
        { description: 'Name of the method, such as `AddItem`. Absent: any.' },
        'text',
        'the name of a method such as AddItem',
        textProblem,
      ),
    ),
  },
  {
    description:
      'Calls of gRPC and gRPC-Web: POST to /service/method with a content type `application/grpc*`. `{}` is every call. Not together with `path` or `method`. Absent: not only gRPC.',
    [NOTE]: { type: 'mapping', expected: 'a mapping with service, method and type' } satisfies Note,
  },
);

const clientCertificate = mapping(
  {
    subjectAltNames: maybe(
      list(
        mapping(
          {
            type: maybe(
              oneOf(['Exact', 'Prefix', 'RegularExpression'], {
                default: 'Exact',
                description: 'How the name is compared; a regular expression matches all of it.',
              }),
            ),
            value: value(
              'DNS name, URI (such as a SPIFFE identity), IP address or mail address. DNS names are compared in lower case.',
            ),
          },
          { description: 'One name.' },
        ),
        {
          minItems: 1,
          maxItems: CONDITIONS_MAX,
          description: 'Names of which the certificate has at least one. Absent: any.',
        },
      ),
    ),
    sha256: maybe(
      list(
        text(
          { description: 'SHA-256 of the certificate (DER), hexadecimal; colons between bytes are allowed.' },
          'fingerprint',
          '64 hexadecimal digits',
          (text) =>
            /^[0-9a-f]{64}$/i.test(text.replaceAll(':', '')) ? undefined : 'is not the SHA-256 of a certificate',
        ),
        {
          minItems: 1,
          maxItems: 1024,
          description: 'Fingerprints of which the certificate has one. Absent: any.',
        },
      ),
    ),
  },
  {
    description:
      'The client has shown a certificate that the `clientValidation` of the listener has verified. `{}` is any verified one. Absent: any client.',
    [NOTE]: { type: 'mapping', expected: 'a mapping with subjectAltNames and sha256' } satisfies Note,
  },
);

const sourceAddresses = list(
  text(
    { description: 'Network such as `10.0.0.0/8` or `2001:db8::/32`, or one address.' },
    'network',
    'an IP address or a network such as 10.0.0.0/8',
    anyText,
  ),
  {
    minItems: 1,
    maxItems: 1024,
    description:
      "Networks of which one has the client's address: behind `trustedHops` proxies that of the real client, with the PROXY protocol the one that it tells. Absent: any.",
  },
);

/** One match of a rule. */
export const matchSchema = mapping(
  {
    path: maybe(path),
    method: maybe(
      token(
        { description: 'Method of the request; case matters. GET does not match HEAD. Absent: any.' },
        'a method such as GET',
        (method) =>
          method !== method.toUpperCase() && standardMethods.includes(method.toUpperCase())
            ? `is not the method ${method.toUpperCase()}, because case matters in methods`
            : undefined,
      ),
    ),
    headers: maybe(headers),
    queryParams: maybe(queryParams),
    grpc: maybe(grpc),
    clientCertificate: maybe(clientCertificate),
    sourceAddresses: maybe(sourceAddresses),
  },
  { description: 'One condition on requests: all of its keys must hold.' },
);

/** RFC 9110 §9.3 and RFC 5789. */
const standardMethods = ['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'CONNECT', 'OPTIONS', 'TRACE', 'PATCH'];
