// A packet thread in small, for handshake.test.ts: connects two sessions of its own twice, with ALPN
// and tickets, and tells what came of it.

import type { TestContext } from 'node:test';
import { parentPort } from 'node:worker_threads';
import { sessionAlpn } from '../../../../core/tls/alpn.ts';
import { sessionResumed } from '../../../../core/tls/peer.ts';
import { clientContext, connectPair, receive, sendAll, serverContext, sessions, ticketKey } from './support.ts';

/** Only `after` of a test is used; what it frees dies with the thread. */
const t = { after: () => {} } as unknown as TestContext;

const serverSide = serverContext(t, { alpn: ['h2', 'http/1.1'], ticketKeys: [ticketKey(1)] });
const clientSide = clientContext(t, { alpn: ['http/1.1', 'h2'] });
const one = await connectPair(t, serverSide, clientSide);
await sendAll(one.server.ssl, 'hello');
const text = String((await receive(one.client.ssl, 5)).data);
const resumption = sessions.takeResumption(one.client.ssl);
const alpn = sessionAlpn(one.server.ssl);
const first = sessionResumed(one.server.ssl);
one.close();
const two = await connectPair(t, serverSide, clientSide, { resumption });
const second = sessionResumed(two.server.ssl);
two.close();
parentPort!.postMessage({ alpn, first, second, text });
