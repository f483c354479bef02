// One request with its whole answer, for looking at what a proxy does before it is measured. (client.ts
// counts bodies only, and wants a Content-Length, which compressed answers do not have.)

import { type IncomingHttpHeaders, request } from 'node:http';
import { buffer } from 'node:stream/consumers';

/** A whole answer. */
export interface WholeAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  /** As it was sent: not decompressed. */
  body: Buffer;
}

/** GET on a connection of its own to 127.0.0.1, HTTP/1.1 without TLS. Rejects when no whole answer comes. */
export function askWhole(port: number, path: string, headers: Readonly<Record<string, string>>): Promise<WholeAnswer> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ host: '127.0.0.1', port, path, headers, agent: false }, (incoming) => {
      buffer(incoming).then(
        (body) => resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, body }),
        reject,
      );
    });
    outgoing.once('error', reject);
    outgoing.end();
  });
}
