// Adaptive concurrency with real processes: a backend that is asked too much gets no more than it can bear.

import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import { test } from 'node:test';
import { becomes } from './http/support.ts';
import { get, startGateway, startUpstream } from './support.ts';

test('requests beyond the limit get 503 with UO at once, others are served, and nothing is left counted', async (t) => {
  // Works on one request after the other.
  let waiting: (() => void)[] = [];
  let busy = false;
  let longest = 0;
  const next = (): void => {
    const answer = waiting.shift();
    busy = answer !== undefined;
    if (answer !== undefined) {
      setTimeout(() => {
        answer();
        next();
      }, 40);
    }
  };
  const upstream = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    waiting.push(() => response.end('done'));
    longest = Math.max(longest, waiting.length);
    if (!busy) next();
  });
  t.after(() => {
    waiting = [];
  });
  const gateway = startGateway(
    t,
    `
workers: 2
admin: {address: "127.0.0.1:0"}
accessLog: {path: "-"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends:
  - name: app
    endpoints: ["127.0.0.1:${upstream}"]
    adaptiveConcurrency: {minLimit: 1, minRtt: {requests: 5}}
`,
  );
  await gateway.serving();
  const port = await gateway.port();
  const admin = await gateway.adminPort();
  const metric = async (name: string): Promise<number> => {
    const { body } = await get(admin, '/metrics');
    return Number(new RegExp(`portcullis_adaptive_concurrency_${name}\\{backend="app"\\} (\\S+)`).exec(body)![1]);
  };
  assert.equal(await metric('measuring'), 1);
  assert.equal(await metric('limit'), 1);

  // 60 clients, until the limit has been measured and has held for a while.
  const agent = new Agent({ keepAlive: true });
  t.after(() => agent.destroy());
  const statuses = new Map<number, number>();
  let running = true;
  const lanes = Array.from({ length: 60 }, async () => {
    while (running) {
      const { status, headers } = await get(port, '/', agent);
      statuses.set(status, (statuses.get(status) ?? 0) + 1);
      if (status === 503) {
        assert.equal(headers.server, 'portcullis');
        // As clients that have been refused do.
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  });
  while ((await metric('measuring')) === 1);
  const served = (): number => statuses.get(200) ?? 0;
  // One at a time is worked on: with 60 clients and no limit 59 would wait. The machine may have been away when the limit
  // was found, or while it holds; then it is given more time.
  const most: number[] = [];
  do {
    const from = served();
    while (served() < from + 60) await new Promise((resolve) => setImmediate(resolve));
    most.push(longest);
    longest = 0;
  } while (most.at(-1)! >= 30 && most.length < 10);
  running = false;
  await Promise.all(lanes);
  assert.deepEqual([...statuses.keys()].sort(), [200, 503]);
  await gateway.printed(/"status":503,"reason":"UO","detail":"adaptive_limit"/);
  assert.ok((await metric('refused_total')) >= statuses.get(503)!);
  assert.ok(most.at(-1)! < 30, `${most} waited at the backend`);
  await becomes('nothing in progress', async () => (await metric('in_progress')) === 0);
});
