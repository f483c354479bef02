// Redirects and challenge texts as they are written.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACME_PATH, AcmeChallenges } from '../../../../core/exchange/acme-challenges.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { LocalAnswers } from '../../../../core/exchange/local-answers.ts';
import { ListenerRuntime } from '../../../../core/exchange/runtime.ts';
import { Method } from '../../../../core/http1/message.ts';
import { HEADROOM_BYTES, SCRATCH_BYTES } from '../../../../core/io/arena.ts';
import type { RedirectSettings } from '../../../../core/workers/snapshot.ts';
import {
  clientFrom,
  endpointSettings,
  memoryReactor,
  openRuntime,
  plainBackend,
  plainListener,
  snapshotOf,
  textOf,
} from './support.ts';

const reactor = memoryReactor();
const acme = new AcmeChallenges();
const local = new LocalAnswers(reactor, acme);
const standard: RedirectSettings = { status: 301, port: 443 };

interface Asked {
  host?: string;
  path?: string;
  redirect?: RedirectSettings | null;
  method?: number;
  versionMinor?: number;
}

/** The answer to a request; null: none. */
function answer({
  host = 'a.test',
  path = '/',
  redirect = standard,
  method = Method.GET,
  versionMinor = 1,
}: Asked): string | null {
  const exchange = new Exchange();
  const downstream = clientFrom('192.0.2.1');
  downstream.listener = new ListenerRuntime({ ...plainListener, redirectToHttps: redirect }, 0, 9);
  const backend = { ...plainBackend, endpoints: [endpointSettings('10.0.0.1:80')] };
  exchange.downstream = downstream;
  exchange.runtime = openRuntime(snapshotOf({}, [backend]));
  exchange.backend = 0;
  exchange.endpoint = 0;
  exchange.method = method;
  exchange.versionMinor = versionMinor;
  const block = reactor.arena.receiveOffset;
  exchange.pathOffset = block;
  exchange.pathLength = path.length;
  exchange.hostOffset = block + path.length;
  exchange.hostLength = host.length;
  reactor.memory.set(Buffer.from(path + host), block);
  const answered = local.answers(exchange);
  return answered ? textOf(reactor.memory, local.offset, local.length) : null;
}

const redirect = (line: string, location: string): string =>
  `HTTP/1.1 ${line}\r\ncontent-length: 0\r\nlocation: ${location}\r\n\r\n`;

test('a redirect keeps host, path and query, and leaves the port of plain HTTP out', () => {
  assert.equal(answer({ path: '/a?b' }), redirect('301 Moved Permanently', 'https://a.test/a?b'));
  for (const [host, there] of [
    ['a.test:8080', 'a.test'],
    ['a.test:', 'a.test'],
    ['a1', 'a1'],
    ['192.0.2.1', '192.0.2.1'],
    ['192.0.2.1:80', '192.0.2.1'],
    ['[::1]', '[::1]'],
    ['[::1]:80', '[::1]'],
    ['[2001:db8::25]:8080', '[2001:db8::25]'],
  ]) {
    assert.equal(answer({ host }), redirect('301 Moved Permanently', `https://${there}/`), host);
  }
});

test('port and status are those of the listener', () => {
  assert.equal(
    answer({ host: 'a.test:80', redirect: { status: 308, port: 8443 } }),
    redirect('308 Permanent Redirect', 'https://a.test:8443/'),
  );
  assert.match(answer({ redirect: { status: 307, port: 443 } })!, /^HTTP\/1\.1 307 Temporary Redirect\r\n/);
  assert.match(answer({ redirect: { status: 302, port: 443 } })!, /^HTTP\/1\.1 302 Found\r\n/);
});

test('a listener without a redirect answers nothing', () => {
  assert.equal(answer({ redirect: null }), null);
});

test('CONNECT has no URL to redirect to, and "*" is the root', () => {
  assert.equal(answer({ method: Method.CONNECT, path: 'a.test:443' }), null);
  assert.equal(answer({ method: Method.OPTIONS, path: '*' }), redirect('301 Moved Permanently', 'https://a.test/'));
});

test('without a host there is a 400, not a request served or an address of ours', () => {
  assert.match(answer({ host: '' })!, /^HTTP\/1\.1 400 Bad Request\r\n/);
  const standIn = answer({ host: '10.0.0.1:80', versionMinor: 0 })!;
  assert.match(standIn, /^HTTP\/1\.1 400 Bad Request\r\n/);
  const [head, body] = standIn.split('\r\n\r\n');
  assert.match(head, new RegExp(`\r\ncontent-length: ${body.length}$`));
  assert.equal(answer({ host: '10.0.0.1:80' }), redirect('301 Moved Permanently', 'https://10.0.0.1/'));
});

test('what does not fit is refused with 414', () => {
  const room = SCRATCH_BYTES - HEADROOM_BYTES - 256 - 'a.test'.length;
  assert.match(answer({ path: `/${'x'.repeat(room)}` })!, /^HTTP\/1\.1 414 URI Too Long\r\n/);
  const path = `/${'x'.repeat(room - 1)}`;
  assert.equal(answer({ path }), redirect('301 Moved Permanently', `https://a.test${path}`));
});

test('an open challenge comes before the redirect, on listeners with and without one', () => {
  acme.use({ http: [{ token: 't', keyAuthorization: 't.print' }], tls: [] });
  const text = 'HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 7\r\n\r\nt.print';
  assert.equal(answer({ path: `${ACME_PATH}t` }), text);
  assert.equal(answer({ path: `${ACME_PATH}t`, redirect: null }), text);
  assert.match(answer({ path: `${ACME_PATH}u` })!, /^HTTP\/1\.1 301 /);
  acme.use({ http: [], tls: [] });
});
