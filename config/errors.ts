// Errors in a configuration file: where, what is wrong, what was expected, what was probably meant.
// Control thread.

import type { WarningName } from './warnings.ts';

/** One error. Lines and columns count from 1; 0 when the error is about the file as a whole. */
export interface ConfigError {
  file: string;
  line: number;
  column: number;
  /** What is wrong, such as `listeners[0].address: "8080" has no port`. */
  problem: string;
  /** What would be right; absent when the problem says it all. */
  expected?: string;
  /** What the author probably meant; absent when nothing is near. */
  hint?: string;
}

/** A warning about a valid configuration. Lines and columns count from 1; 0 when the place was not looked up. */
export interface ConfigWarning {
  file: string;
  line: number;
  column: number;
  name: WarningName;
  /** What will happen, and what to do about it. */
  message: string;
}

/** An error whose place is known only as an offset in the text. */
export interface Finding {
  /** Offset in UTF-16 units from the start of the text. */
  offset: number;
  problem: string;
  expected?: string | undefined;
  hint?: string | undefined;
}

/** `file:line:column: what is wrong, expected what, did you mean X?` on one line. */
export function formatConfigError(error: ConfigError): string {
  const place = error.line === 0 ? error.file : `${error.file}:${error.line}:${error.column}`;
  return `${place}: ${describeConfigError(error)}`;
}

/** `file:line:column: warning[name]: what will happen, and what to do` on one line. */
export function formatConfigWarning({ file, line, column, name, message }: ConfigWarning): string {
  const place = line === 0 ? file : `${file}:${line}:${column}`;
  return `${place}: warning[${name}]: ${message}`;
}

/** An error without its place. */
export function describeConfigError({ problem, expected, hint }: ConfigError): string {
  const wanted = expected === undefined ? '' : `, expected ${expected}`;
  const meant = hint === undefined ? '' : `, did you mean ${hint}?`;
  return `${problem}${wanted}${meant}`;
}

/**
 * The first `max` errors, each on its line as `formatConfigError` writes it, and one line that says how
 * many more there are. `more` ends that line, for example with how to see them.
 */
export function formatConfigErrors(errors: readonly ConfigError[], max: number, more = ''): string[] {
  const lines = errors.slice(0, max).map(formatConfigError);
  const left = errors.length - lines.length;
  if (left > 0) lines.push(`and ${left} more ${left === 1 ? 'error' : 'errors'}${more}`);
  return lines;
}

/** A value for an error message: short, on one line, quoted when it is text. */
export function describeValue(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object' && value !== null) return 'a mapping';
  const text = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length <= 80 ? text : `${text.slice(0, 77)}...`;
}
