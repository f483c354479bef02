// Schema of rate limits: `routes[].rules[].rateLimits`, and `redis` for those that several gateways share.
//
// Control thread. What clashes between them is checked in rate-limit-semantics.ts.

import {
  boolean,
  duration,
  endpointAddress,
  filePath,
  integer,
  NOTE,
  type Note,
  oneOf,
  serverName,
  text,
  token,
  word,
} from './kinds.ts';
import { NAME_PATTERN } from './names.ts';
import { list, mapping, maybe, union } from './schema-builder.ts';

/** Longest name of a limit: it is shown in response fields and in the log. */
const NAME_LENGTH_MAX = 32;

const keyPartSchema = union(
  [
    oneOf(['sourceAddress', 'path'], {
      description:
        "`sourceAddress` is the client's address (behind `trustedHops` proxies that of the real client; of IPv6 its /64 network), `path` the path without the query.",
    }),
    mapping({
      header: maybe(
        token(
          {
            description:
              'Name of a request field, whose first value is the key. Requests without it are counted together. Absent: not by a field.',
          },
          'the name of a header field such as x-api-key',
        ),
      ),
      jwtClaim: maybe(
        text(
          {
            description:
              'Name of a claim of the bearer token in Authorization, such as `sub`. The token is not verified for this. Requests without it are counted together. Absent: not by a claim.',
          },
          'name',
          'the name of a claim such as sub',
          (value) => (/^[\x21-\x7e]{1,128}$/.test(value) ? undefined : 'is not the name of a claim'),
        ),
      ),
    }),
  ],
  {
    description: 'What tells clients apart.',
    [NOTE]: {
      type: '`sourceAddress`, `path` or mapping',
      expected: 'sourceAddress, path, or a mapping with header or jwtClaim',
      names: ['sourceAddress', 'path'],
    } satisfies Note,
  },
);

/** Schema of `routes[].rules[].rateLimits`. */
export const rateLimitsSchema = list(
  mapping(
    {
      name: text(
        {
          description:
            'Name of the limit, for metrics, log and response fields. Rules whose limits have the same name share it; they must then say the same of it.',
        },
        'name',
        `a name of up to ${NAME_LENGTH_MAX} letters, digits, ".", "_" and "-"`,
        (value) => {
          if (!new RegExp(NAME_PATTERN).test(value)) return 'is not a name';
          return value.length > NAME_LENGTH_MAX ? `is longer than ${NAME_LENGTH_MAX} characters` : undefined;
        },
      ),
      requests: integer({
        min: 1,
        max: 1_000_000_000,
        description: 'Requests per `period` in the long run; at most a million in a second.',
      }),
      period: maybe(duration({ default: '1s', description: 'Time in which `requests` are allowed.' })),
      burst: maybe(
        integer({
          min: 1,
          max: 10_000_000,
          description:
            'Most requests at once after a pause: the size of the token bucket. Default: as many as `requests`, at most 10,000,000.',
        }),
      ),
      key: maybe(
        list(keyPartSchema, {
          default: [],
          maxItems: 4,
          description: 'Count requests apart by these, all of them together. Default: all requests together.',
        }),
      ),
      maxKeys: maybe(
        integer({
          default: 65_536,
          min: 16,
          max: 4_194_304,
          description:
            'Keys that are counted at a time, each for 32 bytes or a little more. Keys whose bucket is full again take no room; of those beyond it, several share a bucket.',
        }),
      ),
      global: maybe(
        boolean({
          default: false,
          description: 'Count in `redis`, for all gateways together, instead of on this node alone.',
        }),
      ),
      headers: maybe(
        boolean({
          default: true,
          description: 'Show the limit in the response fields RateLimit and RateLimit-Policy.',
        }),
      ),
      dryRun: maybe(
        boolean({
          default: false,
          description: 'Refuse nothing, but count what would be refused, to try a limit out.',
        }),
      ),
    },
    { description: 'One limit: a token bucket.' },
  ),
  {
    default: [],
    maxItems: 8,
    description: 'Limits on the rate of requests of this rule, in their order. Refused requests get 429.',
  },
);

/** Schema of `redis`. */
export const redisSchema = mapping(
  {
    address: endpointAddress({ description: 'IP address or DNS name, and port.' }),
    username: maybe(word('User name (ACL). Default: the default user.')),
    password: maybe(word('Password; best from an environment variable. Absent: none.')),
    database: maybe(integer({ default: 0, min: 0, max: 1023, description: 'Number of the database.' })),
    tls: maybe(
      mapping(
        {
          serverName: maybe(
            serverName({ description: 'Name that its certificate must have. Default: the host of `address`.' }),
          ),
          caCertificates: maybe(
            filePath("PEM file with the authorities that its certificate may be from. Default: the system's."),
          ),
        },
        { description: 'TLS towards Redis. Absent: none.' },
      ),
    ),
    timeout: maybe(
      duration({
        default: '50ms',
        maxMs: 10_000,
        description: 'Longest time that a request waits for Redis. Then `failure` decides.',
      }),
    ),
    failure: maybe(
      oneOf(['open', 'closed', 'local'], {
        default: 'local',
        description:
          'What decides while Redis does not answer: `open` lets requests pass, `closed` refuses them, `local` counts them on this node by the same numbers.',
      }),
    ),
    keyPrefix: maybe(
      text(
        {
          default: 'portcullis:',
          description: 'What the names of keys begin with. All that share limits have the same.',
        },
        'text',
        'up to 64 visible ASCII characters without spaces',
        (value) => (/^[\x21-\x7e]{1,64}$/.test(value) ? undefined : 'is not valid'),
      ),
    ),
  },
  { description: 'Redis server that counts the rate limits with `global: true`. Absent: there are none.' },
);
