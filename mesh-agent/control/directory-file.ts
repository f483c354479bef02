// One file of a mesh directory: from its bytes to documents, or to everything that is wrong with it.
//
// Control thread of the control plane. A file holds any number of YAML documents, separated by lines that
// begin with `---`; places of mistakes are lines and columns of the file.
// Spec: YAML 1.2.2 §9.1 (documents); JSON files are YAML.

import type { Environment } from '../../config/env.ts';
import type { ConfigError, Finding } from '../../config/errors.ts';
import { place } from '../../config/load.ts';
import { isMapping } from '../../config/semantics-walk.ts';
import { decodeText } from '../../config/text.ts';
import { about, type Violation, validate } from '../../config/validate.ts';
import { type Path, readYaml } from '../../config/yaml.ts';
import { readPlainYaml } from '../../config/yaml-plain.ts';
import { suggest } from '../../core/process/suggest.ts';
import { type DocumentOf, documentSchemas, KINDS, type Kind } from './directory-schema.ts';

/** A valid document. */
export type MeshDocument = { [K in Kind]: { kind: K; value: DocumentOf<K> } }[Kind] & {
  /** `Kind namespace/name`, for messages and as a key. */
  name: string;
  namespace: string;
  /** Where it begins and ends in the text of its file. */
  start: number;
  end: number;
};

/** A file whose documents are all valid in themselves. */
export interface MeshFile {
  /** Path as shown in messages. */
  file: string;
  text: string;
  documents: MeshDocument[];
}

/** What is wrong with a file that the system does not let be read. */
export function unreadable(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return `the file cannot be read (${code ?? message})`;
}

/** Reads a file, or says what is wrong with it. `env` is where `${VAR}` is looked up. */
export function readMeshFile(bytes: Uint8Array, file: string, env: Environment): MeshFile | { errors: ConfigError[] } {
  const { text, finding } = decodeText(bytes);
  if (finding !== undefined) return { errors: place([finding], text, file) };
  const findings: Finding[] = [];
  const documents: MeshDocument[] = [];
  for (const { start, end } of documentRanges(text)) {
    const part = text.slice(start, end);
    if (/^\s*(#[^\n]*\s*)*$/.test(part)) continue;
    const quick = readPlainYaml(part, env);
    const valid = quick === undefined ? undefined : documentOf(quick, start, end);
    if (valid !== undefined && 'name' in valid) {
      documents.push(valid);
      continue;
    }
    const yaml = readYaml(part, env);
    findings.push(...yaml.findings.map((one) => ({ ...one, offset: one.offset + start })));
    if (yaml.value === undefined) continue;
    const read = documentOf(yaml.value, start, end);
    if ('name' in read) documents.push(read);
    else findings.push(...read.violations.map((violation) => found(violation, yaml.locate, start)));
  }
  return findings.length > 0 ? { errors: place(findings, text, file) } : { file, text, documents };
}

/** An error about a place in a document of a file that was valid in itself. */
export function errorIn(
  { file, text }: MeshFile,
  document: MeshDocument,
  path: Path,
  error: Omit<Violation, 'path' | 'part'>,
  part: 'key' | 'value' = 'value',
): ConfigError {
  const { locate } = readYaml(text.slice(document.start, document.end), {});
  return place([found({ path, part, ...error }, locate, document.start)], text, file)[0]!;
}

function found(
  { path, part, problem, expected, hint }: Violation,
  locate: (path: Path, part: 'key' | 'value') => number,
  start: number,
): Finding {
  return { offset: locate(path, part) + start, problem, expected, hint };
}

/** Where documents begin and end: between lines that are `---`, `...` or begin with `--- `. */
function* documentRanges(text: string): Generator<{ start: number; end: number }> {
  let start = 0;
  for (const match of text.matchAll(/^(?:---|\.\.\.)(?=\s|$)/gm)) {
    yield { start, end: match.index };
    start = match.index + match[0].length;
  }
  yield { start, end: text.length };
}

function documentOf(value: unknown, start: number, end: number): MeshDocument | { violations: Violation[] } {
  const kind = isMapping(value) ? value.kind : undefined;
  const known = KINDS.find((one) => one === kind);
  if (known === undefined) {
    const problem = !isMapping(value)
      ? 'a document is not a mapping'
      : kind === undefined
        ? 'key "kind" is missing'
        : `kind: ${JSON.stringify(kind)} is not known`;
    const near = typeof kind === 'string' ? suggest(kind, KINDS) : undefined;
    const path = kind === undefined ? [] : ['kind'];
    return { violations: [{ path, part: 'value', problem, expected: `one of ${KINDS.join(', ')}`, hint: near }] };
  }
  const violations = validate(documentSchemas[known], value);
  if (violations.length === 0 && known === 'AuthorizationPolicy') {
    violations.push(...policyContradictions(value as DocumentOf<'AuthorizationPolicy'>));
  }
  if (violations.length === 0 && known === 'Service')
    violations.push(...serviceMistakes(value as DocumentOf<'Service'>));
  if (
    violations.length === 0 &&
    known === 'Namespace' &&
    (value as DocumentOf<Kind>).metadata.namespace !== undefined
  ) {
    const path = ['metadata', 'namespace'];
    violations.push({
      path,
      part: 'key',
      problem: `${about(path)}a namespace is in no other`,
      expected: 'its name only',
    });
  }
  if (violations.length > 0) return { violations };
  const { name, namespace = 'default' } = (value as DocumentOf<Kind>).metadata;
  return { kind: known, value, name: `${known} ${namespace}/${name}`, namespace, start, end } as MeshDocument;
}

function policyContradictions({ spec }: DocumentOf<'AuthorizationPolicy'>): Violation[] {
  const violations: Violation[] = [];
  const add = (path: Path, problem: string, expected?: string): void =>
    void violations.push({ path, part: 'value', problem: `${about(path)}${problem}`, expected });
  if (spec.scope === 'global' && spec.selector !== undefined) {
    const path = ['spec', 'selector'];
    add(path, 'a policy for the whole mesh contradicts a selector', 'either scope: global or a selector');
  }
  const check = (object: Record<string, unknown>, path: Path): void => {
    for (const [key, values] of Object.entries(object)) {
      const opposite = key === 'values' ? 'notValues' : `not${key[0]!.toUpperCase()}${key.slice(1)}`;
      const not = object[opposite];
      if (!Array.isArray(values) || !Array.isArray(not)) continue;
      const both = values.find((value) => not.some((other) => String(other) === String(value)));
      if (both === undefined) continue;
      add(
        [...path, opposite],
        `${JSON.stringify(both)} is in ${key} too, so that it never matches`,
        'each in one of both',
      );
    }
  };
  spec.rules?.forEach((rule, index) => {
    const at = ['spec', 'rules', index];
    rule.from?.forEach(({ source }, i) => void check(source, [...at, 'from', i, 'source']));
    rule.to?.forEach(({ operation }, i) => void check(operation, [...at, 'to', i, 'operation']));
    rule.when?.forEach((condition, i) => {
      const path = [...at, 'when', i];
      check(condition, path);
      if (condition.values === undefined && condition.notValues === undefined)
        add(path, 'has neither values nor notValues');
      const ports =
        condition.key === 'destination.port' ? [...(condition.values ?? []), ...(condition.notValues ?? [])] : [];
      const bad = ports.find((value) => !/^[1-9]\d{0,4}$/.test(value) || Number(value) > 65535);
      if (bad !== undefined) add(path, `${JSON.stringify(bad)} is not a port`);
    });
  });
  return violations;
}

function serviceMistakes({ spec }: DocumentOf<'Service'>): Violation[] {
  const violations: Violation[] = [];
  if (spec.selector !== undefined && Object.keys(spec.selector).length === 0) {
    const path = ['spec', 'selector'];
    const problem = `${about(path)}is empty, so that every workload of the namespace would be an endpoint`;
    violations.push({ path, part: 'value', problem, expected: 'at least one label' });
  }
  spec.ports.forEach(({ port }, index) => {
    const first = spec.ports.findIndex((other) => other.port === port);
    if (first === index) return;
    const path = ['spec', 'ports', index, 'port'];
    violations.push({ path, part: 'value', problem: `${about(path)}${port} is the port of ports[${first}] already` });
  });
  return violations;
}
