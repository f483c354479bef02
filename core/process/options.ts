// Command line arguments: options of one command, with a hint for what was probably meant.
// Pure; runs once at start.

import { ExitCode, ExitError } from './exit-codes.ts';
import { suggest } from './suggest.ts';

/** Options of a command: whether each takes a value. */
export type OptionShapes = Record<string, 'flag' | 'value'>;

/** Parsed arguments. */
export interface ParsedArguments {
  options: Map<string, string>;
  positional: string[];
}

/**
 * Parses `--name`, `--name value` and `--name=value`; `--` ends the options. `command`: whose help knows them, such as
 * `mesh graph`; absent: that of the program.
 * Throws an ExitError with a usage code for an unknown, repeated or incomplete option.
 */
export function parseArguments(args: readonly string[], shapes: OptionShapes, command?: string): ParsedArguments {
  const parsed: ParsedArguments = { options: new Map(), positional: [] };
  for (let i = 0; i < args.length; i++) {
    const argument = args[i]!;
    if (argument === '--') {
      parsed.positional.push(...args.slice(i + 1));
      break;
    }
    if (!argument.startsWith('-') || argument === '-') {
      parsed.positional.push(argument);
      continue;
    }
    const [name, inline] = split(argument);
    const shape = shapes[name];
    if (shape === undefined) throw unknown('option', name, Object.keys(shapes), command);
    if (parsed.options.has(name)) throw new ExitError(ExitCode.USAGE, `${name} is given twice.`);
    if (shape === 'flag') {
      if (inline !== undefined) throw new ExitError(ExitCode.USAGE, `${name} takes no value.`);
      parsed.options.set(name, '');
      continue;
    }
    const value = inline ?? args[++i];
    if (value === undefined || value === '') throw new ExitError(ExitCode.USAGE, `${name} needs a value.`);
    parsed.options.set(name, value);
  }
  return parsed;
}

/** The error for something unknown, with the nearest known name if one is near, or with the help of `command`. */
export function unknown(what: string, given: string, known: readonly string[], command?: string): ExitError {
  const near = suggest(given, known);
  const help = command === undefined ? 'portcullis --help' : `portcullis ${command} --help`;
  const hint = near === undefined ? `see \`${help}\`.` : `did you mean ${near}?`;
  return new ExitError(ExitCode.USAGE, `unknown ${what} ${given}: ${hint}`);
}

function split(argument: string): [string, string | undefined] {
  const equals = argument.indexOf('=');
  return equals < 0 ? [argument, undefined] : [argument.slice(0, equals), argument.slice(equals + 1)];
}
