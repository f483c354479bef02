// Endpoints that come and go while the gateway runs: DNS with a short TTL, SRV records, files.

import assert from 'node:assert/strict';
import { mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { startDnsServer } from '../unit/gateway/discovery/dns-server.ts';
import { becomes } from './http/support.ts';
import { get, Load, namedUpstream, runToEnd, startGateway, temporaryDirectory } from './support.ts';

function config(backend: string, top = ''): string {
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
${top}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, ${backend}}]
`;
}

/** A server on an address of loopback that answers with its name; port 0 takes a free one. */
async function serverAt(t: TestContext, host: string, port: number, name: string): Promise<number> {
  const server: Server = createServer((incoming, response) => {
    incoming.resume();
    response.end(name);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, resolve);
  });
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

/** Waits until answers come from exactly these upstreams. */
function answersFrom(port: number, ...names: string[]): Promise<void> {
  return becomes(`answers from ${names}`, async () => {
    const bodies = new Set<string>();
    for (let i = 0; i < 8; i++) bodies.add((await get(port)).body);
    return names.length === bodies.size && names.every((name) => bodies.has(name));
  });
}

test('addresses follow DNS as their TTL says, without one failed request', async (t) => {
  const dns = await startDnsServer(t);
  const upstreamPort = await serverAt(t, '127.0.0.1', 0, 'one');
  await serverAt(t, '127.0.0.2', upstreamPort, 'two');
  dns.zones.set('app.test', { addresses: ['127.0.0.1'], ttl: 0 });
  const gateway = startGateway(
    t,
    config(`endpoints: ["app.test:${upstreamPort}"]`, `dns: {servers: ["${dns.address}"]}`),
  );
  const port = await gateway.port();
  const load = new Load(port, 4);
  await load.more(20);
  dns.zones.set('app.test', { addresses: ['127.0.0.1', '127.0.0.2'], ttl: 0 });
  await gateway.log(/info endpoints changed epoch=2/);
  await answersFrom(port, 'one', 'two');
  dns.zones.set('app.test', { addresses: ['127.0.0.2'], ttl: 0 });
  await gateway.log(/info endpoints changed epoch=3/);
  await answersFrom(port, 'two');

  // A server that fails, or knows nothing any more, takes no working address away.
  dns.zones.set('app.test', { addresses: ['127.0.0.2'], fail: ['A', 'AAAA'] });
  await gateway.log(
    /warn endpoint name does not resolve name=app\.test error=ESERVFAIL consequence="its last addresses stay in use"$/,
  );
  await load.more(20);
  await answersFrom(port, 'two');
  dns.zones.delete('app.test');
  await load.more(20);
  await load.stop();
});

test('SRV records give ports and weights, and a lower priority waits for the higher to fail', async (t) => {
  const dns = await startDnsServer(t);
  const [a, b, c] = await Promise.all(['a', 'b', 'c'].map((name) => namedUpstream(t, name)));
  dns.zones.set('host.test', { addresses: ['127.0.0.1'], ttl: 1 });
  const target = 'host.test';
  const services = [
    { priority: 10, weight: 30, port: a!, target },
    { priority: 10, weight: 10, port: b!, target },
    { priority: 20, weight: 10, port: c!, target },
  ];
  dns.zones.set('_http._tcp.app.test', { services });
  const gateway = startGateway(
    t,
    config('endpoints: ["srv:_http._tcp.app.test"]', `dns: {servers: ["${dns.address}"]}`),
  );
  const port = await gateway.port();
  const counts: Record<string, number> = {};
  for (let i = 0; i < 40; i++) {
    const { body } = await get(port);
    counts[body] = (counts[body] ?? 0) + 1;
  }
  assert.deepEqual(Object.keys(counts).sort(), ['a', 'b']);
  assert.ok(counts.a! > 2 * counts.b!, JSON.stringify(counts));
  dns.zones.set('_http._tcp.app.test', { services: services.slice(2) });
  await answersFrom(port, 'c');
});

test('a backend whose names do not resolve starts without endpoints, warns, and gets them later', async (t) => {
  const dns = await startDnsServer(t);
  const upstream = await namedUpstream(t, 'late');
  const gateway = startGateway(t, config(`endpoints: ["late.test:${upstream}"]`, `dns: {servers: ["${dns.address}"]}`));
  const port = await gateway.port();
  await gateway.log(
    /warn endpoint name does not resolve name=late\.test error=ENOTFOUND consequence="the backend has no such endpoint for now"$/,
  );
  const { status } = await get(port);
  assert.equal(status, 503);
  dns.zones.set('late.test', { addresses: ['127.0.0.1'] });
  await gateway.log(/info endpoint name resolves again name=late\.test$/);
  await answersFrom(port, 'late');
});

test('an endpoints file adds endpoints, is followed when it changes, and is refused when it is broken', async (t) => {
  const [a, b, c] = await Promise.all(['a', 'b', 'c'].map((name) => namedUpstream(t, name)));
  const file = join(temporaryDirectory(t), 'endpoints.yaml');
  writeFileSync(file, `- "127.0.0.1:${a}"\n- {address: "127.0.0.1:${b}", weight: 2}\n`);
  const gateway = startGateway(t, config(`endpointsFile: ${file}, endpoints: ["127.0.0.1:${c}"]`));
  const port = await gateway.port();
  await answersFrom(port, 'a', 'b', 'c');
  const load = new Load(port, 4);

  writeFileSync(file, JSON.stringify([`127.0.0.1:${b}`]));
  await gateway.log(/info endpoints changed epoch=2/);
  await answersFrom(port, 'b', 'c');

  writeFileSync(file, `- "127.0.0.1:${a}"\n- {address: "127.0.0.1:${b}", weight: 0}\n`);
  await gateway.log(
    /error endpoints file refused problem="\S+endpoints\.yaml:2:\d+: \[1\]\.weight: 0 is out of range, expected [^"]+" consequence="its endpoints of before stay in use"$/,
  );
  await answersFrom(port, 'b', 'c');

  writeFileSync(file, `- "127.0.0.1:${a}"\n`);
  await gateway.log(/info endpoints changed epoch=3/);
  await answersFrom(port, 'a', 'c');

  writeFileSync(file, '[]');
  await gateway.log(/info endpoints changed epoch=4/);
  await answersFrom(port, 'c');
  await load.stop();
});

test('a file in a volume of Kubernetes is followed over the swap of its links', async (t) => {
  const [a, b] = await Promise.all(['a', 'b'].map((name) => namedUpstream(t, name)));
  const volume = temporaryDirectory(t);
  const publish = (version: string, text: string): void => {
    mkdirSync(join(volume, `..${version}`));
    writeFileSync(join(volume, `..${version}`, 'endpoints.json'), text);
    symlinkSync(`..${version}`, join(volume, '..data_tmp'));
    renameSync(join(volume, '..data_tmp'), join(volume, '..data'));
  };
  publish('v1', JSON.stringify([`127.0.0.1:${a}`]));
  symlinkSync('..data/endpoints.json', join(volume, 'endpoints.json'));
  const gateway = startGateway(t, config(`endpointsFile: ${join(volume, 'endpoints.json')}`));
  const port = await gateway.port();
  await answersFrom(port, 'a');
  publish('v2', JSON.stringify([`127.0.0.1:${b}`]));
  await answersFrom(port, 'b');
  assert.match(gateway.stderr, /endpoints changed epoch=2/);
});

test('a broken or missing endpoints file is an error of the configuration, at a start and at a reload', async (t) => {
  const directory = temporaryDirectory(t);
  const bad = join(directory, 'bad.yaml');
  writeFileSync(bad, '- "127.0.0.1"\n');
  const configFile = join(directory, 'gateway.yaml');
  writeFileSync(configFile, config('endpointsFile: bad.yaml'));
  const { code, stderr } = await runToEnd(t, 'check', '--config', configFile);
  assert.equal(code, 1);
  assert.match(
    stderr,
    /gateway\.yaml:7:\d+: backends\[0\]\.endpointsFile: \S+bad\.yaml:1:3: \[0\]: "127\.0\.0\.1" has no port/,
  );

  const upstream = await namedUpstream(t, 'old');
  const gateway = startGateway(t, config(`endpoints: ["127.0.0.1:${upstream}"]`));
  const port = await gateway.port();
  gateway.configure(config(`endpointsFile: ${join(directory, 'none.yaml')}`));
  gateway.kill('SIGHUP');
  await gateway.log(/error \S+:7:\d+: backends\[0\]\.endpointsFile: \S+none\.yaml does not exist/);
  await gateway.log(/error reload refused/);
  assert.equal((await get(port)).body, 'old');
});
