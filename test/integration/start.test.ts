// Starting: what serves, and what is said when the machine does not allow it.

import assert from 'node:assert/strict';
import { chmodSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  freePort,
  get,
  namedUpstream,
  OWN_HOST,
  portcullis,
  simpleConfig,
  start,
  startGateway,
  temporaryDirectory,
} from './support.ts';

async function takenServer(host: string): Promise<Server> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  return server;
}

async function takenPort(t: import('node:test').TestContext): Promise<number> {
  const server = await takenServer('127.0.0.1');
  t.after(() => server.close());
  return (server.address() as { port: number }).port;
}

test('a gateway answers from its upstream, and DNS names of endpoints are resolved', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const config = simpleConfig(upstream).replace(`127.0.0.1:${upstream}`, `localhost:${upstream}`);
  const gateway = startGateway(t, config);
  const answer = await get(await gateway.port(), '/x');
  assert.equal(answer.status, 200);
  assert.equal(answer.body, 'hello');
});

test('the demo prints what runs and commands that work', async (t) => {
  const demo = start(t, ['run'], { env: { PORT: '0', ADMIN_PORT: '0' } });
  await demo.printed(/Ctrl-C stops/);
  const commands = [...demo.stdout.matchAll(/^ {2}curl (?:-H 'Host: (\S+)' )?http:\/\/127\.0\.0\.1:(\d+)(\S+)/gm)];
  assert.equal(commands.length, 3);
  const answers = [];
  for (const [, host, port, path] of commands) {
    const { status, body } = await get(Number(port), path, false, host === undefined ? {} : { host });
    assert.equal(status, 200);
    answers.push(body);
  }
  assert.match(answers[0]!, /^(blue|green) answers GET \/ /);
  assert.match(answers[1]!, /^green answers GET \/green\/hello /);
  assert.match(answers[2]!, /^green answers GET \/ for green\.example/);

  const port = Number(commands[0]![2]);
  const tally = { blue: 0, green: 0 };
  for (let i = 0; i < 40; i++) tally[(await get(port)).body.split(' ')[0] as 'blue' | 'green']++;
  // Each worker has its own rotation of four, so the shares are exact to within one round each.
  assert.ok(tally.blue >= 24 && tally.green >= 4, `blue ${tally.blue}, green ${tally.green}`);
});

test('the demo on a taken port says how to choose another one', async (t) => {
  const port = await takenPort(t);
  const { code, stderr } = await start(t, ['run'], { env: { PORT: String(port), ADMIN_PORT: '0' } }).finished;
  assert.equal(code, 3);
  assert.match(stderr, new RegExp(`cannot listen on 127\\.0\\.0\\.1:${port} for listener http: another process`));
  assert.match(stderr, /PORT=8081 ADMIN_PORT=9902 \.\/portcullis run/);
});

test('a taken port is one sentence and exit code 3', async (t) => {
  const port = await takenPort(t);
  const gateway = startGateway(
    t,
    simpleConfig(9).replace('address: "127.0.0.1:0"}]', `address: "127.0.0.1:${port}"}]`),
  );
  const { code, stderr } = await gateway.finished;
  assert.equal(code, 3);
  assert.equal(
    stderr,
    `portcullis: cannot listen on 127.0.0.1:${port} for listener http: another process already listens there.\n`,
  );
});

test('a second gateway does not share the port of the first', async (t) => {
  const first = startGateway(t, simpleConfig(9));
  const port = await first.port();
  const second = startGateway(t, simpleConfig(9).replace('address: "127.0.0.1:0"}]', `address: "127.0.0.1:${port}"}]`));
  const { code, stderr } = await second.finished;
  assert.equal(code, 3);
  assert.match(stderr, /another process already listens there/);
});

test('a taken admin port is one sentence and exit code 3', async (t) => {
  const port = await takenPort(t);
  const gateway = startGateway(
    t,
    simpleConfig(9).replace('admin: {address: "127.0.0.1:0"}', `admin: {address: "127.0.0.1:${port}"}`),
  );
  const { code, stderr } = await gateway.finished;
  assert.equal(code, 3);
  assert.match(stderr, new RegExp(`^portcullis: cannot listen on 127\\.0\\.0\\.1:${port} for the admin port: `, 'm'));
});

test('an address of another machine is refused with a sentence', async (t) => {
  const gateway = startGateway(t, simpleConfig(9).replace('address: "127.0.0.1:0"}]', 'address: "192.0.2.1:8080"}]'));
  const { code, stderr } = await gateway.finished;
  assert.equal(code, 3);
  assert.match(stderr, /192\.0\.2\.1:8080 for listener http: this machine does not have that address\.$/m);
});

test('a port without permission is refused with a sentence', async (t) => {
  const firstFree = Number(readFileSync('/proc/sys/net/ipv4/ip_unprivileged_port_start', 'utf8'));
  if (firstFree <= 79) return t.skip('this machine lets everybody listen on low ports');
  const directory = temporaryDirectory(t);
  chmodSync(directory, 0o755);
  const file = join(directory, 'gateway.yaml');
  writeFileSync(file, simpleConfig(9).replace('address: "127.0.0.1:0"}]', 'address: "127.0.0.1:79"}]'));
  let uid: number | undefined;
  if (process.getuid!() === 0) {
    uid = 65_534;
    if ((statSync(portcullis).mode & 0o005) !== 0o005) return t.skip('another user cannot run the launcher');
  }
  const { code, stderr } = await start(t, ['run', '--config', file], uid === undefined ? {} : { uid }).finished;
  assert.equal(code, 3, stderr);
  assert.match(stderr, /cannot listen on 127\.0\.0\.1:79 for listener http: no permission/);
});

test('too few file descriptors are one sentence and exit code 5', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, simpleConfig(9));
  const running = start(t, ['-c', `ulimit -n 200; exec "${portcullis}" run --config "${file}"`], {
    command: '/bin/sh',
  });
  const { code, stderr } = await running.finished;
  assert.equal(code, 5);
  assert.match(stderr, /^portcullis: too few file descriptors: .* the limit is 200 \(.*\)\.$/m);
  assert.equal(stderr.split('\n').length, 2);
});

test('an access log that cannot be written is one sentence', async (t) => {
  // Looking shows nothing wrong with it; opening does.
  const link = join(temporaryDirectory(t), 'access.log');
  symlinkSync('/nonexistent/access.log', link);
  const { code, stderr } = await startGateway(t, simpleConfig(9, `accessLog: {path: ${link}}`)).finished;
  assert.equal(code, 1);
  assert.equal(
    stderr,
    `portcullis: cannot write the access log ${link}: it is a symbolic link into a directory that does not exist.\n`,
  );
});

test('a start with a broken file shows its first errors and says how many more there are', async (t) => {
  const listeners = Array.from({ length: 30 }, (_, index) => `{name: l${index}, address: "${index}"}`).join(', ');
  const { code, stderr } = await startGateway(t, `listeners: [${listeners}]\nroutes: []\nbackends: []\n`).finished;
  assert.equal(code, 1);
  const lines = stderr.trimEnd().split('\n');
  assert.equal(lines.length, 22);
  assert.match(lines[19]!, /gateway\.yaml:1:\d+: listeners\[19\]\.address: /);
  assert.equal(lines[20], 'and 10 more errors; `portcullis check` shows them');
});

test('of several listeners on one port the most specific address takes a connection', async (t) => {
  const [every, one] = [await namedUpstream(t, 'every'), await namedUpstream(t, 'one')];
  const config = (port: number): string => `
workers: 2
admin: off
listeners: [{name: every, address: ":${port}"}, {name: one, address: "127.0.0.1:${port}"}]
routes:
  - {name: every, listeners: [every], rules: [{backendRefs: [{name: every}]}]}
  - {name: one, listeners: [one], rules: [{backendRefs: [{name: one}]}]}
backends: [{name: every, endpoints: ["127.0.0.1:${every}"]}, {name: one, endpoints: ["127.0.0.1:${one}"]}]
`;
  let port = 0;
  // The port is given back before it is taken again: somebody else may have been faster.
  for (let tries = 0; port === 0; tries++) {
    const taken = await takenServer('0.0.0.0');
    const free = (taken.address() as { port: number }).port;
    await new Promise((resolve) => taken.close(resolve));
    const gateway = startGateway(t, config(free));
    const serves = await gateway.serving().then(
      () => true,
      () => false,
    );
    if (serves) port = free;
    else assert.ok(tries < 3 && /another process already listens/.test(gateway.stderr), gateway.stderr);
  }
  for (let i = 0; i < 20; i++) {
    assert.equal((await get(port)).body, 'one');
    assert.equal((await get(port, '/', false, {}, '127.0.0.2')).body, 'every');
  }
});

test('an endpoint that cannot be reached is logged once, and once more when it works', async (t) => {
  const endpoint = await freePort();
  const gateway = startGateway(t, simpleConfig(endpoint).replace(`127.0.0.1:${endpoint}`, `${OWN_HOST}:${endpoint}`));
  const port = await gateway.port();
  for (let i = 0; i < 10; i++) assert.equal((await get(port)).status, 503);
  const cause = 'cause="connection refused \\(ECONNREFUSED\\)"';
  await gateway.log(new RegExp(`warn endpoint fails endpoint=${OWN_HOST}:${endpoint} backend=app ${cause}$`));
  const upstream = createHttpServer((_, response) => response.end('back'));
  t.after(() => {
    upstream.close();
    upstream.closeAllConnections();
  });
  await new Promise<void>((resolve) => upstream.listen(endpoint, OWN_HOST, resolve));
  // Until a worker that has seen it fail has a request for it.
  const working = gateway.log(new RegExp(`info endpoint works again endpoint=${OWN_HOST}:${endpoint} backend=app$`));
  let said = false;
  const end = (): void => {
    said = true;
  };
  void working.then(end, end);
  while (!said) assert.equal((await get(port)).body, 'back');
  await working;
  assert.equal(gateway.stderr.match(/endpoint fails/g)?.length, 1);
});
