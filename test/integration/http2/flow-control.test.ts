// Flow control: nobody sends more than the other side takes, nobody starves, and whoever stalls is let go.
// Spec: RFC 9113 §5.2, §6.9.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, startLab } from '../http/support.ts';
import { block, Code, connectHttp2, Flag, type Frame, frame, get, post, Type, word } from './frames.ts';

const INITIAL_WINDOW_SIZE = 4;
const lab = await startLab({
  upstreams: 8,
  top: 'timeouts: {streamIdle: 4s}\nhttp2: {streamWindow: 64KiB, connectionWindow: 128KiB}',
});

function windowUpdate(stream: number, bytes: number): Buffer {
  return frame(Type.WINDOW_UPDATE, 0, stream, word(bytes));
}

test('a response waits for the window of its stream, byte by byte, and arrives whole', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('0123456789'.repeat(10)));
  const client = await connectHttp2(lab, [INITIAL_WINDOW_SIZE, 0]);
  await client.headers(1, get(upstream.host));
  client.fields(await client.next(Type.HEADERS, 1));
  await client.synced();
  let body = '';
  for (const bytes of [1, 7, 92]) {
    await client.send(windowUpdate(1, bytes));
    const { payload, flags } = await client.next(Type.DATA, 1);
    assert.equal(payload.length, bytes);
    body += payload.toString();
    assert.equal(flags & Flag.END_STREAM, body.length === 100 ? Flag.END_STREAM : 0);
  }
  assert.equal(body, '0123456789'.repeat(10));
  assert.deepEqual(
    client.seen.filter(({ type }) => type === Type.DATA),
    [],
  );
});

test('a window that is made smaller while a response waits is honoured, and one made larger sets it going', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('x'.repeat(100)));
  const client = await connectHttp2(lab, [INITIAL_WINDOW_SIZE, 40]);
  await client.headers(1, get(upstream.host));
  assert.equal((await client.next(Type.DATA, 1)).payload.length, 40);
  await client.send(frame(Type.SETTINGS, 0, 0, Buffer.from([0, INITIAL_WINDOW_SIZE, 0, 0, 0, 10])));
  await client.send(windowUpdate(1, 30));
  await client.synced();
  await client.send(frame(Type.SETTINGS, 0, 0, Buffer.from([0, INITIAL_WINDOW_SIZE, 0, 0, 0, 110])));
  const rest = await client.next(Type.DATA, 1);
  assert.equal(rest.payload.length, 60);
  assert.equal(rest.flags & Flag.END_STREAM, Flag.END_STREAM);
});

test('two downloads share a narrow connection in turns of one frame', async () => {
  const upstream = lab.upstream();
  const big = 'x'.repeat(100_000);
  upstream.serve(() => ok(big));
  const client = await connectHttp2(lab, [INITIAL_WINDOW_SIZE, 1_000_000]);
  await client.headers(1, get(upstream.host));
  // The first one takes the whole window of the connection.
  let first = 0;
  while (first < 65_535) first += (await client.next(Type.DATA, 1)).payload.length;
  await client.headers(3, get(upstream.host));
  await client.next(Type.HEADERS, 3);
  await client.synced();
  await client.send(windowUpdate(0, 4 * 16_384));
  const turns: Frame[] = [];
  while (turns.length < 4) turns.push(await client.next(Type.DATA));
  assert.deepEqual(
    turns.map(({ stream }) => stream),
    [1, 3, 1, 3],
  );
  client.wire.close();
});

test('a request body waits at its client while the upstream does not read it, and arrives whole afterwards', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  const size = 6_000_000;
  await client.headers(1, [...post(upstream.host), ['content-length', String(size)]], 0);
  const wire = await upstream.connection();
  await wire.head();
  wire.socket.pause();
  let stream = 65_536;
  let connection = 131_072;
  let sent = 0;
  const send = async (): Promise<void> => {
    while (sent < size && Math.min(stream, connection) > 0) {
      const count = Math.min(16_384, stream, connection, size - sent);
      const last = sent + count === size ? Flag.END_STREAM : 0;
      await client.send(frame(Type.DATA, last, 1, Buffer.alloc(count, 0x61 + (sent % 7))));
      stream -= count;
      connection -= count;
      sent += count;
    }
  };
  const take = ({ type, stream: id, payload }: Frame): void => {
    if (type !== Type.WINDOW_UPDATE) return;
    if (id === 0) connection += payload.readUInt32BE(0);
    else stream += payload.readUInt32BE(0);
  };
  await send();
  // With the upstream's and the gateway's sockets full, windows stop coming: two PINGs are answered without one between.
  for (let quiet = 0; quiet < 2; ) {
    await client.send(frame(Type.PING, 0, 0, 'are-you?'));
    quiet++;
    for (let next = await client.read(); next.type !== Type.PING; next = await client.read()) {
      take(next);
      quiet = 0;
    }
    await send();
  }
  assert.ok(sent < size, 'the client could send everything although nobody read it');
  wire.socket.resume();
  const drained = wire.bytes(size);
  while (sent < size) {
    take(await client.read());
    await send();
  }
  assert.equal((await drained).length, size);
  await wire.send(ok('done'));
  assert.equal((await client.answer(1)).body, 'done');
});

test('a large download to a client with a tiny window holds at most 256 KiB', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab, [INITIAL_WINDOW_SIZE, 100]);
  await client.headers(1, get(upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  const sending = wire.send(ok('x'.repeat(8_000_000)));
  let body = 0;
  for (let turn = 0; turn < 20; turn++) {
    body += (await client.next(Type.DATA, 1)).payload.length;
    await client.synced();
    const bytes = await lab.metric('portcullis_buffers_in_use');
    assert.ok(bytes <= 256 * 1024, `${bytes} bytes held after ${body}`);
    await client.send(windowUpdate(1, 100));
  }
  client.wire.close();
  await sending.catch(() => {});
});

/** Requests whose bodies nobody takes yet, in one piece: the connection to the upstream is only being made. */
function uploads(host: string, streams: number, framesEach: number): Buffer {
  const pieces: Buffer[] = [];
  for (let i = 0; i < streams; i++) {
    const id = 2 * i + 1;
    pieces.push(frame(Type.HEADERS, Flag.END_HEADERS, id, block(...post(host))));
    for (let n = 0; n < framesEach; n++) pieces.push(frame(Type.DATA, 0, id, Buffer.alloc(16_384)));
  }
  return Buffer.concat(pieces);
}

test('more DATA than the window of a stream allows resets the stream', async () => {
  const { host } = lab.upstream();
  const client = await connectHttp2(lab);
  await lab.whileStopped(() => client.send(uploads(host, 1, 5)));
  assert.equal(await client.reset(1), Code.FLOW_CONTROL_ERROR);
});

test('more DATA than the window of the connection allows ends the connection', async () => {
  const { host } = lab.upstream();
  const client = await connectHttp2(lab);
  await lab.whileStopped(() => client.send(uploads(host, 3, 4)));
  const { code, text } = await client.goaway();
  assert.equal(code, Code.FLOW_CONTROL_ERROR);
  assert.match(text, /window of the connection/);
});

test('a client that never opens its window is let go after timeouts.streamIdle, and the connection goes on', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('never read'));
  const client = await connectHttp2(lab, [INITIAL_WINDOW_SIZE, 0]);
  await client.headers(1, get(upstream.host));
  client.fields(await client.next(Type.HEADERS, 1));
  assert.equal(await client.reset(1), Code.CANCEL);
  await client.headers(3, get(upstream.host));
  client.fields(await client.next(Type.HEADERS, 3));
  await client.send(windowUpdate(3, 100));
  assert.equal((await client.next(Type.DATA, 3)).payload.toString(), 'never read');
});
