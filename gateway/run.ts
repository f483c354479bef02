// `portcullis run`: the life of the gateway process, from loading to the last signal.
//
// Its end is in life.ts. Owned by the control thread.

import { flushCompileCache } from 'node:module';
import { loadConfig, loadConfigFile } from '../config/load.ts';
import { endOnDefects } from '../core/process/defects.ts';
import { ExitCode, ExitError } from '../core/process/exit-codes.ts';
import { Logger } from '../core/process/log.ts';
import { App, type LoadConfig } from './app.ts';
import { Certificates } from './certificates/certificates.ts';
import { errorsForLog, logWarnings, summary } from './check.ts';
import type { CommandIo } from './cli.ts';
import { DEMO_CONFIG, DEMO_NAME, demoBanner, startDemoUpstreams } from './demo.ts';
import { checkEndpointsFiles } from './discovery/files.ts';
import { Life } from './life.ts';

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
