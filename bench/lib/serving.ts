// Waiting until a server that was just started answers, and checking what it answers.

import { type Access, askOnce, connectClient } from './access.ts';
import { type BenchProcess, pause } from './processes.ts';

const START_TIMEOUT_MS = 30_000;
const POLL_MS = 2;

/**
 * Polls until `path` is answered with 200 on a fresh connection; returns the time that it was, from
 * performance.now(). Throws with the last words of the process when it ends or never answers.
 */
export async function waitUntilServing(
  server: BenchProcess,
  access: Access,
  path: string,
  host: string,
): Promise<number> {
  const deadlineMs = performance.now() + START_TIMEOUT_MS;
  let last = '';
  while (performance.now() < deadlineMs) {
    if (server.exited) {
      throw new Error(`${server.label} ended (${server.ending}): ${server.stderrTail() || 'without a word'}`);
    }
    try {
      const { status } = await askOnce(access, path, host);
      if (status === 200) return performance.now();
      last = `its last answer had status ${status}`;
    } catch (error) {
      last = error instanceof Error ? error.message : String(error);
    }
    await pause(POLL_MS);
  }
  throw new Error(
    `${server.label} did not answer 200 within ${START_TIMEOUT_MS / 1000} s: ${last}\n${server.stderrTail()}`,
  );
}

/** Throws unless `path` gives 200 with exactly `bodyBytes`, twice on one kept-alive connection. */
export async function checkAnswer(
  label: string,
  access: Access,
  path: string,
  host: string,
  bodyBytes: number,
): Promise<void> {
  const connection = await connectClient(access);
  try {
    for (let i = 0; i < 2; i++) {
      const answer = await connection.get(path, host);
      if (answer.status !== 200 || answer.bodyBytes !== bodyBytes) {
        throw new Error(`status ${answer.status} with ${answer.bodyBytes} bytes instead of 200 with ${bodyBytes}`);
      }
    }
  } catch (error) {
    throw new Error(`${label} answers ${path} wrongly: ${error instanceof Error ? error.message : error}`);
  } finally {
    connection.destroy();
  }
}
