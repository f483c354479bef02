import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CaptureInput, parseCapture } from '../../../../mesh-agent/capture/spec.ts';

function faults(input: CaptureInput): string {
  const parsed = parseCapture(input);
  return 'faults' in parsed ? parsed.faults.join('; ') : '';
}

test('a namespace needs nothing but itself, and fails closed', () => {
  const parsed = parseCapture({});
  assert.ok('spec' in parsed);
  const { table, outboundPort, inboundPort, failOpen } = parsed.spec;
  assert.deepEqual([table, outboundPort, inboundPort, failOpen], ['portcullis', 15001, 15006, false]);
});

test('every fault is named, all at once', () => {
  const text = faults({
    outboundPort: 0,
    inboundPort: 15008,
    excludeOutboundPorts: ['80', 'http'],
    excludeInbound: ['10.0.0.0/8', 'localhost'],
  });
  for (const part of [
    'outboundPort: 0',
    '15008 is the port of tunnels',
    '"http" is not a port',
    '"localhost" is not',
  ]) {
    assert.ok(text.includes(part), `${part} in ${text}`);
  }
  assert.match(faults({ outboundPort: 15006 }), /both 15006/);
});

test('workloads of a host need a name of their own', () => {
  const uid = { kind: 'uid', uids: [1000] } as const;
  assert.match(faults({ scope: uid }), /^name: /);
  assert.match(faults({ scope: uid, name: 'a b' }), /^name: /);
  assert.match(faults({ scope: uid, name: '"; flush ruleset; "' }), /^name: /);
  assert.equal(faults({ scope: uid, name: 'shop' }), '');
  assert.match(faults({ name: 'shop' }), /a namespace has one table/);
  assert.match(faults({ inboundPorts: ['80'] }), /all ports are captured/);
});

test('users and cgroups that would capture too much or slip into the rules are refused', () => {
  const user = (...uids: number[]) => faults({ scope: { kind: 'uid', uids }, name: 'shop' });
  assert.match(user(), /at least one/);
  assert.match(user(0), /use a cgroup/);
  assert.match(user(1.5), /not a user id/);
  assert.match(user(2 ** 32 - 1), /not a user id/);
  const group = (path: string) => faults({ scope: { kind: 'cgroup', path }, name: 'shop' });
  assert.equal(group('system.slice/shop@1.service'), '');
  for (const path of ['', '/a', 'a//b', 'a/../b', 'a"b', 'a b', 'a;b', 'a\nb'])
    assert.match(group(path), /not a path/, path);
});

test('lists have a bound', () => {
  const many = Array.from({ length: 4097 }, (_, i) => String(i * 2 + 1));
  assert.equal(faults({ excludeOutboundPorts: many.slice(1) }), '');
  assert.match(faults({ excludeOutboundPorts: many }), /4096 is the most/);
});
