// Where the access log goes: at most one sink, which reloads start, point elsewhere or stop.
// Owned by the control thread.

import type { AccessLogConfig } from '../config/config.ts';
import { ExitCode, ExitError } from '../core/process/exit-codes.ts';
import { accessLogSentence, probeLogFile, STDOUT_PATH } from '../core/telemetry/access-log-file.ts';
import { AccessLogSink } from '../core/telemetry/access-log-sink.ts';
import type { Log } from '../core/workers/log.ts';

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
    if (config === null || config.path === STDOUT_PATH) return;
    const error = probeLogFile(config.path);
    if (error !== undefined) throw new ExitError(ExitCode.CONFIG_INVALID, `${accessLogSentence(config.path, error)}.`);
  }

  /**
   * Writes from now on where `config` says; null ends the writing. Await it: the rings have one
   * reader at a time, so a sink that still closes is waited for before the next one starts.
   */
  async use(config: AccessLogConfig | null): Promise<void> {
    if (config === null) {
      void this.close();
    } else if (this.sink !== undefined) {
      if (config.path !== this.path) void this.sink.reopen(config.path);
      this.path = config.path;
    } else {
      await this.closing;
      this.path = config.path;
      this.sink = new AccessLogSink(config.path, this.rings, (message) => this.log('error', message));
    }
  }

  /** Opens the file again under its name, after it was rotated away, and logs what came of it. */
  async reopen(): Promise<void> {
    const { sink, path } = this;
    if (sink === undefined) {
      this.log('info', 'no access log to reopen: none is configured');
    } else if (path === STDOUT_PATH) {
      this.log('info', 'no access log to reopen: it goes to standard output');
    } else if (await sink.reopen()) {
      this.log('info', 'access log reopened', { path });
    } else {
      this.log('error', 'access log not reopened', { path });
    }
  }

  /** Writes what is there and ends the writing. */
  close(): Promise<void> {
    const { sink } = this;
    this.sink = undefined;
    if (sink !== undefined) this.closing = sink.close();
    return this.closing;
  }
}
