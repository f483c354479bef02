// Thread entry of the access log writer: the only thread that waits for the disk.
//
// It sleeps until its timer, a command or a half-full ring wakes it, and then drains all rings.
// Started and commanded by access-log-sink.ts.

import { parentPort, workerData } from 'node:worker_threads';
import { LogDrain } from './access-log-drain.ts';
import { accessLogCause, accessLogSentence, LogFile } from './access-log-file.ts';
import type { SinkCommand, SinkReport, SinkStart } from './access-log-sink.ts';
import { type RingConsumer, RingWord } from './byte-ring.ts';

/** Longest time a line waits in its ring while the log is quiet. */
const INTERVAL_MS = 100;

/** Pause after a failure, and after a pipe that took nothing. */
const RETRY_MS = 500;
const BUSY_RETRY_MS = 10;

/** Least time between two reports of failures: a full disk must not fill the other log as well. */
const REPORT_INTERVAL_MS = 10_000;

/** How long closing waits for a pipe whose reader is slow. */
const CLOSE_BUSY_MS = 2000;

const port = parentPort!;
const start = workerData as SinkStart;

let path = start.path;
const drain = new LogDrain(new LogFile(path));
let timer: NodeJS.Timeout | undefined;
/** Not before this time is the output tried again after a failure. */
let retryAtMs = 0;
let failures = 0;
let reportedMs = Number.NEGATIVE_INFINITY;
/** Flushes not answered yet, with each ring's head at the time of asking. */
let flushes: { token: number; heads: number[] }[] = [];

for (const ring of start.rings) addRing(ring);
port.on('message', (command: SinkCommand) => {
  retryAtMs = 0;
  switch (command.type) {
    case 'reopen':
      // What was logged before goes to the old file if that still works.
      pump();
      path = command.path;
      retryAtMs = 0;
      // Somebody asked: a failure is reported now, however recent the last report is.
      reportedMs = Number.NEGATIVE_INFINITY;
      drain.switchTo(new LogFile(path));
      pump();
      send({ type: 'reopened', token: command.token, opened: retryAtMs === 0 });
      break;
    case 'rings':
      for (const ring of command.rings.slice(drain.rings.length)) addRing(ring);
      break;
    case 'flush':
      flushes.push({ token: command.token, heads: drain.rings.map((ring) => ring.head()) });
      break;
    case 'close':
      close();
      return;
  }
  pump();
});
pump();

function addRing(ring: SharedArrayBuffer): void {
  void wakeAtHalfFull(drain.add(ring));
}

/** Drains whenever a worker says that its ring passed half full. Ends with the thread. */
async function wakeAtHalfFull(ring: RingConsumer): Promise<never> {
  for (;;) {
    const wait = Atomics.waitAsync(ring.words, RingWord.WAKE, 0);
    if (wait.async) await wait.value;
    pump();
  }
}

/** One round, and the timer for the next. */
function pump(): void {
  clearTimeout(timer);
  const nowMs = performance.now();
  let pauseMs = retryAtMs - nowMs;
  if (pauseMs <= 0) {
    const result = drain.drain();
    pauseMs = result === 'done' ? INTERVAL_MS : result === 'busy' ? BUSY_RETRY_MS : RETRY_MS;
    if (result === 'failed') {
      retryAtMs = nowMs + RETRY_MS;
      failed(nowMs);
    }
  }
  answerFlushes();
  timer = setTimeout(pump, pauseMs);
}

function failed(nowMs: number): void {
  failures++;
  if (nowMs - reportedMs < REPORT_INTERVAL_MS) return;
  reportedMs = nowMs;
  send({ type: 'error', message: accessLogSentence(path, drain.lastError!), failures });
}

function answerFlushes(): void {
  flushes = flushes.filter(({ token, heads }) => {
    const waiting = heads.some((head, index) => !drain.rings[index].hasPassed(head));
    if (!waiting) send({ type: 'flushed', token });
    return waiting;
  });
}

/** Writes what can still be written, says what could not, and ends the thread. */
function close(): void {
  clearTimeout(timer);
  const nap = new Int32Array(new SharedArrayBuffer(4));
  const deadlineMs = performance.now() + CLOSE_BUSY_MS;
  let result = drain.drain();
  while (result === 'busy' && performance.now() < deadlineMs) {
    Atomics.wait(nap, 0, 0, BUSY_RETRY_MS);
    result = drain.drain();
  }
  const lines = result === 'done' ? 0 : drain.pendingLines();
  if (lines > 0) {
    const cause = result === 'busy' ? 'its reader takes nothing' : accessLogCause(path, drain.lastError!);
    failures++;
    send({ type: 'error', message: `${lines} access log lines could not be written to ${path}: ${cause}`, failures });
  }
  answerFlushes();
  drain.closeOutput();
  send({ type: 'closed' });
  port.close();
}

function send(report: SinkReport): void {
  port.postMessage(report);
}
