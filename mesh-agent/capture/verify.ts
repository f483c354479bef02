// Reading back: whether the rules in the kernel are the ones that were meant.
//
// nft prints rules in its own words, which differ between its versions (`tcp flags & (fin | syn) != syn` comes back
// as `tcp flags != syn / fin,syn`). So rules compare by place, comment and the words and numbers in them, and sets
// by what they contain; additions by somebody else count as differences. Where there is no /etc/protocols, as in the
// smaller images of containers, TCP is a number.
// Pure.

import { type IntervalKind, mergeIntervals, parseInterval } from './intervals.ts';
import type { RuleElements, RuleTable } from './rules.ts';

interface ReadChain {
  head: string;
  rules: string[];
}

/**
 * What is different in `nft --stateless list table` (with numeric priorities) of a table: one sentence each; none:
 * it is as it should be.
 */
export function differences(table: RuleTable, listing: string): string[] {
  const { flags, sets, chains } = readListing(listing);
  const found: string[] = [];
  // `dormant` would switch all of it off.
  if (flags !== (table.owned ? 'owner' : '')) found.push(`the table has the flags "${flags}"`);
  for (const name of sets.keys()) {
    if (!table.sets.some((set) => set.name === name)) found.push(`set ${name} is not ours`);
  }
  for (const set of table.sets) {
    const read = sets.get(set.name);
    if (read === undefined) found.push(`set ${set.name} is missing`);
    else if (!sameElements(set, read)) found.push(`set ${set.name} has other elements`);
  }
  for (const name of chains.keys()) {
    if (!table.chains.some((chain) => chain.name === name)) found.push(`chain ${name} is not ours`);
  }
  for (const chain of table.chains) {
    const read = chains.get(chain.name);
    if (read === undefined) {
      found.push(`chain ${chain.name} is missing`);
      continue;
    }
    if (words(read.head) !== words(`type nat hook ${chain.hook} priority -100; policy accept;`)) {
      found.push(`chain ${chain.name} is attached otherwise: ${read.head}`);
    }
    const { rules } = chain;
    for (let i = 0; i < Math.max(rules.length, read.rules.length); i++) {
      const rule = rules[i];
      const given = read.rules[i];
      if (rule === undefined) found.push(`chain ${chain.name} has a rule too many: ${given}`);
      else if (given === undefined) found.push(`chain ${chain.name} lacks "${rule.comment}"`);
      else if (words(given) !== words(`${rule.text} comment "${rule.comment}"`)) {
        found.push(`chain ${chain.name} has another rule in place of "${rule.comment}": ${given}`);
      }
    }
  }
  return found;
}

/** Words and numbers of a rule, each once, in one order; joining signs do not count. */
function words(text: string): string {
  const [body, comment] = text.split(/ comment (?=")/);
  const named = body!.replace(/\bl4proto (!= )?6\b/g, 'l4proto $1tcp');
  const all = named.match(/"[^"]*"|!=|==|@?[\w.:-]+(?:\/\d+)?/g) ?? [];
  const plain = all
    .filter((word) => word !== '==')
    .map((word) => (/^0x[0-9a-f]+$/.test(word) ? String(Number(word)) : word));
  return `${[...new Set(plain)].sort().join(' ')} ${comment ?? ''}`;
}

function sameElements(set: RuleElements, read: string): boolean {
  return elementText(set.kind, read.split(',')) === elementText(set.kind, set.intervals);
}

function elementText(kind: IntervalKind, elements: readonly (string | { first: bigint; last: bigint })[]): string {
  const intervals = elements.map((element) => (typeof element === 'string' ? parseInterval(element, kind) : element));
  if (intervals.includes(undefined)) return 'unreadable';
  return mergeIntervals(intervals as { first: bigint; last: bigint }[])
    .map(({ first, last }) => `${first}-${last}`)
    .join();
}

/** The parts of a listing: blocks by indentation, as nft has printed them since its first versions. */
function readListing(listing: string): { flags: string; sets: Map<string, string>; chains: Map<string, ReadChain> } {
  const sets = new Map<string, string>();
  const chains = new Map<string, ReadChain>();
  const flags = /^\tflags ([^\n;]*)/m.exec(listing)?.[1]?.trim() ?? '';
  for (const [, kind, name, body] of listing.matchAll(/^\t(set|chain) (\S+) \{\n([\s\S]*?)^\t\}/gm)) {
    if (kind === 'set') {
      sets.set(name!, /elements = \{([^}]*)\}/.exec(body!)?.[1] ?? '');
      continue;
    }
    const lines = body!
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '');
    const head = lines[0]?.startsWith('type ') ? lines.shift()! : '';
    chains.set(name!, { head, rules: lines });
  }
  return { flags, sets, chains };
}
