// The configuration as users write it: one schema gives types, validation and JSON Schema.
//
// Control thread. The vocabulary is the Kubernetes Gateway API's where it has a word (hostnames,
// rules, matches, backendRefs, timeouts) and Envoy's elsewhere.
// Invariant: every key has a description, and every key that may be left out and is then not simply
// off has a default, so that documentation and editors need no other source.
// Spec: Gateway API v1 HTTPRoute; JSON Schema draft 2020-12.

import type { Static } from 'typebox';
import { validateAccessLogTemplate } from '../core/telemetry/access-log-format.ts';
import { adaptiveConcurrencySchema } from './adaptive-schema.ts';
import { loadBalancerSchema, sessionPersistenceSchema, subsetSchema, zoneSchema } from './balancer-schema.ts';
import { breakerSchema } from './breaker-schema.ts';
import { dnsSchema, endpointListSchema, endpointsFileSchema } from './endpoint-schema.ts';
import { filtersSchema, framingHeaders, refFiltersSchema } from './filter-schema.ts';
import { healthCheckSchema, outlierDetectionSchema } from './health-schema.ts';
import {
  boolean,
  duration,
  hostname,
  integer,
  integerOrAuto,
  listenAddress,
  NOTE,
  type Note,
  name,
  oneOf,
  reference,
  text,
  token,
} from './kinds.ts';
import { backendHttp2Schema, http2Schema, limitsSchema, timeoutsSchema } from './limits.ts';
import { matchSchema } from './match-schema.ts';
import { overloadSchema } from './overload-schema.ts';
import { rateLimitsSchema, redisSchema } from './rate-limit-schema.ts';
import { recorderSchema } from './recorder-schema.ts';
import { hedgeSchema, prioritySchema, retryBudgetSchema, retrySchema } from './retry-schema.ts';
import { flag, list, literal, mapping, maybe, union } from './schema-builder.ts';
import { acmeSchema, backendTlsSchema, listenerTlsSchema } from './tls-schema.ts';
import { backendTunnelSchema, listenerTunnelsSchema } from './tunnel-schema.ts';

/** Where the admin listener listens unless configured otherwise. */
export const ADMIN_ADDRESS_DEFAULT = '127.0.0.1:9901';

const adminSchema = union(
  [
    literal('off'),
    mapping({
      address: maybe(
        listenAddress({
          default: ADMIN_ADDRESS_DEFAULT,
          description:
            'Address of the admin listener. It has no authentication: give anything but loopback only on a network that you trust.',
        }),
      ),
    }),
  ],
  {
    default: {},
    description: 'Admin listener with metrics, health and the running configuration. `admin: off` disables it.',
    [NOTE]: { type: '`off` or mapping', expected: 'off or a mapping with an address', names: ['off'] } satisfies Note,
  },
);

const accessLogSchema = mapping(
  {
    path: text(
      { description: 'File that lines are appended to, relative to the configuration file; `-` is standard output.' },
      'path',
      'a file name, or "-" for standard output',
      (value) => (/^[^\x00-\x1f\x7f]+$/.test(value) ? undefined : 'is not a file name'),
    ),
    format: maybe(
      text(
        {
          default: 'json',
          description:
            'Format of a line: `json`, `common`, or a template with `%{field}` in it and `%%` for a percent sign.',
        },
        '`json`, `common` or template',
        'json, common or a template such as "%{method} %{path} %{status}"',
        (value) => {
          const problem = validateAccessLogTemplate(value);
          if (problem === undefined) return undefined;
          // What is expected stands in the schema already.
          return problem.startsWith('expected') ? 'is not a format' : `is not a format: ${problem}`;
        },
      ),
    ),
  },
  { description: 'Access log. Absent: none is written.' },
);

const headersSchema = mapping(
  {
    requestId: maybe(
      boolean({
        default: true,
        description:
          'Send X-Request-Id to backends. An id that the client sent is kept only when `trustedHops` is above 0.',
      }),
    ),
    forwarded: maybe(
      boolean({
        default: true,
        description: 'Send X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host to backends.',
      }),
    ),
    via: maybe(
      token(
        { description: 'Pseudonym for the Via field of requests and responses (RFC 9110 §7.6.3). Absent: no Via.' },
        'a pseudonym such as portcullis',
      ),
    ),
    server: maybe(
      text(
        {
          default: 'passthrough',
          description: 'Server field of responses: `passthrough` keeps the one of the backend, other text replaces it.',
        },
        '`passthrough` or text',
        'passthrough or up to 256 visible ASCII characters',
        (value) =>
          /^[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?$/.test(value)
            ? undefined
            : 'is not the value of a header field',
      ),
    ),
  },
  { default: {}, description: 'Header fields that the gateway adds or replaces.' },
);

const redirectSchema = union(
  [
    flag({}),
    mapping({
      port: maybe(
        integer({
          default: 443,
          min: 1,
          max: 65535,
          description: 'Port of the https listener as clients see it.',
        }),
      ),
      status: maybe(redirectStatus()),
    }),
  ],
  {
    default: false,
    description:
      'Answer every request with a redirect to the same URL with https. Challenges of ACME are answered all the same.',
    [NOTE]: { type: 'boolean or mapping', expected: 'true, false or a mapping with port and status' } satisfies Note,
  },
);

/** Status codes of redirects that keep the target for good or for now; 307 and 308 also keep the method. */
function redirectStatus() {
  const branches = [literal(301), literal(302), literal(307), literal(308)] as const;
  return union(branches, {
    default: 301,
    description: 'Status of the redirect. 301 and 302 let clients turn POST into GET, 307 and 308 do not.',
    [NOTE]: {
      type: '`301`, `302`, `307`, `308`',
      expected: '301, 302, 307 or 308',
    } satisfies Note,
  });
}

const listenerSchema = mapping(
  {
    name: name('Name of the listener, unique among listeners. Routes, logs and metrics use it.'),
    address: listenAddress({
      description:
        'IP address and port. `:8080` is every IPv4 address, `[::]:8080` every IPv6 address and no IPv4 one; port 0 takes a free port. Of several listeners on one port, the one with the most specific address takes a connection.',
    }),
    protocols: maybe(
      list(
        oneOf(['http/1.1', 'h2', 'h2c', 'tcp'], {
          description:
            '`h2` is HTTP/2 over TLS, `h2c` HTTP/2 without TLS by prior knowledge, `tcp` any bytes, for TCP and TLS routes.',
        }),
        {
          minItems: 1,
          maxItems: 2,
          description:
            'Protocols that clients may speak; with TLS in order of preference (ALPN). Default: `[h2, http/1.1]` with TLS, `[http/1.1, h2c]` without, `[tcp]` with `tls.mode: Passthrough`.',
        },
      ),
    ),
    tls: maybe(listenerTlsSchema),
    proxyProtocol: maybe(
      oneOf(['off', 'required'], {
        default: 'off',
        description:
          'PROXY protocol, v1 or v2. `required`: every connection begins with such a header, whose addresses then count as those of the client. Only for listeners that nobody but the load balancer in front can reach.',
      }),
    ),
    redirectToHttps: maybe(redirectSchema),
    tunnels: maybe(listenerTunnelsSchema),
    allowConnect: maybe(
      boolean({
        default: false,
        description: 'Accept CONNECT and tunnel it to the backend that the route names. Otherwise it is refused.',
      }),
    ),
  },
  { description: 'One listening address.' },
);

const ruleSchema = mapping(
  {
    matches: maybe(
      list(matchSchema, {
        default: [{}],
        maxItems: 1024,
        description: 'Conditions; the rule takes a request that meets any of them. Default: every path.',
      }),
    ),
    timeouts: maybe(
      mapping(
        {
          request: maybe(
            duration({
              default: '0s',
              zero: 'no limit',
              description: 'Time for the whole request, from its head until the end of the response. Then 504.',
            }),
          ),
          backendRequest: maybe(
            duration({
              default: '0s',
              zero: 'no limit',
              description: 'Time for one attempt at a backend; at most `request` when both are set.',
            }),
          ),
          streamIdle: maybe(
            duration({
              default: '0s',
              zero: 'as `timeouts.streamIdle` of the whole configuration says',
              description: 'Time without one byte of progress on a request of this rule.',
            }),
          ),
        },
        { default: {}, description: 'Timeouts of requests that this rule takes.' },
      ),
    ),
    retry: maybe(retrySchema),
    hedge: maybe(hedgeSchema),
    priority: maybe(prioritySchema),
    filters: maybe(filtersSchema),
    sessionPersistence: maybe(sessionPersistenceSchema),
    rateLimits: maybe(rateLimitsSchema),
    backendRefs: maybe(
      list(
        mapping(
          {
            name: reference('backend', 'Name of a backend.'),
            weight: maybe(
              integer({
                default: 1,
                min: 0,
                max: 1_000_000,
                zero: 'gets no request',
                description: 'Share of the requests, relative to the sum of the weights in this rule.',
              }),
            ),
            subset: maybe(subsetSchema),
            filters: maybe(refFiltersSchema),
          },
          { description: 'One backend and its share.' },
        ),
        {
          minItems: 1,
          maxItems: 1024,
          description:
            'Backends that share the requests of this rule. Absent: only where a filter answers (RequestRedirect, DirectResponse).',
        },
      ),
    ),
  },
  { description: 'One rule of a route.' },
);

const routeSchema = mapping(
  {
    name: name('Name of the route, unique among routes. Logs and metrics use it.'),
    kind: maybe(
      oneOf(['HTTP', 'TCP', 'TLS'], {
        default: 'HTTP',
        description:
          '`HTTP` chooses by host and path; `TCP` takes the connections of listeners with protocol tcp; `TLS` takes those of listeners with `tls.mode: Passthrough`, by the name in SNI.',
      }),
    ),
    listeners: maybe(
      list(reference('listener', 'Name of a listener.'), {
        minItems: 1,
        description: 'Listeners that the route belongs to. Default: all that suit its kind.',
      }),
    ),
    hostnames: maybe(
      list(
        hostname({
          description:
            'Hostname, matched without regard to case. `*.example.com` matches `a.example.com` and `a.b.example.com`, but not `example.com`.',
        }),
        {
          minItems: 1,
          maxItems: 1024,
          description: 'Hosts that the route is for; with kind TLS, names in SNI. Default: any. Not for kind TCP.',
        },
      ),
    ),
    rules: list(ruleSchema, {
      minItems: 1,
      description: 'Rules of the route. TCP and TLS routes have one, with nothing but backendRefs.',
    }),
  },
  { description: 'One route: hosts, and rules for their paths.' },
);

const backendSchema = mapping(
  {
    name: name('Name of the backend, unique among backends.'),
    endpoints: maybe(endpointListSchema),
    endpointsFile: maybe(endpointsFileSchema),
    protocol: maybe(
      oneOf(['http/1.1', 'h2', 'h2c'], {
        default: 'http/1.1',
        description:
          'Protocol spoken to the endpoints: `h2` is HTTP/2 over TLS (and needs `tls`), `h2c` HTTP/2 without TLS. TCP and TLS routes pass bytes on whatever it is.',
      }),
    ),
    tls: maybe(backendTlsSchema),
    tunnel: maybe(backendTunnelSchema),
    proxyProtocol: maybe(
      oneOf(['v1', 'v2'], {
        description:
          "Tell the endpoints the client's address with a PROXY protocol header, of this version. Absent: no.",
      }),
    ),
    http2: maybe(backendHttp2Schema),
    loadBalancer: maybe(loadBalancerSchema),
    healthCheck: maybe(healthCheckSchema),
    outlierDetection: maybe(outlierDetectionSchema),
    circuitBreaker: maybe(breakerSchema),
    adaptiveConcurrency: maybe(adaptiveConcurrencySchema),
    retryBudget: maybe(retryBudgetSchema),
    connectTimeout: maybe(duration({ default: '2s', description: 'Time for establishing a connection.' })),
    idleTimeout: maybe(
      duration({
        default: '60s',
        description:
          'Time that an unused connection is kept. Best a little shorter than the idle timeout of the backend itself.',
      }),
    ),
    maxIdleConnections: maybe(
      integer({
        default: 1024,
        min: 0,
        max: 1_000_000,
        zero: 'none is kept',
        description: 'Most unused connections kept, per endpoint and worker.',
      }),
    ),
    maxRequestsPerConnection: maybe(
      integer({
        default: 0,
        min: 0,
        max: 1_000_000_000,
        zero: 'no limit',
        description: 'Requests after which a connection to an endpoint is closed.',
      }),
    ),
  },
  { description: 'One backend: endpoints that can all serve the same requests.' },
);

/** Schema of a whole configuration file. */
export const configSchema = mapping(
  {
    workers: maybe(
      integerOrAuto({
        default: 'auto',
        min: 1,
        max: 256,
        description: 'Number of packet workers (threads). `auto` is one per core that the process may use.',
      }),
    ),
    ioUring: maybe(
      oneOf(['auto', 'off'], {
        default: 'auto',
        description:
          'Whether many small receives and sends are given to the kernel with one system call. `auto` does so where the system has and allows io_uring; containers often do not.',
      }),
    ),
    admin: maybe(adminSchema),
    log: maybe(
      mapping(
        {
          level: maybe(
            oneOf(['debug', 'info', 'warn', 'error'], {
              default: 'info',
              description: 'Least important level that is logged.',
            }),
          ),
        },
        { default: {}, description: "The gateway's own log." },
      ),
    ),
    accessLog: maybe(accessLogSchema),
    failureRecords: maybe(
      mapping(
        {
          slowThreshold: maybe(
            duration({
              default: '1s',
              zero: 'every request is recorded',
              description:
                'A request that takes this long or longer is recorded as slow, even if it succeeds. Tunnels that end well are not slow.',
            }),
          ),
        },
        { default: {}, description: 'Records of failed and slow requests, for `portcullis explain`.' },
      ),
    ),
    recorder: maybe(recorderSchema),
    drainTimeout: maybe(
      duration({
        default: '30s',
        zero: 'do not wait',
        description: 'Time that requests in flight get when the gateway shuts down.',
      }),
    ),
    responseReasonHeader: maybe(
      token(
        {
          description:
            'Name of a response field that carries the reason (NR, UF, UT, ...) of responses that the gateway made itself. Absent: none.',
        },
        'the name of a header field such as x-portcullis-reason',
        (value) => (framingHeaders.includes(value.toLowerCase()) ? 'is a field that frames messages' : undefined),
      ),
    ),
    headers: maybe(headersSchema),
    trustedHops: maybe(
      integer({
        default: 0,
        min: 0,
        max: 16,
        description:
          'Number of trusted proxies in front of the gateway. With 0, X-Forwarded-* and X-Request-Id of clients are replaced; with n, the client address is the n-th from the right in X-Forwarded-For.',
      }),
    ),
    upgrades: maybe(
      list(
        token({ description: 'Protocol name.' }, 'a protocol name such as websocket', (value) =>
          // A tunnelled h2c connection would carry requests past routing and logging.
          value.toLowerCase() === 'h2c' ? 'would let requests pass around the routes' : undefined,
        ),
        {
          default: ['websocket'],
          maxItems: 64,
          description: 'Protocols that clients may switch to with Upgrade; the connection becomes a tunnel.',
        },
      ),
    ),
    limits: maybe(limitsSchema),
    timeouts: maybe(timeoutsSchema),
    http2: maybe(http2Schema),
    acme: maybe(acmeSchema),
    redis: maybe(redisSchema),
    overload: maybe(overloadSchema),
    dns: maybe(dnsSchema),
    zone: maybe(zoneSchema),
    listeners: list(listenerSchema, { minItems: 1, maxItems: 1024, description: 'Where clients connect.' }),
    routes: list(routeSchema, { description: 'Which requests go to which backends. May be empty.' }),
    backends: list(backendSchema, { description: 'Where requests can go. May be empty.' }),
  },
  { description: 'Configuration of the Portcullis gateway.' },
);

/** A valid configuration as written, before defaults and units. */
export type ConfigInput = Static<typeof configSchema>;
