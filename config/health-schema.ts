// Health of endpoints in the configuration: active checks, and outlier detection.
//
// Control thread. One part of the schema (schema.ts). Relations between keys are checked in
// health-semantics.ts. The vocabulary is Envoy's.

import { decimal, duration, integer, NOTE, type Note, oneOf, serverName, text, token } from './kinds.ts';
import { pathProblem } from './names.ts';
import { text as anyText, list, mapping, maybe, union, wholeNumber } from './schema-builder.ts';

/** Fields of a check that are not the configuration's. */
const ownFields = ['connection', 'content-length', 'host', 'keep-alive', 'te', 'transfer-encoding', 'upgrade'];

/** First and last status of a range such as `200-299` or `204`; undefined when it is none. */
export function statusRange(value: string): [first: number, last: number] | undefined {
  const match = /^([1-5]\d\d)(?:-([1-5]\d\d))?$/.exec(value);
  if (match === null) return undefined;
  const first = Number(match[1]);
  const last = Number(match[2] ?? match[1]);
  return first <= last && first >= 200 ? [first, last] : undefined;
}

/** A status or a range of them; YAML reads an unquoted 204 as a number. */
function statuses() {
  const branches = [
    anyText({ pattern: '^[2-5][0-9][0-9](-[2-5][0-9][0-9])?$' }),
    wholeNumber({ minimum: 200, maximum: 599 }),
  ] as const;
  return union(branches, {
    description: 'One status, or a range.',
    [NOTE]: {
      type: 'status or range',
      expected: 'a status such as 204 or a range such as "200-299"',
      problem: (value) =>
        statusRange(value) === undefined ? 'is neither a final status nor a range of them' : undefined,
    } satisfies Note,
  });
}

/** Schema of `backends[].healthCheck`. */
export const healthCheckSchema = mapping(
  {
    type: maybe(
      oneOf(['HTTP', 'HTTPS', 'TCP', 'GRPC'], {
        description:
          '`HTTP` and `HTTPS` ask for a path, `TCP` connects (and greets by TLS where the backend has it), `GRPC` asks the health service of gRPC. Default: `HTTPS` for backends with TLS, else `HTTP`.',
      }),
    ),
    path: maybe(
      text(
        { default: '/', description: 'Path that is asked for, with its query.' },
        'path',
        'a path such as /healthz',
        (value) => pathProblem(value.replace(/\?[\x21\x23-\x7e]*$/, '')),
      ),
    ),
    host: maybe(
      serverName({
        description:
          'Host (`:authority`) that is asked for. Default: `tls.serverName`, else the address and port that is checked.',
      }),
    ),
    method: maybe(oneOf(['GET', 'HEAD', 'OPTIONS', 'POST'], { default: 'GET', description: 'Method of the request.' })),
    headers: maybe(
      list(
        mapping(
          {
            name: token({ description: 'Name of the field.' }, 'the name of a header field', (name) =>
              ownFields.includes(name.toLowerCase()) ? 'is a field that the check itself sets' : undefined,
            ),
            value: text({ description: 'Its value.' }, 'text', 'visible ASCII characters and spaces', (value) =>
              /^([\x21-\x7e]([\x20-\x7e]{0,4094}[\x21-\x7e])?)?$/.test(value)
                ? undefined
                : 'is not the value of a header field',
            ),
          },
          { description: 'One header field.' },
        ),
        { default: [], maxItems: 64, description: 'Header fields of the request.' },
      ),
    ),
    expectedStatuses: maybe(
      list(statuses(), {
        default: ['200-299'],
        minItems: 1,
        maxItems: 64,
        description: 'Statuses of a healthy endpoint. Any other makes it unhealthy at once.',
      }),
    ),
    grpcService: maybe(
      text(
        { default: '', description: 'Service whose health is asked for; empty is the whole server.' },
        'text',
        'a service such as shop.v1.Cart',
        (value) => (/^[A-Za-z0-9_.-]{0,256}$/.test(value) ? undefined : 'is not the name of a gRPC service'),
      ),
    ),
    port: maybe(
      integer({
        default: 0,
        min: 0,
        max: 65535,
        zero: 'the port of the endpoint',
        description:
          "Port that is checked. On another port than the endpoint's, HTTP/1.1 is spoken whatever the backend speaks.",
      }),
    ),
    interval: maybe(duration({ default: '5s', description: 'Time between two checks of an endpoint, on this node.' })),
    timeout: maybe(duration({ default: '1s', description: 'Time for one check, connecting included.' })),
    jitter: maybe(
      integer({
        default: 10,
        min: 0,
        max: 100,
        zero: 'none',
        description: 'Share of the interval in percent, up to which a random time is added, so that checks spread.',
      }),
    ),
    unhealthyThreshold: maybe(
      integer({
        default: 3,
        min: 1,
        max: 1000,
        description:
          'Checks in a row without an answer that make a healthy endpoint unhealthy. The very first check of an endpoint, and an answer that says it is unhealthy, count at once.',
      }),
    ),
    healthyThreshold: maybe(
      integer({
        default: 2,
        min: 1,
        max: 1000,
        description:
          'Good checks in a row that make an unhealthy endpoint healthy. The very first check counts at once.',
      }),
    ),
  },
  { description: 'Active health checks of the endpoints. Absent: none.' },
);

/** Hosts and requests that a rate needs before it says anything. */
function volumes(minimumHosts: number, requestVolume: number) {
  return {
    minimumHosts: maybe(
      integer({
        default: minimumHosts,
        min: 1,
        max: 65535,
        description: 'Endpoints with enough requests that there must be before any is ejected.',
      }),
    ),
    requestVolume: maybe(
      integer({
        default: requestVolume,
        min: 1,
        max: 1_000_000_000,
        description: 'Requests of an endpoint in an interval below which it is left out.',
      }),
    ),
  };
}

/** Schema of `backends[].outlierDetection`. */
export const outlierDetectionSchema = mapping(
  {
    consecutive5xx: maybe(
      integer({
        default: 5,
        min: 0,
        max: 1_000_000,
        zero: 'off',
        description:
          'Failures in a row (5xx, or no answer) that eject an endpoint, over all routes and workers of the node.',
      }),
    ),
    consecutiveGatewayFailures: maybe(
      integer({
        default: 0,
        min: 0,
        max: 1_000_000,
        zero: 'off',
        description: 'Gateway failures in a row (502, 503, 504, or no answer) that eject an endpoint.',
      }),
    ),
    interval: maybe(
      duration({ default: '10s', description: 'Time over which rates are taken, and that makes up for one ejection.' }),
    ),
    baseEjectionTime: maybe(
      duration({ default: '30s', description: 'Time of a first ejection; it grows by as much with each further one.' }),
    ),
    maxEjectionTime: maybe(
      duration({ default: '300s', description: 'Longest time of an ejection; at least `baseEjectionTime`.' }),
    ),
    maxEjectionPercent: maybe(
      integer({
        default: 10,
        min: 1,
        max: 100,
        description: 'Most endpoints of the backend that are ejected at a time, in percent. One always may be.',
      }),
    ),
    successRate: maybe(
      mapping(
        {
          ...volumes(5, 100),
          stdevFactor: maybe(
            decimal({
              default: 1.9,
              min: 0,
              max: 100,
              description: 'Standard deviations below the mean success rate from which an endpoint is ejected.',
            }),
          ),
        },
        { description: 'Eject endpoints whose success rate is far below that of the others. Absent: no.' },
      ),
    ),
    failurePercentage: maybe(
      mapping(
        {
          threshold: maybe(
            integer({
              default: 85,
              min: 1,
              max: 100,
              description: 'Failed requests of an interval, in percent, from which an endpoint is ejected.',
            }),
          ),
          ...volumes(5, 50),
        },
        { description: 'Eject endpoints that fail a large part of their requests. Absent: no.' },
      ),
    ),
    ramp: maybe(
      list(integer({ min: 1, max: 100, description: 'Share in percent.' }), {
        default: [1, 5, 25, 100],
        minItems: 1,
        maxItems: 20,
        description:
          'Shares of its weight, in percent, by which an endpoint returns; rising, the last one 100. The first error on the way ejects it again.',
      }),
    ),
    rampStep: maybe(duration({ default: '10s', description: 'Time of each share before the next.' })),
  },
  { description: 'Endpoints that fail requests get none for a while. Absent: none is ejected.' },
);
