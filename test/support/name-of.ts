// Names of numbers, for assertions and messages of tests: the product knows errors by number and sentence.

/** Name of a number in a table such as `ProxyError`; `UNKNOWN`: it has none there. */
export function nameOf(numbers: Readonly<Record<string, number>>, number: number): string {
  return Object.keys(numbers).find((name) => numbers[name] === number) ?? 'UNKNOWN';
}
