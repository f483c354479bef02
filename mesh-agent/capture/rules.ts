// The nftables rules of a capture, as data and as text. docs/mesh/capture.md shows them.
//
// Rules look at the first packet of a connection only. A packet of a connection that was open before the rules
// came may look like a first one to connection tracking: such connections stay as they are.
// Every rule has a comment, so that reading back (verify.ts) can name the one that is missing.
// Pure. Source: nft(8).

import { formatInterval, type Interval, type IntervalKind } from './intervals.ts';
import { CAPTURE_MARK, CAPTURE_MARK_MASK, type CaptureSpec, TUNNEL_PORT } from './spec.ts';

/** Intervals that rules refer to by `@name`. */
export interface RuleElements {
  name: string;
  kind: IntervalKind;
  intervals: readonly Interval[];
}

/** One rule: what nft is told, and its comment. */
export interface Rule {
  text: string;
  comment: string;
}

/** A chain with its hook. */
export interface RuleChain {
  name: 'outbound' | 'inbound';
  hook: 'output' | 'prerouting';
  rules: Rule[];
}

/** All that one table holds. */
export interface RuleTable {
  name: string;
  /** Gone with the program that made it. */
  owned: boolean;
  sets: RuleElements[];
  chains: RuleChain[];
}

/** Priority of destination NAT, the name of which older versions do not know in this hook. */
const PRIORITY = -100;

/** Elements of one command: it has to fit into one argument of a program, which is 128 KiB at most. */
const ELEMENTS_MAX = 1000;

const SET_TYPES = { port: 'inet_service', v4: 'ipv4_addr', v6: 'ipv6_addr' } as const;

const hex = (value: number) => `0x${value.toString(16)}`;

const NOT_TCP: Rule = { text: 'meta l4proto != tcp return', comment: 'not TCP' };
const NOT_FIRST: Rule = {
  text: 'tcp flags & (fin|syn|rst|ack) != syn return',
  comment: 'not the start of a connection',
};

/** The rules of a spec. */
export function captureTable(spec: CaptureSpec): RuleTable {
  const sets: RuleElements[] = [];
  const chains = [outboundChain(spec, sets)];
  if (spec.scope.kind === 'namespace' || spec.inboundPorts.length > 0) chains.push(inboundChain(spec, sets));
  return { name: spec.table, owned: spec.failOpen, sets, chains };
}

function outboundChain(spec: CaptureSpec, sets: RuleElements[]): RuleChain {
  const { exclude, scope } = spec;
  const rules: Rule[] = [
    NOT_TCP,
    NOT_FIRST,
    { text: `meta mark & ${hex(CAPTURE_MARK_MASK)} == ${hex(CAPTURE_MARK)} return`, comment: 'of the proxy' },
    { text: 'fib daddr type local return', comment: 'to itself' },
    ...exclusion(sets, 'outbound_ports', 'port', exclude.outboundPorts, 'tcp dport'),
    ...exclusion(sets, 'outbound_v4', 'v4', exclude.outboundV4, 'ip daddr'),
    ...exclusion(sets, 'outbound_v6', 'v6', exclude.outboundV6, 'ip6 daddr'),
  ];
  // A match that cannot be made (no socket, a cgroup less deep) must not capture, so this is no negated return.
  let whose = '';
  if (scope.kind === 'uid') whose = `meta skuid { ${[...new Set(scope.uids)].sort((a, b) => a - b).join(', ')} } `;
  if (scope.kind === 'cgroup') whose = `socket cgroupv2 level ${scope.path.split('/').length} "${scope.path}" `;
  rules.push({ text: `${whose}meta l4proto tcp redirect to :${spec.outboundPort}`, comment: 'capture' });
  return { name: 'outbound', hook: 'output', rules };
}

function inboundChain(spec: CaptureSpec, sets: RuleElements[]): RuleChain {
  const { exclude } = spec;
  const rules: Rule[] = [
    NOT_TCP,
    NOT_FIRST,
    { text: 'iifname "lo" return', comment: 'from itself' },
    { text: 'fib daddr type != local return', comment: 'passing through' },
    { text: `tcp dport ${TUNNEL_PORT} return`, comment: 'tunnels' },
    ...exclusion(sets, 'inbound_ports', 'port', exclude.inboundPorts, 'tcp dport'),
    ...exclusion(sets, 'inbound_v4', 'v4', exclude.inboundV4, 'ip saddr'),
    ...exclusion(sets, 'inbound_v6', 'v6', exclude.inboundV6, 'ip6 saddr'),
  ];
  let which = 'meta l4proto tcp';
  if (spec.scope.kind !== 'namespace') {
    sets.push({ name: 'workload_ports', kind: 'port', intervals: spec.inboundPorts });
    which = 'tcp dport @workload_ports';
  }
  rules.push({ text: `${which} redirect to :${spec.inboundPort}`, comment: 'capture' });
  return { name: 'inbound', hook: 'prerouting', rules };
}

function exclusion(
  sets: RuleElements[],
  name: string,
  kind: IntervalKind,
  intervals: readonly Interval[],
  match: string,
): Rule[] {
  if (intervals.length === 0) return [];
  sets.push({ name, kind, intervals });
  return [{ text: `${match} @${name} return`, comment: `excluded ${name.replace('_', ' ')}` }];
}

/**
 * The commands that put the table in place of an earlier one of its name, one per line. The kernel takes them as
 * one transaction: before it the old rules hold, after it the new, and never anything else.
 */
export function installCommands(table: RuleTable): string[] {
  const name = `inet ${table.name}`;
  const commands = [
    `add table ${name}`,
    `delete table ${name}`,
    table.owned ? `add table ${name} { flags owner; }` : `add table ${name}`,
  ];
  for (const { name: set, kind, intervals } of table.sets) {
    commands.push(`add set ${name} ${set} { type ${SET_TYPES[kind]}; flags interval; }`);
    for (let i = 0; i < intervals.length; i += ELEMENTS_MAX) {
      const elements = intervals.slice(i, i + ELEMENTS_MAX).map((interval) => formatInterval(interval, kind));
      commands.push(`add element ${name} ${set} { ${elements.join(', ')} }`);
    }
  }
  for (const { name: chain, hook, rules } of table.chains) {
    commands.push(`add chain ${name} ${chain} { type nat hook ${hook} priority ${PRIORITY}; policy accept; }`);
    for (const { text, comment } of rules) commands.push(`add rule ${name} ${chain} ${text} comment "${comment}"`);
  }
  return commands;
}

/** The commands that remove a table, whether it is there or not. */
export function removeCommands(table: string): string[] {
  return [`add table inet ${table}`, `delete table inet ${table}`];
}
