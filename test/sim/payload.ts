// Bodies whose every byte says where it belongs.
//
// A byte is a mix of the request number, the direction and its position, so that bytes that were
// lost, doubled, moved, or taken from another request do not pass the check.

/** Which bytes of an exchange: a body, or one side's bytes in a tunnel. */
export const Direction = { REQUEST: 0, RESPONSE: 1, TUNNEL_UP: 2, TUNNEL_DOWN: 3 } as const;

/** `length` bytes of the body of request `id` in one direction, from `position` on. */
export function payload(id: number, direction: number, position: number, length: number): Uint8Array {
  const out = new Uint8Array(length);
  const seed = seedOf(id, direction);
  for (let i = 0; i < length; i++) out[i] = byteAt(seed, position + i);
  return out;
}

/** Checks a body as it arrives. */
export class PayloadChecker {
  /** Bytes checked so far. */
  position = 0;
  private readonly seed: number;

  constructor(id: number, direction: number) {
    this.seed = seedOf(id, direction);
  }

  /** Takes the next bytes; returns the position of the first wrong one, or -1 when all are right. */
  check(bytes: Uint8Array): number {
    for (let i = 0; i < bytes.length; i++) {
      if (bytes[i] !== byteAt(this.seed, this.position + i)) return this.position + i;
    }
    this.position += bytes.length;
    return -1;
  }
}

function seedOf(id: number, direction: number): number {
  return Math.imul(id * 4 + direction, 0x9e3779b1);
}

function byteAt(seed: number, position: number): number {
  const bits = Math.imul(seed ^ Math.imul(position + 1, 0x85ebca6b), 0xc2b2ae35);
  return (bits >>> 15) & 255;
}
