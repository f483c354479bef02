// The kinds of value that the configuration knows: duration, size, address, hostname, ...
//
// Each is a schema with a note for people: what it is called in the documentation, what an
// error says was expected, and what exactly is wrong with a text that is not one. Control thread.
// Invariant: every key of the schema that holds a single value is made here or carries a note.

import type { TSchema } from 'typebox';
import {
  endpointAddressProblem,
  hostnameProblem,
  listenAddressProblem,
  NAME_PATTERN,
  pathProblem,
  serverNameProblem,
  subjectAltNameProblem,
  TOKEN_PATTERN,
} from './names.ts';
import * as schema from './schema-builder.ts';
import {
  DURATION_PATTERN,
  formatDuration,
  formatSize,
  parseDurationMs,
  parseSizeBytes,
  SIZE_PATTERN,
  suggestDuration,
  suggestSize,
} from './units.ts';

/** Key under which a schema carries its note; `jsonSchema` leaves it out. */
export const NOTE = 'x-portcullis-note';

/** What people are told of a value. */
export interface Note {
  /** Name of the kind in the documentation, such as "duration". */
  type: string;
  /** Follows "expected" in an error. */
  expected: string;
  /** Range in the documentation; absent when every value of the kind is right. */
  range?: string;
  /**
   * What is wrong with a text (or a number, as text), to follow the value itself; undefined when it is
   * right. JSON Schema can say only part of this, so validation asks both.
   */
  problem?: (text: string) => string | undefined;
  /** What a wrong value probably means. */
  suggest?: (text: string) => string | undefined;
  /** Names among which a typo is looked for. */
  names?: readonly string[];
  /** The value must be a number, so that the text "3" is wrong. */
  numeric?: boolean;
}

/** Description, default (in the form a user would write) and note of one key. */
interface Options<T> {
  description: string;
  default?: T;
}

/** Longest duration anything may be set to: timers count milliseconds in 32 bits. */
const DURATION_MAX_MS = 168 * 3_600_000;

/** A duration of at least 1 ms, or also 0 where `zero` says what that means. */
export function duration(options: Options<string> & { zero?: string; minMs?: number; maxMs?: number }) {
  const maxMs = options.maxMs ?? DURATION_MAX_MS;
  const minMs = options.zero === undefined ? (options.minMs ?? 1) : 0;
  const range =
    options.zero === undefined
      ? `${formatDuration(minMs)} to ${formatDuration(maxMs)}`
      : `up to ${formatDuration(maxMs)}; 0: ${options.zero}`;
  const problem = (text: string): string | undefined => {
    const ms = parseDurationMs(text);
    if (ms === undefined) return /^\d+(\.\d+)?$/.test(text) ? 'has no unit' : 'is not a duration';
    if (ms < minMs) return 'is too short';
    return ms > maxMs ? 'is too long' : undefined;
  };
  const note: Note = {
    type: 'duration',
    expected: `a duration such as 250ms, 2s or 1h30m (${range})`,
    range,
    problem,
    suggest: (text) => {
      const guess = suggestDuration(text);
      return guess !== undefined && problem(guess) === undefined ? guess : undefined;
    },
  };
  const text = schema.text({ pattern: DURATION_PATTERN });
  // YAML reads 0 as a number. A duration must have a unit otherwise, so no other number is right.
  const zero = schema.wholeNumber({ minimum: 0, maximum: 0 });
  const branches = minMs === 0 ? [text, zero] : [text];
  return schema.union(branches as [typeof text, typeof zero], annotate(options, note));
}

/** A size in bytes, in the given range; `zero` says what 0 means where it is allowed too. */
export function size(options: Options<string | number> & { minBytes: number; maxBytes: number; zero?: string }) {
  const { minBytes, maxBytes, zero } = options;
  const range = `${formatSize(minBytes)} to ${formatSize(maxBytes)}${zero === undefined ? '' : `; 0: ${zero}`}`;
  const problemOf = (bytes: number | undefined): string | undefined => {
    if (bytes === undefined) return 'is not a size';
    if (bytes === 0 && zero !== undefined) return undefined;
    if (bytes < minBytes) return 'is too small';
    return bytes > maxBytes ? 'is too large' : undefined;
  };
  const problem = (text: string): string | undefined => problemOf(parseSizeBytes(text));
  const note: Note = {
    type: 'size',
    expected: `a size such as 512B, 64KiB or 1MiB (${range})`,
    range,
    problem,
    suggest: (text) => {
      const guess = suggestSize(text);
      return guess !== undefined && problem(guess) === undefined ? guess : undefined;
    },
  };
  const branches = [schema.text({ pattern: SIZE_PATTERN }), schema.wholeNumber({ minimum: 0 })] as const;
  return schema.union(branches, annotate(options, note));
}

/** A whole number in a range; `zero` says what 0 means where it is special. */
export function integer(options: Options<number> & { min: number; max: number; zero?: string }) {
  const range = `${options.min} to ${options.max}${options.zero === undefined ? '' : `; 0: ${options.zero}`}`;
  const note: Note = { type: 'integer', expected: `a whole number (${range})`, range, numeric: true };
  return schema.wholeNumber({ minimum: options.min, maximum: options.max, ...annotate(options, note) });
}

/** A number in a range, with or without a fraction. */
export function decimal(options: Options<number> & { min: number; max: number; zero?: string }) {
  const range = `${options.min} to ${options.max}${options.zero === undefined ? '' : `; 0: ${options.zero}`}`;
  const note: Note = { type: 'number', expected: `a number (${range})`, range, numeric: true };
  return schema.number({ minimum: options.min, maximum: options.max, ...annotate(options, note) });
}

/** A whole number in a range, or the word `auto`. */
export function integerOrAuto(options: Options<number | 'auto'> & { min: number; max: number }) {
  const range = `${options.min} to ${options.max}`;
  const note: Note = {
    type: '`auto` or integer',
    expected: `auto or a whole number (${range})`,
    range,
    names: ['auto'],
    numeric: true,
  };
  const number = schema.wholeNumber({ minimum: options.min, maximum: options.max });
  return schema.union([schema.literal('auto'), number], annotate(options, note));
}

/** true or false. */
export function boolean(options: Options<boolean>) {
  return schema.flag(annotate(options, { type: 'boolean', expected: 'true or false' }));
}

/** One word of a fixed set. */
export function oneOf<const T extends string>(words: readonly T[], options: Options<T>) {
  const expected = words.length === 1 ? words[0]! : `${words.slice(0, -1).join(', ')} or ${words[words.length - 1]}`;
  const note: Note = { type: words.map((word) => `\`${word}\``).join(', '), expected, names: words };
  return schema.words(words, annotate(options, note));
}

/** Name of a listener, route or backend. */
export function name(description: string) {
  return text({ description }, 'name', 'a name of letters, digits, ".", "_" and "-"', (value) =>
    new RegExp(NAME_PATTERN).test(value) ? undefined : 'is not a name',
  );
}

/** A reference to something by its name. What it refers to is checked in semantics.ts. */
export function reference(what: string, description: string) {
  return text({ description }, 'name', `the name of a ${what}`, (value) => (value === '' ? 'is empty' : undefined));
}

/** An address to listen on. */
export function listenAddress(options: Options<string>) {
  const expected = 'ip:port, :port or [ipv6]:port';
  return text(options, 'address', expected, listenAddressProblem, (value) =>
    /^\d{1,5}$/.test(value) ? `:${value}` : undefined,
  );
}

/** An address to connect to. */
export function endpointAddress(options: Options<string>) {
  return text(options, 'address', 'host:port or [ipv6]:port', endpointAddressProblem, (value) => {
    const url = /^https?:\/\/([^/]+)/.exec(value);
    return url !== null && endpointAddressProblem(url[1]!) === undefined ? url[1] : undefined;
  });
}

/** A hostname that requests are matched with. */
export function hostname(options: Options<string>) {
  return text(options, 'hostname', 'a hostname such as shop.example.com or *.example.com', hostnameProblem, (value) => {
    const guess = value.replace(/^https?:\/\//, '').replace(/[:/].*$/, '');
    return guess !== value && hostnameProblem(guess) === undefined ? guess : undefined;
  });
}

/** A path that requests are matched with. */
export function pathValue(options: Options<string>) {
  return text(options, 'path', 'a path such as /cart', pathProblem, (value) => {
    const guess = `/${value.replace(/^\/+/, '').replace(/[?#*].*$/, '')}`;
    return guess !== value && pathProblem(guess) === undefined ? guess : undefined;
  });
}

/** Name of a file (or of a directory), relative to the configuration file. */
export function filePath(description: string, directory = false) {
  const what = directory ? 'directory' : 'file';
  const problem = (value: string): string | undefined =>
    /^[^\x00-\x1f\x7f]+$/.test(value) ? undefined : `is not the name of a ${what}`;
  return text({ description }, 'path', `the name of a ${what}`, problem);
}

/** A name or IP address that a server's certificate must have. */
export function serverName(options: Options<string>) {
  return text(options, 'hostname', 'a name such as cart.internal', serverNameProblem);
}

/** A subject alternative name: DNS name, IP address or URI. */
export function subjectAltName(options: Options<string>) {
  const expected = 'a DNS name, an IP address or a URI such as spiffe://cluster.local/ns/shop/sa/cart';
  return text(options, 'name or URI', expected, subjectAltNameProblem);
}

/** Any text of visible ASCII characters without spaces. */
export function word(description: string) {
  return text({ description }, 'text', 'visible ASCII characters without spaces', (value) =>
    /^[\x21-\x7e]{1,4096}$/.test(value) ? undefined : 'is not valid',
  );
}

/** Tokens become part of heads, which have bounded room for what the gateway adds. */
const TOKEN_LENGTH_MAX = 128;

function tooLong(value: string): string | undefined {
  return value.length > TOKEN_LENGTH_MAX ? `is longer than ${TOKEN_LENGTH_MAX} characters` : undefined;
}

/** A token (RFC 9110 §5.6.2), such as a header name; `refuse` may say why some are not wanted. */
export function token(
  options: Options<string>,
  expected: string,
  refuse: (token: string) => string | undefined = () => undefined,
) {
  return text(options, 'token', expected, (value) =>
    new RegExp(TOKEN_PATTERN).test(value) ? (tooLong(value) ?? refuse(value)) : 'is not a token (RFC 9110 §5.6.2)',
  );
}

/** Any text for which `problem` finds nothing wrong. */
export function text(
  options: Options<string>,
  type: string,
  expected: string,
  problem: (text: string) => string | undefined,
  guess?: (text: string) => string | undefined,
) {
  const note: Note = { type, expected, problem, ...(guess === undefined ? {} : { suggest: guess }) };
  return schema.text(annotate(options, note));
}

/** The note of a schema; undefined for mappings and lists. */
export function noteOf(schema: TSchema | schema.SchemaNode): Note | undefined {
  return (schema as { [NOTE]?: Note })[NOTE];
}

function annotate<T>(options: Options<T>, note: Note) {
  const { description } = options;
  return { description, ...(options.default === undefined ? {} : { default: options.default }), [NOTE]: note };
}
