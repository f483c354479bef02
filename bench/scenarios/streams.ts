// Connections that are passed on unread: any TCP, and TLS chosen by the name in SNI.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import { loadScenario, type Scenario } from './scenario.ts';

const CONNECTIONS = 64;
const load = {
  kind: 'get',
  connections: CONNECTIONS,
  bodyBytes: SMALL_BODY_BYTES,
  uploadBytes: 0,
  pinned: true,
} as const;

/** Bytes without a reader, and TLS without a key. */
export const streams: readonly Scenario[] = [
  loadScenario({
    name: 'tcp',
    title: 'TCP, 64 connections',
    description: `${CONNECTIONS} kept-alive connections whose bytes (requests with heads of about 350 bytes, answers of ${SMALL_BODY_BYTES} bytes) are passed on unread: a TCP route, nginx's stream module, HAProxy in mode tcp.`,
    wish: { protocol: 'tcp' },
    fits: (peer) => peer.features.tcp,
    load,
    perGb: false,
    targets: () => [],
  }),
  loadScenario({
    name: 'tls-passthrough',
    title: 'TLS passed on by SNI',
    description: `${CONNECTIONS} kept-alive connections with TLS from wrk to the backend; the proxy reads the name in the ClientHello and passes everything on.`,
    wish: { protocol: 'tls-passthrough', backend: 'tls' },
    fits: (peer) => peer.features.tlsPassthrough,
    load,
    perGb: false,
    targets: () => [],
  }),
];
