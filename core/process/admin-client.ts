// The commands' side of an admin port: where it is, and one question with its answer.

import { ExitCode, ExitError } from './exit-codes.ts';
import { get } from './node-http.ts';

const ANSWER_TIMEOUT_MS = 5000;

/** Where an admin port is. */
export interface AdminAddress {
  /** As it was given. */
  text: string;
  host: string;
  port: number;
}

/** `HOST:PORT` or `[IPV6]:PORT`; undefined for anything else. */
export function parseAdminAddress(text: string): AdminAddress | undefined {
  const parts = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  if (parts === null || Number(parts[3]) > 65535) return undefined;
  return { text, host: parts[1] ?? parts[2]!, port: Number(parts[3]) };
}

/** The address that an option `--admin` gives. Throws an ExitError of wrong usage. */
export function adminOption(text: string): AdminAddress {
  const address = parseAdminAddress(text);
  if (address === undefined) throw new ExitError(ExitCode.USAGE, `--admin: expected HOST:PORT, not "${text}".`);
  return address;
}

/** Asks for a page; rejects with a one-line cause when there is no answer. `bytesMax`: longest answer. */
export function askAdmin(
  { host, port }: AdminAddress,
  path: string,
  bytesMax: number,
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const request = get({ host, port, path, agent: false, timeout: ANSWER_TIMEOUT_MS }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        body += chunk;
        if (body.length > bytesMax) request.destroy(new Error('its answer is far too long'));
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body }));
      response.on('error', reject);
    });
    request.on('timeout', () => request.destroy(new Error(`no answer within ${ANSWER_TIMEOUT_MS / 1000} s`)));
    request.on('error', reject);
  });
}
