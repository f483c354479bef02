// Loads a configuration: text to YAML, variables, schema, semantic checks, normalised values.
//
// Control thread. Either a whole valid configuration comes out, or every error found, in file order.

import { readFileSync } from 'node:fs';
import { LineCounter } from 'yaml';
import { errnoSentence } from '../core/ffi/errno.ts';
import type { Config } from './config.ts';
import type { Environment } from './env.ts';
import type { ConfigError, ConfigWarning, Finding } from './errors.ts';
import { checkFiles } from './files.ts';
import { normalise } from './normalise.ts';
import { type ConfigInput, configSchema } from './schema.ts';
import { checkSemantics } from './semantics.ts';
import { decodeText } from './text.ts';
import { type Violation, validate } from './validate.ts';
import { readYaml, type YamlResult } from './yaml.ts';
import { readPlainYaml } from './yaml-plain.ts';

export { type ConfigError, formatConfigError } from './errors.ts';

/** A valid configuration. */
export interface Loaded {
  config: Config;
  /**
   * Judges what the configuration means: warnings in file order. Takes its time, so that it is asked for
   * when there is some; `quick` leaves out the lines and columns of a large file, which take most of it.
   */
  warnings: (quick?: boolean) => Promise<ConfigWarning[]>;
}

/** A valid configuration, or what is wrong with it. */
export type LoadResult = Loaded | { errors: ConfigError[] };

/**
 * Shortest text, in UTF-16 units, for which the quick reader is tried: below, the yaml package takes
 * less time than anyone notices.
 */
const QUICK_TEXT_MIN = 64 * 1024;

/**
 * Loads a configuration from `text`. `file` names it in errors and is what relative paths are
 * relative to; `env` is where `${VAR}` is looked up.
 */
export function loadConfig(text: string, file: string, env: Environment): LoadResult {
  return load(text, file, env, (value) => violationsOf(value));
}

/** `check` gives all violations of a value. */
function load(text: string, file: string, env: Environment, check: (value: unknown) => Violation[]): LoadResult {
  if (text.length >= QUICK_TEXT_MIN) {
    const value = readPlainYaml(text, env);
    // Whatever is wrong, the thorough way below finds it again, and its place.
    if (value !== undefined && check(value).length === 0) return loaded(value as ConfigInput, text, file, env);
  }
  const yaml = readYaml(text, env);
  const findings: Finding[] = [...yaml.findings];
  if (yaml.value !== undefined) findings.push(...findingsOf(check(yaml.value), yaml));
  if (findings.length > 0) return { errors: place(findings, text, file) };
  return loaded(yaml.value as ConfigInput, text, file, env);
}

function loaded(input: ConfigInput, text: string, file: string, env: Environment): Loaded {
  const config = normalise(input, file);
  return {
    config,
    warnings: async (quick = false) => {
      const { judge } = await import('./warnings.ts');
      const found = judge({ config, input });
      if (found.length === 0) return [];
      if (quick && text.length >= QUICK_TEXT_MIN) {
        return found.map(({ name, message }) => ({ file, line: 0, column: 0, name, message }));
      }
      const { locate } = readYaml(text, env);
      const lines = lineCounter(text);
      return found
        .map((finding) => ({ ...finding, offset: locate(finding.path, finding.part) }))
        .toSorted((a, b) => a.offset - b.offset)
        .map(({ offset, name, message }) => {
          const { line, col } = lines.linePos(offset);
          return { file, line, column: col, name, message };
        });
    },
  };
}

/** Finds what is wrong with other files that a configuration, read from `file`, names. */
export type FileCheck = (root: unknown, file: string) => Violation[];

/**
 * Loads a configuration file, and checks what it says of other files, also by `moreChecks`. A file that
 * cannot be read is an error like any other.
 */
export function loadConfigFile(path: string, env: Environment, moreChecks: readonly FileCheck[] = []): LoadResult {
  const read = readText(path);
  if ('errors' in read) return read;
  return load(read.text, path, env, (value) => [
    ...violationsOf(value),
    ...[checkFiles, ...moreChecks].flatMap((check) => check(value, path)),
  ]);
}

/**
 * The value of a configuration file of another kind than the gateway's, for which `check` has found nothing wrong; or
 * everything that is.
 */
export function loadValueFile(
  path: string,
  env: Environment,
  check: (value: unknown) => Violation[],
): { value: unknown } | { errors: ConfigError[] } {
  const read = readText(path);
  if ('errors' in read) return read;
  const yaml = readYaml(read.text, env);
  const findings: Finding[] = [...yaml.findings];
  if (yaml.value !== undefined) findings.push(...findingsOf(check(yaml.value), yaml));
  return findings.length > 0 ? { errors: place(findings, read.text, path) } : { value: yaml.value };
}

/** The text of a file; one that cannot be read is an error like any other. */
function readText(path: string): { text: string } | { errors: ConfigError[] } {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    return {
      errors: [{ file: path, line: 0, column: 0, problem: readProblem(error), expected: 'a readable YAML file' }],
    };
  }
  const { text, finding } = decodeText(bytes);
  return finding === undefined ? { text } : { errors: place([finding], text, path) };
}

function findingsOf(violations: readonly Violation[], { locate }: YamlResult): Finding[] {
  return violations.map(({ path, part, problem, expected, hint }) => ({
    offset: locate(path, part),
    problem,
    expected,
    hint,
  }));
}

function violationsOf(value: unknown): Violation[] {
  return [...validate(configSchema, value), ...checkSemantics(value)];
}

function readProblem(error: unknown): string {
  switch ((error as NodeJS.ErrnoException).code) {
    case 'ENOENT':
      return 'there is no such file';
    case 'EACCES':
    case 'EPERM':
      return 'the file may not be read by this user';
    case 'EISDIR':
      return 'is a directory';
    default:
      return `the file cannot be read (${errnoSentence((error as NodeJS.ErrnoException).errno ?? 0)})`;
  }
}

/** Lines and columns for offsets, in the order of the file. */
export function place(findings: Finding[], text: string, file: string): ConfigError[] {
  const lines = lineCounter(text);
  return findings
    .toSorted((a, b) => a.offset - b.offset)
    .map(({ offset, problem, expected, hint }) => {
      const { line, col } = lines.linePos(offset);
      return {
        file,
        line,
        column: col,
        problem,
        ...(expected === undefined ? {} : { expected }),
        ...(hint === undefined ? {} : { hint }),
      };
    });
}

/** Finds lines and columns of offsets in a text. */
function lineCounter(text: string): LineCounter {
  const lines = new LineCounter();
  lines.addNewLine(0);
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) lines.addNewLine(at + 1);
  return lines;
}
