// Bodies for the tests of compression, and how upstreams send them.

import { once } from 'node:events';
import type { ServerResponse } from 'node:http';

/** Text that compresses, not by repeating itself alone. */
export function textOf(bytes: number): Buffer {
  const words: string[] = [];
  for (let length = 0, state = 1; length < bytes; ) {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    const word = `w${(state >>> 8) % 5000} `;
    words.push(word);
    length += word.length;
  }
  return Buffer.from(words.join('').slice(0, bytes));
}

/** Sends a body in pieces of any size, as the socket takes them. */
export async function sendPieces(response: ServerResponse, body: Buffer, pieceBytes: number): Promise<void> {
  for (let at = 0; at < body.length; at += pieceBytes) {
    if (response.destroyed) return;
    if (!response.write(body.subarray(at, at + pieceBytes))) await once(response, 'drain').catch(() => {});
  }
  response.end();
}
