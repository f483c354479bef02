// Sockets inside other namespaces: where they are, what can go wrong, and that nothing is left behind.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readlinkSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { closeDescriptor } from '../../../core/ffi/listen.ts';
import { NamespaceSockets, type SocketRequest } from '../../../core/ffi/netns.ts';
import { OriginalDestination } from '../../../core/ffi/original-destination.ts';
import { decodeSockaddr, Family } from '../../../core/ffi/sockaddr.ts';
import { netnsSkipReason, TestNetwork } from '../../support/netns/network.ts';
import { answerHttp, curl, openCaptures, serveIn, serveName } from './capture-support.ts';

const skip = netnsSkipReason('curl');
const listen: SocketRequest = { kind: 'listen', host: '127.0.0.1', port: 0 };

function openSockets(t: TestContext): NamespaceSockets {
  const sockets = new NamespaceSockets();
  t.after(() => sockets.close());
  return sockets;
}

function descriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

/** The network namespaces that threads of this process are in. */
function threadNamespaces(): string[] {
  return [...new Set(readdirSync('/proc/self/task').map((id) => readlinkSync(`/proc/self/task/${id}/ns/net`)))];
}

test('a socket belongs to the namespace that it was opened in', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one, two] = await network.addIsolated(['one', 'two']);
  const sockets = openSockets(t);
  const opened = await sockets.open(one!.path, listen, 4);
  assert.ok(opened.ok);
  assert.equal(opened.fds.length, 4);
  for (const fd of opened.fds) closeDescriptor(fd);

  const server = await serveName(t, sockets, one!, '127.0.0.1', 8080, 'one');
  assert.ok(server.listening);
  assert.equal(await curl(one!, 'http://127.0.0.1:8080/'), 'one from 127.0.0.1');
  assert.equal(await curl(two!, 'http://127.0.0.1:8080/'), 'curl 7');
  const here = connect(8080, '127.0.0.1');
  const outcome = await new Promise((resolve) =>
    here.once('error', resolve).once('connect', () => resolve('connected')),
  );
  here.destroy();
  assert.notEqual(outcome, 'connected');
});

test('several listening sockets share the port that the kernel chose', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const sockets = openSockets(t);
  const opened = await sockets.open(one!.path, { ...listen, host: '::1' }, 3);
  assert.ok(opened.ok && opened.port > 0);
  t.after(() => opened.fds.forEach(closeDescriptor));
  const table = await one!.run('cat', ['/proc/net/tcp6']);
  const port = opened.port.toString(16).toUpperCase().padStart(4, '0');
  assert.equal(table.stdout.split('\n').filter((line) => line.includes(`:${port} `)).length, 3);
});

test('what cannot be entered or opened is an error by name', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const sockets = openSockets(t);
  const fifo = `/tmp/pctest-fifo-${process.pid}`;
  execFileSync('mkfifo', [fifo]);
  t.after(() => execFileSync('rm', [fifo]));
  const code = async (target: Parameters<NamespaceSockets['open']>[0], request: SocketRequest = listen) => {
    const opened = await sockets.open(target, request);
    if (opened.ok) opened.fds.forEach(closeDescriptor);
    return opened.ok ? 'opened' : opened.code;
  };
  assert.equal(await code('/run/netns/pctest-nobody'), 'NAMESPACE_NOT_FOUND');
  assert.equal(await code('/etc/passwd/below'), 'NAMESPACE_NOT_FOUND');
  assert.equal(await code(2 ** 22 + 1), 'NAMESPACE_NOT_FOUND');
  assert.equal(await code('/etc/passwd'), 'NOT_A_NAMESPACE');
  assert.equal(await code('/proc/self/ns/mnt'), 'NOT_A_NAMESPACE');
  assert.equal(await code(fifo), 'NOT_A_NAMESPACE');
  assert.equal(await code(one!.path, { ...listen, host: 'localhost' }), 'SOCKET_FAILED');
  const foreign = await sockets.open(one!.path, { ...listen, host: '192.0.2.1' });
  assert.match(foreign.ok ? '' : foreign.message, /^bind to 192\.0\.2\.1 port 0 in .*EADDRNOTAVAIL/);
  assert.equal(await code(one!.path, { ...listen, host: '192.0.2.1', transparent: true }), 'opened');
  const nowhere = await sockets.open(one!.path, { kind: 'dial', host: '192.0.2.1', port: 80 });
  assert.match(nowhere.ok ? '' : nowhere.message, /^connect to 192\.0\.2\.1 in .*ENETUNREACH/);
});

test('a name that was used again is not the namespace it was', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [first] = await network.addIsolated(['one']);
  const sockets = openSockets(t);
  const before = await sockets.identify(first!.path);
  assert.ok(before.ok);
  const target = { path: first!.path, identity: before.identity };
  const same = await sockets.open(target, listen);
  assert.ok(same.ok && same.identity === before.identity);
  same.fds.forEach(closeDescriptor);
  // The same name, and before long the same inode number, which the kernel gives away again.
  const { ino } = statSync(first!.path);
  for (let i = 0; i < 30; i++) {
    execFileSync('ip', ['netns', 'del', first!.name]);
    execFileSync('ip', ['netns', 'add', first!.name]);
    if (statSync(first!.path).ino === ino) break;
  }
  const other = await sockets.open(target, listen);
  assert.equal(other.ok ? 'opened' : other.code, 'NAMESPACE_CHANGED');
});

test('no descriptor is lost and no thread stays inside, however requests end', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const all = await network.addIsolated(['one', 'two', 'three']);
  const sockets = openSockets(t);
  const own = threadNamespaces();
  // The first program makes a thread's loop open what it keeps.
  assert.ok((await sockets.run(all[0]!.path, 'true', [])).ok);
  const before = descriptors();
  const requests: [SocketRequest, number][] = [
    [listen, 3],
    [{ kind: 'unconnected', family: 6, mark: 7 }, 5],
    [{ kind: 'dial', host: '192.0.2.1', port: 80 }, 2],
    [{ kind: 'dial', host: '127.0.0.1', port: 80, source: { host: '127.0.0.9', port: 0 } }, 2],
    [{ kind: 'listen', host: 'nonsense', port: 1 }, 3],
    // The second cannot have the source port that the first has.
    [{ kind: 'dial', host: '127.0.0.1', port: 80, source: { host: '127.0.0.9', port: 4444 } }, 2],
  ];
  const rounds = Array.from({ length: 100 }, async (_, round) => {
    const [request, count] = requests[round % requests.length]!;
    const path = round % 7 === 0 ? '/run/netns/pctest-nobody' : all[round % 3]!.path;
    const opened = await sockets.open(path, request, count);
    if (opened.ok) assert.equal(opened.fds.filter((fd) => closeDescriptor(fd) === 0).length, count);
    return opened.ok;
  });
  rounds.push(sockets.run(all[0]!.path, 'true', []).then((ended) => ended.ok));
  rounds.push(sockets.run(all[1]!.path, 'pctest-nothing', []).then((ended) => ended.ok));
  const outcomes = await Promise.all(rounds);
  assert.ok(outcomes.includes(true) && outcomes.includes(false));
  assert.equal(descriptors(), before);
  assert.deepEqual(threadNamespaces(), own);
});

test('a closed thread gives everything back and answers what is asked of it later', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const warmUp = new NamespaceSockets();
  await warmUp.identify(one!.path);
  await warmUp.close();
  const before = descriptors();
  const sockets = new NamespaceSockets();
  const running = sockets.spawn(one!.path, 'sleep', ['1000']);
  const pending = sockets.open(one!.path, listen);
  await sockets.close();
  const opened = await pending;
  assert.ok(opened.ok);
  opened.fds.forEach(closeDescriptor);
  assert.equal((await running.ended).ok, false);
  const late = await sockets.open(one!.path, listen);
  assert.equal(late.ok ? 'opened' : late.code, 'CLOSED');
  assert.equal(descriptors(), before);
});

test('an idle thread ends, one with a program inside does not, and the next request has a new one', {
  skip,
}, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const sockets = new NamespaceSockets(5);
  t.after(() => sockets.close());
  const threads = (): number => readdirSync('/proc/self/task').length;
  const before = threads();
  const program = sockets.spawn(one!.path, 'cat', []);
  assert.ok((await sockets.identify(one!.path)).ok);
  // Several times as long as an idle thread is kept: whoever ended it would end the program.
  for (let turn = 0; turn < 5; turn++) await delay(10);
  program.write('still here');
  program.end();
  const ended = await program.ended;
  assert.equal(ended.ok && ended.stdout, 'still here');
  while (threads() > before) await delay(5);
  const opened = await sockets.open(one!.path, listen);
  assert.ok(opened.ok);
  opened.fds.forEach(closeDescriptor);
  while (threads() > before) await delay(5);
});

test('a thread that has no way back ends, and the next request has a new one', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const sockets = openSockets(t);
  const links = () =>
    readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).startsWith('net:');
      } catch {
        return false;
      }
    });
  assert.deepEqual(links(), []);
  await sockets.identify(one!.path);
  const [wayBack] = links();
  closeDescriptor(Number(wayBack));
  const before = descriptors();
  const lost = await sockets.open(one!.path, listen, 3);
  assert.equal(lost.ok ? 'opened' : lost.code, 'THREAD_LOST');
  assert.ok(descriptors() <= before);
  const opened = await sockets.open(one!.path, listen);
  assert.ok(opened.ok);
  opened.fds.forEach(closeDescriptor);
});

test('programs run inside, with input, output and exit code', { skip }, async (t) => {
  const network = await TestNetwork.create(t, {});
  const [one] = await network.addIsolated(['one']);
  const sockets = openSockets(t);
  const own = await sockets.run(process.pid, 'readlink', ['/proc/self/ns/net']);
  const inside = await sockets.run(
    one!.path,
    'sh',
    ['-c', 'readlink /proc/self/ns/net; cat; echo no >&2; exit 3'],
    'in',
  );
  assert.ok(own.ok && inside.ok);
  assert.equal(own.stdout.trim(), readlinkSync('/proc/self/ns/net'));
  const [namespace, input] = inside.stdout.split('\n');
  assert.notEqual(namespace, own.stdout.trim());
  assert.deepEqual([input, inside.stderr, inside.code], ['in', 'no\n', 3]);
});

test('behind TPROXY the local address is the destination', { skip: netnsSkipReason('nft', 'curl') }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['client'], b: ['server'] });
  const { sockets } = openCaptures(t);
  const [client, server] = [network.get('client'), network.get('server')];
  const lookup = new OriginalDestination();
  t.after(() => lookup.close());
  await serveTransparent('0.0.0.0');
  await serveTransparent('::');
  const script = [
    'ip rule add fwmark 1 lookup 100; ip route add local default dev lo table 100',
    'ip -6 rule add fwmark 1 lookup 100; ip -6 route add local default dev lo table 100',
    'nft "add table inet t; add chain inet t c { type filter hook prerouting priority mangle; };' +
      ' add rule inet t c meta l4proto tcp tproxy to :15006 meta mark set 1"',
  ].join('\n');
  assert.equal((await server.run('sh', ['-ec', script])).stderr, '');
  assert.equal(await curl(client, `http://${server.address}:8080/`), `${server.address} 8080`);
  assert.equal(await curl(client, `http://[${server.address6}]:8081/`), `${server.address6} 8081`);

  async function serveTransparent(host: string): Promise<void> {
    const request = { kind: 'listen', host, port: 15006, transparent: true } as const;
    await serveIn(
      t,
      sockets,
      server,
      host,
      15006,
      (socket, fd) => {
        assert.equal(lookup.transparent(fd), 0);
        const bytes = lookup.family === Family.INET6 ? lookup.sockaddr6 : lookup.sockaddr4;
        const { host: to, port } = decodeSockaddr(bytes, 0)!;
        answerHttp(socket, `${to} ${port}`);
      },
      request,
    );
  }
});
