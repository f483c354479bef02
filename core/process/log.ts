// The log of the control thread: one plain line per event on stderr.
//
//   2026-11-20T12:00:00.000Z info configuration applied epoch=2 durationMs=3.1
//
// Values with spaces or quotes are written as JSON strings, so a line never breaks.
// Runs on the control thread only; packet workers send their messages there.

import type { Log, LogFields, LogLevel } from '../workers/log.ts';

const severity: Record<LogLevel, number> = { debug: 0, info: 1, warn: 2, error: 3 };

/** A log whose lowest level can change at a reload. */
export class Logger {
  /** Lines below this level are dropped. */
  level: LogLevel = 'info';
  private readonly write: (line: string) => void;

  /** `write` takes whole lines with their line end. */
  constructor(write: (line: string) => void) {
    this.write = write;
  }

  /** Writes one line; bound, so that it can be handed on as a function. */
  readonly log: Log = (level, message, fields) => {
    if (severity[level] < severity[this.level]) return;
    this.write(formatLine(new Date(), level, message, fields));
  };
}

/** One log line, with its line end. Fields that are undefined are left out. */
export function formatLine(time: Date, level: LogLevel, message: string, fields: LogFields = {}): string {
  let line = `${time.toISOString()} ${level} ${oneLine(message)}`;
  for (const [key, value] of Object.entries(fields)) {
    if (value !== undefined) line += ` ${key}=${formatValue(value)}`;
  }
  return `${line}\n`;
}

function formatValue(value: string | number | boolean): string {
  if (typeof value === 'number') return String(Math.round(value * 1000) / 1000);
  const text = String(value);
  return /^[^\s"=\u0000-\u001f\u007f]+$/u.test(text) ? text : JSON.stringify(text);
}

/** A message comes from our own code, but may quote a system's error text. */
function oneLine(message: string): string {
  return message.replace(/[\r\n]+/g, ' ');
}
