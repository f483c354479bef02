// `portcullis mesh node`: the life of the node proxy's process, from loading to the last signal.
//
// Its end is in gateway/life.ts. Owned by the control thread of the node proxy.

import { flushCompileCache } from 'node:module';
import { type ConfigError, formatConfigErrors } from '../../config/errors.ts';
import { endOnDefects } from '../../core/process/defects.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { Logger } from '../../core/process/log.ts';
import { App } from '../../gateway/app.ts';
import { Life } from '../../gateway/life.ts';
import type { MeshIo } from '../commands/io.ts';
import { IdentityError } from '../identity/errors.ts';
import { meshState } from './node-admin.ts';
import { NodeAgent } from './node-agent.ts';
import { loadNode, type NodeConfig, reloaded } from './node-config.ts';

/** Time after which everything has been loaded that a node proxy needs. */
const COMPILED_AFTER_MS = 5_000;

/** Most errors of a file that are shown. */
const SHOWN_ERRORS_MAX = 1000;
/** Most of them in the log, at a reload. */
const LOGGED_ERRORS_MAX = 20;

/** Serves until a signal ends it; returns the exit code. Throws an ExitError when it cannot begin. */
export async function runNode(file: string, io: MeshIo): Promise<number> {
  const logger = new Logger(io.err);
  const { log } = logger;
  endOnDefects(log);
  let agent: NodeAgent | undefined;
  const life = new Life(logger, {
    reload: () => reload(agent!, file, logger),
    ending: () => agent?.stop(),
    stopped: async () => agent?.close(),
  });
  const config = load(file, io);
  logger.level = config.logLevel;
  agent = await NodeAgent.open(config, log).catch((error: unknown) => {
    throw beginFailure(error);
  });
  const first = agent.load();
  if ('errors' in first) throw new Error('a configuration that was made has errors');
  const app = await App.start(first.config, agent.load, logger, undefined, agent.leaveOut, agent.prober.dial);
  app.state.mesh = meshState(agent);
  life.begin(app);
  agent.run(app);
  if (app.adminAddress !== undefined) log('info', 'admin port', { address: app.adminAddress });
  log('info', 'serving', {
    version: app.state.version,
    pid: process.pid,
    node: config.node,
    workers: app.state.workers.length,
    ioUring: app.ioUring,
    mesh: agent.knows === 'nothing' ? 'not known yet' : 'as last known',
    startMs: Math.round(performance.now()),
  });
  setImmediate(flushCompileCache);
  // Again when what is loaded on first use is there, too: a start that finds all of it compiled needs 10 MiB less.
  setTimeout(flushCompileCache, COMPILED_AFTER_MS).unref();
  return life.ended;
}

function load(file: string, io: MeshIo): NodeConfig {
  const loaded = loadNode(file, process.env);
  if ('config' in loaded) return loaded.config;
  for (const line of formatConfigErrors(loaded.errors, SHOWN_ERRORS_MAX)) io.err(`${line}\n`);
  throw new ExitError(ExitCode.CONFIG_INVALID, 'the configuration is not valid, and nothing was started.');
}

function reload(agent: NodeAgent, file: string, { log }: Logger): void {
  const loaded = loadNode(file, process.env);
  if ('errors' in loaded) {
    refuse(loaded.errors, log);
    return;
  }
  const { config, waiting } = reloaded(agent.config, loaded.config);
  for (const key of waiting) log('warn', 'a change needs a restart to take effect', { key });
  agent.configure(config);
  log('info', 'configuration applied', { file });
}

function refuse(errors: readonly ConfigError[], log: Logger['log']): void {
  for (const line of formatConfigErrors(errors, LOGGED_ERRORS_MAX)) log('error', line);
  log('error', 'the configuration was refused, the old one stays', { errors: errors.length });
}

/** What an operator has to change, as one sentence; anything else is a defect and stays what it is. */
function beginFailure(error: unknown): unknown {
  if (error instanceof IdentityError && error.code !== 'internal') {
    const advice = error.advice === '' ? '' : `; ${error.advice}`;
    return new ExitError(ExitCode.CONFIG_INVALID, `${error.message} (${error.code})${advice}.`);
  }
  const { code, syscall, message } = error as NodeJS.ErrnoException;
  if (syscall !== undefined) return new ExitError(ExitCode.CONFIG_INVALID, `${message} (${code}).`);
  return error;
}
