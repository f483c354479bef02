// `portcullis mesh rotate`: begins, turns back and unblocks rotations of the root, by orders in the CA's directory.
//
// A short process of its own, run as the control plane's user.

import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments } from '../../core/process/options.ts';
import { directoryHolder } from '../identity/directory-lock.ts';
import { giveOrder, type RotationOrder } from '../identity/rotation-orders.ts';
import { asExitError, controlConfigOf, requireControlUser } from './ca-access.ts';
import { ROTATE_HELP } from './help.ts';
import type { MeshIo } from './io.ts';
import { printable } from './table.ts';

/** Runs `portcullis mesh rotate` with the arguments after these words. Throws an ExitError. */
export async function rotateCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(ROTATE_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(
    args,
    { '--config': 'value', '--abort': 'flag', '--forget': 'value' },
    'mesh rotate',
  );
  if (positional.length > 0) throw usage(`mesh rotate takes no argument ${positional[0]}.`);
  const file = options.get('--config');
  if (file === undefined) throw usage("mesh rotate needs --config FILE, the control plane's.");
  const proxy = options.get('--forget');
  if (proxy !== undefined && options.has('--abort')) throw usage('--abort and --forget contradict each other.');
  const { directory } = controlConfigOf(file, io).ca;
  requireControlUser(directory);
  const order: RotationOrder =
    proxy === undefined ? { action: options.has('--abort') ? 'abort' : 'rotate' } : { action: 'forget', proxy };
  try {
    if ((await directoryHolder(directory)) === null) {
      const sentence = `no control plane uses ${directory}: start it first, it carries the rotation out.`;
      throw new ExitError(ExitCode.CONFIG_INVALID, sentence);
    }
    const { done, message, advice } = await giveOrder(directory, order);
    if (!done)
      throw new ExitError(ExitCode.CONFIG_INVALID, `${printable(message)}${advice === '' ? '' : `; ${advice}`}.`);
    const next = order.action === 'rotate' ? '; `portcullis mesh roots` shows how far it is' : '';
    io.out(`${printable(message)}${next}\n`);
    return ExitCode.OK;
  } catch (error) {
    throw asExitError(error);
  }
}

function usage(sentence: string): ExitError {
  return new ExitError(ExitCode.USAGE, sentence);
}
