// Captures in network namespaces, with unmodified programs: what is redirected, what is not, and where it was going.

import assert from 'node:assert/strict';
import { Socket } from 'node:net';
import { test } from 'node:test';
import { CAPTURE_MARK } from '../../../mesh-agent/capture/spec.ts';
import { netnsSkipReason, TestNetwork } from '../../support/netns/network.ts';
import { curl, openCaptures, openIn, serveCapture, serveIn, serveName, specOf } from './capture-support.ts';

const skip = netnsSkipReason('nft', 'curl');

/** An address of a service: nobody has it, and the network has no way to it. */
const SERVICE = '10.96.0.10';
const SERVICE6 = 'fd96::10';

test('connections to a service address reach the proxy, which learns the address', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'] });
  const { sockets, captures } = openCaptures(t);
  const client = network.get('client');
  await serveCapture(t, sockets, client, '0.0.0.0', 15001);
  await serveCapture(t, sockets, client, '::', 15001);
  assert.equal(await curl(client, `http://${SERVICE}:8080/`), 'curl 7');

  assert.deepEqual(await captures.install(client.path, specOf()), { ok: true, changed: true });
  assert.equal(await curl(client, `http://${SERVICE}:8080/`), `captured ${SERVICE} 8080`);
  assert.equal(await curl(client, `http://[${SERVICE6}]:9090/`), `captured ${SERVICE6} 9090`);
});

test('connections to a workload reach its proxy from outside, and the workload from within', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets, captures } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  for (const host of ['0.0.0.0', '::']) {
    await serveCapture(t, sockets, server, host, 15006);
    await serveName(t, sockets, server, host, 8080, 'application');
    await serveName(t, sockets, server, host, 15008, 'tunnel');
  }
  await captures.install(server.path, specOf());

  assert.equal(await curl(client, `http://${server.address}:8080/`), `captured ${server.address} 8080`);
  assert.equal(await curl(client, `http://[${server.address6}]:8080/`), `captured ${server.address6} 8080`);
  // The proxy sees who called, and tunnels arrive where they were sent.
  assert.equal(await curl(client, `http://${server.address}:15008/`), `tunnel from ${client.address}`);
  assert.equal(await curl(client, `http://[${server.address6}]:15008/`), `tunnel from ${client.address6}`);
  // Its own processes, by loopback and by address.
  assert.equal(await curl(server, 'http://127.0.0.1:8080/'), 'application from 127.0.0.1');
  assert.equal(await curl(server, 'http://[::1]:8080/'), 'application from ::1');
  assert.equal(await curl(server, `http://${server.address}:8080/`), `application from ${server.address}`);
});

test('a connection made to a listener of the proxy itself is told from a captured one', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets, captures } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  for (const host of ['0.0.0.0', '::']) {
    for (const port of [15001, 15006]) await serveCapture(t, sockets, server, host, port);
  }
  await captures.install(server.path, specOf());

  assert.equal(await curl(server, 'http://127.0.0.1:15001/'), 'direct 127.0.0.1 15001');
  assert.equal(await curl(server, 'http://[::1]:15001/'), 'direct ::1 15001');
  assert.equal(await curl(client, `http://${server.address}:15006/`), `direct ${server.address} 15006`);
  assert.equal(await curl(client, `http://[${server.address6}]:15006/`), `direct ${server.address6} 15006`);
  // From outside nobody gets to the outbound listener.
  assert.equal(await curl(client, `http://${server.address}:15001/`), `captured ${server.address} 15001`);
});

test('sockets of the proxy bear the mark and are not captured', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets, captures } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  await serveCapture(t, sockets, client, '0.0.0.0', 15001);
  for (const host of ['0.0.0.0', '::']) await serveName(t, sockets, server, host, 8080, 'server');
  await captures.install(client.path, specOf());

  for (const host of [server.address, server.address6]) {
    const fd = await openIn(sockets, client, { kind: 'dial', host, port: 8080, mark: CAPTURE_MARK });
    assert.match(await askOver(fd), /server from (10\.9\.1\.10|fd09:0:0:1::10)$/);
  }
  const unmarked = await openIn(sockets, client, { kind: 'dial', host: server.address, port: 8080 });
  assert.match(await askOver(unmarked), /captured 10\.9\.2\.10 8080$/);
});

test('excluded ports, destinations and clients stay direct', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client', 'checker'], b: ['server'] });
  const { sockets, captures } = openCaptures(t);
  const [client, checker, server] = [network.get('client'), network.get('checker'), network.get('server')];
  for (const host of ['0.0.0.0', '::']) {
    await serveCapture(t, sockets, client, host, 15001);
    await serveCapture(t, sockets, server, host, 15006);
    for (const port of [8080, 9000, 9001]) await serveName(t, sockets, server, host, port, 'server');
  }
  const direct = `server from ${client.address}`;
  const direct6 = `server from ${client.address6}`;

  await captures.install(client.path, specOf({ excludeOutboundPorts: ['9000-9001'] }));
  assert.equal(await curl(client, `http://${server.address}:9001/`), direct);
  assert.equal(await curl(client, `http://[${server.address6}]:9000/`), direct6);
  assert.equal(await curl(client, `http://${server.address}:8080/`), `captured ${server.address} 8080`);

  await captures.install(client.path, specOf({ excludeOutbound: ['10.9.2.0/24', `${server.address6}`] }));
  assert.equal(await curl(client, `http://${server.address}:8080/`), direct);
  assert.equal(await curl(client, `http://[${server.address6}]:8080/`), direct6);
  assert.equal(await curl(client, 'http://10.9.3.1:8080/'), 'captured 10.9.3.1 8080');
  assert.equal(await curl(client, 'http://[fd09:0:0:2::99]:8080/'), 'captured fd09:0:0:2::99 8080');

  const excludeInbound = [checker.address, checker.address6];
  await captures.install(server.path, specOf({ excludeInbound, excludeInboundPorts: ['9000'] }));
  assert.equal(await curl(client, `http://${server.address}:9000/`), direct);
  assert.equal(await curl(client, `http://[${server.address6}]:9001/`), `captured ${server.address6} 9001`);
  assert.equal(await curl(checker, `http://${server.address}:8080/`), `server from ${checker.address}`);
  assert.equal(await curl(checker, `http://[${server.address6}]:8080/`), `server from ${checker.address6}`);
});

test('connections that were open before a capture go on as they are', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets, captures } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  await serveIn(t, sockets, server, '0.0.0.0', 7000, (socket) => socket.pipe(socket));
  const fd = await openIn(sockets, client, { kind: 'dial', host: server.address, port: 7000 });
  const echo = echoOver(t, fd);
  assert.equal(await echo('before'), 'before');
  await captures.install(client.path, specOf());
  await captures.install(server.path, specOf());
  assert.equal(await echo('after'), 'after');
});

test('captured connections outlive a change of the rules', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'] });
  const { sockets, captures } = openCaptures(t);
  const client = network.get('client');
  await serveIn(t, sockets, client, '0.0.0.0', 15001, (socket) => socket.pipe(socket));
  await captures.install(client.path, specOf());
  const echo = echoOver(t, await openIn(sockets, client, { kind: 'dial', host: SERVICE, port: 7000 }));
  assert.equal(await echo('before'), 'before');
  assert.deepEqual(await captures.install(client.path, specOf({ excludeOutboundPorts: ['7000'] })), {
    ok: true,
    changed: true,
  });
  assert.equal(await echo('after'), 'after');
});

/** One HTTP request over an open socket. */
function askOver(fd: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = new Socket({ fd });
    socket.setEncoding('utf8').on('data', (chunk) => (text += chunk));
    socket.on('error', reject).on('end', () => {
      socket.destroy();
      resolve(text);
    });
    socket.write('GET / HTTP/1.1\r\nhost: test\r\n\r\n');
  });
}

/** Sends a text over an open socket to a server that sends everything back, and says what came. */
function echoOver(t: { after: (end: () => void) => void }, fd: number): (text: string) => Promise<string> {
  const socket = new Socket({ fd }).setEncoding('utf8');
  t.after(() => socket.destroy());
  let failed: Error | undefined;
  socket.on('error', (error) => (failed = error));
  return (text) =>
    new Promise((resolve, reject) => {
      let got = '';
      const onData = (chunk: string) => {
        got += chunk;
        if (got.length < text.length) return;
        socket.off('data', onData);
        resolve(got);
      };
      if (failed !== undefined) return reject(failed);
      socket.on('data', onData).once('close', () => reject(failed ?? new Error('closed')));
      socket.write(text);
    });
}
