// What sessions cost in memory: freed ones nothing, idle ones little. Measured in bytes that malloc
// has given out, which is exact and unlike the resident size not at the mercy of the heap.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import koffi from 'koffi';
import {
  createClientContext,
  createServerContext,
  freeContext,
  updateTicketKeys,
} from '../../../../core/tls/context.ts';
import { peerCertificate } from '../../../../core/tls/peer.ts';
import { HANDSHAKE_DONE, HANDSHAKE_FAILED } from '../../../../core/tls/session.ts';
import {
  clientContext,
  connectPair,
  good,
  kernel,
  OUT,
  pair,
  receive,
  sendAll,
  serverContext,
  sessions,
  ticketKey,
  turn,
} from './support.ts';

/** Growth per round that is none: a session or context that leaks has 8 KiB and more. */
const GROWTH_BYTES_MAX = 1024;

const mallinfo = koffi.struct('mallinfo2', {
  arena: 'size_t',
  ordblks: 'size_t',
  smblks: 'size_t',
  hblks: 'size_t',
  hblkhd: 'size_t',
  usmblks: 'size_t',
  fsmblks: 'size_t',
  uordblks: 'size_t',
  fordblks: 'size_t',
  keepcost: 'size_t',
});
const mallinfo2 = koffi.load(null).func('mallinfo2', mallinfo, []);

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

/** Bytes given out by malloc now, large mapped ones included, without what dead objects still hold. */
async function allocatedBytes(): Promise<number> {
  // Twice with a turn between: what a finaliser frees can free more.
  for (let i = 0; i < 2; i++) {
    collectGarbage();
    await turn();
  }
  const { uordblks, hblkhd } = mallinfo2();
  return Number(uordblks) + Number(hblkhd);
}

/** Times that growth is measured: a leak grows each time, the compiler of the engine allocates some 100 KiB now and then. */
const MEASUREMENTS = 3;

/**
 * Growth per round of something, after it has been done often enough to have filled every cache: the least of several
 * measurements.
 */
async function growthPerRound(warmUp: number, rounds: number, round: () => Promise<void>): Promise<number> {
  for (let i = 0; i < warmUp; i++) await round();
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < MEASUREMENTS && least >= GROWTH_BYTES_MAX; i++) {
    const before = await allocatedBytes();
    for (let n = 0; n < rounds; n++) await round();
    least = Math.min(least, ((await allocatedBytes()) - before) / rounds);
  }
  return least;
}

test('a thousand sessions that come and go leave nothing behind', async (t) => {
  const serverSide = serverContext(t, {
    ticketKeys: [ticketKey(1)],
    alpn: ['h2'],
    clientValidation: { caPem: good.authority.pem, mode: 'required' },
  });
  const clientSide = clientContext(t, { alpn: ['h2'], certificate: pair(good.server) });
  // The test's own callbacks and promises are on the JavaScript heap, but for a few bytes.
  const subject = { after: () => {} } as never;
  const growth = await growthPerRound(100, 500, async () => {
    const { server, client, close } = await connectPair(subject, serverSide, clientSide);
    assert.equal(server.status, HANDSHAKE_DONE);
    await sendAll(server.ssl, 'x');
    await receive(client.ssl, 1);
    peerCertificate(server.ssl);
    const resumption = sessions.takeResumption(client.ssl);
    assert.notEqual(resumption, 0);
    sessions.freeResumption(resumption);
    close();
  });
  // A session that leaks has at least 8 KiB.
  t.diagnostic(`${growth} bytes a round`);
  assert.ok(growth < GROWTH_BYTES_MAX, `${growth} bytes a round`);
  assert.equal(serverSide.sessions, 0);
  assert.equal(clientSide.sessions, 0);
});

test('failed and blocked sessions leave nothing behind either', async (t) => {
  const subject = { after: () => {} } as never;
  const serverSide = serverContext(t);
  const strict = clientContext(t);
  const growth = await growthPerRound(30, 60, async () => {
    const failed = await connectPair(subject, serverSide, strict, { name: 'b.example' });
    assert.equal(failed.client.status, HANDSHAKE_FAILED);
    failed.close();
    const blocked = await connectPair(subject, serverSide, strict);
    while (sessions.send(blocked.server.ssl, OUT, 65_536) > 0);
    blocked.close();
  });
  t.diagnostic(`${growth} bytes a round`);
  assert.ok(growth < GROWTH_BYTES_MAX, `${growth} bytes a round`);
});

test('contexts that come and go leave nothing behind', async (t) => {
  const growth = await growthPerRound(50, 200, async () => {
    const server = createServerContext({
      certificates: [pair(good.server), pair(good.rsaServer)],
      alpn: ['h2', 'http/1.1'],
      clientValidation: { caPem: good.authority.pem, mode: 'optional' },
      ticketKeys: [ticketKey(1), ticketKey(2)],
    });
    // Often, so that the 80 bytes of a forgotten key add up.
    for (let i = 0; i < 20; i++) updateTicketKeys(server, [ticketKey(3), ticketKey(1)]);
    freeContext(server);
    freeContext(createClientContext({ caPem: good.authority.pem, alpn: ['h2'], verify: true }));
    const { server: certificate } = good;
    const wrong = [{ chainPem: certificate.pem, keyPem: good.rsaServer.keyPem }];
    assert.throws(() => createServerContext({ certificates: wrong, alpn: [], ticketKeys: [ticketKey(1)] }));
  });
  // A context that leaks has at least 4 KiB.
  t.diagnostic(`${growth} bytes a round`);
  assert.ok(growth < GROWTH_BYTES_MAX, `${growth} bytes a round`);
});

test('an idle session holds no buffers', async () => {
  // OpenSSL 3.5 takes 16 KiB for a session without any handshake, the hybrid key exchange leaves 7 KiB
  // behind, and a client keeps the certificate. A forgotten read buffer would add 16 KiB at least.
  const limits = { server: 32 * 1024, client: 40 * 1024 };
  const subject = { after: () => {} } as never;
  const serverSide = createServerContext({ certificates: [pair(good.server)], alpn: [], ticketKeys: [ticketKey(1)] });
  const clientSide = createClientContext({ caPem: good.authority.pem, alpn: [], verify: true });
  const open = async () => {
    const { server, client } = await connectPair(subject, serverSide, clientSide);
    await sendAll(client.ssl, 'a request');
    await receive(server.ssl, 9);
    await sendAll(server.ssl, 'a response');
    await receive(client.ssl, 10);
    return { server, client };
  };
  const ends = [await open()];
  const count = 100;
  for (let i = 0; i < count; i++) ends.push(await open());
  const full = await allocatedBytes();
  for (const { client } of ends) sessions.free(client.ssl);
  const withoutClients = await allocatedBytes();
  for (const { server } of ends) sessions.free(server.ssl);
  const empty = await allocatedBytes();
  for (const { server, client } of ends) for (const { fd } of [server, client]) kernel.close(fd);
  freeContext(serverSide);
  freeContext(clientSide);
  const bytes = { server: (withoutClients - empty) / ends.length, client: (full - withoutClients) / ends.length };
  for (const side of ['server', 'client'] as const) {
    assert.ok(bytes[side] < limits[side], `${side}: ${bytes[side]} bytes`);
    assert.ok(bytes[side] > 8 * 1024, `${side}: ${bytes[side]} bytes are too few to be measured rightly`);
  }
});
