// Keys of global rate limits as texts, which go to the control thread and, hashed, to Redis.
// Makes strings: not for local limits, whose keys are only hashed (rate-limits.ts).

import type { RequestHead } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import { isIpv4, networkFirst, networkSecond } from './client-network.ts';
import { findField } from './field-name.ts';
import type { ClaimReader } from './jwt-claim.ts';
import { KeyPart, type LimitKeyPart } from './rule-limits.ts';

const { CLAIM, HEADER, HOST, PATH } = KeyPart;

/** The parts of a key one after the other, each with its length, so that the same texts cut elsewhere are another key. */
export function limitKeyText(
  key: readonly LimitKeyPart[],
  reactor: Reactor,
  claims: ClaimReader,
  head: RequestHead,
  client: PeerAddress,
): string {
  let all = '';
  for (const part of key) {
    const text = partText(part, reactor, claims, head, client);
    all += text === null ? '-;' : `${text.length}:${text};`;
  }
  return all;
}

function partText(
  part: LimitKeyPart,
  { memory, view }: Reactor,
  claims: ClaimReader,
  head: RequestHead,
  client: PeerAddress,
): string | null {
  switch (part.kind) {
    case PATH:
      return textOf(memory, head.pathOffset, head.pathOnlyLength);
    case HOST:
      return head.authorityLength === 0 ? null : textOf(memory, head.authorityOffset, head.authorityLength);
    case HEADER: {
      const field = findField(view, head.headers, part.field);
      return field < 0 ? null : textOf(memory, head.headers.valueOffset(field), head.headers.valueLength(field));
    }
    case CLAIM: {
      const found = claims.read(memory, view, head, part.nameBytes);
      return found ? textOf(claims.bytes, claims.offset, claims.length) : null;
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
