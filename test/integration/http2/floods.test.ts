// Attacks on the HTTP/2 front: each ends its own connection with ENHANCE_YOUR_CALM and a reason in plain words,
// and nobody else notices.
// Spec: RFC 9113 §10.5; CVE-2023-44487, CVE-2025-8671, CVE-2019-9512 to 9518, CVE-2024-27316.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, startLab } from '../http/support.ts';
import { block, type Client, Code, connectHttp2, Flag, frame, get, post, settings, Type, word } from './frames.ts';

const lab = await startLab({
  upstreams: 24,
  top: 'http2: {maxResetsPerSecond: 20, maxControlFramesPerSecond: 100, maxConcurrentStreams: 10}\nlimits: {maxRequestHeadSize: 16KiB}',
});

/** Runs an attack beside an innocent connection; the attacker is told off, the innocent is served. */
async function attack(kind: string, text: RegExp, run: (client: Client, host: string) => Promise<void>): Promise<void> {
  const upstream = lab.upstream();
  upstream.serve(() => ok('fine'));
  const innocent = await connectHttp2(lab);
  const client = await connectHttp2(lab);
  const series = `portcullis_http2_floods_total{kind="${kind}"}`;
  const before = await lab.metric(series);
  await run(client, upstream.host);
  const goaway = await client.goaway();
  assert.equal(goaway.code, Code.ENHANCE_YOUR_CALM);
  assert.match(goaway.text, text);
  assert.equal(await client.wire.ended(), 'fin');
  await lab.metricBecomes(series, before + 1);
  await innocent.headers(1, get(upstream.host));
  assert.equal((await innocent.answer(1)).body, 'fine');
}

function times(count: number, make: (i: number) => Buffer): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, i) => make(i)));
}

test('requests that are reset at once, over and over, end the connection', () =>
  attack('reset', /Too many streams were reset/, async (client, host) => {
    await client.send(
      times(40, (i) => {
        const id = 2 * i + 1;
        const request = frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, id, block(...get(host)));
        return Buffer.concat([request, frame(Type.RST_STREAM, 0, id, word(Code.CANCEL))]);
      }),
    );
  }));

test('streams that the client makes us reset count like those it resets itself', () =>
  attack('reset', /Too many streams were reset/, async (client, host) => {
    await client.send(
      times(40, (i) => {
        const id = 2 * i + 1;
        const request = frame(Type.HEADERS, Flag.END_HEADERS, id, block(...post(host)));
        return Buffer.concat([request, frame(Type.WINDOW_UPDATE, 0, id, word(0x7fffffff))]);
      }),
    );
  }));

test('malformed requests, over and over, count as resets', () =>
  attack('reset', /Too many streams were reset/, async (client, host) => {
    await client.send(
      times(40, (i) =>
        frame(
          Type.HEADERS,
          Flag.END_HEADERS | Flag.END_STREAM,
          2 * i + 1,
          block(...get(host), ['connection', 'close']),
        ),
      ),
    );
  }));

test('requests beyond the announced number, over and over, count as resets', () =>
  attack('reset', /Too many streams were reset/, async (client, host) => {
    await client.send(times(40, (i) => frame(Type.HEADERS, Flag.END_HEADERS, 2 * i + 1, block(...post(host)))));
  }));

test('a header block in endless CONTINUATION frames ends the connection', () =>
  attack('continuation', /CONTINUATION/, async (client, host) => {
    const first = frame(Type.HEADERS, Flag.END_STREAM, 1, block(...get(host)));
    await client.send(
      first,
      times(40, () => frame(Type.CONTINUATION, 0, 1)),
    );
  }));

test('a header block beyond limits.maxRequestHeadSize in CONTINUATION frames ends the connection', () =>
  attack('continuation', /header block is too large/, async (client, host) => {
    const first = frame(Type.HEADERS, Flag.END_STREAM, 1, block(...get(host)));
    const more = block(['x-filler', 'a'.repeat(9000)]);
    await client.send(first, frame(Type.CONTINUATION, 0, 1, more), frame(Type.CONTINUATION, 0, 1, more));
  }));

test('a flood of SETTINGS ends the connection', () =>
  attack('settings', /SETTINGS/, (client) =>
    client.send(times(200, () => frame(Type.SETTINGS, 0, 0, settings([4, 65_535])))),
  ));

test('a flood of PING ends the connection', () =>
  attack('ping', /PING/, (client) => client.send(times(200, () => frame(Type.PING, 0, 0, '12345678')))));

test('a flood of PRIORITY ends the connection', () =>
  attack('priority', /PRIORITY/, (client) =>
    client.send(times(200, (i) => frame(Type.PRIORITY, 0, 2 * i + 3, Buffer.concat([word(1), Buffer.from([9])])))),
  ));

test('a flood of WINDOW_UPDATE ends the connection', () =>
  attack('window_update', /WINDOW_UPDATE/, (client) =>
    client.send(times(200, () => frame(Type.WINDOW_UPDATE, 0, 0, word(1)))),
  ));

test('a flood of empty DATA frames ends the connection', () =>
  attack('empty_data', /empty DATA/, async (client, host) => {
    await client.headers(1, post(host), 0);
    await client.send(times(200, () => frame(Type.DATA, 0, 1)));
  }));

test('a flood of frames of unknown types ends the connection', () =>
  attack('other', /without use/, (client) => client.send(times(200, () => frame(0x77, 0, 0, 'x')))));

test('a header list that is small on the wire and large when decoded is answered with 431, and the connection goes on', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('fine'));
  const client = await connectHttp2(lab);
  // One entry of 4,000 bytes in the dynamic table, then a byte for each further use of it.
  const value = Buffer.alloc(3900, 0x61);
  const insert = Buffer.concat([Buffer.from([0x40, 1, 0x78, 127, 0xbd, 0x1d]), value]);
  const bomb = Buffer.concat([block(...get(upstream.host)), insert, Buffer.alloc(2000, 0x80 | 62)]);
  await client.send(frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, bomb));
  const { fields } = await client.answer(1);
  assert.equal(fields[0], ':status: 431');
  await client.headers(3, get(upstream.host));
  assert.equal((await client.answer(3)).body, 'fine');
  assert.equal(upstream.accepted, 1, 'nothing of the bomb reached the upstream');
});

test('a header block that cannot be decoded ends the connection with COMPRESSION_ERROR', async () => {
  const client = await connectHttp2(lab);
  await client.send(frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, Buffer.from([0x80 | 100])));
  const goaway = await client.goaway();
  assert.equal(goaway.code, Code.COMPRESSION_ERROR);
  assert.match(goaway.text, /neither table/);
});

test('a request beyond the announced number is refused, and the others go on', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  for (let i = 0; i < 11; i++) await client.headers(2 * i + 1, get(upstream.host));
  assert.equal(await client.reset(21), Code.REFUSED_STREAM);
  const wires = await Promise.all(Array.from({ length: 10 }, () => upstream.connection()));
  await Promise.all(
    wires.map(async (wire) => {
      await wire.request();
      await wire.send(ok('fine'));
    }),
  );
  let answers = 0;
  for (; answers < 10; answers++) client.fields(await client.next(Type.HEADERS));
  assert.equal(answers, 10);
});
