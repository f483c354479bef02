// Reads parser cases from test/data/http1/*.md: prose, raw input with visible escapes, expectation.
//
//   ## a sentence that names the case
//   ```request            (or response, or chunked)
//   GET / HTTP/1.1\r\n    line ends of the file do not count; only escapes do: \r \n \t \0 \\ \xHH
//   a: \{3:xyz}\r\n       and \{count:text} for repetition
//   ```
//   ```limits             (optional) name=value, one per line
//   ```expect             one expectation per line: "name value", names as in observe.ts
//
// A case needs no code.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** One case of a data file. */
export interface ParserCase {
  name: string;
  kind: 'request' | 'response' | 'chunked';
  input: Buffer;
  limits: Record<string, number>;
  /** Expectations in order; `value` is already unescaped (latin1). */
  expect: { name: string; value: string }[];
}

const dataDirectory = join(import.meta.dirname, '../../../data/http1');

/** Resolves the visible escapes of one text. */
export function unescapeBytes(text: string): string {
  const repeated = text.replace(/\\\{(\d+):([^}]*)\}/g, (_, count: string, unit: string) => unit.repeat(Number(count)));
  return repeated.replace(/\\(x[0-9a-fA-F]{2}|.)/g, (_, name: string) => {
    if (name.length === 3) return String.fromCharCode(Number.parseInt(name.slice(1), 16));
    const known: Record<string, string> = { r: '\r', n: '\n', t: '\t', '0': '\0', '\\': '\\' };
    const byte = known[name];
    if (byte === undefined) throw new Error(`Unknown escape \\${name}`);
    return byte;
  });
}

function parseExpectation(line: string): { name: string; value: string } {
  const space = line.indexOf(' ');
  return space < 0
    ? { name: line, value: '' }
    : { name: line.slice(0, space), value: unescapeBytes(line.slice(space + 1)) };
}

/** All cases of one file. A case without input or expectation is an error of the file. */
export function parseCases(text: string): ParserCase[] {
  const cases: ParserCase[] = [];
  for (const section of text.split(/^## /m).slice(1)) {
    const name = section.slice(0, section.indexOf('\n')).trim();
    const blocks = new Map<string, string[]>();
    for (const block of section.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)) {
      blocks.set(block[1], block[2].split('\n').slice(0, -1));
    }
    const kind = (['request', 'response', 'chunked'] as const).find((candidate) => blocks.has(candidate));
    const expectLines = blocks.get('expect');
    if (kind === undefined || expectLines === undefined) throw new Error(`Case "${name}" is incomplete`);
    const limits: Record<string, number> = {};
    for (const line of blocks.get('limits') ?? []) {
      const [key, value] = line.split('=');
      limits[key] = Number(value);
    }
    const input = Buffer.from(unescapeBytes(blocks.get(kind)!.join('')), 'latin1');
    cases.push({ name, kind, input, limits, expect: expectLines.map(parseExpectation) });
  }
  return cases;
}

/** Names of all case files and their cases. */
export function loadCaseFiles(): { file: string; cases: ParserCase[] }[] {
  return readdirSync(dataDirectory)
    .filter((file) => file.endsWith('.md'))
    .sort()
    .map((file) => ({ file, cases: parseCases(readFileSync(join(dataDirectory, file), 'utf8')) }));
}
