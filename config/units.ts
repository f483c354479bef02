// Durations and sizes as people write them, and the numbers they mean.
//
// Control thread. Durations are Go-style strings as in the Gateway API (GEP-2257), with fractions;
// sizes use binary units, because "KB" means two different things and a limit must mean one.

const MS_PER_UNIT: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
const BYTES_PER_UNIT: Record<string, number> = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 };

/** Pattern of a duration, for the JSON Schema. */
export const DURATION_PATTERN = '^(0|([0-9]+(\\.[0-9]+)?(ms|s|m|h))+)$';

/** Pattern of a size given as text, for the JSON Schema. */
export const SIZE_PATTERN = '^[0-9]+(B|KiB|MiB|GiB)?$';

/**
 * Milliseconds of a duration such as `250ms`, `2s`, `1h30m` or `0`; undefined when it is not one.
 * Fractions of a millisecond round up, so that a small limit never becomes 0, "no limit".
 */
export function parseDurationMs(text: string): number | undefined {
  if (text === '0') return 0;
  const part = /(\d+(?:\.\d+)?)(ms|s|m|h)/y;
  let totalMs = 0;
  let end = 0;
  while (end < text.length) {
    const match = part.exec(text);
    if (match === null) return undefined;
    totalMs += Number(match[1]) * MS_PER_UNIT[match[2]!]!;
    end = part.lastIndex;
  }
  // 1.1s is 1100.0000000000002 ms in floating point; that is not a fraction that anybody wrote.
  return end === 0 ? undefined : Math.ceil(Number(totalMs.toFixed(6)));
}

/** Shortest text for a whole number of milliseconds, such as `1h30m`. */
export function formatDuration(ms: number): string {
  if (ms === 0) return '0s';
  let text = '';
  let rest = ms;
  for (const unit of ['h', 'm', 's', 'ms']) {
    const count = Math.floor(rest / MS_PER_UNIT[unit]!);
    if (count > 0) text += `${count}${unit}`;
    rest -= count * MS_PER_UNIT[unit]!;
  }
  return text;
}

/** Bytes of a size such as `64KiB`, `512B` or `4096`; undefined when it is not one. */
export function parseSizeBytes(text: string): number | undefined {
  const match = /^(\d+)(B|KiB|MiB|GiB)?$/.exec(text);
  return match === null ? undefined : Number(match[1]) * BYTES_PER_UNIT[match[2] ?? 'B']!;
}

/** Shortest exact text for a number of bytes, such as `64KiB`. */
export function formatSize(bytes: number): string {
  for (const unit of ['GiB', 'MiB', 'KiB']) {
    const size = BYTES_PER_UNIT[unit]!;
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${unit}`;
  }
  return `${bytes}B`;
}

/** What a mistyped duration probably means, or undefined: `75` is `75s`, `5sec` is `5s`. */
export function suggestDuration(text: string): string | undefined {
  const words: [RegExp, string][] = [
    [/milliseconds?|millis|msecs?/gi, 'ms'],
    [/seconds?|secs?/gi, 's'],
    [/minutes?|mins?/gi, 'm'],
    [/hours?|hrs?/gi, 'h'],
  ];
  let guess = text.replace(/\s+/g, '').toLowerCase();
  for (const [word, unit] of words) guess = guess.replace(word, unit);
  const days = /^(\d+)d(?:ays?)?$/.exec(guess);
  if (days !== null) guess = `${Number(days[1]) * 24}h`;
  if (/^\d+(\.\d+)?$/.test(guess)) guess += 's';
  return parseDurationMs(guess) === undefined ? undefined : guess;
}

/** What a mistyped size probably means, or undefined: `64k` and `64KB` are `64KiB`. */
export function suggestSize(text: string): string | undefined {
  const match = /^(\d+)\s*([kmg])(?:i?b|bytes?)?$/i.exec(text);
  if (match === null) return undefined;
  return `${match[1]}${match[2]!.toUpperCase()}iB`;
}
