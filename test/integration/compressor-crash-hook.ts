// Preloaded into gateways under test (NODE_OPTIONS=--import=...): makes the compressor thread throw when the
// test creates the file CRASH_FILE.compressor. The product itself has no such hook.

import { existsSync, unlinkSync } from 'node:fs';
import { threadName } from 'node:worker_threads';

if (threadName === 'compressor') {
  const file = `${process.env.CRASH_FILE}.compressor`;
  setInterval(() => {
    if (!existsSync(file)) return;
    unlinkSync(file);
    throw new Error('told to crash by the test');
  }, 10).unref();
}
