// Paths of a policy, prepared for each form in which a path is compared (path-forms.ts).
// Immutable. Hot module: no allocation per request.

import { formSteps, Normal, normalise, PATH_FORMS, type PathForms } from './path-forms.ts';
import { MatchKind, TextList, TextMatch } from './text-match.ts';

/** Paths of which any one will do. */
export class PathList {
  /** By form: the values as that form has them. */
  private readonly forms: readonly TextList[];

  constructor(values: readonly string[]) {
    const forms: TextList[] = [];
    for (let form = 0; form < PATH_FORMS; form++) forms.push(new TextList(values.map((value) => matchOf(value, form))));
    this.forms = forms;
  }

  /** Whether all forms of a path are in the list; with `lenient`, whether any is, or that cannot be told. */
  has(path: PathForms, lenient: boolean): boolean {
    const { count } = path;
    for (let form = 0; form < count; form++) {
      const has = this.forms[form]!.has(path.memoryOf(form), path.offset(form), path.length(form), lenient);
      if (has === lenient) return lenient;
    }
    // Too long to be looked at: nobody knows.
    return count === 0 ? lenient : !lenient;
  }
}

/** A value as one form has it; null: its meaning is not known. */
function matchOf(value: string, form: number): TextMatch | null {
  if (value.includes('{*}') || value.includes('{**}')) return TextMatch.template(value);
  const match = TextMatch.of(value);
  if (match === null || form === 0) return match;
  return match.withBytes(bytesOf(match.bytes, match.kind, form));
}

/** The bytes of a value as one form has them. */
function bytesOf(bytes: Uint8Array, kind: number, form: number): Uint8Array {
  // As the paths themselves: see `formSteps`.
  const from = form === 2 ? bytesOf(bytes, kind, 1) : bytes;
  let steps = formSteps[form]!;
  // At the open end of a value nothing says where its last segment ends.
  if (kind !== MatchKind.EXACT) steps &= ~Normal.DOTS;
  if (kind === MatchKind.SUFFIX) steps &= ~Normal.PARAMETERS;
  const out = new Uint8Array(from.length + 1);
  return out.slice(0, normalise(from, 0, from.length, out, 0, steps));
}
