// Results as tables and targets: the text of the terminal and of bench/RESULTS.md. Pure functions.

import type { LoadSummary } from './load.ts';
import type { Machine } from './machine.ts';
import type { BenchOptions } from './options.ts';

const DIGITS_MAX = 4;

/** A table of text. */
export interface Table {
  columns: string[];
  rows: string[][];
  /** Number of columns from the left that hold text, not numbers; default 1. */
  textColumns?: number;
}

/** One figure to reach. */
export interface Target {
  what: string;
  limit: string;
  measured: string;
  /** null: it could not be measured in this run. */
  reached: boolean | null;
}

/** What one scenario gave. */
export interface ScenarioResult {
  name: string;
  title: string;
  /** What was done, in a sentence or two. */
  description: string;
  table: Table;
  targets: Target[];
  /** Errors, dead proxies, a busy machine: whatever makes the figures doubtful. */
  problems: string[];
}

/** Everything that the head of the report says. */
export interface ReportHead {
  machine: Machine;
  options: BenchOptions;
  /** One line for each tool and each proxy. */
  versions: string[];
  dateIso: string;
}

/** A target "at most `limit`"; `measured` null or NaN: not measured. */
export function atMost(what: string, measured: number | null, limit: number, unit = ''): Target {
  // Without a unit it is a ratio, or a count that must be 0.
  const digits = unit === '' && limit > 0 ? 2 : 0;
  const known = measured !== null && Number.isFinite(measured);
  return {
    what,
    limit: `at most ${decimal(limit, digits)}${unit}`,
    measured: known ? `${differing(measured, limit, digits)}${unit}` : 'not measured',
    reached: known ? measured <= limit : null,
  };
}

/** CPU of Portcullis over that of `other` in the same scenario; null when one is missing. */
export function cpuRatio(summaries: readonly LoadSummary[], other: string): number | null {
  return ratio(summaries, 'portcullis', other);
}

/** CPU per request of the proxy named `name` over that of `other`; null when one is missing. */
export function ratio(summaries: readonly LoadSummary[], name: string, other: string): number | null {
  const above = find(summaries, name);
  const below = find(summaries, other);
  return above === null || below === null ? null : above.cpuUsPerRequest / below.cpuUsPerRequest;
}

/** The summary of the proxy with this name in tables; null when it did not take part. */
export function find(summaries: readonly LoadSummary[], name: string): LoadSummary | null {
  return summaries.find((summary) => summary.name === name) ?? null;
}

/** Table of a load scenario; `perGb` adds CPU time for 10^9 bytes of body. */
export function loadTable(summaries: readonly LoadSummary[], perGb = false): Table {
  const columns = ['proxy', 'CPU µs/request', 'spread', 'requests/s', 'p50 µs', 'p99 µs', 'cores used', 'errors'];
  if (perGb) columns.splice(2, 0, 'CPU ms/GB');
  columns.push('Portcullis ÷ it');
  const rows = summaries.map((summary) => {
    const relative = cpuRatio(summaries, summary.name);
    const row = [
      summary.name,
      summary.cpuUsPerRequest.toFixed(2),
      `${Math.round(summary.cpuSpread * 100)} %`,
      grouped(summary.requestsPerSecond),
      grouped(summary.latencyP50Us),
      grouped(summary.latencyP99Us),
      summary.proxyCores.toFixed(2),
      summary.errors === '' ? '0' : `**${summary.errors}**`,
      relative === null ? '-' : relative.toFixed(2),
    ];
    if (perGb) row.splice(2, 0, grouped(summary.cpuMsPerGb));
    return row;
  });
  return { columns, rows };
}

/**
 * Table of what features cost: each row against the one that is named like its proxy alone, which has none.
 * There is a dash where that is missing.
 */
export function featureTable(summaries: readonly LoadSummary[]): Table {
  const table = loadTable(summaries);
  const last = table.columns.length - 1;
  table.columns.splice(last, 1, 'µs more', '÷ without');
  summaries.forEach((summary, index) => {
    const without = find(summaries, summary.peerName);
    const more = without === null ? null : summary.cpuUsPerRequest - without.cpuUsPerRequest;
    const relative = ratio(summaries, summary.name, summary.peerName);
    table.rows[index].splice(last, 1, more?.toFixed(2) ?? '-', relative?.toFixed(2) ?? '-');
  });
  return table;
}

/** The whole report in Markdown. */
export function renderReport(head: ReportHead, results: readonly ScenarioResult[]): string {
  const parts = ['# Benchmark results', renderHead(head)];
  parts.push('## Targets', renderTargets(results));
  const doubtful = results.filter((result) => result.problems.length > 0);
  if (doubtful.length > 0) {
    const names = doubtful.map((result) => `\`${result.name}\``).join(', ');
    parts.push(`**Errors or disturbances happened in ${names}; see there.**`);
  }
  for (const result of results) parts.push(renderScenario(result));
  return `${parts.join('\n\n')}\n`;
}

/** One scenario in Markdown. */
export function renderScenario(result: ScenarioResult): string {
  const parts = [`## ${result.title} (\`${result.name}\`)`, result.description, renderTable(result.table)];
  if (result.problems.length > 0) parts.push(result.problems.map((problem) => `- **!** ${problem}`).join('\n'));
  return parts.join('\n\n');
}

/** The targets of all results in Markdown. */
export function renderTargets(results: readonly ScenarioResult[]): string {
  const rows = results.flatMap((result) =>
    result.targets.map((target) => [result.name, target.what, target.limit, target.measured, verdict(target)]),
  );
  if (rows.length === 0) return 'None of the scenarios run has a target.';
  return renderTable({ columns: ['scenario', 'figure', 'target', 'measured', 'verdict'], rows, textColumns: 2 });
}

/** A number with thousands separated. */
export function grouped(value: number): string {
  return Number.isFinite(value) ? Math.round(value).toLocaleString('en-US') : '-';
}

function renderHead({ machine, options, versions, dateIso }: ReportHead): string {
  const lines = [
    `- Date: ${dateIso}`,
    `- Machine: ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB; ${machine.kernel}; up to ${machine.descriptorsMax} descriptors`,
    `- Load average before the run: ${machine.load.toFixed(2)}`,
    `- Rounds: ${options.rounds} of ${options.seconds} s for each proxy, interleaved; medians. Backend: ${options.backend === 'c' ? 'backend.c' : 'nginx'}`,
    `- Proxy on core 0, load generator (1 thread) and backend on core 1, except where said otherwise. Node ${machine.node}`,
    ...versions.map((version) => `- ${version}`),
  ];
  if (options.quick)
    lines.push('- **A quick run: one short round for each figure. Good for finding mistakes, not for conclusions.**');
  lines.push('', 'How to run it, what the scenarios do and how to read the tables: [README.md](README.md).');
  return lines.join('\n');
}

/** A table in Markdown. */
export function renderTable({ columns, rows, textColumns = 1 }: Table): string {
  const widths = columns.map((column, index) => Math.max(column.length, ...rows.map((row) => row[index].length)));
  const cell = (text: string, index: number) =>
    index < textColumns ? text.padEnd(widths[index]) : text.padStart(widths[index]);
  const line = (cells: readonly string[]) => `| ${cells.map(cell).join(' | ')} |`;
  const rule = widths.map((width, index) =>
    index < textColumns ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`,
  );
  return [line(columns), `|${rule.join('|')}|`, ...rows.map(line)].join('\n');
}

function verdict(target: Target): string {
  if (target.reached === null) return '-';
  return target.reached ? 'reached' : '**missed**';
}

/** `value` with at least `digits` decimals, and more if it would look like `limit` without being it. */
function differing(value: number, limit: number, digits: number): string {
  while (digits < DIGITS_MAX && value !== limit && decimal(value, digits) === decimal(limit, digits)) digits++;
  return decimal(value, digits);
}

function decimal(value: number, digits: number): string {
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
