// Large bodies: the bytes are the same on the other side, and the gateway's memory does not grow
// with them, however slow a reader or a writer is.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { ok, request, startLab } from './support.ts';
import type { Wire } from './wire.ts';

const MIB = 1024 * 1024;
const lab = await startLab({ upstreams: 8 });
const body = randomBytes(10 * MIB);
const digest = sha256(body);

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Resident memory of the gateway, in bytes. */
function residentBytes(): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${lab.gateway.pid}/status`, 'latin1'));
  return Number(match![1]) * 1024;
}

/** Chunks of uneven sizes, as text of the wire. */
function chunked(bytes: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0, size = 1; at < bytes.length; at += size, size = 1 + ((size * 7919) % 100_003)) {
    const piece = bytes.subarray(at, at + size);
    parts.push(Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n'));
  }
  parts.push(Buffer.from('0\r\n\r\n'));
  return Buffer.concat(parts);
}

/** Some exchanges of other clients: time for the gateway to read ahead as far as it will. */
async function otherTraffic(): Promise<void> {
  const client = await lab.client();
  for (let i = 0; i < 5; i++) {
    await client.send(request('GET /', 'unknown.test'));
    await client.response();
  }
  client.close();
}

/** Takes `count` bytes in small steps, with a pause after each; gives the most that memory grew meanwhile. */
async function growthWhileTaking(wire: Wire, count: number): Promise<number> {
  const before = residentBytes();
  let growth = 0;
  for (let taken = 0; taken < count; taken += MIB) {
    wire.socket.resume();
    await wire.skipBytes(Math.min(MIB, count - taken));
    wire.socket.pause();
    await otherTraffic();
    growth = Math.max(growth, residentBytes() - before);
  }
  wire.socket.resume();
  return growth;
}

test('10 MiB with Content-Length arrive unchanged, up and down', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  void client.send(request('POST /', upstream.host, `Content-Length: ${body.length}`));
  void client.send(body);
  const wire = await upstream.connection();
  await wire.head();
  assert.equal(sha256(await wire.bytes(body.length)), digest);
  void wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n`);
  void wire.send(body);
  await client.head();
  assert.equal(sha256(await client.bytes(body.length)), digest);
});

test('10 MiB in chunks of all sizes arrive unchanged, up and down at the same time', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const framed = chunked(body);
  void client.send(request('POST /', upstream.host, 'Transfer-Encoding: chunked'));
  void client.send(framed);
  const wire = await upstream.connection();
  const up = wire.request();
  const received = Buffer.from((await up).body, 'latin1');
  assert.equal(sha256(received), digest);
  void wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n');
  void wire.send(framed);
  assert.equal(sha256(Buffer.from((await client.response()).body, 'latin1')), digest);
});

test('an upstream that answers with what it reads, while it reads, streams both ways', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  void client.send(request('POST /', upstream.host, `Content-Length: ${body.length}`));
  const wire = await upstream.connection();
  await wire.head();
  void wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n`);
  await client.head();
  for (let at = 0; at < body.length; at += MIB) {
    void client.send(body.subarray(at, at + MIB));
    const piece = await wire.bytes(MIB);
    void wire.send(piece);
    assert.ok((await client.bytes(MIB)).equals(body.subarray(at, at + MIB)), `MiB ${at / MIB}`);
  }
});

test('64 MiB to a client that reads slowly cost less than 8 MiB of memory', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const bytes = 64 * MIB;
  // Both sides once in full, so that the code is warm and the buffers have been used.
  for (const slow of [false, true]) {
    await client.send(request('GET /', upstream.host));
    const wire = upstream.wires[0] ?? (await upstream.connection());
    await wire.request();
    await wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n\r\n`);
    void wire.send(Buffer.alloc(bytes, 'x'));
    await client.head();
    if (slow) {
      const growth = await growthWhileTaking(client, bytes);
      assert.ok(growth < 8 * MIB, `grew by ${growth} bytes`);
    } else {
      await client.skipBytes(bytes);
    }
  }
});

test('64 MiB to an upstream that reads slowly cost less than 8 MiB of memory', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const bytes = 64 * MIB;
  for (const slow of [false, true]) {
    void client.send(request('POST /', upstream.host, `Content-Length: ${bytes}`));
    void client.send(Buffer.alloc(bytes, 'x'));
    const wire = upstream.wires[0] ?? (await upstream.connection());
    await wire.head();
    if (slow) {
      const growth = await growthWhileTaking(wire, bytes);
      assert.ok(growth < 8 * MIB, `grew by ${growth} bytes`);
    } else {
      await wire.skipBytes(bytes);
    }
    await wire.send(ok('done'));
    assert.equal((await client.response()).body, 'done');
  }
});

test('an upstream that sends in small pieces is relayed piece by piece', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n');
  await client.head();
  for (let i = 0; i < 1000; i++) {
    const piece = String(i % 1000).padStart(3, '0');
    await wire.send(piece);
    assert.equal((await client.bytes(3)).toString(), piece);
  }
});
