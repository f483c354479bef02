// Ports and addresses as intervals of integers: lists from people become sorted and disjoint, as nftables wants
// them, and two lists compare by what they contain, however they are written.
// Pure.

import { isIP } from 'node:net';
import { encodeSockaddr } from '../../core/ffi/sockaddr.ts';

/** An inclusive range. */
export interface Interval {
  first: bigint;
  last: bigint;
}

/** What the integers stand for. */
export type IntervalKind = 'port' | 'v4' | 'v6';

const BITS = { port: 16, v4: 32, v6: 128 } as const;

/** Sorted, overlapping and adjacent ones joined. */
export function mergeIntervals(intervals: readonly Interval[]): Interval[] {
  const sorted = [...intervals].sort((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0));
  const merged: Interval[] = [];
  for (const { first, last } of sorted) {
    const previous = merged.at(-1);
    if (previous !== undefined && first <= previous.last + 1n) {
      if (last > previous.last) previous.last = last;
    } else {
      merged.push({ first, last });
    }
  }
  return merged;
}

/**
 * One port or address, a prefix (`10.0.0.0/8`), or a range (`1000-2000`, `10.0.0.1-10.0.0.9`). Bits of a prefix's
 * address beyond its length do not count. Undefined: not of this kind.
 */
export function parseInterval(text: string, kind: IntervalKind): Interval | undefined {
  const [left, right, extra] = text.trim().split('-');
  if (extra !== undefined) return undefined;
  if (right !== undefined) {
    const first = parseValue(left!, kind);
    const last = parseValue(right, kind);
    return first === undefined || last === undefined || last < first ? undefined : { first, last };
  }
  const [value, length, more] = left!.split('/');
  const first = parseValue(value!, kind);
  if (first === undefined || more !== undefined) return undefined;
  if (length === undefined) return { first, last: first };
  if (kind === 'port' || !/^\d{1,3}$/.test(length) || Number(length) > BITS[kind]) return undefined;
  const size = 1n << BigInt(BITS[kind] - Number(length));
  const start = (first / size) * size;
  return { first: start, last: start + size - 1n };
}

/** The kind of an address or prefix; undefined when it is neither. */
export function addressKind(text: string): 'v4' | 'v6' | undefined {
  const version = isIP(text.split(/[/-]/)[0]!.trim());
  return version === 0 ? undefined : version === 4 ? 'v4' : 'v6';
}

/** An interval as nftables and `parseInterval` read it. */
export function formatInterval({ first, last }: Interval, kind: IntervalKind): string {
  if (first === last) return formatValue(first, kind);
  const size = last - first + 1n;
  const isPrefix = kind !== 'port' && (size & (size - 1n)) === 0n && first % size === 0n;
  if (isPrefix) return `${formatValue(first, kind)}/${BITS[kind] - (size.toString(2).length - 1)}`;
  return `${formatValue(first, kind)}-${formatValue(last, kind)}`;
}

function parseValue(text: string, kind: IntervalKind): bigint | undefined {
  if (kind === 'port') return /^\d{1,5}$/.test(text) && Number(text) <= 0xffff ? BigInt(text) : undefined;
  if (isIP(text) !== (kind === 'v4' ? 4 : 6) || text.includes('%')) return undefined;
  const bytes = encodeSockaddr(text, 0)!;
  const address = kind === 'v4' ? bytes.subarray(4, 8) : bytes.subarray(8, 24);
  return BigInt(`0x${Buffer.from(address).toString('hex')}`);
}

function formatValue(value: bigint, kind: IntervalKind): string {
  if (kind === 'port') return String(value);
  const hex = value.toString(16).padStart(BITS[kind] / 4, '0');
  if (kind === 'v4')
    return hex
      .match(/../g)!
      .map((byte) => Number.parseInt(byte, 16))
      .join('.');
  return hex.match(/.{4}/g)!.join(':');
}
