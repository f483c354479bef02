// `portcullis run`: the life of the gateway process, from loading to the last signal.
//
//   starting --> serving --SIGTERM--> draining --> exit
//   SIGINT, or a second SIGTERM, ends it from any state at once.
// Owned by the control thread.

import { flushCompileCache } from 'node:module';
import { loadConfig, loadConfigFile } from '../config/load.ts';
import { exitNow } from '../core/ffi/process.ts';
import { endOnDefects } from '../core/process/defects.ts';
import { ExitCode, ExitError } from '../core/process/exit-codes.ts';
import { Logger } from '../core/process/log.ts';
import { App, type LoadConfig } from './app.ts';
import { Certificates } from './certificates/certificates.ts';
import { errorsForLog, logWarnings, summary } from './check.ts';
import type { CommandIo } from './cli.ts';
import { DEMO_CONFIG, DEMO_NAME, demoBanner, startDemoUpstreams } from './demo.ts';
import { checkEndpointsFiles } from './discovery/files.ts';

/** Longest time that closing down may take once nothing is waited for any more. */
const STOP_TIMEOUT_MS = 8_000;

/** Serves until a signal ends it; returns the exit code. Without a file: the built-in demo. */
export async function runGateway(file: string | undefined, io: CommandIo): Promise<number> {
  const logger = new Logger(io.err);
  const { log } = logger;
  endOnDefects(logger.log);
  const life = new Life(logger);
  const certificates = new Certificates(log);
  let load: LoadConfig;
  if (file === undefined) {
    const { variables } = await startDemoUpstreams();
    load = () => loadConfig(DEMO_CONFIG, DEMO_NAME, { ...process.env, ...variables });
  } else {
    load = () => loadConfigFile(file, process.env, [certificates.check, checkEndpointsFiles]);
  }
  const loaded = load();
  if ('errors' in loaded) {
    for (const line of errorsForLog(loaded.errors)) io.err(`${line}\n`);
    throw new ExitError(ExitCode.CONFIG_INVALID, 'the configuration is not valid, and nothing was started.');
  }
  const app = await App.start(loaded.config, load, logger, certificates).catch((error: unknown) => {
    if (!(error instanceof ExitError) || error.code !== ExitCode.CANNOT_LISTEN || file !== undefined) throw error;
    throw new ExitError(error.code, `${error.message} Other ports: PORT=8081 ADMIN_PORT=9902 ./portcullis run`);
  });
  life.begin(app);
  for (const { name, address } of app.addresses()) log('info', 'listening', { listener: name, address });
  if (app.adminAddress !== undefined) log('info', 'admin port', { address: app.adminAddress });
  log('info', 'serving', {
    version: app.state.version,
    pid: process.pid,
    workers: app.state.workers.length,
    ioUring: app.ioUring,
    config: summary(app.state.config),
    startMs: Math.round(performance.now()),
  });
  if (file === undefined) io.out(demoBanner(app.addresses()[0]!.address, app.adminAddress));
  await logWarnings(loaded, log);
  // Once there is time for it: the next start finds these modules compiled.
  setImmediate(flushCompileCache);
  return life.ended;
}

/** Signals, and what they make of the process. */
class Life {
  private readonly logger: Logger;
  private app: App | undefined;
  private draining = false;
  private stopping = false;
  private reloadWanted = false;
  private end: (code: number) => void = () => {};
  /** Resolves to the exit code when the end has come. */
  readonly ended = new Promise<number>((resolve) => {
    this.end = resolve;
  });

  constructor(logger: Logger) {
    this.logger = logger;
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
    this.reloadWanted = this.app === undefined;
    void this.app?.reload();
  }

  private async terminate(): Promise<void> {
    const { app } = this;
    // Nothing serves yet: nothing to drain.
    if (app === undefined) exitNow(ExitCode.OK);
    if (this.draining) return this.stopNow('a second SIGTERM');
    this.draining = true;
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
    // Not unref'd: it is the last way out when a thread does not end.
    const timer = setTimeout(() => exitNow(code), STOP_TIMEOUT_MS);
    await this.app!.stop();
    clearTimeout(timer);
    this.logger.log('info', 'stopped', { exitCode: code });
    this.end(code);
  }
}
