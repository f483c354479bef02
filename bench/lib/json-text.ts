// A JSON text as an API might answer with, for compression: files of zeros would shrink to nothing. Pure.

const WORDS = 'amber birch cedar delta ember fjord grove harbor indigo juniper kestrel lagoon meadow nectar'.split(' ');

/** An array of records in exactly `bytes` bytes (at least 2), the same each time; spaces fill up the end. */
export function jsonText(bytes: number): string {
  const random = generator(1);
  const word = () => WORDS[random() % WORDS.length];
  const records: string[] = [];
  for (let length = 2; ; ) {
    const record = JSON.stringify({
      id: random().toString(16).padStart(8, '0'),
      name: `${word()} ${word()}`,
      price: (random() % 100_000) / 100,
      inStock: random() % 4 > 0,
      tags: [word(), word(), word()],
      updatedAt: new Date(1.75e12 + random()).toISOString(),
      description: Array.from({ length: 12 }, word).join(' '),
    });
    length += record.length + 1;
    if (length > bytes) return `[${records.join(',')}]`.padEnd(bytes);
    records.push(record);
  }
}

/** Numbers of 32 bits that look random (xorshift, Marsaglia 2003). */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}
