// Lines of a watch, cut anywhere.

import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { type WatchEvent, watchEvents } from '../../../../mesh-agent/kubernetes/watch-stream.ts';

const line = (name: string, type = 'ADDED'): string => `${JSON.stringify({ type, object: { metadata: { name } } })}\n`;

async function namesIn(pieces: Buffer[], bytesMax?: number): Promise<{ names: string[]; error: Error | null }> {
  const names: string[] = [];
  try {
    for await (const events of watchEvents(Readable.from(pieces), bytesMax)) {
      names.push(...events.map((event: WatchEvent) => event.object.metadata!.name!));
    }
  } catch (error) {
    return { names, error: error as Error };
  }
  return { names, error: null };
}

test('events are the same however the bytes are cut', async () => {
  const text = Buffer.from(`${line('жук-\u{1F980}') + line('b', 'MODIFIED')}\n\r\n${line('c', 'DELETED')}`);
  for (let first = 1; first < text.length; first++) {
    const pieces = [text.subarray(0, first), text.subarray(first)];
    assert.deepEqual(await namesIn(pieces), { names: ['жук-\u{1F980}', 'b', 'c'], error: null });
  }
  const bytes = [...text].map((byte) => Buffer.of(byte));
  assert.deepEqual((await namesIn(bytes)).names.length, 3);
});

test('a line without its end is no event', async () => {
  assert.deepEqual(await namesIn([Buffer.from(line('a') + line('b').trimEnd())]), { names: ['a'], error: null });
});

test('what came before a failure counts, and the failure is named', async () => {
  for (const [bad, code] of [
    ['{"type":"ADDED","object":', 'malformed'],
    ['null', 'malformed'],
    ['{"type":"UNHEARD","object":{}}', 'malformed'],
    ['{"type":"ADDED","object":null}', 'malformed'],
    ['{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}', 'expired'],
    ['{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Gone"}}', 'expired'],
    ['{"type":"ERROR","object":{"code":504,"details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}}', 'expired'],
    ['{"type":"ERROR","object":{"code":504,"details":{"causes":[null]}}}', 'overloaded'],
    ['{"type":"ERROR","object":null}', 'refused'],
  ]) {
    const { names, error } = await namesIn([Buffer.from(`${line('a')}${bad}\n${line('never')}`)]);
    assert.deepEqual(names, ['a'], bad);
    assert.equal((error as { code?: string } | null)?.code, code, bad);
  }
});

test('a line without bounds is refused before it fills the memory', async () => {
  const piece = Buffer.alloc(1024, 'x');
  let sent = 0;
  const endless = Readable.from(
    (function* () {
      for (;;) {
        sent++;
        yield piece;
      }
    })(),
  );
  await assert.rejects(watchEvents(endless, 64 * 1024).next(), { code: 'malformed' });
  assert.ok(sent < 200);
  assert.equal(endless.destroyed, true);
});
