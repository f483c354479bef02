// Entry of the thread that enters network namespaces (see netns.ts): opens sockets and starts programs there.
//
// Requests are answered in their order. A program is started, not waited for, while the thread is inside; what
// it writes arrives when the thread is back.

import { type ChildProcess, spawn } from 'node:child_process';
import { parentPort } from 'node:worker_threads';
import type { ThreadAnswer, ThreadMessage } from './netns.ts';
import { failure, NamespaceEntry } from './netns-open.ts';

const port = parentPort!;
const entry = new NamespaceEntry();
const children = new Map<number, ChildProcess>();

port.on('message', (message: ThreadMessage) => {
  switch (message.kind) {
    case 'open':
      return answer({
        id: message.id,
        kind: 'opened',
        result: entry.open(message.target, message.request, message.count),
      });
    case 'spawn':
      return start(message);
    case 'identify':
      return answer({
        id: message.id,
        kind: 'identified',
        result: entry.inside(message.target, (identity) => ({ ok: true as const, identity })),
      });
    case 'write':
      children.get(message.id)?.stdin?.write(message.text);
      return;
    case 'end':
      children.get(message.id)?.stdin?.end();
      return;
    case 'kill':
      children.get(message.id)?.kill('SIGKILL');
      return;
    case 'stop':
      for (const child of children.values()) child.kill('SIGKILL');
      entry.close();
      port.close();
  }
});

function answer(message: ThreadAnswer): void {
  port.postMessage(message);
}

function start(message: Extract<ThreadMessage, { kind: 'spawn' }>): void {
  const { id, target, command, args } = message;
  const spawned = entry.inside(target, () => spawn(command, args, { stdio: 'pipe' }));
  if ('ok' in spawned) {
    answer({ id, kind: 'ended', result: spawned });
    return;
  }
  children.set(id, spawned);
  // A program that ends without reading its input is no error of ours.
  spawned.stdin!.on('error', () => {});
  spawned.stdout!.setEncoding('utf8').on('data', (text: string) => answer({ id, kind: 'stdout', text }));
  spawned.stderr!.setEncoding('utf8').on('data', (text: string) => answer({ id, kind: 'stderr', text }));
  let error: NodeJS.ErrnoException | undefined;
  spawned.once('error', (reason) => {
    error = reason;
  });
  spawned.once('close', (code) => {
    children.delete(id);
    const result = error
      ? failure('COMMAND_FAILED', Math.abs(error.errno ?? 0), `${command} cannot be started`)
      : { ok: true as const, code };
    answer({ id, kind: 'ended', result });
  });
}
