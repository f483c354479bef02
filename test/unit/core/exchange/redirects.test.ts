// Redirects by the rules of the Gateway API: scheme, host, port, path and query.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { Redirect } from '../../../../core/exchange/redirects.ts';
import { ListenerRuntime } from '../../../../core/exchange/runtime.ts';
import type { RedirectSettings } from '../../../../core/workers/filter-settings.ts';
import { clientFrom, memoryReactor, plainListener, textOf } from './support.ts';

const reactor = memoryReactor();
const settings: RedirectSettings = { scheme: '', hostname: '', path: null, port: 0, status: 302 };

interface Asked {
  host?: string;
  path?: string;
  /** Of the listener. */
  port?: number;
  https?: boolean;
}

function written(wanted: Partial<RedirectSettings>, asked: Asked = {}): string {
  const { host = 'a.test', path = '/p?q', port = 80, https = false } = asked;
  const { memory, arena } = reactor;
  const exchange = new Exchange();
  exchange.downstream = clientFrom('192.0.2.1');
  const listener = { ...plainListener, port, scheme: https ? ('https' as const) : ('http' as const) };
  exchange.downstream.listener = new ListenerRuntime(listener, 0, 9);
  memory.set(Buffer.from(path + host), arena.receiveOffset);
  exchange.pathOffset = arena.receiveOffset;
  exchange.pathLength = path.length;
  exchange.hostOffset = arena.receiveOffset + path.length;
  exchange.hostLength = host.length;
  const redirect = new Redirect({ ...settings, ...wanted });
  assert.equal(redirect.hasHost(exchange), host !== '' || (wanted.hostname ?? '') !== '');
  const end = redirect.put(reactor, arena.scratchOffset, exchange);
  assert.ok(end - arena.scratchOffset <= redirect.bytesMax(exchange));
  return textOf(memory, arena.scratchOffset, end - arena.scratchOffset);
}

function location(wanted: Partial<RedirectSettings>, asked: Asked = {}): string {
  return /\r\nlocation: ([^\r]*)\r\n/.exec(written(wanted, asked))![1];
}

test('the whole response says where to go', () => {
  assert.equal(
    written({ hostname: 'b.test', status: 308 }),
    'HTTP/1.1 308 Permanent Redirect\r\ncontent-length: 0\r\nlocation: http://b.test/p?q\r\n\r\n',
  );
});

test('what the filter leaves out comes from the request', () => {
  assert.equal(location({ scheme: 'https' }), 'https://a.test/p?q');
  assert.equal(location({ hostname: 'b.test' }, { https: true, port: 443 }), 'https://b.test/p?q');
  assert.equal(location({ port: 8080 }), 'http://a.test:8080/p?q');
  assert.equal(location({ hostname: 'b.test' }, { host: '' }), 'http://b.test/p?q');
  assert.equal(location({ scheme: 'https' }, { host: '[2001:db8::1]:8080' }), 'https://[2001:db8::1]/p?q');
});

test('the port is that of the filter, of its scheme, or of the listener; well-known ones are left out', () => {
  const cases: [Partial<RedirectSettings>, Asked, string][] = [
    [{ scheme: 'https' }, { host: 'a.test:8080', port: 8080 }, 'https://a.test/'],
    [{ scheme: 'https', port: 443 }, {}, 'https://a.test/'],
    [{ scheme: 'https', port: 8443 }, {}, 'https://a.test:8443/'],
    [{ scheme: 'https', port: 80 }, {}, 'https://a.test:80/'],
    [{ scheme: 'http', port: 443 }, {}, 'http://a.test:443/'],
    [{ scheme: 'http' }, { https: true, port: 8443 }, 'http://a.test/'],
    [{ hostname: 'b.test' }, { host: 'a.test:1', port: 8080 }, 'http://b.test:8080/'],
    [{ hostname: 'b.test' }, { port: 80 }, 'http://b.test/'],
    [{ hostname: 'b.test' }, { https: true, port: 8443 }, 'https://b.test:8443/'],
    [{ hostname: 'b.test' }, { https: true, port: 443 }, 'https://b.test/'],
    [{ hostname: 'b.test', port: 80 }, { port: 8080 }, 'http://b.test/'],
    // A listener on a port that the system has chosen: the client knows which.
    [{ hostname: 'b.test' }, { host: 'a.test:39999', port: 0 }, 'http://b.test:39999/'],
  ];
  for (const [wanted, asked, expected] of cases) {
    assert.equal(location(wanted, { ...asked, path: '/' }), expected, JSON.stringify([wanted, asked]));
  }
});

test('paths are replaced as in rewrites, and the query is kept', () => {
  const full = { path: { type: 'ReplaceFullPath' as const, value: '/new', prefixes: [] } };
  assert.equal(location(full), 'http://a.test/new?q');
  const prefix = { path: { type: 'ReplacePrefixMatch' as const, value: '', prefixes: ['/p'] } };
  assert.equal(location(prefix, { path: '/p/a?q' }), 'http://a.test/a?q');
  assert.equal(location(full, { path: '*' }), 'http://a.test/');
});
