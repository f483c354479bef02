// `portcullis recorded`: writes the requests that a running gateway has recorded to standard output.

import { type AdminAddress, adminOption } from '../../core/process/admin-client.ts';
import { ExitCode } from '../../core/process/exit-codes.ts';
import { get } from '../../core/process/node-http.ts';
import type { CommandIo } from '../cli.ts';

const ADMIN_DEFAULT = '127.0.0.1:9901';

/** Longest silence of the admin port. */
const SILENCE_TIMEOUT_MS = 10_000;

/** Most bytes of an answer that is an error. */
const ERROR_BYTES_MAX = 4096;

/** Writes the recording of the gateway whose admin port is `admin`; returns the exit code. */
export async function writeRecorded(admin: string | undefined, io: CommandIo): Promise<number> {
  const address = adminOption(admin ?? ADMIN_DEFAULT);
  try {
    const error = await download(address, io);
    if (error === undefined) return ExitCode.OK;
    io.err(`portcullis: ${error}\n`);
  } catch (error) {
    const cause = (error as Error).message;
    io.err(
      `portcullis: the admin port ${address.text} gave no recording: ${cause}; is the gateway running, with admin on?\n`,
    );
  }
  return ExitCode.CONFIG_INVALID;
}

/** Resolves to what the admin port says is wrong, or to undefined when all has been written. */
function download({ host, port }: AdminAddress, io: CommandIo): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const options = { host, port, path: '/recorded-requests', agent: false, timeout: SILENCE_TIMEOUT_MS };
    const request = get(options, (response) => {
      const good = response.statusCode === 200;
      let error = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        if (good) io.out(chunk);
        else if (error.length < ERROR_BYTES_MAX) error += chunk;
      });
      response.on('end', () => resolve(good ? undefined : error.trim() || `status ${response.statusCode}`));
      response.on('error', reject);
      response.on('aborted', () => reject(new Error('it ended in the middle')));
    });
    request.on('timeout', () => request.destroy(new Error(`silent for ${SILENCE_TIMEOUT_MS / 1000} s`)));
    request.on('error', reject);
  });
}
