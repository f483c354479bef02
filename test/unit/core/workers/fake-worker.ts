// A packet worker for supervisor tests: speaks the protocol, serves nothing.
// What it shall do wrong is written into its `metrics` area by the test, word by word.

import { parentPort, workerData } from 'node:worker_threads';
import type { ControlMessage, WorkerMessage, WorkerStart } from '../../../../core/workers/protocol.ts';

const start = workerData as WorkerStart;
const control = new Int32Array(start.metrics);
const port = parentPort!;

/** Words of the control area. */
const Word = {
  ...{ STARTS: 0, FAIL_AT_START: 1, FAIL_AT_SNAPSHOT: 2, IGNORE_PINGS: 3, DRAIN_REMAINING: 4, HANG_AT_STOP: 5 },
  ...{ FAIL_AT_REPORT: 6, IGNORE_SNAPSHOTS: 7 },
};

function post(message: WorkerMessage): void {
  port.postMessage(message);
}

function sayKeys(keys: readonly Uint8Array[]): void {
  post({ type: 'log', level: 'info', message: `keys ${keys.map((key) => key[0]).join(',')}` });
}

Atomics.add(control, Word.STARTS, 1);
if (Atomics.sub(control, Word.FAIL_AT_START, 1) > 0) throw new Error('told to fail at start');
Atomics.store(control, Word.FAIL_AT_START, 0);

port.on('message', (message: ControlMessage) => {
  switch (message.type) {
    case 'snapshot':
      if (Atomics.load(control, Word.FAIL_AT_SNAPSHOT) === message.snapshot.epoch) {
        Atomics.store(control, Word.FAIL_AT_SNAPSHOT, 0);
        throw new Error('told to fail at the snapshot');
      }
      if (control[Word.IGNORE_SNAPSHOTS] === 1) break;
      post({ type: 'log', level: 'info', message: `fds ${message.listenerFds.join(',')}` });
      if (message.snapshot.tls !== undefined) sayKeys(message.snapshot.tls.ticketKeys);
      post({
        type: 'applied',
        epoch: message.snapshot.epoch,
        report: { kept: 1, drained: 2, closed: 3, upstreamClosed: 4, pauseMs: start.index },
      });
      break;
    case 'ticketKeys':
      sayKeys(message.keys);
      break;
    case 'acmeChallenges':
      post({ type: 'log', level: 'info', message: `challenges ${JSON.stringify(message.challenges)}` });
      break;
    case 'destinationAnswers':
      for (const { host, verdict } of message.answers) {
        post({
          type: 'destinationQuestions',
          questions: [{ host: `${host} was ${verdict}`, workload: `${start.index}` }],
        });
      }
      break;
    case 'reportDestinations':
      if (Atomics.load(control, Word.FAIL_AT_REPORT) === 1) {
        Atomics.store(control, Word.FAIL_AT_REPORT, 0);
        throw new Error('told to fail at the report');
      }
      post({ type: 'destinationsUsed', token: message.token, used: { hosts: [`10.0.0.${start.index}`], all: false } });
      break;
    case 'drain':
      post({ type: 'drained', remaining: control[Word.DRAIN_REMAINING]! });
      break;
    case 'ping':
      if (control[Word.IGNORE_PINGS] === 0) post({ type: 'pong', token: message.token });
      break;
    case 'stop':
      // Nothing but an end from outside gets the thread out of this.
      if (control[Word.HANG_AT_STOP] === 1) Atomics.wait(control, Word.HANG_AT_STOP, 1);
      port.close();
      break;
  }
});
post({ type: 'ready' });
