// Tables for terminals. Pure.

/** A row of cells. */
export type Row = readonly (string | number)[];

/** Columns two spaces apart, as wide as their longest cell; numbers to the right. Ends with a line end. */
export function formatTable(head: readonly string[], rows: readonly Row[]): string {
  const widths = head.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => printable(row[column]!).length)),
  );
  const line = (row: Row): string =>
    row
      .map((cell, column) => {
        const text = printable(cell);
        return typeof cell === 'number' ? text.padStart(widths[column]!) : text.padEnd(widths[column]!);
      })
      .join('  ')
      .trimEnd();
  return `${[head, ...rows].map(line).join('\n')}\n`;
}

/** Without what would move a terminal's cursor: names come from others. */
export function printable(cell: string | number): string {
  return String(cell).replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

/** A time span for people: `4s`, `12m`, `3h`, `5d`. */
export function formatAge(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)}h` : `${Math.floor(seconds / 86_400)}d`;
}
