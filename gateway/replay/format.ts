// The result of a replay as text for people. Pure.

import { type Example, type Outcome, outcomes, type ReplayResult } from './replay.ts';

/** Several lines, with their line ends; no control characters, whatever clients have sent. */
export function formatReplay(result: ReplayResult): string {
  const { file, requests, changed, examples, otherShares, notes } = result;
  const lines = [
    `${file}: ${requests} recorded ${requests === 1 ? 'request' : 'requests'}, ${changed} would fare otherwise`,
  ];
  for (const outcome of Object.keys(outcomes) as Outcome[]) {
    const count = result.outcomes[outcome];
    if (count === 0 && outcome !== 'kept') continue;
    lines.push(`  ${String(count).padStart(8)}  ${outcomes[outcome]}`);
    for (const example of examples[outcome] ?? []) lines.push(`            ${exampleText(example)}`);
    const left = count - (examples[outcome]?.length ?? count);
    if (left > 0) lines.push(`            and ${left} more`);
  }
  if (otherShares > 0) {
    lines.push(`  ${String(otherShares).padStart(8)}  go to the same backends in other shares`);
  }
  for (const note of notes) lines.push(`  note: ${note}`);
  return `${lines.map(printable).join('\n')}\n`;
}

function exampleText({ method, host, path, listener, client, before, after }: Example): string {
  return `${method} ${host}${path} on ${listener} from ${client}: ${before} -> ${after}`;
}

/** Texts from the wire may hold terminal control codes (C0, DEL, C1): shown as \xhh. */
function printable(text: string): string {
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}
