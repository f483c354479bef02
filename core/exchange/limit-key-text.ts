// Keys of global rate limits as texts, which go to the control thread and, hashed, to Redis.
// Makes strings: not for local limits, whose keys are only hashed (rate-limits.ts).

import type { RequestHead } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';
import { isIpv4, networkFirst, networkSecond } from './client-network.ts';
import { findFieldNamed } from './fields.ts';
import { bearerClaim } from './jwt-claim.ts';
import { KeyPart, type LimitKeyPart } from './rule-limits.ts';

/** The parts of a key one after the other, each with its length, so that the same texts cut elsewhere are another key. */
export function limitKeyText(
  key: readonly LimitKeyPart[],
  memory: Uint8Array,
  head: RequestHead,
  client: PeerAddress,
): string {
  return key
    .map((part) => partText(part, memory, head, client))
    .map((text) => (text === null ? '-;' : `${text.length}:${text};`))
    .join('');
}

function partText(part: LimitKeyPart, memory: Uint8Array, head: RequestHead, client: PeerAddress): string | null {
  switch (part.kind) {
    case KeyPart.PATH:
      return textOf(memory, head.pathOffset, head.pathOnlyLength);
    case KeyPart.HEADER: {
      const field = findFieldNamed(memory, head.headers, part.nameBytes);
      return field < 0 ? null : textOf(memory, head.headers.valueOffset(field), head.headers.valueLength(field));
    }
    case KeyPart.CLAIM: {
      const claim = bearerClaim(memory, head, part.name);
      return claim === null ? null : textOf(claim, 0, claim.length);
    }
    default: {
      const first = networkFirst(client) >>> 0;
      return isIpv4(client) ? `${first}` : `${first}/${networkSecond(client) >>> 0}`;
    }
  }
}

/** Bytes as text, one character each. */
function textOf(memory: Uint8Array, offset: number, length: number): string {
  return Buffer.from(memory.buffer, memory.byteOffset + offset, length).toString('latin1');
}
