// Where workloads run: by name, or by their addresses among the processes of the machine.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type DiscoveredNamespace, podOfCgroups } from '../../../../mesh-agent/capture/discovery.ts';
import { HostNamespaces, ipv4Addresses, ipv6Addresses } from '../../../../mesh-agent/node/namespace-finder.ts';
import { workload } from '../control/support.ts';

/** A machine with processes in namespaces of their own, each with these addresses; 1 is that of the host. */
function machine(
  addresses: Record<number, string[]>,
  pods: Record<number, string> = {},
  joined: Record<number, number[]> = {},
): { finder: HostNamespaces; scans: () => number } {
  let scans = 0;
  const list = (): DiscoveredNamespace[] => {
    scans++;
    return Object.keys(addresses).map((pid) => ({
      ...{ inode: `40${pid}`, path: `/run/netns/ns${pid}`, names: [`ns${pid}`], own: pid === '1' },
      pids: [Number(pid), ...(joined[Number(pid)] ?? [])],
    }));
  };
  const finder = new HostNamespaces({
    list,
    addressesOf: (pid) => addresses[pid]!,
    namespaceOf: (pid) => `40${pid}`,
    podOf: (pid) => pods[pid],
  });
  return { finder, scans: () => scans };
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
  assert.deepEqual(at('fd00::1', '10.0.0.1'), { path: '/proc/5/ns/net', inode: '405' });
  assert.deepEqual(at('fd00::99', '10.0.0.2'), { path: '/proc/9/ns/net', inode: '409' });
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

test('a pod is where its control groups are, whoever else has its address', () => {
  const [cart, thief] = ['1b4e28ba-2fa1-11d2-883f-0016d3cca427', '1b4e28ba-2fa1-11d2-883f-0016d3cca428'];
  const { finder } = machine(
    { 5: ['10.0.0.1'], 6: ['10.0.0.1', '10.0.0.2'], 7: ['10.0.0.7'] },
    { 5: cart!, 6: thief! },
  );
  const at = (address: string, podUid: string) => finder.find(workload('web', { addresses: [address], podUid }));
  assert.deepEqual(at('10.0.0.1', cart!), { path: '/proc/5/ns/net', inode: '405' });
  // Its own namespace has gone, and somebody has taken its address.
  assert.match(JSON.stringify(at('10.0.0.2', cart!)), /another pod's/);
  // Where control groups say nothing, addresses alone do.
  assert.deepEqual(at('10.0.0.7', cart!), { path: '/proc/7/ns/net', inode: '407' });
});

test('a process of another pod that has joined does not hide whose namespace it is', () => {
  const [cart, debug] = ['1b4e28ba-2fa1-11d2-883f-0016d3cca427', '1b4e28ba-2fa1-11d2-883f-0016d3cca428'];
  const { finder } = machine({ 5: ['10.0.0.1'] }, { 5: debug!, 12: cart! }, { 5: [12] });
  const found = finder.find(workload('web', { addresses: ['10.0.0.1'], podUid: cart! }));
  assert.deepEqual(found, { path: '/proc/5/ns/net', inode: '405' });
});

test('the pod of a process is read from its control groups, as either driver names them', () => {
  const uid = '1b4e28ba-2fa1-11d2-883f-0016d3cca427';
  const systemd = uid.replaceAll('-', '_');
  for (const text of [
    `0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${systemd}.slice/cri-containerd-ab12.scope\n`,
    `0::/../../kubepods-besteffort-pod${systemd}.slice/cri-containerd-ab12.scope\n`,
    `12:memory:/kubepods/besteffort/pod${uid}/ab12\n0::/\n`,
    `0::/kubepods/pod${uid}`,
  ]) {
    assert.equal(podOfCgroups(text), uid, text);
  }
  for (const text of ['0::/\n', '0::/user.slice\n', `0::/kubepods/pod${uid}0/ab\n`, '0::/kubepods/podabc/ab\n']) {
    assert.equal(podOfCgroups(text), undefined, text);
  }
});

test('a process whose number another one has by now says nothing of a namespace; others in it do', () => {
  const list = (): DiscoveredNamespace[] => [
    { inode: '400', path: '/proc/5/ns/net', names: [], pids: [5, 6], own: false },
    { inode: '401', path: '/proc/7/ns/net', names: [], pids: [7], own: false },
  ];
  // 5 was a process of the first namespace when the list was made.
  const namespaces: Record<number, string> = { 5: '401', 6: '400', 7: '401' };
  const addresses: Record<string, string[]> = { 400: ['10.0.0.1'], 401: ['10.0.0.2'] };
  const finder = new HostNamespaces({
    list,
    addressesOf: (pid) => addresses[namespaces[pid]!]!,
    namespaceOf: (pid) => namespaces[pid],
    podOf: () => undefined,
  });
  const at = (address: string) => finder.find(workload('web', { addresses: [address] }));
  assert.deepEqual(at('10.0.0.1'), { path: '/proc/6/ns/net', inode: '400' });
  assert.deepEqual(at('10.0.0.2'), { path: '/proc/7/ns/net', inode: '401' });
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
