// Random header fields for tests of head rewriting: names that matter here and names that do not,
// in any case, with any white space around the value, in any order and number.

import type { Random } from '../../../sim/random.ts';

/** One field as sent, and as understood. */
export interface RandomField {
  /** The line, its line end included. */
  line: string;
  /** Lower case. */
  name: string;
  value: string;
}

/** Upper and lower case at random. */
export function mixedCase(random: Random, text: string): string {
  return [...text].map((letter) => (random.chance(0.5) ? letter.toUpperCase() : letter)).join('');
}

/** A field value: sometimes empty, sometimes long, sometimes with bytes beyond ASCII. */
export function randomValue(random: Random): string {
  const length = random.pick([0, random.int(1, 8), random.int(1, 40), random.size(1, 600)]);
  const alphabet = 'abcXYZ019 ,;=/"\t\u00e9\u00ff';
  return Array.from({ length }, () => random.pick([...alphabet]))
    .join('')
    .trim();
}

/** A field with white space around its value that belongs to nobody. */
export function randomField(random: Random, name: string, value: string): RandomField {
  const space = (): string => random.pick(['', ' ', '\t', '  ']);
  return { line: `${mixedCase(random, name)}:${space()}${value}${space()}\r\n`, name, value };
}

/** Names that Connection fields of a head list, besides options; none that is protected. */
export const nameable = ['x-a', 'x-ab', 'x-b', 'via', 'accept', 'x-unused', 'keep-alive', 'te', 'trailer'];

/** A value for Connection: options, names, empty elements. */
export function randomConnection(random: Random, options: readonly string[]): string {
  const elements = Array.from({ length: random.int(1, 4) }, () =>
    mixedCase(random, random.pick([...options, ...nameable, ''])),
  );
  return elements.join(random.pick([',', ', ', ' ,\t'])).trim();
}

/** Names in the Connection fields of a head, lower case. */
export function namedByConnection(fields: readonly RandomField[]): Set<string> {
  const names = fields
    .filter(({ name }) => name === 'connection')
    .flatMap(({ value }) => value.split(',').map((element) => element.trim().toLowerCase()));
  return new Set(names.filter((name) => name !== ''));
}

/** The same list in another order. */
export function shuffled<T>(random: Random, list: readonly T[]): T[] {
  const result = [...list];
  for (let i = result.length - 1; i > 0; i--) {
    const other = random.int(0, i);
    [result[i], result[other]] = [result[other], result[i]];
  }
  return result;
}
