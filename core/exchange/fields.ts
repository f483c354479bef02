// Small questions about fields of a header table, answered on the bytes.
// Spec: RFC 9110 §5.6.1 (lists), §7.6.1 (Connection). Hot module: no allocation.

import { HeaderId } from '../http1/header-ids.ts';
import type { HeaderTable } from '../http1/header-table.ts';

/** ASCII letters to lower case, everything else as it is. */
function lower(byte: number): number {
  return byte >= 65 && byte <= 90 ? byte | 32 : byte;
}

/** Whether a range equals `text` (lower case), ASCII case-insensitively. */
export function valueEquals(memory: Uint8Array, offset: number, length: number, text: Uint8Array): boolean {
  if (length !== text.length) return false;
  for (let i = 0; i < length; i++) if (lower(memory[offset + i]) !== text[i]) return false;
  return true;
}

/** Whether two ranges are equal, ASCII case-insensitively. */
function rangesEqual(memory: Uint8Array, a: number, b: number, length: number): boolean {
  for (let i = 0; i < length; i++) if (lower(memory[a + i]) !== lower(memory[b + i])) return false;
  return true;
}

/** Whether a Connection field of the same head names `field`, which makes it hop-by-hop. */
export function connectionNames(memory: Uint8Array, headers: HeaderTable, field: number): boolean {
  const name = headers.nameOffset(field);
  const nameLength = headers.nameLength(field);
  for (
    let connection = headers.find(HeaderId.CONNECTION);
    connection >= 0;
    connection = headers.find(HeaderId.CONNECTION, connection + 1)
  ) {
    const start = headers.valueOffset(connection);
    if (listHas(memory, start, start + headers.valueLength(connection), name, nameLength)) return true;
  }
  return false;
}

/** Whether the comma-separated list in [start, end) has an element equal to the given range. */
function listHas(memory: Uint8Array, start: number, end: number, offset: number, length: number): boolean {
  let at = start;
  while (at < end) {
    while (at < end && (memory[at] === 32 || memory[at] === 9 || memory[at] === 44)) at++;
    const from = at;
    while (at < end && memory[at] !== 44) at++;
    let to = at;
    while (to > from && (memory[to - 1] === 32 || memory[to - 1] === 9)) to--;
    if (to - from === length && rangesEqual(memory, from, offset, length)) return true;
  }
  return false;
}
