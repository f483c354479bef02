// Load balancing in the configuration: policies of backends, places of endpoints, subsets, sessions.
//
// Control thread. One part of the schema (schema.ts); relations between keys are checked in
// balancer-semantics.ts.
// Spec: Gateway API SessionPersistence; Envoy's load balancers, whose words are used where that is silent.

import { boolean, decimal, duration, integer, NOTE, type Note, oneOf, pathValue, text, token, word } from './kinds.ts';
import { dictionary, list, mapping, maybe } from './schema-builder.ts';

/** Largest table that Envoy takes, too; a prime. */
const MAGLEV_TABLE_MAX = 5_000_011;

/** Most levels of priority, keys of a hash, labels. */
const PRIORITY_MAX = 31;
const HASH_KEYS_MAX = 8;
const LABELS_MAX = 32;

const LABEL_NAME = '^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$';

/** Labels: names and values. */
function labels(description: string) {
  const value = text(
    { description: 'Value of the label.' },
    'text',
    'text of up to 128 visible characters (in quotes if it looks like a number)',
    (one) => (/^[\x21-\x7e]{1,128}$/.test(one) ? undefined : 'is not the value of a label'),
  );
  return dictionary(value, LABEL_NAME, LABELS_MAX, {
    description,
    [NOTE]: { type: 'mapping of labels', expected: 'labels such as {version: v2}' } satisfies Note,
  });
}

/** Name of a zone. */
function zone(description: string) {
  return text({ description }, 'name', 'the name of a zone such as eu-west-1a', (value) =>
    /^[\x21-\x7e]{1,128}$/.test(value) ? undefined : 'is not the name of a zone',
  );
}

/** Keys of an endpoint that say where it belongs. */
export const endpointPlaceKeys = {
  priority: maybe(
    integer({
      default: 0,
      min: 0,
      max: PRIORITY_MAX,
      description:
        'Level of the endpoint: those of level 0 take everything as long as enough of them are usable, then the next level takes the rest.',
    }),
  ),
  zone: maybe(zone('Zone of the endpoint, for `loadBalancer.zoneAware`. Absent: none.')),
  labels: maybe(labels('Labels of the endpoint, for `backendRefs[].subset`. Absent: none.')),
};

/** Schema of `zone`. */
export const zoneSchema = zone('Zone that this gateway is in, for `loadBalancer.zoneAware` of backends. Absent: none.');

/** Schema of `backendRefs[].subset`. */
export const subsetSchema = labels(
  'Use only endpoints of the backend that have all these labels. Without any such endpoint requests are answered with 503 and reason UH. Absent: all endpoints.',
);

const hashKeySchema = mapping(
  {
    header: maybe(
      token(
        { description: 'Name of a header field; `host` is the host that the request is for. Absent: no field.' },
        'the name of a header field',
      ),
    ),
    cookie: maybe(
      mapping(
        {
          name: token({ description: 'Name of the cookie.' }, 'the name of a cookie'),
          ttl: maybe(
            duration({
              zero: 'until the browser closes',
              description:
                'Clients that do not send the cookie get one that lasts so long (whole seconds). Absent: none is made.',
            }),
          ),
          path: maybe(
            pathValue({
              description: 'Path attribute of a cookie that is made. Absent: none, the path of the request.',
            }),
          ),
        },
        { description: 'A cookie. Absent: none.' },
      ),
    ),
    sourceAddress: maybe(
      boolean({ default: false, description: "The client's address; behind trusted proxies the one they have noted." }),
    ),
    queryParam: maybe(
      text(
        { description: 'Name of a query parameter, as it stands in the URL. Absent: none.' },
        'name',
        'the name of a query parameter',
        (value) =>
          /^[^\x00-\x20\x7f-\uffff&=#]{1,128}$/.test(value) ? undefined : 'cannot be the name of a parameter',
      ),
    ),
  },
  { description: 'One place to look for the key: exactly one of the keys.' },
);

/** Schema of `backends[].loadBalancer`. */
export const loadBalancerSchema = mapping(
  {
    policy: maybe(
      oneOf(['RoundRobin', 'LeastRequest', 'Random', 'RingHash', 'Maglev', 'PeakEWMA'], {
        default: 'RoundRobin',
        description:
          '`RoundRobin`: in turn. `LeastRequest`: the one with the fewest requests of some drawn at random. `Random`. `RingHash`, `Maglev`: the same endpoint for the same key (`hashOn`). `PeakEWMA`: the one with the lowest latency times requests, of two. All by weight.',
      }),
    ),
    choiceCount: maybe(
      integer({
        default: 2,
        min: 2,
        max: 16,
        description: 'LeastRequest: how many endpoints are drawn. Only while all weights are equal.',
      }),
    ),
    ringHash: maybe(
      mapping(
        {
          minimumRingSize: maybe(
            integer({
              default: 1024,
              min: 1,
              max: 8_388_608,
              description: 'Least points on the ring, up to 262144: more make shares more equal.',
            }),
          ),
          maximumRingSize: maybe(
            integer({
              default: 8_388_608,
              min: 1,
              max: 8_388_608,
              description:
                'Most points on the ring, which very different weights ask for; more than 262144 are not made. Every endpoint has at least one.',
            }),
          ),
        },
        { default: {}, description: 'RingHash.' },
      ),
    ),
    maglev: maybe(
      mapping(
        {
          tableSize: maybe(
            integer({
              default: 65_537,
              min: 2,
              max: MAGLEV_TABLE_MAX,
              description: 'Places of the table: a prime, best more than 100 times the number of endpoints.',
            }),
          ),
        },
        { default: {}, description: 'Maglev.' },
      ),
    ),
    peakEwma: maybe(
      mapping(
        {
          decay: maybe(
            duration({ default: '10s', description: 'Time in which an old latency loses two thirds of its weight.' }),
          ),
        },
        { default: {}, description: 'PeakEWMA.' },
      ),
    ),
    hashOn: maybe(
      list(hashKeySchema, {
        default: [],
        maxItems: HASH_KEYS_MAX,
        description:
          'RingHash and Maglev: where the key of a request is; the first that is there counts. Requests without any go to an endpoint at random.',
      }),
    ),
    panicThreshold: maybe(
      integer({
        default: 50,
        min: 0,
        max: 100,
        zero: 'never',
        description:
          'When fewer percent of the endpoints of a level are usable, and all levels together cannot carry the load, all its endpoints are used, whatever their health.',
      }),
    ),
    overprovisioningFactor: maybe(
      integer({
        default: 140,
        min: 100,
        max: 1000,
        description:
          'Percent of its load that a level of priority can carry: with 140, requests go to the next one when fewer than 71 % are usable.',
      }),
    ),
    zoneAware: maybe(
      mapping(
        {
          minEndpoints: maybe(
            integer({
              default: 6,
              min: 1,
              max: 4096,
              description: 'With fewer usable endpoints zones do not matter.',
            }),
          ),
        },
        {
          description:
            'Prefer endpoints of the own `zone`, as far as they can carry its share. Absent: zones do not matter.',
        },
      ),
    ),
    slowStart: maybe(
      mapping(
        {
          window: duration({ description: 'Time in which a new endpoint comes to its full weight.' }),
          aggression: maybe(
            decimal({
              default: 1,
              min: 0.1,
              max: 10,
              description: 'Above 1 the weight grows faster in the beginning; 1 is linear.',
            }),
          ),
          minWeightPercent: maybe(
            integer({ default: 10, min: 1, max: 100, description: 'Weight at the start, percent of the full one.' }),
          ),
        },
        {
          description:
            'Endpoints that are new, or usable again, get fewer requests at first. Not with RingHash and Maglev. Absent: no.',
        },
      ),
    ),
  },
  { default: {}, description: 'How requests are spread over the endpoints.' },
);

/** Schema of `sessionPersistence` of a rule. */
export const sessionPersistenceSchema = mapping(
  {
    sessionName: maybe(
      token(
        {
          description:
            'Name of the cookie or header field. Default: one made of the names of the route and the number of the rule.',
        },
        'the name of a cookie or header field',
      ),
    ),
    type: maybe(
      oneOf(['Cookie', 'Header'], {
        default: 'Cookie',
        description: '`Header` is for clients that send the field of the response back themselves.',
      }),
    ),
    absoluteTimeout: maybe(
      duration({ minMs: 1000, description: 'Time after which a session ends (whole seconds). Absent: no limit.' }),
    ),
    idleTimeout: maybe(
      duration({
        minMs: 1000,
        description:
          'Time without a request after which a session ends (whole seconds); every response then renews the name. Absent: no limit.',
      }),
    ),
    cookieConfig: maybe(
      mapping(
        {
          lifetimeType: maybe(
            oneOf(['Session', 'Permanent'], {
              default: 'Session',
              description:
                '`Session`: until the browser closes. `Permanent`: as long as `absoluteTimeout`, which is then required.',
            }),
          ),
          sameSite: maybe(
            oneOf(['Strict', 'Lax', 'None'], {
              default: 'Strict',
              description: 'SameSite attribute. `None` needs a listener with TLS.',
            }),
          ),
        },
        { default: {}, description: 'The cookie.' },
      ),
    ),
    secret: maybe(
      word(
        "Text that the names of endpoints are keyed with, the same on all gateways; best from an environment variable. Default: the route's name, so that whoever knows it can find out which of some addresses a name stands for.",
      ),
    ),
  },
  {
    description:
      'Send all requests of a client to the endpoint that served its first one, as long as it can be used. Absent: each request is balanced anew.',
  },
);
