// Whether two pieces of a configuration say the same.

/**
 * Whether two values of plain data (objects, arrays, texts, numbers) are the same. Anything else, shared memory and
 * regular expressions among it, is only the same as itself; so are maps.
 */
export function isEqualData(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a)) {
    if (!Array.isArray(b) || a.length !== b.length) return false;
    for (let i = 0; i < a.length; i++) if (!isEqualData(a[i], b[i])) return false;
    return true;
  }
  if (Object.getPrototypeOf(a) !== Object.prototype || Object.getPrototypeOf(b) !== Object.prototype) return false;
  let count = 0;
  for (const key in a) {
    if (!Object.hasOwn(b, key) || !isEqualData(a[key as never], b[key as never])) return false;
    count++;
  }
  for (const _ in b) count--;
  return count === 0;
}
