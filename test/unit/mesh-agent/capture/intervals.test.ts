import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  addressKind,
  formatInterval,
  type IntervalKind,
  mergeIntervals,
  parseInterval,
} from '../../../../mesh-agent/capture/intervals.ts';

function normal(kind: IntervalKind, ...texts: string[]): string {
  const intervals = texts.map((text) => parseInterval(text, kind)!);
  return mergeIntervals(intervals)
    .map((interval) => formatInterval(interval, kind))
    .join(' ');
}

test('overlapping and adjacent ports and addresses are joined', () => {
  assert.equal(normal('port', '443', '80', '81-90', '85-100', '0'), '0 80-100 443');
  assert.equal(normal('v4', '10.128.0.0/9', '10.0.0.0/9'), '10.0.0.0/8');
  assert.equal(normal('v4', '192.168.1.7', '192.168.1.6', '192.168.1.8'), '192.168.1.6-192.168.1.8');
  assert.equal(normal('v6', 'fd00::1', 'fd00::/64'), 'fd00:0000:0000:0000:0000:0000:0000:0000/64');
});

test('a prefix covers the addresses that share its bits, whatever else is written', () => {
  assert.equal(normal('v4', '10.1.2.3/8'), '10.0.0.0/8');
  assert.equal(normal('v4', '0.0.0.0/0'), '0.0.0.0/0');
  assert.equal(normal('v4', '10.0.0.1/32'), '10.0.0.1');
  assert.equal(normal('v6', '::/0'), '0000:0000:0000:0000:0000:0000:0000:0000/0');
  assert.equal(normal('v6', '::ffff:10.0.0.1'), '0000:0000:0000:0000:0000:ffff:0a00:0001');
});

test('what is not of the kind is refused', () => {
  const refused: [IntervalKind, string][] = [
    ['port', '65536'],
    ['port', '-1'],
    ['port', '90-80'],
    ['port', '1-2-3'],
    ['port', '80/8'],
    ['port', ''],
    ['port', '0x50'],
    ['v4', '10.0.0.0/33'],
    ['v4', '10.0.0.0/'],
    ['v4', '10.0.0'],
    ['v4', 'fd00::1'],
    ['v6', '10.0.0.1'],
    ['v6', 'fe80::1%eth0'],
    ['v6', 'fd00::/129'],
    ['v4', '10.0.0.1/8/8'],
  ];
  for (const [kind, text] of refused) assert.equal(parseInterval(text, kind), undefined, `${kind} ${text}`);
  assert.deepEqual(['10.0.0.0/8', 'fd00::/8', '10.0.0.1-10.0.0.9', 'name'].map(addressKind), [
    'v4',
    'v6',
    'v4',
    undefined,
  ]);
});
