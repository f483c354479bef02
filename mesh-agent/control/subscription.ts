// What one proxy wants, has, and was last sent of one type of resources.
//
// Control thread of the control plane. One response is under way at a time; what changes meanwhile is
// remembered by name and sent as it then is, so a proxy that is slow gets less often told, never more. What it has
// just asked for is answered out of turn, since somebody waits for that and it may be long before all of it confirms.
//
//   pending (names) --next()--> outstanding (a response) --ack--> known (versions) , until pending is empty
//             `--answer()--> answers (some, meanwhile) --'--nack-> inDoubt, sent again when one of them changes
// Invariant: `known` has what the proxy was sent; names in `inDoubt` are sent, and refused.
// Spec: xDS, incremental variant (subscribing, initial_resource_versions, ACK and NACK by nonce).

import { askedAlias, type Interest } from './interest.ts';
import { lengthDelimited } from './protocol.ts';
import type { Resources, ResourceType } from './resources.ts';

/**
 * Most bytes of resources in a response: well below the 4 MiB that gRPC implementations take by default.
 * A single larger resource goes alone.
 */
const RESPONSE_BYTES_MAX = 2 * 1024 * 1024;

/** Answers out of turn that a proxy may owe confirmations of; what it asks for beyond that waits for its turn. */
const ANSWERS_MAX = 4096;

/** A response that the proxy has not confirmed yet. */
export interface Outstanding {
  nonce: string;
  names: string[];
  /** Version of the mesh that it brings the proxy to, when nothing is left after it. */
  version: number;
  sentMs: number;
}

/** A refusal that still holds. */
export interface Refusal {
  reason: string;
  /** Names of what may be refused. */
  names: string[];
  atMs: number;
}

/** A response, ready to be sent. */
export interface NextResponse {
  bytes: Buffer;
  outstanding: Outstanding;
}

/** What a response may say. */
export interface Allowed {
  /** That nothing has an address, and that something is gone which this process has never known. */
  outside: boolean;
  /** That anything is gone. */
  removals: boolean;
  /** Names of what the proxy has from an earlier stream that it is to keep as it is, as long as `outside` is not so. */
  stays(name: string): boolean;
}

const NOTHING = (): boolean => false;

/** A proxy's subscription to one type. */
export class Subscription {
  readonly type: ResourceType;
  /** Subscribed to `*`. */
  wildcard = false;
  /** Names subscribed to, as the proxy wrote them. */
  readonly asked = new Set<string>();
  /** Those of them that are addresses, as tokens, and how many spell each of them. */
  private readonly aliases = new Map<string, number>();
  /** What it is to have; null: everything there is. */
  private interest: Interest | null = { names: new Set(), absent: new Set(), watched: new Set() };
  /** Versions by name of what it has, or was sent. */
  private readonly known: Map<string, string>;
  /** Names of what it has from an earlier stream, until this process has known of them itself. */
  private readonly claimed: Set<string>;
  /** Names whose state has to be looked at. */
  private readonly pending = new Set<string>();
  /** Names to be reported as not there. */
  private readonly absent = new Set<string>();
  /** Addresses that nothing has as far as is known, which is not said while something new may have them. */
  private readonly unsaid = new Set<string>();
  private readonly inDoubt = new Set<string>();
  private reason = '';
  private refusedMs = 0;
  outstanding: Outstanding | null = null;
  /** Answers out of turn that are not confirmed, by nonce; the oldest first. */
  private readonly answers = new Map<string, Outstanding>();
  /** Names that have just been asked for, and have not been sent or reported as not there. */
  private readonly fresh = new Set<string>();
  /** The response sent last is to be followed by the rest of it, or there has been none. */
  private isPart = true;
  /** The proxy waits for an answer, even if there is nothing in it. */
  private mustAnswer = true;
  private readonly resources: Resources;

  /** `initial`: versions of what the proxy has from an earlier stream. */
  constructor(type: ResourceType, resources: Resources, initial: Record<string, string>) {
    this.type = type;
    this.resources = resources;
    this.known = new Map(Object.entries(initial));
    this.claimed = new Set(this.known.keys());
    for (const name of this.claimed) this.pending.add(name);
  }

  /** Number of resources that the proxy was sent. */
  get size(): number {
    return this.known.size;
  }

  /** Nothing is left to send or to be confirmed, but answers out of turn. */
  get settled(): boolean {
    return this.outstanding === null && !this.hasMore;
  }

  /** Something is left to send. */
  get hasMore(): boolean {
    return this.mustAnswer || this.pending.size > 0 || this.absent.size > 0;
  }

  /** The oldest answer out of turn that is not confirmed; null: there is none. */
  get oldestAnswer(): Outstanding | null {
    const [oldest] = this.answers.values();
    return oldest ?? null;
  }

  /** What the proxy refused and still does not have; null: nothing. */
  get refusal(): Refusal | null {
    return this.inDoubt.size === 0 ? null : { reason: this.reason, names: [...this.inDoubt], atMs: this.refusedMs };
  }

  /** Whether it has something from an earlier stream of which this process does not know, or not yet. */
  get hasClaims(): boolean {
    return this.claimed.size > 0;
  }

  /** Whether a change about these tokens can change what the proxy is to have. */
  concerns(tokens: ReadonlySet<string>): boolean {
    const { interest } = this;
    if (interest === null) return false;
    for (const token of tokens) {
      if (interest.names.has(token) || interest.watched.has(token)) return true;
      if (this.asked.has(token) || this.aliases.has(token)) return true;
    }
    return false;
  }

  /** The proxy asks for further names: they are sent in any case, or reported as not there. */
  subscribe(names: readonly string[], initial: boolean): void {
    for (const name of names) {
      if (name === '*') this.wildcard = true;
      else if (!this.asked.has(name)) {
        this.asked.add(name);
        this.countAlias(name, 1);
      }
    }
    if (!initial && names.length > 0) this.mustAnswer = true;
  }

  /** The proxy has no more use for these names. */
  unsubscribe(names: readonly string[]): void {
    for (const name of names) {
      if (name === '*') this.wildcard = false;
      else if (this.asked.delete(name)) this.countAlias(name, -1);
    }
  }

  /** From now on the proxy is to have everything; `resend` names what has to be sent whatever it has. */
  wantEverything(resend: Iterable<string> = []): void {
    if (this.interest !== null) {
      this.interest = null;
      for (const name of this.resources.names(this.type)) this.pending.add(name);
      for (const name of this.known.keys()) this.pending.add(name);
    }
    for (const name of resend) {
      if (name === '*') continue;
      if (this.resources.get(this.type, name) === undefined) this.absent.add(name);
      this.known.delete(name);
      this.pending.add(name);
    }
  }

  /** From now on the proxy is to have this; `resend` names what has to be sent whatever it has. */
  want(interest: Interest, resend: Iterable<string> = []): void {
    const before = this.interest;
    this.interest = interest;
    for (const name of interest.names) if (before?.names.has(name) !== true) this.pending.add(name);
    for (const name of this.known.keys()) if (!interest.names.has(name)) this.pending.add(name);
    for (const name of interest.absent) if (before?.absent.has(name) !== true) this.absent.add(name);
    for (const names of [this.absent, this.unsaid]) {
      for (const name of names) if (!interest.absent.has(name)) names.delete(name);
    }
    for (const name of resend) {
      if (interest.absent.has(name)) this.absent.add(name);
      if (!interest.names.has(name)) continue;
      this.known.delete(name);
      this.pending.add(name);
    }
  }

  /** The proxy is to have this, too, which it has just asked for: all of it is sent, whatever it has. */
  wantAlso({ names, absent, watched }: Interest): void {
    const { interest } = this;
    if (interest === null) return;
    for (const name of names) {
      interest.names.add(name);
      this.known.delete(name);
      this.pending.add(name);
      this.fresh.add(name);
    }
    for (const name of absent) {
      interest.absent.add(name);
      this.absent.add(name);
      this.fresh.add(name);
    }
    for (const name of watched) interest.watched.add(name);
  }

  /** The proxy has no more use for names that nothing has; false: something has one of them. */
  forgetAbsent(names: readonly string[]): boolean {
    const { interest } = this;
    if (interest === null || !names.every((name) => interest.absent.has(name))) return false;
    for (const name of names) {
      interest.absent.delete(name);
      this.absent.delete(name);
      this.unsaid.delete(name);
    }
    return true;
  }

  /** It can be said again what there is not; whether any of that was held back. */
  tellUnsaid(): boolean {
    const size = this.unsaid.size + this.claimed.size;
    for (const name of this.unsaid) this.absent.add(name);
    this.unsaid.clear();
    for (const name of this.claimed) this.pending.add(name);
    return size > 0;
  }

  /** These resources may have changed. */
  touch(names: ReadonlySet<string>): void {
    for (const name of names) if (this.wants(name) || this.known.has(name)) this.pending.add(name);
  }

  /** Whether something is to be sent that is new or changed, as against removed. */
  hasAdditions(): boolean {
    for (const name of this.pending)
      if (this.wants(name) && this.resources.get(this.type, name) !== undefined) return true;
    return false;
  }

  /**
   * The next response; null when nothing needs one, and then the proxy has it all. What may not be said yet is kept for
   * later. Call only when none is outstanding.
   */
  next(nonce: string, version: number, nowMs: number, { outside, removals, stays }: Allowed): NextResponse | null {
    this.doubtAgain();
    const { items, names, removed, full } = this.take(this.pending, { outside, removals, stays });
    for (const name of this.absent) if (this.maySay(name, outside)) removed.push(name);
    this.absent.clear();
    this.fresh.clear();
    if (items.length === 0 && removed.length === 0 && !this.mustAnswer) return null;
    this.mustAnswer = false;
    this.isPart = full;
    this.outstanding = { nonce, names, version, sentMs: nowMs };
    return { bytes: this.encode(nonce, version, full, items, removed), outstanding: this.outstanding };
  }

  /**
   * An answer to what has just been asked for, whatever is outstanding; null: there is none to be given out of turn.
   * Nothing is removed by it. `isOwn` names what the policies of the proxy are about: that has to wait for them.
   */
  answer(
    nonce: string,
    version: number,
    nowMs: number,
    outside: boolean,
    isOwn: (name: string) => boolean,
  ): NextResponse | null {
    // It would be taken for the end of what is incomplete.
    if (this.isPart || this.fresh.size === 0 || this.answers.size >= ANSWERS_MAX) return null;
    const absent = [...this.fresh].filter((name) => this.absent.delete(name) && this.maySay(name, outside));
    const there = (name: string): boolean => this.pending.has(name) && this.wants(name) && !isOwn(name);
    const { items, names, full } = this.take([...this.fresh].filter(there), {
      outside,
      removals: false,
      stays: NOTHING,
    });
    for (const name of this.fresh) if (!full || !there(name)) this.fresh.delete(name);
    if (items.length === 0 && absent.length === 0) return null;
    this.mustAnswer = false;
    const outstanding = { nonce: names.length === 0 ? '' : nonce, names, version, sentMs: nowMs };
    // That there is nothing need not be confirmed, and scanners ask for very much of it.
    if (names.length > 0) this.answers.set(nonce, outstanding);
    return { bytes: this.encode(outstanding.nonce, version, full, items, absent), outstanding };
  }

  /** A response was taken; false: it is none that could be. */
  acknowledge(nonce: string): boolean {
    const sent = this.sentWith(nonce);
    for (const name of sent ?? []) this.inDoubt.delete(name);
    return sent !== null;
  }

  /** A response was refused, because of `names` if the proxy said so; false: it is none that could be. */
  refuse(nonce: string, reason: string, names: readonly string[], nowMs: number): boolean {
    const sent = this.sentWith(nonce);
    if (sent === null) return false;
    const guilty = names.filter((name) => sent.includes(name));
    for (const name of guilty.length > 0 ? sent : []) this.inDoubt.delete(name);
    for (const name of guilty.length > 0 ? guilty : sent) this.inDoubt.add(name);
    this.reason = reason;
    this.refusedMs = nowMs;
    return true;
  }

  /** Names of the response that has this nonce, which is not waited for any more; null: it was not. */
  private sentWith(nonce: string): readonly string[] | null {
    const { outstanding } = this;
    if (outstanding?.nonce === nonce) {
      this.outstanding = null;
      return outstanding.names;
    }
    // An answer to anything else is about something that has been overtaken.
    const answer = this.answers.get(nonce);
    this.answers.delete(nonce);
    return answer?.names ?? null;
  }

  /** What of `candidates` is to be sent or removed: it is not pending any more. `full`: there is more of it. */
  private take(candidates: Iterable<string>, { outside, removals, stays }: Allowed) {
    const items: Buffer[] = [];
    const names: string[] = [];
    const removed: string[] = [];
    let bytes = 0;
    for (const name of candidates) {
      const resource = this.wants(name) ? this.resources.get(this.type, name) : undefined;
      if (!outside && this.claimed.has(name) && (resource === undefined || stays(name))) {
        // It, or what it is wanted for, may be new, or lost here: to remove a policy would be to allow, a service to send
        // in plain text.
        this.pending.delete(name);
        continue;
      }
      if (resource === undefined && !removals) continue;
      this.claimed.delete(name);
      if (resource !== undefined && resource.version !== this.known.get(name)) {
        if (bytes > 0 && bytes + resource.item.length > RESPONSE_BYTES_MAX) {
          return { items, names, removed, full: true };
        }
        bytes += resource.item.length;
        items.push(resource.item);
        names.push(name);
        this.known.set(name, resource.version);
      } else if (resource === undefined && this.known.delete(name)) {
        removed.push(name);
        names.push(name);
      }
      this.pending.delete(name);
    }
    return { items, names, removed, full: false };
  }

  /** Whether it may be said that nothing has a name; an address of which it may not is noted. */
  private maySay(name: string, outside: boolean): boolean {
    if (!outside && this.claimed.has(name)) return false;
    // Who is told everything there is takes the rest to be outside without asking.
    if (outside || this.interest === null || askedAlias(name) === undefined) return true;
    this.unsaid.add(name);
    return false;
  }

  private encode(nonce: string, version: number, full: boolean, items: Buffer[], removed: readonly string[]): Buffer {
    const text = (field: number, value: string): Buffer => lengthDelimited(field, Buffer.from(value));
    return Buffer.concat([
      text(1, full ? `${version}+` : String(version)),
      ...items,
      text(4, this.type),
      text(5, nonce),
      ...removed.map((name) => text(6, name)),
    ]);
  }

  private countAlias(name: string, by: number): void {
    const alias = askedAlias(name);
    if (alias === undefined) return;
    const count = (this.aliases.get(alias) ?? 0) + by;
    if (count === 0) this.aliases.delete(alias);
    else this.aliases.set(alias, count);
  }

  private wants(name: string): boolean {
    return this.interest === null || this.interest.names.has(name);
  }

  /** A change in something that may have been refused: then all of that is tried again together. */
  private doubtAgain(): void {
    const changed = (name: string): boolean =>
      this.pending.has(name) && this.resources.get(this.type, name)?.version !== this.known.get(name);
    if (![...this.inDoubt].some(changed)) return;
    for (const name of this.inDoubt) {
      // What is gone is removed for certain, and settles the doubt by being confirmed.
      this.known.set(name, '');
      this.pending.add(name);
    }
  }
}
