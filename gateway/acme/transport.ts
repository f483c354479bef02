// HTTPS to the CA: one request, one answer, with limits on time and size.
//
// Only https; redirects are not followed, since RFC 8555 has none and signed requests name their URL.
// Control thread only.

import { Agent, request } from 'node:https';
import { version } from '../../core/process/version.ts';
import { AcmeError, transportError } from './errors.ts';

/** Time for one request, connection included. */
const REQUEST_TIMEOUT_MS = 30_000;
/** No answer of a CA comes near this. */
const RESPONSE_BYTES_MAX = 1024 * 1024;

/** An answer of the CA. */
export interface AcmeResponse {
  status: number;
  /** Names in lower case. */
  headers: NodeJS.Dict<string | string[]>;
  body: string;
}

/** Connections to one CA; `close` it after use. */
export class Transport {
  private readonly agent: Agent;
  private readonly signal: AbortSignal;

  /** `caPem`: trusted instead of the public authorities. `signal` ends all requests. */
  constructor(caPem: string | undefined, signal: AbortSignal) {
    this.agent = new Agent({ keepAlive: true, ...(caPem === undefined ? {} : { ca: caPem }) });
    this.signal = signal;
  }

  /**
   * Sends one request; a `body` is sent as `application/jose+json`. Resolves for every status; rejects
   * with an AcmeError, or with the signal's reason once it is aborted.
   */
  async send(method: 'GET' | 'HEAD' | 'POST', url: string, body?: string): Promise<AcmeResponse> {
    if (!URL.canParse(url) || new URL(url).protocol !== 'https:') {
      throw new AcmeError(
        'protocol',
        `the CA's address ${JSON.stringify(url)} is not an https URL`,
        'correct the directory URL',
      );
    }
    try {
      return await this.sendOnce(method, url, body);
    } catch (error) {
      this.signal.throwIfAborted();
      if (error instanceof AcmeError) throw error;
      throw transportError(error as NodeJS.ErrnoException, new URL(url).host);
    }
  }

  /** Closes all connections. */
  close(): void {
    this.agent.destroy();
  }

  private sendOnce(method: string, url: string, body: string | undefined, isRetry = false): Promise<AcmeResponse> {
    return new Promise((resolve, reject) => {
      const headers: Record<string, string> = { 'user-agent': `portcullis/${version()}`, 'accept-language': 'en' };
      if (body !== undefined) headers['content-type'] = 'application/jose+json';
      const timeout = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
      const signal = AbortSignal.any([this.signal, timeout]);
      const outgoing = request(url, { method, headers, agent: this.agent, signal }, (incoming) => {
        const chunks: Buffer[] = [];
        let bytes = 0;
        incoming.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes <= RESPONSE_BYTES_MAX) chunks.push(chunk);
          else incoming.destroy(new Error(`its answer is larger than ${RESPONSE_BYTES_MAX} bytes`));
        });
        incoming.on('error', failed);
        incoming.on('end', () => {
          const { statusCode = 0, headers } = incoming;
          resolve({ status: statusCode, headers, body: Buffer.concat(chunks).toString('utf8') });
        });
      });
      const failed = (error: NodeJS.ErrnoException): void => {
        if (timeout.aborted) {
          reject(Object.assign(new Error(`no answer within ${REQUEST_TIMEOUT_MS / 1000} s`), { code: 'ETIMEDOUT' }));
          return;
        }
        // The CA may close an idle connection just as the next request sets out on it.
        if (error.code === 'ECONNRESET' && outgoing.reusedSocket && !isRetry && !this.signal.aborted) {
          this.sendOnce(method, url, body, true).then(resolve, reject);
          return;
        }
        reject(error);
      };
      outgoing.on('error', failed);
      outgoing.end(body);
    });
  }
}
