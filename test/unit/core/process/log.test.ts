import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatLine, Logger } from '../../../../core/process/log.ts';

const time = new Date('2026-11-20T12:00:00.000Z');

test('a line has time, level, message and fields, and leaves out what is undefined', () => {
  assert.equal(
    formatLine(time, 'info', 'configuration applied', {
      epoch: 2,
      file: 'a.yaml',
      error: undefined,
      late: false,
      ms: 1.23456,
    }),
    '2026-11-20T12:00:00.000Z info configuration applied epoch=2 file=a.yaml late=false ms=1.235\n',
  );
});

test('a value with spaces, quotes, line ends or control characters cannot break or forge a line', () => {
  const line = formatLine(time, 'warn', 'two\nlines', {
    cause: 'Error: "x"\n  at y',
    empty: '',
    bell: '\u0007',
    pair: 'a=b',
  });
  assert.equal(
    line,
    '2026-11-20T12:00:00.000Z warn two lines cause="Error: \\"x\\"\\n  at y" empty="" bell="\\u0007" pair="a=b"\n',
  );
});

test('lines below the level are dropped, and the level can change', () => {
  const lines: string[] = [];
  const logger = new Logger((line) => lines.push(line));
  logger.log('debug', 'hidden');
  logger.level = 'debug';
  logger.log('debug', 'shown');
  logger.level = 'error';
  logger.log('warn', 'hidden');
  assert.equal(lines.length, 1);
  assert.match(lines[0]!, /debug shown\n$/);
});
