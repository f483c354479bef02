// New paths for requests and redirects: the whole path replaced, or the prefix that the rule matched.
// Made once per snapshot and policy, immutable afterwards. Hot module: no allocation.
// Spec: Gateway API HTTPPathModifier (the table of ReplacePrefixMatch).

import { putBytes, putRange } from '../io/bytes.ts';
import type { PathRewriteSettings } from '../workers/filter-settings.ts';

const SLASH = 47;
const QUESTION_MARK = 63;

const encoder = new TextEncoder();

/** A new path; the query stays. */
export class PathRewrite {
  /** The path, or what stands for the prefix. */
  private readonly value: Uint8Array;
  /** Prefixes of the rule, longest first, without a slash at the end; null: the whole path is replaced. */
  private readonly prefixes: Uint8Array[] | null;

  constructor(settings: PathRewriteSettings) {
    this.value = encoder.encode(settings.value);
    this.prefixes =
      settings.type === 'ReplaceFullPath' ? null : settings.prefixes.map((prefix) => encoder.encode(prefix));
  }

  /** Upper bound of what `put` writes for a path (with query) of `length` bytes. */
  bytesMax(length: number): number {
    return length + this.value.length + 1;
  }

  /**
   * Writes the new path, and the query, of the target (origin form) in [offset, offset + length) at `at`; the two
   * ranges must not overlap. `*` and authorities have no path, and stay as they are. Returns the offset after it.
   */
  put(memory: Uint8Array, at: number, offset: number, length: number): number {
    if (length === 0 || memory[offset] !== SLASH) return putRange(memory, at, offset, length);
    let pathLength = 0;
    while (pathLength < length && memory[offset + pathLength] !== QUESTION_MARK) pathLength++;
    let rest = pathLength;
    if (this.prefixes !== null) {
      rest = this.matchedLength(memory, offset, pathLength);
      // The rule has taken the request by one of its prefixes.
      if (rest < 0) return putRange(memory, at, offset, length);
    }
    let dest = putBytes(memory, at, this.value);
    dest = putRange(memory, dest, offset + rest, pathLength - rest);
    if (dest === at) memory[dest++] = SLASH;
    return putRange(memory, dest, offset + pathLength, length - pathLength);
  }

  /** Length of the longest prefix that takes a path, or -1. */
  private matchedLength(memory: Uint8Array, offset: number, length: number): number {
    const prefixes = this.prefixes!;
    for (let i = 0; i < prefixes.length; i++) {
      const prefix = prefixes[i];
      if (prefix.length > length) continue;
      if (prefix.length < length && memory[offset + prefix.length] !== SLASH) continue;
      let at = 0;
      while (at < prefix.length && memory[offset + at] === prefix[at]) at++;
      if (at === prefix.length) return at;
    }
    return -1;
  }
}
