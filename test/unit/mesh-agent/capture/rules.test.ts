import assert from 'node:assert/strict';
import { test } from 'node:test';
import { captureTable, installCommands } from '../../../../mesh-agent/capture/rules.ts';
import { type CaptureInput, parseCapture } from '../../../../mesh-agent/capture/spec.ts';
import { differences } from '../../../../mesh-agent/capture/verify.ts';

function tableOf(input: CaptureInput) {
  const parsed = parseCapture(input);
  assert.ok('spec' in parsed);
  return captureTable(parsed.spec);
}

const INPUT: CaptureInput = { excludeOutboundPorts: ['22', '9000-9001'], excludeOutbound: ['10.0.0.0/8', 'fd00::/8'] };

/** What nft 1.0.6 prints of it. */
const LISTING = `table inet portcullis {
	set outbound_ports {
		type inet_service
		flags interval
		elements = { 22, 9000-9001 }
	}

	set outbound_v4 {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8 }
	}

	set outbound_v6 {
		type ipv6_addr
		flags interval
		elements = { fd00::/8 }
	}

	chain outbound {
		type nat hook output priority -100; policy accept;
		meta l4proto != tcp return comment "not TCP"
		tcp flags != syn / fin,syn,rst,ack return comment "not the start of a connection"
		meta mark & 0x00000fff == 0x00000539 return comment "of the proxy"
		fib daddr type local return comment "to itself"
		tcp dport @outbound_ports return comment "excluded outbound ports"
		ip daddr @outbound_v4 return comment "excluded outbound v4"
		ip6 daddr @outbound_v6 return comment "excluded outbound v6"
		meta l4proto tcp redirect to :15001 comment "capture"
	}

	chain inbound {
		type nat hook prerouting priority -100; policy accept;
		meta l4proto != tcp return comment "not TCP"
		tcp flags != syn / fin,syn,rst,ack return comment "not the start of a connection"
		iifname "lo" return comment "from itself"
		fib daddr type != local return comment "passing through"
		tcp dport 15008 return comment "tunnels"
		meta l4proto tcp redirect to :15006 comment "capture"
	}
}
`;

test('the transaction replaces the table by one with these rules', () => {
  const commands = installCommands(
    tableOf({ scope: { kind: 'uid', uids: [1001, 1000, 1001] }, name: 'shop', inboundPorts: ['80'] }),
  );
  assert.deepEqual(commands.slice(0, 3), [
    'add table inet portcullis_shop',
    'delete table inet portcullis_shop',
    'add table inet portcullis_shop',
  ]);
  assert.ok(
    commands.includes(
      'add rule inet portcullis_shop outbound meta skuid { 1000, 1001 } meta l4proto tcp redirect to :15001 comment "capture"',
    ),
  );
  assert.equal(
    commands.at(-1),
    'add rule inet portcullis_shop inbound tcp dport @workload_ports redirect to :15006 comment "capture"',
  );
});

test('an open capture is owned, a workload without ports has no inbound chain', () => {
  const table = tableOf({ scope: { kind: 'cgroup', path: 'a.slice/b' }, name: 'b', failOpen: true });
  assert.equal(installCommands(table)[2], 'add table inet portcullis_b { flags owner; }');
  assert.deepEqual(
    table.chains.map((chain) => chain.name),
    ['outbound'],
  );
  assert.match(table.chains[0]!.rules.at(-1)!.text, /^socket cgroupv2 level 2 "a\.slice\/b" /);
});

test('an argument of nft never grows beyond what the kernel takes', () => {
  const addresses = Array.from({ length: 4000 }, (_, i) => `fd00::${i.toString(16)}:1-fd00::${i.toString(16)}:5`);
  const commands = installCommands(tableOf({ excludeOutbound: addresses }));
  assert.ok(commands.every((command) => command.length < 128 * 1024));
  assert.equal(commands.join().match(/-fd00/g)!.length, 4000);
});

test('rules that nft prints in its own words are recognised', () => {
  assert.deepEqual(differences(tableOf(INPUT), LISTING), []);
  // Other versions.
  const other = LISTING.replaceAll('!= syn / fin,syn,rst,ack', '& (fin | syn | rst | ack) != syn')
    .replaceAll('0x00000', '0x')
    .replace('10.0.0.0/8', '10.0.0.0-10.255.255.255');
  assert.deepEqual(differences(tableOf(INPUT), other), []);
  // Where there is no /etc/protocols.
  const numeric = LISTING.replaceAll('l4proto tcp', 'l4proto 6').replaceAll('l4proto != tcp', 'l4proto != 6');
  assert.notEqual(numeric, LISTING);
  assert.deepEqual(differences(tableOf(INPUT), numeric), []);
});

test('any other rule, verdict, number, place or element is a difference', () => {
  const changes: [string, string][] = [
    ['redirect to :15001', 'redirect to :15002'],
    ['0x00000539', '0x00000538'],
    ['\t\tfib daddr type local return comment "to itself"\n', ''],
    ['fib daddr type != local', 'fib daddr type local'],
    ['iifname "lo" return', 'iifname "eth0" return'],
    ['iifname "lo" return', 'iifname "lo" accept'],
    ['meta l4proto tcp redirect to :15006', 'meta l4proto tcp accept'],
    ['meta l4proto tcp redirect to :15006', 'meta l4proto 17 redirect to :15006'],
    ['hook prerouting', 'hook input'],
    ['priority -100; policy accept;\n\t\tmeta', 'priority 100; policy accept;\n\t\tmeta'],
    ['policy accept', 'policy drop'],
    ['{ 22, 9000-9001 }', '{ 22, 9000-9002 }'],
    ['{ fd00::/8 }', '{ fd00::/7 }'],
    ['table inet portcullis {\n', 'table inet portcullis {\n\tflags dormant\n\n'],
    ['table inet portcullis {\n', 'table inet portcullis {\n\tflags owner\n\n'],
    ['comment "capture"\n', 'comment "capture"\n\t\tudp dport 53 drop\n'],
    ['\tchain inbound {', '\tchain more {\n\t}\n\n\tchain inbound {'],
  ];
  for (const [from, to] of changes) {
    const changed = LISTING.replace(from, to);
    assert.notEqual(changed, LISTING, from);
    assert.notDeepEqual(differences(tableOf(INPUT), changed), [], `${from} -> ${to}`);
  }
  assert.equal(differences(tableOf(INPUT), '').length, 5);
});
