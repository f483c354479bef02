// What a program that holds a table says, in whatever pieces it comes.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NamespaceProcess, type NamespaceSockets } from '../../../../core/ffi/netns.ts';
import { NftablesBackend } from '../../../../mesh-agent/capture/nftables.ts';
import { parseCapture } from '../../../../mesh-agent/capture/spec.ts';

const parsed = parseCapture({ failOpen: true });
if ('faults' in parsed) throw new Error(parsed.faults.join());
const { spec } = parsed;

/** What nft 1.0.6 writes to stderr, in the pieces in which it does, when `line` fails because of `cause`. */
function errorOf(cause: string, line: string): string[] {
  return ['Error: ', `${cause}\n`, `${line.slice(0, 200)}\n`, '          ^^^^', '\n'];
}

/** A namespace in which listings find nothing, and a program that holds a table writes what `answers` says. */
function holding(answers: (line: string) => string[]): NamespaceSockets {
  const spawn = (): NamespaceProcess => {
    const program: NamespaceProcess = new NamespaceProcess((message) => {
      if (message.kind === 'kill') {
        return program.take({
          ...{ kind: 'ended', id: 0 },
          result: { ok: true, code: null, signal: 'SIGKILL', stdout: '', stderr: '' },
        } as never);
      }
      if (message.kind !== 'write') return;
      const lines = message.text.trimEnd().split('\n');
      const pieces = lines.flatMap((line) =>
        line.startsWith('add table')
          ? answers(line)
          : errorOf('syntax error, unexpected newline, expecting string', line),
      );
      // Each in a turn of its own, as it comes when there is much else to do.
      void (async () => {
        for (const text of pieces) {
          await new Promise((resolve) => setImmediate(resolve));
          program.take({ kind: 'stderr', id: 0, text } as never);
        }
      })();
    });
    return program;
  };
  const run = async (): Promise<object> => ({
    ...{ ok: true, code: 1, signal: null, stdout: '' },
    stderr: 'Error: No such file or directory\nlist table inet portcullis\n                ^^^^^^^^^^\n',
  });
  return { spawn, run } as unknown as NamespaceSockets;
}

const install = (sockets: NamespaceSockets) =>
  new NftablesBackend(sockets, '/usr/sbin/nft', () => {}).install('/run/netns/one', 'key', spec);

test('a table that somebody else holds is told from one that cannot be, though the answer comes in pieces', async () => {
  const owned = await install(holding((line) => errorOf('Could not process rule: Operation not permitted', line)));
  assert.equal(owned.ok ? 'installed' : owned.code, 'RULES_OWNED');
  const refused = await install(holding((line) => errorOf('Could not process rule: No buffer space available', line)));
  assert.equal(refused.ok ? 'installed' : refused.code, 'RULES_REFUSED');
  assert.match(refused.ok ? '' : refused.message, /No buffer space available/);
  const old = await install(holding((line) => errorOf('syntax error, unexpected flags', line)));
  assert.equal(old.ok ? 'installed' : old.code, 'FAIL_OPEN_UNSUPPORTED');
});

test('a table is believed to be held when nothing was said against it, and then read back', async () => {
  const installed = await install(holding(() => []));
  assert.equal(installed.ok ? 'installed' : installed.code, 'RULES_DIFFER');
  assert.match(installed.ok ? '' : installed.message, /differ/);
});
