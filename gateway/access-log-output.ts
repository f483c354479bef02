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
  /** Settled once no sink is closing. */
  private closing: Promise<void> = Promise.resolve();

  /** `rings[i]` is worker i's. */
  constructor(rings: SharedArrayBuffer[], log: Log) {
    this.rings = rings;
    this.log = log;
  }

  /** Throws an ExitError with one sentence when the file cannot be written. */
  static check(config: AccessLogConfig | null): void {
    if (config === null || config.path === '-') return;
    try {
      closeSync(openSync(config.path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT, 0o640));
    } catch (error) {
      throw new ExitError(ExitCode.CONFIG_INVALID, `cannot write the access log: ${(error as Error).message}.`);
    }
  }

  /**
   * Writes from now on where `config` says; null ends the writing. Await it: the rings have one
   * reader at a time, so a sink that still closes is waited for before the next one starts.
   */
  async use(config: AccessLogConfig | null): Promise<void> {
    if (config === null) {
      void this.close();
    } else if (this.sink !== undefined) {
      if (config.path !== this.path) this.sink.reopen(config.path);
      this.path = config.path;
    } else {
      await this.closing;
      this.path = config.path;
      this.sink = new AccessLogSink(config.path, this.rings, (message) => this.log('error', message));
    }
  }

  /** Opens the file again under its name. */
  reopen(): void {
    this.sink?.reopen();
  }

  /** Writes what is there and ends the writing. */
  close(): Promise<void> {
    const { sink } = this;
    this.sink = undefined;
    if (sink !== undefined) this.closing = sink.close();
    return this.closing;
  }
}
