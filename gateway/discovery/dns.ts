// One lookup of a name or of SRV records: hosts file, name servers with their TTL, the system.
//
// Name servers are asked directly, since only they tell how long an answer is good. Where the
// configuration names none, whatever else the system knows names from has the last word.
// Owned by the control thread; keeps nothing.
// Spec: RFC 1035 (A), RFC 3596 (AAAA), RFC 2782 (SRV), RFC 2308 (no such name, no such record).

import { promises as dns } from 'node:dns';
import { lookup as systemLookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import type { DnsConfig } from '../../config/config.ts';
import { addressesInHosts, type SystemFiles, searchNames, systemFiles } from './system-names.ts';

/** One address behind a name. */
export interface Answer {
  /** IP address. */
  host: string;
  /** From an SRV record; 0: the port of the endpoint. */
  port: number;
  /** From an SRV record, else 1; multiplies the endpoint's own. */
  weight: number;
  /** From an SRV record: 0 for the lowest number there is, 1 for the next, and so on. Else 0. */
  priority: number;
}

/** All addresses of a name, and how long they are good; `ttlMs` is undefined where nobody says it. */
export interface Answers {
  answers: Answer[];
  ttlMs: number | undefined;
}

/**
 * Looks a name up; `srv`: its SRV records. `before` is the last answer: addresses of the family that the
 * servers fail to tell are taken from it. Rejects when there is no answer.
 */
export type Lookup = (name: string, srv: boolean, before: readonly Answer[]) => Promise<Answers>;

/** Codes that say that there is nothing, rather than that nobody has said anything. */
const NOTHING = ['ENOTFOUND', 'ENODATA'];

/** How long an answer is good of which nobody says it. */
export const NO_TTL_MS = 30_000;

/** Tries of each question. */
const TRIES = 2;

/** Lookups as a configuration wants them. */
export function lookupBy({ servers, timeoutMs }: DnsConfig, files: SystemFiles = systemFiles): Lookup {
  // The resolver doubles the time with every try.
  const resolver = new dns.Resolver({ timeout: Math.max(1, Math.ceil(timeoutMs / (2 ** TRIES - 1))), tries: TRIES });
  if (servers.length > 0) resolver.setServers(servers);
  const names = new NameLookup(resolver, servers.length === 0, files);
  return (name, srv, before) => (srv ? lookupServices(names, resolver, name, before) : names.lookup(name, before));
}

/** Lookups of addresses. */
class NameLookup {
  private readonly resolver: InstanceType<typeof dns.Resolver>;
  private readonly system: boolean;
  private readonly files: SystemFiles;

  constructor(resolver: InstanceType<typeof dns.Resolver>, system: boolean, files: SystemFiles) {
    this.resolver = resolver;
    this.system = system;
    this.files = files;
  }

  async lookup(name: string, before: readonly Answer[]): Promise<Answers> {
    const inHosts = addressesInHosts(name, this.files);
    if (inHosts.length > 0) return { answers: inHosts.map(plainAnswer), ttlMs: undefined };
    // Search domains belong to the system's own servers.
    const names = this.system ? searchNames(name, this.files) : [name];
    let failure: unknown;
    for (const full of names) {
      try {
        return await this.ask(full, before);
      } catch (error) {
        // Without an answer the next name may be a wrong one.
        failure = error;
        if (!isNothing(error)) break;
      }
    }
    if (!this.system) throw failure;
    const answers = await systemLookup(name, { all: true, order: 'verbatim' });
    return { answers: answers.map(({ address }) => plainAnswer(address)), ttlMs: undefined };
  }

  /** Both families of one full name. */
  private async ask(name: string, before: readonly Answer[]): Promise<Answers> {
    const [four, six] = await Promise.allSettled([
      this.resolver.resolve4(name, { ttl: true }),
      this.resolver.resolve6(name, { ttl: true }),
    ]);
    const answers: Answer[] = [];
    let ttlMs: number | undefined;
    for (const [result, family] of [[four, 4] as const, [six, 6] as const]) {
      if (result.status === 'fulfilled') {
        for (const { address, ttl } of result.value) {
          answers.push(plainAnswer(address));
          ttlMs = Math.min(ttlMs ?? Number.POSITIVE_INFINITY, ttl * 1000);
        }
      } else if (!isNothing(result.reason)) {
        answers.push(...before.filter(({ host }) => isIP(host) === family));
      }
    }
    if (answers.length > 0 && (four.status === 'fulfilled' || six.status === 'fulfilled')) return { answers, ttlMs };
    const failed = [four, six].filter((result) => result.status === 'rejected').map(({ reason }) => reason);
    throw failed.find((reason) => !isNothing(reason)) ?? failed[0] ?? new Error('no addresses');
  }
}

/** SRV records and the addresses of their targets. */
async function lookupServices(
  names: NameLookup,
  resolver: InstanceType<typeof dns.Resolver>,
  name: string,
  before: readonly Answer[],
): Promise<Answers> {
  const records = await resolver.resolveSrv(name);
  // A single target "." says that the service is not offered here (RFC 2782).
  const offered = records.filter((record) => record.name !== '' && record.name !== '.');
  const priorities = [...new Set(offered.map(({ priority }) => priority))].sort((a, b) => a - b);
  let ttlMs: number | undefined;
  let failure: unknown;
  const answers: Answer[] = [];
  await Promise.all(
    offered.map(async ({ name: target, port, weight, priority }) => {
      const rank = priorities.indexOf(priority);
      const known = before.filter((answer) => answer.port === port && answer.priority === rank);
      try {
        const found = await names.lookup(target.toLowerCase().replace(/\.$/, ''), known);
        ttlMs = Math.min(ttlMs ?? Number.POSITIVE_INFINITY, found.ttlMs ?? Number.POSITIVE_INFINITY);
        // Weight 0 is for targets that should get hardly anything; weights here begin with 1.
        for (const { host } of found.answers) {
          answers.push({ host, port, weight: Math.max(1, weight), priority: rank });
        }
      } catch (error) {
        failure = error;
      }
    }),
  );
  // One target without an address takes nothing from the others, unless nobody could say.
  if (failure !== undefined && (answers.length === 0 || !isNothing(failure))) throw failure;
  if (answers.length === 0) throw new Error('no service is offered');
  // The library does not tell the TTL of SRV records; that of their targets only shortens the time.
  return { answers, ttlMs: Math.min(ttlMs ?? NO_TTL_MS, NO_TTL_MS) };
}

function plainAnswer(host: string): Answer {
  return { host, port: 0, weight: 1, priority: 0 };
}

function isNothing(error: unknown): boolean {
  return NOTHING.includes((error as NodeJS.ErrnoException).code ?? '');
}
