// What the semantic checks share: walking over values of any shape, unique names, references.
//
// Control thread. Takes nothing for granted about shapes, see semantics.ts.

import { suggest } from '../core/process/suggest.ts';
import { about, pathText, type Violation } from './validate.ts';
import type { Path } from './yaml.ts';

/** A mapping whose values can be anything. */
export type Mapping = Record<string, unknown>;

/** Takes a violation. */
export type Report = (violation: Violation) => void;

/** Reports a value that stands elsewhere already. Remembers where it is first seen. */
export function unique(
  seen: Map<string, Path>,
  value: unknown,
  path: Path,
  what: string,
  expected: string,
  report: Report,
): void {
  if (typeof value !== 'string') return;
  const first = seen.get(value);
  if (first === undefined) {
    seen.set(value, path);
    return;
  }
  const problem = `${about(path)}${what} ${JSON.stringify(value)} is used already by ${pathText(first)}`;
  report({ path, part: 'value', problem, expected });
}

/** Reports a name that nothing has; says nothing when the section itself could not be read. */
export function checkReference(
  name: unknown,
  path: Path,
  what: string,
  known: Set<string> | undefined,
  report: Report,
): void {
  if (typeof name !== 'string' || name === '' || known === undefined || known.has(name)) return;
  const near = suggest(name, known);
  const few = known.size > 0 && known.size <= 10;
  report({
    path,
    part: 'value',
    problem: `${about(path)}there is no ${what} ${JSON.stringify(name)}`,
    expected: few ? `${known.size > 1 ? 'one of ' : ''}${[...known].join(', ')}` : `the name of a ${what}`,
    hint: near === undefined ? undefined : JSON.stringify(near),
  });
}

/** Names in a section, or undefined when it is no list. */
export function names(section: unknown): Set<string> | undefined {
  if (!Array.isArray(section)) return undefined;
  return new Set(
    section.map((item) => (isMapping(item) ? item.name : undefined)).filter((name) => typeof name === 'string'),
  );
}

/** The items of a list with their paths; nothing for anything else. */
export function* items(list: unknown, path: Path): Generator<[unknown, Path]> {
  if (!Array.isArray(list)) return;
  for (let i = 0; i < list.length; i++) yield [list[i], [...path, i]];
}

/** The items of a list that are mappings. */
export function* mappings(list: unknown, path: Path): Generator<[Mapping, Path]> {
  for (const [item, at] of items(list, path)) if (isMapping(item)) yield [item, at];
}

/** Whether a value is a mapping. */
export function isMapping(value: unknown): value is Mapping {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Reports the value at a path: `about` and the value go before `problem`. */
export function refuse(
  report: Report,
  path: Path,
  problem: string,
  expected?: string,
  hint?: string,
  part: 'key' | 'value' = 'value',
): void {
  report({
    path,
    part,
    problem: `${about(path)}${problem}`,
    expected,
    hint: hint === undefined ? undefined : JSON.stringify(hint),
  });
}
