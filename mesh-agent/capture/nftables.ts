// Rules of captures through the `nft` program, run inside the namespace in question.
//
// A table is installed by one transaction and read back. With `failOpen` the table is owned: an `nft` that waits for
// input holds it, and when the process that feeds it dies in whatever way, its input ends, `nft` ends, and the
// kernel removes the table. Otherwise the table stays when everybody is dead, and refuses what it captures.
// Source: nft(8) (flags owner).

import type { NamespaceProcess, NamespaceSockets, NamespaceTarget } from '../../core/ffi/netns.ts';
import { type CaptureDone, type CaptureFailure, type CaptureStatus, captureFailure, fromNamespace } from './backend.ts';
import { captureTable, installCommands, type RuleTable, removeCommands } from './rules.ts';
import type { CaptureSpec } from './spec.ts';
import { differences } from './verify.ts';

/** Options of listings that verify.ts reads. */
const LIST_OPTIONS = ['--stateless', '--numeric-priority'];

/** A program that holds a table says within this time whether it could have it. */
const HOLD_LIMIT_MS = 10_000;

/**
 * A line that no `nft` understands. What it says of it shows that it has said everything about the lines before: it
 * writes an error piece by piece, and what it prints otherwise comes through another pipe.
 */
const END_OF_ANSWER = 'portcullis_end_of_answer';

/** What was said of the lines before, and the error that END_OF_ANSWER is: cause, line, and where in the line. */
const ANSWER = new RegExp(`^([^]*?)Error: [^\\n]*\\n${END_OF_ANSWER}[^\\n]*\\n[ ^~]*\\n`);

/** A table that is gone with the program that holds it. */
interface Holder {
  program: NamespaceProcess;
  /** Ends are expected: nobody is told. */
  releasing: boolean;
}

/** Installs, removes and compares tables. Calls for one table are made one after another (capture.ts). */
export class NftablesBackend {
  private readonly sockets: NamespaceSockets;
  private readonly nft: string;
  private readonly holders = new Map<string, Holder>();
  private readonly onReleased: (key: string) => void;

  /** `nft` is the program's path. `onReleased` is told of held tables that were lost unasked. */
  constructor(sockets: NamespaceSockets, nft: string, onReleased: (key: string) => void) {
    this.sockets = sockets;
    this.nft = nft;
    this.onReleased = onReleased;
  }

  /** Compares what is there with the spec. */
  async status(target: NamespaceTarget, spec: CaptureSpec): Promise<CaptureStatus | CaptureFailure> {
    return this.compare(target, captureTable(spec));
  }

  /** Puts the rules in place of earlier ones of the same name. `key` stands for namespace and table. */
  async install(target: NamespaceTarget, key: string, spec: CaptureSpec): Promise<CaptureDone | CaptureFailure> {
    const table = captureTable(spec);
    const before = await this.compare(target, table);
    if (!before.ok) return before;
    // An owned table that somebody else holds is none that we can rely on.
    if (before.state === 'installed' && (!table.owned || this.holders.has(key))) return { ok: true, changed: false };
    if (!table.owned) await this.release(key);
    const failed = table.owned ? await this.hold(target, key, table) : await this.load(target, installCommands(table));
    if (failed !== undefined) return failed;
    const after = await this.compare(target, table);
    if (!after.ok) return after;
    if (after.state !== 'installed') {
      return captureFailure('RULES_DIFFER', `rules of table ${table.name} differ: ${after.differences.join('; ')}`);
    }
    return { ok: true, changed: true };
  }

  /** Removes the rules, if there are any. */
  async remove(target: NamespaceTarget, key: string, table: string): Promise<CaptureDone | CaptureFailure> {
    const released = await this.release(key);
    const listing = await this.list(target, table);
    if (typeof listing === 'object') {
      // A namespace that is gone has taken its rules along.
      return listing.code === 'NAMESPACE_NOT_FOUND' ? { ok: true, changed: released } : listing;
    }
    if (listing === '') return { ok: true, changed: released };
    return (await this.load(target, removeCommands(table))) ?? { ok: true, changed: true };
  }

  /** Lets go of all held tables. */
  async close(): Promise<void> {
    await Promise.all([...this.holders.keys()].map((key) => this.release(key)));
  }

  private async compare(target: NamespaceTarget, table: RuleTable): Promise<CaptureStatus | CaptureFailure> {
    const listing = await this.list(target, table.name);
    if (typeof listing === 'object') return listing;
    if (listing === '') return { ok: true, state: 'absent', differences: [] };
    const found = differences(table, listing);
    return { ok: true, state: found.length === 0 ? 'installed' : 'differs', differences: found };
  }

  /** The listing of a table; empty when there is none. */
  private async list(target: NamespaceTarget, table: string): Promise<string | CaptureFailure> {
    const result = await this.sockets.run(target, this.nft, [...LIST_OPTIONS, 'list', 'table', 'inet', table]);
    if (!result.ok) return fromNamespace(result);
    if (result.code === 0) return result.stdout;
    if (/No such file or directory/.test(result.stderr)) return '';
    return refused(result.stderr);
  }

  /** As arguments: an input could end early, with a process that dies, and half of it would be a transaction. */
  private async load(target: NamespaceTarget, commands: string[]): Promise<CaptureFailure | undefined> {
    const args = commands.map((command) => `${command};`);
    const result = await this.sockets.run(target, this.nft, args);
    if (!result.ok) return fromNamespace(result);
    return result.code === 0 ? undefined : refused(result.stderr);
  }

  private async hold(target: NamespaceTarget, key: string, table: RuleTable): Promise<CaptureFailure | undefined> {
    let holder = this.holders.get(key);
    const isNew = holder === undefined;
    if (holder === undefined) {
      holder = { program: this.sockets.spawn(target, this.nft, [...LIST_OPTIONS, '--interactive']), releasing: false };
      this.holders.set(key, holder);
      this.watch(key, holder);
    }
    const { program } = holder;
    program.stderr = '';
    // One line is one transaction.
    program.write(`${installCommands(table).join('; ')}\n${END_OF_ANSWER}\n`);
    const said = await new Promise<string | undefined>((resolve) => {
      const timer = setTimeout(() => resolve('nft gave no answer'), HOLD_LIMIT_MS);
      const settle = (text: string | undefined) => {
        clearTimeout(timer);
        resolve(text);
      };
      program.onOutput = () => {
        const answer = ANSWER.exec(program.stderr);
        if (answer !== null) settle(answer[1] || undefined);
      };
      program.ended.then((result) => settle(result.ok ? program.stderr || 'nft ended' : result.message));
    });
    program.onOutput = () => {};
    if (said === undefined) return undefined;
    // A refused change leaves the earlier table as it was, and its holder with it.
    const ended = isNew ? await this.endOf(key) : undefined;
    if (ended !== undefined && !ended.ok) return fromNamespace(ended);
    const failure = refused(said);
    // The causes only: the line that nft repeats has the flag in any case.
    const causes = said.match(/^Error: .*/gm)?.join('\n') ?? said;
    const ownerFlagFails = /flag|syntax error|not supported/i.test(causes) && failure.code === 'RULES_REFUSED';
    return ownerFlagFails
      ? captureFailure('FAIL_OPEN_UNSUPPORTED', `tables cannot be owned here (nft 1.0, Linux 5.12): ${failure.message}`)
      : failure;
  }

  private watch(key: string, holder: Holder): void {
    holder.program.ended.then(() => {
      if (this.holders.get(key) === holder) this.holders.delete(key);
      if (!holder.releasing) this.onReleased(key);
    });
  }

  /** Lets go of a held table, which removes it. Whether there was one. */
  private async release(key: string): Promise<boolean> {
    return (await this.endOf(key)) !== undefined;
  }

  private async endOf(key: string) {
    const holder = this.holders.get(key);
    if (holder === undefined) return undefined;
    holder.releasing = true;
    this.holders.delete(key);
    holder.program.kill();
    return holder.program.ended;
  }
}

function refused(stderr: string): CaptureFailure {
  const message = stderr.trim().split('\n')[0]!.slice(0, 500);
  const isOwned = /Operation not permitted/.test(stderr) && /(add|delete) table/.test(stderr);
  return isOwned
    ? captureFailure('RULES_OWNED', `another process holds the rules, or CAP_NET_ADMIN is missing: ${message}`)
    : captureFailure('RULES_REFUSED', `nft: ${message || 'failed without a word'}`);
}
