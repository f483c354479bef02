// The commands' side of a control plane's admin port.

import { type AdminAddress, askAdmin } from '../../core/process/admin-client.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';

/** Longest answer: some 500,000 workloads. */
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;

/** The text of a page. Throws an ExitError when there is no answer, or not that of a control plane. */
export async function askControl(admin: AdminAddress, path: string): Promise<string> {
  let answer: { status: number; body: string };
  try {
    answer = await askAdmin(admin, path, ANSWER_BYTES_MAX);
  } catch (error) {
    const cause = (error as Error).message;
    throw new ExitError(
      ExitCode.CONFIG_INVALID,
      `cannot reach the admin port ${admin.text}: ${cause}; is the control plane running, with admin on?`,
    );
  }
  if (answer.status === 200) return answer.body;
  throw notControl(admin, `answered ${answer.status}`);
}

/** The answer as JSON. Throws an ExitError when it is none. */
export function parseAnswer(body: string, admin: AdminAddress): unknown {
  try {
    return JSON.parse(body);
  } catch {
    throw notControl(admin, 'did not answer with JSON');
  }
}

function notControl(admin: AdminAddress, what: string): ExitError {
  return new ExitError(
    ExitCode.CONFIG_INVALID,
    `${admin.text} ${what}; is that the admin port of a control plane (not of a gateway)?`,
  );
}
