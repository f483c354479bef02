// Where the access log goes: at most one sink, which reloads start, point elsewhere or stop.
// Owned by the control thread.

import { closeSync, constants, openSync } from 'node:fs';
import type { AccessLogConfig } from '../config/config.ts';
import { AccessLogSink } from '../core/telemetry/access-log-sink.ts';
import type { Log } from '../core/workers/log.ts';
import { ExitCode, ExitError } from './exit-codes.ts';

/** The access log's writer, as the configuration wants it. */
export class AccessLogOutput {
  private readonly rings: SharedArrayBuffer[];
  private readonly log: Log;
  private sink: AccessLogSink | undefined;
  private path = '';

  /** `rings[i]` is worker i's. */
  constructor(rings: SharedArrayBuffer[], log: Log) {
    this.rings = rings;
    this.log = log;
  }

  /** Throws an ExitError with one sentence when the file cannot be written. */
  static check(config: AccessLogConfig | null): void {
    if (config === null || config.path === '-') return;
    try {
      closeSync(openSync(config.path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT, 0o644));
    } catch (error) {
      throw new ExitError(ExitCode.CONFIG_INVALID, `cannot write the access log: ${(error as Error).message}.`);
    }
  }

  /** Writes from now on where `config` says; null ends the writing. */
  use(config: AccessLogConfig | null): void {
    if (config === null) {
      void this.close();
    } else if (this.sink === undefined) {
      this.path = config.path;
      this.sink = new AccessLogSink(config.path, this.rings, (message) => this.log('error', message));
    } else if (config.path !== this.path) {
      this.path = config.path;
      this.sink.reopen(config.path);
    }
  }

  /** Opens the file again under its name. */
  reopen(): void {
    this.sink?.reopen();
  }

  /** Writes what is there and ends the writing. */
  async close(): Promise<void> {
    const sink = this.sink;
    this.sink = undefined;
    await sink?.close();
  }
}
