// Signals of a process with packet workers, and its end.
//
//   starting --> serving --SIGTERM--> draining --> exit
//   SIGINT, or a second SIGTERM, ends it from any state at once.
// Owned by the control thread. Used by `portcullis run` and by the node proxy.

import { exitNow } from '../core/ffi/process.ts';
import { ExitCode } from '../core/process/exit-codes.ts';
import type { Logger } from '../core/process/log.ts';
import type { App } from './app.ts';

/** Longest time that closing down may take once nothing is waited for any more. */
const STOP_TIMEOUT_MS = 8_000;

/** What a process does besides. */
export interface LifeHooks {
  /** In place of `App.reload`, at SIGHUP. */
  reload?: () => void;
  /** The end begins: nothing is to be changed any more. May be called twice. */
  ending?: () => void;
  /** The workers have ended. */
  stopped?: () => Promise<void>;
}

/** Signals, and what they make of the process. */
export class Life {
  private readonly logger: Logger;
  private readonly hooks: LifeHooks;
  private app: App | undefined;
  private draining = false;
  private stopping = false;
  private reloadWanted = false;
  private end: (code: number) => void = () => {};
  /** Resolves to the exit code when the end has come. */
  readonly ended = new Promise<number>((resolve) => {
    this.end = resolve;
  });

  constructor(logger: Logger, hooks: LifeHooks = {}) {
    this.logger = logger;
    this.hooks = hooks;
    process.on('SIGTERM', () => void this.terminate());
    process.on('SIGINT', () => void this.stopNow('SIGINT'));
    process.on('SIGHUP', () => this.reload());
    process.on('SIGUSR1', () => this.app?.reopenAccessLog());
  }

  /** From now on there is something to reload and to drain. */
  begin(app: App): void {
    this.app = app;
    // The file may have changed after it was read.
    if (this.reloadWanted) this.reload();
  }

  private reload(): void {
    const { app } = this;
    this.reloadWanted = app === undefined;
    if (app === undefined) return;
    if (this.hooks.reload === undefined) void app.reload();
    else this.hooks.reload();
  }

  private async terminate(): Promise<void> {
    const { app } = this;
    // Nothing serves yet: nothing to drain.
    if (app === undefined) exitNow(ExitCode.OK);
    if (this.draining) return this.stopNow('a second SIGTERM');
    this.draining = true;
    this.hooks.ending?.();
    const { log } = this.logger;
    log('info', 'draining', { timeoutMs: app.state.config.drainTimeoutMs });
    const cut = await app.drain();
    if (this.stopping) return;
    if (cut > 0) log('warn', 'drain timed out', { connectionsCut: cut });
    else log('info', 'drained');
    await this.close(cut > 0 ? ExitCode.CUT_SHORT : ExitCode.OK);
  }

  private async stopNow(cause: string): Promise<void> {
    if (this.app === undefined) exitNow(ExitCode.CUT_SHORT);
    if (this.stopping) return;
    this.logger.log('info', 'stopping at once', { cause });
    await this.close(ExitCode.CUT_SHORT);
  }

  private async close(code: number): Promise<void> {
    this.stopping = true;
    this.hooks.ending?.();
    // Not unref'd: it is the last way out when a thread does not end.
    const timer = setTimeout(() => exitNow(code), STOP_TIMEOUT_MS);
    await this.app!.stop();
    await this.hooks.stopped?.();
    clearTimeout(timer);
    this.logger.log('info', 'stopped', { exitCode: code });
    this.end(code);
  }
}
