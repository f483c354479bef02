// Entry of the `portcullis` command: checks the machine before anything loads native code.
//
// Everything else is imported afterwards, so that a missing dependency or an unsupported machine
// gives one sentence instead of a stack trace.

import { ExitCode } from '../core/process/exit-codes.ts';
import { startEarly } from '../core/workers/prestart.ts';

/** Oldest Node.js that runs the sources as they are; the pinned one is newer. */
const NODE_MAJOR_MIN = 26;

function unsupported(): string | undefined {
  const { platform, arch, versions } = process;
  if (platform !== 'linux' || (arch !== 'x64' && arch !== 'arm64')) {
    return `this machine is ${platform} ${arch}, and Portcullis runs on Linux on x64 and arm64 only.`;
  }
  if (Number(versions.node.split('.')[0]) < NODE_MAJOR_MIN) {
    return `Node.js ${versions.node} is too old: start it with ./portcullis, which uses the pinned runtime.`;
  }
  return undefined;
}

const [command, subcommand] = process.argv.slice(2);

/** Whether it has packet workers. */
const hasWorkers = command === 'run' || (command === 'mesh' && subcommand === 'node');

/** Whether it serves until a signal ends it. */
const isServing = hasWorkers || command === 'control';

/** Longest wait at their end for somebody to take its last lines; a log reader may be stuck. */
const LAST_LINES_TIMEOUT_MS = 2000;

/** Waits until everything written has been taken: to a pipe, Node.js writes only what fits at once. */
async function written(): Promise<void> {
  const streams = [process.stdout, process.stderr];
  const done = Promise.all(streams.map((stream) => new Promise((resolve) => stream.write('', resolve))));
  if (!isServing) await done;
  else await Promise.race([done, new Promise((resolve) => setTimeout(resolve, LAST_LINES_TIMEOUT_MS))]);
}

async function main(): Promise<number> {
  const sentence = unsupported();
  if (sentence !== undefined) {
    process.stderr.write(`portcullis: ${sentence}\n`);
    return ExitCode.UNSUPPORTED;
  }
  try {
    if (hasWorkers && !process.argv.includes('--help')) startEarly();
    const { runCli } = await import('./cli.ts');
    return await runCli(process.argv.slice(2), {
      out: (text) => process.stdout.write(text),
      err: (text) => process.stderr.write(text),
    });
  } catch (error) {
    const { code, message, stack } = error as NodeJS.ErrnoException;
    // A package that is not there, or a native library that cannot be loaded on this system.
    if (code === 'ERR_MODULE_NOT_FOUND' || code === 'MODULE_NOT_FOUND' || code === 'ERR_DLOPEN_FAILED') {
      process.stderr.write(`portcullis: the dependencies are not installed properly (run \`npm ci\`): ${message}\n`);
      return ExitCode.UNSUPPORTED;
    }
    process.stderr.write(`portcullis: internal error: ${stack ?? message}\n`);
    return ExitCode.INTERNAL;
  }
}

// Until they have their handlers: SIGUSR1 would open the debugger of Node.js, SIGHUP would be the end.
// (--disable-sigusr1 is no help: it keeps the signal from our own handler as well.)
if (isServing) for (const signal of ['SIGUSR1', 'SIGHUP'] as const) process.on(signal, () => {});

// A reader that goes away (`check | head`) is no defect.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});

/**
 * Ends the process. A gateway that could not start may have threads that still load native code, and
 * `process.exit` aborts the whole process when it interrupts one there.
 */
async function end(exitCode: number): Promise<never> {
  if (hasWorkers && exitCode !== ExitCode.OK) {
    // Without it (it is native code itself), no thread can have got that far either.
    const native = await import('../core/ffi/process.ts').catch(() => undefined);
    native?.exitNow(exitCode);
  }
  process.exit(exitCode);
}

const exitCode = await main();
await written();
await end(exitCode);
