// HTTP/2 from clients, without and with TLS, to an HTTP/1.1 backend; and gRPC, HTTP/2 on both sides.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import { GRPC_BODY_BYTES } from '../lib/grpc.ts';
import type { LoadSummary } from '../lib/load.ts';
import { atMost, cpuRatio, type Target } from '../lib/report.ts';
import { loadScenario, type Scenario } from './scenario.ts';

/** Connections and streams on each. */
const SHAPES = [
  [16, 16],
  [1, 100],
  [64, 1],
] as const;
/** The shape that has targets. */
const MAIN_CONNECTIONS = 16;
const MAIN_STREAMS = 16;
const HAPROXY_RATIO_MAX = 0.9;
const NGINX_RATIO_MAX = 0.6;
const GRPC_NGINX_RATIO_MAX = 0.75;
const GRPC_ENVOY_RATIO_MAX = 0.5;

/** h2c and h2 in several shapes, then gRPC. */
export const http2: readonly Scenario[] = [
  ...[false, true].flatMap((tls) => SHAPES.map(([connections, streams]) => gets(tls, connections, streams))),
  loadScenario({
    name: 'grpc-unary',
    title: 'gRPC, unary calls',
    description: `${MAIN_CONNECTIONS} HTTP/2 connections with ${MAIN_STREAMS} calls at once on each, messages of ${GRPC_BODY_BYTES} bytes in both directions, no TLS, HTTP/2 to the backend. The backend is nginx, which reads the message and answers with another and with the status in trailers; nginx as a proxy uses grpc_pass.`,
    wish: { protocol: 'h2', backend: 'grpc' },
    fits: (peer) => peer.features.http2,
    load: {
      kind: 'grpc',
      connections: MAIN_CONNECTIONS,
      streams: MAIN_STREAMS,
      bodyBytes: GRPC_BODY_BYTES,
      uploadBytes: GRPC_BODY_BYTES,
      pinned: true,
    },
    perGb: false,
    targets: (summaries) => [
      atMost('CPU per call ÷ nginx', cpuRatio(summaries, 'nginx'), GRPC_NGINX_RATIO_MAX),
      atMost('CPU per call ÷ Envoy', cpuRatio(summaries, 'envoy'), GRPC_ENVOY_RATIO_MAX),
    ],
  }),
];

function gets(tls: boolean, connections: number, streams: number): Scenario {
  const name = tls ? 'h2' : 'h2c';
  const connectionsText = connections === 1 ? 'One connection' : `${connections} connections`;
  const streamsText = streams === 1 ? 'one request at a time' : `${streams} requests at once`;
  return loadScenario({
    name: `${name}-${connections}x${streams}`,
    title: `HTTP/2 ${tls ? 'over TLS' : 'without TLS'}, ${connections} x ${streams}`,
    description: `${connectionsText} with ${streamsText}${connections === 1 ? '' : ' on each'}, the header fields of a browser, answers of ${SMALL_BODY_BYTES} bytes, HTTP/1.1 to the backend.${tls ? ' TLS as in `tls64`.' : ' Prior knowledge.'}`,
    wish: { protocol: 'h2', tls },
    fits: (peer) => peer.features.http2 && (!tls || peer.features.tls),
    load: { kind: 'h2', connections, streams, bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0, pinned: true },
    perGb: false,
    targets: (summaries) =>
      connections === MAIN_CONNECTIONS && streams === MAIN_STREAMS ? mainTargets(summaries) : [],
  });
}

function mainTargets(summaries: readonly LoadSummary[]): Target[] {
  return [
    atMost('CPU per request ÷ HAProxy', cpuRatio(summaries, 'haproxy'), HAPROXY_RATIO_MAX),
    atMost('CPU per request ÷ nginx', cpuRatio(summaries, 'nginx'), NGINX_RATIO_MAX),
  ];
}
