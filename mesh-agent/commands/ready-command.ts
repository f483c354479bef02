// `portcullis mesh ready`: whether a proxy serves, as an exit code, for probes that cannot reach its admin port.
//
// A short process of its own, inside the network namespace of the proxy.

import { adminOption, askAdmin } from '../../core/process/admin-client.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments } from '../../core/process/options.ts';
import { NODE_ADMIN_DEFAULT } from '../node/admin-address.ts';
import type { MeshIo } from './io.ts';

/** Longest answer that is waited for. */
const ANSWER_BYTES_MAX = 64 * 1024;

/** Runs `portcullis mesh ready`; `args` are those after the word. Throws an ExitError. */
export async function readyCommand(args: string[], io: MeshIo): Promise<number> {
  const { options, positional } = parseArguments(args, { '--admin': 'value' }, 'mesh');
  if (positional.length > 0) throw new ExitError(ExitCode.USAGE, `mesh ready takes no argument ${positional[0]}.`);
  const admin = adminOption(options.get('--admin') ?? NODE_ADMIN_DEFAULT);
  let answer: { status: number; body: string };
  try {
    answer = await askAdmin(admin, '/readyz', ANSWER_BYTES_MAX);
  } catch (error) {
    throw new ExitError(
      ExitCode.CONFIG_INVALID,
      `cannot reach the admin port ${admin.text}: ${(error as Error).message}.`,
    );
  }
  const { status, body } = answer;
  (status === 200 ? io.out : io.err)(body.endsWith('\n') ? body : `${body}\n`);
  return status === 200 ? ExitCode.OK : ExitCode.CONFIG_INVALID;
}
