// All scenarios, in the order in which they run: those that share a fleet of proxies stand together.

import { accessLog } from './access-log.ts';
import { bodies } from './bodies.ts';
import { connections } from './connections.ts';
import { http2 } from './http2.ts';
import { idleMemory } from './idle-memory.ts';
import { manyRoutes } from './many-routes.ts';
import { reload } from './reload.ts';
import type { Scenario } from './scenario.ts';
import { slowBackend } from './slow-backend.ts';
import { slowReader } from './slow-reader.ts';
import { start } from './start.ts';
import { streams } from './streams.ts';
import { tls } from './tls.ts';
import { traffic } from './traffic.ts';
import { windowMemory } from './window-memory.ts';
import { workers } from './workers.ts';

/** Every scenario. */
export const allScenarios: readonly Scenario[] = [
  ...connections,
  ...bodies,
  accessLog,
  manyRoutes,
  workers,
  ...tls,
  ...http2,
  ...streams,
  ...idleMemory,
  slowReader,
  windowMemory,
  slowBackend,
  ...traffic,
  start,
  reload,
];
