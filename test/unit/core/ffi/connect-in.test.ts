// Connections that are made for a workload: what its capture would take for the workload's own is never sent.

import assert from 'node:assert/strict';
import { closeSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { createLinuxKernel } from '../../../../core/ffi/linux.ts';
import { localPort, openListeningSocket } from '../../../../core/ffi/listen.ts';
import { mapMemory } from '../../../../core/ffi/memory.ts';
import { encodeSockaddr } from '../../../../core/ffi/sockaddr.ts';

const NOBODY = 65_534;

test('a connection that cannot be marked is not made', { skip: process.geteuid!() !== 0 && 'needs root' }, () => {
  const kernel = createLinuxKernel(mapMemory(1024 * 1024), null);
  const listener = openListeningSocket('127.0.0.1', 0);
  const address = encodeSockaddr('127.0.0.1', localPort(listener))!;
  const marked = kernel.connectIn(address, -1, 7);
  assert.ok(marked >= 0, `errno ${-marked}`);
  assert.ok(kernel.accept(listener) >= 0);
  const before = readdirSync('/proc/self/fd').length;
  // Whoever is not root has no capabilities, and CAP_NET_ADMIN among them.
  process.seteuid!(NOBODY);
  let refused: number;
  let unmarked: number;
  try {
    refused = kernel.connectIn(address, -1, 7);
    unmarked = kernel.connectIn(address, -1, 0);
  } finally {
    process.seteuid!(0);
  }
  assert.equal(refused, -Errno.EPERM);
  assert.ok(unmarked >= 0);
  assert.equal(readdirSync('/proc/self/fd').length, before + 1, 'the socket that was refused is closed');
  assert.ok(kernel.accept(listener) >= 0);
  assert.equal(kernel.accept(listener), -Errno.EAGAIN, 'one has come, the unmarked one');
  for (const fd of [marked, unmarked, listener]) closeSync(fd);
});
