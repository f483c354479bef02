// The networks of these tests themselves.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { netnsSkipReason, removeLeftovers, TestNetwork } from '../../support/netns/network.ts';

const skip = netnsSkipReason('ping');
const networkFile = new URL('../../support/netns/network.ts', import.meta.url).href;

test('workloads of all nodes reach each other over IPv4 and IPv6', { skip }, async (t) => {
  const network = await TestNetwork.create(t, { a: ['one', 'two'], b: ['three'], c: [] });
  const one = network.get('one');
  for (const name of ['two', 'three', 'b', 'c']) {
    const { address, address6 } = network.get(name);
    for (const to of [address, address6]) {
      const ping = await one.run('ping', ['-q', '-c', '1', '-W', '5', to]);
      assert.equal(ping.code, 0, `${name} at ${to}: ${ping.stdout}${ping.stderr}`);
    }
  }
});

test('what a killed run left behind is removed by the next, and nothing else', { skip }, async (t) => {
  const own = await TestNetwork.create(t, { a: ['mine'] });
  const script = `
    import { TestNetwork } from '${networkFile}';
    const network = await TestNetwork.create({ after() {} }, { a: ['lost'] });
    network.get('lost').spawn('sleep', ['1000']);
    console.log('ready');
    setInterval(() => {}, 1000);
  `;
  const run = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => run.kill('SIGKILL'));
  await once(run.stdout, 'data');
  const left = () => readdirSync('/run/netns').filter((name) => name.startsWith(`pctest-${run.pid}-`)).length;
  await removeLeftovers();
  assert.equal(left(), 3);
  run.kill('SIGKILL');
  await once(run, 'exit');
  await removeLeftovers();
  assert.equal(left(), 0);
  assert.equal((await own.get('mine').run('true', [])).code, 0);
});
