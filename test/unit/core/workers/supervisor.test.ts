// The supervisor with threads that speak the protocol but serve nothing (fake-worker.ts).

import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { afterEach, test } from 'node:test';
import { ListeningSockets, type ListenPlan } from '../../../../core/workers/listening-sockets.ts';
import type { LogFields } from '../../../../core/workers/log.ts';
import type { DestinationQuestion } from '../../../../core/workers/protocol.ts';
import type { Snapshot } from '../../../../core/workers/snapshot.ts';
import { Supervisor } from '../../../../core/workers/supervisor.ts';

const Word = {
  ...{ STARTS: 0, FAIL_AT_START: 1, FAIL_AT_SNAPSHOT: 2, IGNORE_PINGS: 3, DRAIN_REMAINING: 4, HANG_AT_STOP: 5 },
  ...{ FAIL_AT_REPORT: 6, IGNORE_SNAPSHOTS: 7 },
};

interface Line extends LogFields {
  message: string;
}

/** A supervisor over fake workers, with its log and the workers' control areas. */
class Harness {
  readonly lines: Line[] = [];
  readonly controls: Int32Array[];
  readonly sockets: ListeningSockets;
  readonly supervisor: Supervisor;
  readonly descriptors: Int32Array[] = [];
  private readonly waiters: { when: (line: Line) => boolean; resolve: (line: Line) => void }[] = [];

  constructor(workerCount: number, failuresAtStart = 0) {
    this.controls = Array.from({ length: workerCount }, () => new Int32Array(new SharedArrayBuffer(64)));
    this.controls[0]![Word.FAIL_AT_START] = failuresAtStart;
    this.sockets = new ListeningSockets(workerCount);
    this.supervisor = new Supervisor({
      ioUring: true,
      workerCount,
      workerFile: new URL('./fake-worker.ts', import.meta.url),
      bufferBytes: 4096,
      connectionsMax: 16,
      shared: (index) => ({
        metrics: this.controls[index]!.buffer as SharedArrayBuffer,
        accessLog: new SharedArrayBuffer(8),
        flightRecords: new SharedArrayBuffer(8),
      }),
      sockets: this.sockets,
      log: (_level, message, fields) => {
        const line = { message, ...fields };
        this.lines.push(line);
        for (const waiter of this.waiters.filter(({ when }) => when(line))) waiter.resolve(line);
      },
      onDestinationQuestions: (questions) => this.onQuestions(questions),
    });
    running = this.supervisor;
  }

  /** Told of destinations that workers ask for. */
  onQuestions: (questions: DestinationQuestion[]) => void = () => {};

  /** The first log line, past or future, that fits. */
  line(when: (line: Line) => boolean): Promise<Line> {
    const past = this.lines.find(when);
    if (past !== undefined) return Promise.resolve(past);
    return new Promise((resolve) => this.waiters.push({ when, resolve }));
  }

  plan(...names: string[]): ListenPlan {
    const plan = this.sockets.plan(names.map((name) => ({ name, host: '127.0.0.1', port: 0 })));
    assert.ok(!('failure' in plan), 'loopback addresses can be listened on');
    return plan;
  }
}

let running: Supervisor | undefined;

afterEach(async () => {
  await running?.stop();
  running = undefined;
});

const snapshot = (epoch: number): Snapshot => {
  const none = { rulePolicies: [], refPolicies: [], listeners: [], streamRoutes: [], backends: [], mesh: null };
  return { epoch, ...none, tls: { contexts: [], ticketKeys: [] } } as unknown as Snapshot;
};

function connects(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

test('every worker gets the snapshot with its own socket of each listener', async () => {
  const harness = new Harness(2);
  const plan = harness.plan('a', 'b');
  const report = await harness.supervisor.apply(snapshot(1), plan);

  assert.deepEqual(
    { kept: report.kept, drained: report.drained, closed: report.closed, upstreamClosed: report.upstreamClosed },
    { kept: 2, drained: 4, closed: 6, upstreamClosed: 8 },
  );
  assert.equal(report.pauseMs, 1, 'the longest pause of all workers counts');
  assert.equal(report.late, 0);
  const [a, b] = plan.listeners;
  for (const worker of [0, 1]) {
    const { message } = await harness.line((line) => line.worker === worker);
    assert.equal(message, `fds ${a!.fds[worker]},${b!.fds[worker]}`);
  }
  assert.equal(new Set(plan.listeners.flatMap(({ fds }) => fds)).size, 4);
  assert.deepEqual(
    harness.supervisor.states().map(({ up, epochApplied, restarts }) => ({ up, epochApplied, restarts })),
    [
      { up: true, epochApplied: 1, restarts: 0 },
      { up: true, epochApplied: 1, restarts: 0 },
    ],
  );
});

test('a listener that is removed refuses connections after the hand-over and a kept one goes on', async () => {
  const harness = new Harness(2);
  const first = harness.plan('stays', 'goes');
  await harness.supervisor.apply(snapshot(1), first);
  const [stays, goes] = first.listeners;
  assert.ok(await connects(goes!.port));

  await harness.supervisor.apply(snapshot(2), harness.plan('stays'));
  assert.equal(await connects(goes!.port), false);
  assert.ok(await connects(stays!.port));
  assert.deepEqual(harness.sockets.current, [stays]);
});

test('a worker that does not answer holds up what comes next for the others only briefly', async (t) => {
  const harness = new Harness(2);
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));
  harness.controls[1]![Word.IGNORE_SNAPSHOTS] = 1;
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let late = -1;
  const applied = harness.supervisor.apply(snapshot(2), harness.plan('a')).then((report) => (late = report.late));
  while (harness.supervisor.states()[0]!.epochApplied !== 2) await new Promise(setImmediate);
  // The one that answers has, and the time for the other has begun.
  await new Promise(setImmediate);
  t.mock.timers.tick(1000);
  await new Promise(setImmediate);
  assert.equal(late, 1);
  await applied;
  t.mock.timers.reset();
});

test('a worker that dies while it takes a snapshot is replaced and gets the same snapshot and sockets', async () => {
  const harness = new Harness(2);
  const plan = harness.plan('a');
  await harness.supervisor.apply(snapshot(1), plan);
  harness.controls[1]![Word.FAIL_AT_SNAPSHOT] = 2;
  const report = await harness.supervisor.apply(snapshot(2), harness.plan('a'));

  assert.equal(report.late, 0);
  const death = await harness.line((line) => line.message === 'packet worker died');
  assert.equal(death.worker, 1);
  assert.match(String(death.cause), /told to fail at the snapshot[\s\S]*fake-worker\.ts/);
  assert.equal(death.restartInMs, 0);
  const told = harness.lines.filter((line) => line.worker === 1 && line.message === `fds ${plan.listeners[0]!.fds[1]}`);
  assert.equal(told.length, 2, 'once before the death, once after');
  assert.deepEqual(
    harness.supervisor.states().map(({ up, restarts, epochApplied }) => ({ up, restarts, epochApplied })),
    [
      { up: true, restarts: 0, epochApplied: 2 },
      { up: true, restarts: 1, epochApplied: 2 },
    ],
  );
});

test('new ticket keys and open challenges reach all workers, and a thread that replaces a dead one', async () => {
  const harness = new Harness(2);
  const withKeys = (epoch: number, ...keys: number[]): Snapshot => ({
    ...snapshot(epoch),
    tls: { contexts: [], ticketKeys: keys.map((key) => Uint8Array.of(key)) },
  });
  await harness.supervisor.apply(withKeys(1, 1), harness.plan('a'));
  const challenges = { http: [{ token: 't', keyAuthorization: 'k' }], tls: [] };
  harness.supervisor.useTicketKeys([Uint8Array.of(2), Uint8Array.of(1)]);
  harness.supervisor.useChallenges(challenges);
  const said = (worker: number, message: string): Promise<Line> =>
    harness.line((line) => line.worker === worker && line.message === message);
  for (const worker of [0, 1]) {
    await said(worker, 'keys 2,1');
    await said(worker, `challenges ${JSON.stringify(challenges)}`);
  }
  harness.lines.length = 0;
  harness.controls[1]![Word.FAIL_AT_SNAPSHOT] = 2;
  await harness.supervisor.apply(withKeys(2, 2, 1), harness.plan('a'));
  harness.supervisor.useTicketKeys([Uint8Array.of(3), Uint8Array.of(2)]);
  await said(1, 'keys 3,2');
  await said(1, `challenges ${JSON.stringify(challenges)}`);
});

test('what is known of destinations reaches all workers, and their questions whoever answers', async () => {
  const harness = new Harness(2);
  const asked: string[] = [];
  const all = new Promise<void>((resolve) => {
    harness.onQuestions = (questions) => {
      for (const { host, workload } of questions) asked.push(`${workload}: ${host}`);
      if (asked.length === 2) resolve();
    };
  });
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));
  harness.supervisor.answerDestinations([{ host: '192.0.2.1', verdict: 'outside' }]);
  await all;
  assert.deepEqual(asked.sort(), ['0: 192.0.2.1 was outside', '1: 192.0.2.1 was outside']);
});

test('what is used is what any worker uses, and may be anything when one of them dies before it has told', async () => {
  const harness = new Harness(2);
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));
  assert.deepEqual(await harness.supervisor.usedDestinations(), { hosts: ['10.0.0.0', '10.0.0.1'], all: false });
  harness.controls[1]![Word.FAIL_AT_REPORT] = 1;
  assert.deepEqual(await harness.supervisor.usedDestinations(), { hosts: ['10.0.0.0'], all: true });
});

test('a worker that keeps dying is restarted at once, then with growing delays, until it lives', async () => {
  const harness = new Harness(1, 3);
  const report = await harness.supervisor.apply(snapshot(1), harness.plan('a'));

  assert.equal(report.late, 0);
  const delays = harness.lines
    .filter(({ message }) => message === 'packet worker died')
    .map((line) => line.restartInMs);
  assert.deepEqual(delays, [0, 250, 500]);
  assert.equal(harness.controls[0]![Word.STARTS], 4);
});

test('descriptors that a dead worker left open are closed and counted', async () => {
  // The fake worker is stopped by its own failure; the entries stand for its connections.
  const harness = new Harness(1);
  const descriptors = new Int32Array(
    (harness.supervisor as unknown as { slots: { start: { descriptors: SharedArrayBuffer } }[] }).slots[0]!.start
      .descriptors,
  );
  const open = [openSync('/dev/null', 'r'), openSync('/dev/null', 'r')];
  descriptors[3] = open[0]! + 1;
  descriptors[7] = open[1]! + 1;
  harness.controls[0]![Word.FAIL_AT_SNAPSHOT] = 1;
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));

  const death = await harness.line((line) => line.message === 'packet worker died');
  assert.equal(death.connectionsCut, 2);
  assert.deepEqual([descriptors[3], descriptors[7]], [0, 0]);
  for (const fd of open) {
    // The number may be in use again by now, but not for what we opened.
    assert.throws(() => {
      if (fstatSync(fd).isCharacterDevice()) return;
      throw new Error('closed');
    });
  }
});

test('draining closes the listening sockets and reports the connections that were cut', async () => {
  const harness = new Harness(2);
  const plan = harness.plan('a');
  await harness.supervisor.apply(snapshot(1), plan);
  harness.controls[0]![Word.DRAIN_REMAINING] = 5;
  harness.controls[1]![Word.DRAIN_REMAINING] = 2;

  assert.equal(await harness.supervisor.drain(0, 1000), 7);
  assert.equal(await connects(plan.listeners[0]!.port), false);
});

test('a stop ends all threads and none is restarted', async () => {
  const harness = new Harness(2);
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));
  await harness.supervisor.stop();

  assert.deepEqual(
    harness.supervisor.states().map(({ up }) => up),
    [false, false],
  );
  assert.deepEqual(
    [...harness.controls].map((control) => control[Word.STARTS]),
    [1, 1],
  );
  assert.deepEqual(
    harness.lines.filter(({ message }) => message === 'packet worker died'),
    [],
  );
});

test('a thread that hangs at the stop is ended from outside', async () => {
  const harness = new Harness(1);
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));
  harness.controls[0]![Word.HANG_AT_STOP] = 1;
  await harness.supervisor.stop();
  assert.equal(harness.supervisor.states()[0]!.up, false);
});

test('a worker that does not answer for ten seconds is unhealthy but not killed', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const harness = new Harness(1);
  await harness.supervisor.apply(snapshot(1), harness.plan('a'));
  const [control] = harness.controls;
  control![Word.IGNORE_PINGS] = 1;
  // A whole number: what is added to another one may be a little less in a difference.
  const startMs = Math.ceil(performance.now());
  let nowMs = startMs;
  t.mock.method(performance, 'now', () => nowMs);
  t.mock.timers.tick(1000);

  nowMs = startMs + 9_999;
  assert.equal(harness.supervisor.states()[0]!.healthy, true);
  nowMs = startMs + 10_000;
  const { up, healthy, restarts } = harness.supervisor.states()[0]!;
  assert.deepEqual({ up, healthy, restarts }, { up: true, healthy: false, restarts: 0 });

  control![Word.IGNORE_PINGS] = 0;
  t.mock.timers.tick(1000);
  while (!harness.supervisor.states()[0]!.healthy) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(control![Word.STARTS], 1);
});

test('an address that somebody else listens on is refused and nothing of the plan stays open', async (t) => {
  const harness = new Harness(2);
  const taken = createServer();
  await new Promise<void>((resolve) => taken.listen({ port: 0, host: '127.0.0.1' }, resolve));
  t.after(() => taken.close());
  const { port } = taken.address() as { port: number };
  const probe = openSync('/dev/null', 'r');
  closeSync(probe);

  const plan = harness.sockets.plan([
    { name: 'free', host: '127.0.0.1', port: 0 },
    { name: 'taken', host: '127.0.0.1', port },
  ]);
  assert.ok('failure' in plan);
  assert.equal(plan.failure.address.name, 'taken');
  assert.equal(plan.failure.errno, 98);
  const after = openSync('/dev/null', 'r');
  closeSync(after);
  assert.equal(after, probe, 'the lowest free descriptor is the same as before');
});
