// A real WebSocket conversation: Node's own client through the gateway to a small server.
// Spec: RFC 6455 §4.2.2 (accepting), §5.2 (frames), §5.5.1 (close).

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { after, test } from 'node:test';
import { startLab, withLimit } from './support.ts';

const CLOSE = 8;

/** Takes one masked frame off the front of `bytes`; undefined while it is not complete. */
function takeFrame(bytes: Buffer): { opcode: number; payload: Buffer; size: number } | undefined {
  if (bytes.length < 2) return undefined;
  let length = bytes[1] & 0x7f;
  let at = 2;
  if (length === 126) {
    if (bytes.length < 4) return undefined;
    length = bytes.readUInt16BE(2);
    at = 4;
  } else if (length === 127) {
    if (bytes.length < 10) return undefined;
    length = Number(bytes.readBigUInt64BE(2));
    at = 10;
  }
  if (bytes.length < at + 4 + length) return undefined;
  const mask = bytes.subarray(at, at + 4);
  const payload = Buffer.from(bytes.subarray(at + 4, at + 4 + length));
  for (let i = 0; i < length; i++) payload[i] ^= mask[i & 3];
  return { opcode: bytes[0] & 0x0f, payload, size: at + 4 + length };
}

/** An unmasked frame, as servers send them. */
function frame(opcode: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(10);
  head[0] = 0x80 | opcode;
  if (payload.length < 126) {
    head[1] = payload.length;
    return Buffer.concat([head.subarray(0, 2), payload]);
  }
  if (payload.length < 65536) {
    head[1] = 126;
    head.writeUInt16BE(payload.length, 2);
    return Buffer.concat([head.subarray(0, 4), payload]);
  }
  head[1] = 127;
  head.writeBigUInt64BE(BigInt(payload.length), 2);
  return Buffer.concat([head, payload]);
}

/** Echoes every message, and answers a close frame with itself. */
function serve(socket: Socket): void {
  let unread = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', (chunk: Buffer) => {
    unread = Buffer.concat([unread, chunk]);
    for (let next = takeFrame(unread); next !== undefined; next = takeFrame(unread)) {
      unread = unread.subarray(next.size);
      socket.write(frame(next.opcode, next.payload));
      if (next.opcode === CLOSE) socket.end();
    }
  });
}

const protocols: (string | undefined)[] = [];
const sockets = new Set<Socket>();
const server = createServer((_, response) => response.writeHead(426).end());
server.on('upgrade', (incoming, socket: Socket) => {
  sockets.add(socket);
  protocols.push(incoming.headers['sec-websocket-protocol']);
  const accept = createHash('sha1')
    .update(`${incoming.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
    .digest('base64');
  const chosen = incoming.headers['sec-websocket-protocol'] === undefined ? '' : 'Sec-WebSocket-Protocol: chat\r\n';
  socket.write(
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      `Sec-WebSocket-Accept: ${accept}\r\n${chosen}\r\n`,
  );
  serve(socket);
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
after(() => {
  server.close();
  for (const socket of sockets) socket.destroy();
});

const lab = await startLab({
  upstreams: 0,
  routes: ['{name: all, rules: [{backendRefs: [{name: chat}]}]}'],
  backends: [`{name: chat, endpoints: ["127.0.0.1:${(server.address() as AddressInfo).port}"]}`],
});

/** The next event of a WebSocket; fails on an error. */
function event<T extends Event>(socket: WebSocket, name: string): Promise<T> {
  const occurs = new Promise<T>((resolve, reject) => {
    const fail = (): void => reject(new Error(`error instead of ${name}`));
    const done = (value: Event): void => {
      socket.removeEventListener('error', fail);
      resolve(value as T);
    };
    socket.addEventListener(name, done, { once: true });
    socket.addEventListener('error', fail, { once: true });
  });
  return withLimit(name, occurs);
}

test('messages of every size go both ways, and the close handshake is clean', async () => {
  const socket = new WebSocket(`ws://127.0.0.1:${lab.port}/chat`, 'chat');
  await event(socket, 'open');
  assert.equal(socket.protocol, 'chat');
  assert.equal(protocols.at(-1), 'chat');
  for (const length of [0, 1, 125, 126, 65_535, 65_536, 300_000]) {
    const text = 'm'.repeat(length);
    const echoed = event<MessageEvent>(socket, 'message');
    socket.send(text);
    assert.equal((await echoed).data, text);
  }
  const closed = event<CloseEvent>(socket, 'close');
  socket.close(4000, 'enough');
  const { code, reason, wasClean } = await closed;
  assert.deepEqual({ code, reason, wasClean }, { code: 4000, reason: 'enough', wasClean: true });
  await lab.metricBecomes('portcullis_tunnels_open', 0);
});

test('many sockets at the same time do not mix their messages', async () => {
  const all = Array.from({ length: 30 }, () => new WebSocket(`ws://127.0.0.1:${lab.port}/chat`));
  await Promise.all(all.map((socket) => event(socket, 'open')));
  await lab.metricBecomes('portcullis_tunnels_open', 30);
  for (let round = 0; round < 10; round++) {
    await Promise.all(
      all.map(async (socket, index) => {
        const echoed = event<MessageEvent>(socket, 'message');
        socket.send(`${index}/${round}`);
        assert.equal((await echoed).data, `${index}/${round}`);
      }),
    );
  }
  const closed = all.map((socket) => event(socket, 'close'));
  for (const socket of all) socket.close();
  await Promise.all(closed);
  await lab.metricBecomes('portcullis_tunnels_open', 0);
});

test('a socket whose server dies is closed, and not in order', async () => {
  const socket = new WebSocket(`ws://127.0.0.1:${lab.port}/chat`);
  await event(socket, 'open');
  const closed = withLimit('close', new Promise<CloseEvent>((resolve) => socket.addEventListener('close', resolve)));
  [...sockets].at(-1)!.resetAndDestroy();
  const { code, wasClean } = await closed;
  assert.deepEqual({ code, wasClean }, { code: 1006, wasClean: false });
});
