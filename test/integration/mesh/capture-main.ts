// `portcullis mesh capture` as a process of its own.

import { captureCommand } from '../../../mesh-agent/capture/command.ts';

process.exitCode = await captureCommand(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
});
