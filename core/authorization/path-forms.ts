// A path as the servers behind may read it. Policies are about what is asked for, and one and the same thing can be
// written in many ways; which of them a workload takes for the same is not known here, and the path is passed on as
// it came. So a path is compared in each of these forms:
//
//   0  as it came
//   1  unreserved characters decoded, backslashes as slashes, dot segments removed (Istio's BASE)
//   2  and then slashes merged (MERGE_SLASHES)
//   3  everything decoded once, slashes merged, dot segments removed (more than DECODE_AND_MERGE_SLASHES)
//   4  the same without parameters of segments (`/a;x=1/b`), which servlet containers take off
//
// A path in which there is nothing to decode, merge or remove has only the first.
// Owned by one worker. Hot module: no allocation per request.
// Spec: RFC 3986 §2.3, §5.2.4, §6.2.2; Istio MeshConfig.ProxyPathNormalization.

import { hexDigitPlusOne as hexDigits } from '../http1/chars.ts';

const hexDigitPlusOne = hexDigits;

const BACKSLASH = 92;
const DOT = 46;
const PERCENT = 37;
const SEMICOLON = 59;
const SLASH = 47;

/** Number of forms. */
export const PATH_FORMS = 5;

/** Longest path that is looked at, bytes. */
export const PATH_BYTES_MAX = 64 * 1024;

/** RFC 3986 §2.3. */
const unreserved = new Uint8Array(256);
for (const character of 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~') {
  unreserved[character.charCodeAt(0)] = 1;
}

/** Bytes of which a path with none has only one form, if no slash is followed by a slash or dot. */
const special = new Uint8Array(256);
special[PERCENT] = 1;
special[BACKSLASH] = 1;
special[SEMICOLON] = 1;

/** What `normalise` does. */
export const Normal = {
  /** Escapes of unreserved characters are decoded; and all escapes; backslashes become slashes. */
  DECODE: 1,
  DECODE_ALL: 2,
  MERGE: 4,
  DOTS: 8,
  PARAMETERS: 16,
} as const;

const { DECODE, DECODE_ALL, DOTS, MERGE, PARAMETERS } = Normal;

/** What makes each form out of the one that it is made from, which is form 1 for form 2, and form 0 for all others. */
export const formSteps: readonly number[] = [
  0,
  DECODE | DOTS,
  MERGE,
  DECODE_ALL | MERGE | DOTS,
  DECODE_ALL | MERGE | DOTS | PARAMETERS,
];

/** Whether a path may have other forms than that in which it came. */
export function hasForms(memory: Uint8Array, offset: number, length: number): boolean {
  const end = offset + length;
  let before = 0;
  for (let i = offset; i < end; i++) {
    const byte = memory[i]!;
    if (special[byte] !== 0) return true;
    if (before === SLASH && (byte === SLASH || byte === DOT)) return true;
    before = byte;
  }
  return false;
}

/** Writes a path, changed by `steps` (Normal), at `at` of `out`, which is other memory. Never longer. Returns its length. */
export function normalise(
  memory: Uint8Array,
  offset: number,
  length: number,
  out: Uint8Array,
  at: number,
  steps: number,
): number {
  const end = offset + length;
  const decode = (steps & (DECODE | DECODE_ALL)) !== 0;
  const decodeAll = (steps & DECODE_ALL) !== 0;
  const merge = (steps & MERGE) !== 0;
  let to = at;
  for (let i = offset; i < end; i++) {
    let byte = memory[i]!;
    if (decode) {
      if (byte === PERCENT && i + 2 < end) {
        const high = hexDigitPlusOne[memory[i + 1]!]!;
        const low = hexDigitPlusOne[memory[i + 2]!]!;
        const decoded = high === 0 || low === 0 ? -1 : ((high - 1) << 4) | (low - 1);
        if (decoded >= 0 && (decodeAll || unreserved[decoded] !== 0)) {
          byte = decoded;
          i += 2;
        }
      } else if (byte === SEMICOLON && (steps & PARAMETERS) !== 0) {
        while (i + 1 < end && memory[i + 1] !== SLASH) i++;
        continue;
      }
      if (byte === BACKSLASH) byte = SLASH;
    }
    if (merge && byte === SLASH && to > at && out[to - 1] === SLASH) continue;
    out[to++] = byte;
  }
  return (steps & DOTS) === 0 ? to - at : removeDots(out, at, to);
}

/** Removes dot segments from [at, end) in place. Returns the new length. */
function removeDots(out: Uint8Array, at: number, end: number): number {
  let to = at;
  let from = at;
  while (from < end) {
    let next = from + 1;
    while (next < end && out[next] !== SLASH) next++;
    const bytes = out[from] === SLASH ? next - from - 1 : -1;
    const dots =
      bytes === 1 && out[from + 1] === DOT ? 1 : bytes === 2 && out[from + 1] === DOT && out[from + 2] === DOT ? 2 : 0;
    if (dots === 0) {
      for (let i = from; i < next; i++) out[to++] = out[i]!;
    } else {
      if (dots === 2) {
        while (to > at) {
          to--;
          if (out[to] === SLASH) break;
        }
      }
      if (next === end) out[to++] = SLASH;
    }
    from = next;
  }
  if (to === at && end > at) out[to++] = SLASH;
  return to - at;
}

/** The forms of one path at a time. */
export class PathForms {
  /** Forms that there are: 1 or PATH_FORMS; 0: the path is too long to be looked at. */
  count = 0;
  private memory: Uint8Array = unreserved;
  private readonly offsets = new Int32Array(PATH_FORMS);
  private readonly lengths = new Int32Array(PATH_FORMS);
  /** Never touched, and so never resident, while all paths are plain. */
  private readonly bytes = new Uint8Array((PATH_FORMS - 1) * PATH_BYTES_MAX);

  /** Takes a path, without query. It must stay where it is as long as its forms are asked for. */
  load(memory: Uint8Array, offset: number, length: number): void {
    this.memory = memory;
    this.offsets[0] = offset;
    this.lengths[0] = length;
    this.count = 1;
    if (length > PATH_BYTES_MAX) this.count = 0;
    else if (hasForms(memory, offset, length)) this.makeForms(memory, offset, length);
  }

  private makeForms(memory: Uint8Array, offset: number, length: number): void {
    const { bytes, offsets, lengths } = this;
    this.count = PATH_FORMS;
    for (let form = 1; form < PATH_FORMS; form++) {
      const at = (form - 1) * PATH_BYTES_MAX;
      offsets[form] = at;
      lengths[form] =
        form === 2
          ? normalise(bytes, offsets[1]!, lengths[1]!, bytes, at, formSteps[form]!)
          : normalise(memory, offset, length, bytes, at, formSteps[form]!);
    }
  }

  /** Memory that a form lies in. */
  memoryOf(form: number): Uint8Array {
    return form === 0 ? this.memory : this.bytes;
  }

  /** Where a form begins. */
  offset(form: number): number {
    return this.offsets[form]!;
  }

  /** Bytes of a form. */
  length(form: number): number {
    return this.lengths[form]!;
  }
}
