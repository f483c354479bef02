// Where backends run, in the configuration: endpoints, files of endpoints, and how names are looked up.
//
// Control thread. One part of the schema (schema.ts). The same list of endpoints stands in a backend and in
// a file of its own (endpoint-file.ts). Relations between keys are checked in endpoint-semantics.ts.
// Spec: RFC 2782 (SRV), RFC 1035 §3.2.1 (TTL).

import { endpointPlaceKeys } from './balancer-schema.ts';
import { boolean, duration, filePath, integer, NOTE, type Note, text } from './kinds.ts';
import { dnsServerProblem, endpointAddressProblem, SRV_PREFIX, srvNameProblem } from './names.ts';
import { list, mapping, maybe, union } from './schema-builder.ts';

/** Most endpoints of a list. */
const ENDPOINTS_MAX = 4096;

/** An address to connect to, or a service whose addresses DNS knows. */
function endpointPlace(description: string) {
  const problem = (value: string): string | undefined =>
    value.startsWith(SRV_PREFIX) ? srvNameProblem(value.slice(SRV_PREFIX.length)) : endpointAddressProblem(value);
  return text({ description }, 'address', 'host:port, [ipv6]:port or srv:_service._tcp.name', problem, (value) => {
    const url = /^https?:\/\/([^/]+)/.exec(value);
    if (url !== null && endpointAddressProblem(url[1]!) === undefined) return url[1];
    const srv = /^(?:srv:\/\/|SRV:)?(_.+)$/.exec(value);
    return srv !== null && srvNameProblem(srv[1]!) === undefined ? `${SRV_PREFIX}${srv[1]}` : undefined;
  });
}

/** Schema of one endpoint. */
const endpointSchema = union(
  [
    endpointPlace('Address of the endpoint.'),
    mapping({
      address: endpointPlace(
        'IP address or DNS name, and port; or `srv:` and the name of SRV records, which tell hosts, ports, weights and priorities.',
      ),
      weight: maybe(
        integer({
          default: 1,
          min: 1,
          max: 65535,
          description: 'Share of the requests, relative to the other endpoints of the backend.',
        }),
      ),
      ...endpointPlaceKeys,
      draining: maybe(
        boolean({
          default: false,
          description: 'Gets no new requests; those in flight end in peace.',
        }),
      ),
    }),
  ],
  {
    description: 'One endpoint: `"host:port"`, `"srv:_service._tcp.name"`, or a mapping with address and more.',
    [NOTE]: {
      type: 'address or mapping',
      expected: 'host:port, or a mapping with an address',
    } satisfies Note,
  },
);

/** Schema of `backends[].endpoints`. */
export const endpointListSchema = list(endpointSchema, {
  minItems: 1,
  maxItems: ENDPOINTS_MAX,
  description:
    'Where the backend runs: addresses, DNS names with a port, names of SRV records. Absent: endpointsFile says it alone.',
});

/** Schema of what an endpoints file holds; it may be empty. */
export const endpointFileSchema = list(endpointSchema, {
  maxItems: ENDPOINTS_MAX,
  description: 'Endpoints of a backend.',
});

/** Schema of `backends[].endpointsFile`. */
export const endpointsFileSchema = filePath(
  'YAML or JSON file with a list of endpoints, as `endpoints` has them; the two add up. The file is watched: its changes apply at once, and a broken one is refused, so that the endpoints of before stay. Absent: none.',
);

/** Schema of `dns`. */
export const dnsSchema = mapping(
  {
    servers: maybe(
      list(
        text(
          { description: 'IP address, with or without a port.' },
          'address',
          'an IP address such as 10.0.0.53 or 10.0.0.53:5353',
          dnsServerProblem,
        ),
        {
          minItems: 1,
          maxItems: 16,
          description:
            'Name servers to ask, in this order. Default: those of the system, and where they know nothing, whatever else the system looks names up with.',
        },
      ),
    ),
    timeout: maybe(
      duration({ default: '5s', maxMs: 60_000, description: 'Longest time for one lookup, repetitions included.' }),
    ),
    minTtl: maybe(
      duration({ default: '1s', description: 'An answer is kept at least so long, whatever its TTL says.' }),
    ),
    maxTtl: maybe(
      duration({
        default: '5m',
        description:
          'An answer is kept at most so long, whatever its TTL says. Names without TTL (hosts file) are looked up again after 30s, or this if it is shorter.',
      }),
    ),
  },
  { default: {}, description: 'How DNS names of endpoints are looked up.' },
);
