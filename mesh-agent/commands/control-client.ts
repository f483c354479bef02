// The commands' side of admin ports: that of the control plane, and those of node proxies.

import { type AdminAddress, askAdmin } from '../../core/process/admin-client.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';

/** Longest answer: some 500,000 workloads. */
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;

/** Whose admin port is asked. */
export type AdminOwner = 'control plane' | 'node proxy';

/** The text of a page. Throws an ExitError when there is no answer, or not that of its owner. */
export async function askControl(
  admin: AdminAddress,
  path: string,
  owner: AdminOwner = 'control plane',
): Promise<string> {
  let answer: { status: number; body: string };
  try {
    answer = await askAdmin(admin, path, ANSWER_BYTES_MAX);
  } catch (error) {
    const cause = (error as Error).message;
    throw new ExitError(
      ExitCode.CONFIG_INVALID,
      `cannot reach the admin port ${admin.text}: ${cause}; is the ${owner} running, with admin on?`,
    );
  }
  if (answer.status === 200) return answer.body;
  throw notOwner(admin, `answered ${answer.status}`, owner);
}

/** The answer as JSON. Throws an ExitError when it is none. */
export function parseAnswer(body: string, admin: AdminAddress, owner: AdminOwner = 'control plane'): unknown {
  try {
    return JSON.parse(body);
  } catch {
    throw notOwner(admin, 'did not answer with JSON', owner);
  }
}

function notOwner(admin: AdminAddress, what: string, owner: AdminOwner): ExitError {
  return new ExitError(
    ExitCode.CONFIG_INVALID,
    `${admin.text} ${what}; is that the admin port of a ${owner} (not of a gateway)?`,
  );
}
