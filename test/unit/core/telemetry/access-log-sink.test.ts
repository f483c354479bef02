// The access log writer as a thread with real files: rotation, full disks, standard output, the end.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { AccessLog } from '../../../../core/telemetry/access-log.ts';
import { AccessLogSink } from '../../../../core/telemetry/access-log-sink.ts';
import { createByteRing } from '../../../../core/telemetry/byte-ring.ts';
import { Counter, createMetricsBuffer, WorkerMetrics } from '../../../../core/telemetry/metrics.ts';
import { exampleSource } from './support.ts';

interface Producer {
  ring: SharedArrayBuffer;
  counters: Float64Array;
  log(id: string): void;
}

function producer(ringBytes = 64 * 1024, format = '%{requestId}'): Producer {
  const ring = createByteRing(ringBytes);
  const metrics = new WorkerMetrics(createMetricsBuffer());
  const accessLog = new AccessLog(ring, format, 0, metrics);
  return { ring, counters: metrics.counters, log: (requestId) => accessLog.log(exampleSource({ requestId })) };
}

function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'portcullis-log-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

interface OpenSink {
  sink: AccessLogSink;
  errors: string[];
  /** Failures counted with the last error. */
  failures: () => number;
  /** Resolves with the first error. */
  firstError: Promise<string>;
}

/** A sink that is closed when the test ends, and the errors it reports. */
function openSink(t: TestContext, path: string, rings: SharedArrayBuffer[]): OpenSink {
  const errors: string[] = [];
  let failures = 0;
  const first = Promise.withResolvers<string>();
  const sink = new AccessLogSink(path, rings, (message, count) => {
    errors.push(message);
    failures = count;
    first.resolve(message);
  });
  t.after(() => sink.close());
  return { sink, errors, failures: () => failures, firstError: first.promise };
}

test('lines of all workers reach the file, each whole and in its order', async (t) => {
  const path = join(directory(t), 'access.log');
  const workers = [producer(), producer()];
  const { sink, errors } = openSink(
    t,
    path,
    workers.map(({ ring }) => ring),
  );
  for (let i = 0; i < 500; i++) for (const [index, worker] of workers.entries()) worker.log(`w${index}-${i}`);
  assert.equal(await sink.flush(), true);
  const lines = readFileSync(path, 'utf8').split('\n');
  assert.equal(lines.pop(), '');
  for (const index of [0, 1]) {
    assert.deepEqual(
      lines.filter((line) => line.startsWith(`w${index}`)),
      Array.from({ length: 500 }, (_, i) => `w${index}-${i}`),
    );
  }
  assert.equal(lines.length, 1000);
  assert.deepEqual(errors, []);
});

test('the log file is not readable by everybody', async (t) => {
  const path = join(directory(t), 'access.log');
  const { sink } = openSink(t, path, []);
  assert.equal(await sink.flush(), true);
  assert.equal(statSync(path).mode & 0o007, 0);
});

test('lines are written without anybody asking', async (t) => {
  const path = join(directory(t), 'access.log');
  const worker = producer();
  openSink(t, path, [worker.ring]);
  worker.log('alone');
  while (!existsSync(path) || readFileSync(path, 'utf8') === '') await new Promise((done) => setTimeout(done, 10));
  assert.equal(readFileSync(path, 'utf8'), 'alone\n');
});

test('after a rename and reopen, new lines go to a new file and none is lost', async (t) => {
  const path = join(directory(t), 'access.log');
  const worker = producer();
  const { sink } = openSink(t, path, [worker.ring]);
  worker.log('before');
  await sink.flush();
  renameSync(path, `${path}.1`);
  worker.log('between');
  await sink.flush();
  assert.equal(await sink.reopen(), true);
  worker.log('after');
  await sink.flush();
  assert.equal(readFileSync(`${path}.1`, 'utf8'), 'before\nbetween\n');
  assert.equal(readFileSync(path, 'utf8'), 'after\n');
});

test('reopen takes a new path', async (t) => {
  const at = directory(t);
  const worker = producer();
  const { sink } = openSink(t, join(at, 'old.log'), [worker.ring]);
  worker.log('one');
  await sink.flush();
  assert.equal(await sink.reopen(join(at, 'new.log')), true);
  worker.log('two');
  await sink.flush();
  assert.equal(readFileSync(join(at, 'old.log'), 'utf8'), 'one\n');
  assert.equal(readFileSync(join(at, 'new.log'), 'utf8'), 'two\n');
});

test('a path that cannot be reopened is said so, with its cause, and tried again', async (t) => {
  const at = directory(t);
  const worker = producer();
  const errors: string[] = [];
  const sink = new AccessLogSink(join(at, 'a.log'), [worker.ring], (message) => errors.push(message));
  t.after(() => sink.close());
  await sink.flush();
  assert.equal(await sink.reopen(join(at, 'logs', 'a.log')), false);
  worker.log('kept');
  mkdirSync(join(at, 'logs'));
  assert.equal(await sink.flush(), true);
  assert.equal(readFileSync(join(at, 'logs', 'a.log'), 'utf8'), 'kept\n');
  assert.deepEqual(errors, [
    `cannot write the access log ${join(at, 'logs', 'a.log')}: the directory ${join(at, 'logs')} does not exist`,
  ]);
  // Each of two failures in a row is an answer of its own.
  assert.equal(await sink.reopen(at), false);
  assert.equal(await sink.reopen(join(at, 'a.log', 'b.log')), false);
  await sink.flush();
  assert.deepEqual(errors.slice(1), [
    `cannot write the access log ${at}: it is a directory, not a file`,
    `cannot write the access log ${join(at, 'a.log', 'b.log')}: ${join(at, 'a.log')} is not a directory`,
  ]);
});

test('an existing file is continued, after ending a line that a crash has cut', async (t) => {
  const path = join(directory(t), 'access.log');
  writeFileSync(path, 'old\ncut of');
  const worker = producer();
  worker.log('new');
  const { sink } = openSink(t, path, [worker.ring]);
  await sink.flush();
  assert.equal(readFileSync(path, 'utf8'), 'old\ncut of\nnew\n');
});

test('a ring added later is written too', async (t) => {
  const path = join(directory(t), 'access.log');
  const [first, second] = [producer(), producer()];
  const { sink } = openSink(t, path, [first.ring]);
  first.log('first');
  await sink.flush();
  sink.setRings([first.ring, second.ring]);
  second.log('second');
  await sink.flush();
  assert.equal(readFileSync(path, 'utf8'), 'first\nsecond\n');
});

test('on a full disk drops are counted, and the log recovers with every line it had kept', async (t) => {
  const at = directory(t);
  const worker = producer(1024);
  const { sink, firstError } = openSink(t, '/dev/full', [worker.ring]);
  worker.log('kept');
  assert.match(await firstError, /^cannot write the access log \/dev\/full: the disk is full$/);
  assert.equal(await sink.flush(1), false);

  for (let i = 0; i < 300; i++) worker.log(`line-${i}`);
  const dropped = worker.counters[Counter.ACCESS_LOG_DROPPED];
  assert.ok(dropped > 0);

  const path = join(at, 'access.log');
  assert.equal(await sink.reopen(path), true);
  assert.equal(await sink.flush(), true);
  worker.log('fresh');
  assert.equal(await sink.flush(), true);
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  assert.equal(lines[0], 'kept');
  assert.equal(lines.at(-1), 'fresh');
  assert.equal(lines.length, 302 - dropped);
});

test('a directory that appears later is found', async (t) => {
  const at = directory(t);
  const worker = producer();
  const { sink, firstError } = openSink(t, join(at, 'logs', 'access.log'), [worker.ring]);
  worker.log('line');
  assert.match(await firstError, /^cannot write the access log \S+: the directory \S+\/logs does not exist$/);
  mkdirSync(join(at, 'logs'));
  assert.equal(await sink.flush(), true);
  assert.equal(readFileSync(join(at, 'logs', 'access.log'), 'utf8'), 'line\n');
});

test('closing writes what is there', async (t) => {
  const path = join(directory(t), 'access.log');
  const worker = producer();
  const { sink } = openSink(t, path, [worker.ring]);
  for (let i = 0; i < 100; i++) worker.log(`line-${i}`);
  await sink.close();
  assert.equal(readFileSync(path, 'utf8').split('\n').length, 101);
  assert.equal(await sink.flush(), false, 'a closed log takes no more');
});

test('a full disk is reported once for many failures, and closing says how many lines are lost', async (t) => {
  const worker = producer();
  const { sink, errors, failures, firstError } = openSink(t, '/dev/full', [worker.ring]);
  for (let i = 0; i < 7; i++) worker.log(`line-${i}`);
  await firstError;
  // Each flush makes the writer try again.
  for (let i = 0; i < 5; i++) assert.equal(await sink.flush(1), false);
  await sink.close();
  assert.equal(errors.length, 2);
  assert.match(errors[1], /^7 access log lines could not be written to \/dev\/full: the disk is full$/);
  assert.ok(failures() >= 6, `${failures()} failures`);
});

test('a hyphen means standard output, also when that is a pipe whose reader is slow', async (t) => {
  const url = (name: string): string => new URL(`../../../../core/telemetry/${name}.ts`, import.meta.url).href;
  const program = `
    import { AccessLogSink } from ${JSON.stringify(url('access-log-sink'))};
    import { createByteRing, RingProducer } from ${JSON.stringify(url('byte-ring'))};
    const ring = createByteRing(1024 * 1024);
    const producer = new RingProducer(ring);
    const bytes = new TextEncoder().encode(Array.from({ length: 40000 }, (_, i) => 'line ' + i + '\\n').join(''));
    let position = producer.begin();
    for (const byte of bytes) producer.data[position++ & producer.mask] = byte;
    producer.publish(position);
    const sink = new AccessLogSink('-', [ring], (message) => process.stderr.write(message));
    process.exitCode = await sink.flush(30000) ? 0 : 3;
    await sink.close();
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill('SIGKILL'));
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
    // Reading stops for a moment after each piece, so that the pipe is full most of the time.
    child.stdout.pause();
    setImmediate(() => child.stdout.resume());
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text;
  });
  const code = await new Promise((resolve) => child.on('close', resolve));
  assert.equal(err, '');
  assert.equal(code, 0);
  assert.equal(out, Array.from({ length: 40_000 }, (_, i) => `line ${i}\n`).join(''));
});

test('logging alone does not keep the process alive', async (t) => {
  const url = new URL('../../../../core/telemetry/access-log-sink.ts', import.meta.url).href;
  const path = join(directory(t), 'access.log');
  const program = `
    import { AccessLogSink } from ${JSON.stringify(url)};
    new AccessLogSink(${JSON.stringify(path)}, []);
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  assert.equal(await new Promise((resolve) => child.on('close', resolve)), 0);
});
