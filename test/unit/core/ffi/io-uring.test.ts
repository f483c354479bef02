// Batches of system calls through io_uring give what the same calls one by one give.
// Skipped, with the reason, where the system has or allows no io_uring.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { Errno, errnoSentence } from '../../../../core/ffi/errno.ts';
import { closeRing, openRing } from '../../../../core/ffi/io-uring.ts';
import { BATCH_MAX, BATCH_WORDS, type Kernel, Shutdown } from '../../../../core/ffi/kernel.ts';
import { createLinuxKernel } from '../../../../core/ffi/linux.ts';
import { closeDescriptor, localPort, openListeningSocket } from '../../../../core/ffi/listen.ts';
import { mapMemory, unmapMemory } from '../../../../core/ffi/memory.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';

const BUFFER = 64 * 1024;
const STRIDE = 4096;

const ring = openRing();
const skip = typeof ring === 'number' ? `io_uring: ${errnoSentence(ring)}` : false;
const memory = mapMemory(1024 * 1024);
const kernel: Kernel = createLinuxKernel(memory, typeof ring === 'number' ? null : ring);
const listener = openListeningSocket('127.0.0.1', 0);
const address = encodeSockaddr('127.0.0.1', localPort(listener))!;

after(() => {
  closeDescriptor(listener);
  if (typeof ring !== 'number') closeRing(ring);
  unmapMemory(memory);
});

/** Two connected sockets. */
function pair(): [number, number] {
  const near = kernel.connect(address);
  let far = kernel.accept(listener);
  while (far === -Errno.EAGAIN) far = kernel.accept(listener);
  assert.ok(near >= 0 && far >= 0);
  return [near, far];
}

/** Puts operation `i` into the batch. */
function put(i: number, fd: number, offset: number, length: number): void {
  kernel.batch.set([fd, offset, length, 12345], i * BATCH_WORDS);
}

const result = (i: number): number => kernel.batch[i * BATCH_WORDS + 3]!;

test('full batches carry every message to its own peer, round after round', { skip }, () => {
  const pairs = Array.from({ length: BATCH_MAX }, pair);
  for (let round = 0; round < 50; round++) {
    pairs.forEach(([near], i) => {
      const length = 10 + i + round;
      kernel.memory.fill((i * 7 + round) & 255, BUFFER + i * STRIDE, BUFFER + i * STRIDE + length);
      put(i, near, BUFFER + i * STRIDE, length);
    });
    kernel.sendBatch(BATCH_MAX);
    pairs.forEach((_, i) => {
      assert.equal(result(i), 10 + i + round);
    });
    kernel.memory.fill(0, BUFFER, BUFFER + BATCH_MAX * STRIDE);
    pairs.forEach(([, far], i) => {
      put(i, far, BUFFER + i * STRIDE, STRIDE);
    });
    kernel.recvBatch(BATCH_MAX);
    pairs.forEach((_, i) => {
      const length = 10 + i + round;
      assert.equal(result(i), length);
      const start = BUFFER + i * STRIDE;
      assert.ok(kernel.memory.subarray(start, start + length).every((byte) => byte === ((i * 7 + round) & 255)));
      assert.equal(kernel.memory[start + length], 0, 'nothing is written behind a message');
    });
  }
  for (const fd of pairs.flat()) kernel.close(fd);
});

test('empty, ended, reset and closed sockets and full buffers are told apart', { skip }, () => {
  const [empty, emptyFar] = pair();
  const [ended, endedFar] = pair();
  const [reset, resetFar] = pair();
  const [plain, plainFar] = pair();
  kernel.shutdown(endedFar, Shutdown.WRITE);
  kernel.abortOnClose(resetFar);
  kernel.close(resetFar);
  kernel.send(plainFar, BUFFER, 5, false);
  put(0, empty, BUFFER, 100);
  put(1, ended, BUFFER, 100);
  put(2, reset, BUFFER, 100);
  put(3, plain, BUFFER, 100);
  put(4, 999_999, BUFFER, 100);
  kernel.recvBatch(5);
  assert.deepEqual([0, 1, 2, 3, 4].map(result), [-Errno.EAGAIN, 0, -Errno.ECONNRESET, 5, -Errno.EBADF]);

  // Nobody reads: the socket takes a part at last, and then nothing.
  let sent = 0;
  do {
    put(0, empty, BUFFER, 512 * 1024);
    put(1, reset, BUFFER, 10);
    kernel.sendBatch(2);
    assert.equal(result(1), -Errno.EPIPE, 'and no signal ends the process');
    sent = result(0);
  } while (sent > 0);
  assert.equal(sent, -Errno.EAGAIN);
  for (const fd of [empty, emptyFar, ended, endedFar, reset, plain, plainFar]) kernel.close(fd);
});

test('a range outside the memory never reaches the system', { skip }, () => {
  const [near, far] = pair();
  put(0, near, BUFFER, 10);
  put(1, near, 1024 * 1024 - 5, 10);
  assert.throws(() => kernel.sendBatch(2), RangeError);
  assert.equal(kernel.recv(far, BUFFER, 100), -Errno.EAGAIN, 'nothing of the batch was sent');
  kernel.close(near);
  kernel.close(far);
});

test('a successor goes on with the ring', { skip }, () => {
  if (typeof ring === 'number') return;
  const successor = createLinuxKernel(memory, ring);
  const [near, far] = pair();
  const [near2, far2] = pair();
  successor.batch.set([near, BUFFER, 3, 0, near2, BUFFER, 4, 0]);
  successor.sendBatch(2);
  successor.batch.set([far, BUFFER, 100, 0, far2, BUFFER + 200, 100, 0]);
  successor.recvBatch(2);
  assert.deepEqual([successor.batch[3], successor.batch[7]], [3, 4]);
  for (const fd of [near, far, near2, far2]) kernel.close(fd);
});
