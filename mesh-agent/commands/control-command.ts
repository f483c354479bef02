// `portcullis control`: the life of the control plane's process, from loading to the last signal.
//
//   opening --> waiting for the source --> serving --SIGTERM--> draining --> exit
//   SIGINT, or a second SIGTERM, ends it from any state at once.
// Owned by the control thread of the control plane.

import { flushCompileCache } from 'node:module';
import { type ConfigError, formatConfigErrors } from '../../config/errors.ts';
import { formatAddress } from '../../config/names.ts';
import { exitNow } from '../../core/ffi/process.ts';
import type { AdminServer } from '../../core/process/admin-pages.ts';
import { endOnDefects } from '../../core/process/defects.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { Logger } from '../../core/process/log.ts';
import { version } from '../../core/process/version.ts';
import type { Log } from '../../core/workers/log.ts';
import { IdentityError } from '../identity/errors.ts';
import { ApiError } from '../kubernetes/api-error.ts';
import { startControlAdmin } from './control-admin.ts';
import { type ControlConfig, loadControl, restartOnlyChanges } from './control-config.ts';
import { ControlPlane } from './control-plane.ts';
import type { MeshIo } from './io.ts';

/** Longest time that closing down may take once nothing is waited for any more. */
const STOP_TIMEOUT_MS = 8_000;

/** Most errors of a file that are shown. */
const SHOWN_ERRORS_MAX = 1000;
/** Most of them in the log, at a reload. */
const LOGGED_ERRORS_MAX = 20;

/** Serves until a signal ends it; returns the exit code. Throws an ExitError when it cannot begin. */
export async function runControl(file: string, io: MeshIo): Promise<number> {
  const logger = new Logger(io.err);
  endOnDefects(logger.log);
  const life = new Life(file, logger);
  const config = load(file, io);
  logger.level = config.logLevel;
  const { log } = logger;
  const plane = await ControlPlane.open(config, log, () => lockLost(log)).catch((error: unknown) => {
    throw beginFailure(error);
  });
  const admin = config.admin === null ? null : await startControlAdmin(config.admin, plane);
  life.begin(plane, admin, config);
  if (admin !== null) log('info', 'admin port', { address: formatAddress(admin.host, admin.port) });
  log('info', 'waiting for the source', { source: plane.sourceName });
  const started = plane.start().then(
    () => null,
    (error: unknown) => ({ error }),
  );
  const failed = await Promise.race([started, life.ended]);
  if (typeof failed === 'number') return failed;
  // A source that is closed in the middle of its start fails, and the exit code is that of the signal.
  if (failed !== null && !life.ending) throw beginFailure(failed.error);
  if (!life.ending) {
    log('info', 'serving', {
      version: version(),
      pid: process.pid,
      address: plane.address,
      trustDomain: config.trustDomain,
      source: plane.sourceName,
      startMs: Math.round(performance.now()),
    });
    setImmediate(flushCompileCache);
  }
  return life.ended;
}

function load(file: string, io: MeshIo): ControlConfig {
  const loaded = loadControl(file, process.env);
  if ('config' in loaded) return loaded.config;
  for (const line of formatConfigErrors(loaded.errors, SHOWN_ERRORS_MAX)) io.err(`${line}\n`);
  throw new ExitError(ExitCode.CONFIG_INVALID, 'the configuration is not valid, and nothing was started.');
}

/** Whoever took the lock signs now: nothing may be signed or written here, not even at the end. */
function lockLost(log: Log): void {
  log(
    'error',
    "another control plane has taken over the CA's directory, because this process stood still for too long",
  );
  exitNow(ExitCode.CUT_SHORT);
}

/** What an operator has to change, as one sentence; anything else is a defect and stays what it is. */
function beginFailure(error: unknown): unknown {
  if (error instanceof IdentityError && error.code !== 'internal') {
    const advice = error.advice === '' ? '' : `; ${error.advice}`;
    return new ExitError(ExitCode.CONFIG_INVALID, `${error.message} (${error.code})${advice}.`);
  }
  if (error instanceof ApiError) return new ExitError(ExitCode.CONFIG_INVALID, `${error.message} (${error.code}).`);
  const { code, syscall, message } = error as NodeJS.ErrnoException;
  // The directory of the mesh, which went away or may not be read.
  if (syscall === 'scandir') return new ExitError(ExitCode.CONFIG_INVALID, `source.directory: ${message} (${code}).`);
  return error;
}

/** Signals, and what they make of the process. */
class Life {
  private readonly file: string;
  private readonly logger: Logger;
  private plane: ControlPlane | undefined;
  private admin: AdminServer | null = null;
  private config: ControlConfig | undefined;
  private reloading: Promise<void> = Promise.resolve();
  private draining = false;
  private stopping = false;
  private end: (code: number) => void = () => {};
  /** Resolves to the exit code when the end has come. */
  readonly ended = new Promise<number>((resolve) => {
    this.end = resolve;
  });

  constructor(file: string, logger: Logger) {
    this.file = file;
    this.logger = logger;
    process.on('SIGTERM', () => void this.terminate());
    process.on('SIGINT', () => void this.stopNow('SIGINT'));
    process.on('SIGHUP', () => this.reload());
  }

  /** Whether a signal has begun the end. */
  get ending(): boolean {
    return this.draining || this.stopping;
  }

  /** From now on there is something to reload and to drain. */
  begin(plane: ControlPlane, admin: AdminServer | null, config: ControlConfig): void {
    this.plane = plane;
    this.admin = admin;
    this.config = config;
  }

  private reload(): void {
    // One after another; before `begin` the file is about to be read anyway.
    this.reloading = this.reloading.then(() => this.reloadNow());
  }

  private async reloadNow(): Promise<void> {
    const { plane, config } = this;
    if (plane === undefined || config === undefined || this.ending) return;
    const { log } = this.logger;
    const loaded = loadControl(this.file, process.env);
    if ('errors' in loaded) return this.refuse(loaded.errors);
    const next = loaded.config;
    try {
      await plane.attest(next.attestation);
    } catch (error) {
      log('error', 'the configuration was refused, the old one stays', { cause: (error as Error).message });
      return;
    }
    this.logger.level = next.logLevel;
    for (const key of restartOnlyChanges(config, next)) {
      log('warn', 'a change needs a restart to take effect', { key });
    }
    this.config = { ...config, logLevel: next.logLevel, attestation: next.attestation };
    log('info', 'configuration applied', { file: this.file });
  }

  private refuse(errors: readonly ConfigError[]): void {
    const { log } = this.logger;
    for (const line of formatConfigErrors(errors, LOGGED_ERRORS_MAX)) log('error', line);
    log('error', 'the configuration was refused, the old one stays', { errors: errors.length });
  }

  private async terminate(): Promise<void> {
    const { plane } = this;
    if (plane === undefined) exitNow(ExitCode.OK);
    if (this.draining) return this.stopNow('a second SIGTERM');
    this.draining = true;
    const { log } = this.logger;
    log('info', 'draining');
    const finished = await plane.drain();
    if (this.stopping) return;
    if (finished) log('info', 'drained');
    else log('warn', 'drain timed out');
    await this.close(finished ? ExitCode.OK : ExitCode.CUT_SHORT);
  }

  private async stopNow(cause: string): Promise<void> {
    if (this.plane === undefined) exitNow(ExitCode.CUT_SHORT);
    if (this.stopping) return;
    this.logger.log('info', 'stopping at once', { cause });
    await this.close(ExitCode.CUT_SHORT);
  }

  private async close(code: number): Promise<void> {
    this.stopping = true;
    // Not unref'd: it is the last way out when something does not end.
    const timer = setTimeout(() => exitNow(code), STOP_TIMEOUT_MS);
    await this.plane!.stop();
    await this.admin?.close();
    clearTimeout(timer);
    this.logger.log('info', 'stopped', { exitCode: code });
    this.end(code);
  }
}
