// Validation: where a value does not fit the schema, and what is wrong there in words for its author.
//
// Control thread. Follows schema and value down together. Knows the keywords of JSON Schema that
// schema-builder.ts can make, and the notes of kinds.ts.
// Invariants: a value is valid if and only if there is no violation; one place yields one violation.

import type { TSchema } from 'typebox';
import { suggest } from '../core/process/suggest.ts';
import { describeValue } from './errors.ts';
import { noteOf } from './kinds.ts';
import { nodeOf, type SchemaNode } from './schema-builder.ts';
import { BROKEN, type Path } from './yaml.ts';

/** One violation. */
export interface Violation {
  path: Path;
  /** Whether the key is meant, or the value. */
  part: 'key' | 'value';
  problem: string;
  expected?: string | undefined;
  hint?: string | undefined;
}

/** All places where `value` does not fit `schema`, in the order of the value; none when it is valid. */
export function validate(schema: TSchema, value: unknown): Violation[] {
  const violations: Violation[] = [];
  visit(nodeOf(schema), value, [], violations);
  return violations;
}

/** `listeners[0].address` of a path; empty for the root. */
export function pathText(path: Path): string {
  let text = '';
  for (const step of path) {
    if (typeof step === 'number') text += `[${step}]`;
    else text += text === '' ? step : `.${step}`;
  }
  return text;
}

/** Starts a sentence about a place: `listeners[0].address: `. */
export function about(path: Path): string {
  return path.length === 0 ? '' : `${pathText(path)}: `;
}

function visit(schema: SchemaNode, value: unknown, path: Path, violations: Violation[]): void {
  if (value === BROKEN) return;
  if (value === null) {
    const problem = path.length === 0 ? 'the file is empty' : `${about(path)}is empty`;
    violations.push({ path, part: 'value', problem, expected: expectedOf(schema) });
    return;
  }
  const isObject = typeof value === 'object' && !Array.isArray(value);
  const objectSchema = schema.properties === undefined ? schema.anyOf?.find(({ properties }) => properties) : schema;
  if (isObject && objectSchema !== undefined) {
    visitObject(objectSchema, value as Record<string, unknown>, path, violations);
  } else if (isObject && typeof schema.additionalProperties === 'object') {
    visitDictionary(schema, value as Record<string, unknown>, path, violations);
  } else if (Array.isArray(value) && schema.items !== undefined) {
    visitArray(schema, value, path, violations);
  } else if (!fits(schema, value)) {
    violations.push(leafViolation(schema, value, path));
  }
}

function visitObject(schema: SchemaNode, object: Record<string, unknown>, path: Path, violations: Violation[]): void {
  const known = Object.keys(schema.properties!);
  for (const [key, value] of Object.entries(object)) {
    const property = schema.properties![key];
    if (property !== undefined) {
      visit(property, value, [...path, key], violations);
      continue;
    }
    const near = suggest(
      key,
      known.filter((name) => object[name] === undefined),
    );
    violations.push({
      path: [...path, key],
      part: 'key',
      problem: `${about(path)}unknown key ${JSON.stringify(key)}`,
      expected: known.length === 1 ? known[0]! : `one of ${known.join(', ')}`,
      hint: hintAtColon(key, known) ?? (near === undefined ? undefined : JSON.stringify(near)),
    });
  }
  for (const key of schema.required ?? []) {
    if (Object.hasOwn(object, key)) continue;
    violations.push({
      path,
      part: 'value',
      problem: `${about(path)}key "${key}" is missing`,
      expected: expectedOf(schema.properties![key]!),
    });
  }
}

function visitDictionary(
  schema: SchemaNode,
  object: Record<string, unknown>,
  path: Path,
  violations: Violation[],
): void {
  const { maxProperties = Number.POSITIVE_INFINITY, propertyNames } = schema;
  const entries = Object.entries(object);
  if (entries.length > maxProperties) {
    const problem = `${about(path)}has ${entries.length} keys`;
    violations.push({ path, part: 'value', problem, expected: `at most ${maxProperties}` });
    return;
  }
  for (const [key, value] of entries) {
    const at = [...path, key];
    if (propertyNames === undefined || new RegExp(propertyNames.pattern, 'u').test(key)) {
      visit(schema.additionalProperties as SchemaNode, value, at, violations);
    } else {
      const problem = `${about(path)}the key ${JSON.stringify(key)} is not a name`;
      violations.push({ path: at, part: 'key', problem, expected: expectedOf(schema) });
    }
  }
}

function visitArray(schema: SchemaNode, list: unknown[], path: Path, violations: Violation[]): void {
  const { minItems = 0, maxItems = Number.POSITIVE_INFINITY } = schema;
  if (list.length < minItems) {
    violations.push({ path, part: 'value', problem: `${about(path)}is an empty list`, expected: 'at least one item' });
  } else if (list.length > maxItems) {
    const problem = `${about(path)}has ${list.length} items`;
    violations.push({ path, part: 'value', problem, expected: `at most ${maxItems}` });
  }
  list.forEach((item, index) => {
    visit(schema.items!, item, [...path, index], violations);
  });
}

/** Whether a single value (no mapping, no list) fits. */
function fits(schema: SchemaNode, value: unknown): boolean {
  if (schema.anyOf !== undefined) {
    if (!schema.anyOf.some((branch) => fits(branch, value))) return false;
  } else if (schema.enum !== undefined) {
    if (!(schema.enum as readonly unknown[]).includes(value)) return false;
  } else if (schema.const !== undefined) {
    if (schema.const !== value) return false;
  } else if (schema.type === 'string') {
    if (typeof value !== 'string') return false;
    if (schema.pattern !== undefined && !new RegExp(schema.pattern, 'u').test(value)) return false;
  } else if (schema.type === 'integer') {
    if (typeof value !== 'number' || !Number.isSafeInteger(value)) return false;
    if (value < (schema.minimum ?? value) || value > (schema.maximum ?? value)) return false;
  } else if (schema.type === 'number') {
    if (typeof value !== 'number' || !Number.isFinite(value)) return false;
    if (value < (schema.minimum ?? value) || value > (schema.maximum ?? value)) return false;
  } else if (schema.type !== 'boolean' || typeof value !== 'boolean') {
    return false;
  }
  const problem = noteOf(schema)?.problem;
  return problem === undefined || problem(String(value)) === undefined;
}

function leafViolation(schema: SchemaNode, value: unknown, path: Path): Violation {
  // A union of text and mapping takes the note of its text branch for what is wrong with a text.
  const text = typeof value === 'string';
  const note = noteOf(schema);
  const textNote = text ? (schema.anyOf?.map(noteOf).find((branch) => branch?.problem !== undefined) ?? note) : note;
  const single = text || typeof value === 'number';
  const said = single ? textNote?.problem?.(String(value)) : undefined;
  const problem = said ?? (note?.numeric === true ? numberProblem(value, schema.type === 'number') : 'is not valid');
  const named = text ? suggest(value, textNote?.names ?? []) : undefined;
  const guess = (single ? textNote?.suggest?.(String(value)) : undefined) ?? named;
  const mapping = schema.properties ?? schema.items?.properties;
  const pair = text && mapping !== undefined ? hintAtColon(value, Object.keys(mapping)) : undefined;
  return {
    path,
    part: 'value',
    problem: `${about(path)}${describeValue(value)} ${problem}`,
    expected: expectedOf(schema),
    hint: guess === undefined ? pair : JSON.stringify(guess),
  };
}

/** `"key: value"` for a text that lacks the colon or the space after it; undefined for any other. */
function hintAtColon(text: string, known: readonly string[]): string | undefined {
  const [, key, value] = /^-?([A-Za-z0-9]+)(?::| )(\S.*)$/s.exec(text) ?? [];
  if (key === undefined || !known.includes(key)) return undefined;
  return JSON.stringify(`${key}: ${value}`.slice(0, 60));
}

function numberProblem(value: unknown, fractions: boolean): string {
  if (typeof value === 'string' && /^-?\d+(\.\d+)?$/.test(value)) return 'is quoted text, not a number';
  return typeof value === 'number' && (Number.isInteger(value) || fractions) ? 'is out of range' : 'is not valid';
}

/** What would be right at a place, for "expected ...". */
function expectedOf(schema: SchemaNode): string {
  const note = noteOf(schema);
  if (note !== undefined) return note.expected;
  if (schema.items !== undefined) return 'a list';
  const keys = Object.keys(schema.properties ?? {});
  return `a mapping with ${keys.length === 1 ? keys[0] : `keys such as ${(schema.required ?? keys).slice(0, 3).join(', ')}`}`;
}
