// The simulated kernel against the real one, and the faults that only it can produce.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Errno } from '../../core/ffi/errno.ts';
import { Epoll, KERNEL_RESERVED_BYTES, type Kernel } from '../../core/ffi/kernel.ts';
import { createLinuxKernel } from '../../core/ffi/linux.ts';
import { closeDescriptor, localPort, openListeningSocket } from '../../core/ffi/listen.ts';
import { mapMemory } from '../../core/ffi/memory.ts';
import { decodeSockaddr, encodeSockaddr } from '../../core/ffi/sockaddr.ts';
import { noFaults, SimKernel, SimMisuse } from './kernel.ts';
import { PARITY_MEMORY_BYTES, ParityRun, parityScripts } from './parity.ts';
import { Random } from './random.ts';
import { Scheduler } from './scheduler.ts';
import type { plainLink, SimSocket } from './tcp.ts';

const address = { host: '127.0.0.1', port: 8080 };
const BUFFER = KERNEL_RESERVED_BYTES;

function simKernel(options: Partial<ConstructorParameters<typeof SimKernel>[0]> = {}): SimKernel {
  return new SimKernel({
    random: new Random(1),
    scheduler: new Scheduler(),
    memoryBytes: PARITY_MEMORY_BYTES,
    ...options,
  });
}

function record(kernel: Kernel, listener: number, port: number, deadPort: number, name: string): string[] {
  const run = new ParityRun(kernel, listener, encodeSockaddr('127.0.0.1', port)!);
  parityScripts[name]!(run, encodeSockaddr('127.0.0.1', deadPort)!);
  run.finish();
  return run.record;
}

function recordOnLinux(name: string): string[] {
  const listener = openListeningSocket('127.0.0.1', 0);
  const dead = openListeningSocket('127.0.0.1', 0);
  const deadPort = localPort(dead);
  closeDescriptor(dead);
  try {
    return record(
      createLinuxKernel(mapMemory(PARITY_MEMORY_BYTES), null),
      listener,
      localPort(listener),
      deadPort,
      name,
    );
  } finally {
    closeDescriptor(listener);
  }
}

describe('the simulated kernel answers like Linux:', () => {
  for (const name of Object.keys(parityScripts)) {
    test(name, () => {
      for (const eventStride of [3, 4] as const) {
        const kernel = simKernel({ eventStride });
        const simulated = record(kernel, kernel.createListener(address), address.port, 9, name);
        assert.deepEqual(simulated, recordOnLinux(name));
        assert.deepEqual(
          kernel.openDescriptors().map((open) => open.kind),
          ['listener'],
        );
      }
    });
  }
});

/** A kernel with one connection from an outside client, accepted and watched. */
function withClient(options: Partial<ConstructorParameters<typeof SimKernel>[0]> = {}) {
  const scheduler = new Scheduler();
  const kernel = simKernel({ scheduler, ...options });
  const listener = kernel.createListener(address);
  const epoll = kernel.epollCreate();
  const client = kernel.dialIn(address, { host: '10.1.2.3', port: 5000 });
  scheduler.advanceTo(scheduler.nowMs + 100);
  const fd = kernel.accept(listener);
  kernel.epollAdd(epoll, fd, Epoll.IN | Epoll.OUT | Epoll.RDHUP | Epoll.ET, 1, 1);
  return { scheduler, kernel, listener, epoll, client, fd };
}

function receiveAll(socket: SimSocket): Buffer {
  const parts: Buffer[] = [];
  const chunk = new Uint8Array(1000);
  for (let count = socket.recv(chunk); count > 0; count = socket.recv(chunk)) {
    parts.push(Buffer.from(chunk.subarray(0, count)));
  }
  return Buffer.concat(parts);
}

describe('faults of the simulated kernel', () => {
  test('bytes arrive whole and in order however small the segments and buffers are', () => {
    for (let seed = 1; seed <= 50; seed++) {
      const random = new Random(seed);
      const link = (): typeof plainLink => ({
        delayMinMs: 0,
        delayMaxMs: 5,
        segmentBytesMax: random.int(1, 50),
        dribbleBytes: random.int(0, 30),
        sendBufferBytes: random.int(1, 40),
        receiveBufferBytes: random.int(1, 40),
      });
      const faults = { ...noFaults, sendSqueeze: 0.2, syscallMsMax: 1 };
      const { scheduler, kernel, epoll, client, fd } = withClient({
        random,
        faults,
        links: () => ({ out: link(), in: link() }),
      });
      const message = Buffer.from(Array.from({ length: 2000 }, (_, index) => (index * 7 + (index >> 8)) & 255));
      kernel.memory.set(message, BUFFER);
      let sent = 0;
      let received = Buffer.alloc(0);
      let waits = 0;
      client.onWake = () => scheduler.after(0.5, () => (received = Buffer.concat([received, receiveAll(client)])));
      while (sent < message.length) {
        const count = kernel.send(fd, BUFFER + sent, message.length - sent, false);
        if (count > 0) sent += count;
        else {
          assert.equal(count, -Errno.EAGAIN);
          assert.ok(kernel.epollWait(epoll, 60_000) > 0, `no wake-up after ${sent} bytes with seed ${seed}`);
          waits++;
        }
      }
      kernel.close(fd);
      scheduler.advanceTo(scheduler.nowMs + 60_000);
      assert.ok(received.equals(message), `seed ${seed}`);
      assert.ok(client.ended && client.poll() !== 0);
      assert.ok(waits > 0);
    }
  });

  test('descriptors run out with EMFILE and are handed out again, lowest first', () => {
    const { scheduler, kernel, listener, fd } = withClient();
    kernel.dialIn(address, { host: '10.1.2.3', port: 5001 });
    scheduler.advanceTo(scheduler.nowMs + 100);
    kernel.descriptorsMax = 3;
    assert.equal(kernel.accept(listener), -Errno.EMFILE);
    assert.equal(kernel.connect(encodeSockaddr('127.0.0.1', 8080)!), -Errno.EMFILE);
    assert.equal(kernel.eventfd(), -Errno.EMFILE);
    kernel.close(fd);
    assert.equal(kernel.accept(listener), fd);
  });

  test('accept tells the address of the client', () => {
    const { kernel, fd } = withClient();
    assert.deepEqual(decodeSockaddr(kernel.memory, kernel.addressOffset), { host: '10.1.2.3', port: 5000 });
    kernel.localAddress(fd);
    assert.deepEqual(decodeSockaddr(kernel.memory, kernel.addressOffset), address);
  });

  test('an endpoint decides how connecting goes', () => {
    const scheduler = new Scheduler();
    const kernel = simKernel({ scheduler });
    const accepted: SimSocket[] = [];
    const sockaddr = encodeSockaddr('10.0.0.9', 80)!;
    const dial = (outcome: Parameters<typeof Object.freeze>[0]): number => {
      kernel.setEndpoint(
        { host: '10.0.0.9', port: 80 },
        { dial: () => outcome as never, connected: (socket) => accepted.push(socket) },
      );
      const fd = kernel.connect(sockaddr);
      scheduler.advanceTo(scheduler.nowMs + 50);
      return fd;
    };
    assert.equal(kernel.socketError(dial({ type: 'accept', delayMs: 0 })), 0);
    assert.equal(kernel.socketError(dial({ type: 'accept', delayMs: 49 })), 0);
    assert.equal(accepted.length, 2);
    assert.equal(kernel.socketError(dial({ type: 'refuse', delayMs: 10 })), Errno.ECONNREFUSED);
    assert.equal(kernel.socketError(dial({ type: 'timeout', delayMs: 10 })), Errno.ETIMEDOUT);
    assert.equal(dial({ type: 'error', errno: Errno.ENETUNREACH }), -Errno.ENETUNREACH);
    const slow = dial({ type: 'accept', delayMs: 100 });
    assert.equal(kernel.send(slow, BUFFER, 1, false), -Errno.EAGAIN);
    kernel.close(slow);
    scheduler.advanceTo(scheduler.nowMs + 100);
    assert.equal(accepted.length, 2, 'an attempt that was given up does not reach the endpoint');
  });

  test('an interrupted wait and an aborted accept are reported as Linux does', () => {
    const interrupted = withClient({ faults: { ...noFaults, interrupted: 1 } });
    assert.equal(interrupted.kernel.epollWait(interrupted.epoll, 10), -Errno.EINTR);
    const kernel = simKernel({ faults: { ...noFaults, acceptAborted: 1 } });
    const listener = kernel.createListener(address);
    kernel.connect(encodeSockaddr(address.host, address.port)!);
    kernel.epollWait(kernel.epollCreate(), 10);
    assert.equal(kernel.accept(listener), -Errno.ECONNABORTED);
    assert.equal(kernel.accept(listener), -Errno.EAGAIN);
  });

  test('time passes in waits only as far as it has to', () => {
    const { scheduler, kernel, epoll, client } = withClient();
    kernel.epollWait(epoll, 0);
    const startMs = kernel.nowMs();
    assert.equal(kernel.epollWait(epoll, 250), 0);
    assert.equal(kernel.nowMs(), startMs + 250);
    scheduler.after(70, () => client.send(Buffer.from('x')));
    assert.equal(kernel.epollWait(epoll, 1000), 1);
    assert.ok(kernel.nowMs() >= startMs + 320 && kernel.nowMs() < startMs + 321);
  });

  test('released memory reads as zero, page by page', () => {
    const kernel = simKernel();
    kernel.memory.fill(1, BUFFER);
    kernel.release(BUFFER + 1, 8192);
    assert.equal(kernel.memory[BUFFER + 4095], 1);
    assert.equal(kernel.memory[BUFFER + 4096], 0);
    assert.equal(kernel.memory[BUFFER + 8191], 0);
    assert.equal(kernel.memory[BUFFER + 8192], 1);
  });

  test('misuse stops the run', () => {
    const { kernel, epoll, fd } = withClient();
    assert.throws(() => kernel.recv(fd, BUFFER - 1, 10), SimMisuse);
    assert.throws(() => kernel.send(fd, kernel.memory.length - 5, 6, false), SimMisuse);
    assert.throws(() => kernel.recv(fd, BUFFER, 0), SimMisuse);
    assert.throws(() => kernel.epollWait(epoll, 0.5), SimMisuse);
    assert.throws(() => kernel.accept(fd), SimMisuse);
    kernel.close(fd);
    assert.throws(() => kernel.recv(fd, BUFFER, 10), SimMisuse);
    assert.throws(() => kernel.close(fd), SimMisuse);
  });
});
