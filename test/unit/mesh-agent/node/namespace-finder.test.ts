// Where workloads run: by name, or by their addresses among the processes of the machine.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DiscoveredNamespace } from '../../../../mesh-agent/capture/discovery.ts';
import { HostNamespaces, ipv4Addresses, ipv6Addresses } from '../../../../mesh-agent/node/namespace-finder.ts';
import { workload } from '../control/support.ts';

/** A machine with processes in namespaces of their own, each with these addresses; 1 is that of the host. */
function machine(addresses: Record<number, string[]>): { finder: HostNamespaces; scans: () => number } {
  let scans = 0;
  const list = (): DiscoveredNamespace[] => {
    scans++;
    return Object.keys(addresses).map((pid) => ({
      ...{ path: `/run/netns/ns${pid}`, names: [`ns${pid}`], pids: [Number(pid)], own: pid === '1' },
    }));
  };
  return { finder: new HostNamespaces(list, (pid) => addresses[pid]!), scans: () => scans };
}

test('a workload that names its namespace is there, whatever addresses say', () => {
  const { finder, scans } = machine({ 5: ['10.0.0.1'] });
  const at = (networkNamespace: string) => finder.find(workload('web', { networkNamespace, addresses: ['10.0.0.1'] }));
  assert.deepEqual(at('shop'), { path: '/run/netns/shop' });
  assert.deepEqual(at('/proc/7/ns/net'), { path: '/proc/7/ns/net' });
  assert.ok('problem' in at('../etc/passwd'));
  assert.equal(scans(), 0, 'nothing had to be looked for');
});

test('other workloads are found by any of their addresses, with one look for all of them', () => {
  const { finder, scans } = machine({ 5: ['10.0.0.1', 'fd00::1'], 9: ['10.0.0.2'] });
  const at = (...addresses: string[]) => finder.find(workload('web', { addresses }));
  assert.deepEqual(at('fd00::1', '10.0.0.1'), { path: '/proc/5/ns/net' });
  assert.deepEqual(at('fd00::99', '10.0.0.2'), { path: '/proc/9/ns/net' });
  assert.ok('problem' in at('10.0.0.3'));
  assert.equal(scans(), 1);
  finder.refresh();
  at('10.0.0.1');
  assert.equal(scans(), 2);
});

test('an address that two namespaces have is nobody’s, or one could take the place of the other', () => {
  const { finder } = machine({ 5: ['10.0.0.1'], 6: ['10.0.0.1'], 7: ['10.0.0.7'], 8: ['10.0.0.8'] });
  const problem = (...addresses: string[]) => {
    const found = finder.find(workload('web', { addresses }));
    return 'problem' in found ? found.problem : found.path;
  };
  assert.match(problem('10.0.0.1'), /several network namespaces have 10\.0\.0\.1/);
  assert.match(problem('10.0.0.7', '10.0.0.8'), /several/);
  assert.match(problem('10.0.0.7', '10.0.0.1'), /several/);
});

test('the namespace of the host is no workload’s', () => {
  const { finder } = machine({ 1: ['192.168.0.1'] });
  assert.ok('problem' in finder.find(workload('agent', { addresses: ['192.168.0.1'] })));
});

test('addresses are read from the tables of the kernel', () => {
  const trie = `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.9.1.0/24 2 0 2
        |-- 10.9.1.0
           /24 link UNICAST
        |-- 10.9.1.10
           /32 host LOCAL
        |-- 10.9.1.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
Local:
        |-- 10.9.1.10
           /32 host LOCAL
`;
  assert.deepEqual(ipv4Addresses(trie), ['10.9.1.10']);
  const table = `fd090000000000010000000000000010 02 40 00 80     eth0
fe80000000000000b8f1c4fffe1d2a3b 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
`;
  assert.deepEqual(ipv6Addresses(table), ['fd09:0:0:1::10']);
  assert.deepEqual([ipv4Addresses(''), ipv6Addresses('')], [[], []]);
});
