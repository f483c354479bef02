// Moving lines to the log file when it takes them in pieces, fails, or is replaced.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LogDrain } from '../../../../core/telemetry/access-log-drain.ts';
import type { LogOutput } from '../../../../core/telemetry/access-log-file.ts';
import { createByteRing, RingProducer } from '../../../../core/telemetry/byte-ring.ts';

/** An output that does what a script says for each write: take that many bytes, or fail with a code. */
class ScriptedOutput implements LogOutput {
  text = '';
  opened = 0;
  isOpen = false;
  /** Next answers; when there are none left everything is taken. */
  script: (number | string)[] = [];

  open(): void {
    if (!this.isOpen) this.opened++;
    this.isOpen = true;
  }

  write(bytes: Uint8Array, offset: number, length: number): number {
    assert.ok(this.isOpen);
    const next = this.script.shift() ?? length;
    if (typeof next === 'string') throw Object.assign(new Error(next), { code: next });
    const taken = Math.min(next, length);
    this.text += String.fromCharCode(...bytes.slice(offset, offset + taken));
    return taken;
  }

  close(): void {
    this.isOpen = false;
  }
}

function put(ring: SharedArrayBuffer, text: string): void {
  const producer = new RingProducer(ring);
  assert.ok(producer.free() >= text.length);
  let position = producer.begin();
  for (const character of text) producer.data[position++ & producer.mask] = character.charCodeAt(0);
  producer.publish(position);
}

function setUp(): { output: ScriptedOutput; drain: LogDrain; rings: SharedArrayBuffer[] } {
  const output = new ScriptedOutput();
  const drain = new LogDrain(output);
  const rings = [createByteRing(64), createByteRing(64)];
  for (const ring of rings) drain.add(ring);
  return { output, drain, rings };
}

test('lines of all rings are written', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'a1\na2\n');
  put(rings[1], 'b1\n');
  assert.equal(drain.drain(), 'done');
  assert.equal(output.text, 'a1\na2\nb1\n');
});

test('a line that was taken in part is finished before any other ring is written', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'a1\n');
  put(rings[1], 'b1-long\nb2\n');
  output.script = [3, 4, 0];
  assert.equal(drain.drain(), 'busy');
  assert.equal(output.text, 'a1\nb1-l');
  put(rings[0], 'a2\n');
  output.script = [1, 1, 0];
  assert.equal(drain.drain(), 'busy');
  assert.equal(drain.drain(), 'done');
  assert.equal(output.text, 'a1\nb1-long\nb2\na2\n');
});

test('whatever the output takes per write, lines stay whole and in order per ring', () => {
  const { output, drain, rings } = setUp();
  const expected: [string[], string[]] = [[], []];
  for (let round = 0; round < 200; round++) {
    for (const [index, ring] of rings.entries()) {
      const line = `${'ab'[index]}${round}${'.'.repeat((round * 7) % 23)}`;
      if (new RingProducer(ring).free() < line.length + 1) continue;
      put(ring, `${line}\n`);
      expected[index].push(line);
    }
    output.script = [1 + (round % 5), (round * 3) % 4 === 0 ? 'ENOSPC' : 2, round % 11, 0];
    drain.drain();
  }
  output.script = [];
  assert.equal(drain.drain(), 'done');
  const lines = output.text.split('\n');
  assert.equal(lines.pop(), '');
  assert.deepEqual(
    lines.filter((line) => line.startsWith('a')),
    expected[0],
  );
  assert.deepEqual(
    lines.filter((line) => line.startsWith('b')),
    expected[1],
  );
  assert.equal(lines.length, expected[0].length + expected[1].length);
  assert.ok(lines.length > 100);
});

test('a full disk keeps the lines, and the file goes on with the next byte when there is space', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'first\nsecond\n');
  output.script = [8, 'ENOSPC'];
  assert.equal(drain.drain(), 'failed');
  assert.equal(drain.lastError?.code, 'ENOSPC');
  assert.equal(output.text, 'first\nse');
  assert.equal(drain.pendingLines(), 1);
  assert.equal(drain.drain(), 'done');
  assert.equal(output.text, 'first\nsecond\n');
  assert.equal(output.opened, 1, 'the file stayed open');
});

test('space is given back to the worker in whole lines', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'first\nsecond\n');
  output.script = [8, 0];
  drain.drain();
  assert.equal(new RingProducer(rings[0]).free(), 64 - 'second\n'.length);
});

test('after any other error the file is opened again', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'first\nsecond\n');
  output.script = ['EIO'];
  assert.equal(drain.drain(), 'failed');
  assert.equal(drain.drain(), 'done');
  assert.equal(output.opened, 2);
});

test('a line that the old file has in part is written whole to the new one', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'first\nsecond\n');
  output.script = [8, 0];
  drain.drain();
  const fresh = new ScriptedOutput();
  drain.switchTo(fresh);
  assert.equal(output.isOpen, false);
  assert.equal(drain.drain(), 'done');
  assert.equal(fresh.text, 'second\n');
});

test('an output that cannot be opened fails without losing lines', () => {
  const { output, drain, rings } = setUp();
  put(rings[0], 'line\n');
  const open = output.open;
  output.open = () => {
    throw Object.assign(new Error('no'), { code: 'ENOENT' });
  };
  assert.equal(drain.drain(), 'failed');
  output.open = open;
  assert.equal(drain.drain(), 'done');
  assert.equal(output.text, 'line\n');
});
