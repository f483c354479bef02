// Larger bodies in both directions: the cost of a byte.

import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import { atMost, cpuRatio } from '../lib/report.ts';
import { loadScenario, type Scenario } from './scenario.ts';

const CONNECTIONS = 64;
const MEBIBYTE = 1_048_576;

/** Downloads of 16 KiB and 1 MiB, uploads of 1 MiB. */
export const bodies: readonly Scenario[] = [
  loadScenario({
    name: 'body-16k',
    title: 'Downloads of 16 KiB',
    description: `${CONNECTIONS} kept-alive connections, answers of 16 KiB.`,
    load: { kind: 'get', connections: CONNECTIONS, bodyBytes: 16_384, uploadBytes: 0, pinned: true },
    perGb: true,
    targets: () => [],
  }),
  loadScenario({
    name: 'body-1m',
    title: 'Downloads of 1 MiB',
    description: `${CONNECTIONS} kept-alive connections, answers of 1 MiB.`,
    load: { kind: 'get', connections: CONNECTIONS, bodyBytes: MEBIBYTE, uploadBytes: 0, pinned: true },
    perGb: true,
    targets: (summaries) => [atMost('CPU per GB ÷ nginx', cpuRatio(summaries, 'nginx'), 1)],
  }),
  loadScenario({
    name: 'upload-1m',
    title: 'Uploads of 1 MiB',
    description: `${CONNECTIONS} kept-alive connections, POST bodies of 1 MiB, answered with ${SMALL_BODY_BYTES} bytes once the backend has read all of it. The backend is backend.c where it can be built.`,
    load: {
      kind: 'upload',
      connections: CONNECTIONS,
      bodyBytes: SMALL_BODY_BYTES,
      uploadBytes: MEBIBYTE,
      pinned: true,
    },
    perGb: true,
    targets: (summaries) => [atMost('CPU per GB ÷ nginx', cpuRatio(summaries, 'nginx'), 1)],
  }),
];
