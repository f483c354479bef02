// Preloaded into gateways under test (NODE_OPTIONS=--import=...): makes a packet worker throw when
// the test creates the file CRASH_FILE.INDEX. The product itself has no such hook.
// The worker's event loop runs at least once a second, for the supervisor's ping.

import { existsSync, unlinkSync } from 'node:fs';
import { isMainThread, workerData } from 'node:worker_threads';

const index: unknown = isMainThread ? undefined : workerData?.index;

if (typeof index === 'number') {
  const file = `${process.env.CRASH_FILE}.${index}`;
  setInterval(() => {
    if (!existsSync(file)) return;
    // Before the throw: the replacement must live.
    unlinkSync(file);
    throw new Error('told to crash by the test');
  }, 20).unref();
}
