// What operators want of the CA: orders that the command line leaves in the CA's directory, and their answers.
//
//   DIRECTORY/orders/<id>.order    what is to be done; the control plane removes it, then does it
//   DIRECTORY/orders/<id>.answer   what came of it; the command line removes it
//
// Whoever can write there could as well take the keys: no further proof is asked for. Orders of before a start are
// not carried out any more, since nobody waits for them. Control thread; the command line has a process of its own.

import { randomBytes } from 'node:crypto';
import { readdir, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Log } from '../../core/workers/log.ts';
import type { MeshAuthority } from './authority.ts';
import { asIdentityError, IdentityError, storageError } from './errors.ts';
import { makePrivateDirectory, readPrivateFile, writePrivateFile } from './private-files.ts';

/** What can be wanted. `forget`: a node's proxy will not come back, so that a rotation need not wait for it. */
export type RotationOrder = { action: 'rotate' } | { action: 'abort' } | { action: 'forget'; proxy: string };

/** What came of an order. */
export interface OrderAnswer {
  done: boolean;
  /** One clause. */
  message: string;
  /** What to do about a refusal; may be empty. */
  advice: string;
}

/** How often both sides look. */
const POLL_MS = 250;
/** Longest wait for an answer. */
const ANSWER_TIMEOUT_MS = 15_000;

const ORDER = /^([0-9a-f]{16})\.order$/;
const FORMAT = 1;

/** The control plane's side: carries orders out, one after another. */
export class RotationOrders {
  private readonly directory: string;
  private readonly authority: MeshAuthority;
  private readonly log: Log;
  private timer: NodeJS.Timeout | undefined;
  private working: Promise<void> = Promise.resolve();
  private closed = false;
  private problem = '';

  private constructor(directory: string, authority: MeshAuthority, log: Log) {
    this.directory = directory;
    this.authority = authority;
    this.log = log;
  }

  /** Begins to look for orders in the directory of a CA. Rejects with an IdentityError. */
  static async start(caDirectory: string, authority: MeshAuthority, log: Log): Promise<RotationOrders> {
    const directory = ordersDirectory(caDirectory);
    await makePrivateDirectory(directory);
    for (const name of await namesIn(directory)) await unlink(join(directory, name)).catch(() => {});
    const orders = new RotationOrders(directory, authority, log);
    orders.schedule();
    return orders;
  }

  /** Ends; an order that is being carried out is answered first. */
  async close(): Promise<void> {
    this.closed = true;
    clearTimeout(this.timer);
    await this.working;
  }

  private schedule(): void {
    if (this.closed) return;
    this.timer = setTimeout(() => {
      this.working = this.look().finally(() => this.schedule());
    }, POLL_MS).unref();
  }

  private async look(): Promise<void> {
    try {
      for (const name of await namesIn(this.directory)) {
        const id = ORDER.exec(name)?.[1];
        if (id !== undefined && !this.closed) await this.carryOut(id);
      }
      this.problem = '';
    } catch (error) {
      const { message } = error as Error;
      if (message !== this.problem) this.log('error', 'orders to the mesh CA cannot be read', { cause: message });
      this.problem = message;
    }
  }

  private async carryOut(id: string): Promise<void> {
    const path = join(this.directory, `${id}.order`);
    const text = await readPrivateFile(path);
    // Taken back by the command line, which did not want to wait any longer, or taken now: never carried out twice.
    if (text === null || !(await remove(path))) return;
    const answer = await this.answer(text);
    this.log(answer.done ? 'info' : 'warn', 'an order to the mesh CA', { order: text.trim(), answer: answer.message });
    await writePrivateFile(join(this.directory, `${id}.answer`), `${JSON.stringify(answer)}\n`);
  }

  private async answer(text: string): Promise<OrderAnswer> {
    try {
      const message = await this.obey(orderOf(text));
      return { done: true, message, advice: '' };
    } catch (error) {
      const { message, advice } = asIdentityError(error);
      return { done: false, message, advice };
    }
  }

  private async obey(order: RotationOrder): Promise<string> {
    const { authority } = this;
    switch (order.action) {
      case 'rotate': {
        await authority.startRotation();
        const { activeRoot, nextRoot } = authority.rotationStatus();
        // Without any proxy all phases may be over by now.
        return nextRoot === null
          ? `the mesh runs on the new root ${activeRoot}`
          : `the rotation from root ${activeRoot} to root ${nextRoot} has begun`;
      }
      case 'abort':
        await authority.abortRotation();
        return `the rotation is turned back; the mesh stays on root ${authority.rotationStatus().activeRoot}`;
      case 'forget':
        if (!authority.forgetProxy(order.proxy)) {
          throw new IdentityError('rotation', `no proxy of a node ${order.proxy} is known`);
        }
        await authority.settled();
        return `the proxy of node ${order.proxy} is not waited for`;
    }
  }
}

/**
 * Gives an order to the control plane that uses the directory of a CA, and waits for what comes of it. Rejects with
 * an IdentityError `storage`, or `overloaded` when there is no answer.
 */
export async function giveOrder(
  caDirectory: string,
  order: RotationOrder,
  timeoutMs = ANSWER_TIMEOUT_MS,
): Promise<OrderAnswer> {
  const directory = ordersDirectory(caDirectory);
  await makePrivateDirectory(directory);
  const id = randomBytes(8).toString('hex');
  const path = join(directory, `${id}.order`);
  const answerPath = join(directory, `${id}.answer`);
  await writePrivateFile(path, `${JSON.stringify({ format: FORMAT, ...order })}\n`);
  const endMs = performance.now() + timeoutMs;
  while (performance.now() < endMs) {
    const text = await readPrivateFile(answerPath);
    if (text !== null) {
      await remove(answerPath);
      return JSON.parse(text) as OrderAnswer;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  const taken = !(await remove(path));
  throw new IdentityError(
    'overloaded',
    `the control plane has ${taken ? 'taken the order and ' : ''}not answered within ${timeoutMs / 1000} s`,
    taken ? 'see `portcullis mesh roots`' : 'nothing was begun; see its log',
  );
}

function ordersDirectory(caDirectory: string): string {
  return join(caDirectory, 'orders');
}

/** Throws an IdentityError for a text that is no order. */
function orderOf(text: string): RotationOrder {
  let json: { format?: unknown; action?: unknown; proxy?: unknown } | null = null;
  try {
    json = JSON.parse(text);
  } catch {}
  const { format, action, proxy } = json ?? {};
  if (format === FORMAT && (action === 'rotate' || action === 'abort')) return { action };
  if (format === FORMAT && action === 'forget' && typeof proxy === 'string') return { action, proxy };
  throw new IdentityError('rotation', 'the order is not one that this version understands');
}

function namesIn(directory: string): Promise<string[]> {
  return readdir(directory).catch((error) => Promise.reject(storageError('cannot read', directory, error)));
}

/** Removes a file; whether there was one. */
async function remove(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw storageError('cannot remove', path, error);
  }
}
