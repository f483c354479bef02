// What this node knows of the mesh on demand: addresses that its workloads connect to, asked for when a worker does not
// know one, kept up to date while they are used, and given up when they have not been for long.
//
//   question of a worker --in turn, at its workload's rate--> the control plane --found--> a round, with it in its snapshot
//                                                                               --absent--> workers are told: outside
//                                                                               --nothing--> workers are told, forgotten
//
// The workload that asks may be an attacker that tries every address: it has a rate, a number of questions under way, a
// number of answers that nothing is there and a number of addresses of the mesh, and the others have theirs. A worker may
// take an address to be outside only as long as the control plane would tell if something came to be there, and for a day
// without it: who gives up a name tells the workers first.
// Owned by the control thread of the node proxy.

import type { DestinationAnswer, DestinationQuestion, UsedDestinations } from '../../core/workers/protocol.ts';
import type { Lookup, XdsClient } from '../control/xds-client.ts';
import type { MeshIndex } from '../model/mesh-index.ts';

/** What is needed of the control plane's client. */
export type Directory = Pick<XdsClient, 'awayMs' | 'known' | 'lookup' | 'names' | 'release' | 'save'> & {
  index: Pick<MeshIndex, 'byAddress'>;
};

/** What a demand is made of. */
export interface DemandOptions {
  directory: Directory;
  /** Tells all workers. */
  answer: (answers: readonly DestinationAnswer[]) => void;
  /** Has the workers get a snapshot with what is known now. */
  found: () => void;
  /** Destinations that workers have used since this was last asked. */
  used: () => Promise<UsedDestinations>;
  /** Whether an address is that of a workload of this node, which it knows anyway. */
  isOwn: (host: string) => boolean;
  /** Time without use after which a name is given up; 0: never. */
  idleTimeoutMs: number;
  /** Milliseconds of a clock that never goes back. */
  now?: () => number;
}

/** How much is known, for people. */
export interface DemandState {
  /** Addresses that are kept up to date, and how many of them are not of the mesh. */
  addresses: number;
  outside: number;
  /** Questions that the control plane has not answered, and those that wait for their turn. */
  asking: number;
  queued: number;
}

/** Longest time of a question: somewhat less than connections wait (core/exchange/destination-gate.ts). */
export const ANSWER_MS = 4500;
/** A control plane that has been away for so long is not waited for. */
export const AWAY_MS = 3000;
/** Questions of one workload: at once after a pause, per second, and under way. */
export const QUESTIONS_BURST = 200;
export const QUESTIONS_PER_SECOND = 20;
const UNDER_WAY_MAX = 64;
/** Questions of one workload that wait for their turn. */
const QUEUED_MAX = 1024;
/** Addresses that are known to be outside: most of one workload, and of all. */
export const OUTSIDE_PER_WORKLOAD_MAX = 1000;
const OUTSIDE_MAX = 8000;
/**
 * Addresses of the mesh that are known on behalf of one workload, and on behalf of all. Each is kept up to date by the
 * control plane, here and in every worker, with the service behind it and its endpoints, until it has not been used for
 * long: without a bound whoever tries all addresses has the node know all of the mesh. More than the services and
 * workloads that anything speaks to at a time; all together less than the control plane lets a proxy subscribe to
 * (NAMES_MAX of control/proxy-stream.ts, 200,000), since a node that is cut off for that is cut off for everybody.
 */
export const MEMBERS_PER_WORKLOAD_MAX = 10_000;
export const KNOWN_MAX = 150_000;
/** How many are given up at once, as far as nobody uses them, when one more is wanted, lest that is done for every one. */
export const MEMBERS_ROOM = 100;
/** How often it is looked for some that nobody uses any more. */
const ROOM_MS = 1000;
/** How many more there may be before workers are asked which of them are in use, lest that is done for every one. */
export const OUTSIDE_SLACK = 50;
/** How often those that wait for their turn are looked at. */
const TURN_MS = 50;
/** How often it is looked at what is in use: so many times in the time after which it is given up, and at least. */
const LOOKS = 4;
const LOOK_MS_MAX = 15 * 60_000;

/** How soon answers that nothing is there are written down: whoever tries every address gets very many. */
const SAVE_MS = 2000;

/** Instead of a time: room is being made. */
const MAKING_ROOM = Number.POSITIVE_INFINITY;

/** Who asks for what is used already, and has asked for what an earlier process knew: nobody in particular. */
const NOBODY = '';

/** An address that has been asked for. */
interface Entry {
  host: string;
  /** Uid of the workload that has asked first. */
  workload: string;
  usedMs: number;
  asking: boolean;
}

/** What one workload asks. */
class Asker {
  /** Addresses in the order in which they were asked for, and when. */
  readonly queue = new Map<string, number>();
  /** Addresses that are outside, the one that has not been used for longest first. */
  readonly outside = new Set<string>();
  /** Addresses of the mesh, in the same order. */
  readonly members = new Set<string>();
  underWay = 0;
  /** When room was last made for further ones. */
  roomMs = Number.NEGATIVE_INFINITY;
  private tokens = QUESTIONS_BURST;
  private tokensMs: number;

  constructor(nowMs: number) {
    this.tokensMs = nowMs;
  }

  /** Whether it may ask one more now. */
  mayAsk(nowMs: number): boolean {
    const since = ((nowMs - this.tokensMs) * QUESTIONS_PER_SECOND) / 1000;
    this.tokens = Math.min(QUESTIONS_BURST, this.tokens + since);
    this.tokensMs = nowMs;
    return this.underWay < UNDER_WAY_MAX && this.tokens >= 1;
  }

  /** One is asked. */
  ask(): void {
    this.tokens--;
    this.underWay++;
  }

  /** There is nothing to remember of it. */
  get isIdle(): boolean {
    return (
      this.queue.size + this.outside.size + this.members.size + this.underWay === 0 && this.tokens >= QUESTIONS_BURST
    );
  }
}

/** The addresses of one node. */
export class Demand {
  private readonly options: DemandOptions;
  private readonly now: () => number;
  private readonly entries = new Map<string, Entry>();
  private readonly askers = new Map<string, Asker>();
  private answers: DestinationAnswer[] = [];
  private timer: NodeJS.Timeout | undefined;
  private looking: NodeJS.Timeout | undefined;
  /** Set while there are answers that nothing is there which have not been written down. */
  private saving: NodeJS.Timeout | undefined;
  private closed = false;
  private isMakingRoom = false;

  constructor(options: DemandOptions) {
    this.options = options;
    this.now = options.now ?? (() => performance.now());
  }

  /** Goes on with what the client knows from an earlier process, and begins to look what is in use. */
  start(): void {
    const { directory, idleTimeoutMs } = this.options;
    for (const name of directory.names) {
      if (!name.startsWith('/')) continue;
      const host = name.slice(1);
      this.entries.set(host, { host, workload: NOBODY, usedMs: this.now(), asking: false });
      const { members, outside } = this.asker(NOBODY);
      (directory.known(name)?.status === 'absent' ? outside : members).add(host);
    }
    const everyMs = idleTimeoutMs === 0 ? LOOK_MS_MAX : Math.min(LOOK_MS_MAX, Math.ceil(idleTimeoutMs / LOOKS));
    this.looking = setInterval(() => void this.look(), everyMs).unref();
  }

  /** Nothing is asked any more. */
  close(): void {
    this.closed = true;
    if (this.saving !== undefined) this.options.directory.save();
    clearTimeout(this.saving);
    clearTimeout(this.timer);
    clearInterval(this.looking);
  }

  /** How much is known. */
  get state(): DemandState {
    const askers = [...this.askers.values()];
    const sum = (count: (asker: Asker) => number): number => askers.reduce((total, asker) => total + count(asker), 0);
    return {
      addresses: this.entries.size,
      outside: sum(({ outside }) => outside.size),
      asking: sum(({ underWay }) => underWay),
      queued: sum(({ queue }) => queue.size),
    };
  }

  /** Workers do not know these destinations. */
  receive(questions: readonly DestinationQuestion[]): void {
    for (const { host, workload } of questions) {
      const entry = this.entries.get(host);
      if (entry === undefined) {
        const { queue } = this.asker(workload);
        if (this.options.directory.awayMs > AWAY_MS) this.tell({ host, verdict: 'away' });
        // Nobody is told of what is too much: that would end the waiting of other workloads, which have their own turn.
        else if (queue.size < QUEUED_MAX) queue.set(host, this.now());
      } else if (!entry.asking) {
        this.claim(entry, workload);
        this.touch(entry);
        const known = this.options.directory.known(nameOf(host));
        if (known === null) this.tell({ host, verdict: 'unanswered' });
        else if (known.status === 'absent') this.tell({ host, verdict: 'outside' });
      }
    }
    this.pump();
  }

  /** Something has come to have these names that cannot be used: they are not outside any more, nor anything else. */
  doubt(names: readonly string[]): void {
    for (const name of names) {
      const host = name.slice(1);
      const entry = this.entries.get(host);
      if (entry === undefined) continue;
      this.askers.get(entry.workload)?.outside.delete(host);
      this.tell({ host, verdict: 'forgotten' });
    }
  }

  /** It is not to be believed any more that these names are outside: they are asked for when they are used again. */
  forget(names: readonly string[]): void {
    this.giveUp(names.flatMap((name) => this.entries.get(name.slice(1)) ?? []));
  }

  /** Finds out what is in use, keeps that, and gives up what has not been for long. */
  async look(): Promise<void> {
    const { idleTimeoutMs } = this.options;
    const { hosts, all } = await this.options.used();
    if (this.closed) return;
    for (const host of hosts) this.noteUse(host);
    this.pump();
    for (const [uid, asker] of this.askers) if (asker.isIdle) this.askers.delete(uid);
    // Without the control plane what was given up could not be had again.
    if (all || idleTimeoutMs === 0 || this.options.directory.awayMs > 0) return;
    const endMs = this.now() - idleTimeoutMs;
    this.giveUp([...this.entries.values()].filter(({ usedMs, asking }) => !asking && usedMs < endMs));
  }

  private noteUse(host: string): void {
    const { directory, isOwn } = this.options;
    const entry = this.entries.get(host);
    if (entry !== undefined) {
      this.touch(entry);
      return;
    }
    const owner = directory.index.byAddress(host);
    if (owner?.kind === 'service') {
      // It was asked for by another of its addresses.
      for (const vip of owner.service.vips) {
        const other = this.entries.get(vip);
        if (other !== undefined) this.touch(other);
      }
    } else if (owner !== undefined && !isOwn(host)) {
      // It is known because a service that is used has it. From now on it is known for itself.
      this.asker(NOBODY).queue.set(host, this.now());
    }
  }

  private touch(entry: Entry): void {
    entry.usedMs = this.now();
    const { host } = entry;
    const asker = this.askers.get(entry.workload);
    if (asker?.outside.delete(host)) asker.outside.add(host);
    if (asker?.members.delete(host)) asker.members.add(host);
  }

  /** What an earlier process has asked for is known on behalf of who is seen to use it first, if that may have more. */
  private claim(entry: Entry, workload: string): void {
    if (entry.workload !== NOBODY) return;
    const { host } = entry;
    const nobody = this.asker(NOBODY);
    const asker = this.asker(workload);
    const hasPlace = asker.members.size + asker.underWay < MEMBERS_PER_WORKLOAD_MAX;
    if (hasPlace && nobody.members.delete(host)) asker.members.add(host);
    else if (asker.outside.size < OUTSIDE_PER_WORKLOAD_MAX && nobody.outside.delete(host)) asker.outside.add(host);
    else return;
    entry.workload = workload;
  }

  private asker(workload: string): Asker {
    let asker = this.askers.get(workload);
    if (asker === undefined) {
      asker = new Asker(this.now());
      this.askers.set(workload, asker);
    }
    return asker;
  }

  /** Asks what may be asked now, one of each workload at a time. */
  private pump(): void {
    const nowMs = this.now();
    let queued = 0;
    for (let asked = true; asked; ) {
      asked = false;
      queued = 0;
      for (const [workload, asker] of this.askers) {
        const [first] = asker.queue;
        if (first === undefined) continue;
        const [host, sinceMs] = first;
        const isOver = nowMs - sinceMs > ANSWER_MS || this.entries.has(host);
        if (!isOver && this.isFull(asker)) {
          asked = this.refuse(host, workload, asker) || asked;
        } else if (isOver || asker.mayAsk(nowMs)) {
          asked = true;
          asker.queue.delete(host);
          if (!isOver) void this.ask(host, workload, asker);
        }
        queued += asker.queue.size;
      }
    }
    if (queued > 0 && this.timer === undefined && !this.closed) {
      this.timer = setTimeout(() => {
        this.timer = undefined;
        this.pump();
      }, TURN_MS).unref();
    }
  }

  private async ask(host: string, workload: string, asker: Asker): Promise<void> {
    const entry: Entry = { host, workload, usedMs: this.now(), asking: true };
    this.entries.set(host, entry);
    asker.ask();
    const result = await this.options.directory.lookup(nameOf(host), ANSWER_MS);
    asker.underWay--;
    entry.asking = false;
    if (this.closed) return;
    this.settle(entry, result, asker);
    this.pump();
  }

  private settle(entry: Entry, result: Lookup, asker: Asker): void {
    const { host } = entry;
    if (result.status === 'found') {
      asker.members.add(host);
      entry.usedMs = this.now();
      this.options.found();
    } else if (result.status === 'absent') {
      this.saving ??= setTimeout(() => {
        this.saving = undefined;
        this.options.directory.save();
      }, SAVE_MS).unref();
      this.tell({ host, verdict: 'outside' });
      asker.outside.add(host);
      const over = Math.max(asker.outside.size - OUTSIDE_PER_WORKLOAD_MAX, this.state.outside - OUTSIDE_MAX);
      // A worker may never say what it uses.
      if (over > 2 * OUTSIDE_SLACK) this.forgetSome();
      else if (over > OUTSIDE_SLACK) void this.makeRoom();
    } else {
      this.entries.delete(host);
      this.options.directory.release(nameOf(host));
      const isAway = result.status === 'deadline' && !result.connected;
      this.tell({ host, verdict: isAway ? 'away' : 'unanswered' });
    }
  }

  /** Gives up what is outside and has not been used for longest. Only workers know: they do not ask for it again. */
  private async makeRoom(): Promise<void> {
    if (this.isMakingRoom) return;
    this.isMakingRoom = true;
    const { hosts } = await this.options.used();
    this.isMakingRoom = false;
    if (this.closed) return;
    for (const host of hosts) this.noteUse(host);
    this.forgetSome();
    this.pump();
  }

  /** Whether no further address of the mesh may be known on behalf of a workload; of all, some are left for others. */
  private isFull({ members, underWay }: Asker): boolean {
    // What is asked may be of the mesh.
    return members.size + underWay >= Math.min(MEMBERS_PER_WORKLOAD_MAX, KNOWN_MAX - this.entries.size);
  }

  /** Refuses a question of a workload that has all it may, unless there may be room; whether it has. */
  private refuse(host: string, workload: string, asker: Asker): boolean {
    // Its connections need no answer: what it stands for is known for another reason, too.
    if (workload === NOBODY) return asker.queue.delete(host);
    if (asker.roomMs === MAKING_ROOM) return false;
    if (this.now() - asker.roomMs >= ROOM_MS) {
      void this.makeRoomFor(asker);
      return false;
    }
    this.tell({ host, verdict: 'limit', workload });
    return asker.queue.delete(host);
  }

  /**
   * Gives up addresses of the mesh that nobody uses, the one that has not been used for longest first: of the workload's
   * own, but when there is no room because of all that is known, of those that an earlier process has asked for before.
   */
  private async makeRoomFor(asker: Asker): Promise<void> {
    const { directory, used } = this.options;
    asker.roomMs = MAKING_ROOM;
    // Whoever has just been let through may not have said so yet.
    const endMs = this.now() - ANSWER_MS;
    const { hosts, all } = await used();
    asker.roomMs = this.now();
    if (this.closed) return;
    for (const host of hosts) this.noteUse(host);
    // Without the control plane what was given up could not be had again.
    if (!all && directory.awayMs === 0) {
      const unused = ({ members }: Asker): Entry[] =>
        [...members]
          .slice(0, MEMBERS_ROOM)
          .flatMap((host) => this.entries.get(host) ?? [])
          .filter(({ usedMs }) => usedMs < endMs);
      const hasShare = asker.members.size + asker.underWay < MEMBERS_PER_WORKLOAD_MAX;
      const ofNobody = hasShare ? unused(this.asker(NOBODY)) : [];
      this.giveUp(ofNobody.length > 0 ? ofNobody : unused(asker));
    }
    this.pump();
  }

  private forgetSome(): void {
    for (const asker of this.askers.values()) {
      while (asker.outside.size > OUTSIDE_PER_WORKLOAD_MAX) this.forgetOldest(asker);
    }
    for (let over = this.state.outside - OUTSIDE_MAX; over > 0; over--) this.forgetOldest(this.greediest());
  }

  private greediest(): Asker {
    return [...this.askers.values()].reduce((a, b) => (b.outside.size > a.outside.size ? b : a));
  }

  private forgetOldest({ members, outside }: Asker): void {
    const [host] = outside;
    const entry = this.entries.get(host!);
    outside.delete(host!);
    if (entry === undefined) return;
    // Something may have come to be there.
    if (this.options.directory.known(nameOf(host!))?.status === 'found') members.add(host!);
    else this.giveUp([entry]);
  }

  private giveUp(entries: readonly Entry[]): void {
    if (entries.length === 0) return;
    const { directory, found } = this.options;
    const hadAny = entries.some(({ host }) => directory.known(nameOf(host))?.status === 'found');
    for (const { host, workload } of entries) {
      this.entries.delete(host);
      const asker = this.askers.get(workload);
      asker?.outside.delete(host);
      asker?.members.delete(host);
      this.tell({ host, verdict: 'forgotten' });
    }
    this.flush();
    directory.release(...entries.map(({ host }) => nameOf(host)));
    // What stays for another reason is not kept whole any more, and the control plane need not say anything about it.
    if (hadAny) found();
  }

  /** Has the workers told, together with what else there is to tell. */
  private tell(answer: DestinationAnswer): void {
    if (this.answers.length === 0) setImmediate(() => this.flush());
    this.answers.push(answer);
  }

  private flush(): void {
    if (this.answers.length === 0 || this.closed) return;
    this.options.answer(this.answers.splice(0));
  }
}

/** Name of an address in the only network that there is. */
function nameOf(host: string): string {
  return `/${host}`;
}
