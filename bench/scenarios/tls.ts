// HTTP/1.1 over TLS 1.3: the cost of a request on kept-alive connections, and of a handshake.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import type { LoadKind, LoadSummary } from '../lib/load.ts';
import { atMost, cpuRatio, type Target } from '../lib/report.ts';
import { loadScenario, type Scenario } from './scenario.ts';

const CONNECTIONS = 64;
const CPU_RATIO_MAX = 0.75;
const HANDSHAKE_CONNECTIONS = 16;
const FULL_HANDSHAKE_RATIO_MAX = 1.05;

/** The cost of records, of full handshakes and of resumed ones. */
export const tls: readonly Scenario[] = [
  loadScenario({
    name: 'tls64',
    title: 'TLS, 64 connections',
    description: `${CONNECTIONS} kept-alive connections with TLS 1.3 (ECDSA P-256, X25519, AES-128-GCM), request heads of about 350 bytes, answers of ${SMALL_BODY_BYTES} bytes, the backend without TLS.`,
    wish: { tls: true },
    fits: (peer) => peer.features.tls,
    load: { kind: 'get', connections: CONNECTIONS, bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0, pinned: true },
    perGb: false,
    targets: (summaries) => [
      atMost('CPU per request ÷ nginx', cpuRatio(summaries, 'nginx'), CPU_RATIO_MAX),
      atMost('CPU per request ÷ HAProxy', cpuRatio(summaries, 'haproxy'), CPU_RATIO_MAX),
    ],
  }),
  handshakes('handshake-full', 'Full TLS handshakes', 'without a ticket', (summaries) => [
    atMost('CPU per connection ÷ nginx', cpuRatio(summaries, 'nginx'), FULL_HANDSHAKE_RATIO_MAX),
  ]),
  handshakes('handshake-resumed', 'Resumed TLS handshakes', 'with the ticket of the one before', () => []),
];

function handshakes(
  kind: LoadKind,
  title: string,
  how: string,
  targets: (summaries: readonly LoadSummary[]) => Target[],
): Scenario {
  return loadScenario({
    name: `tls-${kind}`,
    title,
    description: `${HANDSHAKE_CONNECTIONS} clients that open a connection for each request, ${how}: TLS 1.3, certificate and key ECDSA P-256, X25519, one GET with \`Connection: close\`. A request is a connection here, from accept to close, with its one proxied request. The client is node:tls, which is slower than the proxies: requests/s and latencies are its own, CPU per request is the figure.`,
    wish: { tls: true },
    fits: (peer) => peer.features.tls,
    load: { kind, connections: HANDSHAKE_CONNECTIONS, bodyBytes: SMALL_BODY_BYTES, uploadBytes: 0, pinned: true },
    perGb: false,
    targets,
  });
}
