// The lock of the CA's directory: who is refused, who waits, and who is told that it was lost.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { directoryHolder, lockDirectory } from '../../../../mesh-agent/identity/directory-lock.ts';
import { ManualClock, recordingLog, refusal, temporaryDirectory, turns } from './support.ts';

const FOREIGN = {
  token: 'x',
  owner: 'other, process 1',
  pid: 1,
  pidSpace: 'other',
  startTicks: '1',
  since: '',
  refreshed: 0,
};

const never = (): void => assert.fail('the lock is lost');

test('a second one is refused by name, and gets the directory when the first has given it back', async (t) => {
  const directory = temporaryDirectory(t);
  const { log, lines } = recordingLog();
  assert.equal(await directoryHolder(directory), null);
  const lock = await lockDirectory(directory, { log, lost: never });
  await assert.rejects(
    lockDirectory(directory, { log, lost: never }),
    refusal('in-use', new RegExp(`in use by another control plane \\(.*, process ${process.pid}, since 2`)),
  );
  assert.deepEqual(lines, [], 'at once, without waiting for a sign of life');
  assert.match((await directoryHolder(directory))!.owner, /process/);
  await lock.release();
  await (await lockDirectory(directory, { log, lost: never })).release();
});

test('one of another machine is refused to as soon as it shows that it lives, and taken over when it does not', async (t) => {
  const directory = temporaryDirectory(t);
  const path = join(directory, 'lock');
  const { log, lines } = recordingLog();
  const clock = new ManualClock();
  writeFileSync(path, JSON.stringify(FOREIGN));
  const refused = assert.rejects(
    lockDirectory(directory, { log, lost: never, clock }),
    refusal('in-use', /other, process 1/),
  );
  while (lines.length === 0) await turns(1);
  await clock.advance(9_000);
  writeFileSync(path, JSON.stringify({ ...FOREIGN, refreshed: 1 }));
  // The file is read by real threads, whatever the clock says.
  const settle = setInterval(() => void clock.advance(500), 5);
  await refused;
  const lock = await lockDirectory(directory, { log, lost: never, clock });
  clearInterval(settle);
  assert.deepEqual(
    lines.map(({ fields }) => fields.owner),
    ['other, process 1', 'other, process 1'],
  );
  await lock.release();
});

test('a holder whose lock was taken is told', async (t) => {
  const directory = temporaryDirectory(t);
  const clock = new ManualClock();
  const lost = Promise.withResolvers<void>();
  await lockDirectory(directory, { log: () => {}, lost: lost.resolve, clock });
  writeFileSync(join(directory, 'lock'), JSON.stringify(FOREIGN));
  await clock.advance(10_000);
  await lost.promise;
  assert.match(readFileSync(join(directory, 'lock'), 'utf8'), /other, process 1/);
});
