// The byte ring: order, room, wrapping of positions, and when the reader is woken.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createByteRing, RingConsumer, RingProducer, RingWord } from '../../../../core/telemetry/byte-ring.ts';
import { takeAll } from './support.ts';

function put(producer: RingProducer, text: string): void {
  let position = producer.begin();
  for (const character of text) producer.data[position++ & producer.mask] = character.charCodeAt(0);
  producer.publish(position);
}

test('bytes come out in the order they were put in, across the end of the ring', () => {
  const ring = createByteRing(64);
  const producer = new RingProducer(ring);
  let expected = '';
  let got = '';
  for (let i = 0; i < 100; i++) {
    const text = `line ${i} `.padEnd(10 + (i % 20), '.');
    put(producer, text);
    expected += text;
    got += takeAll(ring);
  }
  assert.equal(got, expected);
});

test('positions go on working when their 32-bit counters wrap', () => {
  for (const start of [2 ** 31 - 40, -40]) {
    const ring = createByteRing(64);
    const words = new Int32Array(ring, 0, 2);
    words[RingWord.HEAD] = start;
    words[RingWord.TAIL] = start;
    const producer = new RingProducer(ring);
    for (let i = 0; i < 10; i++) {
      assert.equal(producer.free(), 64);
      put(producer, `round ${i} of some bytes`);
      assert.equal(producer.free(), 64 - 21);
      assert.equal(takeAll(ring), `round ${i} of some bytes`);
    }
  }
});

test('the room is the size less what the reader has not freed', () => {
  const ring = createByteRing(64);
  const producer = new RingProducer(ring);
  const consumer = new RingConsumer(ring);
  put(producer, 'x'.repeat(64));
  assert.equal(producer.free(), 0);
  assert.equal(consumer.used(), 64);
  consumer.free(10);
  assert.equal(producer.free(), 10);
});

test('what a producer wrote but did not publish is gone with it', () => {
  const ring = createByteRing(64);
  const dead = new RingProducer(ring);
  put(dead, 'whole\n');
  dead.data[dead.begin() & dead.mask] = 88;
  put(new RingProducer(ring), 'next\n');
  assert.equal(takeAll(ring), 'whole\nnext\n');
});

test('two producers that take turns do not overwrite each other', () => {
  const ring = createByteRing(64);
  const old = new RingProducer(ring);
  const fresh = new RingProducer(ring);
  put(old, 'a');
  put(fresh, 'b');
  put(old, 'c');
  assert.equal(takeAll(ring), 'abc');
});

test('the reader is woken only when the ring passes half full', () => {
  const ring = createByteRing(64);
  const words = new Int32Array(ring, 0, 16);
  const producer = new RingProducer(ring);
  const waiting = (): number => Atomics.notify(words, RingWord.WAKE);

  assert.ok(Atomics.waitAsync(words, RingWord.WAKE, 0).async);
  put(producer, 'x'.repeat(31));
  assert.equal(waiting(), 1, 'nobody was woken below half');

  assert.ok(Atomics.waitAsync(words, RingWord.WAKE, 0).async);
  put(producer, 'x');
  assert.equal(waiting(), 0, 'the reader was woken at half');

  assert.ok(Atomics.waitAsync(words, RingWord.WAKE, 0).async);
  put(producer, 'x');
  assert.equal(waiting(), 1, 'and not again above it');
});

test('sizes that are no power of two are refused', () => {
  for (const bytes of [0, 63, 100, 2 ** 31]) assert.throws(() => createByteRing(bytes), RangeError);
});
