// Rules of captures through iptables over nf_tables, where `nft` itself is not installed.
//
// The same rules in the older language. One transaction per address family: IPv4 first, and when IPv6 is refused
// IPv4 is taken back. No owned tables, so no `failOpen`.
// Source: iptables-restore(8), iptables-extensions(8).

import { createHash } from 'node:crypto';
import type { NamespaceSockets, NamespaceTarget } from '../../core/ffi/netns.ts';
import { type CaptureDone, type CaptureFailure, type CaptureStatus, captureFailure, fromNamespace } from './backend.ts';
import { addressKind, formatInterval, type Interval, parseInterval } from './intervals.ts';
import { CAPTURE_MARK, CAPTURE_MARK_MASK, type CaptureSpec, TUNNEL_PORT } from './spec.ts';

/** The programs of one address family. */
export interface FamilyPrograms {
  family: 'v4' | 'v6';
  restore: string;
  save: string;
}

/** A chain of ours, the hook that jumps to it, and its rules without `-A CHAIN`. */
interface FilterChain {
  name: string;
  hook: 'OUTPUT' | 'PREROUTING';
  rules: string[];
}

const MARK = `0x${CAPTURE_MARK.toString(16)}/0x${CAPTURE_MARK_MASK.toString(16)}`;

/** Installs, removes and compares chains. Calls for one table are made one after another (capture.ts). */
export class IptablesBackend {
  private readonly sockets: NamespaceSockets;
  private readonly families: readonly FamilyPrograms[];

  /** Programs of IPv4 and IPv6, in the order in which they are to run. */
  constructor(sockets: NamespaceSockets, families: readonly FamilyPrograms[]) {
    this.sockets = sockets;
    this.families = families;
  }

  /** Compares what is there with the spec. */
  async status(target: NamespaceTarget, spec: CaptureSpec): Promise<CaptureStatus | CaptureFailure> {
    const found: string[] = [];
    let isAbsent = true;
    for (const programs of this.families) {
      const saved = await this.save(target, programs);
      if (!Array.isArray(saved)) return saved;
      for (const chain of filterChains(spec, programs.family)) {
        const ours = saved.filter((line) => line.split(' ').includes(chain.name));
        if (ours.length > 0) isAbsent = false;
        const expected = [jump(chain), ...chain.rules.map((rule) => `-A ${chain.name} ${rule}`)].map(words);
        const given = ours.map(words);
        if (expected.join('\n') !== given.join('\n'))
          found.push(`the ${programs.family} rules of ${chain.name} differ`);
      }
    }
    if (isAbsent) return { ok: true, state: 'absent', differences: [] };
    return { ok: true, state: found.length === 0 ? 'installed' : 'differs', differences: found };
  }

  /** Puts the rules in place of earlier ones of the same name. */
  async install(target: NamespaceTarget, _key: string, spec: CaptureSpec): Promise<CaptureDone | CaptureFailure> {
    if (spec.failOpen) return captureFailure('FAIL_OPEN_UNSUPPORTED', 'iptables has no owned tables: install nft');
    const before = await this.status(target, spec);
    if (!before.ok) return before;
    if (before.state === 'installed') return { ok: true, changed: false };
    for (const programs of this.families) {
      const failed = await this.replace(target, programs, spec.table, filterChains(spec, programs.family));
      if (failed === undefined) continue;
      if (before.state === 'absent') await this.remove(target, '', spec.table);
      return failed;
    }
    const after = await this.status(target, spec);
    if (!after.ok) return after;
    if (after.state === 'installed') return { ok: true, changed: true };
    return captureFailure('RULES_DIFFER', `rules of ${spec.table} differ: ${after.differences.join('; ')}`);
  }

  /** Removes the rules, if there are any. */
  async remove(target: NamespaceTarget, _key: string, table: string): Promise<CaptureDone | CaptureFailure> {
    let changed = false;
    for (const programs of this.families) {
      const saved = await this.save(target, programs);
      if (!Array.isArray(saved)) {
        return saved.code === 'NAMESPACE_NOT_FOUND' ? { ok: true, changed } : saved;
      }
      const present = chainNames(table).filter((name) => saved.some((line) => line.split(' ').includes(name)));
      if (present.length === 0) continue;
      const failed = await this.replace(target, programs, table, []);
      if (failed !== undefined) return failed;
      changed = true;
    }
    return { ok: true, changed };
  }

  /** Nothing is held. */
  async close(): Promise<void> {}

  /** One transaction: our old chains and jumps go, the new ones come. */
  private async replace(
    target: NamespaceTarget,
    programs: FamilyPrograms,
    table: string,
    chains: FilterChain[],
  ): Promise<CaptureFailure | undefined> {
    const saved = await this.save(target, programs);
    if (!Array.isArray(saved)) return saved;
    const lines = ['*nat'];
    // Naming a chain empties it; chains that are not wanted any more go below.
    const old = chainNames(table).filter((name) => saved.some((line) => line.split(' ').includes(name)));
    const names = new Set([...old, ...chains.map((chain) => chain.name)]);
    for (const name of names) lines.push(`:${name} - [0:0]`);
    for (const line of saved) {
      if (old.some((name) => line.endsWith(` -j ${name}`))) lines.push(line.replace(/^-A/, '-D'));
    }
    for (const chain of chains) {
      lines.push(jump(chain));
      for (const rule of chain.rules) lines.push(`-A ${chain.name} ${rule}`);
    }
    for (const name of old) {
      if (!chains.some((chain) => chain.name === name)) lines.push(`-X ${name}`);
    }
    lines.push('COMMIT', '');
    const result = await this.sockets.run(target, programs.restore, ['--noflush', '--wait'], lines.join('\n'));
    if (!result.ok) return fromNamespace(result);
    return result.code === 0 ? undefined : refused(result.stderr);
  }

  /** Rules of the nat table as `-A` lines. */
  private async save(target: NamespaceTarget, programs: FamilyPrograms): Promise<string[] | CaptureFailure> {
    const result = await this.sockets.run(target, programs.save, ['-t', 'nat']);
    if (!result.ok) return fromNamespace(result);
    if (result.code !== 0) return refused(result.stderr);
    return result.stdout.split('\n').filter((line) => line.startsWith('-A '));
  }
}

/** Chain names are 28 characters at most, names of tables longer. */
function chainNames(table: string): [string, string] {
  const short = createHash('sha256').update(table).digest('hex').slice(0, 8);
  return [`PORTCULLIS_OUT_${short}`, `PORTCULLIS_IN_${short}`];
}

function jump(chain: FilterChain): string {
  return `-A ${chain.hook} -p tcp -j ${chain.name}`;
}

function filterChains(spec: CaptureSpec, family: 'v4' | 'v6'): FilterChain[] {
  const { exclude, scope } = spec;
  const [outName, inName] = chainNames(spec.table);
  const isFour = family === 'v4';
  const out = [
    `-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN`,
    `-m mark --mark ${MARK} -j RETURN`,
    `-m addrtype --dst-type LOCAL -j RETURN`,
    ...exclude.outboundPorts.map((interval) => `${portMatch(interval)} -j RETURN`),
    ...(isFour ? exclude.outboundV4 : exclude.outboundV6).map((one) => `${addressMatch(one, family, 'd')} -j RETURN`),
    ...whose(spec).map((match) => `-p tcp ${match}-j REDIRECT --to-ports ${spec.outboundPort}`),
  ];
  const into = [
    `-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN`,
    `-i lo -j RETURN`,
    `-m addrtype ! --dst-type LOCAL -j RETURN`,
    `-p tcp -m tcp --dport ${TUNNEL_PORT} -j RETURN`,
    ...exclude.inboundPorts.map((interval) => `${portMatch(interval)} -j RETURN`),
    ...(isFour ? exclude.inboundV4 : exclude.inboundV6).map((one) => `${addressMatch(one, family, 's')} -j RETURN`),
    ...(scope.kind === 'namespace'
      ? [`-p tcp -j REDIRECT --to-ports ${spec.inboundPort}`]
      : spec.inboundPorts.map((interval) => `${portMatch(interval)} -j REDIRECT --to-ports ${spec.inboundPort}`)),
  ];
  const chains: FilterChain[] = [{ name: outName, hook: 'OUTPUT', rules: out }];
  if (scope.kind === 'namespace' || spec.inboundPorts.length > 0) {
    chains.push({ name: inName, hook: 'PREROUTING', rules: into });
  }
  return chains;
}

function whose({ scope }: CaptureSpec): string[] {
  if (scope.kind === 'uid') return [...new Set(scope.uids)].map((uid) => `-m owner --uid-owner ${uid} `);
  return [scope.kind === 'cgroup' ? `-m cgroup --path ${scope.path} ` : ''];
}

function portMatch({ first, last }: Interval): string {
  return `-p tcp -m tcp --dport ${first === last ? first : `${first}:${last}`}`;
}

function addressMatch(interval: Interval, family: 'v4' | 'v6', side: 's' | 'd'): string {
  const text = formatInterval(interval, family);
  return text.includes('-') ? `-m iprange --${side === 's' ? 'src' : 'dst'}-range ${text}` : `-${side} ${text}`;
}

/** Words of a rule in one order: programs print options in an order of their own, and addresses shortened. */
function words(line: string): string {
  return line
    .split(' ')
    .map((word) => {
      const kind = addressKind(word);
      const interval = kind && parseInterval(word, kind);
      return interval ? formatInterval(interval, kind) : word.replaceAll('"', '');
    })
    .sort()
    .join(' ');
}

function refused(stderr: string): CaptureFailure {
  return captureFailure('RULES_REFUSED', `iptables: ${stderr.trim().split('\n')[0]!.slice(0, 500)}`);
}
